"""One trial of a study: train, evaluate, and record all that is needed to repeat and report it."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import keras
import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from keras_wsgcn.data.poses import PoseDataset, Splits
from keras_wsgcn.data.sources import load_splits
from keras_wsgcn.environment import environment
from keras_wsgcn.errors import InputError, Refused, first_line
from keras_wsgcn.evaluation import ERRORS, evaluate, headline
from keras_wsgcn.recipes import TrainConfig
from keras_wsgcn.saving import read_metadata
from keras_wsgcn.studies.planning import check_archive
from keras_wsgcn.studies.search import Search, distributions_of
from keras_wsgcn.studies.spec import solve, with_settings
from keras_wsgcn.studies.storage import KILLED_BY, trials_by_slot
from keras_wsgcn.training import DivergenceError, TrainResult, is_finished, train_together

_LATENCY_CALLS = 100
# How often a trial's process may be killed without an epoch in between: while the command that
# started the process lived on, or in all. The trial is hardly to blame where both were killed.
_MOST_DEATHS, _MOST_DEATHS_IN_ALL = 3, 10
_EPOCHS_BEFORE = "epochs_before"
# How each backend says that memory ran out; torch and TensorFlow have types of their own for it.
_NO_MEMORY_NAMES = {"OutOfMemoryError", "ResourceExhaustedError"}
_NO_MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory")


class OutOfMemoryError(RuntimeError):
    """A trial needed more memory than there is."""


class KilledError(RuntimeError):
    """A trial's process was killed again and again, and it came no further."""


class Loader:
    """Loads the data of trials, and keeps it for those that want the same."""

    def __init__(self) -> None:
        self._last: tuple[str, Splits] | None = None

    def __call__(self, options: Mapping[str, Any], config: TrainConfig) -> Splits:
        """The splits that `load_splits` makes of a study's `data`, for a configuration.

        Raises:
            InputError: if it cannot.
        """
        key = json.dumps([options, config.get_config()["skeleton"]], sort_keys=True)
        if not self._last or self._last[0] != key:
            rest = {name: value for name, value in options.items() if name != "source"}
            self._last = key, load_splits(options["source"], skeleton=config.skeleton, **rest)
        return self._last[1]


class Objective:
    """What Optuna calls for each trial.

    Args:
        search: how parameters are searched, or `None` where a trial is fixed.
        folder: where the runs of trials live, each under a name that follows from its settings:
            a run that another study has finished is not trained again.
        together: lists of seeds. The first trial of a list trains all of it, each step one for
            all seeds; the others then find their run finished.
        on_epoch: called after each epoch; may raise.
        load: loads the data of trials.
    """

    def __init__(
        self,
        search: Search | None,
        folder: Path,
        together: Sequence[Sequence[int]] = (),
        on_epoch: Callable[[], None] = lambda: None,
        load: Loader | None = None,
    ):
        self.search, self.folder = search, folder
        self.seeds = {seed: seeds for seeds in together for seed in seeds}
        self.on_epoch = on_epoch
        self._load = load or Loader()

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...]:
        began = time.time()
        try:
            values = self._run(trial)
            _end(trial, "finished", began)
            return values
        except optuna.TrialPruned:
            _end(trial, "pruned", began)
            raise
        except DivergenceError as error:
            # Pruned, not failed: samplers learn nothing from failed trials.
            _end(trial, "diverged", began, str(error))
            raise optuna.TrialPruned(str(error)) from error
        except Refused as error:
            _end(trial, "refused", began, str(error))
            raise optuna.TrialPruned(str(error)) from error
        except KilledError as error:
            _end(trial, "killed", began, str(error))
            raise
        except KeyboardInterrupt:
            _end(trial, "interrupted", began)
            raise
        except Exception as error:
            reason = first_line(error, 500)
            if is_out_of_memory(error):
                _end(trial, "out_of_memory", began, reason)
                raise OutOfMemoryError(reason) from error
            _end(trial, "failed", began, f"{type(error).__name__}: {reason}")
            raise

    def _run(self, trial: optuna.Trial) -> tuple[float, ...]:
        _check_deaths(trial)
        keras.utils.clear_session()  # frees the last trial's model
        start = trial.user_attrs["start"]
        config, size = self._configured(trial)
        trial.set_user_attr("config", config.get_config())
        trial.set_user_attr("size", size)
        data = self._load(start["data"], config)
        if self.search and config.batch_size > len(data.train):
            raise Refused(f"`batch_size` {config.batch_size} exceeds {len(data.train)} poses")
        check_archive(trial.study, data.digest)
        trial.set_user_attr("digest", data.digest)
        digest = {"digest": data.digest} if data.digest else {}
        folders = self._folders(config, {**start["data"], **digest})
        own = folders[config.seed]
        trial.set_user_attr("folder", own.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as locks:
            for folder in sorted(folders.values()):  # in one order, lest two wait for each other
                locks.enter_context(filelock.FileLock(folder.with_name(f"{folder.name}.lock")))
            _check_deaths(trial, len(_history(own)))
            if is_finished(config, _history(own)):
                folders = {config.seed: own}
            results = train_together(
                [dataclasses.replace(config, seed=seed) for seed in folders],
                data,
                list(folders.values()),
                callbacks=[[self._reporter(trial, folder)] for folder in folders.values()],
                verbose=False,
            )
        result = results[list(folders).index(config.seed)]
        if isinstance(result, DivergenceError):
            raise result
        record = record_run(result, data, test=self.search is None)
        for name, value in record.items():
            trial.set_user_attr(name, value)
        if self.search is None:
            return (record["metrics"]["val_mpjpe_mm"],)
        measured = {**size, **record["metrics"]}
        if "latency_ms" in self.search.objectives:
            measured["latency_ms"] = latency_ms({"": result.model})[""]
            trial.set_user_attr("latency_ms", measured["latency_ms"])
        return tuple(float(measured[name]) for name in self.search.objectives)

    def _configured(self, trial: optuna.Trial) -> tuple[TrainConfig, dict[str, Any]]:
        """What a trial trains, and its size.

        Raises:
            Refused: if a search has put together what no model has: the next trial may fit.
        """
        config = TrainConfig.from_config(trial.user_attrs["start"]["config"])
        if self.search:
            try:
                config = with_settings(config, suggest(trial, self.search))
            except InputError as error:
                raise Refused(first_line(error, 500)) from error
        size = solve(config)
        # By its channels, so that equal models at whatever budget are the same run.
        return with_settings(config, {"channels": size["channels"]}), size

    def _folders(self, config: TrainConfig, data: Mapping[str, Any]) -> dict[int, Path]:
        """For each seed that is trained together with this one the folder of its run."""
        seeds = self.seeds.get(config.seed, [config.seed])
        return {
            seed: run_folder(
                self.folder, dataclasses.replace(config, seed=seed), data, together=len(seeds)
            )
            for seed in seeds
        }

    def _reporter(self, trial: optuna.Trial, folder: Path) -> keras.callbacks.Callback:
        search = self.search
        prunes = search and search.prune and search.objectives == Search.objectives

        def report(row: Mapping[str, Any], epoch: int) -> None:
            self.on_epoch()
            if prunes:
                trial.report(row["val_mpjpe_mm"], epoch)
                if trial.should_prune():
                    trial.set_user_attr("history", _rows(_history(folder)))
                    raise optuna.TrialPruned(f"after epoch {epoch}")

        class Reporter(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                for row in _history(folder):  # the epochs before a resume
                    report(row, row["epoch"])

            def on_epoch_end(self, epoch, logs=None):
                report(logs, epoch + 1)

        return Reporter()


def _history(folder: Path) -> list[dict[str, Any]]:
    path = folder / "last.keras"
    return read_metadata(path)["training"]["history"] if path.exists() else []


def _check_deaths(trial: optuna.Trial, epochs: int | None = None) -> None:
    """Notes how far a trial's run has come, and gives up one that kills its process each time.

    Args:
        trial: the trial.
        epochs: of its run; `None` before its data is loaded.

    Raises:
        KilledError: if the slot's last trials came no further and were killed.
    """
    if epochs is not None:
        trial.set_user_attr(_EPOCHS_BEFORE, epochs)
    of_slot = trials_by_slot(trial.study)[trial.user_attrs["slot"]]
    earlier = [one.user_attrs for one in of_slot if one.number < trial.number]

    def came_no_further(known: Mapping[str, Any]) -> bool:
        loaded = "digest" in known
        return "outcome" not in known and (not loaded or known.get(_EPOCHS_BEFORE, -1) == epochs)

    killed = list(itertools.takewhile(came_no_further, reversed(earlier)))
    signals = [known[KILLED_BY] for known in killed if KILLED_BY in known]
    if len(signals) >= _MOST_DEATHS or len(killed) >= _MOST_DEATHS_IN_ALL:
        by = f", the last time by {signals[0]}" if signals else ""
        where = f"after epoch {epochs}" if epochs else "before its first epoch"
        raise KilledError(f"its process was killed {len(killed)} times {where}{by}")


def _end(trial: optuna.Trial, outcome: str, began: float, reason: str = "") -> None:
    trial.set_user_attr("outcome", outcome)
    trial.set_user_attr("seconds", round(time.time() - began, 1))
    if reason:
        trial.set_user_attr("reason", reason)
    if "environment" not in trial.user_attrs:
        trial.set_user_attr("environment", environment())


def suggest(trial: optuna.Trial, search: Search) -> dict[str, Any]:
    """Asks Optuna for the searched settings."""
    found: dict[str, Any] = {}
    for name, range_ in distributions_of(search.space).items():
        if isinstance(range_, CategoricalDistribution):
            found[name] = trial.suggest_categorical(name, range_.choices)
        elif isinstance(range_, IntDistribution):
            found[name] = trial.suggest_int(name, range_.low, range_.high, log=range_.log)
        elif isinstance(range_, FloatDistribution):
            found[name] = trial.suggest_float(name, range_.low, range_.high, log=range_.log)
    return found


def run_folder(
    folder: Path, config: TrainConfig, data: Mapping[str, Any], together: int = 1
) -> Path:
    """Where a run lives: a name that follows from all that decides its numbers.

    That is its settings, its data, the backend, and how many models are trained `together`.
    """
    backend = keras.backend.backend()
    facts = [config.get_config(), data, backend, *([together] if together > 1 else [])]
    record = json.dumps(facts, sort_keys=True)
    scheme = config.scheme if isinstance(config.scheme, str) else config.scheme.name
    scheme = re.sub(r"[^\w.+=-]", "_", scheme)[:60]  # of a user's own it can be anything
    source = Path(data["source"]).stem
    digest = hashlib.sha256(record.encode()).hexdigest()[:12]
    return folder / f"{source}-{backend}-{scheme}-{digest}"


def record_run(result: TrainResult, data: Splits, *, test: bool) -> dict[str, Any]:
    """What a trial records of its run, as JSON can hold it.

    Args:
        result: the finished run.
        data: its data.
        test: whether the test subjects are evaluated. In a search they never are.

    Returns:
        `metrics`: flat numbers; `subjects`: errors by split and subject; `history`: a row an
        epoch; `environment`: what the run ran on, which may be before this trial; `keypoints`: of
        Human3.6M, what its 2D poses are, else empty.
    """
    history: list[dict[str, Any]] = result.history.to_dict("records")  # type: ignore[assignment]
    best = min(history, key=lambda row: row["val_mpjpe_mm"])
    metrics: dict[str, Any] = {
        "best_epoch": int(best["epoch"]),
        "train_loss_m2": history[-1]["loss"],
        "train_mpjpe_mm": history[-1]["mpjpe_mm"],
        "val_mpjpe_mm": best["val_mpjpe_mm"],
        "train_seconds": round(sum(row["seconds"] for row in history), 1),
    }
    subjects: dict[str, Any] = {}
    for split in ("validation", *(["test"] if test else [])):
        subjects[split], errors = _by_subject(result.model, getattr(data, split))
        if split == "test":
            numbers = headline(errors, data.seen_actions)
            metrics |= {f"test_{name}": round(value, 4) for name, value in numbers.items()}
    record = json.loads((result.folder / "config.json").read_text(encoding="utf-8"))
    return {
        "metrics": metrics,
        "subjects": subjects,
        "history": _rows(history),
        "environment": record["environment"],
        "keypoints": data.keypoints,
    }


def _by_subject(model: keras.Model, poses: PoseDataset) -> tuple[dict[str, Any], Any]:
    errors = evaluate(model, poses)
    groups = errors.groupby("subject")
    means = groups[list(ERRORS)[:2]].mean().round(4)
    means.insert(0, "poses", groups.size())
    return {str(subject): row.to_dict() for subject, row in means.iterrows()}, errors


def _rows(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: float(f"{v:.6g}") if isinstance(v, float) else int(v) for k, v in row.items()}
        for row in history
    ]


def latency_ms(models: Mapping[str, keras.Model]) -> dict[str, float]:
    """Milliseconds that one pose takes, each model's median over 100 calls that take turns.

    Args:
        models: models by name. They take turns, so that a slow moment falls on all of them.

    Returns:
        The medians.
    """
    rng = np.random.default_rng(0)
    poses = {
        name: rng.uniform(-1, 1, (1, *model.input_shape[1:])).astype("float32")
        for name, model in models.items()
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for call in range(10 + _LATENCY_CALLS):
        for name, model in models.items():
            began = time.perf_counter()
            np.asarray(model.predict_on_batch(poses[name]))
            if call >= 10:  # the first ones compile and warm up
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: round(statistics.median(taken), 4) for name, taken in times.items()}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a backend ran out of memory."""
    if type(error).__name__ in _NO_MEMORY_NAMES or isinstance(error, MemoryError):
        return True
    return any(words in str(error) for words in _NO_MEMORY_WORDS)

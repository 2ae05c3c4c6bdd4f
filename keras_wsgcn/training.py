"""Training a lifter: `train()`, which resumes.

A run lives in a folder. Its state is one file, `last.keras`, replaced whole after each epoch, and
every random choice is a function of (seed, epoch): a run that was killed ends like any other.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np
import pandas as pd

from keras_wsgcn import metrics, skeletons
from keras_wsgcn.data.poses import PoseDataset, Splits
from keras_wsgcn.data.sources import differences
from keras_wsgcn.devices import check_together, data_parallel, float32_products
from keras_wsgcn.environment import environment
from keras_wsgcn.epochs import Epochs
from keras_wsgcn.errors import Failure, InputError, check_instance, shown
from keras_wsgcn.files import copy_file, remove_leftovers, write_json, write_text
from keras_wsgcn.prediction import predict, root_aligned
from keras_wsgcn.recipes import TrainConfig, compile_model, random_state_kept
from keras_wsgcn.saving import load_model, restore_model, save_model
from keras_wsgcn.torch_steps import check_jit_compile


class DivergenceError(Failure):
    """Training produced a loss that is not finite."""


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    Args:
        model: the model of the epoch with the lowest validation error.
        history: one row an epoch: `epoch`, `loss` (square metres), `mpjpe_mm` (mean over the steps
            of training, as predicted), `val_mpjpe_mm` (aligned at the root, as protocol 1 has it,
            mean over validation subjects), `learning_rate`, `seconds`.
        folder: where the run lives.
    """

    model: keras.Model
    history: pd.DataFrame
    folder: Path


def train(
    config: TrainConfig,
    data: Splits,
    folder: str | os.PathLike,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    devices: int = 1,
    verbose: bool = True,
) -> TrainResult:
    """Trains a model, choosing the best epoch on the validation subjects.

    Writes into `folder`: `config.json`, `history.csv`, `best.keras`, `last.keras`. Called again
    with the same arguments it goes on after the last finished epoch, and a finished run returns
    at once. On the same backend, versions and machine it ends as if undisturbed; on others it says
    so, and notes them in `config.json`.

    Args:
        config: what to train, and how.
        data: training and validation poses; the test poses are not looked at.
        folder: the run's folder.
        callbacks: Keras callbacks; they are told of the run's and the epochs' begin and end. One
            may set `model.stop_training`; called again, the run goes on. An epoch is saved before
            they are told of its end: a resumed run does not know what they then change or count.
        devices: over how many accelerators each batch is spread (JAX and TensorFlow).
        verbose: whether to print a line an epoch.

    Returns:
        The best model, the history and the folder.

    Raises:
        InputError: if the folder holds another run, the data does not fit the configuration, or
            there are no such devices, or the step cannot be compiled.
        DivergenceError: if the loss is no longer finite. The last good epoch stays in the folder.
    """
    runs = [(config, Path(folder), callbacks)]
    (result,) = _train(runs, data, devices, verbose)
    if isinstance(result, DivergenceError):
        raise result
    return result


def train_together(
    configs: Sequence[TrainConfig],
    data: Splits,
    folders: Sequence[str | os.PathLike],
    *,
    callbacks: Sequence[Sequence[keras.callbacks.Callback]] = (),
    verbose: bool = True,
) -> list["TrainResult | DivergenceError"]:
    """Trains models that differ in their seed, each step one for all of them (JAX).

    One small model leaves most of an accelerator idle. Each run gives what `train` gives but for
    rounding, and resumes as it does, if called with as many runs.

    Args:
        configs: what to train; they may differ in `seed` and `kernel_gain`.
        data: as `train` takes it.
        folders: a folder for each run.
        callbacks: for each run its callbacks, or none at all.
        verbose: whether to print a line an epoch and run.

    Returns:
        What `train` would return for each, or the error of a run that diverged: the others go on.

    Raises:
        InputError: if a run would be refused by `train`, the configurations differ in more, or
            the backend cannot.
    """
    if len(configs) != len(folders) or len(set(map(Path, folders))) != len(folders) or not configs:
        raise InputError(
            "`folders` must be a folder of its own for each configuration. Received: "
            f"{len(configs)} configurations, folders={shown(list(map(str, folders)))}"
        )
    if callbacks and len(callbacks) != len(configs):
        raise InputError(
            f"`callbacks` must be a list for each of the {len(configs)} configurations, or none. "
            f"Received: {len(callbacks)} lists"
        )
    first = configs[0]
    for config in configs:
        if replace(config, seed=first.seed, kernel_gain=first.kernel_gain) != first:
            raise InputError(
                "`configs` must differ in nothing but `seed` and `kernel_gain`. "
                f"Received: {shown(first)} and {shown(config)}"
            )
    check_together(len(configs))
    runs = list(zip(configs, map(Path, folders), callbacks or [()] * len(configs), strict=True))
    return _train(runs, data, 1, verbose)


@random_state_kept()
def _train(
    settings: Sequence[tuple[TrainConfig, Path, Sequence[keras.callbacks.Callback]]],
    data: Splits,
    devices: int,
    verbose: bool,
) -> list["TrainResult | DivergenceError"]:
    for config, _, _ in settings:
        check_instance("config", config, TrainConfig, "such as one of `RECIPES`")
    check_instance("data", data, Splits, "such as `load_splits` gives")
    first, epochs = settings[0][0], None
    if first.jit_compile and keras.backend.backend() == "torch":
        check_jit_compile(first.precision)
    with data_parallel(devices, first.batch_size), float32_products(first.precision == "tf32"):
        runs = [_Run(*own, data, together=len(settings)) for own in settings]
        _share_predict_function([run.model for run in runs])
        for run in runs:
            if verbose and run.changed:
                print(f"{run.folder.name} goes on, not as it began: {'; '.join(run.changed)}")
            run.callbacks.on_train_begin()
        while left := [run for run in runs if not run.is_over()]:
            # After a kill between their files some may be an epoch behind: those go first.
            learning = [run for run in left if run.epoch == min(run.epoch for run in left)]
            for run in learning:
                run.callbacks.on_epoch_begin(run.epoch)
            began = time.perf_counter()
            if epochs is None:
                epochs = Epochs(
                    [run.model for run in runs],
                    data.train.pose2d,
                    data.train.pose3d,
                    first.batch_size,
                    jit_compile=first.jit_compile,
                )
            orders = [run.next_order() if run in learning else None for run in runs]
            outcomes = epochs.run(orders)
            seconds = (time.perf_counter() - began) / len(learning)
            for run, outcome in zip(runs, outcomes, strict=True):
                if outcome:
                    run.end_epoch(*outcome, seconds, verbose)
        for run in runs:
            if not run.error:
                run.callbacks.on_train_end(run.logs)
    return [run.error or run.result() for run in runs]


class _Run:
    """A training run: its model, its history, and its files."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        callbacks: Sequence[keras.callbacks.Callback],
        data: Splits,
        together: int,
    ):
        kind = keras.callbacks.Callback
        if not (isinstance(callbacks, Sequence) and all(isinstance(c, kind) for c in callbacks)):
            raise InputError(
                f"`callbacks` must be a list of Keras callbacks. Received: callbacks={callbacks!r}"
            )
        skeleton = skeletons.get(config.skeleton)
        for name, part in (("train", data.train), ("validation", data.validation)):
            if part.skeleton != skeleton:
                raise InputError(
                    f"`data` must have the configuration's skeleton {skeleton.name!r}. "
                    f"Received: {name} poses of {part.skeleton.name!r}"
                )
        if not len(data.validation):
            raise InputError("`data` must have validation poses. Received: none")
        if len(data.train) < config.batch_size:
            raise InputError(
                f"`batch_size` must not exceed the {len(data.train)} training poses. "
                f"Received: batch_size={config.batch_size}"
            )
        self.config, self.data, self.folder, self.together = config, data, folder, together
        self.steps = len(data.train) // config.batch_size
        self.best_path, self.last_path = folder / "best.keras", folder / "last.keras"
        self.history: list[dict[str, Any]] = []
        self.error: DivergenceError | None = None
        self.model = config.build_model()
        self._claim_folder()  # only once all else has been found right
        compile_model(self.model, config, self.steps)
        if self.last_path.exists():
            metadata = restore_model(self.model, self.last_path)
            self.history = metadata["training"]["history"]
            self._write_history()  # a kill may have come between the two files
        self.changed = self._record_environment()
        self.callbacks = keras.callbacks.CallbackList(
            list(callbacks), model=self.model, epochs=config.epochs, steps=self.steps, verbose=0
        )

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""
        return len(self.history)

    @property
    def logs(self) -> dict[str, Any]:
        """What callbacks are told of the last epoch."""
        return {name: value for name, value in self.history[-1].items() if name != "epoch"}

    def _claim_folder(self) -> None:
        record = {"config": self.config.get_config(), "data": self.data.facts()}
        path = self.folder / "config.json"
        remove_leftovers(self.folder)
        if path.exists():
            if found := self._differences(path, record):
                raise InputError(
                    "`folder` must be new, or hold a run with the same configuration and data. "
                    f"Received: folder={str(self.folder)!r}, which differs in {found}"
                )
        else:
            write_json(path, {**record, "environment": self._environment()})

    def _environment(self) -> dict[str, str]:
        return environment() | ({"together": str(self.together)} if self.together > 1 else {})

    def _record_environment(self) -> list[str]:
        """Notes in `config.json` if the run goes on elsewhere, and says what is not as it was."""
        path, now = self.folder / "config.json", self._environment()
        resumed = (record := json.loads(path.read_text(encoding="utf-8"))).get("resumed", [])
        before = [record, *resumed][-1].get("environment", now)  # older runs have none
        changed = [key for key in {**before, **now} if now.get(key) != before.get(key)]
        if not changed or is_finished(self.config, self.history):
            return []
        part = {"epoch": self.epoch, "environment": now}
        write_json(path, {**record, "resumed": [*resumed, part]})
        return [f"{key} {before.get(key)} -> {now.get(key)}" for key in changed]

    def _differences(self, path: Path, wanted: Mapping[str, Any]) -> list[str]:
        """Where the record of this run is not that of `config.json`."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            config = TrainConfig.from_config(found["config"]).get_config()
            if not isinstance(found["data"], dict):
                raise TypeError("`data` is no object")
            of_data = differences(found["data"], wanted["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"`folder` must be new, or hold a run, but {path.name} is unreadable ({error}). "
                f"Received: folder={str(self.folder)!r}"
            ) from None
        new = wanted["config"]
        of_config = sorted(key for key in {*config, *new} if config.get(key) != new.get(key))
        return [f"config.{key}" for key in of_config] + [f"data.{key}" for key in of_data]

    def is_over(self) -> bool:
        finished = is_finished(self.config, self.history)
        return finished or bool(self.error) or bool(self.history and self.model.stop_training)

    def next_order(self) -> np.ndarray:
        """The rows of the coming epoch; its dropout is seeded."""
        rng = np.random.default_rng([self.config.seed, self.epoch])
        rows = rng.permutation(len(self.data.train))[: self.steps * self.config.batch_size]
        _seed_dropout(self.model, rng)
        return rows

    def end_epoch(
        self, logs: dict[str, float], diverged: int | None, seconds: float, verbose: bool
    ) -> None:
        """Validates and saves the model after an epoch, and tells of it; or keeps the error."""
        try:
            row = self._finish_epoch(logs, diverged, seconds)
        except DivergenceError as error:
            self.error = error
            return
        self.callbacks.on_epoch_end(row["epoch"] - 1, self.logs)
        if verbose:
            whose = f"{self.folder.name}: " if self.together > 1 else ""
            print(whose + _progress(row, self.config.epochs), flush=True)

    def _finish_epoch(
        self, logs: dict[str, float], diverged: int | None, seconds: float
    ) -> dict[str, Any]:
        began = time.perf_counter()
        if diverged is not None:
            self._refuse_to_go_on(diverged)
        predicted = predict(self.model, self.data.validation.pose2d)
        if not np.isfinite(predicted).all():
            self._refuse_to_go_on(self.steps - 1)
        row = {
            "epoch": self.epoch + 1,
            "loss": logs["loss"],
            "mpjpe_mm": logs["mpjpe_mm"],
            "val_mpjpe_mm": subject_mean_mm(self.data.validation, predicted),
            # Added to nothing, for a variable that lies on several devices is no number.
            "learning_rate": float(self.model.optimizer.learning_rate + 0.0),
            "seconds": round(seconds + time.perf_counter() - began, 3),
        }
        self.history.append(row)
        # The best first: killed in between, the run repeats this epoch and writes it again.
        if _best_epoch(self.history) == self.epoch:
            self._save(self.best_path)
            copy_file(self.best_path, self.last_path)
        else:
            self._save(self.last_path)
        self._write_history()
        return row

    def result(self) -> TrainResult:
        best = load_model(self.best_path, compile=False)
        return TrainResult(best, self.history_frame(), self.folder)

    def _refuse_to_go_on(self, step: int) -> NoReturn:
        """Says where training diverged, `step` being counted from 0 within the epoch."""
        step += self.epoch * self.steps
        rate = self.config.learning_rates(self.steps)
        rate = float(rate(step)) if callable(rate) else rate
        last = f"epoch {self.epoch} in {self.last_path}" if self.epoch else "none"
        raise DivergenceError(
            f"The loss is no longer finite at step {step + 1}, in epoch {self.epoch + 1}, at a "
            f"learning rate of {rate:.3g}. The last good state: {last}."
        )

    def _save(self, path: Path) -> None:
        training = {"config": self.config.get_config(), "data": self.data.name}
        save_model(self.model, path, training={**training, "history": self.history})

    def _write_history(self) -> None:
        path, text = self.folder / "history.csv", self.history_frame().to_csv(index=False)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            try:
                write_text(path, text)
            except PermissionError as error:  # on Windows, while Excel has it open
                print(f"note: {error}; last.keras has the history as well", file=sys.stderr)

    def history_frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.history)


def is_finished(config: TrainConfig, history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run with this history, a row an epoch, is at its end."""
    if len(history) >= config.epochs:
        return True
    return config.patience is not None and len(history) - _best_epoch(history) >= config.patience


def _best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """The epoch, counted from 1, with the lowest validation error; 0 before the first."""
    errors = [row["val_mpjpe_mm"] for row in history]
    return errors.index(min(errors)) + 1 if errors else 0


def subject_mean_mm(poses: PoseDataset, predicted: np.ndarray) -> float:
    """MPJPE in millimetres, protocol 1: the mean over subjects of their means over frames."""
    errors = metrics.mpjpe(poses.pose3d, root_aligned(predicted, poses.skeleton.root))
    return float(pd.Series(errors).groupby(poses.subject).mean().mean())


def _share_predict_function(models: Sequence[keras.Model]) -> None:
    """Has models that are built alike, of which only JAX has several, compile prediction once."""
    for model in models[1:]:
        models[0].make_predict_function()
        model.predict_function = models[0].predict_function


def _seed_dropout(model: keras.Model, rng: np.random.Generator) -> None:
    """Seeds all dropout from `rng`; under torch it draws from the global generator."""
    keras.utils.set_random_seed(int(rng.integers(2**31)))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.seed_generator.state.assign(rng.integers(0, 2**31, 2, dtype="uint32"))


def _progress(row: Mapping[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:3d}/{epochs}  loss {row['loss']:.3e} m2  "
        f"MPJPE {row['mpjpe_mm']:6.1f} mm  validation {row['val_mpjpe_mm']:6.1f} mm  "
        f"{row['seconds']:.1f} s"
    )

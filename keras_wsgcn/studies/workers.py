"""Running a study: what trials it needs, and the processes that work them off.

A worker takes one waiting trial after the other until every slot is settled. Workers know of each
other only through the storage: more of them, here or on other machines, may join at any time.
"""

import contextlib
import functools
import json
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from keras_wsgcn.data.sources import archive_digest
from keras_wsgcn.devices import check_together
from keras_wsgcn.errors import InputError, check_integer
from keras_wsgcn.recipes import TrainConfig
from keras_wsgcn.studies import liveness
from keras_wsgcn.studies import storage as storages
from keras_wsgcn.studies.outages import writing
from keras_wsgcn.studies.planning import (
    check_archive,
    has_trained,
    is_open,
    open_study,
    plan,
    storage_of,
)
from keras_wsgcn.studies.processes import RENEW, refused, supervise
from keras_wsgcn.studies.spec import StudySpec
from keras_wsgcn.studies.trials import KilledError, Loader, Objective, OutOfMemoryError, latency_ms

_POLL_SECONDS = 1
# Under TensorFlow a process keeps the XLA program of every training until it ends, 40 MB and more:
# after so many trials another one goes on.
_MOST_TRIALS = {"tensorflow": 10}
_stopping = threading.Event()


def run(
    spec: StudySpec,
    folder: str | os.PathLike = "runs/studies",
    *,
    storage: str | os.PathLike | None = None,
    workers: int = 1,
    together: int = 1,
    heartbeat_seconds: int | None = None,
    verbose: bool = True,
) -> bool:
    """Runs a study, or what is left of it.

    Called again it goes on; a finished study returns at once, if its archive, where that is still
    there, is the same. Ctrl-C ends it after the storage has been told, and what was being trained
    goes on after its last finished epoch.

    Args:
        spec: the study.
        folder: where trained runs go, under `trials/`; and by default the storage.
        storage: a SQLite file, or the URL of a database that several machines share. By default
            `folder/NAME/study.sqlite3`.
        workers: how many processes work at once. Each gets its share of the cores.
        together: how many seeds of a cell are trained at once, each step one for all (JAX), which
            fills an accelerator that one model does not; the last group may be smaller. A run's
            numbers differ from those of one trained alone by rounding.
        heartbeat_seconds: see `open_storage`.
        verbose: whether to print a line for each trial.

    Returns:
        Whether every trial is done. If not, a worker died, or others are still at work.

    Raises:
        InputError: if an argument is wrong, or the storage holds another study of that name, or
            trials on another archive.
    """
    check_integer("workers", workers, least=1)
    if workers > 1 and spec.search and "latency_ms" in spec.search.objectives:
        raise InputError(
            "`workers` must be 1 where latency is an objective: it is measured alone. "
            f"Received: workers={workers}"
        )
    if check_together(together) > 1 and spec.search:
        raise InputError(
            "`together` must be 1 in a search, where each trial waits for those before. "
            f"Received: together={together}"
        )
    if not spec.seeds:
        return True
    folder = Path(folder)
    location = storage_of(spec, folder, storage)
    opened = storages.open_storage(location, heartbeat_seconds)
    load = Loader()
    check_data(spec, folder, storage, load)
    if spec.tuned_by and not run(
        spec.tuned_by, folder, storage=storage, workers=workers,
        heartbeat_seconds=heartbeat_seconds, verbose=verbose,
    ):  # fmt: skip
        return False
    with writing(location):
        return _run_opened(
            spec, folder, storage, opened, workers, together, heartbeat_seconds, verbose, load
        )


def check_data(
    spec: StudySpec,
    folder: str | os.PathLike = "runs/studies",
    storage: str | os.PathLike | None = None,
    load: Loader | None = None,
) -> None:
    """Looks at the data of a study that has trained nothing yet, as `run` does at first.

    Args:
        spec: the study.
        folder: as `run` takes it.
        storage: likewise.
        load: loads the data.

    Raises:
        InputError: if it cannot be loaded, or has too few poses for a step.
    """
    location = storage_of(spec, folder, storage)
    with writing(location):
        if not spec.seeds or has_trained(spec, storages.open_storage(location)):
            return
    poses = len((load or Loader())(spec.data, spec.cells[0].config).train)
    fixed = [] if spec.search or spec.tuned_by else spec.cells
    for size in (cell.config.batch_size for cell in fixed):
        if size > poses:
            raise InputError(
                f"`batch_size` must not exceed the {poses} training poses. "
                f"Received: batch_size={size}"
            )


def _run_opened(
    spec: StudySpec,
    folder: Path,
    storage: str | os.PathLike | None,
    opened: RDBStorage,
    workers: int,
    together: int,
    heartbeat_seconds: int | None,
    verbose: bool,
    load: Loader,
) -> bool:
    slots = plan(spec, folder, storage)
    studies = {name: open_study(opened, spec, name) for name in slots}
    digest = archive_digest(spec.data["source"])
    for study in studies.values():
        if digest is not None:
            check_archive(study, digest)
    with storages.exclusive(opened):
        for name, study in studies.items():
            storages.fail_dead(study)  # first: a search goes on with the slot that was cut off
            storages.fill_slots(study, slots[name], most=1 if spec.search else None)

    def is_left() -> bool:
        return any(is_open(study, slots[name]) for name, study in studies.items())

    def fail_killed(by: str) -> bool:
        with storages.exclusive(opened):
            found = [storages.fail_dead(study, by) for study in studies.values()]
        return any(found)

    with _terminable():
        if is_left():
            few = sum(map(len, slots.values())) <= _most_trials()
            if workers == 1 and few:
                work(spec, slots, folder, opened, together=together, verbose=verbose, load=load)
            else:
                task = {
                    "spec": spec.get_config(),
                    "folder": str(folder),
                    "storage": storage and str(storage),
                    "together": together,
                    "heartbeat_seconds": heartbeat_seconds,
                    "verbose": verbose,
                }
                supervise(f"{__name__}:work_alone", task, workers, on_death=fail_killed)
        if is_left():
            return False
        if spec.search and "latency_ms" in spec.search.objectives:
            for study in studies.values():
                remeasure_front(study)
    return True


def work(
    spec: StudySpec,
    slots: Mapping[str, Mapping],
    folder: Path,
    storage: RDBStorage,
    *,
    together: int = 1,
    verbose: bool = True,
    is_orphan: Callable[[], bool] = lambda: False,
    most: float = math.inf,
    load: Loader | None = None,
) -> bool:
    """Works trials off until every slot is settled.

    Args:
        spec: the study.
        slots: its slots, as `plan` gives them.
        folder: where trained runs go.
        storage: an open storage.
        together: how many seeds of a cell are trained at once.
        verbose: whether to print a line for each trial.
        is_orphan: says whether to stop, because whoever started this process is gone.
        most: after how many trials to stop.
        load: loads the data of trials.

    Returns:
        Whether every slot is settled.
    """

    def stop_if_asked() -> None:
        if _stopping.is_set() or is_orphan():
            raise KeyboardInterrupt

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial's line is printed below
    seeds = list(dict.fromkeys(spec.seeds))
    groups = [seeds[start : start + together] for start in range(0, len(seeds), together)]
    objective = Objective(spec.search, folder / "trials", groups, on_epoch=stop_if_asked, load=load)
    studies = {name: open_study(storage, spec, name) for name in slots}
    done = 0
    while any(is_open(study, slots[name]) for name, study in studies.items()):
        stop_if_asked()
        if done >= most:
            return False
        if any(
            _take_one(study, slots[name], storage, objective, verbose)
            for name, study in studies.items()
        ):
            done += 1
        else:
            time.sleep(_POLL_SECONDS)  # others are at work: if they die, their trials come back
    return True


def _most_trials() -> float:
    """How many trials a process may do one after another."""
    return _MOST_TRIALS.get(keras.backend.backend(), math.inf)


def _take_one(
    study: optuna.Study,
    slots: Mapping[str, Any],
    storage: RDBStorage,
    objective: Objective,
    verbose: bool,
) -> bool:
    """Runs one waiting trial; says whether there was one.

    `optimize` starts a trial of its own making when none waits. The lock, held from the look at
    the queue until the trial has begun, keeps it from that.
    """
    with contextlib.ExitStack() as lock:
        lock.enter_context(storages.exclusive(storage))
        storages.fail_dead(study)
        if not storages.fill_slots(study, slots, most=1 if objective.search else None):
            return False

        def begin_and_run(trial: optuna.Trial) -> tuple[float, ...]:
            storages.begin(trial, storage)
            lock.close()
            return objective(trial)

        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            # Suppressed: this process slept so long that others took its trial for dead.
            study.optimize(
                begin_and_run,
                n_trials=1,
                catch=(OutOfMemoryError, KilledError),
                callbacks=[functools.partial(_print_trial, slots)] if verbose else None,
            )
    return True


def _print_trial(slots: Mapping[str, Any], study: optuna.Study, trial: FrozenTrial) -> None:
    trials = storages.trials_by_slot(study).values()
    settled = sum(any(storages.is_settled(t) for t in some) for some in trials)
    metrics = trial.user_attrs.get("metrics", {})
    numbers = [
        f"{word} {metrics[name]:.1f} mm"
        for word, name in (("validation", "val_mpjpe_mm"), ("test", "test_subject_mean_mpjpe_mm"))
        if name in metrics
    ]
    words = [*numbers, f"{trial.user_attrs.get('seconds', 0):.0f} s"]
    if (outcome := storages.outcome(trial)) != "finished":
        words.insert(0, " ".join([outcome, trial.user_attrs.get("reason", "")]).strip())
    slot = trial.user_attrs["slot"]
    which = f"{study.study_name} [{settled}/{len(slots)}] {slot} (trial {trial.number})"
    print(f"{which}: {', '.join(words)}", flush=True)


def remeasure_front(study: optuna.Study) -> None:
    """Measures the latency of the Pareto front's models anew, taking turns in one run, alone.

    What the trials measured, minutes apart, chose the front; this is what to compare on it.
    """
    front = {str(trial.number): trial for trial in study.best_trials}
    if set(study.user_attrs.get("front_latency_ms", {})) == set(front):
        return
    models = {
        number: TrainConfig.from_config(trial.user_attrs["config"]).build_model()
        for number, trial in front.items()
    }
    study.set_user_attr("front_latency_ms", latency_ms(models))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Ends on SIGTERM as on Ctrl-C, at the latest after the epoch.

    Python ignores what a signal raises while it collects garbage; `_stopping` remembers it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        _stopping.set()
        raise KeyboardInterrupt

    _stopping.clear()
    before = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work_alone() -> int:
    """What a worker's process does: reads its task from stdin, and returns its exit status."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    task = json.load(sys.stdin)
    with _terminable():
        try:
            spec, folder = StudySpec.from_config(task["spec"]), Path(task["folder"])
            location = storage_of(spec, folder, task["storage"])
            with writing(location):
                is_done = work(
                    spec,
                    plan(spec, folder, task["storage"]),
                    folder,
                    storages.open_storage(location, task["heartbeat_seconds"]),
                    together=task["together"],
                    verbose=task["verbose"],
                    is_orphan=lambda: liveness.is_dead(task["parent"]),
                    most=_most_trials(),
                )
        except (InputError, OSError) as error:
            return refused(task, error)
        except KeyboardInterrupt:
            sys.stdout.flush()
            os._exit(130)  # a thread of Keras that was cut off while it started may never end
    return 0 if is_done else RENEW

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
import subprocess
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
from keras_wsgcn.errors import InputError, check_integer
from keras_wsgcn.recipes import TrainConfig
from keras_wsgcn.studies import storage as storages
from keras_wsgcn.studies.planning import check_archive, is_open, open_study, plan, storage_of
from keras_wsgcn.studies.spec import StudySpec
from keras_wsgcn.studies.trials import Objective, OutOfMemoryError, latency_ms
from keras_wsgcn.training import check_together

_POLL_SECONDS = 1
# Under TensorFlow a process keeps the XLA program of every training until it ends, 40 MB and more:
# after so many trials another one goes on.
_MOST_TRIALS = {"tensorflow": 10}
_RENEW = 75  # the status of a worker that another is to follow
_stopping = threading.Event()
_WORKER = f"import sys; from {__name__} import work_alone; sys.exit(work_alone())"


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
    if spec.tuned_by and not run(
        spec.tuned_by, folder, storage=storage, workers=workers,
        heartbeat_seconds=heartbeat_seconds, verbose=verbose,
    ):  # fmt: skip
        return False
    folder = Path(folder)
    location = storage_of(spec, folder, storage)
    opened = storages.open_storage(location, heartbeat_seconds)
    with storages.writing(location):
        return _run_opened(
            spec, folder, storage, opened, workers, together, heartbeat_seconds, verbose
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

    with _terminable():
        if is_left():
            few = sum(map(len, slots.values())) <= _most_trials()
            if workers == 1 and few:
                work(spec, slots, folder, opened, together=together, verbose=verbose)
            else:
                _supervise(spec, folder, storage, workers, together, heartbeat_seconds, verbose)
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

    Returns:
        Whether every slot is settled.
    """

    def stop_if_asked() -> None:
        if _stopping.is_set() or is_orphan():
            raise KeyboardInterrupt

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial's line is printed below
    seeds = list(dict.fromkeys(spec.seeds))
    groups = [seeds[start : start + together] for start in range(0, len(seeds), together)]
    objective = Objective(spec.search, folder / "trials", groups, on_epoch=stop_if_asked)
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

        def begin(trial: optuna.Trial) -> None:
            storages.begin(trial, storage)
            lock.close()

        objective.on_start = begin
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            # Suppressed: this process slept so long that others took its trial for dead.
            study.optimize(
                objective,
                n_trials=1,
                catch=(OutOfMemoryError,),
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


# --- processes ----------------------------------------------------------------------------------


def _supervise(
    spec: StudySpec,
    folder: Path,
    storage: str | os.PathLike | None,
    workers: int,
    together: int,
    heartbeat_seconds: int | None,
    verbose: bool,
) -> None:
    """Starts workers, each on its share of the cores, and waits for them."""
    task = {
        "spec": spec.get_config(),
        "folder": str(folder),
        "storage": storage and str(storage),
        "together": together,
        "heartbeat_seconds": heartbeat_seconds,
        "verbose": verbose,
        "parent": os.getpid(),
    }
    processes = [_start_worker(task, number, workers) for number in range(workers)]
    try:
        while {None, _RENEW} & set(statuses := [process.poll() for process in processes]):
            for number, status in enumerate(statuses):
                if status == _RENEW:
                    processes[number] = _start_worker(task, number, workers)
            time.sleep(_POLL_SECONDS / 10)
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()  # not SIGINT: what a shell starts in the background ignores it
        for process in processes:
            process.wait()
        raise
    for number, process in enumerate(processes, start=1):
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            print(f"worker {number} was ended by {name}", file=sys.stderr)


def _start_worker(task: dict[str, Any], number: int, workers: int) -> subprocess.Popen:
    cores = _cores_of(number, workers)
    environment = {
        # Workers that share an accelerator take of its memory what they need, not all of it.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        **os.environ,
        "OMP_NUM_THREADS": str(len(cores)),
    }
    # All backends size their thread pools by the cores that they may use. Set here and inherited,
    # it holds from the worker's first import on. Ctrl-C reaches workers through this process only.
    with _on_cores(cores):
        process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            env=environment,
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps(task))
    process.stdin.close()
    return process


def _cores_of(number: int, workers: int) -> list[int]:
    if not hasattr(os, "sched_getaffinity"):
        return list(range(max(1, (os.cpu_count() or 1) // workers)))
    cores = sorted(os.sched_getaffinity(0))
    return cores[number::workers] or [cores[number % len(cores)]]


@contextlib.contextmanager
def _on_cores(cores: list[int]) -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):  # not on macOS and Windows
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


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
            with storages.writing(location):
                is_done = work(
                    spec,
                    plan(spec, folder, task["storage"]),
                    folder,
                    storages.open_storage(location, task["heartbeat_seconds"]),
                    together=task["together"],
                    verbose=task["verbose"],
                    is_orphan=lambda: os.getppid() != task["parent"],
                    most=_most_trials(),
                )
        except (InputError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            sys.stdout.flush()
            os._exit(130)  # a thread of Keras that was cut off while it started may never end
    return 0 if is_done else _RENEW

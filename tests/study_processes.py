"""Studies in processes of their own: started, watched, killed, and compared afterwards.

Processes are watched through `/proc` and kept on one core each: the bits of a result can depend
on how many threads add them up.
"""

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from testing import ROOT

from keras_wsgcn import load_model
from keras_wsgcn.saving import read_metadata
from keras_wsgcn.studies import storage as storages

LINUX = sys.platform == "linux"
LIMIT = 300  # seconds that nothing exceeds, however busy the machine
EPOCHS = 12
HEADER = f"""
[data]
source = "generated"
stride = 60

[config]
channels = 4
blocks = 1
epochs = {EPOCHS}
batch_size = 256
dropout = 0.2
"""
FIXED = f"""
seeds = [0, 1]
{HEADER}
[[grid]]
scheme = ["pre_agg", "post_agg"]
"""
SLOTS = [f"{scheme} seed={seed}" for seed in (0, 1) for scheme in ("pre_agg", "post_agg")]
# Runs the command, and sends its process a signal before the n-th call of a function.
_SIGNAL_AT = """
import itertools, os, runpy, sys
from importlib import import_module
number, module, name, call, script = sys.argv[1:6]
*owners, name = name.split(".")
owner = import_module(module)
for part in owners:
    owner = getattr(owner, part)
function, calls = getattr(owner, name), itertools.count(1)
def signalled(*args, **kwargs):
    if next(calls) == int(call):
        os.kill(os.getpid(), int(number))
    return function(*args, **kwargs)
setattr(owner, name, signalled)
sys.argv = sys.argv[5:]
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name="__main__")
"""


class Command:
    """A running `scripts/run_study.py`.

    Args:
        specs: the TOML files.
        folder: of the studies.
        options: further options.
        cores: one for each worker, as places in the list of those that there are.
        deaf: whether it starts with SIGINT ignored, as what a shell starts in the background.
        log: where its output goes.
        signal_at: a signal, and the module, name and number of the call before which the
            process shall get it.
    """

    def __init__(
        self,
        specs: Iterable[Path],
        folder: Path,
        *options: str,
        cores: tuple[int, ...] = (0,),
        deaf: bool = False,
        log: Path,
        signal_at: tuple[int, str, str, int] | None = None,
    ):
        self.folder, self._out, self._err = folder, log.with_suffix(".out"), log.with_suffix(".err")
        command = [str(ROOT / "scripts" / "run_study.py")]
        if signal_at:
            number, *place = signal_at
            command = ["-c", _SIGNAL_AT, str(int(number)), *map(str, place), *command]
        command += [*map(str, specs), "--folder", str(folder), "--heartbeat", "1"]
        command += ["--workers", str(len(cores)), *options]
        environment = {"KERAS_BACKEND": keras.backend.backend(), "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # each compiles, as a user's does
        with open(self._out, "w") as out, open(self._err, "w") as err, _inherited(cores, deaf):
            self._process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **environment}, cwd=ROOT, stdout=out, stderr=err,
            )  # fmt: skip
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        return self._out.read_text()

    @property
    def errors(self) -> str:
        return self._err.read_text()

    @property
    def tracebacks(self) -> list[str]:
        """The first lines of what it printed of errors, each with the line before.

        What a signal raises in a callback of the garbage collector, Python prints and ignores.
        """
        pairs = itertools.pairwise(["", *self.errors.splitlines()])
        return [
            f"{before}\n{line}"
            for before, line in pairs
            if line.startswith("Traceback") and not before.startswith("Exception ignored in")
        ]

    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: int) -> None:
        """Sends a signal; the command must still be running."""
        assert self.is_running(), f"ended with {self._process.returncode}: {self.errors[-3000:]}"
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kills the command, and no other process."""
        self.send(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Waits for the end; returns the exit status."""
        return self._process.wait(LIMIT)

    def finish(self) -> None:
        """Waits for the end, which must be a good one."""
        assert self.wait() == 0, self.output[-2000:] + self.errors[-3000:]

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Waits until something is so, while the command runs."""
        return wait_until(condition, what, self)

    def workers(self) -> list[int]:
        """The processes of its workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        pids = map(int, children.read_text().split()) if children.exists() else ()
        return [pid for pid in pids if b"studies.workers" in _proc(pid, "cmdline")]

    def wait_for_workers(self, number: int) -> list[int]:
        """Waits until so many workers have started; returns their processes."""
        self.until(lambda: len(self.workers()) == number, f"{number} workers")
        return self.workers()

    def until_in_trials(self, pids: Iterable[int]) -> None:
        """Waits until each of some processes is in the middle of a trial."""
        self.until(
            lambda: all(run_in_progress(pid, self.folder) for pid in pids),
            "processes in the middle of trials",
        )

    def pause_in_trial(self, pid: int) -> str:
        """Stops one of its processes after an epoch, before the trial's last; returns the run."""

        def caught() -> str | None:
            run = run_in_progress(pid, self.folder)
            if run is None:
                return None
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: state_of(pid) in "TZ", "a stopped process")
            if run_in_progress(pid, self.folder) == run:
                return run
            os.kill(pid, signal.SIGCONT)  # it was in time to finish
            return None

        return self.until(caught, "a process in the middle of a trial")

    def clean_up(self) -> None:
        """Ends what is still running."""
        left = [pid for pid in self.workers() if is_alive(pid)]
        if self.is_running():
            left.insert(0, self.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self._process.wait(LIMIT)


@contextlib.contextmanager
def starter(folder: Path) -> Iterator[Callable[..., Command]]:
    """Yields what starts a command on specs given as text; ends in the end what it started."""
    started: list[Command] = []

    def start(texts: str | dict[str, str], place: Path, *options: str, **arguments) -> Command:
        specs = []
        for name, text in ({"tiny": texts} if isinstance(texts, str) else texts).items():
            specs.append(folder / f"{name}.toml")
            specs[-1].write_text(text)
        log = folder / f"command{len(started)}"
        started.append(Command(specs, place, *options, log=log, **arguments))
        return started[-1]

    try:
        yield start
    finally:
        for command in started:
            command.clean_up()


@functools.cache
def undisturbed(folder: Path, text: str = FIXED) -> Path:
    """The folder of a study that nothing disturbed."""
    place = Path(tempfile.mkdtemp(dir=folder))
    with starter(place) as start:
        start(text, place).finish()
    return place


@contextlib.contextmanager
def _inherited(places: Iterable[int], deaf: bool) -> Iterator[None]:
    """What a process started in this context inherits: its cores, and if it ignores SIGINT."""
    allowed = os.sched_getaffinity(0)
    cores = sorted(allowed)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.SIG_DFL)
    os.sched_setaffinity(0, {cores[place % len(cores)] for place in places})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        signal.signal(signal.SIGINT, handler)


def wait_until(condition: Callable[[], Any], what: str, command: Command | None = None) -> Any:
    """Waits until something is so; returns what it is."""
    end = time.monotonic() + LIMIT
    while True:
        running = command is None or command.is_running()
        if found := condition():
            return found
        assert running, f"ended before {what}: {command.output}\n{command.errors[-3000:]}"
        assert time.monotonic() < end, f"not within {LIMIT} s: {what}"
        time.sleep(0.02)


# --- processes ----------------------------------------------------------------------------------


def _proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def state_of(pid: int) -> str:
    """The state of a process, one letter: `T` is stopped; `Z` is dead, as is one that is gone."""
    return _proc(pid, "stat").decode().rpartition(") ")[2][:1] or "Z"


def is_alive(pid: int) -> bool:
    return state_of(pid) not in "ZX"


def run_in_progress(pid: int, folder: Path) -> str | None:
    """The run that a process has trained for some epochs, but not for all.

    A process keeps the lock of a run open while it trains.
    """
    trials = (folder / "trials").resolve()
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            lock = Path(os.readlink(link))
        except OSError:  # closed meanwhile
            continue
        if lock.parent == trials and lock.suffix == ".lock":
            rows = histories(folder).get(lock.stem, [])
            return lock.stem if 0 < len(rows) < EPOCHS else None
    return None


# --- what came out ------------------------------------------------------------------------------


def histories(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The finished epochs of each run."""
    return {
        path.parent.name: read_metadata(path)["training"]["history"]
        for path in sorted((folder / "trials").glob("*/last.keras"))
    }


def assert_kept(before: dict[str, list], folder: Path) -> None:
    """No epoch that was finished before was trained again: even its seconds are the same."""
    after = histories(folder)
    for run, rows in before.items():
        assert after[run][: len(rows)] == rows


def assert_same_runs(*folders: Path, as_in: Path) -> None:
    """The runs in some folders, together, are those of another: complete, whole and bit by bit."""
    expected = histories(as_in)
    found = [run for folder in folders for run in sorted((folder / "trials").glob("*/"))]
    assert {run.name for run in found} == set(expected)
    for run in found:
        table = pd.read_csv(run / "history.csv")
        wanted = pd.DataFrame(expected[run.name])
        pd.testing.assert_frame_equal(
            table.drop(columns="seconds"), wanted.drop(columns="seconds"), rtol=1e-12
        )
        config = json.loads((run / "config.json").read_text())
        assert config["config"] == read_metadata(run / "last.keras")["training"]["config"]
        for name in ("last.keras", "best.keras"):
            weights = load_model(run / name).get_weights()
            as_wanted = load_model(as_in / "trials" / run.name / name).get_weights()
            for one, other in zip(weights, as_wanted, strict=True):
                np.testing.assert_array_equal(one, other)


def trials_of(location: str | Path, study: str = "tiny") -> list[FrozenTrial]:
    """The trials in a storage."""
    storage = storages.open_storage(location)
    try:
        return optuna.load_study(study_name=study, storage=storage).get_trials()
    finally:
        storage.engine.dispose()


def assert_settled_once(location: str | Path, slots: Iterable[str], study: str = "tiny") -> None:
    """Every slot has one trial with a result, and nothing waits or runs."""
    trials = trials_of(location, study)
    assert all(trial.state.is_finished() for trial in trials)
    settled = [t.user_attrs["slot"] for t in trials if t.state != TrialState.FAIL]
    assert sorted(settled) == sorted(slots)


def assert_none_runs(location: str | Path, study: str = "tiny") -> None:
    assert TrialState.RUNNING not in {trial.state for trial in trials_of(location, study)}


def metrics_of(location: str | Path, study: str = "tiny") -> dict[str, dict[str, float]]:
    """What the trials with a result measured, by slot, but for times."""
    return {
        trial.user_attrs["slot"]: {
            name: value
            for name, value in trial.user_attrs["metrics"].items()
            if name != "train_seconds"
        }
        for trial in trials_of(location, study)
        if trial.state == TrialState.COMPLETE
    }


def assert_lock_is_released(location: str | Path) -> None:
    """A process that is killed while it holds a storage's lock lets go of it."""
    code = (
        "import sys, time\n"
        "from keras_wsgcn.studies import storage as storages\n"
        "with storages.exclusive(storages.open_storage(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(3600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(location)], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        taken = threading.Event()

        def take() -> None:
            with storages.exclusive(storages.open_storage(location)):
                taken.set()

        threading.Thread(target=take, daemon=True).start()
        assert not taken.wait(0.5)
        holder.kill()
        assert taken.wait(LIMIT)
    finally:
        holder.kill()
        holder.wait(LIMIT)

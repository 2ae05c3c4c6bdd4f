"""The commands as processes that are killed: started, struck at seeded moments, looked at after.

Most lives are forked from a process that has imported the libraries, so that a kill costs no five
seconds of imports; every fifth is a cold start.
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import study_processes as processes
from testing import ROOT

from keras_wsgcn import load_model
from keras_wsgcn.saving import read_metadata

BACKEND = keras.backend.backend()
KILLS = int(os.environ.get("KERAS_WSGCN_KILLS") or (50 if BACKEND == "torch" else 10))
_ZYGOTE = """
import json, os, runpy, sys
import keras_wsgcn.training, keras_wsgcn.studies.workers
for line in sys.stdin:
    task = json.loads(line)
    pid = os.fork()
    if not pid:
        for number, path in enumerate(task["files"]):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        sys.argv = task["argv"]
        sys.path.insert(0, os.path.dirname(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


OPTIONS = [
    "--data=generated", "--stride=60", "--channels=4", "--blocks=1", "--epochs=40",
    "--batch-size=256", "--dropout=0.2", "--schedule=cosine", "--learning-rate=0.02",
    "--patience=3",
]  # fmt: skip
STUDY = processes.FIXED.replace("epochs = 12", "epochs = 12\npatience = 6")


def training(folder, *options):
    return ["train.py", *OPTIONS, "--runs", str(folder), "--name", "run", *options]


def study(folder, spec_folder=None):
    spec = (spec_folder or folder.parent) / "tiny.toml"
    spec.write_text(STUDY)
    return ["run_study.py", str(spec), "--folder", str(folder), "--heartbeat", "1"]


def trial_runs(folder):
    return {run.name: run for run in sorted((folder / "trials").glob("*/"))}


class Starter:
    """Starts commands, one at a time.

    Args:
        folder: for their output.
    """

    def __init__(self, folder: Path):
        self.folder, self._numbers = folder, itertools.count()
        self._zygote = self._popen("-c", _ZYGOTE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _popen(self, *arguments: str, **options) -> subprocess.Popen:
        environment = {"KERAS_BACKEND": BACKEND, "TF_CPP_MIN_LOG_LEVEL": "3"}
        # Each life compiles for itself, as a user's does.
        environment |= {"OMP_NUM_THREADS": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        with processes._inherited((0,), False):
            return subprocess.Popen(
                [sys.executable, *arguments], env={**os.environ, **environment}, cwd=ROOT, **options
            )

    def __call__(self, argv: list[str], *, cold: bool = False) -> "Life":
        log = self.folder / f"life{next(self._numbers)}"
        out, err = log.with_suffix(".out"), log.with_suffix(".err")
        argv = [str(ROOT / "scripts" / argv[0]), *argv[1:]]
        if cold:
            with open(out, "w") as stdout, open(err, "w") as stderr:
                return Life(out, err, cold=self._popen(*argv, stdout=stdout, stderr=stderr))
        task = {"files": [os.devnull, str(out), str(err)], "argv": argv}
        self._zygote.stdin.write(json.dumps(task).encode() + b"\n")
        self._zygote.stdin.flush()
        return Life(out, err, zygote=self._zygote)

    def close(self) -> None:
        self._zygote.stdin.close()
        self._zygote.wait(processes.LIMIT)


class Life:
    """One running command."""

    def __init__(self, out: Path, err: Path, cold=None, zygote=None):
        self._out, self._err, self._cold, self._zygote = out, err, cold, zygote
        self.pid = cold.pid if cold else int(zygote.stdout.readline())

    @property
    def output(self) -> str:
        return self._out.read_text() if self._out.exists() else ""

    @property
    def errors(self) -> str:
        return self._err.read_text() if self._err.exists() else ""

    def is_running(self) -> bool:
        return processes.is_alive(self.pid)

    def wait(self) -> int:
        if self._cold:
            return self._cold.wait(processes.LIMIT)
        return int(self._zygote.stdout.readline())

    def strike(self, number: int) -> int:
        """Sends a signal, if it still runs; returns the exit status."""
        if self.is_running():
            os.kill(self.pid, number)
        return self.wait()

    def wait_for(self, condition, seconds: float) -> None:
        """Waits until something is so or the command ends, and then so many seconds."""
        end = time.monotonic() + processes.LIMIT
        while self.is_running() and not condition():
            assert time.monotonic() < end, self.errors[-2000:]
            time.sleep(0.005)
        time.sleep(seconds)


# --- what a run's folder holds ------------------------------------------------------------------


def rows_of(path: Path) -> list[dict]:
    return read_metadata(path)["training"]["history"] if path.exists() else []


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def look_at(run: Path, expected: list[dict]) -> list[dict]:
    """Checks that every file of a run is whole and on the undisturbed way; returns its epochs."""
    rows = rows_of(run / "last.keras")
    assert without_seconds(rows) == without_seconds(expected[: len(rows)])
    for name in ("best.keras", "last.keras"):
        if (run / name).exists():
            with zipfile.ZipFile(run / name) as archive:
                assert archive.testzip() is None
    best = rows_of(run / "best.keras")
    assert without_seconds(best) == without_seconds(expected[: len(best)])
    assert len(best) <= len(rows) + 1
    if (run / "config.json").exists():
        json.loads((run / "config.json").read_text())
    if (run / "history.csv").exists():
        table = pd.read_csv(run / "history.csv")
        assert len(rows) - 1 <= len(table) <= len(rows)
        wanted = pd.DataFrame(expected[: len(table)])
        pd.testing.assert_frame_equal(
            table.drop(columns="seconds"), wanted.drop(columns="seconds"), rtol=1e-12
        )
    return rows


def assert_same_end(run: Path, undisturbed: Path) -> None:
    """A finished run is the undisturbed one, bit by bit."""
    expected = rows_of(undisturbed / "last.keras")
    assert len(look_at(run, expected)) == len(expected)
    for name in ("last.keras", "best.keras"):
        assert len(rows_of(run / name)) == len(rows_of(undisturbed / name))
        weights = [load_model(folder / name).get_weights() for folder in (run, undisturbed)]
        for one, other in zip(*weights, strict=True):
            np.testing.assert_array_equal(one, other)


def temporaries(folder: Path) -> set[Path]:
    return {p for p in folder.rglob(".*") if re.search(r"\.[0-9a-f]{8}\.", p.name)}


def kill_again_and_again(starter, argv_of, place: Path, runs_of, expected, check_end) -> Counter:
    """Kills a command at `KILLS` random moments; when it ends before, begins in a new folder.

    Args:
        starter: a `Starter`.
        argv_of: the command line for a folder.
        place: where the folders go.
        runs_of: the folders of runs, by name, in such a folder.
        expected: the undisturbed epochs, by name of the run.
        check_end: what a finished folder must be.

    Returns:
        How many kills fell where.
    """
    rng, counts, struck = np.random.default_rng(7), Counter(), 0
    folder, kept = place / "0", {}
    while struck < KILLS:
        cold = struck % 5 == 4
        before = {name: len(rows) for name, rows in kept.items()}
        left = temporaries(folder)
        life = starter(argv_of(folder), cold=cold)
        if cold and rng.random() < 0.5:
            life.wait_for(lambda: True, rng.uniform(0, 5))
        else:
            files = {p: p.stat().st_mtime_ns for p in folder.rglob("last.keras")}

            def has_new_epoch(files=files, folder=folder):
                paths = folder.rglob("last.keras")
                return any(p.stat().st_mtime_ns != files.get(p) for p in paths)

            if rng.random() < 0.85:
                life.wait_for(has_new_epoch, rng.uniform(0, 0.4))
            else:
                life.wait_for(lambda: True, rng.uniform(0, 1.5))
        status = life.strike(signal.SIGKILL)
        found = {name: look_at(run, expected[name]) for name, run in runs_of(folder).items()}
        for name, rows in kept.items():  # even the seconds: no finished epoch was trained again
            assert found[name][: len(rows)] == rows
        kept = found
        if status == -signal.SIGKILL:
            struck += 1
            new = sum(map(len, found.values())) - sum(before.values())
            saving = temporaries(folder) - left
            counts["while saving" if saving else "in an epoch" if new else "during start"] += 1
            counts["cold"] += cold
            continue
        assert status == 0, life.errors[-3000:]
        counts["finished"] += 1
        check_end(folder)
        shutil.rmtree(folder)
        folder, kept = place / str(counts["finished"]), {}
    life = starter(argv_of(folder))
    assert life.wait() == 0, life.errors[-3000:]
    check_end(folder)
    return counts

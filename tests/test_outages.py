"""`make torture`: signals, a full disk and a folder that may not be written, then the same again.

The small file systems are mounted, which only root may; elsewhere these tests are skipped.
"""

import contextlib
import os
import signal
import subprocess

import numpy as np
import pytest
import study_processes as processes
import torture
from torture import study, training, trial_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not processes.LINUX, reason="watches processes through /proc"),
]
MOMENTS = 6  # at which each signal comes


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small file system; gives its folder."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def assert_one_line(life, words):
    """What the command said, but for TensorFlow's own notes on start."""
    lines = [line for line in life.errors.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(lines) == 1, life.errors[-3000:]
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def first_epoch(run):
    return lambda: (run / "last.keras").exists()


@pytest.mark.parametrize(
    ("number", "statuses"),
    [(signal.SIGINT, {130, -signal.SIGINT}), (signal.SIGTERM, {-signal.SIGTERM})],
)
def test_signals(number, statuses, starter, tmp_path, undisturbed):
    rng = np.random.default_rng(3)
    expected = torture.rows_of(undisturbed / "last.keras")
    for moment in range(MOMENTS):
        life = starter(training(tmp_path), cold=True)
        if moment < 2:  # among the imports, too
            life.wait_for(lambda: True, rng.uniform(0.5, 2))
        else:
            last = tmp_path / "run" / "last.keras"
            rows = len(torture.rows_of(last))
            life.wait_for(lambda: len(torture.rows_of(last)) > rows, rng.uniform(0, 0.3))  # noqa: B023
        status = life.strike(number)
        assert status in statuses | {0}, life.errors[-3000:]
        assert "Traceback" not in life.errors
        torture.look_at(tmp_path / "run", expected)
    life = starter(training(tmp_path))
    assert life.wait() == 0, life.errors[-3000:]
    torture.assert_same_end(tmp_path / "run", undisturbed)


def fill(folder):
    """Takes all the room there is; gives the file that has it."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler


def test_train_on_a_full_disk(starter, mounted, undisturbed):
    expected = torture.rows_of(undisturbed / "last.keras")
    life = starter(training(mounted), cold=True)
    life.wait_for(first_epoch(mounted / "run"), 0.0)
    filler = fill(mounted)
    assert life.wait() == 2, life.errors[-3000:]
    assert_one_line(life, "No space left on device")
    rows = torture.look_at(mounted / "run", expected)
    assert rows
    again = starter(training(mounted))  # still full
    assert again.wait() == 2
    assert torture.look_at(mounted / "run", expected) == rows
    filler.unlink()
    assert starter(training(mounted)).wait() == 0
    torture.assert_same_end(mounted / "run", undisturbed)
    assert not torture.temporaries(mounted)


def test_a_study_on_a_full_disk(starter, mounted, tmp_path, undisturbed_study):
    folder = mounted / "study"
    life = starter(study(folder, tmp_path), cold=True)
    life.wait_for(lambda: list(folder.rglob("last.keras")), 0.0)
    filler = fill(mounted)
    assert life.wait() not in (0, None), life.errors[-3000:]
    assert_one_line(life, "")
    filler.unlink()
    for _ in range(2):  # a trial whose failure could not be stored is noticed, and tried again
        life = starter(study(folder, tmp_path))
        assert life.wait() == 0, life.errors[-3000:]
    storage = folder / "tiny" / "study.sqlite3"
    for name, run in trial_runs(folder).items():
        torture.assert_same_end(run, undisturbed_study / "trials" / name)
    wanted = processes.metrics_of(undisturbed_study / "tiny" / "study.sqlite3")
    assert processes.metrics_of(storage) == wanted


def test_a_folder_that_may_not_be_written(starter, mounted, tmp_path, undisturbed):
    expected = torture.rows_of(undisturbed / "last.keras")
    life = starter(training(mounted))
    life.wait_for(first_epoch(mounted / "run"), 0.0)
    life.strike(signal.SIGKILL)
    rows = torture.look_at(mounted / "run", expected)
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    for command in (training(mounted), study(mounted / "study", tmp_path)):
        life = starter(command)
        assert life.wait() == 2, life.errors[-3000:]
        assert_one_line(life, "")
    subprocess.run(["mount", "-o", "remount,rw", str(mounted)], check=True)
    assert torture.look_at(mounted / "run", expected) == rows
    assert starter(training(mounted)).wait() == 0
    torture.assert_same_end(mounted / "run", undisturbed)


def test_a_file_in_place_of_a_folder(starter, tmp_path):
    (tmp_path / "file").touch()
    for command in (training(tmp_path / "file"), study(tmp_path / "file" / "study", tmp_path)):
        life = starter(command)
        assert life.wait() == 2, life.errors[-3000:]
        assert_one_line(life, "file")
    assert os.path.getsize(tmp_path / "file") == 0

"""`make torture`: train.py and run_study.py, killed at random moments, end as if undisturbed."""

import time

import pytest
import study_processes as processes
import torture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not processes.LINUX, reason="watches processes through /proc"),
]


def report(what, counts, began):
    print(f"\n{torture.BACKEND} {what}: {dict(counts)}, {time.monotonic() - began:.0f} s")


def test_train_killed(starter, tmp_path, undisturbed):
    began = time.monotonic()
    expected = {"run": torture.rows_of(undisturbed / "last.keras")}
    counts = torture.kill_again_and_again(
        starter, torture.training, tmp_path, lambda folder: {"run": folder / "run"}, expected,
        lambda folder: torture.assert_same_end(folder / "run", undisturbed),
    )  # fmt: skip
    report("train.py", counts, began)


def test_study_killed(starter, tmp_path, undisturbed_study):
    began = time.monotonic()
    expected = processes.histories(undisturbed_study)

    def check_end(folder):
        storage = folder / "tiny" / "study.sqlite3"
        processes.assert_settled_once(storage, processes.SLOTS)
        for name, run in torture.trial_runs(folder).items():
            torture.assert_same_end(run, undisturbed_study / "trials" / name)
        wanted = processes.metrics_of(undisturbed_study / "tiny" / "study.sqlite3")
        assert processes.metrics_of(storage) == wanted

    counts = torture.kill_again_and_again(
        starter, torture.study, tmp_path, torture.trial_runs, expected, check_end
    )
    report("run_study.py", counts, began)

"""`make torture`: train.py and run_study.py, killed at random moments, end as if undisturbed."""

import time

import pytest
import study_processes as processes
import torture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not processes.LINUX, reason="watches processes through /proc"),
]
OPTIONS = [
    "--data=generated", "--stride=60", "--channels=4", "--blocks=1", "--epochs=40",
    "--batch-size=256", "--dropout=0.2", "--schedule=cosine", "--learning-rate=0.02",
    "--patience=3",
]  # fmt: skip
STUDY = processes.FIXED.replace("epochs = 12", "epochs = 12\npatience = 6")


def training(folder, *options):
    return ["train.py", *OPTIONS, "--runs", str(folder), "--name", "run", *options]


def study(folder):
    spec = folder.parent / "tiny.toml"
    spec.write_text(STUDY)
    return ["run_study.py", str(spec), "--folder", str(folder), "--heartbeat", "1"]


def trial_runs(folder):
    return {run.name: run for run in sorted((folder / "trials").glob("*/"))}


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    starter = torture.Starter(tmp_path_factory.mktemp("lives"))
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, starter):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    life = starter(training(folder), cold=True)
    assert life.wait() == 0, life.errors[-3000:]
    rows = torture.rows_of(folder / "run" / "last.keras")
    assert len(rows) < 40, "early stopping should be among what is tested"
    return folder / "run"


@pytest.fixture(scope="module")
def undisturbed_study(tmp_path_factory, starter):
    folder = tmp_path_factory.mktemp("undisturbed_study") / "study"
    life = starter(study(folder), cold=True)
    assert life.wait() == 0, life.errors[-3000:]
    return folder


def report(what, counts, began):
    print(f"\n{torture.BACKEND} {what}: {dict(counts)}, {time.monotonic() - began:.0f} s")


def test_train_killed(starter, tmp_path, undisturbed):
    began = time.monotonic()
    expected = {"run": torture.rows_of(undisturbed / "last.keras")}
    counts = torture.kill_again_and_again(
        starter, training, tmp_path, lambda folder: {"run": folder / "run"}, expected,
        lambda folder: torture.assert_same_end(folder / "run", undisturbed),
    )  # fmt: skip
    report("train.py", counts, began)


def test_study_killed(starter, tmp_path, undisturbed_study):
    began = time.monotonic()
    expected = processes.histories(undisturbed_study)

    def check_end(folder):
        storage = folder / "tiny" / "study.sqlite3"
        processes.assert_settled_once(storage, processes.SLOTS)
        for name, run in trial_runs(folder).items():
            torture.assert_same_end(run, undisturbed_study / "trials" / name)
        wanted = processes.metrics_of(undisturbed_study / "tiny" / "study.sqlite3")
        assert processes.metrics_of(storage) == wanted

    counts = torture.kill_again_and_again(starter, study, tmp_path, trial_runs, expected, check_end)
    report("run_study.py", counts, began)

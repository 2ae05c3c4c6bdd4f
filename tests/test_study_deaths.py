"""Trials whose process is killed: tried again from where they were, but not without end."""

# ruff: noqa: F401, F811 (fixtures of another file)

import os

import pytest
import study_processes as processes
from study_stand_in import FIXED, few_poses, spec_of, stand_in, states, study_of

from keras_wsgcn.studies import liveness, trials, workers
from keras_wsgcn.studies import storage as storages
from keras_wsgcn.studies.planning import open_study, plan
from keras_wsgcn.studies.workers import run

SPEC = spec_of(FIXED, seeds=[0])
FIRST = "pre_agg seed=0"


@pytest.fixture
def killed(tmp_path, stand_in, monkeypatch):
    """Leaves the first slot's trial as a process does that is killed."""
    storage = storages.open_storage(tmp_path / "fixed" / "study.sqlite3", heartbeat_seconds=1)
    study = open_study(storage, SPEC, "fixed")
    slots = plan(SPEC, tmp_path)["fixed"]
    monkeypatch.setattr(liveness, "is_dead", lambda life: True)

    def leave(by="", **attributes):
        storages.fill_slots(study, {FIRST: slots[FIRST]})
        with pytest.warns(UserWarning, match="Heartbeat"):
            trial = study.ask()
        storages.begin(trial, storage)
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        assert storages.fail_dead(study, by)

    return leave


def end_of_first(folder):
    trial = storages.trials_by_slot(study_of(folder, "fixed"))[FIRST][-1]
    return storages.outcome(trial), trial.user_attrs.get("reason")


IN_TRAINING = {"digest": "", "epochs_before": 0}


@pytest.mark.plain
@pytest.mark.parametrize(
    ("by", "times", "where"),
    [
        ("SIGKILL", 3, IN_TRAINING),
        ("SIGKILL", 3, {}),  # while it loads its data
        ("", 10, IN_TRAINING),  # the command was killed as well
        ("", 10, {}),
    ],
)
def test_a_trial_that_kills_its_process_each_time_is_given_up(by, times, where, killed, tmp_path):
    for _ in range(times):
        killed(by, **where)
    assert run(SPEC, tmp_path, verbose=False)
    outcome, reason = end_of_first(tmp_path)
    assert outcome == "killed"
    assert reason.startswith(f"its process was killed {times} times before its first epoch")
    assert reason.endswith(", the last time by SIGKILL") == bool(by)
    assert states(tmp_path)["post_agg seed=0"] == ["COMPLETE"]  # the study goes on
    assert run(SPEC, tmp_path, verbose=False)  # and the trial is not tried again
    assert len(states(tmp_path)[FIRST]) == times + 1


@pytest.mark.plain
@pytest.mark.parametrize(
    "deaths",
    [
        [("SIGKILL", IN_TRAINING)] * 2,
        [("", IN_TRAINING)] * 9,
        [("SIGKILL", {"digest": "", "epochs_before": n}) for n in range(-15, 0)],  # it came on
        [("", {"digest": ""})] * 15,  # of a version that did not say how far it was
        [*[("SIGKILL", IN_TRAINING)] * 2, ("", {**IN_TRAINING, "outcome": "interrupted"})] * 3,
    ],
    ids=["twice", "nine commands", "with progress", "older", "interrupted"],
)
def test_a_trial_that_is_killed_is_tried_again(deaths, killed, tmp_path):
    for by, where in deaths:
        killed(by, **where)
    assert run(SPEC, tmp_path, verbose=False)
    assert end_of_first(tmp_path) == ("finished", None)


DEADLY = """
import os, signal
import study_stand_in
from keras_wsgcn.studies import trials, workers

def work():
    fake = study_stand_in.StandIn()
    def train(configs, *arguments, **options):
        if configs[0].scheme == "pre_agg":
            os.kill(os.getpid(), signal.SIGKILL)
        return fake.train_together(configs, *arguments, **options)
    trials.train_together, trials.record_run = train, fake.record
    return workers.work_alone()
"""


@pytest.mark.slow
@pytest.mark.skipif(not processes.LINUX, reason="kills processes")
def test_a_study_goes_on_although_a_trial_kills_its_workers(tmp_path, monkeypatch, capfd):
    (tmp_path / "deadly.py").write_text(DEADLY)
    for folder in (tmp_path, os.path.dirname(__file__)):
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    monkeypatch.setattr(
        workers,
        "supervise",
        lambda function, *a, original=workers.supervise, **k: original("deadly:work", *a, **k),
    )
    monkeypatch.setattr(workers, "_most_trials", lambda: 0)  # not in this process
    assert run(SPEC, tmp_path, verbose=False)
    assert end_of_first(tmp_path)[0] == "killed"
    assert states(tmp_path)["post_agg seed=0"] == ["COMPLETE"]
    assert capfd.readouterr().err.count("was ended by SIGKILL") == 3

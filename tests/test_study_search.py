"""Searches, on a stand-in for the training whose errors follow from the settings."""

# ruff: noqa: F401, F811 (fixtures of another file)

import dataclasses
import math

import numpy as np
import pytest
from study_stand_in import FIXED, SEARCH, few_poses, spec_of, stand_in, states, study_of

from keras_wsgcn import InputError
from keras_wsgcn.studies import liveness
from keras_wsgcn.studies import trials as study_trials
from keras_wsgcn.studies.planning import best_settings
from keras_wsgcn.studies.results import read_storage
from keras_wsgcn.studies.storage import trials_by_slot
from keras_wsgcn.studies.workers import run


def rates(folder):
    slots = trials_by_slot(study_of(folder, "search"))
    return {slot: trials[-1].params["learning_rate"] for slot, trials in slots.items()}


@pytest.mark.plain
def test_the_same_seed_searches_the_same(tmp_path, stand_in):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        spec = spec_of(SEARCH, search={**SEARCH["search"], "seed": seed})
        assert run(spec, tmp_path / name, verbose=False)
    first, same, other = (rates(tmp_path / name) for name in "abc")
    assert list(first) == list("123456")
    assert len(set(first.values())) == 6
    assert first == same
    assert not set(first.values()) & set(other.values())


@pytest.mark.plain
@pytest.mark.parametrize("at", [1, 3, 5])
def test_an_interrupted_search_goes_on_with_the_same_parameters(at, tmp_path, stand_in):
    assert run(spec_of(SEARCH), tmp_path / "undisturbed", verbose=False)
    stand_in.trained.clear()
    stand_in.fails[at] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(spec_of(SEARCH), tmp_path / "disturbed", verbose=False)
    assert run(spec_of(SEARCH), tmp_path / "disturbed", verbose=False)
    assert rates(tmp_path / "disturbed") == rates(tmp_path / "undisturbed")


@pytest.mark.plain
def test_a_search_goes_on_with_the_slot_whose_process_died(tmp_path, stand_in, monkeypatch):
    assert run(spec_of(SEARCH), tmp_path / "undisturbed", verbose=False)
    stand_in.trained.clear()
    stand_in.fails[5] = KeyboardInterrupt()
    # The trial stays as a killed process leaves it: running.
    with monkeypatch.context() as patch:
        patch.setattr("optuna.study._optimize._tell_with_warning", killed_at("interrupted"))
        with pytest.raises(AssertionError):  # Optuna's own: it reaches what it should not
            run(spec_of(SEARCH), tmp_path / "disturbed", verbose=False)
    assert states(tmp_path / "disturbed", "search")["5"] == ["RUNNING"]
    monkeypatch.setattr(liveness, "is_dead", lambda life: True)
    assert run(spec_of(SEARCH), tmp_path / "disturbed", verbose=False)
    assert rates(tmp_path / "disturbed") == rates(tmp_path / "undisturbed")


def killed_at(outcome):
    from optuna.study._tell import _tell_with_warning as tell

    def told(*, trial, **rest):
        if trial.user_attrs.get("outcome") == outcome:
            raise RuntimeError
        return tell(trial=trial, **rest)

    return told


@pytest.mark.plain
def test_hopeless_trials_are_pruned(tmp_path, stand_in):
    search = {**SEARCH["search"], "trials": 12}
    config = {**FIXED["config"], "epochs": 4}
    assert run(spec_of(SEARCH, search=search, config=config), tmp_path, verbose=False)
    trials = study_of(tmp_path, "search").get_trials()
    done = [trial.value for trial in trials if trial.state.name == "COMPLETE"]
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert len(done) >= 4
    assert len(done) + len(pruned) == 12
    assert pruned
    for trial in pruned:
        assert trial.user_attrs["outcome"] == "pruned"
        assert 2 <= len(trial.user_attrs["history"]) < 4
        assert trial.user_attrs["history"][-1]["val_mpjpe_mm"] > min(done)
    unpruned = spec_of(SEARCH, name="all", search={**search, "prune": False}, config=config)
    assert run(unpruned, tmp_path, verbose=False)
    assert {t.state.name for t in study_of(tmp_path, "all").get_trials()} == {"COMPLETE"}


@pytest.mark.plain
def test_the_search_learns(tmp_path, stand_in):
    """Twenty trials come nearer to the best learning rate, 1e-3, than chance would."""
    search = {**SEARCH["search"], "trials": 20}
    assert run(spec_of(SEARCH, search=search), tmp_path, verbose=False)
    off = [abs(math.log10(rate) + 3) for rate in rates(tmp_path).values()]
    assert np.mean(off[10:]) < 0.8 * np.mean(off[:10])


@pytest.mark.plain
def test_several_objectives_have_no_pruning_and_a_front(tmp_path, stand_in):
    space = {"channels": {"low": 2, "high": 8}}
    objectives = ["val_mpjpe_mm", "params", "forward_mflop"]
    spec = spec_of(SEARCH, search={"trials": 3, "space": space, "objectives": objectives})
    assert run(spec, tmp_path, verbose=False)
    study = study_of(tmp_path, "search")
    assert study.metric_names == objectives
    for trial in study.get_trials():
        error, params, mflop = trial.values
        size = trial.user_attrs["size"]
        assert (params, mflop) == (size["params"], size["forward_mflop"])
        assert error == trial.user_attrs["metrics"]["val_mpjpe_mm"]


@pytest.mark.plain
def test_latency_is_measured_alone_and_anew_on_the_front(tmp_path, stand_in, monkeypatch):
    calls = []

    def measured(models):
        calls.append(sorted(models))
        return {name: 1.0 + len(calls) for name in models}

    monkeypatch.setattr(study_trials, "latency_ms", measured)
    monkeypatch.setattr("keras_wsgcn.studies.workers.latency_ms", measured)
    original = stand_in.train
    monkeypatch.setattr(stand_in, "train", lambda *a, **o: WithModel(original(*a, **o)))
    search = {**SEARCH["search"], "trials": 3, "objectives": ["val_mpjpe_mm", "latency_ms"]}
    spec = spec_of(SEARCH, search=search)
    with pytest.raises(InputError, match="`workers` must be 1 where latency is an objective"):
        run(spec, tmp_path, workers=2)
    assert run(spec, tmp_path, verbose=False)
    study = study_of(tmp_path, "search")
    assert [trial.values[1] for trial in study.get_trials()] == [2.0, 3.0, 4.0]
    front = {str(trial.number) for trial in study.best_trials}
    assert calls[-1] == sorted(front)
    assert study.user_attrs["front_latency_ms"] == dict.fromkeys(front, 5.0)
    runs = read_storage(spec, tmp_path / "search" / "study.sqlite3").runs
    assert runs["front_latency_ms"].notna().sum() == len(front)


class WithModel(list):
    model = None


def test_latencies_of_models_that_take_turns():
    import keras_wsgcn

    models = {c: keras_wsgcn.build_model("pre_agg", channels=c, blocks=0) for c in (2, 4)}
    found = study_trials.latency_ms(models)
    assert set(found) == {2, 4}
    assert all(0 < value < 1000 for value in found.values())


@pytest.mark.plain
def test_the_scheme_can_be_searched(tmp_path, stand_in):
    search = {"trials": 3, "space": {"scheme": {"choices": "all"}}}
    assert run(spec_of(SEARCH, grid=[], search=search), tmp_path, verbose=False)
    trials = study_of(tmp_path, "search").get_trials()
    assert [t.user_attrs["config"]["scheme"] for t in trials] == [
        t.params["scheme"] for t in trials
    ]


@pytest.mark.plain
def test_settings_that_no_model_has_are_refused_and_the_search_goes_on(tmp_path, stand_in):
    space = {
        "scheme": {"choices": ["no_sharing", "full_sharing"]},
        "channels": {"choices": [8, 2000]},
        "batch_size": {"choices": [32, 10**6]},
        "clip_norm": {"low": 0.5, "high": 2.0},
    }
    search = {"trials": 24, "space": space}
    spec = spec_of(SEARCH, grid=[], config={"blocks": 1, "epochs": 2}, search=search)
    assert run(spec, tmp_path, verbose=False)
    trials = study_of(tmp_path, "search").get_trials()
    refused = [trial for trial in trials if trial.user_attrs["outcome"] == "refused"]
    assert {trial.state.name for trial in refused} == {"PRUNED"}
    reasons = " ".join(trial.user_attrs["reason"] for trial in refused)
    assert "must give at most 85,000,000 parameters" in reasons
    assert "`batch_size` 1000000 exceeds" in reasons
    assert any(trial.state.name == "COMPLETE" for trial in trials)
    results = read_storage(spec, tmp_path / "search" / "study.sqlite3")
    tried = [trial.params["clip_norm"] for trial in trials]
    assert results.runs["clip_norm"].tolist() == pytest.approx(tried)


@pytest.mark.plain
def test_a_tuned_study_runs_its_search_first_and_takes_its_best(tmp_path, stand_in):
    tuning = spec_of(SEARCH)
    tuned = spec_of(FIXED, name="tuned", grid=[{"scheme": "pre_agg"}])
    tuned = dataclasses.replace(tuned, tuned_by=tuning)
    assert run(tuned, tmp_path, verbose=False)
    best = study_of(tmp_path, "search").best_params["learning_rate"]
    assert best_settings(tuning, tmp_path) == {"pre_agg": {"learning_rate": best}}
    trials = study_of(tmp_path, "tuned").get_trials()
    assert [trial.user_attrs["config"]["learning_rate"] for trial in trials] == [best, best]

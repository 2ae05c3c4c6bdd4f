"""Settings, schemes and data of one's own, which studies must take, tell apart and report."""

# ruff: noqa: F401, F811 (fixtures of another file)

import dataclasses

import pytest
from optuna.distributions import IntDistribution
from study_stand_in import FIXED, few_poses, spec_of, stand_in, states, study_of

from keras_wsgcn import InputError
from keras_wsgcn.studies import planning
from keras_wsgcn.studies import trials as study_trials
from keras_wsgcn.studies.report import sections
from keras_wsgcn.studies.results import read_storage
from keras_wsgcn.studies.storage import open_storage
from keras_wsgcn.studies.workers import run

pytestmark = pytest.mark.plain


def test_numbers_without_a_fraction_are_settings_too(tmp_path, stand_in):
    grid = [{"scheme": "pre_agg", "dropout": [0, 0.1], "kernel_gain": [1, 0.5]}]
    spec = spec_of(FIXED, grid=grid, seeds=[0])
    assert run(spec, tmp_path, verbose=False)
    trials = study_of(tmp_path, "fixed").get_trials()
    assert [t.params["dropout"] for t in trials] == [0.0, 0.0, 0.1, 0.1]
    assert len(set(stand_in.trained)) == 4
    parts = sections(spec, read_storage(spec, tmp_path / "fixed" / "study.sqlite3"), "command")
    table = next(part.table for part in parts if part.title == "Errors")
    assert table["dropout"].tolist() == [0.0, 0.0, 0.1, 0.1]
    assert table["kernel_gain"].tolist() == [1.0, 0.5, 1.0, 0.5]
    (conclusions,) = [part for part in parts if "conclusions" in part.title]
    assert "Not checked" in conclusions.text


def test_a_study_that_holds_whole_numbers_for_fractions_goes_on(tmp_path, stand_in, monkeypatch):
    spec = spec_of(FIXED, grid=[{"scheme": "pre_agg", "dropout": 0}], seeds=[0])
    with monkeypatch.context() as patch:  # as versions before had it
        patch.setattr(planning, "_distribution", lambda name, value: (
            IntDistribution(0, 9) if name == "dropout" else None
        ))  # fmt: skip
        assert run(spec, tmp_path, verbose=False)
    assert run(dataclasses.replace(spec, seeds=(0, 1)), tmp_path, verbose=False)
    assert list(states(tmp_path).values()) == [["COMPLETE"]] * 2


def test_own_schemes_are_trained_and_reported(tmp_path, stand_in):
    own = {"name": "mine", "split": "depth", "per": "source"}
    spec = spec_of(FIXED, grid=[{"scheme": ["pre_agg", own]}], seeds=[0])
    assert run(spec, tmp_path, verbose=False)
    assert states(tmp_path) == {"pre_agg seed=0": ["COMPLETE"], "mine seed=0": ["COMPLETE"]}
    results = read_storage(spec, tmp_path / "fixed" / "study.sqlite3")
    assert results.runs["scheme"].tolist() == ["pre_agg", "mine"]


def test_data_that_changed_is_trained_anew(tmp_path, stand_in, few_poses, monkeypatch):
    one = spec_of(FIXED, name="one", seeds=[0])
    assert run(one, tmp_path, verbose=False)
    changed = dataclasses.replace(few_poses, digest="x")
    monkeypatch.setattr(study_trials, "load_splits", lambda source, **options: changed)
    assert run(dataclasses.replace(one, name="two"), tmp_path, verbose=False)
    assert len(set(stand_in.trained)) == 4
    with pytest.raises(InputError, match=r"`data` must be the archive of the study's other trials"):
        run(dataclasses.replace(one, seeds=(0, 1)), tmp_path, verbose=False)


def test_each_run_has_a_lock_of_its_own(tmp_path, stand_in):
    """Though the name of the data has a dot, and so that of the runs."""
    data = {"source": "motions.v2.npz", "validation": [2], "test": [3]}
    assert run(spec_of(FIXED, data=data, seeds=[0]), tmp_path, verbose=False)
    # Some versions of filelock remove the file when the lock is given back.
    assert set(stand_in.locks) == {f"{name}.lock" for name in stand_in.trained}


def test_slots_that_still_wait_have_their_size(tmp_path, stand_in):
    spec = spec_of(FIXED)
    stand_in.fails[1] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path, verbose=False)
    results = read_storage(spec, tmp_path / "fixed" / "study.sqlite3")
    assert "waiting" in results.runs["outcome"].tolist()
    assert results.runs["forward_mflop"].notna().all()
    assert sections(spec, results, "command")


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_heartbeat_takes_time(seconds, tmp_path):
    with pytest.raises(InputError, match="`heartbeat_seconds` must be an integer of at least 1"):
        run(spec_of(FIXED), tmp_path, heartbeat_seconds=seconds)


def test_a_scheme_s_name_does_not_leave_the_folder(tmp_path, stand_in):
    own = {"name": "/../../../escaped", "split": "whole", "per": "graph"}
    assert run(spec_of(FIXED, grid=[{"scheme": own}], seeds=[0]), tmp_path / "runs", verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    (name,) = stand_in.trained
    assert ".._escaped" in name
    assert (tmp_path / "runs" / "trials" / name).is_dir()
    assert stand_in.locks == [f"{name}.lock"]


def test_a_setting_that_is_none_in_one_cell_is_shown(tmp_path, stand_in):
    spec = spec_of(FIXED, grid=[{"scheme": "pre_agg"}, {"scheme": "pre_agg", "patience": 1}])
    assert run(spec, tmp_path, verbose=False)
    results = read_storage(spec, tmp_path / "fixed" / "study.sqlite3")
    table = next(p.table for p in sections(spec, results, "c") if p.title == "Errors")
    assert table["patience"].notna().tolist() == [False, True]


@pytest.mark.parametrize("kind", ["sqlite", "sqlite+pysqlite"])
def test_a_file_can_be_named_by_a_url(kind, tmp_path, stand_in, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = tmp_path / "new" / "study.sqlite3"
    spec = spec_of(FIXED, seeds=[0])
    assert run(spec, tmp_path / "runs", storage=f"{kind}:///{storage}", verbose=False)
    assert len(read_storage(spec, storage).finished) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"new", "runs"}


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_storage_in_memory_is_refused(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="`storage` must be a file where it is SQLite"):
        open_storage(url)
    assert not list(tmp_path.iterdir())

"""What a study asks of its data before a trial holds on to it."""

# ruff: noqa: F401, F811 (fixtures of another file)

import dataclasses

import cli

import pytest
import run_study
from study_stand_in import FIXED, SEARCH, few_poses, spec_of, stand_in, states, study_of

from keras_wsgcn import InputError, load_splits
from keras_wsgcn.files import digest_of
from keras_wsgcn.studies import storage as storages
from keras_wsgcn.studies import trials as study_trials
from keras_wsgcn.studies.planning import open_study, plan
from keras_wsgcn.studies.workers import run

pytestmark = pytest.mark.plain

UNPRUNED = {**SEARCH, "search": {**SEARCH["search"], "prune": False}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": {"source": "generated", "stride": 0}},
        {"data": {"source": "missing.npz", "validation": [1], "test": [2]}},
        {"config": {**FIXED["config"], "batch_size": 100_000}},
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_a_name_holds_on_to_it(
    wrong, tmp_path, stand_in, monkeypatch
):
    for table in (FIXED, SEARCH):
        if "config" in wrong and table is SEARCH:
            continue  # a search may put together what does not fit: it goes on
        with monkeypatch.context() as patch:
            if "data" in wrong:
                patch.setattr(study_trials, "load_splits", load_splits)
            with pytest.raises(InputError, match=r"must .*Received: "):
                run(spec_of(table, **wrong), tmp_path)
        assert run(spec_of(table), tmp_path, verbose=False)


def test_no_study_runs_before_the_data_of_all_is_looked_at(tmp_path, stand_in, capsys):
    paths = [tmp_path / "good.toml", tmp_path / "wrong.toml"]
    for path, size in zip(paths, (128, 100_000), strict=True):
        path.write_text(
            f"config = {{ channels = 4, blocks = 0, epochs = 2, batch_size = {size} }}\n"
            '[data]\nsource = "generated"\nstride = 60\n'
        )
    arguments = [*map(str, paths), "--folder", str(tmp_path / "runs")]
    assert cli.run(run_study.main, arguments) == 2
    assert "`batch_size` must not exceed" in capsys.readouterr().err
    assert not stand_in.trained
    assert cli.run(run_study.main, [*arguments, "--batch-size", "128"]) == 0


def test_data_is_loaded_once(tmp_path, stand_in, few_poses, monkeypatch):
    loaded = []
    monkeypatch.setattr(study_trials, "load_splits", lambda *a, **k: loaded.append(a) or few_poses)
    assert run(spec_of(FIXED), tmp_path, verbose=False)
    assert run(spec_of(FIXED), tmp_path, verbose=False)
    assert len(loaded) == 1


def test_pruning_is_by_the_objective_or_not_at_all(tmp_path, stand_in):
    table = {**SEARCH["search"], "trials": 12, "objectives": ["params"]}
    assert run(spec_of(SEARCH, search=table), tmp_path, verbose=False)
    assert {trial.state.name for trial in study_of(tmp_path, "search").get_trials()} == {"COMPLETE"}


@pytest.fixture
def archive(tmp_path, few_poses, monkeypatch):
    """An archive that holds the few poses, so it is said."""
    path = tmp_path / "motions.npz"
    path.write_bytes(b"one")
    own = dataclasses.replace(few_poses, digest=digest_of(path))
    monkeypatch.setattr(study_trials, "load_splits", lambda source, **options: own)
    return path


def on(archive, table=FIXED, **options):
    return spec_of(table, data={"source": str(archive), "validation": [2], "test": [3], **options})


def sources(folder, name="fixed"):
    trials = study_of(folder, name).get_trials()
    return [trial.user_attrs["start"]["data"]["source"] for trial in trials]


@pytest.mark.parametrize("table", [FIXED, UNPRUNED], ids=["list", "search"])
def test_a_study_goes_on_where_its_archive_has_moved(table, archive, tmp_path, stand_in):
    stand_in.fails[2] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(on(archive, table), tmp_path, verbose=False)
    moved = archive.rename(tmp_path / "moved.npz")
    assert run(on(moved, table), tmp_path, verbose=False)
    assert sources(tmp_path, table["name"])[:2] == [str(archive)] * 2
    assert set(sources(tmp_path, table["name"])[2:]) == {str(moved)}
    ends = list(states(tmp_path, table["name"]).values())
    assert ends.count(["COMPLETE"]) == len(ends) - 1
    assert ends.count(["FAIL", "COMPLETE"]) == 1
    count = len(stand_in.trained)
    again = moved.rename(tmp_path / "again.npz")
    assert run(on(again, table), tmp_path, verbose=False)
    assert len(stand_in.trained) == count
    again.write_bytes(b"two")
    with pytest.raises(InputError, match="`data` must be the archive of the study's other trials"):
        run(on(again, table), tmp_path)
    with pytest.raises(InputError, match=r"slot '.*' differs in \['data.source'\]"):
        run(on(tmp_path / "nowhere.npz", table), tmp_path)


def test_data_that_is_said_otherwise_is_the_same(archive, tmp_path, stand_in):
    assert run(on(archive), tmp_path, verbose=False)
    assert run(on(archive, noise_px=0.0, stride=1), tmp_path, verbose=False)
    assert len(stand_in.trained) == 4
    with pytest.raises(InputError, match=r"differs in \['data.noise_px', 'data.stride'\]"):
        run(on(archive, noise_px=1.0, stride=2), tmp_path)


@pytest.mark.parametrize("table", [FIXED, UNPRUNED], ids=["list", "search"])
def test_what_has_not_begun_holds_on_to_no_settings(table, tmp_path, stand_in):
    wrong = spec_of(table, config={**FIXED["config"], "channels": 5, "epochs": 9}, data=DATA)
    name = table["name"]
    study_name, slots = next(iter(plan(wrong, tmp_path).items()))
    storage = storages.open_storage(tmp_path / name / "study.sqlite3")
    waiting = storages.fill_slots(open_study(storage, wrong, study_name), slots)
    assert waiting
    assert run(spec_of(table), tmp_path, verbose=False)
    trials = study_of(tmp_path, name).get_trials()
    assert [t.state.name for t in trials[: len(waiting)]] == ["FAIL"] * len(waiting)
    assert [t.state.name for t in trials[len(waiting) :]] == ["COMPLETE"] * len(slots)
    for trial in trials[len(waiting) :]:
        assert trial.user_attrs["config"]["epochs"] == 2
        assert trial.params.get("channels", 4) == 4
        assert trial.user_attrs["start"]["data"] == FIXED["data"]


DATA = {"source": "generated", "stride": 6}


def test_settings_that_one_trial_has_begun_with_stay(tmp_path, stand_in):
    stand_in.fails[1] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(spec_of(FIXED), tmp_path, verbose=False)
    before = states(tmp_path)
    assert list(before.values()) == [["FAIL"], *[["WAITING"]] * 3]
    with pytest.raises(InputError, match=r"slot 'pre_agg seed=0' differs in \['data.stride'\]"):
        run(spec_of(FIXED, data=DATA), tmp_path)
    assert states(tmp_path) == before

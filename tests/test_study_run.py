"""Studies run in this process. Two of the tests train; for the others training has a stand-in."""

# ruff: noqa: F401, F811 (fixtures of another file)

import dataclasses
import json

import keras
import numpy as np
import pandas as pd
import pytest
from study_stand_in import FIXED, SEARCH, few_poses, spec_of, stand_in, states, study_of

from keras_wsgcn import InputError
from keras_wsgcn.files import digest_of
from keras_wsgcn.studies import liveness, workers
from keras_wsgcn.studies import storage as storages
from keras_wsgcn.studies import trials as study_trials
from keras_wsgcn.studies.planning import open_study, plan, study_names
from keras_wsgcn.studies.results import read_results, read_storage, write_results
from keras_wsgcn.studies.storage import open_storage, read_trial, trials_by_slot
from keras_wsgcn.studies.workers import run
from keras_wsgcn.training import DivergenceError

# --- with real training -------------------------------------------------------------------------

TRAINED = spec_of(FIXED, seeds=[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    assert run(TRAINED, folder, verbose=False)
    return folder


def weights(folder):
    return {
        path.parent.name: keras.models.load_model(path, compile=False).get_weights()
        for path in sorted(folder.glob("trials/*/last.keras"))
    }


def test_a_trial_records_all_that_repeats_and_reports_it(finished, few_poses):
    assert states(finished) == {"pre_agg seed=0": ["COMPLETE"], "post_agg seed=0": ["COMPLETE"]}
    trial = study_of(finished, "fixed").get_trials()[1]
    known = trial.user_attrs
    assert known["config"] == {**known["config"], "scheme": "post_agg", "seed": 0, "channels": 4}
    assert known["start"]["data"] == FIXED["data"]
    environment = known["environment"]
    assert environment["backend"] == keras.backend.backend()
    assert environment["keras"] == keras.__version__
    assert environment[keras.backend.backend()]
    assert environment["device"]
    assert known["outcome"] == "finished"
    assert known["seconds"] > 0
    assert len(known["history"]) == 2
    assert trial.value == known["metrics"]["val_mpjpe_mm"]
    people = {str(s) for s in np.unique(few_poses.test.subject)}
    assert set(known["subjects"]["test"]) == people
    mean = np.mean([s["mpjpe_mm"] for s in known["subjects"]["test"].values()])
    assert known["metrics"]["test_subject_mean_mpjpe_mm"] == pytest.approx(mean, abs=1e-3)


def test_a_finished_study_returns_at_once(finished, stand_in, capsys):
    assert run(TRAINED, finished)
    assert not stand_in.trained
    assert capsys.readouterr().out == ""


@pytest.mark.plain
def test_an_equal_run_of_another_study_is_taken_over(finished):
    other = spec_of(FIXED, name="other", seeds=[0], grid=[{"scheme": "pre_agg"}])
    before = {path: path.stat().st_mtime_ns for path in finished.glob("trials/*/last.keras")}
    assert run(other, finished, verbose=False)
    assert {p: p.stat().st_mtime_ns for p in finished.glob("trials/*/last.keras")} == before
    value = study_of(finished, "other").get_trials()[0].value
    assert value == study_of(finished, "fixed").get_trials()[0].value


def test_an_interrupted_study_goes_on_and_ends_as_an_undisturbed_one(
    finished, tmp_path, monkeypatch
):
    original = study_trials.train_together

    def interrupted(configs, *arguments, callbacks, **options):
        class Stop(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                if configs[0].scheme == "post_agg" and epoch == 0:
                    raise KeyboardInterrupt

        return original(configs, *arguments, callbacks=[[*callbacks[0], Stop()]], **options)

    with monkeypatch.context() as patch:
        patch.setattr(study_trials, "train_together", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(TRAINED, tmp_path, verbose=False)
    assert states(tmp_path) == {"pre_agg seed=0": ["COMPLETE"], "post_agg seed=0": ["FAIL"]}
    assert run(TRAINED, tmp_path, verbose=False)
    assert states(tmp_path)["post_agg seed=0"] == ["FAIL", "COMPLETE"]
    ours, theirs = weights(tmp_path), weights(finished)
    assert ours.keys() == theirs.keys()
    for name in ours:
        for a, b in zip(ours[name], theirs[name], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.plain
def test_a_search_never_sees_the_test_subjects(tmp_path, monkeypatch, few_poses):
    """Really trains and records one trial on splits that have no test poses at all."""
    no_test = dataclasses.replace(few_poses)
    object.__setattr__(no_test, "test", None)
    monkeypatch.setattr(study_trials, "load_splits", lambda source, **options: no_test)
    spec = spec_of(SEARCH, search={**SEARCH["search"], "trials": 1})
    assert run(spec, tmp_path, verbose=False)
    (trial,) = study_of(tmp_path, "search").get_trials()
    assert set(trial.user_attrs["subjects"]) == {"validation"}
    assert not any("test" in name for name in trial.user_attrs["metrics"])


# --- fixed lists --------------------------------------------------------------------------------


@pytest.mark.plain
def test_a_fixed_list_trains_each_slot_once_seed_by_seed(tmp_path, stand_in, capsys):
    assert run(spec_of(FIXED), tmp_path)
    assert list(states(tmp_path).items()) == [
        ("pre_agg seed=0", ["COMPLETE"]), ("post_agg seed=0", ["COMPLETE"]),
        ("pre_agg seed=1", ["COMPLETE"]), ("post_agg seed=1", ["COMPLETE"]),
    ]  # fmt: skip
    assert len(set(stand_in.trained)) == len(stand_in.trained) == 4
    assert (
        "fixed [4/4] post_agg seed=1 (trial 3): validation 62.0 mm, test 9.0 mm"
        in capsys.readouterr().out
    )


@pytest.mark.plain
def test_seeds_and_cells_can_be_added(tmp_path, stand_in):
    assert run(spec_of(FIXED, seeds=[0]), tmp_path, verbose=False)
    grid = [{"scheme": ["pre_agg", "post_agg", "no_sharing"]}]
    assert run(spec_of(FIXED, grid=grid, seeds=[0, 1]), tmp_path, verbose=False)
    assert len(stand_in.trained) == 6
    assert set(map(tuple, states(tmp_path).values())) == {("COMPLETE",)}


@pytest.mark.plain
def test_other_settings_under_the_same_name_are_refused(tmp_path, stand_in):
    assert run(spec_of(FIXED), tmp_path, verbose=False)
    other = spec_of(FIXED, config={**FIXED["config"], "epochs": 3})
    with pytest.raises(InputError, match=r"`name` must be new .*differs in \['config.epochs'\]"):
        run(other, tmp_path)
    assert len(study_of(tmp_path, "fixed").get_trials()) == 4


@pytest.mark.plain
def test_a_study_of_an_older_version_goes_on(tmp_path, stand_in):
    """Its trials begin without a setting that has come since."""
    spec = spec_of(FIXED)
    slots = plan(spec, tmp_path, None)["fixed"]
    older = json.loads(json.dumps({slot: start["attributes"] for slot, start in slots.items()}))
    for attributes in older.values():
        del attributes["config"]["jit_compile"]
    older = {slot: {**slots[slot], "attributes": older[slot]} for slot in slots}
    study = open_study(open_storage(tmp_path / "fixed" / "study.sqlite3"), spec, "fixed")
    assert len(storages.fill_slots(study, older)) == 4
    assert run(spec, tmp_path, verbose=False)
    assert all(found == ["COMPLETE"] for found in states(tmp_path).values())


@pytest.mark.plain
def test_an_interrupted_trial_is_tried_again_with_the_same_parameters(tmp_path, stand_in):
    stand_in.fails[2] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(spec_of(FIXED), tmp_path, verbose=False)
    assert states(tmp_path)["post_agg seed=0"] == ["FAIL"]
    assert run(spec_of(FIXED), tmp_path, verbose=False)
    first, second = trials_by_slot(study_of(tmp_path, "fixed"))["post_agg seed=0"]
    assert first.user_attrs["outcome"] == "interrupted"
    assert second.params == first.params
    assert second.system_attrs["failed_trial"] == first.number
    assert second.system_attrs["retry_history"] == [first.number]
    assert stand_in.trained[1] == stand_in.trained[-1]  # the same folder, so the same epochs


@pytest.mark.plain
def test_an_error_of_the_moment_is_tried_again(tmp_path, stand_in):
    stand_in.fails[1] = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        run(spec_of(FIXED), tmp_path, verbose=False)
    failed = study_of(tmp_path, "fixed").get_trials()[0]
    assert failed.user_attrs["reason"] == "OSError: [Errno 28] No space left on device"
    assert run(spec_of(FIXED), tmp_path, verbose=False)
    assert states(tmp_path)["pre_agg seed=0"] == ["FAIL", "COMPLETE"]


@pytest.mark.plain
def test_a_diverged_trial_is_pruned_with_its_reason_and_the_study_goes_on(tmp_path, stand_in):
    stand_in.fails[1] = DivergenceError("The loss is no longer finite in epoch 1.")
    assert run(spec_of(FIXED), tmp_path, verbose=False)
    bad, *good = study_of(tmp_path, "fixed").get_trials()
    assert bad.state.name == "PRUNED"
    assert bad.user_attrs["outcome"] == "diverged"
    assert "no longer finite" in bad.user_attrs["reason"]
    assert [trial.state.name for trial in good] == ["COMPLETE"] * 3


@pytest.mark.plain
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."),
    ],
)
def test_a_trial_without_memory_fails_with_its_reason_and_the_study_goes_on(
    error, tmp_path, stand_in
):
    stand_in.fails[1] = error
    assert run(spec_of(FIXED), tmp_path, verbose=False)
    bad, *good = study_of(tmp_path, "fixed").get_trials()
    assert [trial.state.name for trial in (bad, *good)] == ["FAIL", *["COMPLETE"] * 3]
    assert bad.user_attrs["outcome"] == "out_of_memory"
    assert bad.user_attrs["reason"]
    assert run(spec_of(FIXED), tmp_path, verbose=False)  # it is not tried again
    assert len(study_of(tmp_path, "fixed").get_trials()) == 4


DEATHS = {
    "before it began": None,
    "on this machine": {"place": "here", "lock": "gone.lock"},
    "on another machine": {"place": "elsewhere", "lock": "gone.lock"},
}


@pytest.mark.plain
@pytest.mark.parametrize("life", DEATHS.values(), ids=DEATHS)
def test_a_dead_process_is_noticed(life, tmp_path, stand_in, monkeypatch):
    """By its lock, or its heartbeat, or, if it died before the first one, as it never began."""
    monkeypatch.setattr(liveness, "_place", lambda: "here")
    spec = spec_of(FIXED)
    storage = open_storage(tmp_path / "fixed" / "study.sqlite3", heartbeat_seconds=1)
    study = storages.open_study(storage, "fixed", ("val_mpjpe_mm",))
    storages.fill_slots(study, plan(spec, tmp_path)["fixed"])
    with pytest.warns(UserWarning, match="Heartbeat"):
        taken = study.ask()  # as a process would that is killed now
    if life:
        with monkeypatch.context() as patch:
            patch.setattr(liveness, "own_life", lambda: life)
            storages.begin(taken, storage)
    assert run(spec, tmp_path, heartbeat_seconds=1, verbose=False)
    assert states(tmp_path)["pre_agg seed=0"] == ["FAIL", "COMPLETE"]


# --- storage and tables -------------------------------------------------------------------------


def test_tables_have_a_row_for_each_slot_subject_and_epoch(finished):
    results = read_storage(TRAINED, finished / "fixed" / "study.sqlite3")
    assert results.runs["outcome"].tolist() == ["finished"] * 2
    assert results.runs["scheme"].tolist() == ["pre_agg", "post_agg"]
    assert results.runs["backend"].tolist() == [keras.backend.backend()] * 2
    assert len(results.epochs) == 4
    test = results.subjects[results.subjects["split"] == "test"]
    means = test.groupby("trial")["mpjpe_mm"].mean()
    np.testing.assert_allclose(means, results.runs["test_mpjpe_mm"], atol=1e-3)


def test_what_has_not_run_is_said(finished):
    runs = read_storage(spec_of(FIXED), finished / "fixed" / "study.sqlite3").runs
    assert runs["outcome"].tolist() == ["finished"] * 2 + ["not run"] * 2
    assert runs["seed"].tolist() == [0, 0, 1, 1]
    assert (runs["params"] > 0).all()


def test_tables_survive_their_csvs(finished, tmp_path, stand_in):
    assert run(spec_of(SEARCH), tmp_path, verbose=False)
    for spec, folder in ((TRAINED, finished), (spec_of(SEARCH), tmp_path)):
        results = read_storage(spec, folder / spec.name / "study.sqlite3")
        write_results(results, tmp_path, spec.name)
        again = read_results(tmp_path, spec.name)
        for name in ("runs", "subjects", "epochs", "importances"):
            first, second = getattr(results, name), getattr(again, name)
            assert first.columns.tolist() == second.columns.tolist()
            numbers = first.select_dtypes("number").columns
            pd.testing.assert_frame_equal(
                first[numbers].astype(float), second[numbers].astype(float), rtol=1e-5
            )
    assert set(results.importances["parameter"]) == {"learning_rate"}
    with pytest.raises(InputError, match=r"`results` must have the file other\.csv"):
        read_results(tmp_path, "other")


def test_a_trial_is_found_by_its_number(finished):
    storage = finished / "fixed" / "study.sqlite3"
    assert read_trial(storage, 1).user_attrs["slot"] == "post_agg seed=0"
    with pytest.raises(InputError, match=r"`number` must be one of \[0, 1\]"):
        read_trial(storage, 9)
    with pytest.raises(InputError, match=r"`study` must be one of \['fixed'\]"):
        read_trial(storage, 0, "other")
    with pytest.raises(InputError, match="`storage` must be a SQLite file or a URL"):
        read_trial(finished / "none.sqlite3", 0)


def test_a_file_that_is_no_storage_is_refused(tmp_path):
    path = tmp_path / "fixed" / "study.sqlite3"
    path.parent.mkdir()
    path.write_text("a letter to my aunt " * 100)
    with pytest.raises(InputError, match="`storage` must be a SQLite file or the URL"):
        run(spec_of(FIXED), tmp_path)
    assert path.read_text() == "a letter to my aunt " * 100


@pytest.mark.plain
def test_objectives_of_another_study_are_refused(tmp_path, stand_in):
    assert run(spec_of(SEARCH), tmp_path, verbose=False)
    search = {**SEARCH["search"], "objectives": ["params"]}
    with pytest.raises(InputError, match="`name` must be new where the objectives change"):
        run(spec_of(SEARCH, search=search), tmp_path)


@pytest.mark.plain
def test_a_range_can_move_but_not_its_choices(tmp_path, stand_in):
    def spec(trials, **space):
        return spec_of(SEARCH, search={"trials": trials, "space": space})

    rate = {"low": 1e-4, "high": 1e-2, "log": True}
    assert run(spec(2, learning_rate=rate, batch_size={"choices": [64, 128]}), tmp_path)
    for name, other in (
        ("batch_size", {"choices": [64, 128, 32]}),
        ("batch_size", {"low": 32, "high": 128}),
        ("learning_rate", {"low": 1e-4, "high": 1e-2}),
    ):
        space = {"learning_rate": rate, "batch_size": {"choices": [64, 128]}, name: other}
        with pytest.raises(
            InputError, match=rf"`name` must be new where the choices.*: pre_agg', whose {name} is"
        ):
            run(spec(3, **space), tmp_path)
    wider = {"low": 1e-5, "high": 1e-1, "log": True}
    assert run(spec(3, learning_rate=wider, batch_size={"choices": [64, 128]}), tmp_path)
    assert len(stand_in.trained) == 3


@pytest.mark.plain
def test_a_finished_study_refuses_an_archive_that_changed(tmp_path, stand_in, few_poses):
    archive = tmp_path / "motions.npz"
    archive.write_bytes(b"one")
    data = {"source": str(archive), "validation": [2], "test": [3]}
    spec = spec_of(FIXED, data=data, seeds=[0])
    with pytest.MonkeyPatch.context() as patch:
        own = dataclasses.replace(few_poses, digest=digest_of(archive))
        patch.setattr(study_trials, "load_splits", lambda source, **options: own)
        assert run(spec, tmp_path, verbose=False)
    archive.write_bytes(b"two")
    with pytest.raises(InputError, match="`data` must be the archive of the study's other trials"):
        run(spec, tmp_path)
    archive.unlink()
    assert run(spec, tmp_path)  # what is done needs it no more


@pytest.mark.plain
def test_a_process_is_dead_once_its_lock_is_free():
    import subprocess
    import sys

    code = "import json; from keras_wsgcn.studies.liveness import own_life;" + (
        "print(json.dumps(own_life()), flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    life = json.loads(process.stdout.readline())
    assert not liveness.is_dead(life)
    process.kill()
    process.wait()
    assert liveness.is_dead(life)
    assert not liveness.is_dead(liveness.own_life())
    assert not liveness.is_dead({**life, "place": "elsewhere"})


def test_workers_must_be_a_number(tmp_path):
    with pytest.raises(InputError, match="`workers` must be an integer of at least 1"):
        run(spec_of(FIXED), tmp_path, workers=0)
    assert not list(tmp_path.iterdir())


def test_a_study_without_seeds_trains_nothing(tmp_path):
    assert run(spec_of(FIXED, seeds=[]), tmp_path)
    assert not list(tmp_path.iterdir())


def test_names_of_studies():
    assert study_names(spec_of(FIXED)) == ["fixed"]
    assert study_names(spec_of(SEARCH, grid=[])) == ["search"]
    two = spec_of(SEARCH, grid=[{"scheme": ["pre_agg", "post_agg"]}])
    assert study_names(two) == ["search: pre_agg", "search: post_agg"]


@pytest.mark.plain
def test_a_worker_can_stop_after_its_share(tmp_path, stand_in):
    spec = spec_of(FIXED)
    storage = open_storage(workers.storage_of(spec, tmp_path, None))
    slots = plan(spec, tmp_path, None)
    assert not workers.work(spec, slots, tmp_path, storage, verbose=False, most=3)
    assert len(stand_in.trained) == 3
    assert workers.work(spec, slots, tmp_path, storage, verbose=False, most=3)
    assert len(stand_in.trained) == 4

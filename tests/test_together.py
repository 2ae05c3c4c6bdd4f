"""Several models trained at once are what each would be alone, whatever the others do."""

# ruff: noqa: F401, F811 (the fixture `data` is another file's)

import dataclasses

import keras
import numpy as np
import pandas as pd
import pytest
import train as train_command
from test_training import SMALL, StopAfter, assert_same_weights, data

from keras_wsgcn import InputError, load_model
from keras_wsgcn.studies import trials as study_trials
from keras_wsgcn.studies.results import read_storage
from keras_wsgcn.studies.spec import StudySpec
from keras_wsgcn.studies.workers import run
from keras_wsgcn.training import DivergenceError, TrainResult, train, train_together

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone maps over models")
CONFIGS = [dataclasses.replace(SMALL, seed=seed) for seed in range(3)]
NUMBERS = ["epoch", "loss", "mpjpe_mm", "val_mpjpe_mm", "learning_rate"]


def folders_in(folder):
    return [folder / str(config.seed) for config in CONFIGS]


@pytest.fixture(scope="module")
def together(data, tmp_path_factory):
    folders = folders_in(tmp_path_factory.mktemp("together"))
    return train_together(CONFIGS, data, folders, verbose=False)


@on_jax
def test_each_is_what_it_would_be_alone(together, data, tmp_path):
    number = 1
    alone = train(CONFIGS[number], data, tmp_path / "run", verbose=False)
    pd.testing.assert_frame_equal(
        together[number].history[NUMBERS], alone.history[NUMBERS], rtol=1e-3
    )
    for a, b in zip(
        load_model(tmp_path / "run" / "last.keras").get_weights(),
        load_model(together[number].folder / "last.keras").get_weights(),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=5e-3)


@on_jax
def test_resumed_they_end_as_undisturbed(together, data, tmp_path):
    """Killed before the last has saved its second epoch, which it makes up for."""
    folders = folders_in(tmp_path)
    callbacks = [[], [StopAfter(1)], []]
    with pytest.raises(KeyboardInterrupt):
        train_together(CONFIGS, data, folders, callbacks=callbacks, verbose=False)
    epochs = [len(pd.read_csv(folder / "history.csv")) for folder in folders]
    assert epochs == [2, 2, 1]
    resumed = train_together(CONFIGS, data, folders, verbose=False)
    for one, other in zip(resumed, together, strict=True):
        assert_same_weights(one.folder / "last.keras", other.folder / "last.keras")
        pd.testing.assert_frame_equal(one.history[NUMBERS], other.history[NUMBERS])


@on_jax
def test_one_that_diverges_leaves_the_others_alone(together, data, tmp_path):
    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                weights = self.model.get_weights()
                self.model.set_weights([np.full_like(weight, np.nan) for weight in weights])

    callbacks = [[], [Spoil()], []]
    results = train_together(
        CONFIGS, data, folders_in(tmp_path), callbacks=callbacks, verbose=False
    )
    assert isinstance(results[1], DivergenceError)
    assert "epoch 2" in str(results[1])
    for number in (0, 2):
        assert isinstance(results[number], TrainResult)
        last = [result.folder / "last.keras" for result in (results[number], together[number])]
        assert_same_weights(*last)


@on_jax
def test_another_kind_of_run_is_refused(data, tmp_path):
    configs = [SMALL, dataclasses.replace(SMALL, dropout=0.3)]
    with pytest.raises(InputError, match=r"`configs` must differ.*dropout=0.3"):
        train_together(configs, data, [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(InputError, match=r"`folders` must be a folder of its own"):
        train_together(CONFIGS, data, [tmp_path / "a"] * 3)
    with pytest.raises(InputError, match=r"`callbacks` must be a list for each"):
        train_together(CONFIGS, data, folders_in(tmp_path), callbacks=[[]])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX can")
def test_backends_that_cannot_say_so(data, tmp_path):
    with pytest.raises(InputError, match=r"`together` must be 1 but under JAX.*together=3"):
        train_together(CONFIGS, data, folders_in(tmp_path))
    assert not list(tmp_path.iterdir())


# --- studies ------------------------------------------------------------------------------------

STUDY = {
    "name": "joint",
    "data": {"source": "generated", "stride": 60},
    "config": {"channels": 4, "blocks": 0, "epochs": 2, "batch_size": 256, "dropout": 0.1},
    "grid": [{"scheme": ["pre_agg", "post_agg"]}],
    "seeds": [0, 1, 2],
}


@on_jax
def test_a_study_trains_the_seeds_of_a_cell_in_groups(tmp_path, monkeypatch, capsys):
    """Cut off in the middle, it goes on, and each run is trained once."""
    trained = []
    original = study_trials.train_together

    def counted(configs, *arguments, **options):
        trained.append((configs[0].scheme, [config.seed for config in configs]))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return original(configs, *arguments, **options)

    monkeypatch.setattr(study_trials, "train_together", counted)
    spec = StudySpec.from_config(STUDY)
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path, together=2, verbose=False)
    assert run(spec, tmp_path, together=2, verbose=False)
    groups = [(scheme, seeds) for scheme, seeds in trained if len(seeds) > 1]
    assert groups == [("pre_agg", [0, 1]), ("post_agg", [0, 1]), ("post_agg", [0, 1])]
    assert len(list(tmp_path.glob("trials/*/last.keras"))) == 6
    runs = read_storage(spec, tmp_path / "joint" / "study.sqlite3").runs
    finished = runs[runs["outcome"] == "finished"]
    assert sorted(zip(finished["scheme"], finished["seed"], strict=True)) == [
        (scheme, seed) for scheme in ("post_agg", "pre_agg") for seed in range(3)
    ]
    assert finished["val_mpjpe_mm"].nunique() == 6
    arguments = ["--from-trial", str(tmp_path / "joint" / "study.sqlite3"), "0"]
    train_command.main([*arguments, "--runs", str(tmp_path), "--name", "again"])
    assert "note: the trial ran with together '2', this is None" in capsys.readouterr().err


def test_a_search_goes_trial_by_trial(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_wsgcn.studies.workers.check_together", lambda count: count)
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2}}
    spec = StudySpec.from_config({**STUDY, "search": {"trials": 2, "space": space}})
    with pytest.raises(InputError, match=r"`together` must be 1 in a search.*together=2"):
        run(spec, tmp_path, together=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX can")
def test_a_study_says_so_before_it_begins(tmp_path):
    with pytest.raises(InputError, match=r"`together` must be 1 but under JAX"):
        run(StudySpec.from_config(STUDY), tmp_path, together=2)
    assert not list(tmp_path.iterdir())

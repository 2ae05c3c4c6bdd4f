"""Studies of few poses, and what stands in for their training."""

import json
import math
import zipfile

import keras
import numpy as np
import optuna
import pytest

from keras_wsgcn.data.poses import Splits
from keras_wsgcn.data.sources import load_splits
from keras_wsgcn.studies import trials as study_trials
from keras_wsgcn.studies.spec import StudySpec
from keras_wsgcn.studies.storage import open_storage, trials_by_slot
from keras_wsgcn.training import DivergenceError

FIXED = {
    "name": "fixed",
    "data": {"source": "generated", "stride": 60},
    "config": {"channels": 4, "blocks": 0, "epochs": 2, "batch_size": 128, "dropout": 0.1},
    "grid": [{"scheme": ["pre_agg", "post_agg"]}],
    "seeds": [0, 1],
}
SEARCH = {
    **FIXED,
    "name": "search",
    "grid": [{"scheme": "pre_agg"}],
    "seeds": [0],
    "search": {
        "trials": 6,
        "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
    },
}


@pytest.fixture(scope="module", autouse=True)
def few_poses():
    """Loads the generated poses once, and few of them."""
    full = load_splits("generated", stride=60)
    parts = {
        name: getattr(full, name).subset(np.arange(0, len(getattr(full, name)), 4))
        for name in ("train", "validation", "test")
    }
    few = Splits("generated", **parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_trials, "load_splits", lambda source, **options: few)
        yield few


class StandIn:
    """Stands in for the training: errors follow from the settings, epochs survive on disk."""

    def __init__(self):
        self.trained = []
        self.locks = []  # the files of locks, while it trains
        self.fails = {}  # the error in the first epoch of the n-th call

    def train(self, config, data, folder, *, callbacks, verbose):
        self.trained.append(folder.name)
        self.locks += [path.name for path in folder.parent.glob("*.lock")]
        folder.mkdir(parents=True, exist_ok=True)
        state = folder / "last.keras"
        history = study_trials._history(folder)
        for callback in callbacks:
            callback.on_train_begin()
        while len(history) < config.epochs:
            error = 50 + 20 * abs(math.log10(config.learning_rate) + 3) + config.seed
            row = {"epoch": len(history) + 1, "loss": 1e-3, "mpjpe_mm": error / 2}
            row |= {
                "val_mpjpe_mm": error + 10 / row["epoch"],
                "learning_rate": 1e-3,
                "seconds": 1.0,
            }
            history.append(row)
            with zipfile.ZipFile(state, "w") as file:
                file.writestr("keras_wsgcn.json", json.dumps({"training": {"history": history}}))
            if len(self.trained) in self.fails:
                raise self.fails.pop(len(self.trained))
            for callback in callbacks:
                callback.on_epoch_end(row["epoch"] - 1, row)
        return history

    def train_together(self, configs, data, folders, *, callbacks, **options):
        ((config,), (folder,), (own,)) = configs, folders, callbacks
        try:
            return [self.train(config, data, folder, callbacks=own, **options)]
        except DivergenceError as error:
            return [error]

    def record(self, history, data, *, test):
        errors = {"poses": 1, "mpjpe_mm": 9.0, "p_mpjpe_mm": 8.0}
        splits = ("validation", "test") if test else ("validation",)
        metrics = {"val_mpjpe_mm": history[-1]["val_mpjpe_mm"], "train_loss_m2": 1e-3}
        metrics |= {"test_subject_mean_mpjpe_mm": 9.0} if test else {}
        return {
            "metrics": {**metrics, "train_seconds": 2.0},
            "subjects": {split: {"7": errors} for split in splits},
            "history": history,
            "environment": {"backend": keras.backend.backend()},
        }


@pytest.fixture
def stand_in(monkeypatch):
    fake = StandIn()
    monkeypatch.setattr(study_trials, "train_together", fake.train_together)
    monkeypatch.setattr(study_trials, "record_run", fake.record)
    monkeypatch.setattr(keras.utils, "clear_session", lambda: None)  # there is nothing to clear
    return fake


def spec_of(table, **changes):
    return StudySpec.from_config({**json.loads(json.dumps(table)), **changes})


def study_of(folder, name):
    storage = open_storage(folder / name / "study.sqlite3")
    (title,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=title, storage=storage)


def states(folder, name="fixed"):
    slots = trials_by_slot(study_of(folder, name))
    return {slot: [trial.state.name for trial in trials] for slot, trials in slots.items()}

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from keras_wsgcn import InputError, load_model
from keras_wsgcn.data.poses import Splits
from keras_wsgcn.data.sources import load_splits
from keras_wsgcn.environment import environment
from keras_wsgcn.evaluation import load_run_data
from keras_wsgcn.prediction import predict
from keras_wsgcn.recipes import TrainConfig
from keras_wsgcn.saving import read_metadata
from keras_wsgcn.training import DivergenceError, subject_mean_mm, train

SMALL = TrainConfig(
    scheme="pre_agg", channels=6, blocks=1, epochs=3, batch_size=64, dropout=0.2, learning_rate=5e-3
)


@pytest.fixture(scope="module")
def data():
    splits = load_splits("generated", stride=60)
    rows = np.arange(0, len(splits.train), 3)
    return Splits("small", splits.train.subset(rows), splits.validation, splits.test)


def weights_of(path):
    return load_model(path).get_weights()


def assert_same_weights(first, second):
    for a, b in zip(weights_of(first), weights_of(second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return train(SMALL, data, tmp_path_factory.mktemp("run") / "a", verbose=False)


@pytest.mark.plain
def test_the_machine_is_told_by_its_processor_and_cores():
    processor, cores = environment()["machine"].rsplit(", ", 1)
    assert cores == f"{os.cpu_count()} cores"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in (text := cpuinfo.read_text()):
        assert re.search(rf"^model name\s*: {re.escape(processor)}$", text, flags=re.MULTILINE)


def test_a_run_leaves_its_files(finished, data):
    folder = finished.folder
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "history.csv", "best.keras", "last.keras",
    }  # fmt: skip
    record = json.loads((folder / "config.json").read_text())
    assert TrainConfig.from_config(record["config"]) == SMALL
    assert record["data"]["name"] == "small"
    assert record["environment"]["backend"] == keras.backend.backend()
    history = pd.read_csv(folder / "history.csv")
    assert history.columns.tolist() == [
        "epoch", "loss", "mpjpe_mm", "val_mpjpe_mm", "learning_rate", "seconds",
    ]  # fmt: skip
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["loss"].iloc[-1] < 0.9 * history["loss"].iloc[0]


def test_the_best_model_is_the_one_of_the_lowest_validation_error(finished, data):
    error = subject_mean_mm(data.validation, predict(finished.model, data.validation.pose2d))
    assert error == pytest.approx(finished.history["val_mpjpe_mm"].min(), rel=1e-5)


def test_validation_error_is_the_mean_over_subjects(finished, data):
    poses = data.test  # two people
    predicted = predict(finished.model, poses.pose2d)
    distance = np.linalg.norm(predicted - predicted[:, :1] - poses.pose3d, axis=-1)
    means = [distance[poses.subject == s].mean() for s in np.unique(poses.subject)]
    assert subject_mean_mm(poses, predicted) == pytest.approx(1000 * np.mean(means), rel=1e-5)


def test_same_seed_same_numbers(finished, data, tmp_path):
    again = train(SMALL, data, tmp_path / "b", verbose=False)
    assert_same_weights(finished.folder / "last.keras", tmp_path / "b" / "last.keras")
    columns = ["loss", "mpjpe_mm", "val_mpjpe_mm", "learning_rate"]
    pd.testing.assert_frame_equal(again.history[columns], finished.history[columns])


def test_another_seed_other_numbers(finished, data, tmp_path):
    other = train(dataclasses.replace(SMALL, seed=1, epochs=1), data, tmp_path / "c", verbose=False)
    assert other.history["loss"][0] != finished.history["loss"][0]


class StopAfter(keras.callbacks.Callback):
    """Dies like a process that is killed between two epochs."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_as_an_undisturbed_one(finished, data, tmp_path):
    """Dropout and shuffling are on: both must continue where they were."""
    folder = tmp_path / "d"
    for epoch in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            train(SMALL, data, folder, callbacks=[StopAfter(epoch)], verbose=False)
        assert len(pd.read_csv(folder / "history.csv")) == epoch + 1
    resumed = train(SMALL, data, folder, verbose=False)
    assert_same_weights(finished.folder / "last.keras", folder / "last.keras")
    assert_same_weights(finished.folder / "best.keras", folder / "best.keras")
    assert resumed.history["loss"].tolist() == finished.history["loss"].tolist()


@pytest.mark.plain
def test_a_run_that_goes_on_elsewhere_says_so(data, tmp_path, monkeypatch, capsys):
    def call(epoch=None, **ran_on):
        monkeypatch.setattr("keras_wsgcn.training.environment", lambda: ran_on)
        callbacks = [] if epoch is None else [StopAfter(epoch)]
        with contextlib.suppress(KeyboardInterrupt):
            train(SMALL, data, tmp_path / "run", callbacks=callbacks)
        record = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
        notes = [line for line in capsys.readouterr().out.splitlines() if "goes on" in line]
        return record["environment"], record.get("resumed", []), notes

    first = {"backend": "a", "a": "1.0", "commit": "c"}
    second = {"backend": "b", "b": "2.0", "commit": "c"}
    assert call(epoch=0, **first) == (first, [], [])
    changed = ["run goes on, not as it began: backend a -> b; a 1.0 -> None; b None -> 2.0"]
    resumed = [{"epoch": 1, "environment": second}]
    assert call(epoch=1, **second) == (first, resumed, changed)
    assert call(**second) == (first, resumed, [])
    assert call(**first) == (first, resumed, []), "finished, nothing went on"


on_torch = pytest.mark.skipif(keras.backend.backend() != "torch", reason="others always compile")


@on_torch
def test_a_compiled_run_resumes_as_well(data, tmp_path, monkeypatch):
    import torch

    compiled, original = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or original(f))
    config = dataclasses.replace(SMALL, jit_compile=True)
    whole = train(config, data, tmp_path / "whole", verbose=False)
    with pytest.raises(KeyboardInterrupt):
        train(config, data, tmp_path / "cut", callbacks=[StopAfter(0)], verbose=False)
    train(config, data, tmp_path / "cut", verbose=False)
    assert_same_weights(whole.folder / "last.keras", tmp_path / "cut" / "last.keras")
    assert len(compiled) == 3, "each of the three calls compiles its step"


@on_torch
@pytest.mark.parametrize(
    ("lack", "reason"),
    [("g++", "no C.. compiler"), ("cuda", "a GPU"), ("float16", "'mixed_float16'")],
)
def test_what_cannot_be_compiled_is_refused(data, tmp_path, monkeypatch, lack, reason):
    import torch

    if lack == "cuda":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if lack == "g++":
        monkeypatch.setattr("shutil.which", lambda name: None)
    precision = "mixed_float16" if lack == "float16" else "float32"
    config = dataclasses.replace(SMALL, jit_compile=True, precision=precision)
    with pytest.raises(InputError, match=rf"`jit_compile` .* where .*{reason}.*jit_compile=True"):
        train(config, data, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_finished_run_returns_at_once(finished, data, capsys):
    before = (finished.folder / "last.keras").stat().st_mtime_ns
    again = train(SMALL, data, finished.folder)
    assert (finished.folder / "last.keras").stat().st_mtime_ns == before
    assert again.history["loss"].tolist() == finished.history["loss"].tolist()
    assert capsys.readouterr().out == ""


@pytest.mark.plain
def test_a_history_that_a_kill_left_behind_is_written_anew(
    data, finished, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "a"
    shutil.copytree(finished.folder, folder)
    lines = (folder / "history.csv").read_text().splitlines(keepends=True)
    (folder / "history.csv").write_text("".join(lines[:-1]))
    with monkeypatch.context() as patch:

        def refuse(path, text):
            raise PermissionError(13, "open elsewhere", str(path))

        patch.setattr("keras_wsgcn.training.write_text", refuse)
        train(SMALL, data, folder, verbose=False)  # goes on, for `last.keras` has it as well
    assert "open elsewhere" in capsys.readouterr().err
    assert (folder / "history.csv").read_text() == "".join(lines[:-1])
    train(SMALL, data, folder, verbose=False)
    assert (folder / "history.csv").read_text() == "".join(lines)


def test_a_folder_of_another_run_is_refused(finished, data):
    with pytest.raises(InputError, match=r"`folder` must be new.*config\.seed"):
        train(dataclasses.replace(SMALL, seed=5), data, finished.folder)
    noise = np.random.default_rng(0).normal(0, 0.01, data.train.pose2d.shape).astype("float32")
    noisy = dataclasses.replace(data.train, pose2d=data.train.pose2d + noise)
    for other in (
        Splits("small", noisy, data.validation, data.test),
        Splits("small", data.train, data.test, data.validation),
    ):
        with pytest.raises(InputError, match=r"`folder` must be new.*data\.digest"):
            train(SMALL, other, finished.folder)


@pytest.mark.plain
def test_a_run_of_before_is_taken_for_what_it_was(finished, data, tmp_path):
    """Older versions did not record as much of the data."""
    folder = shutil.copytree(finished.folder, tmp_path / "old")
    record = json.loads((folder / "config.json").read_text())
    for older in ({"digest": ""}, {}):
        record["data"] = {"name": "small", "train_poses": len(data.train), **older}
        (folder / "config.json").write_text(json.dumps(record))
        assert len(train(SMALL, data, folder, verbose=False).history) == 3
    with pytest.raises(InputError, match=r"data\.train_poses"):
        train(SMALL, Splits("small", data.validation, data.train, data.test), folder)
    record["data"] |= {"experiment": "mine", "source": "my own motions"}  # facts could be anything
    (folder / "config.json").write_text(json.dumps(record))
    assert len(train(SMALL, data, folder, verbose=False).history) == 3
    for broken in ([], None, 5, {"name": "small", "train_poses": {}}):
        (folder / "config.json").write_text(json.dumps({**record, "data": broken}))
        with pytest.raises(InputError, match="`folder` must be new"):
            train(SMALL, data, folder)


@pytest.mark.plain
def test_what_load_run_data_cannot_load_is_said(finished, data, tmp_path):
    with pytest.raises(InputError, match="must say where it is from"):
        load_run_data(finished.folder)
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    record = json.loads((folder / "config.json").read_text())
    record["data"]["source"] = "generated"
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="`data` must be left out for a run on 'generated'"):
        load_run_data(folder, tmp_path / "motions.npz")


def test_patience_stops_early(data, tmp_path):
    # At such a rate the first epoch stays the best.
    config = dataclasses.replace(
        SMALL, epochs=9, patience=2, learning_rate=1e-9, schedule="constant"
    )
    history = train(config, data, tmp_path / "e", verbose=False).history
    best = int(history["val_mpjpe_mm"].idxmin())
    assert len(history) == best + 3 or len(history) == 9
    assert len(history) < 9 or history["val_mpjpe_mm"].idxmin() > 6


def test_callbacks_hear_of_every_epoch(data, tmp_path):
    heard = []

    class Listener(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            assert (self.params["epochs"], self.params["verbose"]) == (2, 0)
            heard.append("begin")

        def on_epoch_end(self, epoch, logs=None):
            heard.append((epoch, sorted(logs)))

        def on_train_end(self, logs=None):
            heard.append(("end", sorted(logs)))

    config = dataclasses.replace(SMALL, epochs=2)
    train(config, data, tmp_path / "f", callbacks=[Listener()], verbose=False)
    names = ["learning_rate", "loss", "mpjpe_mm", "seconds", "val_mpjpe_mm"]
    assert heard == ["begin", (0, names), (1, names), ("end", names)]


def test_what_is_no_list_of_callbacks_is_refused(data, tmp_path):
    for callbacks in (keras.callbacks.TerminateOnNaN(), [print]):
        with pytest.raises(InputError, match="`callbacks` must be a list of Keras callbacks"):
            train(SMALL, data, tmp_path / "f", callbacks=callbacks)
    assert not list(tmp_path.iterdir())


def test_a_callback_can_end_the_run(data, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    result = train(SMALL, data, tmp_path / "s", callbacks=[Stop()], verbose=False)
    assert len(result.history) == 2
    assert len(train(SMALL, data, tmp_path / "s", verbose=False).history) == 3


def test_what_a_user_draws_stays_random(data, tmp_path):
    config = dataclasses.replace(SMALL, epochs=1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    wanted = random.random(), np.random.uniform()  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    train(config, data, tmp_path / "r", verbose=False)
    assert (random.random(), np.random.uniform()) == wanted  # noqa: NPY002


def test_numbers_of_numpy_s_are_numbers(data, tmp_path):
    config = dataclasses.replace(
        SMALL,
        channels=np.int64(6),
        epochs=np.int32(1),
        seed=np.int64(0),
        dropout=np.float32(0.25),
        non_local=np.bool_(False),
    )
    assert config == dataclasses.replace(SMALL, epochs=1, dropout=0.25)
    splits = load_splits("generated", stride=np.int64(60))
    for _ in range(2):
        train(config, splits, tmp_path / "n", verbose=False)
    record = json.loads((tmp_path / "n" / "config.json").read_text())
    assert (record["config"]["channels"], record["data"]["stride"]) == (6, 60)


def test_divergence_keeps_the_last_good_epoch(data, tmp_path):
    config = dataclasses.replace(SMALL, learning_rate=1e30, schedule="constant", clip_norm=None)
    with pytest.raises(
        DivergenceError, match=r"finite at step 2, in epoch 1, at .* 1e\+30\. .*: none"
    ):
        train(config, data, tmp_path / "g", verbose=False)
    assert not (tmp_path / "g" / "history.csv").exists()


def test_refuses_data_that_does_not_fit(data, tmp_path):
    with pytest.raises(InputError, match="skeleton 'h36m_17'"):
        train(dataclasses.replace(SMALL, skeleton="h36m_17"), data, tmp_path / "h")
    with pytest.raises(InputError, match="`batch_size` must not exceed"):
        train(dataclasses.replace(SMALL, batch_size=10**6), data, tmp_path / "h")
    nobody = data.validation.subset(np.array([], int))
    with pytest.raises(InputError, match="`data` must have validation poses"):
        train(SMALL, dataclasses.replace(data, validation=nobody), tmp_path / "h")
    assert not (tmp_path / "h").exists()


def test_the_state_file_says_how_far_it_is(finished):
    training = read_metadata(finished.folder / "last.keras")["training"]
    assert len(training["history"]) == 3
    assert training["config"]["channels"] == 6


def test_training_needs_no_keras_random_state(finished, data, tmp_path):
    """What ran before in the process does not change a run."""
    np.random.default_rng().normal(size=3)
    keras.utils.set_random_seed(99)
    train(dataclasses.replace(SMALL, epochs=3), data, tmp_path / "i", verbose=False)
    assert_same_weights(finished.folder / "last.keras", tmp_path / "i" / "last.keras")

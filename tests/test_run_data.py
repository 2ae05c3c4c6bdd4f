"""What a run says of its data, and that it is found again."""

import dataclasses
import json

import numpy as np
import pytest

from keras_wsgcn import InputError
from keras_wsgcn.data.archive import save_archive
from keras_wsgcn.data.motions import generate_motions
from keras_wsgcn.data.sources import load_splits
from keras_wsgcn.evaluation import load_run_data
from keras_wsgcn.recipes import TrainConfig
from keras_wsgcn.training import train

pytestmark = pytest.mark.plain

SMALL = TrainConfig(scheme="pre_agg", channels=6, blocks=1, epochs=1, batch_size=64)


def test_changed_splits_are_no_longer_those_that_were_loaded(tmp_path):
    """`replace` is how one adds noise, or picks rows."""
    splits = load_splits("generated", stride=60)
    train(SMALL, splits, tmp_path / "a", verbose=False)
    train(SMALL, load_splits("generated", stride=60, seed=0, keep_unseen=False), tmp_path / "a")
    noisy = dataclasses.replace(splits.train, pose2d=splits.train.pose2d + np.float32(0.01))
    for other in (
        dataclasses.replace(splits, train=noisy),
        dataclasses.replace(splits, validation=splits.test, test=splits.validation),
    ):
        with pytest.raises(InputError, match=r"`folder` must be new.*data\.source"):
            train(SMALL, other, tmp_path / "a")


def test_a_run_is_evaluated_on_the_data_that_it_says(tmp_path):
    folder = tmp_path / "run"
    train(SMALL, load_splits("generated", stride=60), folder, verbose=False)
    assert set(load_run_data(folder).test.subject.tolist()) == {7, 8}
    record = json.loads((folder / "config.json").read_text())
    for changed in ({"validation_subjects": [7]}, {"train_poses": 7}):
        text = json.dumps({**record, "data": record["data"] | changed})
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match="`data` must be what the run was trained on"):
            load_run_data(folder)


def test_a_run_knows_its_archive_wherever_it_lies(tmp_path):
    """And by its options, of which only those that were given are said."""
    archive, moved = tmp_path / "motions.npz", tmp_path / "elsewhere" / "renamed.npz"
    save_archive(archive, generate_motions(takes=1, seconds=2.0))
    config = dataclasses.replace(SMALL, batch_size=16)
    folder = tmp_path / "run"
    splits = load_splits(archive, validation=[6], test=[7, 8], stride=3)
    train(config, splits, folder, verbose=False)
    moved.parent.mkdir()
    archive.rename(moved)  # and its name
    with pytest.raises(InputError, match=r"config\.json: .*could not be opened"):
        load_run_data(folder)
    again = load_run_data(folder, moved)
    np.testing.assert_array_equal(again.test.pose2d, splits.test.pose2d)
    again = load_splits(moved, validation=(6,), test=(8, 7), stride=3, noise_px=0)
    assert len(train(config, again, folder, verbose=False).history) == 1
    other = load_splits(moved, validation=[6], test=[7, 8], stride=3, noise_px=2.0)
    with pytest.raises(InputError, match=r"differs in \['data\.noise_px'\]"):
        train(config, other, folder)
    save_archive(moved, generate_motions(takes=1, seconds=2.0, seed=1))
    with pytest.raises(InputError, match=r"trained on, .*'digest'"):
        load_run_data(folder, moved)

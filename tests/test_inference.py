"""The record of lifted people, and what lifting refuses; whole files are in `test_predict.py`."""

import json

import numpy as np
import pytest
from detector import track_of

from keras_wsgcn import inference
from keras_wsgcn.errors import InputError
from keras_wsgcn.inference import PoseSequence, lift_tracks, lift_tracks_with
from keras_wsgcn.models import build_model
from keras_wsgcn.skeletons import h36m_16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pose3d": np.zeros((2, 3, 17, 3))}, "`pose3d` must have the shape"),
        ({"pose2d": np.zeros((2, 4, 16, 2))}, "`pose2d` must have the shape"),
        ({"pose2d": np.full((2, 3, 16, 2), np.inf)}, "`pose2d` must be finite"),
        ({"people": (1,)}, "`people` must hold 2"),
        ({"people": (1, 1)}, "`people` must hold 2"),
        ({"people": (np.int64(1), 1)}, "`people` must hold 2"),
        ({"people": (1, "1")}, "`people` must hold 2"),
        ({"image_size": (10, 0)}, "`image_size` must be"),
        ({"fps": 0}, "`fps` must be"),
        ({"first_frame": -1}, "`first_frame` must be"),
        ({"origin": np.full((2, 3, 16), 9)}, "`origin` must have"),
    ],
)
def test_sequences_that_are_none(changes, words):
    fields = dict(
        pose3d=np.zeros((2, 3, 16, 3)), pose2d=np.zeros((2, 3, 16, 2)), skeleton=h36m_16,
        image_size=(10, 10), fps=30.0, people=(1, 2),
    )  # fmt: skip
    assert PoseSequence(**fields).lifted.all()
    with pytest.raises(InputError) as caught:
        PoseSequence(**{**fields, **changes})
    assert words in str(caught.value)


def test_lifting_without_people_or_with_too_many_frames(monkeypatch):
    model = build_model("post_agg", channels=4, blocks=1)
    with pytest.raises(InputError, match="`tracks` must hold"):
        lift_tracks(model, [], (10, 10))
    monkeypatch.setattr(inference, "MAX_POSES", 5)
    with pytest.raises(InputError, match="at most 5 poses"):
        lift_tracks(model, [track_of(np.ones((3, 17, 3)))] * 2, (10, 10))


def test_numbers_of_numpys_are_written(tmp_path):
    sequence = PoseSequence(
        pose3d=np.zeros((2, 3, 16, 3)), pose2d=np.zeros((2, 3, 16, 2)), skeleton=h36m_16,
        image_size=np.array([10, 20]), fps=np.float32(25), people=tuple(np.arange(2)),
        first_frame=np.int64(4),
    )  # fmt: skip
    for suffix in inference.WRITERS:
        inference.save_poses(tmp_path / f"poses{suffix}", sequence)
    written = json.loads((tmp_path / "poses.json").read_text(encoding="utf-8"))
    assert (written["image_size"], written["fps"]) == ([10, 20], 25.0)
    assert [person["person"] for person in written["people"]] == [0, 1]
    assert type(track_of(np.ones((3, 17, 3)), person=np.int64(2)).person) is int


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"fps": 0.0}, "`fps`"), ({"image_size": (0, 1)}, "`image_size`"), ({}, "`people`")],
)
def test_what_a_sequence_refuses_is_refused_before_anything_is_lifted(arguments, words):
    def lift(pixels, image_size):
        raise AssertionError("lifted first")

    tracks = [track_of(np.ones((3, 17, 3)))] * (1 if arguments else 2)
    with pytest.raises(InputError, match=words):
        lift_tracks_with(lift, h36m_16, tracks, **{"image_size": (10, 10), **arguments})

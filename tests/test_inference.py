"""The record of lifted people, and what lifting refuses; whole files are in `test_predict.py`."""

import numpy as np
import pytest
from detector import track_of

from keras_wsgcn import inference
from keras_wsgcn.errors import InputError
from keras_wsgcn.inference import PoseSequence, lift_tracks
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

import json

import keras
import numpy as np
import pytest
from testing import lift_by_oracle

from keras_wsgcn import InputError, load_pretrained, pretrained
from keras_wsgcn.data.cmu import four_cameras, varied_cameras
from keras_wsgcn.data.motions import generate_motions
from keras_wsgcn.data.poses import observe
from keras_wsgcn.evaluation import evaluate


@pytest.fixture(scope="module")
def walk():
    return observe(
        generate_motions(subjects=1, takes=1, seconds=4, actions=["Walking"]), four_cameras
    )


def test_it_lifts_a_walk_it_has_never_seen(walk):
    errors = evaluate(load_pretrained(), walk)
    assert errors["mpjpe_mm"].mean() < 100
    flat = 1000 * np.linalg.norm(walk.pose3d * (0, 0, 1), axis=-1).mean()
    assert errors["mpjpe_mm"].mean() < 0.8 * flat  # better than knowing x and y exactly


def test_the_card_states_errors_data_and_acknowledgement():
    for name in pretrained.names():
        record = json.loads((pretrained._FOLDER / f"{name}.json").read_text())
        text = (pretrained._FOLDER / f"{name}.md").read_text()
        assert record["sha256"] in text
        assert "mocap.cs.cmu.edu" in text
        assert "NSF EIA-0196217" in text
        assert "MPJPE, mean over subjects" in text


def test_what_is_known_of_it_is_in_the_metadata():
    metadata = load_pretrained().metadata
    assert metadata["training"]["data"] == "cmu24"
    assert metadata["params"] <= 1.1e6


def test_it_predicts_the_same_on_every_backend(walk):
    model, pose2d = load_pretrained(), walk.pose2d[:4]
    expected = lift_by_oracle(model, pose2d)
    np.testing.assert_allclose(model.predict(pose2d, verbose=0), expected, atol=1e-5)


def test_refuses_other_names_and_changed_weights(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"`name` must be one of .*cmu_small.*Received: "):
        load_pretrained("resnet")
    for path in pretrained._FOLDER.glob("cmu_small.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "cmu_small.weights.h5"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr(pretrained, "_FOLDER", tmp_path)
    with pytest.raises(InputError, match="SHA-256"):
        load_pretrained()


def test_the_card_s_errors_hold_under_any_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert {layer.compute_dtype for layer in load_pretrained().layers} == {"float32"}
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_varied_cameras_stand_all_around_and_follow_from_the_key():
    motion = generate_motions(subjects=1, takes=1, seconds=2, actions=["Walking"]).motions[0]
    cameras = varied_cameras(motion, count=40)
    again = varied_cameras(motion, count=40)
    centre = np.median(motion.positions[:, 0, :2], axis=0)
    for one, two in zip(cameras, again, strict=True):
        np.testing.assert_array_equal(one.position, two.position)
        assert 3.5 <= np.linalg.norm(one.position[:2] - centre) <= 7.0
        assert 0.5 <= one.position[2] <= 2.5
        assert 900 <= one.focal_length[0] <= 1500
    angles = np.arctan2(*(np.array([c.position[:2] for c in cameras]) - centre).T)
    assert np.ptp(angles) > 5

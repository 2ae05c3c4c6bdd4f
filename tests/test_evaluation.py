import dataclasses
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pandas as pd
import pytest

from keras_wsgcn import (
    InputError,
    TrainConfig,
    build_model,
    evaluation,
    export,
    load_model,
    load_splits,
    metrics,
    save_model,
    train,
)
from keras_wsgcn.evaluation import ERRORS, evaluate, headline, table_by, worst_median_best
from keras_wsgcn.prediction import predict
from keras_wsgcn.skeletons import Skeleton, h36m_16
from keras_wsgcn.training import subject_mean_mm

# Two subjects; walking has four poses, sitting one.
ERROR_ROWS = pd.DataFrame(
    {
        "subject": [1, 1, 1, 2, 2],
        "action": ["Walking", "Walking", "Sitting", "Walking", "Walking"],
        **{name: [10.0, 20.0, 60.0, 30.0, 50.0] for name in ERRORS},
    }
)


def test_predictions_are_aligned_at_the_root(monkeypatch):
    """Protocol 1: wherever a model puts the root, the pose around it is what counts."""
    poses = load_splits("generated", stride=300).test
    moved = poses.pose3d + np.float32([0.3, -0.2, 0.1])
    monkeypatch.setattr(evaluation, "predict", lambda model, pose2d: moved)
    errors = evaluate(build_model("pre_agg", channels=4, blocks=0), poses)
    np.testing.assert_allclose(errors[["mpjpe_mm", "n_mpjpe_mm"]], 0.0, atol=1e-3)
    assert subject_mean_mm(poses, moved) == pytest.approx(0.0, abs=1e-3)


def test_models_of_several_outputs_are_refused(generated):
    """Of a user's own making, with an auxiliary head."""
    pose2d = keras.Input((16, 2))
    heads = [keras.layers.Dense(3)(pose2d) for _ in range(2)]
    with pytest.raises(InputError, match="Received: 1 inputs and 2 outputs"):
        evaluate(keras.Model(pose2d, heads), generated.test)


def test_what_is_no_model_or_no_poses_is_refused(generated, tmp_path):
    """What a user has in hand: splits and the result of a training."""
    model, result = build_model("pre_agg", channels=4, blocks=0), generated
    config = TrainConfig(channels=4)
    for call, message in (
        (lambda: evaluate(model, generated), "`poses` must be a PoseDataset"),
        (lambda: evaluate(result, generated.test), "`model` must be a Model"),
        (lambda: save_model(result, tmp_path / "x.keras"), "`model` must be a Model"),
        (lambda: export(result, tmp_path / "x.onnx"), "`model` must be a Model"),
        (lambda: train(config, generated.test, tmp_path), "`data` must be a Splits"),
        (lambda: train("cmu", generated, tmp_path), "`config` must be a TrainConfig"),
        (lambda: load_model(model), "`path` must be a path"),
    ):
        with pytest.raises(InputError, match=f"{message}.*Received: .* of type"):
            call()
    assert not list(tmp_path.iterdir())


def test_threads_may_share_a_model(generated):
    model = build_model("pre_agg", channels=4, blocks=0)
    poses = generated.test.subset(np.arange(1100) % len(generated.test))
    expected = evaluate(model, poses)
    with ThreadPoolExecutor(4) as pool:
        for errors in pool.map(lambda _: evaluate(model, poses), range(8)):
            pd.testing.assert_frame_equal(errors, expected)


def test_joints_in_another_order_are_refused(generated):
    names, parents = h36m_16.joint_names, h36m_16.parents
    order = [0, *range(4, 7), *range(1, 4), *range(7, 16)]  # the legs change places
    parents = [-1, *(order.index(parents[joint]) for joint in order[1:])]
    other = Skeleton("other", tuple(names[joint] for joint in order), tuple(parents))
    poses = dataclasses.replace(generated.test, skeleton=other)
    lifter, pose2d = build_model("pre_agg", channels=4, blocks=0), keras.Input((16, 2))
    for model in (lifter, keras.Model(pose2d, lifter(pose2d))):
        with pytest.raises(InputError, match="`poses` must have the model's 16 joints"):
            evaluate(model, poses)


def test_a_model_of_a_users_own_class_is_evaluated(generated):
    class Lifter(keras.Model):
        def __init__(self):
            super().__init__()
            self.lift = keras.layers.Dense(3)

        def call(self, inputs):
            return self.lift(inputs)

    assert len(evaluate(Lifter(), generated.test)) == len(generated.test)
    assert evaluate(Lifter(), generated.test.subset(np.array([], int))).empty


def test_every_pose_gets_its_errors(generated):
    poses = generated.test
    model = build_model("pre_agg", channels=4, blocks=1)
    errors = evaluate(model, poses)
    predicted = predict(model, poses.pose2d)
    predicted -= predicted[:, :1]
    assert len(errors) == len(poses)
    for column, function in (("mpjpe_mm", metrics.mpjpe), ("p_mpjpe_mm", metrics.p_mpjpe)):
        np.testing.assert_allclose(errors[column], function(poses.pose3d, predicted))
    by_hand = 1000 * np.linalg.norm(predicted - poses.pose3d, axis=-1).mean(axis=1)
    np.testing.assert_allclose(errors["mpjpe_mm"], by_hand, rtol=1e-5)
    assert errors["subject"].tolist() == poses.subject.tolist()
    assert errors["frame"].tolist() == poses.frame.tolist()


def test_no_poses_have_no_errors(generated):
    nobody = generated.test.subset(np.array([], int))
    assert len(evaluate(build_model("pre_agg", channels=4, blocks=0), nobody)) == 0


def test_tables_average_over_groups_not_poses():
    table = table_by(ERROR_ROWS, "action")
    assert table.loc["Walking", "mpjpe_mm"] == 27.5
    assert table.loc["Sitting", "mpjpe_mm"] == 60
    assert table.loc["average", "mpjpe_mm"] == (27.5 + 60) / 2
    assert table["poses"].to_dict() == {"Sitting": 1, "Walking": 4, "average": 5}
    assert table_by(ERROR_ROWS, "subject").loc["average", "p_mpjpe_mm"] == 35


def test_headline_numbers():
    numbers = headline(ERROR_ROWS, seen_actions=("Walking",))
    assert numbers["subject_mean_mpjpe_mm"] == 35
    assert numbers["frame_mean_mpjpe_mm"] == 34
    assert numbers["action_mean_mpjpe_mm"] == 43.75
    assert numbers["seen_mpjpe_mm"] == 27.5
    assert numbers["unseen_p_mpjpe_mm"] == 60
    assert "seen_mpjpe_mm" not in headline(ERROR_ROWS)


def test_worst_median_best():
    assert worst_median_best(ERROR_ROWS).tolist() == [2, 3, 0]


def test_refuses_other_joints_and_other_groups(generated):
    poses = generated.test
    with pytest.raises(InputError, match=r"`poses` must fit.*17.*Received: "):
        evaluate(build_model("pre_agg", channels=4, blocks=0, skeleton="h36m_17"), poses)
    with pytest.raises(InputError, match="`by` must be one of"):
        table_by(ERROR_ROWS, "camera")

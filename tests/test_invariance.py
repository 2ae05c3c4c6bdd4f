"""What a number must not depend on."""

import keras
import numpy as np
import pytest

from keras_wsgcn import build_model, evaluate, load_splits, prediction, training
from keras_wsgcn.evaluation import headline


@pytest.fixture(scope="module")
def poses():
    test = load_splits("generated", stride=60).test
    return test.subset(np.arange(0, len(test), 2))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return build_model("pre_agg_decoupled", channels=8, kernel_gain=1.0)


def test_errors_do_not_depend_on_the_batch_size(model, poses, monkeypatch):
    whole = evaluate(model, poses)
    for batch in (1, 7, len(poses) - 1):
        monkeypatch.setattr(prediction, "PREDICT_BATCH", batch)
        few = evaluate(model, poses.subset(np.arange(60))) if batch == 1 else evaluate(model, poses)
        for column in ("mpjpe_mm", "p_mpjpe_mm"):
            np.testing.assert_allclose(few[column], whole[column][: len(few)], atol=1e-3)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="its pipeline is gone round")
def test_batches_are_of_one_size_and_need_no_pipeline(model, poses, monkeypatch):
    sizes, original = [], model.predict_on_batch
    monkeypatch.setattr(prediction, "PREDICT_BATCH", 7)
    monkeypatch.setattr(model, "predict_on_batch", lambda x: sizes.append(len(x)) or original(x))
    monkeypatch.setattr(model, "predict", None)
    assert prediction.predict(model, poses.pose2d[:30]).shape == (30, 16, 3)
    assert sizes == [6] * 5


def test_errors_do_not_depend_on_the_order_of_subjects(model, poses):
    subjects = np.unique(poses.subject)
    assert len(subjects) > 1
    turned = np.concatenate([np.flatnonzero(poses.subject == s) for s in subjects[::-1]])
    assert not np.array_equal(turned, np.arange(len(poses)))
    one, other = evaluate(model, poses), evaluate(model, poses.subset(turned))
    for name, value in headline(one).items():
        assert headline(other)[name] == pytest.approx(value, rel=1e-6), name
    predicted = prediction.predict(model, poses.pose2d)
    assert training.subject_mean_mm(poses.subset(turned), predicted[turned]) == pytest.approx(
        training.subject_mean_mm(poses, predicted), rel=1e-6
    )

"""Keras's own `model.export`, of any scheme: the files predict what the model does."""

import contextlib

import keras
import numpy as np
import pytest
from test_export import randomise

from keras_wsgcn import SCHEMES, build_model

BACKEND = keras.backend.backend()
# What Keras writes under a backend with this project's packages: the first of all schemes, each of
# one that gathers joints, and takes its affinities from logits.
FORMATS = {
    "tensorflow": ("tf_saved_model", "onnx", "openvino"),
    "jax": ("tf_saved_model",),
    "torch": ("onnx", "openvino"),
}[BACKEND]


def open_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pose2d: session.run(None, {name: pose2d})[0]


def open_openvino(path):
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda pose2d: compiled(pose2d)[0]


def open_savedmodel(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    return lambda pose2d: loaded.serve(pose2d).numpy()


SUFFIX_AND_OPEN = {
    "tf_saved_model": ("", open_savedmodel),
    "onnx": (".onnx", open_onnx),
    "openvino": (".xml", open_openvino),
}


# What other packages say where they do not fit each other.
OTHERS = {
    "failed to deserialize portable artifact": "TensorFlow is older than what this JAX writes",
    "name 'tensorflow' is not defined": "OpenVINO finds no TensorFlow under Python 3.13",
}


@contextlib.contextmanager
def skipped_where_others_cannot():
    try:
        yield
    except Exception as error:
        for words, reason in OTHERS.items():
            if words in str(error):
                pytest.skip(reason)
        raise


@pytest.mark.parametrize(
    ("format", "scheme", "affinity"),
    [
        *((FORMATS[0], scheme, "fixed") for scheme in SCHEMES),
        *((format, "no_sharing", "learned") for format in FORMATS),
    ],
)
def test_keras_exports_every_scheme(format, scheme, affinity, rng, tmp_path):
    size = {"channels": 4, "blocks": 0, "non_local": scheme == "no_sharing"}
    model = randomise(build_model(scheme, affinity=affinity, **size), rng)
    pose2d = rng.uniform(-1, 1, (5, 16, 2)).astype("float32")
    expected = keras.ops.convert_to_numpy(model(pose2d))  # called: to ONNX Keras wants that
    suffix, opened = SUFFIX_AND_OPEN[format]
    path = str(tmp_path / f"lifter{suffix}")
    assert expected.std() > 0.01
    with skipped_where_others_cannot():
        model.export(path, format=format, verbose=False)
        lift = opened(path)
        lifted = {batch: lift(pose2d[:batch]) for batch in (5, 1)}
    for batch, found in lifted.items():
        np.testing.assert_allclose(found, expected[:batch], atol=1e-5)

"""Exports: what is written, that it predicts the same, and that nothing appears half done."""

import json
import os

import keras
import numpy as np
import pytest

from keras_wsgcn import (
    SCHEMES,
    ExportError,
    GraphConv,
    InputError,
    PoseDataset,
    Scheme,
    Skeleton,
    build_model,
    export,
    load_splits,
    mpjpe,
    open_exported,
    save_model,
    skeletons,
)
from keras_wsgcn.exporting import FORMATS, SIGNATURES, exports, inference_model
from keras_wsgcn.layers import BatchNormalization, Turn
from keras_wsgcn.prediction import predict

TENSORFLOW = keras.backend.backend() == "tensorflow"
written_once = pytest.mark.skipif(
    not TENSORFLOW, reason="TensorFlow writes it, whatever the backend, in a process of its own"
)


def randomise(model, rng):
    """Weights, means and variances as after a training, so that the outputs are no zeros."""
    for weight in model.weights:
        value = rng.normal(size=weight.shape) * 0.2
        if "variance" in weight.path or "gamma" in weight.path:
            value = 1.0 + np.abs(value)
        if "seed" not in weight.path:
            weight.assign(value.astype(weight.dtype))
    return model


@pytest.fixture
def model(rng):
    return randomise(build_model("pre_agg_decoupled", channels=16, blocks=1), rng)


@pytest.fixture
def pose2d(rng):
    return rng.uniform(-1, 1, (5, 16, 2)).astype("float32")


# --- the inference model --------------------------------------------------------------------------


# With non-local blocks `make test` tries one scheme of each kind, `make test-slow` all of them.
OFTEN = ("full_sharing", "post_agg_decoupled")


@pytest.mark.parametrize(
    ("scheme", "non_local"),
    [
        *((scheme, False) for scheme in SCHEMES),
        *(pytest.param(s, True, marks=[] if s in OFTEN else pytest.mark.slow) for s in SCHEMES),
    ],
)
def test_folding_leaves_the_function_as_it_is(scheme, non_local, rng, pose2d):
    size = {"channels": 8, "blocks": 1, "dropout": 0.2, "affinity": "learned"}
    model = randomise(build_model(scheme, non_local=non_local, **size), rng)
    lean = inference_model(model)
    expected = model.predict(pose2d, verbose=0)
    assert expected.std() > 0.1
    np.testing.assert_allclose(lean.predict(pose2d, verbose=0), expected, rtol=1e-4, atol=2e-6)
    kinds = {type(layer).__name__ for layer in lean.layers}
    assert "BatchNormalization" not in kinds
    assert "Dropout" not in kinds
    assert lean.get_layer("input_conv").layout == "jbc"


def test_folding_leaves_the_model_as_it_was(model, pose2d):
    before = model.predict(pose2d, verbose=0)
    inference_model(model)
    np.testing.assert_array_equal(model.predict(pose2d, verbose=0), before)


def test_a_normalisation_that_cannot_be_folded_stays(rng, pose2d):
    """Its convolution has a second reader, an activation, or no bias."""
    inputs = keras.Input((16, 2))
    shared = GraphConv(4, "post_agg")(inputs)
    x = keras.layers.BatchNormalization(name="second_reader")(shared)
    x = keras.layers.Add()([x, shared])
    x = GraphConv(4, "post_agg", activation="relu")(x)
    x = keras.layers.BatchNormalization(name="active")(x)
    x = GraphConv(4, "post_agg", use_bias=False)(x)
    x = keras.layers.BatchNormalization(name="no_bias")(x)
    x = GraphConv(4, "post_agg")(x)
    x = keras.layers.BatchNormalization(name="foldable", center=False, scale=False)(x)
    model = randomise(keras.Model(inputs, GraphConv(3, "post_agg")(x)), rng)
    lean = inference_model(model)
    names = {layer.name for layer in lean.layers}
    assert {"second_reader", "active", "no_bias"} <= names
    assert "foldable" not in names
    np.testing.assert_allclose(
        lean.predict(pose2d, verbose=0), model.predict(pose2d, verbose=0), rtol=1e-4, atol=2e-6
    )


@pytest.mark.parametrize("axis", [1, -2])
def test_an_axis_counts_from_either_end(axis, rng, pose2d):
    inputs = keras.Input((16, 2))
    x = GraphConv(4, "pre_agg", layout="jcb", activation="relu")(Turn("bjc", "jcb")(inputs))
    x = GraphConv(3, "pre_agg", layout="jcb")(BatchNormalization(axis=axis)(x))
    model = randomise(keras.Model(inputs, Turn("jcb", "bjc")(x)), rng)
    np.testing.assert_allclose(
        inference_model(model).predict(pose2d, verbose=0),
        model.predict(pose2d, verbose=0), rtol=1e-4, atol=2e-6,
    )  # fmt: skip


def test_sequential_models_fold_too(rng, pose2d):
    layers = [
        GraphConv(4, "conv_style"),
        keras.layers.BatchNormalization(),
        GraphConv(3, "pre_agg"),
    ]
    model = randomise(keras.Sequential([keras.Input((16, 2)), *layers]), rng)
    lean = inference_model(model)
    assert len(lean.layers) == 3  # the input and two convolutions
    np.testing.assert_allclose(
        lean.predict(pose2d, verbose=0), model.predict(pose2d, verbose=0), rtol=1e-4, atol=2e-6
    )


# --- formats --------------------------------------------------------------------------------------


# Another backend than TensorFlow starts it for each; the parity table has them all.
@pytest.mark.parametrize("format", FORMATS if TENSORFLOW else ["savedmodel", "onnx"])
def test_exports_predict_what_the_model_does(format, model, pose2d, tmp_path):
    path = tmp_path / f"lifter{FORMATS[format].suffix}"
    done = export(model, path, format=format)
    assert 0 < done.parity_m <= 1e-5
    expected = model.predict(pose2d, verbose=0)
    assert expected.std() > 0.1
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    if format == "savedmodel" and not TENSORFLOW:
        return  # TensorFlow stays out of a process of JAX or torch; the export has compared
    for batch in (5, 1, 3):
        got = open_exported(done.path)(pose2d=pose2d[:batch])
        np.testing.assert_allclose(got, expected[:batch], atol=1e-5)
    lift = open_exported(done.path)
    for other in (pose2d.astype(float), pose2d.tolist()):
        np.testing.assert_allclose(lift(pose2d=other), expected, atol=1e-5)
    assert lift(pose2d=pose2d[:0]).shape == (0, 16, 3)
    with pytest.raises(InputError, match="`pose2d` must be an array of numbers"):
        lift(pose2d="poses")
    for wrong in (pose2d[:, :15], np.repeat(pose2d, 2, axis=1), pose2d[0], np.float32(1.0)):
        with pytest.raises(InputError, match=r"`pose2d` must have the shape \(batch, 16, 2\)"):
            lift(pose2d=wrong)
    with pytest.raises(InputError, match=r"inputs must be \['pose2d'\]. Received: \['pixels'\]"):
        lift(pixels=pose2d)
    if "serve_pixels" in done.signatures:
        size = np.tile(np.float32([[1920, 1080]]), (5, 1))
        pixels = (pose2d * 1920 + [1920, 1080]) / 2
        lift = open_exported(done.path, signature="serve_pixels")
        got = lift(pixels=pixels.astype("float32"), image_size=size)
        np.testing.assert_allclose(got, expected, atol=1e-5)
        with pytest.raises(InputError, match="as many as each other"):
            lift(pixels=pixels.astype("float32"), image_size=size[:3])
        got = lift(pixels=pixels.astype("float32"), image_size=size[:1])
        np.testing.assert_allclose(got, expected, atol=1e-5)


@written_once
def test_openvino_knows_what_is_no_number(model, pose2d, tmp_path):
    lift = open_exported(export(model, tmp_path / "lifter.xml", signature="serve_pixels").path)
    pixels = (pose2d * 1920 + [1920, 1080]).astype("float32") / 2
    pixels[1, 3, 0] = np.nan
    size = np.float32([[1920, 1080]])
    lost = np.isnan(lift(pixels=pixels, image_size=size)).any(axis=(1, 2))
    assert lost.tolist() == [False, True, False, False, False]
    assert np.isnan(lift(pixels=pixels, image_size=size * np.nan)).all()


@written_once
def test_onnx_can_hold_the_signature_for_pixels(model, pose2d, tmp_path):
    import onnx

    done = export(model, tmp_path / "lifter.onnx", signature="serve_pixels")
    assert done.signatures == ("serve_pixels",)
    properties = onnx.load(done.path).metadata_props
    check_card(json.loads(next(p.value for p in properties if p.key == "keras_wsgcn")))
    pixels = ((pose2d * 640 + [640, 480]) / 2).astype("float32")
    got = open_exported(done.path)(pixels=pixels, image_size=np.float32([[640, 480]] * 5))
    np.testing.assert_allclose(got, model.predict(pose2d, verbose=0), atol=1e-5)
    with pytest.raises(InputError, match="`signature` must be the one that the file holds"):
        open_exported(done.path, signature="serve")


@written_once
@pytest.mark.parametrize(
    ("scheme", "target"),
    # The last two gather, with a gradient of their own, which leaves an operator behind.
    [
        *((scheme, "lifter.tflite") for scheme in SCHEMES),
        *((scheme, "lifter") for scheme in ("conv_style", "no_sharing")),
    ],
)
def test_an_untrained_model_of_any_scheme_can_be_exported(scheme, target, tmp_path):
    """All of its biases are zero, which LiteRT's converter makes something else of."""
    untrained = build_model(scheme, channels=8, blocks=1, kernel_gain=1.0)
    assert export(untrained, tmp_path / target).parity_m <= 1e-5


@written_once
def test_own_skeleton_and_scheme_and_a_file_as_source(rng, tmp_path):
    skeleton = Skeleton("arm", ("shoulder", "elbow", "wrist"), (-1, 0, 1))
    scheme = Scheme("own", split="depth", per="target")
    model = randomise(build_model(scheme, channels=4, blocks=0, skeleton=skeleton), rng)
    save_model(model, tmp_path / "arm.keras")
    done = export(tmp_path / "arm.keras", tmp_path / "arm.tflite")
    pose2d = rng.uniform(-1, 1, (4, 3, 2)).astype("float32")
    got = open_exported(done.path)(pose2d=pose2d)
    np.testing.assert_allclose(got, model.predict(pose2d, verbose=0), atol=1e-5)


def test_mixed_precision_is_exported_in_full(rng, pose2d, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_model("pre_agg", channels=8, blocks=1)
    finally:
        keras.config.set_dtype_policy("float32")
    done = export(randomise(model, rng), tmp_path / "lifter.tflite")
    got = open_exported(done.path)(pose2d=pose2d)
    rough = np.asarray(model.predict(pose2d, verbose=0), dtype="float32")
    np.testing.assert_allclose(got, rough, atol=0.1)
    assert np.abs(got - rough).max() > 1e-4  # what half precision loses is not exported


@written_once
def test_int8_states_its_error_in_millimetres(model, rng, tmp_path):
    poses = 2000  # more than one chunk
    pose3d = rng.uniform(-1, 1, (poses, 16, 3))
    data = PoseDataset(
        pose2d=rng.uniform(-1, 1, (poses, 16, 2)),
        pose3d=pose3d - pose3d[:, :1],
        subject=np.ones(poses, int),
        action=np.full(poses, "walk"),
        take=np.full(poses, "1"),
        camera=np.zeros(poses, int),
        frame=np.arange(poses),
        skeleton=skeletons.get("h36m_16"),
    )
    done = export(model, tmp_path / "small.tflite", quantize="int8", data=data)
    whole = export(model, tmp_path / "whole.tflite").path
    assert done.path.stat().st_size < whole.stat().st_size
    assert done.parity_m > 1e-5
    lift = open_exported(done.path)
    got = np.concatenate([lift(pose2d=data.pose2d[start : start + 1024]) for start in (0, 1024)])
    expected = model.predict(data.pose2d, verbose=0)
    for name, found, rtol in (("int8", got, 1e-3), ("float32", expected, 1e-5)):
        aligned = found - found[:, :1]  # protocol 1
        error = mpjpe(data.pose3d, aligned).mean()
        np.testing.assert_allclose(done.errors_mm[name], error, rtol=rtol)
    np.testing.assert_allclose(done.errors_mm["difference"], mpjpe(expected, got).mean(), rtol=1e-3)


# --- TensorFlow Serving's layout ------------------------------------------------------------------


@written_once
def test_versions_count_up_and_are_never_replaced(model, tmp_path):
    folder = tmp_path / "lifter"
    assert export(model, folder).path == folder / "1"
    before = (folder / "1" / "saved_model.pb").read_bytes()
    (folder / "7").mkdir()
    assert export(model, folder).path == folder / "8"
    assert (folder / "1" / "saved_model.pb").read_bytes() == before
    assert not list((folder / "7").iterdir())


def check_card(card):
    """All that a client must know: shapes and units, joints in their order, root."""
    assert tuple(card["joint_names"]) == skeletons.h36m_16.joint_names
    assert card["root"] == "pelvis"
    assert set(card["inputs"]) == {"pose2d", "pixels", "image_size"}
    assert card["inputs"]["pose2d"].startswith("(batch, 16, 2), pixels / width * 2 -")
    assert card["outputs"]["pose3d"].startswith("(batch, 16, 3), metres, camera frame")


@written_once
def test_a_saved_model_holds_signatures_metadata_and_warm_up(model, tmp_path):
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    from keras_wsgcn.exporting import writers

    folder = export(model, tmp_path / "lifter").path
    loaded = tf.saved_model.load(str(folder))
    assert set(loaded.signatures) == {*SIGNATURES, "serving_default"}
    outputs = loaded.signatures["serve_pixels"].structured_outputs
    assert outputs["pose3d"].shape.as_list() == [None, 16, 3]
    metadata = json.loads((folder / writers.METADATA_FILE).read_text())
    assert metadata["scheme"] == "pre_agg_decoupled"
    check_card(metadata)
    seen = set()
    for record in tf.data.TFRecordDataset(str(folder / writers.WARMUP_FILE)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert request.model_spec.name == "lifter"
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        signature = request.model_spec.signature_name
        answer = loaded.signatures[signature](**{k: tf.constant(v) for k, v in inputs.items()})
        seen.add((signature, answer["pose3d"].shape[0]))
    assert seen == {(name, batch) for name in SIGNATURES for batch in (1, 64)}
    assert "BatchMatMulV2" in writers.operators(folder)
    assert writers.operators(folder) <= writers.STOCK_OPERATORS


@written_once
def test_foreign_operators_are_refused(model, tmp_path, monkeypatch):
    from keras_wsgcn.exporting import writers

    monkeypatch.setattr(writers, "STOCK_OPERATORS", writers.STOCK_OPERATORS - {"MatMul"})
    with pytest.raises(ExportError, match=r"operators that a server may lack.*MatMul"):
        export(model, tmp_path / "lifter")
    assert not list(tmp_path.iterdir())


# --- what goes wrong ------------------------------------------------------------------------------


@written_once
def test_too_large_a_difference_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "TOLERANCE_M", 1e-12)
    old = tmp_path / "lifter.tflite"
    old.write_bytes(b"old")
    with pytest.raises(ExportError, match="m from the Keras model"):
        export(model, old)
    assert old.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["lifter.tflite"]


def test_quantised_errors_are_of_the_model_s_joints(model, tmp_path):
    poses = load_splits("generated", stride=300, skeleton="h36m_17").test
    with pytest.raises(InputError, match=r"`data` must have the model's 16 joints.*h36m_17"):
        export(model, tmp_path / "m.tflite", quantize="int8", data=poses)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("m.h5", {}, "`path` must end in one of"),
        ("m.onnx", {"format": "litert"}, "`path` must end in '.tflite'"),
        ("m", {"format": "torchscript"}, "`format` must be one of"),
        ("m.onnx", {"signature": "predict"}, "`signature` must be one of"),
        ("m.tflite", {"signature": "serve"}, "`signature` must be None"),
        ("m.onnx", {"quantize": "int8"}, "`quantize` must be None"),
        ("m.tflite", {"quantize": "int4"}, "`quantize` must be one of"),
        ("m.tflite", {"data": object()}, "`data` must be None"),
        ("folder.onnx", {}, "`path` must not be a folder"),
        ("file", {}, "`path` must be a folder of versions"),
        ("old.xml", {}, "`path` must be new"),
    ],
)
def test_refuses_before_any_work(path, options, message, model, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "_expected", None)
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "old.bin").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=rf"{message}.*Received: "):
        export(model, tmp_path / path, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_no_lifter_is_refused(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = GraphConv(3, "pre_agg")

    pose3d = keras.Input((16, 3))
    wrong = (Own(), keras.Sequential([GraphConv(3, "pre_agg")]),
             keras.Model(pose3d, GraphConv(3, "pre_agg")(pose3d)))  # fmt: skip
    for other in wrong:
        with pytest.raises(InputError, match=r"`model` must be built, .*Received: .*input_shape="):
            export(other, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_loss_of_ones_own_is_no_matter(rng, pose2d):
    def own_loss(y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred))

    model = randomise(build_model("pre_agg", channels=4, blocks=0), rng)
    model.compile("adam", own_loss)
    np.testing.assert_allclose(
        predict(inference_model(model), pose2d), predict(model, pose2d), atol=1e-5
    )


def test_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the packages .*keras_wsgcn\[export\]"):
        export(model, tmp_path / "m.onnx")


def test_opening_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="`path` must exist"):
        open_exported(tmp_path / "m.onnx")

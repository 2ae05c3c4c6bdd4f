import json

import keras
import numpy as np
import pytest
from keras import ops
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes
from scipy.spatial.transform import Rotation

from keras_wsgcn import metrics
from keras_wsgcn.errors import InputError
from keras_wsgcn.metrics import MPJPE, PMPJPE

FUNCTIONS = [metrics.mpjpe, metrics.p_mpjpe, metrics.n_mpjpe, metrics.pck, metrics.auc]
KERAS_METRICS = [(MPJPE, metrics.mpjpe), (PMPJPE, metrics.p_mpjpe)]
RNG = np.random.default_rng


def some_poses(count=40, noise=0.05, seed=0):
    """Root-relative poses of the size of a body, in metres, and noisy predictions."""
    rng = RNG(seed)
    y_true = rng.normal(size=(count, 16, 3)) * [0.2, 0.5, 0.2]
    y_true -= y_true[:, :1]
    return y_true, y_true + rng.normal(size=y_true.shape) * noise


def similarity(poses, seed=1):
    """Each pose scaled, rotated and translated by random amounts."""
    rng = RNG(seed)
    count = len(poses)
    rotations = Rotation.random(count, rng=rng).as_matrix()
    scales = rng.uniform(0.2, 5.0, (count, 1, 1))
    return scales * poses @ rotations + rng.normal(size=(count, 1, 3))


# --- known values -------------------------------------------------------------------------------


def test_mpjpe_of_known_poses_is_in_millimetres_per_pose():
    y_true = np.zeros((2, 2, 3))
    y_pred = np.array([[[0, 0, 0], [0.3, 0.4, 0]], [[0, 0, 0.1], [0, 0, -0.3]]])
    np.testing.assert_allclose(metrics.mpjpe(y_true, y_pred), [250, 200])


def test_n_mpjpe_of_known_poses():
    y_true = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0.0]]] * 3)
    y_pred = np.array([2 * y_true[0], -2 * y_true[0], [[0, 0, 0], [1, 0, 0], [0, 0, 0]]])
    # Protocol of the reference: the scale may be negative. The third: scale 1, one joint 1 m off.
    np.testing.assert_allclose(metrics.n_mpjpe(y_true, y_pred), [0, 0, 1000 / 3], atol=1e-9)


def test_pck_and_auc_of_known_errors():
    y_true = np.zeros((4, 3))
    y_pred = np.array([[0, 0, 0], [0.0501, 0, 0], [0, 0.1499, 0], [0, 0, 0.1501]])
    assert metrics.pck(y_true, y_pred) == 75
    assert metrics.pck(y_true, y_pred, threshold_mm=100) == 50
    # Thresholds above the error: 5..150 (30 of them), 55..150 (20), 150 (1), none; of 31.
    np.testing.assert_allclose(metrics.auc(y_true, y_pred), 100 * (30 + 20 + 1) / (4 * 31))


def test_a_joint_exactly_at_the_threshold_is_not_correct():
    y_pred = np.full((1, 3), [0.125, 0, 0])
    assert metrics.pck(np.zeros((1, 3)), y_pred, threshold_mm=125) == 0


# --- Procrustes ---------------------------------------------------------------------------------


def scipy_alignment(y_true, y_pred):
    """Per pose by SciPy, with the sign of the determinant of the rotation that it chose."""
    aligned, signs = [], []
    for x, y in zip(y_true, y_pred, strict=True):
        centre, x, y = x.mean(0), x - x.mean(0), y - y.mean(0)
        rotation, singular_sum = orthogonal_procrustes(y, x)
        aligned.append(centre + singular_sum / np.sum(y * y) * y @ rotation)
        signs.append(np.linalg.det(rotation))
    return np.array(aligned), np.array(signs)


@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
def test_alignment_equals_scipy_where_scipy_does_not_reflect(noise):
    y_true, y_pred = some_poses(60, noise)
    y_pred = similarity(y_pred)
    expected, signs = scipy_alignment(y_true, y_pred)
    proper = signs > 0
    assert proper.sum() > 20
    aligned = metrics.procrustes_align(y_true, y_pred)
    np.testing.assert_allclose(aligned[proper], expected[proper], atol=1e-11)


def test_residual_equals_scipy_spatial_procrustes():
    y_true, y_pred = some_poses(10)
    squares = ((metrics.procrustes_align(y_true, y_pred) - y_true) ** 2).sum((1, 2))
    size = ((y_true - y_true.mean(1, keepdims=True)) ** 2).sum((1, 2))
    disparity = [procrustes(x, y)[2] for x, y in zip(y_true, y_pred, strict=True)]
    np.testing.assert_allclose(squares / size, disparity, rtol=1e-9)


def best_rotation_by_svd(y_true, y_pred):
    """The textbook way (Kabsch, Umeyama), with the sign of the last direction corrected."""
    x = y_true - y_true.mean(1, keepdims=True)
    y = y_pred - y_pred.mean(1, keepdims=True)
    u, s, vt = np.linalg.svd(np.swapaxes(y, 1, 2) @ x)
    sign = np.sign(np.linalg.det(u @ vt))
    u[..., -1] *= sign[:, None]
    s[..., -1] *= sign
    scale = s.sum(-1) / (y * y).sum((1, 2))
    return scale[:, None, None] * y @ (u @ vt) + y_true.mean(1, keepdims=True)


@pytest.mark.parametrize("kind", ["mirrored", "unrelated", "thin", "far"])
def test_alignment_equals_the_svd_without_reflections(kind):
    y_true, y_pred = some_poses(200)
    if kind == "mirrored":
        y_pred = y_pred * [-1, 1, 1]
    elif kind == "unrelated":
        y_pred = RNG(5).normal(size=y_true.shape)
    elif kind == "thin":
        y_true, y_pred = y_true * [1e-3, 1, 1e-3], y_pred * [1e-3, 1, 1e-3]
    else:
        y_pred = y_pred + np.array([0, 0, 100])
    aligned = metrics.procrustes_align(y_true, y_pred)
    np.testing.assert_allclose(aligned, best_rotation_by_svd(y_true, y_pred), atol=1e-9)


def test_a_mirrored_pose_does_not_fit():
    y_true, _ = some_poses()
    assert metrics.p_mpjpe(y_true, y_true * [-1, 1, 1]).min() > 50


def test_similarity_transforms_leave_no_error():
    y_true, _ = some_poses()
    assert metrics.p_mpjpe(y_true, similarity(y_true)).max() < 1e-9


def test_p_mpjpe_ignores_how_the_prediction_stands():
    y_true, y_pred = some_poses()
    np.testing.assert_allclose(
        metrics.p_mpjpe(y_true, similarity(y_pred)), metrics.p_mpjpe(y_true, y_pred), rtol=1e-9
    )


def test_n_mpjpe_ignores_the_scale_of_the_prediction():
    y_true, y_pred = some_poses()
    np.testing.assert_allclose(
        metrics.n_mpjpe(y_true, 3 * y_pred), metrics.n_mpjpe(y_true, y_pred), rtol=1e-9
    )


def test_alignment_never_raises_the_squared_error():
    # Of the squared error it is true of each pose; of the mean distance it is not.
    y_true, y_pred = some_poses(noise=0.5)
    before = ((y_pred - y_true) ** 2).sum((1, 2))
    after = ((metrics.procrustes_align(y_true, y_pred) - y_true) ** 2).sum((1, 2))
    assert (after < before).all()


# --- degenerate poses ---------------------------------------------------------------------------

POSE = some_poses(1)[0][0]
POINT = np.tile([0.1, 0.2, 5.0], (16, 1))
LINE = np.linspace(-1, 1, 16)[:, None] * [[0.1, 0.2, 0.3]]
PLANE = POSE * [1, 1, 0]
SHAPES = {"pose": POSE, "point": POINT, "zero": 0 * POSE, "line": LINE, "plane": PLANE}
SHAPES |= {"tiny": 1e-200 * POSE, "huge": 1e100 * POSE, "nearly a point": POINT + 1e-16 * POSE}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("true", SHAPES)
@pytest.mark.parametrize("predicted", SHAPES)
def test_degenerate_poses_have_finite_errors(true, predicted):
    for function in FUNCTIONS:
        assert np.isfinite(function(SHAPES[true], SHAPES[predicted]))


def mean_distance_to_centre_mm(pose):
    return 1000 * np.linalg.norm(pose - pose.mean(0), axis=-1).mean()


@pytest.mark.parametrize("predicted", ["point", "zero", "nearly a point"])
def test_a_prediction_in_one_point_is_moved_to_the_centre(predicted):
    error = metrics.p_mpjpe(POSE, SHAPES[predicted])
    np.testing.assert_allclose(error, mean_distance_to_centre_mm(POSE))
    np.testing.assert_allclose(
        metrics.procrustes_align(POSE, SHAPES[predicted]), np.tile(POSE.mean(0), (16, 1))
    )


@pytest.mark.parametrize("true", ["point", "zero", "nearly a point"])
def test_a_truth_in_one_point_is_met_exactly(true):
    np.testing.assert_allclose(metrics.p_mpjpe(SHAPES[true], POSE), 0, atol=1e-9)


def test_lines_and_planes_fit_their_own_images():
    for shape in (LINE, PLANE, 1e-200 * POSE, 1e100 * POSE):
        moved = similarity(shape[None])[0]
        size = max(mean_distance_to_centre_mm(shape), 1e-190)
        assert metrics.p_mpjpe(shape, moved) < 1e-9 * max(size, 1)


def test_n_mpjpe_of_a_zero_prediction_is_the_length_of_the_truth():
    expected = 1000 * np.linalg.norm(POSE, axis=-1).mean()
    np.testing.assert_allclose(metrics.n_mpjpe(POSE, 0 * POSE), expected)


# --- what comes in and goes out -----------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
def test_shapes_of_the_batch_are_kept(function):
    y_true, y_pred = some_poses(6)
    flat = function(y_true, y_pred)
    assert flat.shape == (6,)
    assert flat.dtype == np.float64
    grid = function(y_true.reshape(2, 3, 16, 3), y_pred.reshape(2, 3, 16, 3))
    np.testing.assert_array_equal(grid, flat.reshape(2, 3))
    assert isinstance(function(y_true[0], y_pred[0]), float)
    assert function(y_true[:0], y_pred[:0]).shape == (0,)


def test_chunks_do_not_show(monkeypatch):
    y_true, y_pred = some_poses(25)
    whole = metrics.procrustes_align(y_true, y_pred)
    monkeypatch.setattr(metrics, "_CHUNK", 7)
    np.testing.assert_allclose(metrics.procrustes_align(y_true, y_pred), whole, atol=1e-14)


def test_lists_tensors_and_half_precision_are_taken():
    y_true, y_pred = (array.astype("float16") for array in some_poses(3))
    expected = metrics.mpjpe(y_true, y_pred)
    for convert in (np.ndarray.tolist, ops.convert_to_tensor):
        np.testing.assert_allclose(metrics.mpjpe(convert(y_true), convert(y_pred)), expected)


BAD = [
    (np.zeros((2, 16, 3)), np.zeros((3, 16, 3)), "same shape"),
    (np.zeros((2, 16, 3)), np.zeros((2, 17, 3)), "same shape"),
    (np.zeros((2, 16, 2)), np.zeros((2, 16, 2)), "joints, 3"),
    (np.zeros((2, 0, 3)), np.zeros((2, 0, 3)), "joints, 3"),
    (np.zeros(3), np.zeros(3), "joints, 3"),
    (np.full((1, 2, 3), np.nan), np.zeros((1, 2, 3)), "`y_true` must hold finite"),
    (np.zeros((1, 2, 3)), np.full((1, 2, 3), np.inf), "`y_pred` must hold finite"),
    (np.zeros((1, 2, 3)), [[["a", "b", "c"]] * 2], "`y_pred` must be an array of numbers"),
    (np.zeros((1, 2, 3)), np.zeros((1, 2, 3), complex), "`y_pred` must be an array of numbers"),
    (None, np.zeros((1, 2, 3)), "`y_true` must be an array of numbers"),
]


@pytest.mark.parametrize(("y_true", "y_pred", "message"), BAD)
@pytest.mark.parametrize("function", [*FUNCTIONS, metrics.procrustes_align])
def test_bad_poses_are_refused(function, y_true, y_pred, message):
    with pytest.raises(InputError, match=rf"{message}.*Received: "):
        function(y_true, y_pred)


@pytest.mark.parametrize("threshold_mm", [0, -1, np.nan, np.inf, "150", None, 1j])
def test_bad_thresholds_are_refused(threshold_mm):
    with pytest.raises(InputError, match=r"`threshold_mm` must be .* Received: threshold_mm="):
        metrics.pck(POSE, POSE, threshold_mm)


# --- Keras metrics ------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "function"), KERAS_METRICS)
def test_keras_metric_equals_the_function(metric, function):
    y_true, y_pred = some_poses(64)
    m = metric()
    for half in (slice(0, 40), slice(40, None)):
        m.update_state(y_true[half].astype("float32"), y_pred[half].astype("float32"))
    assert float(m.result()) == pytest.approx(function(y_true, y_pred).mean(), abs=1e-3)
    m.reset_state()
    assert float(m.result()) == 0


@pytest.mark.parametrize(("metric", "function"), KERAS_METRICS)
def test_keras_metric_weighs_samples(metric, function):
    y_true, y_pred = some_poses(8)
    weight = np.arange(8.0)
    expected = np.average(function(y_true, y_pred), weights=weight)
    for weights in (weight, weight[:, None]):
        result = metric()(y_true, y_pred, sample_weight=weights)
        assert float(result) == pytest.approx(expected, abs=1e-3)


def test_mpjpe_aligns_a_root_on_request(rng):
    y_true, y_pred = some_poses(8)
    y_pred += rng.normal(size=(8, 1, 3))
    expected = metrics.mpjpe(y_true - y_true[:, 3:4], y_pred - y_pred[:, 3:4]).mean()
    copy = keras.metrics.deserialize(keras.metrics.serialize(MPJPE(root=3)))
    assert float(copy(y_true, y_pred)) == pytest.approx(expected, abs=1e-3)
    assert float(MPJPE()(y_true, y_pred)) > 2 * expected
    for root, message in ((-1, "an integer of at least 0"), (16, "the index of one of 16 joints")):
        with pytest.raises(InputError, match=f"`root` must be {message}. Received: root={root}"):
            MPJPE(root=root)(y_true, y_pred)


def test_mpjpe_weighs_joints_and_p_mpjpe_cannot(rng):
    y_true, y_pred = some_poses(16)  # as many as joints: they are not mixed up
    weight = rng.uniform(size=(16, 16))
    expected = np.average(1000 * np.linalg.norm(y_true - y_pred, axis=-1), weights=weight)
    for shape in ((16, 16), (16, 16, 1)):  # the last is a usual mask
        result = MPJPE()(y_true, y_pred, sample_weight=weight.reshape(shape))
        assert float(result) == pytest.approx(expected, abs=1e-3)
    model = keras.Sequential([keras.Input((16, 3)), keras.layers.Identity()])
    model.compile(loss="mse", weighted_metrics=[MPJPE()])
    logs = model.evaluate(y_pred, y_true, sample_weight=weight, verbose=0, return_dict=True)
    assert logs["mpjpe_mm"] == pytest.approx(expected, abs=1e-3)
    for metric, wrong in ((PMPJPE, weight), (MPJPE, weight[:, :15])):
        with pytest.raises(InputError, match=r"`sample_weight`, .* must be a number for each pose"):
            metric()(y_true, y_pred, sample_weight=wrong)


def test_what_keras_masks_is_left_out(rng):
    inputs, y_true = rng.uniform(1, 2, (8, 16, 2)), rng.uniform(-1, 1, (8, 16, 3))
    inputs[:, 10:] = 0.0
    y_true[:, 10:] = 100.0  # of joints that nobody saw
    model = keras.Sequential([keras.Input((16, 2)), keras.layers.Masking(), keras.layers.Dense(3)])
    model.compile(loss="mse", metrics=[MPJPE()])
    logs = model.evaluate(inputs, y_true, verbose=0, return_dict=True)
    y_pred, weight = model(inputs), np.arange(8.0)
    errors = metrics.mpjpe(y_true[:, :10], model.predict(inputs, verbose=0)[:, :10])
    assert logs["mpjpe_mm"] == pytest.approx(errors.mean(), rel=1e-5)
    of_joints = np.repeat(weight[:, None], 16, axis=1)
    result = float(MPJPE()(y_true, y_pred, sample_weight=of_joints))
    assert result == pytest.approx(np.average(errors, weights=weight), rel=1e-5)
    model.compile(loss="mse", metrics=[PMPJPE()])
    with pytest.raises(InputError, match="a mask, must be a number for each pose"):
        model.evaluate(inputs, y_true, verbose=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("metric", "function"), KERAS_METRICS)
def test_keras_metric_computes_half_precision_in_single(metric, function, dtype):
    y_true, y_pred = (array.astype("float32") for array in some_poses(8))
    half = ops.cast(y_pred, dtype)
    expected = function(y_true, ops.convert_to_numpy(ops.cast(half, "float32"))).mean()
    assert float(metric()(y_true, half)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("metric", "function"), KERAS_METRICS)
@pytest.mark.parametrize("predicted", sorted(set(SHAPES) - {"tiny", "huge", "nearly a point"}))
def test_keras_metric_agrees_on_degenerate_poses(metric, function, predicted):
    y_true, y_pred = POSE[None].astype("float32"), SHAPES[predicted][None].astype("float32")
    expected = function(y_true, y_pred).mean()
    assert float(metric()(y_true, y_pred)) == pytest.approx(expected, abs=2e-3)


def test_keras_p_mpjpe_takes_predictions_of_any_size():
    for size in (1e-30, 1e30):
        assert float(PMPJPE()(POSE[None], size * POSE[None])) == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("metric", [MPJPE, PMPJPE])
def test_a_diverged_model_shows(metric):
    assert np.isnan(float(metric()(POSE[None], np.nan * POSE[None])))


@pytest.mark.parametrize("metric", [MPJPE, PMPJPE])
@pytest.mark.parametrize("shape", [(2, 16, 1), (2, 1, 3), (1, 16, 3), (16, 3), (3,)])
def test_keras_metric_refuses_to_broadcast(metric, shape):
    with pytest.raises(InputError, match=r"`y_true` and `y_pred` .* Received: "):
        metric()(np.zeros((2, 16, 3)), np.zeros(shape))


@pytest.mark.parametrize("metric", [MPJPE, PMPJPE])
def test_keras_metric_is_serialised(metric):
    original = metric(name="val")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(original)))
    assert config["registered_name"] == f"keras_wsgcn>{metric.__name__}"
    restored = keras.saving.deserialize_keras_object(config)
    assert type(restored) is metric
    assert restored.get_config() == original.get_config()
    assert metric.from_config(metric().get_config()).name == metric().name


# Keras compiles PyTorch with an external compiler, which takes longer than all other tests.
CAN_JIT = keras.backend.backend() != "torch"


@pytest.mark.parametrize(
    ("policy", "jit_compile"), [("float32", CAN_JIT), ("mixed_bfloat16", False)]
)
def test_metrics_in_fit_equal_the_functions(policy, jit_compile):
    keras.utils.set_random_seed(0)
    y = some_poses(24)[0].astype("float32")
    x = y[..., :2]
    inputs = keras.Input((16, 2))
    model = keras.Model(inputs, keras.layers.Dense(3, dtype=policy)(inputs))
    model.compile("adam", "mse", metrics=[MPJPE(), PMPJPE()], jit_compile=jit_compile)
    history = model.fit(x, y, validation_data=(x, y), batch_size=12, verbose=0).history
    predicted = model.predict(x, verbose=0)
    # Half precision may be rounded at another place in `fit` than in `predict`.
    tolerance = 0.02 if policy == "float32" else 3
    for name, function in (("mpjpe_mm", metrics.mpjpe), ("p_mpjpe_mm", metrics.p_mpjpe)):
        expected = function(y, predicted.astype("float32")).mean()
        assert history[f"val_{name}"][-1] == pytest.approx(expected, abs=tolerance)
        assert np.isfinite(history[name]).all()


def test_callbacks_know_that_less_is_better():
    x = some_poses(8)[0].astype("float32")
    inputs = keras.Input((16, 3))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    model.compile("sgd", "mse", metrics=[MPJPE()])
    stopping = keras.callbacks.EarlyStopping(monitor="val_mpjpe_mm", mode="auto")
    model.fit(x, x, validation_data=(x, x), verbose=0, callbacks=[stopping])
    assert stopping.monitor_op is ops.less


def test_a_tensor_with_a_gradient_is_read_or_refused():
    torch = pytest.importorskip("torch")
    poses = torch.ones((2, 16, 3), requires_grad=True)
    if keras.backend.backend() == "torch":
        assert (metrics.mpjpe(poses, np.ones((2, 16, 3))) == 0.0).all()
    else:
        with pytest.raises(InputError, match="`y_true` must be an array of numbers"):
            metrics.mpjpe(poses, np.ones((2, 16, 3)))

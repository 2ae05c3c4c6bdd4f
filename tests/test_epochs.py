"""Epochs on the device compute what Keras's own `fit` computes."""

import keras
import numpy as np
import pytest
from testing import value_and_gradients

from keras_wsgcn import build_model
from keras_wsgcn.epochs import Epochs
from keras_wsgcn.layers import BatchNormalization
from keras_wsgcn.metrics import MPJPE

BATCH, STEPS = 8, 5


@pytest.fixture
def poses(rng):
    count = BATCH * STEPS + 3  # a few are left out
    return [rng.uniform(-1, 1, (count, 16, n)).astype("float32") for n in (2, 3)]


def compiled(optimizer, scheme="pre_agg_decoupled", **size):
    keras.utils.set_random_seed(0)
    model = build_model(scheme, **{"channels": 6, "blocks": 1, "kernel_gain": 1.0, **size})
    model.compile(optimizer, "mse", metrics=[MPJPE()])
    return model


def schedule():
    return keras.optimizers.schedules.CosineDecay(1e-2, 3 * STEPS)


# A bias before a normalisation has no gradient but rounding. With Keras's epsilon Adam would make
# whole steps of it, others in each process; with this one everything can be compared.
EPSILON = {"epsilon": 1e-3}
OPTIMIZERS = {
    "plain": lambda: keras.optimizers.Adam(1e-2, **EPSILON),
    "clipped": lambda: keras.optimizers.Adam(schedule(), global_clipnorm=0.1, **EPSILON),
    "decayed": lambda: keras.optimizers.Adam(1e-2, weight_decay=0.3, **EPSILON),
    "amsgrad": lambda: keras.optimizers.Adam(1e-2, amsgrad=True, clipnorm=0.1, **EPSILON),
    "sgd": lambda: keras.optimizers.SGD(1e-2, momentum=0.9),
}


def assert_as_fit(first, second, poses, rng, **options):
    """Trains one model by `Epochs`, its twin by `fit`, twice over the same orders."""
    epochs = Epochs([first], *poses, BATCH, **options)
    for _ in range(2):
        order = rng.permutation(len(poses[0]))[: BATCH * STEPS]
        ((logs, diverged),) = epochs.run([order])
        fit = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
        history = second.fit(*(array[order] for array in poses), **fit).history
        assert diverged is None
        for name, values in history.items():
            assert logs[name] == pytest.approx(values[-1], rel=1e-4), name
    assert int(first.optimizer.iterations) == int(second.optimizer.iterations) == 2 * STEPS
    for a, b in zip(first.weights, second.weights, strict=True):
        a, b = (keras.ops.convert_to_numpy(weight) for weight in (a, b))
        np.testing.assert_allclose(a, b, atol=1e-4)


# Under torch Adam is one kernel that Keras does not know; the others compile Keras's own step.
OFTEN = OPTIMIZERS if keras.backend.backend() == "torch" else ("clipped", "sgd")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.slow) for n in OPTIMIZERS]
)
def test_every_optimizer_does_what_it_does_in_fit(name, poses, rng):
    assert_as_fit(compiled(OPTIMIZERS[name]()), compiled(OPTIMIZERS[name]()), poses, rng)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="its own kernel")
def test_a_kernel_that_does_not_clip_is_given_clipped_gradients(poses, rng, monkeypatch):
    import torch

    original = torch._fused_adam_
    monkeypatch.setattr("keras_wsgcn.torch_steps.DIVIDING_KERNELS", ())
    monkeypatch.setattr(
        torch,
        "_fused_adam_",
        lambda *args, **named: original(*args, **named | {"grad_scale": None}),
    )
    models = [compiled(OPTIMIZERS["clipped"]()) for _ in range(2)]
    assert_as_fit(*models, poses, rng)


def test_the_other_order_and_layers_too(poses, rng):
    size = {"scheme": "post_agg_decoupled", "blocks": 0, "non_local": True, "affinity": "learned"}
    optimizer = OPTIMIZERS["clipped"]
    assert_as_fit(compiled(optimizer(), **size), compiled(optimizer(), **size), poses, rng)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the others always compile")
def test_a_compiled_step_does_what_it_does_in_fit(poses, rng, monkeypatch):
    import torch

    monkeypatch.setattr("keras_wsgcn.torch_steps.processor", lambda: "AMD EPYC")
    done, original = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: done.append(f) or original(f))
    size = {"scheme": "no_sharing", "blocks": 0, "non_local": True, "affinity": "learned"}
    optimizer = OPTIMIZERS["clipped"]
    models = compiled(optimizer(), **size), compiled(optimizer(), **size)
    assert_as_fit(*models, poses, rng, jit_compile=True)
    assert len(done) == 1


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the others choose themselves")
@pytest.mark.parametrize(("machine", "products"), [("AMD EPYC", 7), ("Intel(R) Xeon(R)", 0)])
def test_onednn_multiplies_on_processors_that_mkl_is_slow_on(
    machine, products, poses, rng, monkeypatch
):
    from keras_wsgcn import torch_steps

    traces, original = [], torch_steps._fold_constants
    monkeypatch.setattr(torch_steps, "processor", lambda: machine)
    monkeypatch.setattr(torch_steps, "_fold_constants", lambda t: traces.append(t) or original(t))
    models = [compiled(OPTIMIZERS["clipped"](), scheme="full_sharing") for _ in range(2)]
    assert_as_fit(*models, poses, rng)
    targets = [str(node.target) for trace in traces for node in trace.graph.nodes]
    # Of four layers, forward; and for the inputs of all but the first.
    assert targets.count("keras_wsgcn.onednn_product.default") == products
    assert targets.count("aten.mm.default") >= 4  # the kernels' gradients


def test_constraints_hold(poses):
    model = compiled(keras.optimizers.Adam(1e-2))
    kernel = model.get_layer("input_conv").kernel
    kernel.constraint = keras.constraints.MaxNorm(0.01, axis=(0, 1, 2, 3))
    Epochs([model], *poses, BATCH).run([np.arange(BATCH * STEPS)])
    assert np.linalg.norm(keras.ops.convert_to_numpy(kernel)) <= 0.0101


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch alone is traced")
def test_a_trace_computes_constants_once_and_variables_always():
    import torch

    from keras_wsgcn.torch_steps import _traced

    scale = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def function(x):
        index = torch.tensor([-1, 0]) % len(x)  # of constants
        noise = torch.rand(2) * 0
        return x[index] * (scale + 1) + noise  # of a variable, and drawn anew

    trace = _traced(function, torch.arange(3.0))
    np.testing.assert_array_equal(trace(torch.arange(3.0)), [6.0, 0.0])
    scale.fill_(9.0)
    np.testing.assert_array_equal(trace(torch.arange(3.0)), [20.0, 0.0])
    done = {str(node.target) for node in trace.__wrapped__.graph.nodes}
    assert "aten.remainder.Scalar" not in done
    assert "aten.rand.default" in done


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch alone is traced")
def test_replayed_predictions_are_the_model_s_own(poses, monkeypatch):
    from keras_wsgcn import torch_steps

    traced, original = [], torch_steps._traced
    monkeypatch.setattr(
        torch_steps, "_traced", lambda *a: traced.append(a[1].shape) or original(*a)
    )
    inputs, model = poses[0], compiled("adam", non_local=True, dropout=0.5)
    expected = model.predict(inputs, batch_size=BATCH, verbose=0)
    for _ in range(2):
        torch_steps.replay_predictions(model, BATCH)
        again = model.predict(inputs, batch_size=BATCH, verbose=0)
        np.testing.assert_allclose(again, expected, atol=1e-6)
        model.set_weights([weight * 0.5 for weight in model.get_weights()])
        halved = model.predict(inputs, batch_size=BATCH, verbose=0)
        now = keras.ops.convert_to_numpy(model(inputs, training=False))
        np.testing.assert_allclose(halved, now, atol=1e-6)
        model.set_weights([weight * 2.0 for weight in model.get_weights()])
    assert traced == [(BATCH, 16, 2)]  # once, and not for the last few


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch alone is traced")
def test_what_a_trace_is_not_of_is_predicted_all_the_same(poses):
    from keras_wsgcn import torch_steps

    inputs, model = np.rint(poses[0][:BATCH]), compiled("adam")
    expected = model.predict(inputs, batch_size=BATCH, verbose=0)
    torch_steps.replay_predictions(model, BATCH)
    for dtype in ("float32", "int64", "float64"):
        given = inputs.astype(dtype)
        np.testing.assert_array_equal(model.predict(given, batch_size=BATCH, verbose=0), expected)
    by_keras = compiled("adam")
    by_keras.compile("adam", "mse", jit_compile=True)  # dynamo's work cannot be traced
    torch_steps.replay_predictions(by_keras, BATCH)
    assert not isinstance(by_keras.predict_function, torch_steps._Predictions)


def test_building_is_no_step(poses):
    model = compiled(OPTIMIZERS["clipped"]())
    before = model.get_weights()
    Epochs([model], *poses, BATCH)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert int(model.optimizer.iterations) == 0


def test_says_at_which_step_the_loss_was_lost(poses):
    inputs, targets = poses
    targets[BATCH * 3 + 1] = np.inf
    model = compiled(OPTIMIZERS["plain"]())
    epochs = Epochs([model], inputs, targets, BATCH)
    ((logs, diverged),) = epochs.run([np.arange(BATCH * STEPS)])
    assert diverged == 3
    assert not np.isfinite(logs["loss"])


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16", "float64"])
def test_normalisation_is_that_of_keras(dtype, axis, rng):
    x = rng.normal(3.0, 2.0, (16, 9, 5)).astype("float32")
    ours, theirs = (
        layer(axis=axis, momentum=0.9, epsilon=1e-5, dtype=dtype)
        for layer in (BatchNormalization, keras.layers.BatchNormalization)
    )
    tolerance = 3e-2 if "mixed" in dtype else 1e-5
    for training in (True, True, False):
        a, b = (
            keras.ops.convert_to_numpy(keras.ops.cast(layer(x, training=training), "float32"))
            for layer in (ours, theirs)
        )
        np.testing.assert_allclose(a, b, atol=tolerance)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b), rtol=tolerance
        )


@pytest.mark.parametrize("axis", [-1, 1])
def test_the_gradient_of_normalisation_is_that_of_keras(axis, rng):
    x, upstream = (rng.normal(3.0, 2.0, (16, 9, 5)).astype("float32") for _ in range(2))
    results = []
    for layer in (BatchNormalization, keras.layers.BatchNormalization):
        layer = layer(axis=axis)
        layer.build(x.shape)
        results.append(value_and_gradients(layer, x, upstream, training=True))
    (y, by_x, by_weight), (expected, expected_by_x, expected_by_weight) = results
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(by_x, expected_by_x, atol=2e-5)
    assert by_weight.keys() == {"gamma", "beta"}
    for name, gradient in by_weight.items():
        np.testing.assert_allclose(gradient, expected_by_weight[name], rtol=1e-4)


def test_a_frozen_normalisation_stays(rng):
    layer = BatchNormalization()
    layer.build((16, 9, 5))
    layer.trainable = False
    layer(rng.normal(3.0, 2.0, (16, 9, 5)).astype("float32"), training=True)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.moving_mean), np.zeros(5))

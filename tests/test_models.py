import math

import keras
import numpy as np
import pytest
from keras import ops
from testing import lift_by_oracle

from keras_wsgcn import (
    SCHEMES,
    GraphConv,
    GraphNonLocal,
    InputError,
    Scheme,
    Skeleton,
    build_model,
    load_model,
    save_model,
)
from keras_wsgcn.models import describe
from keras_wsgcn.skeletons import h36m_16


def bound(layer):
    return np.abs(ops.convert_to_numpy(layer.kernel.value)).max()


def test_the_front_door():
    model = build_model("post_agg", budget=2.1e6)
    assert model.name == "post_agg_128"
    assert model.input_shape == (None, 16, 2)
    assert model.output_shape == (None, 16, 3)
    assert sum(math.prod(w.shape) for w in model.trainable_weights) == 2_110_851
    assert model.metadata["budget"] == 2.1e6


def test_default_is_the_paper_s_128_channels():
    assert build_model("full_sharing").get_layer("input_conv").units == 128


def test_layers_explain_themselves():
    model = build_model("pre_agg", channels=4, dropout=0.1, non_local=True)
    names = [layer.name for layer in model.layers]
    assert names[:7] == [
        "pose2d", "joints_first", "input_conv", "input_norm", "input_relu", "input_dropout",
        "input_non_local",
    ]  # fmt: skip
    assert names[7:17] == [
        "block1_layer1_conv", "block1_layer1_norm", "block1_layer1_relu", "block1_layer1_dropout",
        "block1_layer2_conv", "block1_layer2_norm", "block1_layer2_relu", "block1_layer2_dropout",
        "block1_add", "block1_non_local",
    ]  # fmt: skip
    assert names[-2:] == ["output_conv", "pose3d"]
    lines = []
    model.summary(print_fn=lines.append)
    assert "block4_layer2_conv" in "\n".join(lines)


@pytest.mark.parametrize(
    ("scheme", "non_local", "layout"),
    [
        ("conv_style", False, "jbc"), ("full_sharing", True, "jbc"), ("post_agg", True, "jbc"),
        ("pre_agg", False, "jcb"), ("post_agg", False, "jcb"), ("no_sharing", False, "jcb"),
    ],
)  # fmt: skip
def test_the_batch_is_last_where_each_joint_has_a_kernel(scheme, non_local, layout):
    model = build_model(scheme, channels=4, blocks=1, non_local=non_local)
    layers = [layer for layer in model.layers if isinstance(layer, GraphConv | GraphNonLocal)]
    assert {layer.layout for layer in layers} == {layout}


@pytest.mark.parametrize("scheme", ["conv_style", "post_agg_decoupled"])
def test_the_model_is_the_sum_of_its_layers(scheme, rng):
    model = build_model(scheme, channels=5, blocks=2, kernel_gain=1.0)
    for weight in model.weights:
        if "moving_variance" not in weight.path:
            weight.assign(rng.normal(size=weight.shape) * 0.3)
    pose = rng.normal(size=(3, 16, 2)).astype("float32")
    expected = lift_by_oracle(model, pose)
    np.testing.assert_allclose(model.predict(pose, verbose=0), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gain", [1.0, 0.2])
def test_kernel_gain_scales_every_bound(gain):
    model = build_model("no_sharing", channels=40, blocks=1, kernel_gain=gain)
    layers = {"input": 42, "block1_layer1": 80, "block1_layer2": 80, "output": 43}
    for name, fans in layers.items():
        peak = bound(model.get_layer(f"{name}_conv"))
        assert 0.97 < peak / (gain * np.sqrt(6 / fans)) <= 1


def test_same_seed_same_weights():
    weights = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        weights.append(build_model("pre_agg", channels=6).get_weights())
    for first, second in zip(*weights, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_and_puts_out_float32(policy, rng):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build_model("pre_agg_decoupled", channels=8, blocks=1, non_local=True)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("block1_layer1_conv").compute_dtype == policy.removeprefix("mixed_")
    model.compile("adam", "mse")
    pose2d = rng.uniform(-1, 1, (64, 16, 2)).astype("float32")
    pose3d = rng.uniform(-1, 1, (64, 16, 3)).astype("float32")
    losses = model.fit(pose2d, pose3d, epochs=4, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert model.predict(pose2d, verbose=0).dtype == np.float32


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_learns_compiled(scheme, rng):
    keras.utils.set_random_seed(0)
    model = build_model(scheme, channels=8, blocks=0)
    # torch.compile takes minutes; the other backends compile in seconds.
    jit = keras.backend.backend() != "torch"
    model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=jit)
    pose2d = rng.uniform(-1, 1, (128, 16, 2)).astype("float32")
    near = h36m_16.affinity.astype("float32") @ pose2d  # what even full sharing can express
    pose3d = np.concatenate([near, near[:, :, :1] * near[:, :, 1:]], axis=-1)
    losses = model.fit(pose2d, pose3d, epochs=8, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the others compile in the test above"
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_compiles_under_torch(scheme, rng):
    model = build_model(scheme, channels=8, blocks=1)
    x = rng.uniform(-1, 1, (32, 16, 2)).astype("float32")
    expected = model.predict(x, verbose=0)
    model.compile("sgd", "mse", jit_compile=True)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    assert np.isfinite(model.fit(x, expected, batch_size=32, verbose=0).history["loss"]).all()


def test_own_scheme_and_skeleton_without_touching_the_package(rng):
    skeleton = Skeleton(
        "hand", ("wrist", "thumb", "index", "ring"), (-1, 0, 0, 0), extra_edges=[("index", "ring")]
    )
    scheme = Scheme("depth_pre_agg", split="depth", per="source")
    model = build_model(scheme, channels=6, skeleton=skeleton)
    assert model.predict(rng.normal(size=(2, 4, 2)), verbose=0).shape == (2, 4, 3)
    clone = keras.Model.from_config(model.get_config())
    clone.set_weights(model.get_weights())
    x = rng.normal(size=(2, 4, 2)).astype("float32")
    np.testing.assert_allclose(clone.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)


def test_describe_says_what_was_built():
    model = build_model(
        "post_agg_decoupled", channels=6, blocks=3, dropout=0.25, non_local=True,
        affinity="learned", skeleton="h36m_17",
    )  # fmt: skip
    assert describe(model) == {
        "scheme": "post_agg_decoupled", "skeleton": "h36m_17", "channels": 6, "blocks": 3,
        "dropout": 0.25, "non_local": True, "affinity": "learned",
        "params": sum(math.prod(w.shape) for w in model.trainable_weights),
    }  # fmt: skip
    assert sum(isinstance(layer, GraphNonLocal) for layer in model.layers) == 4


def test_describe_refuses_other_models():
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(InputError, match="`model` must hold `GraphConv`"):
        describe(other)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"budget": 1e6, "channels": 8}, "budget"),
        ({"budget": 10}, "budget"),
        ({"channels": 0}, "channels"),
        ({"channels": 1, "non_local": True}, "channels"),
        ({"blocks": -1}, "blocks"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": "0.5"}, "dropout"),
        ({"kernel_gain": 0}, "kernel_gain"),
        ({"kernel_gain": math.nan}, "kernel_gain"),
        ({"affinity": None}, "affinity"),
        ({"skeleton": "smpl"}, "skeleton"),
    ],
)
def test_refuses_bad_arguments(arguments, argument):
    with pytest.raises(InputError, match=rf"`{argument}`.*Received: "):
        build_model("pre_agg", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": 151}, "`blocks` must be at most 150"),
        ({"channels": 10**5}, "at most 85,000,000 parameters"),
        ({"kernel_gain": 1e-30}, "`kernel_gain` must be"),
        ({"kernel_gain": 1e30}, "`kernel_gain` must be"),
        ({"name": "../x"}, "`name` must be"),
        ({"name": 5}, "`name` must be"),
        ({"name": "a..b"}, "`name` must be"),
        ({"non_local": "no"}, "`non_local` must be true or false"),
    ],
)
def test_refuses_what_no_machine_or_file_could_hold(arguments, message):
    with pytest.raises(InputError, match=rf"{message}.*Received: "):
        build_model("pre_agg", **arguments)


@pytest.mark.parametrize(
    ("name", "of_model"),
    [("mine / 2", "mine___2_4"), ("..", "___4"), ("-x", "_x_4"), ("s" * 300, "s" * 80 + "_4")],
)
def test_a_scheme_may_be_called_anything(name, of_model, tmp_path):
    model = build_model(Scheme(name, split="depth", per="source"), channels=4, blocks=0)
    assert model.name == of_model
    save_model(model, tmp_path / "m.keras")
    assert load_model(tmp_path / "m.keras").metadata["scheme"]["name"] == name

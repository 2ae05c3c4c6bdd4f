import keras
import numpy as np
import pytest
import reference
from keras import ops
from testing import run_layer_test, value_and_gradients

from keras_wsgcn import SCHEMES, GraphConv, GraphNonLocal, InputError, Scheme, Skeleton
from keras_wsgcn.layers import Turn
from keras_wsgcn.skeletons import h36m_16

AFFINITIES = ("fixed", "learned")
# From (batch, joints, channels) to each layout, and back.
AXES = {"bjc": [(0, 1, 2)] * 2, "jbc": [(1, 0, 2)] * 2, "jcb": [(1, 2, 0), (2, 0, 1)]}
OWN = Scheme("depth_post_agg", split="depth", per="target")


def random_skeleton(seed):
    """A random tree of 7 joints, its joints shuffled, with two extra edges."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(7)
    parents = [-1] * 7
    for place in range(1, 7):
        parents[order[place]] = int(order[rng.integers(place)])
    extra = [tuple(int(j) for j in rng.choice(7, 2, replace=False)) for _ in range(2)]
    names = tuple(f"j{n}" for n in range(7))
    return Skeleton(f"random{seed}", names, parents, centre=int(order[3]), extra_edges=extra)


SKELETONS = [h36m_16, random_skeleton(1), random_skeleton(2)]


def oracle_graph(skeleton):
    return reference.neighbours(skeleton.num_joints, [*skeleton.bones, *skeleton.extra_edges])


def set_random_weights(layer, rng):
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    return {weight.name: ops.convert_to_numpy(weight.value) for weight in layer.weights}


def oracle_affinity(affinity, near, weights):
    if affinity == "fixed":
        return reference.fixed_affinity(near)
    edges = [(i, j) for i in range(len(near)) for j in sorted(near[i])]
    return reference.learned_affinity(
        near, dict(zip(edges, weights["affinity_logits"], strict=True))
    )


@pytest.mark.parametrize(
    ("skeleton", "layout"),
    [(SKELETONS[0], "jcb"), (SKELETONS[1], "bjc"), (SKELETONS[2], "jbc")],
    ids=["h36m_16", "random1", "random2"],
)
@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_equals_the_oracle_forward_and_backward(scheme, affinity, skeleton, layout, rng):
    joints, centre = skeleton.num_joints, skeleton.centre
    x = rng.normal(size=(3, joints, 4))
    upstream = rng.normal(size=(3, joints, 5))
    layer = GraphConv(5, scheme, skeleton, affinity=affinity, layout=layout, dtype=DTYPE)
    there, back = AXES[layout]
    turned = x.transpose(there)
    layer.build(turned.shape)
    weights = set_random_weights(layer, rng)
    near = oracle_graph(skeleton)
    a = oracle_affinity(affinity, near, weights)
    expected = reference.graph_conv(scheme, x, weights["kernel"], weights["bias"], near, centre, a)
    by_x, gradients = reference.graph_conv_gradients(
        scheme, x, weights["kernel"], near, centre, a, upstream, affinity == "learned"
    )
    up = upstream.transpose(there)
    y, got_by_x, got = value_and_gradients(layer, turned.astype(DTYPE), up.astype(DTYPE))
    y, got_by_x = y.transpose(back), got_by_x.transpose(back)
    tolerance = tolerances()
    np.testing.assert_allclose(y, expected, **tolerance)
    np.testing.assert_allclose(got_by_x, by_x, **tolerance)
    assert got.keys() == gradients.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(got[name], gradient, **tolerance, err_msg=name)


# JAX computes in float32 unless its 64-bit mode is on, and so does Keras's matmul under torch.
DTYPE = "float64" if keras.backend.backend() == "tensorflow" else "float32"


def tolerances():
    single = DTYPE == "float32"
    return {"rtol": 2e-4, "atol": 2e-5} if single else {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_kernel_shape_is_what_the_scheme_needs(scheme):
    layer = GraphConv(5, scheme)
    layer.build((None, 16, 4))
    kernels = np.prod(layer.kernel.shape[:-2])
    assert kernels == reference.KERNELS_16[scheme]
    assert tuple(layer.kernel.shape[-2:]) == (4, 5)


@pytest.mark.parametrize("coupled", ["full_sharing", "pre_agg", "post_agg"])
def test_decoupled_agrees_with_coupled_when_kernels_agree(coupled, rng):
    plain, decoupled = GraphConv(6, coupled), GraphConv(6, f"{coupled}_decoupled")
    x = rng.normal(size=(3, 16, 4)).astype("float32")
    plain.build(x.shape)
    decoupled.build(x.shape)
    kernel = ops.convert_to_numpy(plain.kernel.value)
    decoupled.kernel.assign(np.concatenate([kernel, kernel]))
    np.testing.assert_allclose(
        ops.convert_to_numpy(plain(x)), ops.convert_to_numpy(decoupled(x)), rtol=1e-4, atol=1e-5
    )


def test_no_sharing_with_equal_kernels_is_full_sharing(rng):
    full, own = GraphConv(6, "full_sharing"), GraphConv(6, "no_sharing")
    x = rng.normal(size=(3, 16, 4)).astype("float32")
    full.build(x.shape)
    own.build(x.shape)
    own.kernel.assign(np.broadcast_to(ops.convert_to_numpy(full.kernel.value), own.kernel.shape))
    np.testing.assert_allclose(
        ops.convert_to_numpy(full(x)), ops.convert_to_numpy(own(x)), rtol=1e-4, atol=1e-5
    )


def test_learned_affinity_starts_as_a_plain_mean(rng):
    layer = GraphConv(3, "full_sharing", affinity="learned", use_bias=False)
    x = rng.normal(size=(2, 16, 4)).astype("float32")
    y = ops.convert_to_numpy(layer(x))
    near = oracle_graph(h36m_16)
    kernel = ops.convert_to_numpy(layer.kernel.value)[0]
    for i in (0, 8, 15):
        expected = x[:, sorted(near[i])].mean(axis=1) @ kernel
        np.testing.assert_allclose(y[:, i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", [*SCHEMES, OWN], ids=str)
def test_keras_layer_test_of_graph_conv(scheme):
    run_layer_test(
        GraphConv,
        init_kwargs={"units": 3, "scheme": scheme if scheme is not OWN else OWN.get_config()},
        input_shape=(2, 16, 4),
        expected_output_shape=(2, 16, 3),
        expected_num_trainable_weights=2,
        expected_num_non_trainable_weights=0,
        supports_masking=False,
    )


@pytest.mark.parametrize(
    "settings", [{"layout": "jbc"}, {"layout": "jcb"}, {"affinity": "learned"}], ids=str
)
def test_keras_layer_test_of_graph_conv_options(settings):
    run_layer_test(
        GraphConv,
        init_kwargs={
            "units": 3, "scheme": "conv_style", "activation": "relu", "use_bias": False,
            "kernel_regularizer": "l2", "skeleton": SKELETONS[1].get_config(), **settings,
        },
        input_shape=(7, 4, 7) if settings.get("layout") == "jcb" else (7, 7, 4),
        expected_output_shape=(7, 3, 7) if settings.get("layout") == "jcb" else (7, 7, 3),
        expected_num_trainable_weights=1 + ("affinity" in settings),
        expected_num_non_trainable_weights=0,
        expected_num_losses=1,
        supports_masking=False,
    )  # fmt: skip


@pytest.mark.parametrize("layout", AXES)
def test_keras_layer_test_of_graph_non_local(layout):
    run_layer_test(
        GraphNonLocal,
        init_kwargs={"layout": layout},
        input_shape=(16, 6, 16) if layout == "jcb" else (16, 16, 6),
        expected_output_shape=(16, 6, 16) if layout == "jcb" else (16, 16, 6),
        expected_num_trainable_weights=11,
        expected_num_non_trainable_weights=2,
        supports_masking=False,
    )


def test_keras_layer_test_of_the_turn():
    run_layer_test(
        Turn,
        init_kwargs={"source": "bjc", "target": "jcb"},
        input_shape=(2, 16, 3),
        expected_output_shape=(16, 3, 2),
        expected_num_trainable_weights=0,
        expected_num_non_trainable_weights=0,
        supports_masking=False,
        run_training_check=False,  # the batch is no longer the leading axis
    )


@pytest.mark.parametrize(
    ("skeleton", "layout"), [("h36m_16", "jcb"), ("h36m_17", "jbc"), (SKELETONS[1], "bjc")], ids=str
)
@pytest.mark.parametrize("channels", [6, 7])
def test_non_local_equals_the_oracle(skeleton, layout, channels, rng):
    layer = GraphNonLocal(skeleton, layout=layout, dtype=DTYPE)
    there, back = AXES[layout]
    joints = layer.skeleton.num_joints
    x = rng.normal(size=(2, joints, channels))
    layer.build(x.transpose(there).shape)
    set_random_weights(layer, rng)
    layer.normalization.moving_variance.assign(rng.uniform(0.5, 2, channels))
    maps = {
        name: [ops.convert_to_numpy(w.value) for w in getattr(layer, name).weights]
        for name in ("theta", "phi", "g", "output_map", "normalization")
    }
    scale, offset, mean, variance = maps["normalization"]
    expected = reference.non_local(
        x, maps["theta"], maps["phi"], maps["g"],
        ops.convert_to_numpy(layer.pair_kernel.value).reshape(-1), maps["output_map"],
        scale, offset, layer.skeleton.pooling_groups, mean, variance, layer.epsilon,
    )  # fmt: skip
    y = layer(x.transpose(there).astype(DTYPE), training=False)
    y = ops.convert_to_numpy(y).transpose(back)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3 if DTYPE == "float32" else 1e-9)


def test_a_new_non_local_block_changes_nothing(rng):
    x = rng.normal(size=(2, 16, 6)).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(GraphNonLocal()(x)), x)


@pytest.mark.parametrize(
    ("policy", "affinity"), [("mixed_float16", "fixed"), ("mixed_bfloat16", "learned")]
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_mixed_precision(scheme, affinity, policy, rng):
    full = GraphConv(8, scheme, affinity=affinity)
    mixed = GraphConv(8, scheme, affinity=affinity, dtype=policy)
    x = rng.normal(size=(4, 16, 8)).astype("float32")
    full.build(x.shape)
    mixed.build(x.shape)
    mixed.set_weights(full.get_weights())
    y = mixed(x)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    assert mixed.kernel.dtype == "float32"
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(y, "float32")), ops.convert_to_numpy(full(x)), atol=0.05
    )


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"units": 0}, "units"),
        ({"units": 2.5}, "units"),
        ({"scheme": "gcn"}, "scheme"),
        ({"skeleton": "coco"}, "skeleton"),
        ({"affinity": "soft"}, "affinity"),
        ({"layout": "cbj"}, "layout"),
        ({"layout": 0}, "layout"),
    ],
)
def test_refuses_bad_arguments(arguments, argument):
    with pytest.raises(InputError, match=rf"`{argument}` must.*Received: {argument}="):
        GraphConv(**{"units": 4, "scheme": "pre_agg", **arguments})


@pytest.mark.parametrize("shape", [(2, 17, 4), (16, 2, 4), (2, 16), (2, 16, 4, 1)])
@pytest.mark.parametrize("layer", [GraphConv(4, "pre_agg"), GraphNonLocal()], ids=["conv", "nl"])
def test_refuses_inputs_with_other_joints(layer, shape):
    with pytest.raises(InputError, match=r"`inputs` must have the shape.*16 joints.*Received: "):
        layer.build(shape)


@pytest.mark.parametrize("layout", AXES)
def test_softmax_is_over_the_channels(layout, rng):
    x = rng.normal(size=(3, 16, 6)).astype("float32")
    layer = GraphConv(4, "pre_agg", layout=layout, activation="softmax")
    there, back = AXES[layout]
    y = ops.convert_to_numpy(layer(x.transpose(there))).transpose(back)
    assert y.shape == (3, 16, 4)
    np.testing.assert_allclose(y.sum(axis=-1), 1.0, rtol=1e-5)


def frozen_block():
    inputs = keras.Input((16, 6))
    model = keras.Model(inputs, keras.layers.Dense(3)(GraphNonLocal()(inputs)))
    model.layers[1].trainable = False
    return model


def test_a_frozen_block_stays_frozen_in_a_copy(rng):
    frozen = frozen_block()
    copies = (keras.models.clone_model(frozen), keras.Model.from_config(frozen.get_config()))
    for model in copies:
        assert len(model.trainable_variables) == 2
        model.compile("adam", "mse")
        before = model.layers[1].get_weights()
        x = rng.normal(size=(8, 16, 6)).astype("float32")
        model.fit(x, x[..., :3], verbose=0)
        for old, new in zip(before, model.layers[1].get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


def test_quantising_a_model_leaves_a_block_as_it_is(rng):
    inputs = keras.Input((16, 6))
    block = GraphNonLocal()
    model = keras.Model(inputs, block(inputs))
    block.normalization.gamma.assign(np.ones(6))
    x = rng.normal(size=(8, 16, 6)).astype("float32")
    before = model.predict(x, verbose=0)
    with pytest.warns(UserWarning, match="theta stays as it is"):
        model.quantize("int8")
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)


def test_a_block_in_float64_computes(rng):
    x = rng.normal(size=(8, 16, 6))
    y = GraphNonLocal(dtype="float64")(x)
    assert np.isfinite(ops.convert_to_numpy(y)).all()


@pytest.mark.parametrize("affinity", ["fixed", "learned"])
def test_within_a_model_of_a_users_own(affinity, rng):
    """Keras builds it by shapes alone, under torch on a device without values."""

    class Inner(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.conv = GraphConv(5, "no_sharing", affinity=affinity)
            self.non_local = GraphNonLocal()

        def call(self, inputs):
            return self.non_local(self.conv(inputs))

    class Lifter(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.conv = Inner(), GraphConv(3, "post_agg", affinity=affinity)

        def call(self, inputs):
            return self.conv(self.inner(inputs))

    x, lifter = rng.normal(size=(4, 16, 2)).astype("float32"), Lifter()
    y = lifter.predict(x, verbose=0)
    alone = [GraphConv(5, "no_sharing", affinity=affinity), GraphNonLocal()]
    alone += [GraphConv(3, "post_agg", affinity=affinity)]
    theirs, wanted = [lifter.inner.conv, lifter.inner.non_local, lifter.conv], x
    for layer, other in zip(alone, theirs, strict=True):
        layer.build(wanted.shape)
        layer.set_weights(other.get_weights())
        wanted = keras.ops.convert_to_numpy(layer(wanted))
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    lifter.compile("adam", "mse")
    assert np.isfinite(lifter.fit(x, np.zeros((4, 16, 3)), verbose=0).history["loss"][0])


@pytest.mark.parametrize("layer", [GraphConv(4, "pre_agg"), GraphNonLocal()], ids=["conv", "nl"])
def test_a_question_about_shapes_changes_nothing(layer):
    layer.build((None, 16, 2))
    assert layer.compute_output_shape((7, 16, 5))[:2] == (7, 16)
    assert layer(np.zeros((2, 16, 2), "float32")).shape[0] == 2


def test_initializers_can_be_functions(rng):
    def ones(shape, dtype=None):
        return keras.ops.ones(shape, dtype)

    x = rng.normal(size=(2, 16, 4)).astype("float32")
    for layer in (GraphConv(4, "pre_agg", kernel_initializer=ones),
                  GraphNonLocal(kernel_initializer=ones)):  # fmt: skip
        assert np.isfinite(keras.ops.convert_to_numpy(layer(x))).all()


def test_non_local_refuses_a_single_channel():
    with pytest.raises(InputError, match="at least 2 channels"):
        GraphNonLocal().build((2, 16, 1))

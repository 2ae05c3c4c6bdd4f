import keras
import numpy as np
import pytest
from keras import ops

from keras_wsgcn import SCHEMES, GraphConv


def kernels_of(layer, joints_and_channels=(16, 6)):
    layer.build((None, *joints_and_channels))
    kernel = ops.convert_to_numpy(layer.kernel.value)
    return kernel.reshape(-1, *kernel.shape[-2:])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_initial_kernels_have_the_bound_of_a_single_kernel(scheme):
    layer = GraphConv(40, scheme)
    layer.build((None, 16, 60))
    bound = np.sqrt(6 / (60 + 40))
    peak = np.abs(ops.convert_to_numpy(layer.kernel.value)).reshape(-1, 60 * 40).max(axis=1)
    assert (peak <= bound).all()
    assert (peak > 0.99 * bound).all()


def test_kernels_of_a_layer_start_different():
    layer = GraphConv(4, "pre_agg", kernel_initializer=keras.initializers.HeNormal(seed=1))
    layer.build((None, 16, 4))
    kernels = ops.convert_to_numpy(layer.kernel.value).reshape(16, -1)
    assert len(np.unique(kernels.round(6), axis=0)) == 16


def test_an_initializer_with_axes_of_its_own_is_left_alone():
    given = keras.initializers.GlorotUniform(seed=1, input_axes=(0, 1, 2), output_axes=(3,))
    layer = GraphConv(4, "pre_agg", kernel_initializer=given)
    layer.build((None, 16, 4))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(layer.kernel.value), ops.convert_to_numpy(given((1, 16, 4, 4)))
    )


def test_orthogonal_kernels_are_so_each_and_start_different():
    kernels = kernels_of(GraphConv(4, "pre_agg", kernel_initializer="orthogonal"))
    np.testing.assert_allclose(kernels.transpose(0, 2, 1) @ kernels, [np.eye(4)] * 16, atol=1e-5)
    assert len(np.unique(kernels.round(5), axis=0)) == 16
    seeded = [keras.initializers.Orthogonal(seed=3) for _ in range(2)]
    first, second = (kernels_of(GraphConv(4, "pre_agg", kernel_initializer=s)) for s in seeded)
    np.testing.assert_array_equal(first, second)


def test_a_variance_scaling_of_a_users_own_takes_the_fans_of_one_kernel():
    class Narrow(keras.initializers.VarianceScaling):
        def __init__(self, gain):
            super().__init__(gain, "fan_avg", "uniform", seed=1)

        def get_config(self):
            return {"gain": self.scale}

    kernels = kernels_of(GraphConv(40, "no_sharing", kernel_initializer=Narrow(0.25)), (16, 60))
    bound = 0.5 * np.sqrt(6 / (60 + 40))
    assert 0.99 * bound < np.abs(kernels).max() <= bound


def test_an_initializer_that_calls_otherwise_is_left_alone():
    class Ones(keras.initializers.HeNormal):
        def __call__(self, shape, dtype=None):
            return ops.ones(shape, dtype)

    assert (kernels_of(GraphConv(4, "pre_agg", kernel_initializer=Ones())) == 1).all()


def test_a_constraint_sees_single_kernels(rng):
    layer = GraphConv(4, "pre_agg", kernel_constraint="unit_norm")
    kernel = rng.normal(size=(1, 16, 6, 4)).astype("float32")
    layer.build((None, 16, 6))
    constrained = ops.convert_to_numpy(layer.kernel.constraint(ops.convert_to_tensor(kernel)))
    wanted = kernel / np.linalg.norm(kernel, axis=-2, keepdims=True)
    np.testing.assert_allclose(constrained, wanted, rtol=1e-4)
    assert layer.get_config()["kernel_constraint"]["class_name"] == "UnitNorm"

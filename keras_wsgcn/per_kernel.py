"""Initializers and constraints of a stack of kernels, each as a layer with one kernel has it."""

import math

import keras
from keras import ops


def initializer(given):
    """The initializer with the scale, or the orthogonal columns, of one `(in, out)` kernel.

    Args:
        given: an initializer of Keras's, or any function of a shape.

    Returns:
        One of `(..., in, out)`. Other kinds draw their numbers one by one, and are left as they
        are; so are variance scaling with axes of its own, and classes that call otherwise.
    """

    def calls_as(kind) -> bool:
        return isinstance(given, kind) and type(given).__call__ is kind.__call__

    # The seed as it was drawn: `get_config` gives the one that was passed, often None.
    if calls_as(keras.initializers.VarianceScaling):
        if given.input_axes is not None and given.output_axes is not None:
            return given
        return keras.initializers.VarianceScaling(
            given.scale, given.mode, given.distribution, given.seed, (-2,), (-1,)
        )
    if calls_as(keras.initializers.Orthogonal):
        return lambda shape, dtype=None: _orthogonal(given, shape, dtype)
    return given


def _orthogonal(given, shape, dtype):
    """One of a seed of its own for each kernel: with the same one they would start alike."""
    seed, kernels = given.seed, []
    for number in range(math.prod(shape[:-2])):
        own = seed + number if isinstance(seed, int) else seed  # a generator moves on by itself
        draw = keras.initializers.Orthogonal(given.gain, own)
        kernels.append(draw(shape[-2:], dtype=dtype))
    return ops.reshape(ops.stack(kernels), shape)


def constraint(given):
    """The constraint for `(..., in, out)` kernels, with its axes counted as for `(in, out)`."""
    if given is None:
        return None

    def constrained(kernel):
        moved = given(ops.moveaxis(kernel, (-2, -1), (0, 1)))
        return ops.moveaxis(moved, (0, 1), (-2, -1))

    return constrained

"""The contraction behind every scheme, and batch normalisation, on `keras.ops`; joints lead."""

import functools

import keras
import numpy as np
from keras import ops

from keras_wsgcn.schemes import Contraction

# Orders of the axes. The first is that of every public door. In the others each matrix product is
# contiguous, which is the largest single lever on speed on every backend. Where each joint has a
# kernel of its own, the batch is better last: batch normalisation then adds up along rows, and a
# row is a whole number of vectors. A step takes, of what it takes with the channels last, 0.76
# (JAX), 0.94 (TensorFlow; PyTorch, compiled) and 1.0 (PyTorch) at batch 64, and 0.80, 0.83, 0.88
# and 0.96 at 256 (`pre_agg`, 4.2 M parameters, two cores). With one kernel for all joints there
# is one large product, which the batch in between would break up: at best 1.1 under JAX and torch.
LAYOUTS = {
    "bjc": "(batch, joints, channels)",
    "jbc": "(joints, batch, channels)",
    "jcb": "(joints, channels, batch)",
}


def turn(x, source: str, target: str):
    """The axes of `x` in the order of another layout."""
    return x if source == target else ops.transpose(x, turned(source, target))


def turned(source: str, target: str) -> tuple[int, ...]:
    """For each axis of layout `target`, where it stands in `source`."""
    return tuple(map(source.index, target))


def along_channels(values, layout: str):
    """`(channels,)` values, to be broadcast in a layout."""
    return values[:, None] if layout == "jcb" else values


def mixing_matrices(contraction: Contraction, affinity: np.ndarray) -> list[np.ndarray]:
    """For each part the matrix that mixes joints, from a fixed affinity, as NumPy float64.

    Args:
        contraction: the order of computing.
        affinity: `(joints, joints)`, rows are targets.

    Returns:
        Arrays shaped like the parts' `mixing_edges`.
    """
    target, source = contraction.skeleton.edges.T
    # The entry behind the last edge is the zero that -1 points to.
    weights = np.append(affinity[target, source], 0.0)
    return [weights[part.mixing_edges] for part in contraction.parts]


def learned_mixing_matrices(contraction: Contraction, logits) -> list:
    """The same from logits: a softmax over the whole neighbourhood of each target.

    Args:
        contraction: the order of computing.
        logits: `(edges,)` floating-point tensor, in the order of `Skeleton.edges`.

    Returns:
        The matrices, in the dtype of `logits`.
    """
    skeleton = contraction.skeleton
    target, source = skeleton.edges.T
    edge_at = np.full((skeleton.num_joints, skeleton.num_joints), len(target))
    edge_at[target, source] = np.arange(len(target))
    # Beside the edges stands a logit so low that its weight is an exact zero.
    outside = ops.full((1,), -1e9, dtype=logits.dtype)
    affinity = ops.softmax(_take(ops.concatenate([logits, outside]), edge_at), axis=-1)
    weights = _take(ops.reshape(affinity, (-1,)), target * skeleton.num_joints + source)
    weights = ops.concatenate([weights, ops.zeros((1,), dtype=weights.dtype)])
    # So counted, -1 is the last.
    edges = [part.mixing_edges % (len(target) + 1) for part in contraction.parts]
    return [_take(weights, of_part) for of_part in edges]


def mix_joints(matrix, x):
    """`y_i = sum over j of matrix_ij * x_j`, the joints leading.

    Args:
        matrix: `(rows, joints)`, or `(joints,)` for a diagonal one.
        x: `(joints, channels, batch)` or `(joints, batch, channels)`.

    Returns:
        The same with `rows` for `joints`.
    """
    if len(matrix.shape) == 1:
        return x * matrix[:, None, None]
    # The size of the batch may not be static.
    sizes = [-1 if size is None else size for size in x.shape[1:]]
    flat = ops.reshape(x, (matrix.shape[1], -1))
    return ops.reshape(ops.matmul(matrix, flat), (matrix.shape[0], *sizes))


def graph_conv(x, kernel, mixing, contraction: Contraction, layout: str):
    """`y_i = sum over j of a_ij * x_j @ W[k(i, j)]`.

    Args:
        x: `(joints, batch, in)` or `(joints, in, batch)`.
        kernel: `(parts, *lead, in, out)`.
        mixing: the mixing matrices of `contraction`, in the dtype of `x`.
        contraction: the order of computing.
        layout: that of `x`, "jbc" or "jcb".

    Returns:
        `x` with `out` for `in`.
    """
    total = None
    kernels = ops.unstack(kernel, axis=0)
    for part, part_kernel, matrix in zip(contraction.parts, kernels, mixing, strict=True):
        multiply = functools.partial(_multiply, layout=layout, count=len(part.products))
        if part.kernels is not None:
            part_kernel = _gather(part_kernel, part.kernels, part_kernel.shape[0])
        if part.transform_first:
            own = x if part.joints is None else _gather(x, part.joints, part.skeleton.num_joints)
            y = mix_joints(matrix, multiply(own, part_kernel))
        else:
            y = multiply(mix_joints(matrix, x), part_kernel)
            if part.summing is not None:
                y = mix_joints(ops.convert_to_tensor(part.summing, x.dtype), y)
        total = y if total is None else total + y
    return total


def batch_norm(x, scale, offset, epsilon: float, layout: str):
    """Batch normalisation over all axes but the channels, in training.

    Torch has a kernel for it. For the others the gradient is written out: the one that is derived
    reads the activations twice as often. Under TensorFlow a step takes 0.97 to 0.99 of what it did,
    and one of `fit`, which XLA does not compile, 0.86 (channels before the batch, two cores).

    Args:
        x: three axes, in a layout.
        scale: `(channels,)`.
        offset: `(channels,)`.
        epsilon: added to the variance.
        layout: that of `x`.

    Returns:
        The normalised tensor, and mean and variance of the batch, `(channels,)`; all float32.
    """
    x = ops.cast(x, "float32")
    if keras.backend.backend() == "torch":
        import torch

        y, mean, inverse = torch.native_batch_norm(
            x if layout == "jcb" else ops.reshape(x, (-1, x.shape[-1])),
            scale, offset, None, None, True, 0.0, epsilon,
        )  # fmt: skip
        return ops.reshape(y, x.shape), mean.detach(), inverse.detach() ** -2 - epsilon

    along = functools.partial(along_channels, layout=layout)
    mean_of = functools.partial(_mean, layout=layout)

    def moments(x):
        mean = mean_of(x)
        return mean, mean_of(ops.square(x - along(mean)))

    @ops.custom_gradient
    def normalise(x, scale, offset):
        mean, variance = moments(x)
        mean, inverse = along(mean), along(ops.rsqrt(variance + epsilon))
        factor = inverse * along(scale)

        def gradient(dy):
            y = (x - mean) * inverse
            mean_dy, mean_dy_y = mean_of(dy), mean_of(dy * y)
            count = ops.cast(ops.size(x) // scale.shape[0], x.dtype)
            dx = factor * (dy - along(mean_dy) - y * along(mean_dy_y))
            return dx, mean_dy_y * count, mean_dy * count

        return (x - mean) * factor + along(offset), gradient

    # Reshaped, for TensorFlow's variables are no arguments of a custom gradient.
    scale, offset = (ops.reshape(values, (-1,)) for values in (scale, offset))
    return normalise(x, scale, offset), *moments(ops.stop_gradient(x))


def _mean(x, layout: str):
    """The mean of each channel: over one axis after another, so there is more to share out."""
    return ops.mean(ops.mean(x, axis=2 if layout == "jcb" else 1), axis=0)


def _multiply(x, kernel, layout: str, count: int):
    """Products with a kernel for each row of `x`, or one for all.

    Args:
        x: `(count, batch, in)` or `(count, in, batch)`.
        kernel: `(count, in, out)` or `(in, out)`.
        layout: that of `x`.
        count: number of rows.

    Returns:
        `x` with `out` for `in`.
    """
    if layout == "jcb":
        return _multiply_batch_last(x, ops.broadcast_to(kernel, (count, *kernel.shape[-2:])))
    if len(kernel.shape) == 2:  # one kernel for all joints: a single large product
        flat = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), kernel)
        return ops.reshape(flat, (count, -1, kernel.shape[-1]))
    return ops.matmul(x, kernel)


@ops.custom_gradient
def _multiply_batch_last(x, kernel):
    """Products `(joints, out, batch)` of `(joints, in, batch)` and `(joints, in, out)`.

    The gradient that is derived for the kernels lies transposed, and to turn it takes up to a sixth
    of a step; here it is computed as it shall lie.
    """

    def gradient(*args, upstream=None):
        if upstream is None:
            (upstream,) = args
        by_kernel = ops.matmul(x, ops.transpose(upstream, (0, 2, 1)))
        return ops.matmul(kernel, upstream), by_kernel

    return ops.matmul(ops.transpose(kernel, (0, 2, 1)), x), gradient


def _gather(x, indices: np.ndarray, rows: int):
    """Rows `(indices, a, b)` of `(rows, a, b)`.

    The gradient, which adds up the rows of one index, is a product with a 0/1 matrix. Derived, it
    is a scatter, which a GPU adds in any order (PyTorch: no two runs alike) or, made to keep to
    one, slowly (JAX, H100: 6.3 instead of 1.1 ms for a whole step of `no_sharing`).
    """
    return _gatherer(tuple(indices), rows)(x)


# Kept, for to PyTorch's tracer another function would be another graph.
@functools.lru_cache(maxsize=64)
def _gatherer(indices: tuple[int, ...], rows: int):
    chosen = np.array(indices)
    summing = (chosen == np.arange(rows)[:, None]).astype(float)

    @ops.custom_gradient
    def gather(x):
        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            return mix_joints(ops.convert_to_tensor(summing, upstream.dtype), upstream)

        return _take(x, chosen), gradient

    return gather


def _take(x, indices: np.ndarray):
    """`x[indices]`.

    Under torch from two axes: from any other number Keras takes by an operator that the converters
    to ONNX and OpenVINO do not know (`model.export`).
    """
    if keras.backend.backend() != "torch":
        return ops.take(x, indices, axis=0)
    taken = ops.take(ops.reshape(x, (x.shape[0], -1)), indices, axis=0)
    return ops.reshape(taken, (*indices.shape, *x.shape[1:]))

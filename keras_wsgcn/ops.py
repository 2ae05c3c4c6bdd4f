"""The contraction behind every scheme, and the non-local mixing, on `keras.ops`.

Here the joints lead, `(joints, batch, channels)`: each matrix product is then contiguous, which is
the largest single lever on speed on every backend.
"""

import keras
import numpy as np
from keras import ops

from keras_wsgcn.schemes import Contraction


def mixing_matrices(contraction: Contraction, affinity: np.ndarray) -> list[np.ndarray]:
    """For each part the matrix that mixes joints, from a fixed affinity, as NumPy float64.

    Args:
        contraction: the order of computing.
        affinity: `(joints, joints)`, rows are targets.

    Returns:
        Arrays shaped like `contraction.mixing_edges`.
    """
    target, source = contraction.skeleton.edges.T
    # The entry behind the last edge is the zero that -1 points to.
    weights = np.append(affinity[target, source], 0.0)
    return [weights[edges] for edges in contraction.mixing_edges]


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
    affinity = ops.softmax(ops.take(ops.concatenate([logits, outside]), edge_at), axis=-1)
    weights = ops.take(ops.reshape(affinity, (-1,)), target * skeleton.num_joints + source)
    weights = ops.concatenate([weights, ops.zeros((1,), dtype=weights.dtype)])
    return [ops.take(weights, edges % (len(target) + 1)) for edges in contraction.mixing_edges]


def mix_joints(matrix, x):
    """`y_i = sum over j of matrix_ij * x_j` of `(joints, batch, channels)`.

    Args:
        matrix: `(rows, joints)`, or `(joints,)` for a diagonal one.
        x: `(joints, batch, channels)`.

    Returns:
        `(rows, batch, channels)`.
    """
    if len(matrix.shape) == 1:
        return x * matrix[:, None, None]
    channels = x.shape[-1]
    flat = ops.reshape(x, (matrix.shape[1], -1))  # the axis of `x` may not be static
    return ops.reshape(ops.matmul(matrix, flat), (matrix.shape[0], -1, channels))


def graph_conv(x, kernel, mixing, contraction: Contraction):
    """`y_i = sum over j of a_ij * x_j @ W[k(i, j)]`.

    Args:
        x: `(joints, batch, in)`.
        kernel: `(parts, *lead, in, out)`.
        mixing: the mixing matrices of `contraction`, in the dtype of `x`.
        contraction: the order of computing.

    Returns:
        `(joints, batch, out)`.
    """
    total = None
    for part, part_kernel in enumerate(ops.unstack(kernel, axis=0)):
        joints, kernels = contraction.gathers[part]
        count = len(contraction.products[part])
        if kernels is not None:
            part_kernel = _gather(part_kernel, kernels, part_kernel.shape[0])
        if contraction.transform_first:
            own = x if joints is None else _gather(x, joints, contraction.skeleton.num_joints)
            y = mix_joints(mixing[part], _multiply(own, part_kernel, count))
        else:
            y = _multiply(mix_joints(mixing[part], x), part_kernel, count)
            if contraction.summing[part] is not None:
                y = mix_joints(ops.convert_to_tensor(contraction.summing[part], x.dtype), y)
        total = y if total is None else total + y
    return total


def batch_norm(x, scale, offset, epsilon: float):
    """Batch normalisation over the last axis, in training, under torch or JAX.

    Torch has a kernel for it. Under JAX the gradient is written out: the one that is derived reads
    the activations twice as often.

    Args:
        x: `(..., channels)`.
        scale: `(channels,)`.
        offset: `(channels,)`.
        epsilon: added to the variance.

    Returns:
        The normalised tensor, and mean and variance of the batch, `(channels,)`; all float32.
    """
    x = ops.cast(x, "float32")
    if keras.backend.backend() == "torch":
        import torch

        flat = ops.reshape(x, (-1, x.shape[-1]))
        y, mean, inverse = torch.native_batch_norm(
            flat, scale, offset, None, None, True, 0.0, epsilon
        )
        return ops.reshape(y, x.shape), mean.detach(), inverse.detach() ** -2 - epsilon

    @ops.custom_gradient
    def normalise(x, scale, offset):
        mean, variance = _moments(x)
        inverse = ops.rsqrt(variance + epsilon)

        def gradient(dy):
            y = (x - mean) * inverse
            mean_dy, mean_dy_y = _mean(dy), _mean(dy * y)
            count = ops.cast(ops.size(x) // x.shape[-1], x.dtype)
            dx = scale * inverse * (dy - mean_dy - y * mean_dy_y)
            return dx, mean_dy_y * count, mean_dy * count

        return (x - mean) * (inverse * scale) + offset, gradient

    return normalise(x, scale, offset), *_moments(ops.stop_gradient(x))


def _moments(x):
    """Mean and variance over all axes but the last."""
    mean = _mean(x)
    return mean, _mean(ops.square(x - mean))


def _mean(x):
    """The mean over all axes but the last, one after another: so there is more to share out."""
    while len(x.shape) > 1:
        x = ops.mean(x, axis=-2)
    return x


def _multiply(x, kernel, count: int):
    """Products `(count, batch, out)` of `(count, batch, in)` with the kernel of each, or one."""
    if len(kernel.shape) == 2:  # one kernel for all joints: a single large product
        flat = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), kernel)
        return ops.reshape(flat, (count, -1, kernel.shape[-1]))
    return ops.matmul(x, kernel)


def _gather(x, indices: np.ndarray, rows: int):
    """Rows `(indices, a, b)` of `(rows, a, b)`.

    The gradient, which adds up the rows of one index, is a product with a 0/1 matrix. Derived, it
    is a scatter, which a GPU adds in any order (PyTorch: no two runs alike) or, made to keep to
    one, slowly (JAX, H100: 6.3 instead of 1.1 ms for a whole step of `no_sharing`).
    """
    summing = (indices == np.arange(rows)[:, None]).astype(float)

    @ops.custom_gradient
    def gather(x):
        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            return mix_joints(ops.convert_to_tensor(summing, upstream.dtype), upstream)

        return ops.take(x, indices, axis=0), gradient

    return gather(x)

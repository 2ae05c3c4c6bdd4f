"""The contraction behind every scheme, and the non-local mixing, on `keras.ops`.

Here the joints lead, `(joints, batch, channels)`: each matrix product is then contiguous, which is
the largest single lever on speed on every backend.
"""

import numpy as np
from keras import ops

from keras_wsgcn.schemes import Contraction


def mixing_matrix(contraction: Contraction, affinity: np.ndarray) -> np.ndarray:
    """The matrix that mixes joints, from a fixed affinity, as NumPy float64.

    Args:
        contraction: the order of computing.
        affinity: `(joints, joints)`, rows are targets.

    Returns:
        `(joints, products)` where the transform comes first, else `(products, joints)`.
    """
    target, source = contraction.skeleton.edges.T
    # The entry behind the last edge is the zero that -1 points to.
    return np.append(affinity[target, source], 0.0)[contraction.mixing_edges]


def learned_mixing_matrix(contraction: Contraction, logits):
    """The same from logits: a softmax over the whole neighbourhood of each target.

    Args:
        contraction: the order of computing.
        logits: `(edges,)` floating-point tensor, in the order of `Skeleton.edges`.

    Returns:
        The matrix, in the dtype of `logits`.
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
    return ops.take(weights, contraction.mixing_edges % (len(target) + 1))


def mix_joints(matrix, x):
    """`y_i = sum over j of matrix_ij * x_j`: `(rows, joints)`, `(joints, batch, channels)`."""
    channels = x.shape[-1]
    flat = ops.reshape(x, (matrix.shape[1], -1))  # the axis of `x` itself may not be static
    return ops.reshape(ops.matmul(matrix, flat), (matrix.shape[0], -1, channels))


def graph_conv(x, kernel, mixing, contraction: Contraction):
    """`y_i = sum over j of a_ij * x_j @ W[k(i, j)]`.

    Args:
        x: `(joints, batch, in)`.
        kernel: `(parts, *lead, in, out)`.
        mixing: the mixing matrix of `contraction`, in the dtype of `x`.
        contraction: the order of computing.

    Returns:
        `(joints, batch, out)`.
    """
    kernels = ops.unstack(kernel, axis=0)
    if contraction.transform_first:
        parts = [x] * len(kernels)
    else:
        parts = [mix_joints(mixing, x)]
        if contraction.part_starts:
            # Not sliced: TensorFlow's gradient of a slice pads it to the whole with zeros.
            parts = ops.split(parts[0], contraction.part_starts, axis=0)
    products = [
        _multiply(part, part_kernel, len(rows), *gather)
        for part, part_kernel, rows, gather in zip(
            parts, kernels, contraction.products, contraction.gathers, strict=True
        )
    ]
    if contraction.transform_first:
        return mix_joints(mixing, _concatenate(products))
    if contraction.summing is None:
        return sum(products[1:], start=products[0])
    return mix_joints(ops.convert_to_tensor(contraction.summing, x.dtype), _concatenate(products))


def _multiply(x, kernel, count: int, joints: np.ndarray | None, kernels: np.ndarray | None):
    """Products `(count, batch, out)` of `(joints, batch, in)` with the kernels of one part."""
    if joints is not None:
        x = ops.take(x, joints, axis=0)
    if len(kernel.shape) == 2:  # one kernel for all joints: a single large product
        flat = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), kernel)
        return ops.reshape(flat, (count, -1, kernel.shape[-1]))
    if kernels is not None:
        kernel = ops.take(kernel, kernels, axis=0)
    return ops.matmul(x, kernel)


def _concatenate(tensors: list):
    return tensors[0] if len(tensors) == 1 else ops.concatenate(tensors, axis=0)

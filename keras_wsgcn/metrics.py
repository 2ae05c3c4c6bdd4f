"""How far a predicted pose is from the true one: functions on NumPy arrays, Keras metrics on top.

Each error is written once, for NumPy and `keras.ops` alike. Poses in metres, errors in millimetres.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_wsgcn.errors import InputError

MM_PER_METRE = 1000.0
# The thresholds of MPI-INF-3DHP's own evaluation (`mpii_compute_3d_pck.m`).
AUC_THRESHOLDS_MM = tuple(range(0, 151, 5))
# Poses in work at a time: few enough for the cache of a core, many enough for NumPy to be quick.
_CHUNK = 2048
# Squarings of Horn's matrix. What is left of the second best rotation shrinks by
# exp(-gap * 2**_SQUARINGS), where `gap` is their relative distance: 32 tell apart gaps of 1e-8.
_SQUARINGS = 32


# --- on NumPy arrays ----------------------------------------------------------------------------


def mpjpe(y_true: Any, y_pred: Any) -> np.ndarray:
    """Mean per-joint position error of each pose (Protocol 1).

    The mean Euclidean distance over the joints, the root counted. Nothing is aligned here:
    Protocol 1 is root-relative, so both poses must be relative to their root already.

    Args:
        y_true: true poses in metres, `(..., joints, 3)`.
        y_pred: predicted poses in metres, of the same shape.

    Returns:
        The error of each pose in millimetres, `(...)` float64. It is not averaged over the
        poses, so that a caller can average by action.

    Raises:
        InputError: if the arrays are not finite numbers or not poses of one shape.

    Example:
    >>> mpjpe([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 1.1, 0.0]]).round(3)
    np.float64(50.0)
    """
    return _per_pose(_mpjpe, y_true, y_pred)


def p_mpjpe(y_true: Any, y_pred: Any) -> np.ndarray:
    """MPJPE of each pose after the best similarity transform (Protocol 2).

    The prediction is first moved onto the truth as in `procrustes_align`, which also defines
    what happens to degenerate poses. The transform is the best one for the *squared* error, as
    in every published result; single poses may have a larger P-MPJPE than MPJPE.

    Args:
        y_true: true poses in metres, `(..., joints, 3)`.
        y_pred: predicted poses in metres, of the same shape.

    Returns:
        The error of each pose in millimetres, `(...)` float64.

    Raises:
        InputError: if the arrays are not finite numbers or not poses of one shape.

    Reference:
        Pavllo et al., 3D human pose estimation in video with temporal convolutions and
        semi-supervised training, CVPR 2019 (`p_mpjpe` of its code).
    """
    return _per_pose(_p_mpjpe, y_true, y_pred)


def n_mpjpe(y_true: Any, y_pred: Any) -> np.ndarray:
    """MPJPE of each pose after the best scaling of the prediction.

    The scale is `<y_true, y_pred> / <y_pred, y_pred>`, the best one for the squared error; it is
    negative where the poses point in opposite directions, and 0 for a prediction that is 0 in all
    joints. As in `mpjpe`, both poses must be relative to their root.

    Args:
        y_true: true poses in metres, `(..., joints, 3)`.
        y_pred: predicted poses in metres, of the same shape.

    Returns:
        The error of each pose in millimetres, `(...)` float64.

    Raises:
        InputError: if the arrays are not finite numbers or not poses of one shape.

    Reference:
        Rhodin et al., Unsupervised geometry-aware representation for 3D human pose estimation,
        ECCV 2018 (N-MPJPE).
    """
    return _per_pose(_n_mpjpe, y_true, y_pred)


def pck(y_true: Any, y_pred: Any, threshold_mm: float = 150.0) -> np.ndarray:
    """Percentage of correct keypoints of each pose (3DPCK).

    A joint is correct if its error is *below* the threshold. As in `mpjpe`, both poses must be
    relative to their root, which counts as a joint.

    Args:
        y_true: true poses in metres, `(..., joints, 3)`.
        y_pred: predicted poses in metres, of the same shape.
        threshold_mm: the error below which a joint is correct, in millimetres.

    Returns:
        The share of correct joints of each pose in percent, `(...)` float64.

    Raises:
        InputError: if the arrays are not finite numbers or not poses of one shape, or the
            threshold is not a positive number.

    Reference:
        Mehta et al., Monocular 3D human pose estimation in the wild using improved CNN
        supervision, 3DV 2017 (MPI-INF-3DHP).
    """
    is_number = isinstance(threshold_mm, int | float | np.integer | np.floating)
    if not is_number or not 0 < threshold_mm < np.inf:
        raise InputError(
            "`threshold_mm` must be a positive number of millimetres. "
            f"Received: threshold_mm={threshold_mm!r}"
        )
    return _per_pose(_pck, y_true, y_pred, threshold_mm=threshold_mm)


def auc(y_true: Any, y_pred: Any) -> np.ndarray:
    """Area under the 3DPCK curve of each pose.

    The mean of `pck` at the 31 thresholds 0, 5, ..., 150 mm. No error is below 0, so that a
    perfect pose has 30/31, 96.8 percent: the convention of MPI-INF-3DHP (see `pck`).

    Args:
        y_true: true poses in metres, `(..., joints, 3)`.
        y_pred: predicted poses in metres, of the same shape.

    Returns:
        The area of each pose in percent, `(...)` float64.

    Raises:
        InputError: if the arrays are not finite numbers or not poses of one shape.
    """
    return _per_pose(_auc, y_true, y_pred)


def procrustes_align(y_true: Any, y_pred: Any) -> np.ndarray:
    """Moves each predicted pose onto the true one by the best similarity transform.

    Of all scales s >= 0, rotations R and translations t, those with the least
    `sum over joints of |s R y_pred + t - y_true|^2`. R is no reflection, so a mirrored pose
    does not fit. Every pair of poses has a finite result:

    - Joints that all lie in one point, in truth or prediction, fix no rotation and no scale: the
      result has all joints in the centre of the true ones. A spread at the level of rounding
      (8 machine epsilons of the largest coordinate) counts as one point.
    - Joints on one line leave the turn about it open; any turn has the same error.
    - Where different rotations fit equally well otherwise (some mirrored poses), one is taken,
      always the same for the same input.

    Args:
        y_true: true poses in metres, `(..., joints, 3)`.
        y_pred: predicted poses in metres, of the same shape.

    Returns:
        The moved predictions in metres, `(..., joints, 3)` float64.

    Raises:
        InputError: if the arrays are not finite numbers or not poses of one shape.

    Reference:
        Horn, Closed-form solution of absolute orientation using unit quaternions, JOSA A, 1987.
    """
    return _per_pose(lambda *poses: np.moveaxis(_align(*poses), (0, 1), (-1, -2)), y_true, y_pred)


def _per_pose(function: Callable, y_true: Any, y_pred: Any, **arguments: Any) -> np.ndarray:
    """Runs one of the errors below over chunks of poses, in float64."""
    y_true, y_pred = _checked_poses(y_true, "y_true"), _checked_poses(y_pred, "y_pred")
    if y_true.shape != y_pred.shape:
        raise InputError(
            "`y_true` and `y_pred` must have the same shape. "
            f"Received: y_true.shape={y_true.shape}, y_pred.shape={y_pred.shape}"
        )
    batch, pose = y_true.shape[:-2], y_true.shape[-2:]
    flat = [array.reshape(-1, *pose) for array in (y_true, y_pred)]
    results = []
    for start in range(0, max(len(flat[0]), 1), _CHUNK):  # no poses are one empty chunk
        chunk = [_coordinates_first(np, a[start : start + _CHUNK].astype(float)) for a in flat]
        results.append(function(np, *map(np.ascontiguousarray, chunk), **arguments))
    result = np.concatenate(results)
    return result.reshape(batch + result.shape[1:])[()]


def _checked_poses(value: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(ops.convert_to_numpy(value) if ops.is_tensor(value) else value)
        array = array if array.dtype.kind in "fiu" else array.astype(np.float64, casting="safe")
    except (TypeError, ValueError, RuntimeError):  # the last: PyTorch's, of one with a gradient
        raise InputError(
            f"`{name}` must be an array of numbers. Received: type({name})={type(value)}"
        ) from None
    if array.ndim < 2 or array.shape[-1] != 3 or array.shape[-2] == 0:
        raise InputError(
            f"`{name}` must have the shape (..., joints, 3). Received: {name}.shape={array.shape}"
        )
    if not np.isfinite(array).all():
        first = np.argwhere(~np.isfinite(array))[0].tolist()
        raise InputError(
            f"`{name}` must hold finite numbers only; the one at {first} is not. "
            f"Received: {name}.shape={array.shape}"
        )
    return array


# --- the errors, written once -------------------------------------------------------------------
#
# `xp` is `numpy` or `keras.ops`. Coordinates and joints lead, `(3, joints, ...)`: whatever there
# is per pose then broadcasts by itself, and NumPy's inner loops run over many poses.
#
# All products are elementwise: GPUs may run matrix products of float32 in TensorFloat-32, whose
# 10 bits are off by a millimetre at the size of a body.


def _coordinates_first(xp: Any, poses: Any) -> Any:
    return xp.moveaxis(poses, (-1, -2), (0, 1))


def _distances_mm(xp: Any, x: Any, y: Any) -> Any:
    """Distance of each joint in millimetres, `(joints, ...)`."""
    return MM_PER_METRE * xp.sqrt(xp.sum((x - y) ** 2, axis=0))


def _mpjpe(xp: Any, x: Any, y: Any) -> Any:
    return xp.mean(_distances_mm(xp, x, y), axis=0)


def _p_mpjpe(xp: Any, x: Any, y: Any) -> Any:
    return _mpjpe(xp, x, _align(xp, x, y))


def _n_mpjpe(xp: Any, x: Any, y: Any) -> Any:
    return _mpjpe(xp, x, _best_scale(xp, x, y) * y)


def _pck(xp: Any, x: Any, y: Any, threshold_mm: float) -> Any:
    return _percent_below(xp, _distances_mm(xp, x, y), threshold_mm)


def _auc(xp: Any, x: Any, y: Any) -> Any:
    distances = _distances_mm(xp, x, y)
    shares = [_percent_below(xp, distances, threshold) for threshold in AUC_THRESHOLDS_MM]
    return sum(shares) / len(shares)


def _percent_below(xp: Any, distances: Any, threshold: float) -> Any:
    return 100.0 * xp.mean(distances < threshold, axis=0)


def _align(xp: Any, x: Any, y: Any) -> Any:
    """The poses y moved onto x; see `procrustes_align`. All are `(3, joints, ...)`."""
    x, spread, centre = _unit_spread(xp, x)
    y, _, _ = _unit_spread(xp, y)
    rotated = _rotate(xp, _best_rotation(xp, x, y), y)
    return centre + spread * _best_scale(xp, x, rotated) * rotated


def _unit_spread(xp: Any, x: Any) -> tuple[Any, Any, Any]:
    """Centred joints divided by their spread, 0 for a point; the spread `(...)`; the centre.

    The products of large or of tiny coordinates then neither overflow nor vanish.
    """
    rounding = 8 * _epsilon(x) * xp.max(xp.abs(x), axis=(0, 1))
    centre = xp.mean(x, axis=1, keepdims=True)
    spread = xp.max(xp.abs(x - centre), axis=(0, 1))
    is_point = spread <= rounding
    unit = (x - centre) / xp.where(is_point, xp.ones_like(spread), spread)
    return xp.where(is_point, xp.zeros_like(x), unit), spread, centre


def _epsilon(x: Any) -> float:
    return float(np.finfo(keras.backend.standardize_dtype(x.dtype)).eps)


def _best_scale(xp: Any, x: Any, y: Any) -> Any:
    """The factor `(...)` that brings y nearest to x, 0 where y is 0."""
    square = xp.sum(y * y, axis=(0, 1))
    # Where y is 0, so is the numerator.
    return xp.sum(x * y, axis=(0, 1)) / xp.where(square == 0, xp.ones_like(square), square)


def _best_rotation(xp: Any, x: Any, y: Any) -> Any:
    """The unit quaternions `(4, ...)` of the rotations that bring y nearest to x.

    Each is the eigenvector of Horn's symmetric 4x4 matrix to its largest eigenvalue. Shifted to
    have no negative eigenvalue and squared again and again, the matrix tends to the projection
    onto that vector: a fixed number of sums and products, on every backend and compiled or not.
    """
    horn, norm = _horn_matrix(xp, x, y)
    identity = xp.reshape(xp.eye(4, dtype=x.dtype), (4, 4) + (1,) * (len(x.shape) - 2))
    # No eigenvalue is below -sqrt(3) |cross covariance|; the epsilon lets a zero matrix pass.
    shift = 3**0.5 * norm + _epsilon(x)
    power = horn + shift * identity
    for _ in range(_SQUARINGS):
        power = power / xp.sum(identity * power, axis=(0, 1))
        power = xp.sum(power[:, :, None] * power[None], axis=1)
    # Every column is a multiple of the eigenvector; that of the largest diagonal entry is the
    # most exact. It is an eigenvector, too, where several share the largest eigenvalue.
    diagonal = xp.stack([power[i, i] for i in range(4)])
    largest = xp.argmax(diagonal, axis=0)
    column = xp.take_along_axis(power, largest[None, None], axis=1)[:, 0]
    column = column / xp.max(xp.abs(column), axis=0)
    return column / xp.sqrt(xp.sum(column * column, axis=0))


def _horn_matrix(xp: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Horn's matrix `(4, 4, ...)` and the Frobenius norm `(...)` of the cross covariance."""
    s = [[xp.sum(y[a] * x[b], axis=0) for b in range(3)] for a in range(3)]
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = s
    rows = [
        [xx + yy + zz, yz - zy, zx - xz, xy - yx],
        [yz - zy, xx - yy - zz, xy + yx, zx + xz],
        [zx - xz, xy + yx, yy - xx - zz, yz + zy],
        [xy - yx, zx + xz, yz + zy, zz - xx - yy],
    ]
    norm = xp.sqrt(sum(entry * entry for row in s for entry in row))
    return xp.stack([xp.stack(row) for row in rows]), norm


def _rotate(xp: Any, quaternion: Any, y: Any) -> Any:
    """Each joint v of y becomes v + 2 q x (q x v + w v), with the quaternion (w, q)."""
    w, q = quaternion[0], quaternion[1:]
    return y + 2.0 * _cross(xp, q, _cross(xp, q, y) + w * y)


def _cross(xp: Any, q: Any, y: Any) -> Any:
    return xp.stack([q[a - 2] * y[a - 1] - q[a - 1] * y[a - 2] for a in range(3)])


# --- as Keras metrics ---------------------------------------------------------------------------


class _PoseMetric(keras.metrics.Mean):
    """The mean over poses of one of the errors above, computed in float32 or wider."""

    _error: Callable  # set by each subclass
    _joint_errors: Callable | None = None  # (joints, batch, ...), where joints can be weighted
    _direction = "down"  # Keras's callbacks read it: less is better

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds the poses `(batch, ..., joints, 3)` in metres, weighted by `sample_weight`.

        A weight for each pose, or for `MPJPE` for each joint, `(batch, ..., joints)`.
        """
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        # Unequal shapes would broadcast against each other, to a plausible number.
        sizes = list(zip(y_true.shape, y_pred.shape, strict=False))
        unequal = any(None not in pair and pair[0] != pair[1] for pair in sizes)
        if unequal or len(y_true.shape) != len(y_pred.shape) or 3 not in sizes[-1]:
            raise InputError(
                "`y_true` and `y_pred` must have the same shape (batch, ..., joints, 3). Received: "
                f"y_true.shape={tuple(y_true.shape)}, y_pred.shape={tuple(y_pred.shape)}"
            )
        # Half precision would round the errors to 0.5 mm and more.
        dtype = keras.backend.result_type(y_true.dtype, y_pred.dtype, "float32")
        x, y = (_coordinates_first(ops, ops.cast(tensor, dtype)) for tensor in (y_true, y_pred))
        errors, joints = type(self)._error(ops, x, y), y_true.shape[-2]
        weights: tuple[int | None, ...] = tuple(np.shape(sample_weight))
        if len(weights) == len(errors.shape) + 2 and weights[-1] == 1:  # a mask
            sample_weight, weights = ops.squeeze(sample_weight, axis=-1), weights[:-1]
        if len(weights) > len(errors.shape) and weights[-1] != 1:
            if (each := type(self)._joint_errors) is None or weights[-1] not in (None, joints):
                raise InputError(
                    "`sample_weight` must be a number for each pose, or, for MPJPE, each joint. "
                    f"Received: sample_weight.shape={weights} for {tuple(y_true.shape)}"
                )
            errors = ops.moveaxis(each(ops, x, y), 0, -1)
        super().update_state(errors, sample_weight=sample_weight)


@keras.saving.register_keras_serializable(package="keras_wsgcn")
class MPJPE(_PoseMetric):
    """Mean per-joint position error in millimetres, of poses in metres; see `mpjpe`.

    Unlike `evaluate`, and `train` where it validates, it aligns nothing at the root.
    Takes `(batch, ..., joints, 3)` metres, both the same shape; others raise `InputError`.

    Args:
        name: name of the metric, a column of the history.
        dtype: dtype of the mean; the errors are computed in float32 or wider.

    Example:
    >>> model.compile(optimizer="adam", loss="mse", metrics=[MPJPE(), PMPJPE()])
    """

    _error = staticmethod(_mpjpe)
    _joint_errors = staticmethod(_distances_mm)

    def __init__(self, name: str = "mpjpe_mm", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)


@keras.saving.register_keras_serializable(package="keras_wsgcn")
class PMPJPE(_PoseMetric):
    """MPJPE in millimetres after the best similarity transform; see `p_mpjpe`.

    Takes `(batch, ..., joints, 3)` metres, both the same shape; others raise `InputError`.

    Args:
        name: name of the metric, a column of the history.
        dtype: dtype of the mean; the errors are computed in float32 or wider.
    """

    _error = staticmethod(_p_mpjpe)

    def __init__(self, name: str = "p_mpjpe_mm", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)

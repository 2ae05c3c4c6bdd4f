"""How far a predicted pose is from the true one: functions on NumPy arrays, Keras metrics on top.

Each error is written once, for NumPy and `keras.ops` alike. Poses in metres, errors in millimetres.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_wsgcn.alignment import align, best_scale
from keras_wsgcn.errors import InputError, check_integer, check_number

MM_PER_METRE = 1000.0
# The thresholds of MPI-INF-3DHP's own evaluation (`mpii_compute_3d_pck.m`).
AUC_THRESHOLDS_MM = tuple(range(0, 151, 5))
# Poses in work at a time: few enough for the cache of a core, many enough for NumPy to be quick.
_CHUNK = 2048


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
    check_number("threshold_mm", threshold_mm, above=0)
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
    return _per_pose(lambda *poses: np.moveaxis(align(*poses), (0, 1), (-1, -2)), y_true, y_pred)


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
    return _mpjpe(xp, x, align(xp, x, y))


def _n_mpjpe(xp: Any, x: Any, y: Any) -> Any:
    return _mpjpe(xp, x, best_scale(xp, x, y) * y)


def _pck(xp: Any, x: Any, y: Any, threshold_mm: float) -> Any:
    return _percent_below(xp, _distances_mm(xp, x, y), threshold_mm)


def _auc(xp: Any, x: Any, y: Any) -> Any:
    distances = _distances_mm(xp, x, y)
    shares = [_percent_below(xp, distances, threshold) for threshold in AUC_THRESHOLDS_MM]
    return sum(shares) / len(shares)


def _percent_below(xp: Any, distances: Any, threshold: float) -> Any:
    return 100.0 * xp.mean(distances < threshold, axis=0)


# --- as Keras metrics ---------------------------------------------------------------------------


def _as_tensor(values: Any) -> Any:
    try:
        return ops.convert_to_tensor(values)
    except TypeError:  # Apple's GPUs know no float64
        return ops.convert_to_tensor(values, "float32")


class _FittingMean(keras.metrics.Mean):
    """A mean that refuses weights, or a mask, which are of other things than its values."""

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        weights: tuple[int | None, ...] = tuple(np.shape(sample_weight))
        more, last = len(weights) - len(values.shape), weights[-1] if weights else 1
        equal = more == 0 and (last in (None, 1) or values.shape[-1] in (None, last))
        if not (more < 0 or equal or (more == 1 and last == 1)):
            raise InputError(
                "`sample_weight`, or a mask, must be a number for each pose, or, for MPJPE, each "
                f"joint. Received: sample_weight.shape={weights} for errors {tuple(values.shape)}"
            )
        super().update_state(values, sample_weight=sample_weight)


class _PoseMetric(keras.metrics.MeanMetricWrapper, _FittingMean):
    """The mean of one of the errors above, over poses `(batch, ..., joints, 3)` in metres.

    Its base leaves out what Keras masks, as Keras's own losses and metrics do.
    """

    _errors: Callable  # of each subclass: of each pose, or of each joint of it, joints last
    _direction = "down"  # Keras's callbacks read it: less is better

    def __init__(self, name: str, dtype: Any):
        super().__init__(self._checked_errors, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}

    def _checked_errors(self, y_true: Any, y_pred: Any) -> Any:
        y_true, y_pred = _as_tensor(y_true), _as_tensor(y_pred)
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
        poses = (_coordinates_first(ops, ops.cast(tensor, dtype)) for tensor in (y_true, y_pred))
        return self._errors(ops, *poses)


@keras.saving.register_keras_serializable(package="keras_wsgcn")
class MPJPE(_PoseMetric):
    """Mean per-joint position error in millimetres, of poses in metres; see `mpjpe`.

    Takes `(batch, ..., joints, 3)` metres, both the same shape; others raise `InputError`.
    `sample_weight`, and a mask of Keras's, may be of poses or of joints, `(batch, ..., joints)`.

    Args:
        name: name of the metric, a column of the history.
        dtype: dtype of the mean; the errors are computed in float32 or wider.
        root: index of the joint that is moved to the origin in both poses first, as `evaluate`
            does, and `train` where it validates (Protocol 1). By default nothing is aligned.

    Example:
    >>> model.compile(optimizer="adam", loss="mse", metrics=[MPJPE(root=0), PMPJPE()])
    """

    def __init__(self, name: str = "mpjpe_mm", dtype: Any = None, *, root: int | None = None):
        super().__init__(name=name, dtype=dtype)
        self.root = None if root is None else check_integer("root", root, least=0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "root": self.root}

    def _errors(self, xp: Any, *poses: Any) -> Any:
        if self.root is not None:
            if (joints := poses[0].shape[1]) is not None and self.root >= joints:
                raise InputError(
                    f"`root` must be the index of one of {joints} joints. "
                    f"Received: root={self.root}"
                )
            poses = tuple(pose - pose[:, self.root, None] for pose in poses)
        return xp.moveaxis(_distances_mm(xp, *poses), 0, -1)


@keras.saving.register_keras_serializable(package="keras_wsgcn")
class PMPJPE(_PoseMetric):
    """MPJPE in millimetres after the best similarity transform; see `p_mpjpe`.

    Takes `(batch, ..., joints, 3)` metres, both the same shape; others raise `InputError`.
    `sample_weight`, and a mask of Keras's, must be of poses.

    Args:
        name: name of the metric, a column of the history.
        dtype: dtype of the mean; the errors are computed in float32 or wider.
    """

    _errors = staticmethod(_p_mpjpe)

    def __init__(self, name: str = "p_mpjpe_mm", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)

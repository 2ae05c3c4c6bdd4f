"""The best similarity transform between poses, on NumPy or `keras.ops`; coordinates, joints lead.

`xp` is `numpy` or `keras.ops`, the poses are `(3, joints, ...)`; see `metrics.py`.
"""

from typing import Any

import keras
import numpy as np

# Squarings of Horn's matrix. What is left of the second best rotation shrinks by
# exp(-gap * 2**_SQUARINGS), where `gap` is their relative distance: 32 tell apart gaps of 1e-8.
_SQUARINGS = 32


def align(xp: Any, x: Any, y: Any) -> Any:
    """The poses y moved onto x; see `procrustes_align`. All are `(3, joints, ...)`."""
    x, spread, centre = _unit_spread(xp, x)
    y, _, _ = _unit_spread(xp, y)
    rotated = _rotate(xp, _best_rotation(xp, x, y), y)
    return centre + spread * best_scale(xp, x, rotated) * rotated


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


def best_scale(xp: Any, x: Any, y: Any) -> Any:
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

"""Cameras: world to camera to pixels to normalised screen coordinates, and all the way back."""

import functools
from dataclasses import dataclass

import numpy as np

from keras_wsgcn.errors import InputError, check_numbers, check_string, shown

# Newton-like steps for inverting a lens distortion; each gains about two digits on real lenses.
_UNDISTORT_STEPS = 30
_UNDISTORT_ERROR = 1e-4  # on the plane z = 1: a tenth of a pixel at a focal length of 1000


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with optional lens distortion.

    A point p of the world lies at `rotation @ (p - position)` in the camera frame: x right, y
    down, z forward. Distortion is the Brown-Conrady model as OpenCV has it.

    Args:
        rotation: `(3, 3)`, the rows are the camera's axes in the world.
        position: `(3,)`, metres, in the world.
        focal_length: `(2,)`, pixels.
        principal_point: `(2,)`, pixels.
        image_size: (width, height), pixels.
        radial: radial coefficients k1, k2, k3.
        tangential: tangential coefficients p1, p2.
        name: what the camera is called.

    Raises:
        InputError: if a shape is wrong, `rotation` is no rotation, or a length is not positive.
    """

    rotation: np.ndarray
    position: np.ndarray
    focal_length: np.ndarray
    principal_point: np.ndarray
    image_size: tuple[int, int]
    radial: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tangential: tuple[float, float] = (0.0, 0.0)
    name: str = ""

    def __post_init__(self):
        shapes = {
            "rotation": (3, 3), "position": (3,), "focal_length": (2,), "principal_point": (2,),
            "image_size": (2,), "radial": (3,), "tangential": (2,),
        }  # fmt: skip
        for field, shape in shapes.items():
            value = check_numbers(field, getattr(self, field))
            if value.shape != shape or not np.isfinite(value).all():
                raise InputError(
                    f"`{field}` must hold finite numbers of shape {shape}. "
                    f"Received: {field}={shown(getattr(self, field))}"
                )
            if field not in ("radial", "tangential", "image_size"):
                object.__setattr__(self, field, value)
        for field in ("focal_length", "image_size"):
            if np.min(getattr(self, field)) <= 0:
                raise InputError(
                    f"`{field}` must be positive. Received: {field}={getattr(self, field)!r}"
                )
        check_string("name", self.name)
        turned = self.rotation @ self.rotation.T
        if not np.allclose(turned, np.eye(3), atol=1e-4) or np.linalg.det(self.rotation) < 0:
            raise InputError(
                f"`rotation` must be a rotation matrix. Received: rotation={self.rotation.tolist()}"
            )

    @classmethod
    def look_at(cls, position, target, *, focal_length: float, image_size, name: str = ""):
        """A camera at `position` that looks at `target`, upright in a world whose z is up.

        Args:
            position: `(3,)`, metres.
            target: `(3,)`, metres; not straight above or below `position`.
            focal_length: pixels.
            image_size: (width, height), pixels; the principal point is in the middle.
            name: what the camera is called.
        """
        position = np.asarray(position, dtype=np.float64)
        forward = np.asarray(target, dtype=np.float64) - position
        right = np.cross(forward, (0.0, 0.0, 1.0))
        if np.linalg.norm(right) < 1e-9:
            raise InputError(
                "`target` must not lie straight above or below `position`. "
                f"Received: target={target}, position={position}"
            )
        axes = np.stack([right, np.cross(forward, right), forward])
        return cls(
            rotation=axes / np.linalg.norm(axes, axis=1, keepdims=True),
            position=position,
            focal_length=np.full(2, focal_length),
            principal_point=np.asarray(image_size, dtype=np.float64) / 2,
            image_size=tuple(image_size),
            name=name,
        )

    def world_to_camera(self, points: np.ndarray) -> np.ndarray:
        """`(..., 3)` metres in the world to `(..., 3)` metres in the camera frame."""
        return (np.asarray(points) - self.position) @ self.rotation.T

    def camera_to_world(self, points: np.ndarray) -> np.ndarray:
        """The inverse of `world_to_camera`."""
        return np.asarray(points) @ self.rotation + self.position

    def project(self, points: np.ndarray) -> np.ndarray:
        """`(..., 3)` metres in the camera frame to `(..., 2)` pixels.

        Points must lie in front of the camera: a point with z <= 0 has no image.
        """
        points = np.asarray(points)
        flat = points[..., :2] / points[..., 2:]
        return self._distort(flat) * self.focal_length + self.principal_point

    def unproject(self, pixels: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """The inverse of `project`: `(..., 2)` pixels at `(...)` metres of depth, `(..., 3)`.

        NaN where no point before the lens's turning point has such pixels, or none is found.
        """
        flat = self._undistort((np.asarray(pixels) - self.principal_point) / self.focal_length)
        depth = np.asarray(depth)[..., None]
        return np.concatenate([flat * depth, np.broadcast_to(depth, (*flat.shape[:-1], 1))], -1)

    def is_before(self, points: np.ndarray, *, nearest: float = 1.0) -> np.ndarray:
        """Whether points `(..., 3)` of the camera frame lie in front of it, where its lens maps.

        A lens with radial distortion maps up to an angle at which its polynomial turns back: from
        there on, points would come into the image again.

        Args:
            points: metres.
            nearest: metres from the camera plane below which a point does not count.

        Returns:
            `(...)` booleans.
        """
        points = np.asarray(points)
        far_enough = points[..., 2] >= nearest
        depth = np.where(far_enough, points[..., 2], 1.0)
        square = (points[..., :2] ** 2).sum(axis=-1) / depth**2
        return far_enough & (square < self._turning_point)

    def sees(self, points: np.ndarray, *, nearest: float = 1.0) -> np.ndarray:
        """Whether points `(..., 3)` of the camera frame are before it and in the image.

        Args:
            points: metres.
            nearest: metres from the camera plane below which a point does not count as seen.

        Returns:
            `(...)` booleans.
        """
        before = self.is_before(points, nearest=nearest)
        pixels = self.project(np.where(before[..., None], points, (0.0, 0.0, 1.0)))
        inside = ((pixels >= 0) & (pixels <= np.asarray(self.image_size))).all(axis=-1)
        return before & inside

    @functools.cached_property
    def _turning_point(self) -> float:
        """Of the plane z = 1, the squared radius from which the lens's polynomial falls."""
        k1, k2, k3 = self.radial
        roots = np.roots([7 * k3, 5 * k2, 3 * k1, 1.0])  # of the slope of r (1 + k1 r^2 + ...)
        return min((root.real for root in roots if not root.imag and root.real > 0), default=np.inf)

    def _distortion(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The factor and the offset by which the lens moves a point of the plane z = 1."""
        square = (flat**2).sum(axis=-1, keepdims=True)
        k1, k2, k3 = self.radial
        factor = 1 + square * (k1 + square * (k2 + square * k3))
        p1, p2 = self.tangential
        product = 2 * flat[..., :1] * flat[..., 1:]
        offset = np.concatenate(
            [
                p1 * product + p2 * (square + 2 * flat[..., :1] ** 2),
                p1 * (square + 2 * flat[..., 1:] ** 2) + p2 * product,
            ],
            axis=-1,
        )
        return factor, offset

    @property
    def _is_distorted(self) -> bool:
        return any(self.radial) or any(self.tangential)

    def _distort(self, flat: np.ndarray) -> np.ndarray:
        if not self._is_distorted:
            return flat
        factor, offset = self._distortion(flat)
        return flat * factor + offset

    def _undistort(self, distorted: np.ndarray) -> np.ndarray:
        flat = distorted
        if self._is_distorted:
            for _ in range(_UNDISTORT_STEPS):
                factor, offset = self._distortion(flat)
                flat = (distorted - offset) / factor
            missed = np.abs(self._distort(flat) - distorted).max(axis=-1) > _UNDISTORT_ERROR
            missed |= (flat**2).sum(axis=-1) >= self._turning_point
            flat = np.where(missed[..., None], np.nan, flat)
        return flat


def normalize_screen(pixels: np.ndarray, image_size: tuple[float, float]) -> np.ndarray:
    """Pixels to screen coordinates: x in [-1, 1], y by the same scale.

    `pixels / width * 2 - (1, height / width)`: the aspect ratio is kept, the image's centre is 0.

    Args:
        pixels: `(..., 2)`.
        image_size: (width, height), pixels.

    Returns:
        `(..., 2)`.
    """
    width, height = checked_size(image_size)
    return np.asarray(pixels) / width * 2 - np.array([1.0, height / width])


def denormalize_screen(pose2d: np.ndarray, image_size: tuple[float, float]) -> np.ndarray:
    """The inverse of `normalize_screen`: `(..., 2)` screen coordinates to pixels."""
    width, height = checked_size(image_size)
    return (np.asarray(pose2d) + np.array([1.0, height / width])) * width / 2


def checked_size(image_size) -> tuple[float, float]:
    """(width, height) as two positive numbers.

    Raises:
        InputError: if they are not.
    """
    size = check_numbers("image_size", image_size)
    if size.shape != (2,) or not np.isfinite(size).all() or (size <= 0).any():
        raise InputError(
            f"`image_size` must be (width, height) in pixels. Received: image_size={image_size!r}"
        )
    return float(size[0]), float(size[1])

"""The four cameras of Human3.6M, with the lens formula by which its 2D poses were made.

The calibration itself is in `human36m_cameras.json`.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from keras_wsgcn.data.cameras import Camera
from keras_wsgcn.errors import InputError

_PATH = Path(__file__).with_name("human36m_cameras.json")


class Human36mCamera(Camera):
    """A camera whose lens distorts as in VideoPose3D's `data_2d_h36m_gt.npz`.

    A point (x, y) of the plane z = 1, r its distance from the axis and t the two tangential
    coefficients, goes to `(x, y) (1 + k1 r^2 + k2 r^4 + k3 r^6 + t . (x, y)) + t r^2`. Brown and
    Conrady have `2 t . (x, y)` there, and t in the other order. With these cameras' coefficients
    their formula is up to 1.4 pixels away at the corners of the image, and up to 3.6 if the order
    is not exchanged; so the benchmark's 2D poses need a formula of their own.
    """

    def _distortion(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        square = (flat**2).sum(axis=-1, keepdims=True)
        k1, k2, k3 = self.radial
        tangential = np.asarray(self.tangential)
        along = (flat @ tangential)[..., None]
        factor = 1 + square * (k1 + square * (k2 + square * k3)) + along
        return factor, square * tangential


@cache
def _calibration() -> dict[str, Any]:
    return json.loads(_PATH.read_text(encoding="utf-8"))


def camera_names() -> tuple[str, ...]:
    """The serial numbers of the cameras, in the order in which the archives hold them."""
    return tuple(camera["name"] for camera in _calibration()["cameras"])


@cache
def cameras_of(subject: int) -> tuple[Human36mCamera, ...]:
    """The four cameras as they stood while a subject was recorded.

    Args:
        subject: number of the person: 1, 5, 6, 7, 8, 9 or 11.

    Returns:
        The cameras in the order of `camera_names()`; positions in metres.

    Raises:
        InputError: if there is no calibration for the subject.
    """
    stands = _calibration()["subjects"]
    if str(subject) not in stands:
        raise InputError(
            "`subject` must be one whose cameras are calibrated: "
            f"{', '.join(stands)}. Received: subject={subject!r}"
        )
    return tuple(
        Human36mCamera(
            # The quaternion turns camera axes into the world, the inverse of what Camera keeps.
            rotation=_rotation(stand["quaternion"]).T,
            position=np.array(stand["position_mm"]) / 1000,
            **{key: _as_tuple(value) for key, value in lens.items()},
        )
        for lens, stand in zip(_calibration()["cameras"], stands[str(subject)], strict=True)
    )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _rotation(quaternion: list[float]) -> np.ndarray:
    """The rotation matrix `(3, 3)` of a quaternion (w, x, y, z)."""
    w, *axis = np.array(quaternion) / np.linalg.norm(quaternion)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross

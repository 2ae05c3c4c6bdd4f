"""The cameras of Human3.6M: the formula of the archives, and stands that fit each other."""

import json
from importlib.resources import files

import numpy as np
import pytest

from keras_wsgcn import InputError
from keras_wsgcn.data.human36m_cameras import camera_names, cameras_of

pytestmark = pytest.mark.plain

SUBJECTS = (1, 5, 6, 7, 8, 9, 11)


def project_as_videopose3d(points, intrinsic, quaternion, position):
    """Its projection of world points, written out as an oracle of our own."""
    w, x, y, z = quaternion
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    local = (points - position) @ turn  # the inverse of `turn`, from the left
    flat = local[..., :2] / local[..., 2:]
    f, c, k, p = (np.array(part) for part in intrinsic)
    square = (flat**2).sum(-1)
    radial = 1 + k[0] * square + k[1] * square**2 + k[2] * square**3
    tangential = (p * flat).sum(-1)
    return f * (flat * (radial + tangential)[..., None] + p * square[..., None]) + c


def test_cameras_project_as_the_archives_do():
    data = json.loads((files("keras_wsgcn.data") / "human36m_cameras.json").read_text())
    points = np.random.default_rng(0).uniform((-1.5, -1.5, 0), (1.5, 1.5, 1.9), (200, 3))
    for subject in SUBJECTS:
        for camera, lens, stand in zip(
            cameras_of(subject), data["cameras"], data["subjects"][str(subject)], strict=True
        ):
            names = ("focal_length", "principal_point", "radial", "tangential")
            expected = project_as_videopose3d(
                points,
                [lens[name] for name in names],
                stand["quaternion"],
                np.array(stand["position_mm"]) / 1000,
            )
            local = camera.world_to_camera(points)
            np.testing.assert_allclose(camera.project(local), expected, atol=1e-4)
            # ... and back, through the inverse of the same lens
            back = camera.unproject(camera.project(local), local[:, 2])
            np.testing.assert_allclose(back, local, atol=1e-6)


def test_cameras_stand_as_in_the_laboratory():
    """Around the origin, 4 to 6 m away, at 1.4 to 1.7 m, upright, looking at its middle."""
    for subject in SUBJECTS:
        cameras = cameras_of(subject)
        assert tuple(camera.name for camera in cameras) == camera_names()
        for camera in cameras:
            assert 4 < np.linalg.norm(camera.position[:2]) < 6
            assert 1.4 < camera.position[2] < 1.7
            assert camera.rotation[1, 2] < -0.95  # image down is world down
            assert camera.image_size in ((1000, 1000), (1000, 1002))
            middle = camera.project(camera.world_to_camera(np.array([0.0, 0.0, 0.9])))
            assert np.abs(middle - 500).max() < 200
    with pytest.raises(InputError, match=r"`subject` must be .*Received: subject=2"):
        cameras_of(2)


def test_the_four_cameras_agree_on_a_point():
    """A point found again from its four images: the stands fit each other, not only the lenses."""
    point = np.array([0.3, -0.4, 1.1])
    for subject in SUBJECTS:
        rows, right = [], []
        for camera in cameras_of(subject):
            flat = camera.unproject(camera.project(camera.world_to_camera(point)), np.array(1.0))
            ray = camera.rotation.T @ flat / np.linalg.norm(flat)
            across = np.eye(3) - np.outer(ray, ray)
            rows.append(across)
            right.append(across @ camera.position)
        found = np.linalg.solve(np.sum(rows, axis=0), np.sum(right, axis=0))
        np.testing.assert_allclose(found, point, atol=1e-6)

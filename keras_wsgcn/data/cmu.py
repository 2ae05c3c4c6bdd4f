"""CMU-24, the benchmark on real motion: its subjects, its cameras, and how it is loaded.

Motions: CMU Graphics Lab Motion Capture Database, mocap.cs.cmu.edu, created with funding from NSF
EIA-0196217.
"""

import hashlib
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from keras_wsgcn.data.archive import Motion, load_archive
from keras_wsgcn.data.cameras import Camera
from keras_wsgcn.data.poses import PoseDataset, Splits, observe
from keras_wsgcn.errors import InputError, check_choice, check_integer
from keras_wsgcn.files import digest_of

DATA_VARIABLE = "KERAS_WSGCN_DATA"
ARCHIVE_NAME = "cmu17_30fps.npz"

TRAIN_SUBJECTS = (1, 7, 8, 10, 11, 12, 14, 26, 27, 29, 32, 91)
TEST_SUBJECTS = (2, 5, 6, 9, 16, 35, 49, 127)
VALIDATION_SUBJECTS = (3, 17, 131, 135)
# Activities that also occur in training; the other nine of the test subjects never do.
SEEN_ACTIONS = ("Walking", "Jumping", "Boxing", "Housework")

_IMAGE_SIZE = (1000, 1000)
_FOCAL_LENGTH = 1145.0
_DISTANCE, _HEIGHT, _AIM_HEIGHT = 5.0, 1.6, 0.9  # metres
_ANGLES = (0.7, math.pi - 0.7, math.pi + 0.7, -0.7)


def four_cameras(motion: Motion, root: int = 0) -> list[Camera]:
    """The four cameras of a sequence, standing around the median of its root as in Human3.6M.

    Camera q stands at angle `yaw + angle_q`, 5 m from the median root position, 1.6 m high, and
    looks at it at 0.9 m; 1000 x 1000 pixels, focal length 1145, no distortion. The yaw follows
    from the sequence's key.

    Args:
        motion: a sequence in metres, z up.
        root: index of its root joint.

    Returns:
        Four cameras.
    """
    yaw = _generator_of(motion).uniform(0, 2 * math.pi)
    x, y = np.median(motion.positions[:, root, :2].astype(np.float64), axis=0)
    return [
        Camera.look_at(
            (
                x + _DISTANCE * math.cos(yaw + angle),
                y + _DISTANCE * math.sin(yaw + angle),
                _HEIGHT,
            ),
            (x, y, _AIM_HEIGHT),
            focal_length=_FOCAL_LENGTH,
            image_size=_IMAGE_SIZE,
            name=str(number),
        )
        for number, angle in enumerate(_ANGLES)
    ]


def varied_cameras(motion: Motion, count: int = 8) -> list[Camera]:
    """Cameras all around a sequence, to train a model that meets cameras it has not seen.

    Each stands at a random angle, 3.5 to 7 m from the median root position and 0.5 to 2.5 m high,
    looks at 0.7 to 1.1 m, and has a focal length of 900 to 1,500 px on 1000 x 1000; all of it
    follows from the sequence's key.

    Args:
        motion: a sequence in metres, z up, root first.
        count: how many cameras.

    Returns:
        The cameras.
    """
    rng = _generator_of(motion)
    x, y = np.median(motion.positions[:, 0, :2].astype(np.float64), axis=0)
    cameras = []
    for number in range(count):
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(3.5, 7.0)
        place = (x + distance * math.cos(angle), y + distance * math.sin(angle))
        cameras.append(
            Camera.look_at(
                (*place, rng.uniform(0.5, 2.5)),
                (x, y, rng.uniform(0.7, 1.1)),
                focal_length=rng.uniform(900, 1500),
                image_size=_IMAGE_SIZE,
                name=str(number),
            )
        )
    return cameras


def _generator_of(motion: Motion) -> np.random.Generator:
    digest = hashlib.sha256(motion.key.encode()).hexdigest()
    return np.random.default_rng(int(digest[:8], 16))


# What a model can be trained on; it is validated and tested on the benchmark's four.
CAMERAS = {"four": four_cameras, "varied": varied_cameras}


def with_detector_trunk(poses: PoseDataset, rows: np.ndarray) -> PoseDataset:
    """Puts the 2D trunk of some poses where the keypoints of detectors put it.

    Detectors know neither thorax nor spine: converted keypoints have the thorax in the middle of
    the shoulders and the spine between pelvis and thorax. In CMU's data the shoulders' middle is
    some 6 cm above the thorax. A model that is to lift both must have seen both.

    Args:
        poses: poses on joints of Human3.6M.
        rows: `(poses,)` booleans, which of them.

    Returns:
        The poses, their targets as they were.
    """
    joint = poses.skeleton.index
    pose2d = poses.pose2d.copy()
    shoulders = pose2d[rows][:, [joint("l_shoulder"), joint("r_shoulder")]]
    pose2d[rows, joint("thorax")] = shoulders.mean(axis=1)
    trunk = pose2d[rows][:, [joint("pelvis"), joint("thorax")]]
    pose2d[rows, joint("spine")] = trunk.mean(axis=1)
    return replace(poses, pose2d=pose2d)


def find_archive(path: str | os.PathLike | None = None) -> Path:
    """The archive's path: `path`, or `cmu17_30fps.npz` in the folder `$KERAS_WSGCN_DATA`.

    Raises:
        InputError: if there is no such file.
    """
    folder = os.environ.get(DATA_VARIABLE)
    if path is None and folder:
        path = Path(folder) / ARCHIVE_NAME
    if path is None or not Path(path).is_file():
        raise InputError(
            f"`path` must name the CMU archive, or ${DATA_VARIABLE} the folder that holds "
            f"{ARCHIVE_NAME}. Received: path={str(path) if path else None!r}, "
            f"{DATA_VARIABLE}={folder!r}"
        )
    return Path(path)


def load_cmu24(
    path: str | os.PathLike | None = None,
    *,
    stride: int = 1,
    train_cameras: str = "four",
    mixed_trunks: bool = False,
    seed: int = 0,
    **options,
) -> Splits:
    """Loads the CMU-24 benchmark.

    Args:
        path: the motion archive; by default `cmu17_30fps.npz` in `$KERAS_WSGCN_DATA`.
        stride: every how many frames one is taken.
        train_cameras: `"four"`, the benchmark's own, or `"varied"`; see `varied_cameras`.
            Validation and test are always seen by the four.
        mixed_trunks: whether every second camera sees the trunk as detectors do, in training and
            validation; see `with_detector_trunk`.
        seed: of the noise, which goes on from one part to the next.
        **options: further arguments of `observe`, such as `skeleton` or `noise_px`.

    Returns:
        Training (twelve subjects), validation (four) and test (eight).

    Raises:
        InputError: if the archive cannot be found or read, or lacks a subject.
    """
    check_choice("train_cameras", train_cameras, CAMERAS)
    check_integer("seed", seed, least=0)
    path = find_archive(path)
    archive = load_archive(path)
    people = {motion.subject for motion in archive.motions}
    if missing := sorted({*TRAIN_SUBJECTS, *VALIDATION_SUBJECTS, *TEST_SUBJECTS} - people):
        raise InputError(
            f"`path` must hold all subjects of the benchmark; {missing} are not there. "
            f"Received: path={str(path)!r}"
        )

    rng = np.random.default_rng(seed)

    def part(subjects, cameras=four_cameras):
        return observe(archive.of_subjects(subjects), cameras, stride=stride, seed=rng, **options)

    train = part(TRAIN_SUBJECTS, CAMERAS[train_cameras])
    validation, test = part(VALIDATION_SUBJECTS), part(TEST_SUBJECTS)
    if mixed_trunks:
        train, validation = (
            with_detector_trunk(poses, poses.camera % 2 == 1) for poses in (train, validation)
        )
    return Splits(
        name="cmu24",
        train=train,
        validation=validation,
        test=test,
        seen_actions=SEEN_ACTIONS,
        digest=digest_of(path),
    )

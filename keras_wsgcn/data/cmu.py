"""CMU-24, the benchmark on real motion: its subjects, its cameras, and how it is loaded.

Motions: CMU Graphics Lab Motion Capture Database, mocap.cs.cmu.edu, created with funding from NSF
EIA-0196217.
"""

import hashlib
import math
import os
from pathlib import Path

import numpy as np

from keras_wsgcn.data.archive import Motion, MotionArchive, load_archive
from keras_wsgcn.data.cameras import Camera
from keras_wsgcn.data.poses import Splits, observe
from keras_wsgcn.errors import InputError

DATA_VARIABLE = "KERAS_WSGCN_DATA"
ARCHIVE_NAME = "cmu17_30fps.npz"

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
    seed = int(hashlib.sha256(motion.key.encode()).hexdigest()[:8], 16)
    yaw = np.random.default_rng(seed).uniform(0, 2 * math.pi)
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


def load_cmu24(path: str | os.PathLike | None = None, *, stride: int = 1, **options) -> Splits:
    """Loads the CMU-24 benchmark.

    Args:
        path: the motion archive; by default `cmu17_30fps.npz` in `$KERAS_WSGCN_DATA`.
        stride: every how many frames one is taken.
        **options: further arguments of `observe`, such as `skeleton` or `noise_px`.

    Returns:
        Training (twelve subjects), validation (four) and test (eight).

    Raises:
        InputError: if the archive cannot be found or read.
    """
    archive = load_archive(find_archive(path))
    held_out = {*TEST_SUBJECTS, *VALIDATION_SUBJECTS}
    everyone = {motion.subject for motion in archive.motions}

    def part(subjects):
        motions = tuple(motion for motion in archive.motions if motion.subject in subjects)
        return observe(
            MotionArchive(archive.skeleton, motions), four_cameras, stride=stride, **options
        )

    return Splits(
        name="cmu24",
        train=part(everyone - held_out),
        validation=part(VALIDATION_SUBJECTS),
        test=part(TEST_SUBJECTS),
    )

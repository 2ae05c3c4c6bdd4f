"""The official CDF files of Human3.6M: 3D positions in the world or of each camera, 2D positions.

Needs `cdflib` (`pip install "keras_wsgcn[human36m]"`).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from keras_wsgcn.data.human36m_cameras import camera_names
from keras_wsgcn.data.human36m_formats import refusal

MAX_FILE_BYTES = 32 * 2**20  # the largest real one has under 5 MB
MAX_FRAMES = 100_000  # a take has some 6,000
_JOINTS = 32
# `Walking 1.cdf` in the world, `Walking 1.54138969.cdf` of a camera.
_FILE = re.compile(r"(?P<name>[^.]+?)(?:\.(?P<camera>\d+))?\.cdf")

# By subject and name of the take: one array in the world, or one for each camera by its name.
Takes = dict[int, dict[str, Any]]


def read_folder(folder: Path, kinds: tuple[str, ...], numbers: int) -> Takes:
    """Reads every CDF file of one kind, such as `S1/MyPoseFeatures/D2_Positions/Walking.*.cdf`.

    Args:
        folder: the folder that holds `S1`, `S5`, ... in it or below.
        kinds: names of folders with files, the first that is there is read.
        numbers: coordinates of a joint, 2 or 3.

    Returns:
        `(frames, 32, numbers)` floats, metres in 3D and pixels in 2D, by subject and take; of each
        camera where the files are. Empty if there is no such folder.

    Raises:
        InputError: if a file is not such a file.
        ImportError: if cdflib is not installed.
    """
    for kind in kinds:
        paths = sorted(folder.rglob(f"S*/**/{kind}/[!.]*.cdf"))
        if paths:
            break
    else:
        return {}
    takes: Takes = {}
    for path in paths:
        subject, match = _subject_of(path), _FILE.fullmatch(path.name)
        if match is None or (match["camera"] and match["camera"] not in camera_names()):
            raise refusal(path, f"its name must be a take and one of {camera_names()}")
        if match["name"].startswith("_"):
            continue  # `_ALL`: everything in one
        poses = _read_pose(path, numbers)
        if numbers == 3:
            poses = poses / 1000  # millimetres to metres
        of_subject = takes.setdefault(subject, {})
        if match["camera"]:
            of_subject.setdefault(match["name"], {})[match["camera"]] = poses
        else:
            of_subject[match["name"]] = poses
    return takes


def _subject_of(path: Path) -> int:
    for part in reversed(path.parts[:-1]):
        if re.fullmatch(r"S\d{1,3}", part):
            return int(part[1:])
    raise refusal(path, "a folder above it must be called S1, S5, ...")


def _read_pose(path: Path, numbers: int) -> np.ndarray:
    try:
        import cdflib
    except ImportError:
        raise ImportError('CDF files need cdflib: pip install "keras_wsgcn[human36m]"') from None
    if path.stat().st_size > MAX_FILE_BYTES:
        raise refusal(path, f"it has more than {MAX_FILE_BYTES} bytes")
    try:
        file = cdflib.CDF(path)
        declared = file.varinq("Pose")
        shape = (declared.Last_Rec + 1, *declared.Dim_Sizes)
        fits = np.prod(shape, dtype=object) <= MAX_FRAMES * _JOINTS * numbers
        values = np.asarray(file.varget("Pose")) if fits else None
    except Exception as error:  # whatever a damaged file does to cdflib
        raise refusal(path, f"cdflib could not read its variable `Pose` ({error})") from None
    if values is None or values.dtype.kind != "f" or values.shape[-1:] != (_JOINTS * numbers,):
        raise refusal(
            path,
            f"its variable `Pose` must hold float numbers of shape (1, frames, "
            f"{_JOINTS * numbers}), not {shape}",
        )
    if values.size == 0 or values.ndim > 3 or (values.ndim == 3 and values.shape[0] != 1):
        raise refusal(path, f"its variable `Pose` must hold one sequence, not {shape}")
    return values.reshape(-1, _JOINTS, numbers)

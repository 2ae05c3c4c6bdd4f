"""Motion archives: 3D joint positions over time, one array a sequence, in one plain `.npz` file.

What is read is checked before it is used: sizes before bytes, dtypes before arrays, never a pickle.
"""

import dataclasses
import json
import math
import os
import re
import zipfile
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from keras_wsgcn import skeletons
from keras_wsgcn.data.views import LIST_NAME, View, arrays_of, views_from
from keras_wsgcn.errors import InputError, check_number, check_string, is_integer, shown
from keras_wsgcn.files import atomic_path, check_regular, read_npy_header
from keras_wsgcn.skeletons import Skeleton

MAX_BYTES = 2**29  # of all members together, as declared; Human3.6M with its 2D poses has 400 MB
# Of an array that lists what the sequences are: its bytes, and its rows.
MAX_META_BYTES, MAX_ROWS = 2**26, 100_000
MAX_MEMBERS = 100_000
_HEADER_BYTES = 256  # of an array in the file, at most
MAX_POSE_METRES = 10.0  # a person spans 2.5; in centimetres or inches that is far above

_META = {  # name: kinds of dtype that it may have
    "meta_key": "U", "meta_subject": "iu", "meta_action": "U", "meta_trial": "iu",
    "meta_description": "U", "meta_fps": "f", "meta_source_file": "U", "meta_source_kind": "U",
}  # fmt: skip
_HEADER = {"joint_names": "U", "parents": "iu", "units": "U", "up_axis": "U"}
_NAME = re.compile(r"\w[\w .,+()=-]{0,99}")
_KEY = re.compile(r"S(\d{3,9})/([^/]+)/([^/]+)")


@dataclass(frozen=True)
class Motion:
    """One sequence of 3D poses.

    Args:
        positions: `(frames, joints, 3)` float32, metres in the world, z up.
        subject: number of the person.
        action: what the person does.
        take: name of the recording, unique within subject and action.
        fps: frames per second.
        description: free text.
        source: file that the sequence was read from, or the name of its generator.
        source_kind: what kind of source that is, such as `asf/amc` or `bvh`.

    Raises:
        InputError: if the positions are not finite poses in metres, or a name is no plain name.
    """

    positions: np.ndarray
    subject: int
    action: str
    take: str
    fps: float = 30.0
    description: str = ""
    source: str = ""
    source_kind: str = ""

    def __post_init__(self):
        object.__setattr__(self, "positions", _checked_positions(self.positions))
        if not is_integer(self.subject) or not 0 <= self.subject < 10**9:
            raise InputError(
                "`subject` must be a whole number, not negative, of at most nine digits. "
                f"Received: subject={shown(self.subject)}"
            )
        object.__setattr__(self, "subject", int(self.subject))
        for field in ("action", "take"):
            value = getattr(self, field)
            if not isinstance(value, str) or not _NAME.fullmatch(value):
                raise InputError(
                    f"`{field}` must be a plain name: a letter, a digit or `_`, then also spaces "
                    "and any of `.,+()=-`, 100 characters at most. "
                    f"Received: {field}={shown(value)}"
                )
        check_number("fps", self.fps, above=0)
        for field in ("description", "source", "source_kind"):
            check_string(field, getattr(self, field))

    @property
    def key(self) -> str:
        """`S002/Walking/02_01`: subject, action and take."""
        return f"S{self.subject:03d}/{self.action}/{self.take}"


@dataclass(frozen=True)
class MotionArchive:
    """Sequences that share a skeleton.

    Args:
        skeleton: the joints of every sequence.
        motions: the sequences, each key once, at least one.
        views: where 2D poses are stored, what cameras saw of a sequence, by its key.
        pose2d_source: where those 2D poses come from, such as `gt` or `cpn`.

    Raises:
        InputError: if a sequence or its views have other joints, or two have one key.
    """

    skeleton: Skeleton
    motions: tuple[Motion, ...]
    views: Mapping[str, tuple[View, ...]] = dataclasses.field(default_factory=dict)
    pose2d_source: str = ""

    def __post_init__(self):
        object.__setattr__(self, "skeleton", skeletons.get(self.skeleton))
        object.__setattr__(self, "motions", tuple(self.motions))
        if not self.motions or not all(isinstance(m, Motion) for m in self.motions):
            raise InputError(
                "`motions` must hold at least one Motion, and nothing else. "
                f"Received: motions of the types {sorted({type(m).__name__ for m in self.motions})}"
            )
        seen = set()
        for motion in self.motions:
            if motion.positions.shape[1] != self.skeleton.num_joints:
                raise InputError(
                    f"`motions` must have the {self.skeleton.num_joints} joints of the skeleton "
                    f"{self.skeleton.name!r}. Received: {motion.key} of shape "
                    f"{motion.positions.shape}"
                )
            if motion.key in seen:
                raise InputError(
                    f"`motions` must have each key once. Received: {motion.key!r} twice"
                )
            seen.add(motion.key)
        self._check_views()

    def _check_views(self) -> None:
        shapes = {motion.key: motion.positions.shape[:2] for motion in self.motions}
        for key, views in self.views.items():
            found = [view.pose2d.shape[:2] for view in views]
            if key not in shapes or any(shape != shapes[key] for shape in found):
                raise InputError(
                    "`views` must belong to the motions, with as many frames and joints: "
                    f"{shapes.get(key, 'no such key')}. Received: views of {key!r} with {found}"
                )
            names = [view.camera.name for view in views]
            if len(set(names)) < len(names):
                raise InputError(
                    f"`views` must have each camera once. Received: {names} for {key!r}"
                )

    def of_subjects(self, subjects: Container[int]) -> "MotionArchive":
        """The sequences of some subjects, with their views."""
        motions = tuple(motion for motion in self.motions if motion.subject in subjects)
        keys = {motion.key for motion in motions}
        views = {key: some for key, some in self.views.items() if key in keys}
        return replace(self, motions=motions, views=views)


def save_archive(path: str | os.PathLike, archive: MotionArchive) -> None:
    """Writes an archive as a compressed `.npz` file, atomically.

    Args:
        path: the file to be written.
        archive: what to write. The array `meta_trial` is the last number in the name of the take.
            A skeleton that names and parents do not tell is the array `skeleton`, its
            `get_config()` as JSON.

    Raises:
        InputError: if the arrays are not what `load_archive` takes.
    """
    motions = archive.motions
    arrays: dict[str, Any] = {motion.key: motion.positions for motion in motions}
    arrays |= {
        "meta_key": np.array([m.key for m in motions]),
        "meta_subject": np.array([m.subject for m in motions], "int32"),
        "meta_action": np.array([m.action for m in motions]),
        "meta_trial": np.array([_trial(m.take) for m in motions], "int32"),
        "meta_description": np.array([m.description for m in motions]),
        "meta_fps": np.array([m.fps for m in motions], "float32"),
        "meta_source_file": np.array([m.source for m in motions]),
        "meta_source_kind": np.array([m.source_kind for m in motions]),
        "joint_names": np.array(archive.skeleton.joint_names),
        "parents": np.array(archive.skeleton.parents, "int32"),
        "units": np.array("metre"),
        "up_axis": np.array("z"),
        **arrays_of(archive.views, archive.pose2d_source),
    }
    if archive.skeleton != _skeleton_by(archive.skeleton.joint_names, archive.skeleton.parents):
        arrays["skeleton"] = np.array(json.dumps(archive.skeleton.get_config()))
    size = sum(array.nbytes + _HEADER_BYTES for array in arrays.values())
    lists = max(array.nbytes for array in arrays.values() if array.dtype.kind != "f")
    if size > MAX_BYTES or lists > MAX_META_BYTES or len(arrays) > MAX_MEMBERS:
        raise InputError(
            f"`archive` must take at most {MAX_BYTES} bytes in {MAX_MEMBERS} arrays, a list of "
            f"names {MAX_META_BYTES}: save fewer motions in a file. "
            f"Received: {size} bytes in {len(arrays)} arrays, a list of {lists}"
        )
    # An open file, because NumPy appends `.npz` to a name that lacks it.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def load_archive(path: str | os.PathLike) -> MotionArchive:
    """Reads and checks an archive.

    Arrays beside the ones of the motions and their views are left alone.

    Args:
        path: a `.npz` file in the layout that `save_archive` writes.

    Returns:
        The archive, its sequences in the order of `meta_key`.

    Raises:
        InputError: if the file is missing, damaged, too large, or not such an archive; the
            message names the file and the array.
    """
    path = Path(path)
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as file:
            return _archive_from(_Members(path, file))
    except InputError:
        raise
    except Exception as error:  # whatever zipfile makes of bytes that are no archive
        raise _refusal(path, f"it could not be opened ({error})") from None


# --- reading ------------------------------------------------------------------------------------


class _Members:
    """The arrays of an open `.npz` file, each checked before its bytes become an array."""

    def __init__(self, path: Path, file: zipfile.ZipFile):
        self.path, self.file = path, file
        infos = file.infolist()
        if len(infos) > MAX_MEMBERS:
            raise _refusal(path, f"it has {len(infos)} members, more than {MAX_MEMBERS}")
        declared = sum(info.file_size for info in infos)
        if declared > MAX_BYTES:
            raise _refusal(path, f"its arrays declare {declared} bytes, more than {MAX_BYTES}")
        self.infos = {info.filename.removesuffix(".npy"): info for info in infos}
        if len(self.infos) < len(infos):
            raise _refusal(path, "it has two members of one name")

    def array(self, name: str, kinds: str, ndim: int) -> np.ndarray:
        """The array `name`, whose dtype must be of one of `kinds`."""
        if name not in self.infos:
            raise _refusal(self.path, f"the array `{name}` is missing")
        try:
            with self.file.open(self.infos[name]) as stream:
                return self._checked(name, stream, kinds, ndim)
        except InputError:
            raise
        except Exception as error:  # whatever zipfile and NumPy make of damaged bytes
            raise _refusal(self.path, f"the array `{name}` is damaged ({error})") from None

    def _checked(self, name: str, stream: IO[bytes], kinds: str, ndim: int) -> np.ndarray:
        """The array in a stream: its header is checked before anything is given memory."""
        shape, by_columns, dtype = read_npy_header(stream, self.infos[name].file_size)
        if dtype.hasobject:
            raise _refusal(
                self.path, f"the array `{name}` holds pickled objects, which are never loaded"
            )
        if dtype.kind not in kinds or len(shape) != ndim:
            raise _refusal(
                self.path,
                f"the array `{name}` must have {ndim} dimensions and a dtype of kind "
                f"{' or '.join(kinds)}, not shape {shape} and dtype {dtype}",
            )
        if dtype.kind == "f" and dtype.itemsize not in (4, 8):  # half precision would double
            raise _refusal(
                self.path, f"the array `{name}` must be of float32 or float64, not {dtype}"
            )
        # As Python's strings and numbers an array takes many times its bytes.
        count = math.prod(shape)
        if dtype.kind != "f" and (count * dtype.itemsize > MAX_META_BYTES or count > MAX_ROWS):
            raise _refusal(self.path, f"the array `{name}` is larger than any list of sequences")
        array = np.empty(shape, dtype, order="F" if by_columns else "C")
        _fill(array.reshape(-1, order="A"), stream)
        return array


def _fill(array: np.ndarray, stream: IO[bytes]) -> None:
    """Reads the bytes of an array, in pieces: unpacked as a whole they would take them twice."""
    left = memoryview(array.view(np.uint8) if array.size else b"")  # type: ignore[arg-type]
    while left:
        piece = stream.read(min(len(left), 1 << 20))
        if not piece:
            raise EOFError("it ends too early")
        left[: len(piece)] = piece
        left = left[len(piece) :]
    stream.read(1)  # at the end the checksum is compared


def _archive_from(members: _Members) -> MotionArchive:
    path = members.path
    header = {name: members.array(name, kinds, 1 if name in ("joint_names", "parents") else 0)
              for name, kinds in _HEADER.items()}  # fmt: skip
    for field, wanted in (("units", "metre"), ("up_axis", "z")):
        if str(header[field]) != wanted:
            raise _refusal(path, f"`{field}` must be {wanted!r}, not {str(header[field])!r}")
    meta = {name: members.array(name, kinds, 1) for name, kinds in _META.items()}
    lengths = {name: len(array) for name, array in meta.items()}
    if len(set(lengths.values())) > 1:
        raise _refusal(path, f"the meta arrays must be of one length, not {lengths}")
    keys = meta["meta_key"].tolist()
    if len(set(keys)) < len(keys):  # each would be read again
        raise _refusal(path, "`meta_key` must have each key once")
    try:
        skeleton = _skeleton_of(members, header)
        rows = zip(*(array.tolist() for array in meta.values()), strict=True)
        motions = [_motion_from(members, dict(zip(meta, row, strict=True))) for row in rows]
        views, source = views_from(members.array) if LIST_NAME in members.infos else ({}, "")
        archive = MotionArchive(skeleton, tuple(motions), views, source)
    except _Refusal:
        raise
    except InputError as error:
        raise _refusal(path, str(error)) from None
    listed = {motion.key for motion in motions}
    unlisted = sorted(set(filter(_KEY.fullmatch, members.infos)) - listed)
    if unlisted:
        raise _refusal(path, f"`meta_key` does not list the array `{unlisted[0]}`")
    return archive


def _motion_from(members: _Members, row: Mapping) -> Motion:
    key = row["meta_key"]
    match = _KEY.fullmatch(key)
    if not match:
        raise _refusal(
            members.path, f"`meta_key` must hold keys such as S002/Walking/02_01, not {key!r}"
        )
    try:
        motion = Motion(
            positions=members.array(key, "f", 3),
            subject=row["meta_subject"],
            action=row["meta_action"],
            take=match[3],
            fps=row["meta_fps"],
            description=row["meta_description"],
            source=row["meta_source_file"],
            source_kind=row["meta_source_kind"],
        )
    except _Refusal:
        raise
    except InputError as error:
        raise _refusal(members.path, f"the array `{key}` or its meta data: {error}") from None
    if motion.key != key:
        raise _refusal(
            members.path,
            f"`meta_key` says {key!r}, but `meta_subject` and `meta_action` {motion.key!r}",
        )
    return motion


def _skeleton_of(members: _Members, header: Mapping[str, np.ndarray]) -> Skeleton:
    names, parents = tuple(header["joint_names"].tolist()), tuple(header["parents"].tolist())
    if "skeleton" not in members.infos:
        return _skeleton_by(names, parents)
    text = str(members.array("skeleton", "U", 0))
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"`skeleton` must be a skeleton as JSON ({error})") from None
    skeleton = skeletons.get(config)
    if (skeleton.joint_names, skeleton.parents) != (names, parents):
        raise InputError("`skeleton` must have the `joint_names` and `parents` of the archive")
    return skeleton


def _skeleton_by(names: tuple[str, ...], parents: tuple[int, ...]) -> Skeleton:
    known = {(one.joint_names, one.parents): one for one in skeletons.SKELETONS.values()}
    return known.get((names, parents)) or Skeleton("archive", names, parents)


# --- checks -------------------------------------------------------------------------------------


class _Refusal(InputError):
    """An InputError that already names the file."""


def _refusal(path: Path, problem: str) -> _Refusal:
    return _Refusal(f"`path` must be a motion archive; {problem}. Received: path={str(path)!r}")


def _checked_positions(positions: np.ndarray) -> np.ndarray:
    array = np.asarray(positions)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape or array.dtype.kind not in "fiu":
        raise InputError(
            "`positions` must be numbers of shape (frames, joints, 3), at least one frame. "
            f"Received: positions of shape {array.shape} and dtype {array.dtype}"
        )
    array = np.ascontiguousarray(array, dtype="float32")
    finite = np.isfinite(array).all(axis=(1, 2))
    if not finite.all():
        raise InputError(
            "`positions` must be finite. Received: positions that are not, first in frame "
            f"{int(np.argmin(finite))}"
        )
    if (span := median_span(array)) > MAX_POSE_METRES:
        raise InputError(
            "`positions` must be in metres: a pose may span "
            f"{MAX_POSE_METRES:.0f} m at most. Received: positions whose poses span {span:.0f}; "
            "divide by 1000 if they are in millimetres"
        )
    return array


def median_span(positions: np.ndarray) -> float:
    """Across a pose; the median, as one frame of lost tracking says nothing about the unit."""
    extent = np.ptp(positions, axis=1).astype("float64")
    return float(np.median(np.linalg.norm(extent, axis=-1)))


def _trial(take: str) -> int:
    numbers = re.findall(r"\d+", take)
    return int(numbers[-1][-9:]) if numbers else 0

"""The formats of motion capture, ASF/AMC and BVH: parsing, and forward kinematics over all frames.

Positions come in the units and axes of the file; `mocap.py` makes poses of them.
"""

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_wsgcn.data.bodies import turn_about
from keras_wsgcn.errors import InputError
from keras_wsgcn.files import check_regular

MAX_FILE_BYTES = 256 * 2**20


# --- what both formats share --------------------------------------------------------------------


class TextFile:
    """A file together with the argument that named it, so that complaints can say where."""

    def __init__(self, path: str | os.PathLike, argument: str):
        self.path, self.argument = Path(path), argument

    def refusal(self, problem: str, line: int | None = None) -> InputError:
        where = f"line {line}: " if line else ""
        return InputError(
            f"`{self.argument}` must be a readable {self.path.suffix or 'text'} file; "
            f"{where}{problem}. Received: {self.argument}={str(self.path)!r}"
        )

    def text(self) -> str:
        try:
            check_regular(self.path)
            if self.path.stat().st_size > MAX_FILE_BYTES:
                raise self.refusal(f"it is larger than {MAX_FILE_BYTES} bytes")
            return self.path.read_text(encoding="utf-8-sig", errors="replace")
        except InputError:
            raise
        except (OSError, ValueError) as error:  # a ValueError for a zero byte in the name
            raise self.refusal(getattr(error, "strerror", None) or str(error)) from None

    def lines(self) -> Iterator[tuple[int, list[str]]]:
        """Number and words of every line that is neither empty nor a comment."""
        for number, line in enumerate(self.text().splitlines(), 1):
            words = line.split()
            if words and not words[0].startswith("#"):
                yield number, words

    def numbers(self, words: Sequence[str], count: int, line: int | None) -> list[float]:
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) != count or not all(map(math.isfinite, values)):
            found = " ".join(words)[:60]
            raise self.refusal(f"expected {count} finite numbers, found {found!r}", line)
        return values


def _rotation(turns: Sequence[tuple[str, Any]]) -> np.ndarray:
    """The product of rotations about axes by degrees, from left to right, `(..., 3, 3)`."""
    product = np.eye(3)
    for axis, degrees in turns:
        product = product @ turn_about("XYZ".index(axis), degrees)
    return product


def _forward(
    parents: Sequence[int],
    turns: Sequence[np.ndarray],
    offsets: Sequence[np.ndarray],
    frames: int,
    *,
    turn_first: bool,
) -> np.ndarray:
    """Forward kinematics, all frames at once, `(frames, nodes, 3)`.

    `turn_first` tells the formats apart: a bone of an ASF file turns, and then reaches its end; a
    joint of a BVH file is reached, and then turns.
    """
    places: list[np.ndarray] = []
    axes: list[np.ndarray] = []
    for parent, turn, offset in zip(parents, turns, offsets, strict=True):
        before = axes[parent] if parent >= 0 else np.eye(3)
        after = before @ turn
        arm = after if turn_first and parent >= 0 else before
        start = places[parent] if parent >= 0 else np.zeros(3)
        places.append(start + (arm @ offset[..., None])[..., 0])
        axes.append(after)
    return np.stack([np.broadcast_to(place, (frames, 3)) for place in places], axis=1)


# --- Acclaim: ASF and AMC -----------------------------------------------------------------------


@dataclass
class Bone:
    """A bone of an ASF file; the root counts as one that has no length."""

    parent: int
    offset: np.ndarray  # `(3,)`, from its start to its end, in units of the file
    frame: np.ndarray  # `(3, 3)`, the axes about which it turns
    order: str  # `XYZ`: about x first
    channels: list[str]  # of `tx`, ..., `rz`


def read_asf(file: TextFile) -> tuple[dict[str, Bone], float]:
    """The bones, parents first, and the metres in a unit."""
    records, children = _asf_records(file)

    def words(name: str, key: str) -> tuple[list[str], int | None]:
        if key not in records[name]:
            raise file.refusal(f"`{name}` lacks `{key}`")
        return records[name][key]

    def numbers(name: str, key: str, count: int) -> np.ndarray:
        values, line = words(name, key)
        return np.array(file.numbers(values[:count], count, line))

    def bone(name: str, parent: int, offset: np.ndarray, angles: str, dof: list[str]) -> Bone:
        (*_, order), line = words(name, "axis")
        if sorted(order) != ["X", "Y", "Z"]:
            raise file.refusal("the order of the axes must be such as XYZ", line)
        if not set(dof) <= {"rx", "ry", "rz"} | ({"tx", "ty", "tz"} if parent < 0 else set()):
            raise file.refusal(f"`{name}` must turn by rx, ry and rz alone, not {' '.join(dof)}")
        turns = dict(zip(order, numbers(name, angles, 3), strict=True))
        return Bone(parent, offset, _rotation([(a, turns[a]) for a in order[::-1]]), order, dof)

    channels = [channel.lower() for channel in words("root", "order")[0]]
    bones = {"root": bone("root", -1, numbers("root", "position", 3), "orientation", channels)}
    queue = ["root"]
    for parent, name in enumerate(queue):
        for child in children.get(name, []):
            if child not in records or child in bones:
                raise file.refusal(f"the hierarchy names `{child}`, unknown or twice")
            offset = numbers(child, "direction", 3) * numbers(child, "length", 1)
            dof = records[child].get("dof", ([], None))[0]
            bones[child] = bone(child, parent, offset, "axis", dof)
            queue.append(child)
    if words("units", "angle")[0] != ["deg"]:
        raise file.refusal("angles must be in degrees (`angle deg`)", words("units", "angle")[1])
    length = float(numbers("units", "length", 1)[0])
    if length <= 0:
        raise file.refusal("`length` of the units must be above 0")
    return bones, 0.0254 / length


def _asf_records(file: TextFile) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """What the units, the root and each bone say, by keyword, as words and line; the children."""
    records: dict[str, dict[str, Any]] = {"units": {}, "root": {}}
    children: dict[str, list[str]] = {}
    record: dict[str, Any] = {}
    section = ""
    for line, (key, *rest) in file.lines():
        if key.startswith(":"):
            section = key[1:]
            record = records.get(section, {})
        elif section == "hierarchy":
            children.setdefault(key, []).extend(rest)
        elif key == "begin":
            record = {}
        elif key == "name" and section == "bonedata":
            if len(rest) != 1 or rest[0] in records:
                raise file.refusal("a bone must have a name of its own", line)
            records[rest[0]] = record
        elif rest:
            record[key] = rest, line
    return records, children


def read_amc(file: TextFile, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """For every bone that moves its channels, `(frames, width)`."""
    rows: dict[str, list[list[float]]] = {name: [] for name in widths}
    frames = 0
    for line, (key, *rest) in file.lines():
        if key.upper() == ":RADIANS":
            raise file.refusal("angles must be in degrees", line)
        if key.startswith(":"):
            continue
        if not rest and key.isdecimal():
            frames += 1
            continue
        if key not in rows:
            raise file.refusal(f"`{key}` is no bone of the skeleton that moves", line)
        if len(rows[key]) != frames - 1:
            raise file.refusal(f"before frame {frames} ends, `{key}` is missing or twice", line)
        rows[key].append(file.numbers(rest, widths[key], line))
    for name, values in rows.items():
        if len(values) != frames or not frames:
            raise file.refusal(f"`{name}` is given in {len(values)} of {frames} frames")
    return {name: np.array(values) for name, values in rows.items()}


def bone_ends(bones: Mapping[str, Bone], values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where the bones end, `(frames, bones, 3)`, in units and axes of the file."""
    turns, offsets = [], []
    for name, bone in bones.items():
        channel = dict(zip(bone.channels, values.get(name, np.empty(0)).T, strict=True))
        about = [(a, channel.get(f"r{a.lower()}", 0.0)) for a in bone.order[::-1]]
        turns.append(bone.frame @ _rotation(about) @ bone.frame.T)
        moves = [channel.get(f"t{axis}", 0.0) for axis in "xyz"]
        offsets.append(bone.offset + np.stack(np.broadcast_arrays(*moves), axis=-1))
    parents = [bone.parent for bone in bones.values()]
    return _forward(parents, turns, offsets, len(values["root"]), turn_first=True)


# --- BVH ----------------------------------------------------------------------------------------


_BVH_CHANNELS = {f"{axis}{kind}" for axis in "XYZ" for kind in ("position", "rotation")}


@dataclass
class BvhJoint:
    """A joint of a BVH file, or the end site of one."""

    parent: int
    offset: np.ndarray  # `(3,)`, from the parent, in units of the file
    channels: list[str]  # of `Xposition`, ..., `Zrotation`


def read_bvh_file(file: TextFile) -> tuple[dict[str, BvhJoint], np.ndarray, float]:
    """The joints, parents first; all their channels, `(frames, channels)`; frames per second."""
    lines = file.lines()
    joints = _bvh_joints(file, ((line, word) for line, words in lines for word in words))
    header = []
    for start in ("Frames:", "Frame Time:"):
        line, words = next(lines, (None, []))
        if " ".join(words[:-1]) != start:
            raise file.refusal(f"expected `{start}` and a number", line)
        header += file.numbers(words[-1:], 1, line)
    width = sum(len(joint.channels) for joint in joints.values())
    values = [file.numbers(words, width, line) for line, words in lines]
    if len(values) != header[0] or not values or header[1] <= 0:
        raise file.refusal(
            f"it declares {header[0]:g} frames of {header[1]:g} s, and holds {len(values)} frames"
        )
    return joints, np.array(values), 1 / header[1]


def _bvh_joints(file: TextFile, tokens: Iterator[tuple[int, str]]) -> dict[str, BvhJoint]:
    """Reads the hierarchy, up to the word MOTION."""
    joints: dict[str, BvhJoint] = {}
    places: dict[str, int] = {}
    chain: list[str] = []  # the joints whose braces are open
    newest = ""

    def following(count: int) -> list[str]:
        return [word for _, word in itertools.islice(tokens, count)]

    for line, word in tokens:
        if word == "MOTION" and joints and not chain:
            return joints
        if word in ("ROOT", "JOINT") or (word == "End" and chain):
            name = " ".join(following(1))
            newest = f"{chain[-1]}/end" if word == "End" else name
            if newest in joints:
                raise file.refusal(f"there are two joints `{newest}`", line)
            parent = places[chain[-1]] if chain else -1
            places[newest] = len(joints)
            joints[newest] = BvhJoint(parent, np.zeros(3), [])
        elif word == "{" and newest:
            chain.append(newest)
            newest = ""
        elif word == "}" and chain:
            chain.pop()
        elif word == "OFFSET" and chain:
            joints[chain[-1]].offset = np.array(file.numbers(following(3), 3, line))
        elif word == "CHANNELS" and chain:
            count = int(file.numbers(following(1), 1, line)[0])
            channels = following(max(0, min(count, 6)))
            if len(channels) != count or not set(channels) <= _BVH_CHANNELS:
                raise file.refusal(f"{count} channels such as Xrotation were expected", line)
            joints[chain[-1]].channels = channels
        elif word != "HIERARCHY":
            raise file.refusal(f"{word!r} was not expected in the hierarchy", line)
    raise file.refusal("it ends within the hierarchy")


def joint_positions(joints: Mapping[str, BvhJoint], values: np.ndarray) -> np.ndarray:
    """Where the joints are, `(frames, joints, 3)`, in units and axes of the file."""
    turns, offsets = [], []
    columns = iter(values.T)
    for joint in joints.values():
        channels = [(name, next(columns)) for name in joint.channels]
        turns.append(_rotation([(n[0], v) for n, v in channels if n.endswith("rotation")]))
        place = dict(zip("XYZ", joint.offset, strict=True))
        place |= {n[0]: v for n, v in channels if n.endswith("position")}
        offsets.append(np.stack(np.broadcast_arrays(*place.values()), axis=-1))
    parents = [joint.parent for joint in joints.values()]
    return _forward(parents, turns, offsets, len(values), turn_first=False)

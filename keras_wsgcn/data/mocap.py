"""Motion capture files, ASF/AMC and BVH, read as the 17 joints of h36m_17 in metres, z up.

Which bone is which joint, units and axes are tables: another source needs a table, not code.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from keras_wsgcn.data.archive import Motion, median_span
from keras_wsgcn.data.mocap_formats import (
    BvhJoint,
    TextFile,
    bone_ends,
    joint_positions,
    read_amc,
    read_asf,
    read_bvh_file,
)
from keras_wsgcn.errors import InputError, check_choice, check_number
from keras_wsgcn.skeletons import h36m_17

CMU_METRES = 0.0254 / 0.45  # the unit of CMU's files is an inch divided by 0.45
PERSON_METRES = (0.4, 3.0)  # across a pose: a small child, crouching; a tall man, stretched out
SPINE_BEND = 0.4  # see `_put_spine_back`

_TO_Z_UP = {
    "y": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]),
    "z": np.eye(3),
}

Mixture = str | Mapping[str, float]  # a joint of a file, or several with weights that sum to 1


def _weights(mixture: Mixture) -> Mapping[str, float]:
    return {mixture: 1.0} if isinstance(mixture, str) else mixture


def _check_joints(joints: Mapping[str, Mixture], argument: str) -> None:
    if set(joints) != set(h36m_17.joint_names):
        raise InputError(
            f"`{argument}` must have exactly the keys {h36m_17.joint_names}. "
            f"Received: {argument} with the keys {tuple(joints)}"
        )
    for joint, mixture in joints.items():
        if abs(sum(_weights(mixture).values()) - 1) > 1e-6:
            raise InputError(
                f"`{argument}` must mix with weights that sum to 1. "
                f"Received: {argument}[{joint!r}]={mixture}"
            )


@dataclass(frozen=True)
class BvhLayout:
    """How the BVH files of one source are to be read.

    Args:
        joints: for every joint of h36m_17 the joint of the file, or a mixture of several as a dict
            of weights that sum to 1. The end site of the joint `Head` is called `Head/end`.
        metres_per_unit: length of a unit of the file, in metres.
        up: the axis that points up in the file, `"y"` or `"z"`.
        skip_frames: how many frames at the start are not part of the take.
        spine: for files that lack the uppermost bone of the spine, so that neck and shoulders sit
            at its start: the joints at the ends of the two bones below it, from below. The missing
            bone is put back.

    Raises:
        InputError: if `joints` does not give each joint, or `up` or the unit is unusable.
    """

    joints: Mapping[str, Mixture]
    metres_per_unit: float
    up: str = "y"
    skip_frames: int = 0
    spine: tuple[str, str] | None = None

    def __post_init__(self):
        _check_joints(self.joints, "joints")
        check_choice("up", self.up, _TO_Z_UP)
        check_number("metres_per_unit", self.metres_per_unit, above=0)


CMU_BONES: Mapping[str, Mixture] = {  # the bone that ends in the joint
    "pelvis": {"lhipjoint": 0.5, "rhipjoint": 0.5},
    "r_hip": "rhipjoint", "r_knee": "rfemur", "r_ankle": "rtibia",
    "l_hip": "lhipjoint", "l_knee": "lfemur", "l_ankle": "ltibia",
    "spine": "lowerback", "thorax": "thorax", "neck_nose": "upperneck", "head": "head",
    "l_shoulder": "lclavicle", "l_elbow": "lhumerus", "l_wrist": "lwrist",
    "r_shoulder": "rclavicle", "r_elbow": "rhumerus", "r_wrist": "rwrist",
}  # fmt: skip

# The conversions of CMU's files by cgspeed.com come with two sets of names. Both lack the bone
# `wrist`, which prolongs the forearm by exactly one half, and the bone `thorax`; and both start
# with a rest pose that CMU's files do not have.
CGSPEED = BvhLayout(
    joints={
        "pelvis": {"LeftUpLeg": 0.5, "RightUpLeg": 0.5},
        "r_hip": "RightUpLeg", "r_knee": "RightLeg", "r_ankle": "RightFoot",
        "l_hip": "LeftUpLeg", "l_knee": "LeftLeg", "l_ankle": "LeftFoot",
        "spine": "Spine", "thorax": "Neck", "neck_nose": "Head", "head": "Head/end",
        "l_shoulder": "LeftArm", "l_elbow": "LeftForeArm",
        "l_wrist": {"LeftHand": 1.5, "LeftForeArm": -0.5},
        "r_shoulder": "RightArm", "r_elbow": "RightForeArm",
        "r_wrist": {"RightHand": 1.5, "RightForeArm": -0.5},
    },
    metres_per_unit=CMU_METRES,
    skip_frames=1,
    spine=("Spine", "Spine1"),
)  # fmt: skip
CGSPEED_COLLARS = replace(
    CGSPEED,
    joints={
        "pelvis": {"LeftHip": 0.5, "RightHip": 0.5},
        "r_hip": "RightHip", "r_knee": "RightKnee", "r_ankle": "RightAnkle",
        "l_hip": "LeftHip", "l_knee": "LeftKnee", "l_ankle": "LeftAnkle",
        "spine": "Chest", "thorax": "lowerneck", "neck_nose": "Head", "head": "Head/end",
        "l_shoulder": "LeftShoulder", "l_elbow": "LeftElbow",
        "l_wrist": {"LeftWrist": 1.5, "LeftElbow": -0.5},
        "r_shoulder": "RightShoulder", "r_elbow": "RightElbow",
        "r_wrist": {"RightWrist": 1.5, "RightElbow": -0.5},
    },
    spine=("Chest", "Chest2"),
)  # fmt: skip
BVH_LAYOUTS = (CGSPEED, CGSPEED_COLLARS)


def read_asf_amc(
    asf: str | os.PathLike,
    amc: str | os.PathLike,
    *,
    subject: int | None = None,
    action: str = "Unknown",
    take: str | None = None,
    description: str = "",
    fps: float = 30.0,
    source_fps: float = 120.0,
    bones: Mapping[str, Mixture] = CMU_BONES,
) -> Motion:
    """Reads a take from a skeleton file and a motion file of Acclaim.

    Args:
        asf: the skeleton; y is up, and a unit is an inch divided by the `length` in the file.
        amc: the motion.
        subject: number of the person. `None` takes the digits before `_` in the name of `amc`.
        action: what the person does.
        take: name of the take. `None` takes the name of `amc`.
        description: free text.
        fps: frames per second to keep, of which `source_fps` is a multiple.
        source_fps: frames per second of `amc`, which does not say them.
        bones: for every joint of h36m_17 the bone that ends there, or a mixture of several.

    Returns:
        The take as `(frames, 17, 3)` metres, z up.

    Raises:
        InputError: if a file is missing or malformed; the message names the line or the field. Or
            if the unit gives no poses of the size of a person.
    """
    _check_joints(bones, "bones")
    source = TextFile(asf, "asf")
    skeleton, metres_per_unit = read_asf(source)
    _check_present(source, _wanted(bones), skeleton)
    widths = {name: len(bone.channels) for name, bone in skeleton.items() if bone.channels}
    step = _step(source_fps, fps)
    values = read_amc(TextFile(amc, "amc"), widths)
    ends = bone_ends(skeleton, {name: channels[::step] for name, channels in values.items()})
    positions = _mix(ends, list(skeleton), bones) @ _TO_Z_UP["y"].T * metres_per_unit
    unit = f"`length` of the units in {source.path.name}"
    return _motion(Path(amc), positions, subject, action, take, fps, description, "asf/amc", unit)


def read_bvh(
    path: str | os.PathLike,
    *,
    subject: int | None = None,
    action: str = "Unknown",
    take: str | None = None,
    description: str = "",
    fps: float = 30.0,
    layout: BvhLayout | None = None,
    metres_per_unit: float | None = None,
    asf: str | os.PathLike | None = None,
) -> Motion:
    """Reads a take from a BVH file.

    Args:
        path: the file.
        subject: number of the person. `None` takes the digits before `_` in the name of `path`.
        action: what the person does.
        take: name of the take. `None` takes the name of `path`.
        description: free text.
        fps: frames per second to keep, of which those of the file are a multiple.
        layout: how the file is to be read. `None` takes the first of `BVH_LAYOUTS`, the
            conversions of CMU's files, whose joints the file has.
        metres_per_unit: length of a unit of the file, in metres. `None` takes the layout's.
        asf: the person's own skeleton file, for the bone `thorax` where the layout lacks it.
            Without it the bone is predicted, about 2 mm off.

    Returns:
        The take as `(frames, 17, 3)` metres, z up.

    Raises:
        InputError: if the file is missing or malformed, or lacks a joint of the layout; or if the
            unit gives no poses of the size of a person.
    """
    file = TextFile(path, "path")
    joints, values, source_fps = read_bvh_file(file)
    if layout is None:
        named = (x for x in BVH_LAYOUTS if _wanted(x.joints) <= set(joints))
        layout = next(named, CGSPEED)
    if metres_per_unit is not None:
        layout = replace(layout, metres_per_unit=metres_per_unit)
    _check_present(file, _wanted(layout.joints) | set(layout.spine or ()), joints)
    if layout.spine:
        _put_spine_back(file, joints, layout.spine, layout.metres_per_unit, asf)
    values = values[layout.skip_frames :: _step(source_fps, fps)]
    if not len(values):
        raise file.refusal(f"it has no frame after the first {layout.skip_frames}")
    positions = _mix(joint_positions(joints, values), list(joints), layout.joints)
    positions = positions @ _TO_Z_UP[layout.up].T * layout.metres_per_unit
    kind = "bvh+asf" if layout.spine and asf is not None else "bvh"
    unit = f"`metres_per_unit`, which is {layout.metres_per_unit:.4g},"
    return _motion(Path(path), positions, subject, action, take, fps, description, kind, unit)


def _put_spine_back(
    file: TextFile,
    joints: Mapping[str, BvhJoint],
    spine: tuple[str, str],
    unit: float,
    asf: str | os.PathLike | None,
) -> None:
    """Moves what hangs on the upper joint of the spine to the end of the bone that is missing.

    Without the person's skeleton the bone is predicted: it is the one below it, bent once more by
    `SPINE_BEND` of the bend between the two below. On 14 skeletons of CMU the mean error is 2.1 mm.
    """
    lower, upper = spine
    above = list(joints).index(upper)
    hanging = [joint for joint in joints.values() if joint.parent == above]
    if not hanging or any(joint.offset.any() for joint in hanging):
        raise file.refusal(
            f"in `layout` a bone is missing above `{upper}`, but the file has one there; it may "
            "come from another source, and need a BvhLayout of its own"
        )
    if asf is None:
        bone = joints[upper].offset
        bone = bone + SPINE_BEND * (bone - joints[lower].offset)
    else:
        source = TextFile(asf, "asf")
        bones, metres_per_unit = read_asf(source)
        _check_present(source, {"thorax"}, bones)
        bone = bones["thorax"].offset * metres_per_unit / unit
    for joint in hanging:
        joint.offset = bone


def _check_present(file: TextFile, wanted: Iterable[str], present: Iterable[str]) -> None:
    if missing := sorted(set(wanted) - set(present)):
        raise file.refusal(f"it lacks {missing}; it has {sorted(present)}")


def _wanted(joints: Mapping[str, Mixture]) -> set[str]:
    return {name for mixture in joints.values() for name in _weights(mixture)}


def _mix(positions: np.ndarray, names: Sequence[str], joints: Mapping[str, Mixture]) -> np.ndarray:
    """The joints of h36m_17, `(frames, 17, 3)`, out of `(frames, names, 3)`."""
    weights = np.zeros((h36m_17.num_joints, len(names)))
    for joint, mixture in joints.items():
        for name, weight in _weights(mixture).items():
            weights[h36m_17.index(joint), names.index(name)] = weight
    return weights @ positions


def _motion(
    path: Path,
    positions: np.ndarray,
    subject: int | None,
    action: str,
    take: str | None,
    fps: float,
    description: str,
    kind: str,
    unit: str,
) -> Motion:
    """The motion, with subject and take from the name of the file where they are not given."""
    with np.errstate(over="ignore"):
        span = median_span(positions)
    if not PERSON_METRES[0] <= span <= PERSON_METRES[1]:
        raise InputError(
            f"{unit} must give people in metres, who span {PERSON_METRES[0]} to "
            f"{PERSON_METRES[1]} m. Received: {path.name} with poses that span {span:.3g} m"
        )
    if subject is None:
        match = re.match(r"(\d+)_", path.name)
        if not match:
            raise InputError(
                "`subject` must be given where the name of the file does not start with it, as "
                f"02_01 does. Received: subject=None for {str(path)!r}"
            )
        subject = int(match[1])
    try:
        return Motion(
            positions, subject, action, take or path.stem, fps, description, path.name, kind
        )
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None


def _step(source_fps: float, fps: float) -> int:
    """Every how many frames one is kept."""
    ratio = source_fps / fps if fps > 0 else 0.0
    if not math.isfinite(ratio) or round(ratio) < 1 or abs(ratio / round(ratio) - 1) > 0.02:
        raise InputError(
            f"`fps` must be the {source_fps:.6g} frames per second of the file, divided by a "
            f"whole number. Received: fps={fps!r}"
        )
    return round(ratio)

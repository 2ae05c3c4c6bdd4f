"""Keypoint formats of 2D detectors, and how their joints become those of a skeleton.

A format is one row of data in `FORMATS`; a further one needs no code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from keras_wsgcn import skeletons
from keras_wsgcn.errors import (
    InputError,
    check_choice,
    check_integer,
    check_number,
    check_numbers,
    shown,
)
from keras_wsgcn.skeletons import Skeleton, h36m_16, h36m_17

MAX_FRAMES = 500_000  # four hours at 30 frames per second; the frames between are filled in
MAX_FRAME_NUMBER = 2**62
MAX_PIXELS = 1e6  # a coordinate beyond is no pixel

# Where a joint of a converted pose comes from; the larger, the less is known.
MISSING, DETECTED, INTERPOLATED, APPROXIMATED = range(4)
ORIGINS = ("missing", "detected", "interpolated", "approximated")

Mixture = Mapping[str, float]
Points = Mapping[str, tuple[Mixture, ...]]


def _middle(a: str, b: str) -> Mixture:
    return {a: 0.5, b: 0.5}


def _swap_side(name: str) -> str:
    return {"r_": "l_", "l_": "r_"}.get(name[:2], name[:2]) + name[2:]


def _both_sides(points: Points) -> dict[str, tuple[Mixture, ...]]:
    """Rows of the right side, each followed by the same for the left."""
    both: dict[str, tuple[Mixture, ...]] = {}
    for name, mixtures in points.items():
        both[name] = mixtures
        both[_swap_side(name)] = tuple(
            {_swap_side(part): weight for part, weight in mixture.items()} for mixture in mixtures
        )
    return both


# The rows below are read in order; each names a point and mixtures of joints or of earlier points,
# the first choice first. Weights add up to 1, so that a mixture moves and scales with the image.
#
# What a limb falls back on when the detector lost it: the middle of its neighbours, else the same
# bone of the other side, else the bone before it prolonged; on generated motions that is 15 to 35
# pixels off, where a person is 400 high, and up to 60 for two joints in a row. Hips are 0.61 times
# as far apart as shoulders (Drillis and Contini).
_LIMBS = _both_sides(
    {
        "r_hip": ({"l_hip": 1, "r_shoulder": 0.61, "l_shoulder": -0.61},),
        "r_shoulder": ({"l_shoulder": 1, "r_hip": 1.64, "l_hip": -1.64},),
        "r_knee": (_middle("r_hip", "r_ankle"), {"r_hip": 1, "l_knee": 1, "l_hip": -1}),
        "r_ankle": ({"r_knee": 1, "l_ankle": 1, "l_knee": -1}, {"r_knee": 2, "r_hip": -1}),
        "r_elbow": (
            _middle("r_shoulder", "r_wrist"),
            {"r_shoulder": 1, "l_elbow": 1, "l_shoulder": -1},
        ),
        "r_wrist": (
            {"r_elbow": 1, "l_wrist": 1, "l_elbow": -1},
            {"r_elbow": 1.82, "r_shoulder": -0.82},
        ),
    }
)

# Human3.6M's `head` is the end of the skull, about 4 % of stature below the crown, and its
# `neck_nose` lies between it and the neck, at the height of the mouth and a little forward. In
# fractions of stature, (forward, up) from the thorax: head (.01, .14), neck_nose (.03, .07), nose
# (.085, .09), middle of the ears (.015, .11), crown (.01, .18). The mixtures solve for these.
_TRUNK: Points = {
    "pelvis": (_middle("r_hip", "l_hip"),),
    "thorax": (_middle("r_shoulder", "l_shoulder"),),
    "spine": (_middle("pelvis", "thorax"),),
}
_FACE: Points = {
    "ears": (_middle("r_ear", "l_ear"), {"r_ear": 1}, {"l_ear": 1}),
    "eyes": (_middle("r_eye", "l_eye"), {"r_eye": 1}, {"l_eye": 1}),
    "head": (
        {"ears": 1.35, "thorax": -0.35},
        {"eyes": 1.2, "thorax": -0.2},
        {"nose": 1.5, "thorax": -0.5},
    ),
    "neck_nose": (
        {"thorax": 0.3, "nose": 0.3, "ears": 0.4},
        {"thorax": 0.45, "nose": 0.55},
        _middle("thorax", "head"),
    ),
}


@dataclass(frozen=True)
class KeypointFormat:
    """The joints of a detector, and how to make those of a skeleton out of them.

    Args:
        name: what the format is called.
        joint_names: its joints in their order. A joint named as one of a skeleton is that joint.
        points: points in the order in which they are made, each with mixtures, the first choice
            first: `{part: weight}`, a part being a joint or a point made before, the weights
            adding up to 1. For a joint of the format, the mixtures stand in where it is missing.

    Raises:
        InputError: if a mixture names an unknown part, or weights do not add up to 1.
    """

    name: str
    joint_names: tuple[str, ...]
    points: Points = field(default_factory=dict)

    def __post_init__(self):
        known = set(self.joint_names)
        for point, mixtures in self.points.items():
            for mixture in mixtures:
                if unknown := set(mixture) - known:
                    raise InputError(
                        f"`points` must mix joints, or points made before {point!r}; not "
                        f"{sorted(unknown)}. Received: points[{point!r}]={mixtures}"
                    )
                if abs(sum(mixture.values()) - 1) > 1e-9:
                    raise InputError(
                        "`points` must have weights that add up to 1. "
                        f"Received: points[{point!r}]={mixtures}"
                    )
            known.add(point)

    @property
    def num_joints(self) -> int:
        return len(self.joint_names)


_COCO_17 = (
    "nose", "l_eye", "r_eye", "l_ear", "r_ear", "l_shoulder", "r_shoulder", "l_elbow", "r_elbow",
    "l_wrist", "r_wrist", "l_hip", "r_hip", "l_knee", "r_knee", "l_ankle", "r_ankle",
)  # fmt: skip
_BODY_25 = (
    "nose", "neck", "r_shoulder", "r_elbow", "r_wrist", "l_shoulder", "l_elbow", "l_wrist",
    "mid_hip", "r_hip", "r_knee", "r_ankle", "l_hip", "l_knee", "l_ankle", "r_eye", "l_eye",
    "r_ear", "l_ear", "l_big_toe", "l_small_toe", "l_heel", "r_big_toe", "r_small_toe", "r_heel",
)  # fmt: skip
# Halpe calls the crown "head", the neck "neck" and the middle of the hips "hip".
_HALPE_26 = (
    *_COCO_17, "crown", "neck", "mid_hip", "l_big_toe", "r_big_toe", "l_small_toe", "r_small_toe",
    "l_heel", "r_heel",
)  # fmt: skip
_MEDIAPIPE_33 = (
    "nose", "l_eye_inner", "l_eye", "l_eye_outer", "r_eye_inner", "r_eye", "r_eye_outer", "l_ear",
    "r_ear", "l_mouth", "r_mouth", "l_shoulder", "r_shoulder", "l_elbow", "r_elbow", "l_wrist",
    "r_wrist", "l_pinky", "r_pinky", "l_index", "r_index", "l_thumb", "r_thumb", "l_hip", "r_hip",
    "l_knee", "r_knee", "l_ankle", "r_ankle", "l_heel", "r_heel", "l_foot_index", "r_foot_index",
)  # fmt: skip

_BODY = {**_LIMBS, **_TRUNK, **_FACE}
# Detectors learn these two as the middles of hips and shoulders, and see them when one is hidden.
_CENTRES: Points = {
    **_both_sides({"r_hip": ({"mid_hip": 2, "l_hip": -1}, *_LIMBS["r_hip"])}),
    **_both_sides({"r_shoulder": ({"neck": 2, "l_shoulder": -1}, *_LIMBS["r_shoulder"])}),
    "pelvis": ({"mid_hip": 1}, *_TRUNK["pelvis"]),
    "thorax": ({"neck": 1}, *_TRUNK["thorax"]),
}
_H36M_POINTS = {
    **_LIMBS,
    **_TRUNK,
    "head": ({"thorax": 1.95, "spine": -0.95},),
    "neck_nose": (_middle("thorax", "head"),),
}
FORMATS: dict[str, KeypointFormat] = {
    row.name: row
    for row in (
        KeypointFormat("coco17", _COCO_17, _BODY),
        KeypointFormat("body25", _BODY_25, {**_BODY, **_CENTRES}),
        KeypointFormat(
            "halpe26",
            _HALPE_26,
            {
                **_BODY,
                **_CENTRES,
                # Its neck is marked by hand, as MPII's, and lies above the shoulders: theirs comes
                # first, and for a lost one the hips. The neck would put it twice its height too
                # high: 30 pixels at 6 cm and 50 at 10, of a person of 400; the hips are 20 off.
                **_both_sides({"r_shoulder": (*_LIMBS["r_shoulder"], *_CENTRES["r_shoulder"][:1])}),
                "thorax": (*_TRUNK["thorax"], {"neck": 1}),
                "head": ({"crown": 0.79, "thorax": 0.21}, *_FACE["head"]),
            },
        ),
        KeypointFormat("mediapipe33", _MEDIAPIPE_33, _BODY),
        KeypointFormat("h36m16", h36m_16.joint_names, _H36M_POINTS),
        KeypointFormat("h36m17", h36m_17.joint_names, _H36M_POINTS),
    )
}


def format_of(skeleton: str | Skeleton) -> KeypointFormat:
    """The format of keypoints that are a skeleton's joints in their order."""
    row = skeletons.get(skeleton)
    return KeypointFormat(row.name, row.joint_names)


def get_format(identifier: "str | KeypointFormat") -> KeypointFormat:
    """The format behind a name, or the format itself.

    Raises:
        InputError: if there is none.
    """
    if isinstance(identifier, KeypointFormat):
        return identifier
    return FORMATS[check_choice("format", identifier, FORMATS)]


# --- one person over time -----------------------------------------------------------------------


def seen_joints(
    keypoints: np.ndarray, confidence: np.ndarray, least_confidence: float
) -> np.ndarray:
    """Which joints `(..., joints, 2)` are there, `(..., joints)`: no confidence is never enough."""
    found = (confidence >= least_confidence) & (confidence > 0)
    return found & np.isfinite(keypoints).all(axis=-1)


@dataclass(frozen=True)
class KeypointTrack:
    """One person's keypoints over time, as a detector wrote them.

    Args:
        person: what the person is called.
        frames: `(frames,)` integers that rise; a number that is left out is a missing frame.
        keypoints: `(frames, joints, 2)`, pixels; NaN where missing.
        confidence: `(frames, joints)`; 0 where missing.
        format: name of the format, or an own `KeypointFormat`.

    Raises:
        InputError: if shapes do not fit, or numbers are no pixels.
    """

    person: int | str
    frames: np.ndarray
    keypoints: np.ndarray
    confidence: np.ndarray
    format: str | KeypointFormat

    def __post_init__(self):
        joints = get_format(self.format).num_joints
        store = object.__setattr__  # the record is frozen for everyone else
        if isinstance(self.person, np.generic):
            store(self, "person", self.person.item())
        if type(self.person) not in (int, str):
            raise InputError(
                f"`person` must be an integer or a string. Received: person={shown(self.person)}"
            )
        given = self.frames
        check_numbers("frames", given)
        store(self, "frames", np.asarray(given))
        rises = self.frames.ndim == 1 and self.frames.dtype.kind in "iu" and len(self.frames) > 0
        if not rises or self.frames[0] < 0 or not self._frames_rise():
            raise InputError(
                "`frames` must be rising integers, at least one, none negative. "
                f"Received: frames={shown(given)}"
            )
        if (span := int(self.frames[-1]) - int(self.frames[0]) + 1) > MAX_FRAMES:
            raise InputError(
                f"`frames` must span at most {MAX_FRAMES} frames. Received: frames from "
                f"{self.frames[0]} to {self.frames[-1]}, {span} frames"
            )
        count = len(self.frames)
        for name, shape in (("keypoints", (count, joints, 2)), ("confidence", (count, joints))):
            array = check_numbers(name, getattr(self, name))
            if array.shape != shape:
                raise InputError(
                    f"`{name}` must have the shape {shape}, the joints being those of the format "
                    f"{get_format(self.format).name!r}. Received: {name}.shape={array.shape}"
                )
            store(self, name, array)
        largest = np.nanmax(np.abs(self.keypoints), initial=0.0)
        if not largest <= MAX_PIXELS or not np.isfinite(self.confidence).all():
            raise InputError(
                f"`keypoints` must be pixels up to {MAX_PIXELS:.0f}, NaN where missing, and "
                f"`confidence` finite. Received: keypoints up to {largest:.4g}"
            )

    def seen(self, least_confidence: float) -> np.ndarray:
        """Which joints are there, `(frames, joints)` booleans; see `seen_joints`."""
        return seen_joints(self.keypoints, self.confidence, least_confidence)

    def _frames_rise(self) -> bool:
        if int(self.frames[-1]) > MAX_FRAME_NUMBER:
            return False
        return bool((self.frames[1:] > self.frames[:-1]).all())  # a difference may overflow


@dataclass(frozen=True)
class ConvertedTrack:
    """One person's 2D poses over time on a skeleton.

    Args:
        person: what the person is called.
        frames: `(frames,)` integers, every one from the first to the last.
        pose2d: `(frames, joints, 2)` pixels; NaN where a joint is missing.
        origin: `(frames, joints)` indices into `ORIGINS`.
        usable: `(frames,)` booleans: every joint is there, and enough of them were seen.
    """

    person: int | str
    frames: np.ndarray
    pose2d: np.ndarray
    origin: np.ndarray
    usable: np.ndarray


def convert_track(
    track: KeypointTrack,
    skeleton: str | Skeleton = "h36m_16",
    *,
    least_confidence: float = 0.3,
    max_gap: int = 8,
    least_seen: float = 0.5,
) -> ConvertedTrack:
    """Converts a detector's keypoints to a skeleton.

    A joint below `least_confidence` counts as missing. Missing joints are filled in this order:
    between two frames that have it, if at most `max_gap` lie between them, by a straight line;
    else by the next mixture of the format's row. What stays missing is NaN.

    Args:
        track: the keypoints of one person.
        skeleton: `"h36m_16"`, `"h36m_17"`, or one whose joints are all named among the joints and
            points of the track's format.
        least_confidence: below it a joint is missing.
        max_gap: how many frames in a row are interpolated at most; 0 for none.
        least_seen: share of the joints that must be detected or interpolated in a usable frame.

    Returns:
        The poses of all frames from the first to the last.

    Raises:
        InputError: if an argument is out of range, or the skeleton has other joints.
    """
    target = skeletons.get(skeleton)
    check_number("least_confidence", least_confidence, least=0.0)
    check_integer("max_gap", max_gap, least=0)
    check_number("least_seen", least_seen, least=0.0, below=1.0 + 1e-9)
    row = get_format(track.format)
    made = {*row.joint_names, *row.points}
    if unknown := [name for name in target.joint_names if name not in made]:
        raise InputError(
            f"`skeleton` must have joints that {row.name!r} has or makes; {shown(unknown)} are not "
            f"among {sorted(made)}. Received: skeleton={target.name!r}"
        )
    frames, keypoints = _dense(track, least_confidence)
    origins = np.where(np.isnan(keypoints[..., 0]), MISSING, DETECTED).astype(np.int8)
    _interpolate(keypoints, origins, max_gap)
    points, point_origins = _mix(row, keypoints, origins)
    pose2d = np.stack([points[name] for name in target.joint_names], axis=1)
    origin = np.stack([point_origins[name] for name in target.joint_names], axis=1)
    seen = np.isin(origin, (DETECTED, INTERPOLATED)).mean(axis=1)
    usable = (origin != MISSING).all(axis=1) & (seen >= least_seen)
    return ConvertedTrack(track.person, frames, pose2d, origin, usable)


def _dense(track: KeypointTrack, least_confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """All frames from first to last, and their keypoints, `(frames, joints, 2)`, NaN if missing."""
    first = int(track.frames[0])
    frames = np.arange(first, int(track.frames[-1]) + 1)
    keypoints = np.full((len(frames), *track.keypoints.shape[1:]), np.nan)
    found = track.seen(least_confidence)
    keypoints[track.frames - first] = np.where(found[..., None], track.keypoints, np.nan)
    return frames, keypoints


def _interpolate(keypoints: np.ndarray, origins: np.ndarray, max_gap: int) -> None:
    """Fills short gaps of each joint by straight lines, in place."""
    if max_gap == 0:
        return
    every = np.arange(len(keypoints))
    for joint in range(keypoints.shape[1]):
        known = np.flatnonzero(origins[:, joint] == DETECTED)
        if len(known) < 2 or len(known) == len(every):
            continue
        after = np.searchsorted(known, every)
        inside = (after > 0) & (after < len(known)) & (origins[:, joint] == MISSING)
        gap = known[np.minimum(after, len(known) - 1)] - known[np.maximum(after - 1, 0)] - 1
        fill = every[inside & (gap <= max_gap)]
        for axis in range(2):
            keypoints[fill, joint, axis] = np.interp(fill, known, keypoints[known, joint, axis])
        origins[fill, joint] = INTERPOLATED


def _mix(
    row: KeypointFormat, keypoints: np.ndarray, origins: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every joint and point by name: where it is, `(frames, 2)`, and its origin, `(frames,)`.

    Those of the joints are views of `keypoints` and `origins`, which are filled in.
    """
    # Views: filling them in place, a long video needs half the memory.
    points = {name: keypoints[:, joint] for joint, name in enumerate(row.joint_names)}
    origin = {name: origins[:, joint] for joint, name in enumerate(row.joint_names)}
    for name, mixtures in row.points.items():
        is_joint = name in points
        if not is_joint:
            points[name] = np.full((len(keypoints), 2), np.nan)
            origin[name] = np.full(len(keypoints), MISSING, np.int8)
        for choice, mixture in enumerate(mixtures):
            mixed = np.sum([weight * points[part] for part, weight in mixture.items()], axis=0)
            worst = np.max([origin[part] for part in mixture], axis=0)
            if is_joint or choice > 0:
                worst = np.full_like(worst, APPROXIMATED)
            take = (origin[name] == MISSING) & np.isfinite(mixed).all(axis=-1)
            points[name][take], origin[name][take] = mixed[take], worst[take]
    return points, origin

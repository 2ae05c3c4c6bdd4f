"""The bodies of generated people: the layout of their angles, their bones and kinematics.

Angles are `(frames, columns)` in degrees, a column for every axis in `activities.LIMITS`.
"""

from dataclasses import dataclass

import numpy as np

from keras_wsgcn.data.activities import LIMBS, LIMITS, Pose
from keras_wsgcn.skeletons import h36m_17

# --- the layout of the angles -------------------------------------------------------------------

COLUMNS: dict[str, slice] = {}
for _joint, _axes in LIMITS.items():
    _start = max((columns.stop for columns in COLUMNS.values()), default=0)
    COLUMNS[_joint] = slice(_start, _start + len(_axes))
LOW, HIGH = np.array([axis for axes in LIMITS.values() for axis in axes], dtype=float).T
LIFT = COLUMNS["lift"].start
RIGHT, LEFT = (
    np.concatenate([np.r_[COLUMNS[f"{side}_{limb}"]] for limb in LIMBS]) for side in "rl"
)
LEGS = np.concatenate([np.r_[COLUMNS[f"{s}_{limb}"]] for s in "rl" for limb in ("hip", "knee")])
# Sideways bends and twists of the trunk change their sign in a mirror; limbs only change sides.
_TRUNK_STARTS = np.array([COLUMNS[joint].start for joint in ("pelvis", "spine", "neck")])
LATERAL, TWIST = _TRUNK_STARTS + 1, _TRUNK_STARTS + 2
FLIPPED = np.concatenate([LATERAL, TWIST])


def pose_vector(*poses: Pose) -> np.ndarray:
    """The angles of a pose `(columns,)`, the later poses over the earlier ones."""
    vector = np.zeros(len(LOW))
    for pose in poses:
        for joint, angles in pose.items():
            names = (joint,) if joint in COLUMNS else (f"r_{joint}", f"l_{joint}")
            for name in names:
                vector[COLUMNS[name]] = angles
    return vector


# --- bodies -------------------------------------------------------------------------------------

# Rest position of every joint from its parent, as (forward, left, up) in fractions of body height
# (after Drillis and Contini), and the frame that carries it. The right side mirrors the left.
_BONES = {
    "spine": ("lumbar", (-0.015, 0, 0.135)),
    "thorax": ("chest", (0.005, 0, 0.150)),
    "neck_nose": ("neck", (0.030, 0, 0.068)),
    "head": ("head", (-0.018, 0, 0.075)),
    "hip": ("pelvis", (0, 0.068, 0)),
    "knee": ("thigh", (0, 0, -0.245)),
    "ankle": ("shank", (0, 0, -0.246)),
    "shoulder": ("clavicle", (0.002, 0.112, -0.012)),
    "elbow": ("upper_arm", (0, 0, -0.180)),
    "wrist": ("forearm", (0, 0, -0.148)),
}
_ANKLE_HEIGHT = 0.042
ANKLES = [h36m_17.index("r_ankle"), h36m_17.index("l_ankle")]


@dataclass(frozen=True)
class Body:
    bones: np.ndarray  # (17, 3) metres, rest position from the parent
    ankle_height: float  # metres
    posture: np.ndarray  # (columns,) degrees

    @property
    def leg(self) -> np.ndarray:
        """Lengths of thigh and shank, metres."""
        return np.linalg.norm(self.bones[ANKLES[0] - 1 : ANKLES[0] + 1], axis=1)


def make_body(seed: int, subject: int) -> Body:
    rng = np.random.default_rng([seed, subject])
    height = rng.uniform(1.5, 1.95)
    bones = np.zeros((h36m_17.num_joints, 3))
    for name, (_, offset) in _BONES.items():
        scaled = height * rng.normal(1, 0.04) * np.array(offset)
        if name in h36m_17.joint_names:
            bones[h36m_17.index(name)] = scaled
        else:
            bones[h36m_17.index(f"l_{name}")] = scaled
            bones[h36m_17.index(f"r_{name}")] = scaled * (1, -1, 1)
    posture = rng.normal(0, 2.5, len(LOW))
    posture[FLIPPED] *= 0.4
    posture[LEGS] *= 0.3
    posture[COLUMNS["pelvis"]] *= 0.4
    posture[LIFT] = 0
    return Body(bones, _ANKLE_HEIGHT * height, posture)


def turn_about(axis: int, degrees: np.ndarray) -> np.ndarray:
    """Rotations about the axis 0, 1 or 2, of a body forward, left or up, `(..., 3, 3)`."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.zeros((*np.shape(degrees), 3, 3))
    matrix[..., axis, axis] = 1
    matrix[..., i, i] = matrix[..., j, j] = cosine
    matrix[..., j, i], matrix[..., i, j] = sine, -sine
    return matrix


def _trunk(angles: np.ndarray) -> np.ndarray:
    flexion, lateral, twist = angles.T
    return turn_about(2, twist) @ turn_about(1, flexion) @ turn_about(0, -lateral)


def _arm(angles: np.ndarray, side: int) -> np.ndarray:
    elevation, plane, rotation = angles.T
    swing = (
        turn_about(2, -side * plane) @ turn_about(0, side * elevation) @ turn_about(2, side * plane)
    )
    return swing @ turn_about(2, side * rotation)


def _frames(angles: np.ndarray) -> dict[str, np.ndarray]:
    """How every part of the body is turned, each `(frames, 3, 3)`."""
    pose = {name: angles[:, columns] for name, columns in COLUMNS.items()}
    frames = {"pelvis": _trunk(pose["pelvis"])}
    for frame, parent, joint in (
        ("lumbar", "pelvis", "spine"), ("chest", "lumbar", "spine"),
        ("neck", "chest", "neck"), ("head", "neck", "neck"),
    ):  # fmt: skip
        frames[frame] = frames[parent] @ _trunk(pose[joint] / 2)
    for name, side in (("r", -1), ("l", 1)):
        flexion, abduction, rotation = pose[f"{name}_hip"].T
        hip = (
            turn_about(1, -flexion)
            @ turn_about(0, side * abduction)
            @ turn_about(2, side * rotation)
        )
        arm = _arm(pose[f"{name}_shoulder"], side)
        # The shoulder girdle takes its share when the arm goes up.
        raised = np.degrees(np.arccos(np.clip(arm[:, 2, 2], -1, 1)))
        shrug = 0.2 * np.maximum(raised - 30, 0)
        frames[f"{name}_thigh"] = frames["pelvis"] @ hip
        frames[f"{name}_shank"] = frames[f"{name}_thigh"] @ turn_about(
            1, pose[f"{name}_knee"][:, 0]
        )
        frames[f"{name}_clavicle"] = frames["chest"] @ turn_about(0, side * shrug)
        frames[f"{name}_upper_arm"] = frames["chest"] @ arm
        bend = turn_about(1, -pose[f"{name}_elbow"][:, 0])
        frames[f"{name}_forearm"] = frames[f"{name}_upper_arm"] @ bend
    return frames


def forward_kinematics(angles: np.ndarray, bones: np.ndarray) -> np.ndarray:
    """Joints from the pelvis, facing x, `(frames, 17, 3)` metres."""
    frames = _frames(angles)
    joints = np.zeros((len(angles), *bones.shape))
    for parent, child in h36m_17.bones:
        name = h36m_17.joint_names[child]
        side, limb = ("", name) if name in _BONES else (name[:2], name[2:])
        carrier = _BONES[limb][0]
        frame = frames[carrier if carrier in frames else side + carrier]
        joints[:, child] = joints[:, parent] + frame @ bones[child]
    return joints

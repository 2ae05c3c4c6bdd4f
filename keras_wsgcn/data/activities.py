"""What generated people do: the limits of their joints, and one row of key poses per activity.

Plain data; `bodies.py` gives the angles a body, `motions.py` a course in time and space.
"""

from dataclasses import dataclass, field
from typing import Any

# A pose says, in degrees, where joints stand; those it leaves out stand as in REST. Trunk joints
# take (flexion, to the left, twist to the left), hips (flexion, abduction, external rotation),
# knees and elbows a flexion. Shoulders take (elevation, plane, external rotation), as the ISB
# recommends: plane 0 raises the arm sideways, 90 forwards. `r_knee` is one side, `knee` both.
# `lift` is metres off the floor.
Pose = dict[str, Any]
Move = tuple[tuple[float, Pose], ...]  # (seconds to reach it, key pose)


def _pose(**joints: Any) -> Pose:
    return joints


_TRUNK = {
    "pelvis": ((-30, 75), (-25, 25), (-60, 60)),
    "spine": ((-30, 80), (-35, 35), (-55, 55)),
    "neck": ((-45, 50), (-35, 35), (-70, 70)),
    "lift": ((-1, 0.6),),
}
LIMBS = {
    "hip": ((-25, 125), (-20, 50), (-40, 45)),
    "knee": ((0, 145),),
    "shoulder": ((-50, 175), (-50, 135), (-85, 90)),
    "elbow": ((2, 150),),
}
# The lowest and the highest angle of every axis of every joint.
LIMITS = _TRUNK | {f"{side}_{limb}": axes for side in "rl" for limb, axes in LIMBS.items()}
REST = {
    "spine": (2, 0, 0), "neck": (4, 0, 0), "hip": (4, 4, 5), "knee": 8,
    "shoulder": (9, 35, -5), "elbow": 15,
}  # fmt: skip


@dataclass(frozen=True)
class Activity:
    """One row of the table: what the body does.

    Args:
        description: free text.
        moves: sequences of key poses; one of them is drawn for each repetition.
        cycle: key poses (phase in [0, 1), pose of the right side) of a gait; the left side follows
            half a cycle later.
        sway: how far the trunk follows the gait, degrees.
        lean: how far the body leans into a turn, degrees.
        period: seconds of a cycle.
        base: what every key pose of the activity starts from.
        planted: whether both feet keep their places.
        course: "still", "spot" (turning where it stands) or "path" (along a closed curve).
        spread: standard deviation of the key angles, degrees.
    """

    description: str
    moves: tuple[Move, ...] = ()
    cycle: tuple[tuple[float, Pose], ...] = ()
    sway: Pose = field(default_factory=dict)
    lean: float = 0.0
    period: float = 1.0
    base: Pose = field(default_factory=dict)
    planted: bool = True
    course: str = "still"
    spread: float = 4.0


_WALK = (
    (0.00, _pose(hip=(28, 1, 0), knee=9, shoulder=(-16, 80, -5), elbow=14)),
    (0.10, _pose(hip=(23, -1, 0), knee=14, shoulder=(-13, 80, -5), elbow=16)),
    (0.22, _pose(hip=(14, -2, 0), knee=13, shoulder=(-5, 80, -5), elbow=19)),
    (0.36, _pose(hip=(2, -2, 0), knee=9, shoulder=(8, 80, -5), elbow=25)),
    (0.48, _pose(hip=(-6, 0, 2), knee=13, shoulder=(19, 80, -5), elbow=33)),
    (0.58, _pose(hip=(-8, 2, 4), knee=34, shoulder=(18, 80, -5), elbow=32)),
    (0.70, _pose(hip=(13, 3, 4), knee=61, shoulder=(9, 80, -5), elbow=26)),
    (0.84, _pose(hip=(31, 3, 2), knee=33, shoulder=(-7, 80, -5), elbow=18)),
    (0.93, _pose(hip=(30, 2, 0), knee=8, shoulder=(-14, 80, -5), elbow=15)),
)
_RUN = (
    (0.00, _pose(hip=(33, 1, 0), knee=27, shoulder=(-38, 80, 0), elbow=85, lift=-0.03)),
    (0.10, _pose(hip=(29, 0, 0), knee=33, shoulder=(-26, 80, 0), elbow=88, lift=-0.05)),
    (0.20, _pose(hip=(20, -1, 0), knee=31, shoulder=(-8, 80, -8), elbow=91, lift=-0.05)),
    (0.34, _pose(hip=(4, 0, 2), knee=19, shoulder=(22, 80, -20), elbow=95, lift=-0.03)),
    (0.43, _pose(hip=(-1, 1, 2), knee=22, shoulder=(32, 80, -24), elbow=98, lift=0.07)),
    (0.52, _pose(hip=(-10, 2, 3), knee=55, shoulder=(36, 80, -25), elbow=99, lift=-0.03)),
    (0.64, _pose(hip=(13, 3, 4), knee=92, shoulder=(22, 80, -17), elbow=94, lift=-0.05)),
    (0.78, _pose(hip=(45, 3, 3), knee=87, shoulder=(-10, 80, -5), elbow=88, lift=-0.05)),
    (0.93, _pose(hip=(42, 2, 1), knee=36, shoulder=(-34, 80, 0), elbow=85, lift=0.07)),
)
_STEP = (
    (0.00, _pose(hip=(4, 5, 4), knee=8)),
    (0.51, _pose(hip=(4, 4, 4), knee=8)),
    (0.72, _pose(hip=(26, 6, 8), knee=50)),
    (0.94, _pose(hip=(8, 6, 6), knee=14)),
)
# What several moves share.
_GUARD = _pose(
    l_hip=(24, 8, 0), r_hip=(-2, 10, 15), l_knee=22, r_knee=24, pelvis=(4, 0, -25),
    spine=(12, 0, -5), neck=(8, 0, 28), shoulder=(46, 95, -25), elbow=128,
)  # fmt: skip
_SEATED = _pose(
    pelvis=(-6, 0, 0), hip=(80, 8, 5), knee=90, spine=(10, 0, 0), shoulder=(28, 80, -20), elbow=55
)
_RISING = _pose(
    pelvis=(32, 0, 0), hip=(96, 7, 5), knee=84, spine=(22, 0, 0), neck=(-15, 0, 0),
    shoulder=(45, 85, 0), elbow=35,
)  # fmt: skip
_DOWN = _pose(pelvis=(28, 0, 0), hip=(112, 12, 10), knee=112, spine=(22, 0, 0), neck=(-18, 0, 0))
_CROUCH = _pose(
    pelvis=(25, 0, 0), hip=(82, 6, 5), knee=85, spine=(22, 0, 0), neck=(-12, 0, 0),
    shoulder=(-40, 80, 0), elbow=20, lift=-0.3,
)  # fmt: skip
_SIDE = _pose(r_shoulder=(165, 20, 0), r_elbow=25, spine=(0, 32, 0), neck=(0, 12, 0))
_FOLD = _pose(pelvis=(55, 0, 0), hip=(63, 9, 8), spine=(55, 0, 0), shoulder=(105, 90, 0), elbow=8)
_BOW = _pose(pelvis=(38, 0, 0), hip=(45, 4, 5), spine=(28, 0, 0), neck=(18, 0, 0),
            shoulder=(42, 88, -5))  # fmt: skip
_PICK = _pose(pelvis=(38, 0, 0), hip=(118, 14, 12), knee=110, spine=(36, 0, 0), elbow=12,
             neck=(0, 0, 0), shoulder=(58, 95, -20))  # fmt: skip
_WAVE_HIGH = _pose(r_shoulder=(115, 15, 70), r_elbow=80, spine=(0, -4, 0))
_WAVE_LOW = _pose(r_shoulder=(45, 10, 85), r_elbow=128, neck=(4, 0, -15))

ACTIVITIES = {
    "Walking": Activity(
        "walks along a closed curve", cycle=_WALK, planted=False, course="path",
        period=1.12, lean=3,
        base=_pose(pelvis=(4, 0, 0)),
        sway=_pose(pelvis=(0, 3, 5), spine=(0, -3, -11), neck=(0, 0, 5)),
    ),
    "Running": Activity(
        "jogs along a closed curve", cycle=_RUN, planted=False, course="path",
        period=0.68, lean=8,
        base=_pose(pelvis=(8, 0, 0), spine=(8, 0, 0)),
        sway=_pose(pelvis=(0, 4, 7), spine=(0, -4, -18), neck=(0, 0, 10)),
    ),
    "Turning": Activity(
        "turns in place with small steps", cycle=_STEP, planted=False, period=1.15, course="spot",
        sway=_pose(pelvis=(0, 2, 0), spine=(0, -2, -3)),
    ),
    "Jumping": Activity(
        "jumps up, and jumping jacks", planted=False,
        moves=(
            (
                (0.5, _CROUCH),
                (0.3, _pose(hip=(4, 4, 4), knee=8, shoulder=(80, 85, 0), elbow=30)),
                (0.24, _pose(hip=(10, 5, 4), knee=20, shoulder=(140, 70, 0), elbow=20, lift=0.27)),
                (0.23, _pose(hip=(14, 5, 4), knee=22, shoulder=(90, 70, 0), elbow=25)),
                (0.25, _CROUCH | _pose(shoulder=(35, 75, 0), hip=(60, 6, 5), knee=66)),
                (0.6, {}), (0.5, {}),
            ),
            tuple(
                (time, _pose(hip=(hip, legs, 4), knee=knee, shoulder=(arms, 5, 10), lift=lift))
                for time, hip, knee, legs, arms, lift in (
                    (0.3, 20, 32, 4, 12, -0.1), (0.15, 7, 12, 10, 60, 0),
                    (0.14, 7, 12, 15, 95, 0.09), (0.14, 7, 12, 20, 130, 0),
                    (0.2, 18, 30, 21, 160, -0.1), (0.15, 7, 12, 16, 125, 0),
                    (0.14, 7, 12, 11, 85, 0.09), (0.14, 7, 12, 6, 40, 0),
                )
            ),
        ),
    ),
    "Squatting": Activity(
        "squats down and comes up", base=_pose(hip=(4, 11, 12)),
        moves=(
            (*((s, _DOWN | _pose(shoulder=(88, 85, -10), elbow=10)) for s in (1.1, 0.4)),
             (1.0, {}), (0.4, {})),
        ),
    ),
    "Sitting": Activity(
        "sits down, sits and stands up", spread=3,
        moves=(
            (
                (0.7, _RISING), (0.7, _SEATED), (0.9, _SEATED),
                (0.5, _SEATED | _pose(neck=(5, 0, 35), r_shoulder=(50, 60, -10), r_elbow=85)),
                (1.1, _SEATED), (0.6, _RISING), (0.7, {}), (0.8, {}),
            ),
        ),
    ),
    "Waving": Activity(
        "waves with one hand",
        moves=(
            ((0.6, _WAVE_HIGH), *((0.28, _WAVE_HIGH | _pose(r_elbow=e)) for e in (40, 85) * 3),
             (0.8, {}), (0.5, {})),
            ((0.5, _WAVE_LOW), *((0.24, _WAVE_LOW | _pose(r_shoulder=(45, 10, turn)))
                                 for turn in (40, 85, 40, 85, 40)), (0.7, {}), (0.4, {})),
        ),
    ),
    "Boxing": Activity(
        "boxes the air from a guard", base=_GUARD,
        moves=(
            ((0.35, {}), (0.22, _pose(l_shoulder=(86, 85, -30), l_elbow=8, spine=(14, 0, -22),
                                     pelvis=(6, 0, -32), neck=(8, 0, 45))), (0.28, {})),
            ((0.35, {}), (0.26, _pose(r_shoulder=(86, 95, -30), r_elbow=8, spine=(16, 0, 32),
                                     pelvis=(8, 0, 10), neck=(8, 0, -30))), (0.32, {})),
            ((0.35, _pose(spine=(12, 0, 5), l_shoulder=(60, 20, 0))),
             (0.26, _pose(l_shoulder=(85, 85, 0), l_elbow=88, spine=(12, 0, -30),
                         pelvis=(6, 0, -35), neck=(8, 0, 50))), (0.32, {})),
            ((0.4, _pose(l_knee=50, r_knee=50, r_hip=(22, 10, 15), l_hip=(50, 8, 0),
                         pelvis=(10, 0, -25), spine=(25, -12, 0))),
             (0.3, _pose(r_shoulder=(70, 85, -15), r_elbow=95, spine=(8, 5, 30))), (0.35, {})),
        ),
    ),
    "Throwing": Activity(
        "throws overhand", base=_pose(l_hip=(16, 6, 3), r_hip=(-4, 6, 10), knee=14),
        moves=(
            (
                (0.6, _pose(r_shoulder=(60, 60, 0), r_elbow=110, l_shoulder=(55, 70, 0),
                           l_elbow=80)),
                (0.6, _pose(r_shoulder=(95, -10, 75), r_elbow=95, l_shoulder=(75, 70, 0),
                           l_elbow=15, spine=(-6, -6, -32), pelvis=(0, 0, -30), neck=(4, 0, 50),
                           r_knee=30, r_hip=(8, 8, 12))),
                (0.27, _pose(r_shoulder=(118, 50, 40), r_elbow=65, l_shoulder=(40, 60, 0),
                            l_elbow=70, spine=(8, 6, 5), pelvis=(6, 0, -5))),
                (0.2, _pose(r_shoulder=(90, 85, 0), r_elbow=20, l_shoulder=(30, 0, 0), l_elbow=80,
                           spine=(20, 8, 22), pelvis=(10, 0, 10), l_knee=26, l_hip=(34, 6, 3))),
                (0.35, _pose(r_shoulder=(64, 98, -15), r_elbow=25, l_shoulder=(25, -20, 15),
                            l_elbow=60, spine=(28, 8, 34), pelvis=(14, 0, 16), l_knee=30,
                            l_hip=(42, 6, 3))),
                (0.8, {}), (0.5, {}),
            ),
        ),
    ),
    "Kicking": Activity(
        "kicks forwards", planted=False, base=_pose(l_knee=14, l_hip=(8, 4, 5)), spread=3,
        moves=(
            (
                (0.5, _pose(r_hip=(-20, 5, 5), r_knee=75, pelvis=(8, 0, -10), spine=(6, 0, 12),
                           l_shoulder=(45, 70, 0), r_shoulder=(-30, 60, 0))),
                (0.38, _pose(r_hip=(80, 2, 5), r_knee=25, pelvis=(-8, 0, 10), spine=(22, 0, -18),
                            l_shoulder=(-15, 30, 0), r_shoulder=(55, 55, 0), r_elbow=40)),
                (0.4, _pose(r_hip=(58, 4, 5), r_knee=85, spine=(8, 0, -5))),
                (0.5, {}), (0.5, {}),
            ),
            (
                (0.5, _pose(r_hip=(78, 8, 5), r_knee=110, shoulder=(40, 80, -15), elbow=100)),
                (0.28, _pose(r_hip=(80, 6, 5), r_knee=15, pelvis=(-16, 0, 0), spine=(15, 0, 0),
                            shoulder=(35, 60, -15), elbow=85)),
                (0.33, _pose(r_hip=(72, 8, 5), r_knee=105, shoulder=(40, 80, -15), elbow=100)),
                (0.5, {}), (0.4, {}),
            ),
        ),
    ),
    "Reaching": Activity(
        "reaches for things at many heights", spread=9,
        moves=tuple(
            ((0.9, pose), (0.4, pose), (0.8, {}), (0.2, {}))
            for pose in (
                _pose(r_shoulder=(160, 75, 0), r_elbow=12, spine=(-6, 8, 5), neck=(-20, 0, -8)),
                _pose(r_shoulder=(88, 85, 0), r_elbow=12, spine=(18, 0, 22), pelvis=(8, 0, 8)),
                _pose(r_shoulder=(85, 5, 10), r_elbow=15, spine=(0, -14, -12), neck=(4, 0, -40)),
                _pose(r_shoulder=(72, 115, -20), r_elbow=20, spine=(10, 0, 35), neck=(10, 0, 25)),
                _pose(shoulder=(95, 85, 0), elbow=25, spine=(12, 0, 0), pelvis=(6, 0, 0)),
                _pose(r_shoulder=(75, 80, 0), r_elbow=15, spine=(40, -8, 15), pelvis=(35, 0, 8),
                     hip=(52, 4, 5), knee=25, neck=(-10, 0, 0)),
            )
        ),
    ),
    "Stretching": Activity(
        "circles the arms, bends sideways, twists and folds", base=_pose(hip=(4, 9, 8)),
        moves=(
            (
                (0.8, _pose(shoulder=(90, 90, 0), elbow=8)),
                (0.7, _pose(shoulder=(170, 80, 0), elbow=8, spine=(-10, 0, 0), neck=(-12, 0, 0))),
                (0.35, _pose(shoulder=(165, 10, 0), elbow=8, spine=(-12, 0, 0))),
                (0.7, _pose(shoulder=(90, -8, 0), elbow=8)),
                (0.7, _pose(shoulder=(20, -15, 0), elbow=8)),
            ),
            ((1.1, _SIDE), (0.9, _SIDE), (0.9, {})),
            (
                (0.7, _pose(shoulder=(80, 20, 0), elbow=60)),
                *((0.7, _pose(shoulder=(80, 20, 0), elbow=60, spine=(0, 0, side * 42),
                             pelvis=(0, 0, side * 15), neck=(0, 0, side * 30)))
                  for side in (1, -1, 1, -1)),
                (0.7, {}),
            ),
            ((1.3, _FOLD), (0.8, _FOLD), (1.2, {})),
        ),
    ),
    "Bowing": Activity(
        "bows",
        moves=(
            ((0.9, _BOW), (0.6, _BOW), (1.0, {}), (0.7, {})),
            ((0.8, _BOW | _pose(r_shoulder=(30, 100, -55), r_elbow=85, l_shoulder=(50, 0, 0))),
             (0.9, {}), (0.5, {})),
        ),
    ),
    "Talking": Activity(
        "talks with the hands", base=_pose(shoulder=(22, 65, -15), elbow=60), spread=8,
        moves=tuple(
            ((0.6, pose), (0.25, pose))
            for pose in (
                {},
                _pose(shoulder=(30, 40, 20), elbow=75, neck=(0, 4, 10)),
                _pose(r_shoulder=(40, 75, -10), r_elbow=100, neck=(8, 0, -15)),
                _pose(l_shoulder=(40, 45, 12), l_elbow=95, neck=(0, -6, 15), spine=(2, 0, 8)),
                _pose(r_shoulder=(55, 45, 15), r_elbow=60, spine=(4, 0, -12), neck=(2, 5, -10)),
                _pose(shoulder=(38, 80, -30), elbow=85, neck=(10, 0, 0)),
                _pose(shoulder=(12, 45, -5), elbow=25, neck=(-4, 0, 0)),
            )
        ),
    ),
    "Phoning": Activity(
        "speaks on the phone", base=_pose(r_shoulder=(80, 65, 5), r_elbow=147, neck=(8, -8, 0)),
        moves=tuple(
            ((0.8, pose), (0.7, pose))
            for pose in (
                {},
                _pose(l_shoulder=(30, 50, 10), l_elbow=80, neck=(4, -8, 25)),
                _pose(neck=(16, -8, -20), spine=(8, 0, -10)),
                _pose(l_shoulder=(15, 95, -45), l_elbow=95, spine=(4, 4, 12)),
                _pose(l_shoulder=(60, 60, 0), l_elbow=40, neck=(0, -6, 20), spine=(2, 0, 10)),
            )
        ),
    ),
    "PickingUp": Activity(
        "picks something up from the floor and puts it away", spread=3,
        moves=(
            ((1.2, _PICK), (0.3, _PICK),
             (1.1, _pose(shoulder=(35, 95, -25), elbow=85, neck=(15, 0, 0))),
             (0.7, _pose(shoulder=(60, 92, -15), elbow=70, spine=(4, 0, 25))), (0.8, {}),
             (0.3, {})),
            ((1.0, _FOLD | _pose(hip=(66, 5, 5), knee=30, l_shoulder=(30, 60, -10))),
             (0.9, _pose(r_shoulder=(40, 80, -10), r_elbow=90)), (0.7, {}), (0.3, {})),
        ),
    ),
    "Clapping": Activity(
        "claps the hands", spread=3, base=_pose(shoulder=(34, 88, -5), elbow=95),
        moves=(
            tuple(
                (0.22, _pose(shoulder=(elevation, plane, turn), elbow=92))
                for elevation, plane, turn in ((34, 80, 4), (40, 104, -34)) * 4
            ),
        ),
    ),
}  # fmt: skip

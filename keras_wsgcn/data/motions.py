"""Generated human motion: key poses and gait cycles in joint angles, put through one skeleton.

The default data of the library: deterministic from a seed, made in seconds, nothing to download.
"""

import cmath
import math
import zlib
from collections.abc import Sequence

import numpy as np

from keras_wsgcn.data.activities import ACTIVITIES, REST, Activity
from keras_wsgcn.data.archive import Motion, MotionArchive
from keras_wsgcn.data.bodies import (
    ANKLES,
    COLUMNS,
    FLIPPED,
    HIGH,
    LATERAL,
    LEFT,
    LEGS,
    LIFT,
    LOW,
    RIGHT,
    TWIST,
    Body,
    forward_kinematics,
    make_body,
    pose_vector,
    turn_about,
)
from keras_wsgcn.errors import InputError, check_integer, check_number
from keras_wsgcn.skeletons import h36m_17

ACTIONS = tuple(ACTIVITIES)
_MAX_FRAMES = 500_000  # of a take
_STRETCH = 0.999  # of a leg, at most: a knee is never quite straight

# --- angles over time ---------------------------------------------------------------------------


def _interpolate(times: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Monotone cubic curves through key values `(keys, columns)`, which they never overshoot."""
    step = np.diff(times)[:, None]
    slope = np.diff(values, axis=0) / step
    before, after = slope[:-1], slope[1:]
    same_sign = before * after > 0
    total = np.where(same_sign, before + after, 1)
    inner = np.where(same_sign, 2 * before * after / total, 0)
    tangent = np.pad(inner, ((1, 1), (0, 0)))
    key = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(times) - 2)
    length = step[key]
    u = (at[:, None] - times[key][:, None]) / length
    return (
        values[key] * (1 + 2 * u) * (1 - u) ** 2
        + values[key + 1] * u**2 * (3 - 2 * u)
        + length * tangent[key] * u * (1 - u) ** 2
        - length * tangent[key + 1] * u**2 * (1 - u)
    )


def _wander(rng: np.random.Generator, time: np.ndarray, columns: int) -> np.ndarray:
    """Slow smooth noise of unit variance, `(frames, columns)`."""
    frequency, phase = rng.uniform(0.08, 0.5, (3, columns)), rng.uniform(0, 1, (3, columns))
    angle = 2 * np.pi * (time[:, None, None] * frequency + phase)
    return np.sqrt(2 / 3) * np.sin(angle).sum(axis=1)


def _move_angles(
    activity: Activity, rng: np.random.Generator, time: np.ndarray, speed: float
) -> np.ndarray:
    """Repetitions of the activity's moves, no two alike, `(frames, columns)`."""
    spread = np.full(len(LOW), float(activity.spread))
    spread[np.r_[LEGS, COLUMNS["pelvis"]]] *= 0.25  # or feet slide and bodies fall
    spread[LIFT] = 0
    times, values = [-rng.uniform(0.1, 1.0)], [pose_vector(REST, activity.base)]
    while times[-1] <= time[-1]:
        move = activity.moves[rng.integers(len(activity.moves))]
        tempo = rng.normal(1, 0.1) / speed
        held = None
        for seconds, pose in move:
            if pose != held:
                held, error = pose, rng.normal(0, spread)
            vector = pose_vector(REST, activity.base, pose) + error
            vector[LIFT] *= tempo**2  # a jump that lasts longer goes higher
            times.append(times[-1] + seconds * tempo)
            values.append(vector)
    return _interpolate(np.array(times), np.array(values), time)


def _cycle_angles(
    activity: Activity, rng: np.random.Generator, time: np.ndarray, speed: float
) -> np.ndarray:
    """A gait, `(frames, columns)`."""
    phase = rng.uniform() + speed / activity.period * time + 0.04 * _wander(rng, time, 1)[:, 0]
    keys = np.array([key for key, _ in activity.cycle])
    values = np.array([pose_vector(REST, activity.base, pose) for _, pose in activity.cycle])
    # Three rounds, of which the middle one is read: the curve closes smoothly.
    times, rounds = np.concatenate([keys - 1, keys, keys + 1]), np.tile(values, (3, 1))
    angles = _interpolate(times, rounds, phase % 1)
    other = _interpolate(times, rounds, (phase + 0.5) % 1)
    angles[:, LEFT] = other[:, RIGHT]
    turn, sway = 2 * np.pi * phase[:, None], pose_vector(activity.sway)
    angles[:, LATERAL] += sway[LATERAL] * np.sin(turn)
    angles[:, TWIST] += sway[TWIST] * np.cos(turn)
    return angles


def _within_limits(angles: np.ndarray) -> np.ndarray:
    """Clips softly: an angle slows down over the last degrees, and never passes its limit."""
    soft = np.minimum(6.0, (HIGH - LOW) / 10)
    over = np.maximum(angles - (HIGH - soft), 0)
    under = np.maximum(LOW + soft - angles, 0)
    inside = np.clip(angles, LOW + soft, HIGH - soft)
    return inside + soft * (np.tanh(over / soft) - np.tanh(under / soft))


# --- the body in the room -----------------------------------------------------------------------


def _place_planted(joints: np.ndarray, body: Body, course: "_Course") -> np.ndarray:
    """Stands the body on the floor; neither foot moves."""
    feet = joints[:, ANKLES]
    middle = feet.mean(axis=1, keepdims=True)
    goals = np.median(feet - middle, axis=0)
    goals[:, 2] = 0
    place = np.array([course.start.real, course.start.imag, body.ankle_height])
    turn = turn_about(2, np.full(1, np.degrees(course.heading)))[0].T
    goals = np.broadcast_to(goals @ turn + place, feet.shape)
    joints = (joints - middle) @ turn + place
    for ankle, goal in zip(ANKLES, goals.swapaxes(0, 1), strict=True):
        # Where a leg does not reach, the whole body comes down.
        hip = joints[:, ankle - 2]
        flat = np.sum((goal - hip)[:, :2] ** 2, axis=1)
        highest = goal[:, 2] + np.sqrt(np.maximum((_STRETCH * sum(body.leg)) ** 2 - flat, 0))
        joints = joints - np.maximum(hip[:, 2] - highest, 0)[:, None, None] * (0, 0, 1)
    return _stand_on(goals, joints, body)


def _place_stepping(
    joints: np.ndarray, body: Body, course: "_Course", lift: np.ndarray, fps: float
) -> np.ndarray:
    """Moves the body so that the lower foot keeps its place, and turns it along its course."""
    feet = joints[:, ANKLES]
    weight = np.exp((feet[..., 2].min(axis=1, keepdims=True) - feet[..., 2]) / 0.012)
    weight /= weight.sum(axis=1, keepdims=True)
    ground = np.sum(weight * feet[..., 2], axis=1)
    flat = feet[..., 0] + 1j * feet[..., 1]
    place, heading = [course.start], [course.heading]
    for frame, (right, left) in enumerate((weight[1:] + weight[:-1]) / 2):
        rate = course.yaw_rate(frame / fps, place[-1], heading[-1], abs(right - left))
        heading.append(heading[-1] + rate / fps)
        before, after = cmath.rect(1, heading[-2]), cmath.rect(1, heading[-1])
        step = before * flat[frame] - after * flat[frame + 1]
        place.append(place[-1] + right * step[0] + left * step[1] + course.pull(place[-1]) / fps)
    root = np.stack([np.real(place), np.imag(place), body.ankle_height - ground], axis=1)
    turn = np.swapaxes(turn_about(2, np.degrees(heading)), 1, 2)
    goals = feet @ turn + root[:, None]
    # Above the feet, the body leans into the curve.
    tilt = turn_about(0, np.full(1, -course.lean))[0]
    aside = -ground[:, None] * (tilt[:, 2] - (0, 0, 1))
    joints = (joints @ tilt.T + aside[:, None]) @ turn
    if course.kind != "still":  # a gait carries the body evenly; the legs make up for it
        root = np.hstack([_smooth(root[:, :2], 0.14 * fps), _smooth(root[:, 2:], 0.07 * fps)])
    up = np.maximum(lift, 0)[:, None] * (0, 0, 1)
    return _stand_on(goals + up[:, None], joints + (root + up)[:, None], body)


def _smooth(curves: np.ndarray, width: float) -> np.ndarray:
    """Gaussian average over frames; `curves` is `(frames, columns)`, `width` in frames."""
    reach = min(math.ceil(3 * width), len(curves) - 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(width, 1e-6)) ** 2)
    padded = np.pad(curves, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    columns = [np.convolve(column, kernel / kernel.sum(), mode="valid") for column in padded.T]
    return np.stack(columns, axis=1)


def _stand_on(goals: np.ndarray, joints: np.ndarray, body: Body) -> np.ndarray:
    """Bends the legs so that the ankles come to `goals`, `(frames, 2, 3)`, or nearest to it."""
    left = joints[:, ANKLES[1] - 2] - joints[:, ANKLES[0] - 2]
    forward = np.stack([left[:, 1], -left[:, 0], np.zeros(len(left))], axis=1)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    thigh, shank = body.leg
    for ankle, goal in zip(ANKLES, goals.swapaxes(0, 1), strict=True):
        hip, knee = joints[:, ankle - 2], joints[:, ankle - 1]
        distance = np.linalg.norm(goal - hip, axis=1, keepdims=True)
        along = (goal - hip) / distance
        distance = np.minimum(distance, _STRETCH * (thigh + shank))
        foot = (thigh**2 - shank**2 + distance**2) / (2 * distance)
        # The knee stays on its side; a nearly straight leg gets it from the front.
        aside = knee - hip + 0.1 * forward
        aside -= np.sum(aside * along, axis=1, keepdims=True) * along
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        joints[:, ankle - 1] = hip + foot * along + np.sqrt(thigh**2 - foot**2) * aside
        joints[:, ankle] = hip + distance * along
    return joints


class _Course:
    """Where a person goes: nowhere, around on the spot, or along an ellipse about the origin."""

    def __init__(self, activity: Activity, rng: np.random.Generator):
        self.kind = activity.course
        self.sense = rng.choice([-1, 1])  # 1 turns to the left
        self.lean = self.sense * activity.lean
        self.long, self.short = rng.uniform(0.9, 1.1), rng.uniform(0.7, 0.9)
        self.pace, self.seconds = rng.uniform(1.1, 2.0), rng.uniform(4, 8)
        self.heading = rng.uniform(0, 2 * math.pi)
        self.start = cmath.rect(rng.uniform(0, 0.5), rng.uniform(0, 2 * math.pi))
        if self.kind == "path":
            self.start = cmath.rect(self.short, self.heading - self.sense * math.pi / 2)

    def pull(self, place: complex) -> complex:
        """Metres per second that keep somebody who does not travel from drifting off."""
        return 0 if self.kind == "path" else 0.15 * (self.start - place)

    def yaw_rate(self, second: float, place: complex, heading: float, one_leg: float) -> float:
        """Radians per second to the left; `one_leg` is 0 on both feet and 1 on one."""
        if self.kind == "still":
            return 0.0
        if self.kind == "spot":  # the feet would slide if both carried
            turn = math.sin(2 * math.pi * second / self.seconds)
            return self.sense * self.pace * math.tanh(3 * turn) * one_leg
        # Pursue a point of the ellipse that lies some way ahead.
        ahead = math.atan2(place.imag / self.short, place.real / self.long) + self.sense * 0.7
        target = complex(self.long * math.cos(ahead), self.short * math.sin(ahead))
        error = cmath.phase((target - place) * cmath.rect(1, -heading))
        return max(-3.5, min(3.5, 4 * error))


def _make_motion(
    body: Body, seed: int, subject: int, action: str, take: int, frames: int, fps: float
) -> Motion:
    activity = ACTIVITIES[action]
    rng = np.random.default_rng([seed, subject, zlib.crc32(action.encode()), take])
    time = np.arange(frames) / fps
    speed, size, mirrored = rng.uniform(0.85, 1.2), rng.uniform(0.9, 1.1), rng.random() < 0.5
    course = _Course(activity, rng)
    noise = rng.normal(0, 1.5, len(LOW)) + 1.5 * _wander(rng, time, len(LOW))
    angles = (_cycle_angles if activity.cycle else _move_angles)(activity, rng, time, speed)
    base = pose_vector(REST, activity.base)
    angles = base + size * (angles - base)
    if mirrored:
        angles[:, np.r_[LEFT, RIGHT]] = angles[:, np.r_[RIGHT, LEFT]]
        angles[:, FLIPPED] *= -1
    noise[:, LEGS] *= 0.6 if activity.planted else 0.3
    noise[:, COLUMNS["pelvis"]] *= 0.4  # the whole body leans with it
    noise[:, LIFT] = 0
    angles = _within_limits(angles + body.posture + noise)
    joints = forward_kinematics(angles, body.bones)
    if activity.planted:
        joints = _place_planted(joints, body, course)
    else:
        joints = _place_stepping(joints, body, course, angles[:, LIFT], fps)
    return Motion(
        joints.astype(np.float32),
        subject=subject,
        action=action,
        take=f"{take:02d}",
        fps=float(fps),
        description=activity.description,
        source="generated",
    )


# --- the public function ------------------------------------------------------------------------


def generate_motions(
    *,
    subjects: int = 8,
    takes: int = 2,
    seconds: float = 8.0,
    fps: float = 30.0,
    actions: Sequence[str] | None = None,
    seed: int = 0,
) -> MotionArchive:
    """Generates motions of several people.

    A motion depends on the seed, its subject, action and take, and on nothing else that is asked
    for with it.

    Args:
        subjects: number of people; they differ in height, proportions and posture.
        takes: number of motions for each subject and action.
        seconds: length of a motion.
        fps: frames per second.
        actions: names out of `ACTIONS`; `None` for all.
        seed: what the random numbers start from.

    Returns:
        `MotionArchive` of `subjects * takes * len(actions)` motions on the skeleton `h36m_17`,
        positions in metres, z up, the floor at z = 0, within about 1.6 m of the origin.

    Raises:
        InputError: if an argument is not what is stated above.

    Example:

    >>> archive = generate_motions(subjects=1, takes=1, actions=["Walking"])
    >>> archive.motions[0].key, archive.motions[0].positions.shape
    ('S001/Walking/01', (240, 17, 3))
    """
    check_integer("subjects", subjects, least=1)
    check_integer("takes", takes, least=1)
    check_integer("seed", seed, least=0)
    check_number("seconds", seconds, above=0)
    check_number("fps", fps, above=0)
    if not 1.5 <= seconds * fps <= _MAX_FRAMES:
        raise InputError(
            f"`seconds` must last 2 to {_MAX_FRAMES} frames at fps={fps}. "
            f"Received: seconds={seconds}"
        )
    frames = round(seconds * fps)
    chosen = ACTIONS if actions is None else actions
    is_list = isinstance(chosen, Sequence) and not isinstance(chosen, str) and len(chosen) > 0
    if not is_list or any(name not in ACTIONS for name in chosen) or len(set(chosen)) < len(chosen):
        raise InputError(
            f"`actions` must be a list of different names out of {ACTIONS}, or None for all. "
            f"Received: actions={actions!r}"
        )
    motions = []
    for subject in range(1, subjects + 1):
        body = make_body(seed, subject)
        motions += [
            _make_motion(body, seed, subject, action, take, frames, fps)
            for action in chosen
            for take in range(1, takes + 1)
        ]
    return MotionArchive(skeleton=h36m_17, motions=tuple(motions))

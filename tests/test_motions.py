"""The generated motions, judged by the joint positions alone."""

import itertools

import numpy as np
import pytest

from keras_wsgcn.data.motions import ACTIONS, generate_motions
from keras_wsgcn.errors import InputError
from keras_wsgcn.skeletons import h36m_17

pytestmark = pytest.mark.plain

FPS = 30.0
SMALL = {"subjects": 3, "takes": 2, "seconds": 6.0, "fps": FPS}
STEPPING = {"Walking", "Running", "Turning", "Jumping", "Kicking"}
FLYING = {"Running", "Jumping"}
UP = np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def archive():
    return generate_motions(**SMALL)


@pytest.fixture(params=ACTIONS)
def action_motions(request, archive):
    return request.param, [m for m in archive.motions if m.action == request.param]


def joint(positions, name):
    return positions[:, h36m_17.index(name)].astype(float)


def directions(positions):
    """Unit vectors to the left and to the front of the pelvis, `(frames, 3)` each."""
    left = joint(positions, "l_hip") - joint(positions, "r_hip")
    front = np.cross(left, UP)
    return tuple(v / np.linalg.norm(v, axis=1, keepdims=True) for v in (left, front))


def dot(a, b):
    return np.sum(a * b, axis=-1)


def bend(positions, *chain):
    """Cross product of the two bones of a limb as unit vectors: axis and sine of the bend."""
    a, b, c = (joint(positions, name) for name in chain)
    upper, lower = b - a, c - b
    upper /= np.linalg.norm(upper, axis=1, keepdims=True)
    lower /= np.linalg.norm(lower, axis=1, keepdims=True)
    return np.cross(upper, lower), upper


def speed(points):
    return np.linalg.norm(np.diff(points, axis=0), axis=-1) * FPS


def ankles(positions):
    return np.stack([joint(positions, "r_ankle"), joint(positions, "l_ankle")], axis=1)


def bone_lengths(positions):
    return np.stack(
        [np.linalg.norm(positions[:, c] - positions[:, p], axis=1) for p, c in h36m_17.bones], 1
    )


# --- what is in an archive ----------------------------------------------------------------------


def test_archive_holds_every_combination_once(archive):
    assert archive.skeleton == h36m_17
    assert len(ACTIONS) >= 10
    assert all(name.isidentifier() and name[0].isupper() for name in ACTIONS)
    expected = {
        f"S{subject:03d}/{action}/{take}"
        for subject, action, take in itertools.product((1, 2, 3), ACTIONS, ("01", "02"))
    }
    assert len(archive.motions) == len(expected)
    assert {motion.key for motion in archive.motions} == expected
    for motion in archive.motions:
        assert motion.positions.shape == (180, 17, 3)
        assert motion.positions.dtype == np.float32
        assert np.isfinite(motion.positions).all()
        assert (motion.fps, motion.source) == (FPS, "generated")
        assert motion.description


def test_motion_does_not_depend_on_what_else_is_asked_for(archive):
    subset = generate_motions(subjects=2, takes=1, seconds=6.0, actions=["Waving", "Walking"])
    assert [m.key for m in subset.motions] == [
        "S001/Waving/01", "S001/Walking/01", "S002/Waving/01", "S002/Walking/01",
    ]  # fmt: skip
    by_key = {motion.key: motion.positions for motion in archive.motions}
    for motion in subset.motions:
        np.testing.assert_array_equal(motion.positions, by_key[motion.key])


def test_seeds_subjects_and_takes_differ(archive):
    one = {"subjects": 1, "takes": 1, "seconds": 1.0, "actions": ["Talking"]}
    first, again, other = (generate_motions(**one, seed=s).motions[0] for s in (7, 7, 8))
    np.testing.assert_array_equal(first.positions, again.positions)
    assert np.abs(first.positions - other.positions).max() > 0.05
    # Subjects and actions draw numbers of their own: no two motions share their course.
    starts = np.array([m.positions[0, 0, :2] for m in archive.motions])
    assert len(np.unique(starts.round(4), axis=0)) == len(starts)
    for action in ACTIONS:
        relative = [m.positions - m.positions[:, :1] for m in archive.motions if m.action == action]
        for a, b in itertools.combinations(relative, 2):
            assert np.abs(a - b).max() > 0.05


@pytest.mark.parametrize("action", ["Walking", "Kicking"])
def test_longer_takes_begin_alike(action):
    short, long = (
        generate_motions(subjects=1, takes=1, seconds=s, actions=[action]).motions[0].positions
        for s in (4.0, 8.0)
    )
    np.testing.assert_allclose(short[:90], long[:90], atol=1e-3)


def test_frame_rate_samples_the_same_motion():
    slow, fast = (
        generate_motions(subjects=1, takes=1, seconds=2.0, fps=fps, actions=["Boxing"]).motions[0]
        for fps in (25.0, 50.0)
    )
    assert slow.positions.shape[0] == 50
    assert fast.positions.shape[0] == 100
    np.testing.assert_allclose(fast.positions[::2], slow.positions, atol=0.02)


# --- bodies -------------------------------------------------------------------------------------


def test_bones_keep_their_length_and_differ_between_subjects(archive):
    bodies = {}
    for motion in archive.motions:
        lengths = bone_lengths(motion.positions)
        bodies.setdefault(motion.subject, lengths[0])
        np.testing.assert_allclose(lengths, np.broadcast_to(bodies[motion.subject], lengths.shape),
                                   atol=2e-6)  # fmt: skip
    for a, b in itertools.combinations(bodies.values(), 2):
        assert np.abs(a - b).max() > 0.01
        assert np.ptp(a / b) > 0.06  # other proportions, not only another size
    children = [h36m_17.joint_names[child] for _, child in h36m_17.bones]
    for lengths in bodies.values():
        for left, right in h36m_17.mirror_pairs:
            a, b = (children.index(h36m_17.joint_names[j]) for j in (left, right))
            assert lengths[a] == pytest.approx(lengths[b], abs=2e-6)


def test_heights_are_those_of_adults():
    motions = generate_motions(subjects=20, takes=1, seconds=1.0, actions=["Talking"]).motions
    heights = [np.ptp(m.positions[..., 2], axis=1).max() + 0.08 for m in motions]
    assert min(heights) > 1.4
    assert max(heights) < 2.05
    assert np.ptp(heights) > 0.2


# --- anatomy ------------------------------------------------------------------------------------


def test_left_is_left_and_the_face_is_in_front(action_motions):
    for motion in action_motions[1]:
        left, front = directions(motion.positions)
        across = joint(motion.positions, "l_shoulder") - joint(motion.positions, "r_shoulder")
        assert (dot(across, left) > 0).all()
        thorax, head = joint(motion.positions, "thorax"), joint(motion.positions, "head")
        face = joint(motion.positions, "neck_nose") - (thorax + head) / 2
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        ahead = np.cross(across, head - thorax)
        assert (dot(face, ahead) > 0).mean() > 0.95  # the rest: a head turned far round
        assert np.allclose(front[:, 2], 0, atol=1e-6)


@pytest.mark.parametrize("action", ["Walking", "Running"])
def test_people_go_where_they_face(archive, action):
    for motion in (m for m in archive.motions if m.action == action):
        travel = np.diff(joint(motion.positions, "pelvis"), axis=0) * FPS
        _, front = directions(motion.positions)
        assert (dot(travel, front[1:]) > 0.2).all()


@pytest.mark.parametrize("side", ["r", "l"])
def test_knees_bend_backwards_only(action_motions, side):
    for motion in action_motions[1]:
        left, _ = directions(motion.positions)
        axis, _ = bend(motion.positions, f"{side}_hip", f"{side}_knee", f"{side}_ankle")
        assert dot(axis, left).min() > 0.0
        assert dot(axis, left).max() > 0.05


@pytest.mark.parametrize("side", ["r", "l"])
def test_elbows_of_hanging_arms_bend_forwards(archive, side):
    bends = []
    for motion in archive.motions:
        axis, upper = bend(
            motion.positions, *(f"{side}_{j}" for j in ("shoulder", "elbow", "wrist"))
        )
        trunk = joint(motion.positions, "spine") - joint(motion.positions, "thorax")
        trunk /= np.linalg.norm(trunk, axis=1, keepdims=True)
        across = joint(motion.positions, "l_shoulder") - joint(motion.positions, "r_shoulder")
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        hanging = dot(upper, trunk) > np.cos(np.radians(30))
        bends.append(-dot(axis, across)[hanging])
    bends = np.concatenate(bends)
    assert len(bends) > 3000
    assert bends.min() > -0.02
    assert np.median(bends) > 0.2


def test_joints_stay_within_a_human_range(action_motions):
    for motion in action_motions[1]:
        for side, (chain, most) in itertools.product(
            "rl", ((("hip", "knee", "ankle"), 146), (("shoulder", "elbow", "wrist"), 151))
        ):
            a, b, c = (joint(motion.positions, f"{side}_{name}") for name in chain)
            cosine = dot(b - a, c - b)
            cosine /= np.linalg.norm(b - a, axis=1) * np.linalg.norm(c - b, axis=1)
            assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < most


def test_hands_keep_out_of_the_trunk(action_motions):
    for motion in action_motions[1]:
        pelvis, thorax = joint(motion.positions, "pelvis"), joint(motion.positions, "thorax")
        axis = thorax - pelvis
        for name in ("r_wrist", "l_wrist", "r_elbow", "l_elbow"):
            point = joint(motion.positions, name)
            share = np.clip(dot(point - pelvis, axis) / dot(axis, axis), 0, 1)[:, None]
            distance = np.linalg.norm(point - pelvis - share * axis, axis=1)
            assert distance.min() > 0.07


# --- the floor ----------------------------------------------------------------------------------


def test_feet_stand_on_the_floor(action_motions):
    action, motions = action_motions
    for motion in motions:
        assert motion.positions[..., 2].min() > 0.0
        lowest = ankles(motion.positions)[..., 2].min(axis=1)
        floor = np.percentile(lowest, 10)
        assert 0.05 < floor < 0.09  # the height of an ankle
        assert lowest.min() > floor - 0.02
        if action not in FLYING:
            assert lowest.max() < floor + 0.04


def test_runners_and_jumpers_leave_the_floor(archive):
    for motion in (m for m in archive.motions if m.action in FLYING):
        lowest = ankles(motion.positions)[..., 2].min(axis=1)
        aloft = lowest > np.percentile(lowest, 10) + 0.03
        assert 0.03 < aloft.mean() < 0.5


def test_standing_feet_do_not_slide(action_motions):
    action, motions = action_motions
    for motion in motions:
        feet = ankles(motion.positions)
        slide = speed(feet[..., :2])
        if action not in STEPPING:
            assert slide.max() < 0.001
            continue
        floor = np.percentile(feet[..., 2].min(axis=1), 10)
        standing = np.maximum(feet[:-1, :, 2], feet[1:, :, 2]) < floor + 0.01
        assert standing.any(axis=1).mean() > 0.2
        # Real walkers of motion capture have medians of 0.04 to 0.11 m/s by the same measure.
        assert np.median(slide[standing]) < (0.2 if action == "Jumping" else 0.12)
        assert slide[standing].mean() < 0.3


# --- movement -----------------------------------------------------------------------------------


def test_nothing_moves_faster_than_people_do(action_motions):
    for motion in action_motions[1]:
        assert speed(motion.positions).max() < 12
        assert speed(motion.positions).max() > 0.2


@pytest.mark.parametrize(
    ("action", "slowest", "fastest"), [("Walking", 0.6, 1.7), ("Running", 0.8, 3)]
)
def test_gait_has_a_plausible_pace(archive, action, slowest, fastest):
    for motion in (m for m in archive.motions if m.action == action):
        pace = speed(joint(motion.positions, "pelvis")[:, :2])
        assert slowest < pace.mean() < fastest
        assert pace.min() > 0.5 * pace.mean()
        assert pace.max() < 1.6 * pace.mean()


def test_runners_lean_into_the_curve(archive):
    for positions in (m.positions for m in archive.motions if m.action == "Running"):
        left, front = directions(positions)
        heading = np.unwrap(np.arctan2(front[:, 1], front[:, 0]))
        lean = dot(joint(positions, "thorax") - ankles(positions).mean(axis=1), left).mean()
        assert lean * (heading[-1] - heading[0]) > 0


def test_subjects_stay_in_the_area(archive):
    for motion in archive.motions:
        assert np.hypot(*motion.positions[..., :2].reshape(-1, 2).T).max() < 1.7


@pytest.mark.parametrize("action", sorted(STEPPING))
def test_a_long_take_stays_in_the_area(action):
    motion = generate_motions(subjects=1, takes=1, seconds=60.0, actions=[action]).motions[0]
    assert np.hypot(*motion.positions[..., :2].reshape(-1, 2).T).max() < 1.7


def relative_height(positions, name, to):
    """Highest and lowest position of a joint over another, metres."""
    height = joint(positions, name)[:, 2] - joint(positions, to)[:, 2]
    return height.max(), height.min()


def test_actions_show_what_they_say(archive):
    def of(action):
        return [m.positions for m in archive.motions if m.action == action]

    for positions in of("Squatting"):
        pelvis = joint(positions, "pelvis")[:, 2]
        assert pelvis.min() < 0.75 * pelvis.max()
    for positions in of("PickingUp"):
        assert min(relative_height(positions, f"{s}_wrist", f"{s}_knee")[1] for s in "rl") < 0
    for positions in of("Sitting"):
        knee = (joint(positions, "r_knee") + joint(positions, "l_knee"))[:, 2] / 2
        seat = joint(positions, "pelvis")[:, 2] - knee
        assert seat.min() < 0.1
        assert seat.max() > 0.25
    for positions in of("Waving"):
        assert max(relative_height(positions, f"{s}_wrist", "thorax")[0] for s in "rl") > 0
    for positions in of("Kicking"):
        assert max(ankles(positions)[..., 2].max(axis=0)) > 0.35
    for positions in of("Bowing"):
        highest, lowest = relative_height(positions, "head", "pelvis")
        assert lowest < highest - 0.15
    for positions in of("Turning"):
        _, front = directions(positions)
        heading = np.unwrap(np.arctan2(front[:, 1], front[:, 0]))
        assert np.ptp(heading) > np.pi / 3
    for positions in of("Boxing") + of("Throwing"):
        wrists = (speed(joint(positions, f"{s}_wrist")).max() for s in "rl")
        assert max(wrists) > 2.5
    for positions in of("Clapping"):
        gap = np.linalg.norm(joint(positions, "r_wrist") - joint(positions, "l_wrist"), axis=1)
        assert gap.min() < 0.2 < gap.max()


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("subjects", 0), ("subjects", 1.5), ("subjects", True), ("takes", 0), ("takes", "2"),
        ("seed", -1), ("seed", None), ("seconds", 0.0), ("seconds", float("nan")),
        ("seconds", float("inf")), ("seconds", 1e308), ("seconds", 0.01), ("seconds", "8"),
        ("fps", -30.0), ("fps", None), ("actions", []), ("actions", "Walking"),
        ("actions", ["Flying"]), ("actions", ["Walking", "Walking"]), ("actions", [3]),
        ("actions", 7), ("actions", [[]]),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(argument, value):
    with pytest.raises(InputError) as caught:
        generate_motions(**{argument: value})
    message = str(caught.value)
    assert message.startswith(f"`{argument}` must ")
    assert message.endswith(f"Received: {argument}={value!r}")


def test_unknown_action_lists_the_choices():
    with pytest.raises(InputError) as caught:
        generate_motions(actions=["Flying"])
    assert all(name in str(caught.value) for name in ACTIONS)


def test_two_frames_are_enough():
    archive = generate_motions(subjects=1, takes=1, seconds=2 / FPS)
    assert {motion.positions.shape for motion in archive.motions} == {(2, 17, 3)}

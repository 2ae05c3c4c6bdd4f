"""Keypoint formats: written as detectors write them, read back, converted, and compared."""

import json

import numpy as np
import pytest
from detector import (
    detector_joints,
    generated_walk,
    seen,
    track_of,
    truth,
    write_coco,
    write_npy,
    write_npz,
    write_openpose,
)

from keras_wsgcn.data.keypoint_files import read_keypoints
from keras_wsgcn.data.keypoint_tracks import track_people
from keras_wsgcn.data.keypoints import (
    APPROXIMATED,
    DETECTED,
    FORMATS,
    INTERPOLATED,
    MISSING,
    KeypointFormat,
    convert_track,
    format_of,
)
from keras_wsgcn.errors import InputError
from keras_wsgcn.skeletons import Skeleton, h36m_16, h36m_17

pytestmark = pytest.mark.plain

DETECTORS = ("coco17", "body25", "halpe26", "mediapipe33")
LIMBS = [n for n in h36m_17.joint_names if n[:2] in ("l_", "r_")]

# The largest errors that the mixtures make on generated walks, millimetres in 3D.
TOLERANCE_MM = {"pelvis": 1, "thorax": 30, "spine": 45, "head": 35, "neck_nose": 35}


@pytest.fixture(scope="module")
def walk():
    return generated_walk()


# --- files as detectors write them --------------------------------------------------------------

WRITERS = (write_coco, write_openpose, write_npy, write_npz)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("format", FORMATS)
def test_files_come_back_as_the_joints_they_were_made_from(format, write, walk, tmp_path):
    (track,) = read_keypoints(write(tmp_path, [seen(walk, format)]), format)
    np.testing.assert_array_equal(track.frames, np.arange(120))
    for skeleton in (h36m_16, h36m_17):
        converted = convert_track(track, skeleton)
        assert converted.usable.all()
        expected = truth(walk, skeleton)
        shared = [n for n in skeleton.joint_names if n in FORMATS[format].joint_names]
        assert set(LIMBS) <= set(shared)
        rows = [skeleton.index(name) for name in shared]
        np.testing.assert_allclose(converted.pose2d[:, rows], expected[:, rows], atol=1e-9)
        assert (converted.origin[:, rows] == DETECTED).all()


@pytest.mark.parametrize("format", DETECTORS)
def test_approximated_joints_are_near(format, walk):
    """In millimetres: a mixture is the same in 3D, so it is measured there."""
    positions, _ = walk
    for axes in ([0, 1], [0, 2], [1, 2]):
        joints = detector_joints(positions, format)[..., axes] * 1000
        keypoints = np.concatenate([joints, np.isfinite(joints[..., :1])], axis=-1)
        pose = convert_track(track_of(keypoints, format), "h36m_17").pose2d
        error = np.linalg.norm(pose - positions[..., axes] * 1000, axis=-1).max(axis=0)
        for name, largest in TOLERANCE_MM.items():
            assert error[h36m_17.index(name)] <= largest, (name, error[h36m_17.index(name)])


def test_neck_nose_out_of_16_joints(walk):
    pose = convert_track(track_of(seen(walk, "h36m16"), "h36m16"), "h36m_17").pose2d
    error = np.linalg.norm(pose - truth(walk), axis=-1).max(axis=0)
    assert 0 < error[h36m_17.index("neck_nose")] < 12  # pixels; a person is 400 high
    assert np.delete(error, h36m_17.index("neck_nose")).max() < 1e-9


@pytest.mark.parametrize("format", FORMATS)
def test_left_and_right_are_treated_alike(format, walk, rng):
    """A format in the mirror is converted to the pose in the mirror, also where joints lack."""
    row = FORMATS[format]
    other = {"l": "r", "r": "l"}
    mirror = [
        row.joint_names.index(other[n[0]] + n[1:] if n[1:2] == "_" else n) for n in row.joint_names
    ]
    keypoints = seen(walk, format)[:40] + rng.normal(0, 3, (40, row.num_joints, 3)) * (1, 1, 0)
    keypoints[..., 2] *= rng.random((40, row.num_joints)) < 0.9
    flipped = (keypoints * (-1, 1, 1))[:, mirror]
    a, b = (convert_track(track_of(k, format), "h36m_17", max_gap=2) for k in (keypoints, flipped))
    # With both of a pair found, a middle; with one, the other: never another rule for one side.
    np.testing.assert_array_equal(a.usable, b.usable)
    np.testing.assert_allclose(a.pose2d, (b.pose2d * (-1, 1))[:, h36m_17.mirror], atol=1e-9)


# --- missing joints -----------------------------------------------------------------------------


def lose(keypoints, *names, frames=slice(None), format="coco17"):
    keypoints = keypoints.copy()
    for name in names:
        keypoints[frames, FORMATS[format].joint_names.index(name), 2] = 0.1
    return keypoints


def test_short_gaps_are_bridged_and_long_ones_are_not(walk):
    whole = seen(walk, "coco17")
    lost = lose(whole, "l_wrist", frames=slice(10, 14))
    lost = lose(lost, "l_wrist", frames=slice(60, 75))
    wrist = h36m_16.index("l_wrist")
    pose = convert_track(track_of(lost))
    assert (pose.origin[10:14, wrist] == INTERPOLATED).all()
    assert (pose.origin[60:75, wrist] == APPROXIMATED).all()
    ends = pose.pose2d[[9, 14], wrist]
    np.testing.assert_allclose(pose.pose2d[11, wrist], ends[0] + 0.4 * (ends[1] - ends[0]))
    assert np.linalg.norm(pose.pose2d[10:14, wrist] - whole[10:14, 9, :2], axis=-1).max() < 5
    none = convert_track(track_of(lost), max_gap=0)
    assert (none.origin[10:14, wrist] == APPROXIMATED).all()
    assert pose.usable.all()


def test_a_mixture_is_missing_only_with_what_it_needs(walk):
    """A lost ear moves the head a little, lost eyes do not move it at all."""
    whole = seen(walk, "coco17")
    expected = convert_track(track_of(whole), "h36m_17")
    blind = convert_track(track_of(lose(whole, "l_eye", "r_eye")), "h36m_17")
    np.testing.assert_array_equal(blind.pose2d, expected.pose2d)
    head = h36m_17.index("head")
    for names in (["l_ear"], ["r_ear"], ["l_ear", "r_ear"], ["l_ear", "r_ear", "l_eye", "r_eye"]):
        pose = convert_track(track_of(lose(whole, *names)), "h36m_17")
        assert (pose.origin[:, head] == APPROXIMATED).all()
        assert np.linalg.norm(pose.pose2d[:, head] - expected.pose2d[:, head], axis=-1).max() < 60
        others = [j for j in range(17) if j not in (head, h36m_17.index("neck_nose"))]
        np.testing.assert_array_equal(pose.pose2d[:, others], expected.pose2d[:, others])


@pytest.mark.parametrize(
    ("names", "pixels"),
    [
        (["r_wrist"], 80), (["r_ankle"], 150), (["r_knee"], 60), (["r_knee", "r_ankle"], 210),
        (["l_hip"], 40), (["r_shoulder"], 60), (["r_elbow"], 40), (["r_elbow", "r_wrist"], 130),
    ],
)  # fmt: skip
def test_what_stands_in_for_a_lost_limb_is_near_it(names, pixels, walk):
    """Coarse, and said to be: the person is about 400 pixels high."""
    pose = convert_track(track_of(lose(seen(walk, "coco17"), *names)))
    assert pose.usable.all()
    rows = [h36m_16.index(name) for name in names]
    assert (pose.origin[:, rows] == APPROXIMATED).all()
    error = np.linalg.norm(pose.pose2d[:, rows] - truth(walk, h36m_16)[:, rows], axis=-1)
    assert error.max() < pixels


def test_frames_that_cannot_be_filled_are_missing_not_garbage(walk):
    whole = seen(walk, "coco17")
    legs = lose(whole, "l_hip", "r_hip", "l_knee", "r_knee", "l_ankle", "r_ankle",
                frames=slice(40, 60))  # fmt: skip
    pose = convert_track(track_of(legs))
    np.testing.assert_array_equal(np.flatnonzero(~pose.usable), np.arange(40, 60))
    assert np.isnan(pose.pose2d[50, h36m_16.index("pelvis")]).all()
    assert (pose.origin[50, h36m_16.index("l_ankle")]) == MISSING
    few = lose(whole, *[n for n in FORMATS["coco17"].joint_names if n[:2] == "r_"])
    assert not convert_track(track_of(few)).usable.any()
    assert not convert_track(track_of(whole * (1, 1, 0))).usable.any()


def test_missing_frames_are_filled_or_reported(walk):
    whole = seen(walk, "coco17")
    kept = np.r_[0:20, 25:50, 80:120]
    track = track_of(whole[kept], frames=kept + 100)
    pose = convert_track(track)
    np.testing.assert_array_equal(pose.frames, np.arange(100, 220))
    assert (pose.origin[20:25] == INTERPOLATED).all()
    np.testing.assert_array_equal(np.flatnonzero(~pose.usable), np.arange(50, 80))
    assert np.isnan(pose.pose2d[50:80]).all()


def test_a_centre_that_the_detector_sees_helps_a_hidden_side(walk):
    hidden = lose(seen(walk, "body25"), "r_hip", format="body25")
    pose = convert_track(track_of(hidden, "body25"))
    # The middle of two points is not quite the middle of their pictures: the farther is smaller.
    np.testing.assert_allclose(pose.pose2d, truth(walk, h36m_16), atol=30)
    hip = h36m_16.index("r_hip")
    np.testing.assert_allclose(pose.pose2d[:, hip], truth(walk, h36m_16)[:, hip], atol=2)
    assert (pose.origin[:, h36m_16.index("r_hip")] == APPROXIMATED).all()
    assert (pose.origin[:, h36m_16.index("pelvis")] == DETECTED).all()


def test_halpe_s_neck_stands_in_for_a_shoulder_only_without_hips(walk):
    """It lies above the shoulders, here half way to `neck_nose`."""
    whole, shoulder = seen(walk, "halpe26"), h36m_16.index("r_shoulder")
    above = truth(walk)[:, [h36m_17.index("thorax"), h36m_17.index("neck_nose")]].mean(axis=1)
    whole[:, FORMATS["halpe26"].joint_names.index("neck"), :2] = above
    pose = convert_track(track_of(lose(whole, "r_shoulder", format="halpe26"), "halpe26"))
    of_coco = convert_track(track_of(lose(seen(walk, "coco17"), "r_shoulder")))
    np.testing.assert_allclose(pose.pose2d[:, shoulder], of_coco.pose2d[:, shoulder])
    assert pose.usable.all()
    hidden = lose(whole, "r_shoulder", "l_hip", "r_hip", "mid_hip", format="halpe26")
    pose = convert_track(track_of(hidden, "halpe26"))
    expected = 2 * above - truth(walk, h36m_16)[:, h36m_16.index("l_shoulder")]
    np.testing.assert_allclose(pose.pose2d[:, shoulder], expected)


# --- a further format ---------------------------------------------------------------------------


def test_a_further_format_is_one_more_row(walk):
    names = (*LIMBS, "chin", "vertex")
    middle = {"l_hip": 0.5, "r_hip": 0.5}
    chest = {"l_shoulder": 0.5, "r_shoulder": 0.5}
    own = KeypointFormat(
        "own",
        names,
        {
            "pelvis": (middle,), "thorax": (chest,), "spine": ({"pelvis": 0.5, "thorax": 0.5},),
            "head": ({"vertex": 1},), "neck_nose": ({"chin": 1},),
        },
    )  # fmt: skip
    source = [h36m_17.index(n) for n in (*LIMBS, "neck_nose", "head")]
    keypoints = seen(walk, "h36m17")[:, source]
    pose = convert_track(track_of(keypoints, own), "h36m_17").pose2d
    error = np.linalg.norm(pose - truth(walk), axis=-1).max(axis=0)
    assert error[[h36m_17.index(n) for n in (*LIMBS, "head", "neck_nose")]].max() < 1e-9


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ({"pelvis": ({"hip": 1},)}, "not ['hip']"),
        ({"pelvis": ({"l_hip": 0.5, "r_hip": 0.6},)}, "add up to 1"),
        ({"pelvis": ({"thorax": 1},), "thorax": ({"l_hip": 1},)}, "not ['thorax']"),
    ],
)
def test_rows_that_cannot_be_mixed(points, words):
    with pytest.raises(InputError) as caught:
        KeypointFormat("own", tuple(LIMBS), points)
    assert words in str(caught.value)


def test_a_skeleton_of_ones_own_is_made_of_what_the_format_has(walk):
    """Joints as they are, points as they are mixed; what the format lacks is named."""
    one = seen(walk, "coco17")
    upper = Skeleton("upper", ("thorax", "nose", "l_wrist", "r_wrist"), (-1, 0, 0, 0))
    pose = convert_track(track_of(one), upper)
    names = FORMATS["coco17"].joint_names
    where = [names.index(name) for name in upper.joint_names[1:]]
    np.testing.assert_array_equal(pose.pose2d[:, 1:], one[:, where, :2])
    shoulders = [names.index(f"{side}_shoulder") for side in "lr"]
    np.testing.assert_allclose(pose.pose2d[:, 0], one[:, shoulders, :2].mean(axis=1))
    assert pose.usable.all()
    tailed = Skeleton("tailed", ("thorax", "tail"), (-1, 0))
    with pytest.raises(InputError, match=r"that 'coco17' has or makes; \['tail'\] are not"):
        convert_track(track_of(one), tailed)
    # Or they are the skeleton's joints already.
    pixels = one[:, :2]
    pose = convert_track(track_of(pixels, format_of(tailed)), tailed)
    np.testing.assert_array_equal(pose.pose2d, pixels[..., :2])
    swapped = Skeleton("swapped", ("tail", "thorax"), (-1, 0))
    pose = convert_track(track_of(pixels, format_of(tailed)), swapped)
    np.testing.assert_array_equal(pose.pose2d, pixels[:, ::-1, :2])


# --- who is who ---------------------------------------------------------------------------------


def test_people_keep_their_identity_whatever_their_order(walk, tmp_path, rng):
    one = seen(walk, "coco17")
    two = one[::-1] * (1, 1, 1) + (180, 15, 0)
    shuffled = [
        (f, *(np.stack([one[f], two[f]])[rng.permutation(2)][..., part]
              for part in (slice(0, 2), 2)))
        for f in range(len(one))
    ]  # fmt: skip
    tracks = track_people(shuffled, "coco17")
    assert [track.person for track in tracks] == [1, 2]
    by_start = sorted(tracks, key=lambda track: np.nanmean(track.keypoints[0, :, 0]))
    for track, person in zip(by_start, (one, two), strict=True):
        np.testing.assert_array_equal(track.keypoints, person[..., :2])


def test_people_come_and_go(walk):
    one = seen(walk, "coco17")
    far = one + (400, 0, 0)
    frames = []
    for f in range(100):
        people = [one[f]] * (f < 30 or f >= 50) + [far[f]] * (40 <= f < 60)
        array = np.array(people).reshape(-1, 17, 3)
        frames.append((f, array[..., :2], array[..., 2]))
    tracks = track_people(frames, "coco17")
    assert [len(track.frames) for track in tracks] == [80, 20]
    lost = track_people(frames, "coco17", max_lost=10)
    assert [len(track.frames) for track in lost] == [30, 20, 50]


def test_track_ids_of_the_file_are_taken(walk, tmp_path):
    one = seen(walk, "coco17")[:10]
    entries = [
        {
            "image_id": f"clip_{f:04d}.jpg",
            "keypoints": one[f].ravel().tolist(),
            "track_id": 7 + f % 2,
        }
        for f in range(10)
    ]
    path = tmp_path / "tracked.json"
    path.write_text(json.dumps({"annotations": entries}))
    tracks = read_keypoints(path, "coco17")
    assert [(t.person, t.frames.tolist()) for t in tracks] == [
        (7, [0, 2, 4, 6, 8]), (8, [1, 3, 5, 7, 9]),
    ]  # fmt: skip


@pytest.mark.parametrize("track_ids", [(-1, -1), (None, None), (-1, 7), (7, None)])
def test_track_ids_that_say_nothing_are_not_taken(track_ids, walk, tmp_path):
    """Else two people would be one who leaps, or stand twice in a frame."""
    one = seen(walk, "coco17")[:10]
    entries = [
        {"image_id": f, "keypoints": person[f].ravel().tolist(), "track_id": track_id}
        for f in range(10)
        for person, track_id in zip((one, one + (300, 0, 0)), track_ids, strict=True)
    ]
    path = tmp_path / "tracked.json"
    path.write_text(json.dumps(entries))
    tracks = read_keypoints(path, "coco17")
    assert [(t.person, len(t.frames)) for t in tracks] == [(1, 10), (2, 10)]


def test_annotations_of_other_things_than_people_are_left_out(walk, tmp_path):
    one = seen(walk, "coco17")[:4]
    people = [{"image_id": f, "keypoints": one[f].ravel().tolist()} for f in range(4)]
    ball = {"image_id": "ball", "category_id": 37, "bbox": [1, 2, 3, 4], "track_id": 1}
    path = tmp_path / "things.json"
    path.write_text(json.dumps({"annotations": [ball, *people, ball]}))
    (track,) = read_keypoints(path, "coco17")
    np.testing.assert_allclose(track.keypoints, one[..., :2])
    people[2]["keypoints"] = [1.0]
    path.write_text(json.dumps({"annotations": [ball, *people]}))
    with pytest.raises(InputError, match="`keypoints` of entry 3 must be a list of 51 numbers"):
        read_keypoints(path, "coco17")


def test_several_people_from_every_kind_of_file(walk, tmp_path):
    one = seen(walk, "coco17")[:20]
    people = [one, one + (300, 0, 0)]
    for write in (write_coco, write_openpose, write_npy):
        tracks = read_keypoints(write(tmp_path, people), "coco17")
        assert len(tracks) == 2
        for track, person in zip(tracks, people, strict=True):
            np.testing.assert_allclose(track.keypoints, person[..., :2])


def test_a_frame_without_people_is_a_gap(walk, tmp_path):
    folder = write_openpose(tmp_path, [seen(walk, "body25")[:10]])
    (folder / "clip_000000000004_keypoints.json").write_text('{"people": []}')
    (folder / "._clip_000000000004_keypoints.json").write_bytes(b"\0\5\x16\7")  # of a Mac
    (track,) = read_keypoints(folder, "body25")
    assert track.frames.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    (single,) = read_keypoints(folder / "clip_000000000005_keypoints.json", "body25")
    np.testing.assert_array_equal(single.keypoints[0], track.keypoints[4])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": [1, 0, 2]}, "`frames` must be rising"),
        ({"frames": [0, 1]}, "`keypoints` must have the shape"),
        ({"frames": [0, 1, 10**7]}, "at most 500000 frames"),
        ({"confidence": np.full((3, 17), np.nan)}, "`confidence` finite"),
        ({"keypoints": np.full((3, 17, 2), np.inf)}, "`keypoints` must be pixels"),
        ({"format": "coco"}, "`format` must be one of"),
    ],
)
def test_tracks_that_are_none(changes, words):
    with pytest.raises(InputError) as caught:
        track_of(np.ones((3, 17, 3)), **changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_gap": -1}, "`max_gap`"),
        ({"least_confidence": np.nan}, "`least_confidence`"),
        ({"least_seen": 2.0}, "`least_seen`"),
        ({"skeleton": "h36m_18"}, "`skeleton` must be one of"),
    ],
)
def test_conversion_checks_its_arguments(arguments, words):
    with pytest.raises(InputError) as caught:
        convert_track(track_of(np.ones((3, 17, 3))), **arguments)
    assert words in str(caught.value)

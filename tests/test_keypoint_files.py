"""What is no file of keypoints is refused by name."""

import json

import numpy as np
import pytest

from keras_wsgcn.data.keypoint_files import read_keypoints
from keras_wsgcn.data.keypoint_tracks import track_people
from keras_wsgcn.errors import InputError

pytestmark = pytest.mark.plain

KEYPOINTS = [1.0, 2.0, 0.5] * 17


def entry(**changes):
    return {"image_id": 1, "keypoints": KEYPOINTS, **changes}


def person(**changes):
    """As MMPose writes it, here with the keypoints of `entry`."""
    box = {"bbox": [[1.0, 2.0, 3.0, 4.0]], "bbox_score": 0.5}
    return {"keypoints": [[1.0, 2.0]] * 17, "keypoint_scores": [0.5] * 17, **box, **changes}


def assert_same(tracks, expected):
    assert len(tracks) == len(expected)
    for one, two in zip(tracks, expected, strict=True):
        assert one.person == two.person
        for name in ("frames", "keypoints", "confidence"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def beside(number, **changes):
    return entry(keypoints=[500.0 * number, 9.0, 0.5] * 17, **changes)


@pytest.mark.parametrize("write", [int, lambda n: [n], lambda n: [float(n)], lambda n: [[n], [n]]])
def test_idx_of_alphapose_is_who_is_who(write, tmp_path):
    """Two who change places from one frame to the next."""
    path = tmp_path / "alphapose-results.json"
    content = [
        beside((number + frame) % 2, image_id=f"{frame}.jpg", idx=write(number + 1))
        for frame in range(4)
        for number in range(2)
    ]
    path.write_text(json.dumps(content))
    one, two = read_keypoints(path, "coco17")
    assert (one.person, two.person) == (1, 2)
    assert one.keypoints[:, 0, 0].tolist() == [0, 500, 0, 500]
    assert two.keypoints[:, 0, 0].tolist() == [500, 0, 500, 0]


@pytest.mark.parametrize(
    "idx",
    [0, [0.0], 1, [[1.0], [2.0]], [], [[]], None, "a", -1, 1.5, 1e300, True, {"a": 1}, [[[1]]]],
)
def test_idx_that_names_nobody_is_not_taken(idx, tmp_path):
    """Without a tracker it is 0, of several poses taken for one a list; 1 twice is two people."""
    path = tmp_path / "alphapose-results.json"
    content = [
        beside(number, image_id=f"{frame}.jpg", idx=idx)
        for frame in range(2)
        for number in range(2)
    ]
    path.write_text(json.dumps(content))
    one, two = read_keypoints(path, "coco17")
    assert one.keypoints[:, 0, 0].tolist() == [0, 0]
    assert two.keypoints[:, 0, 0].tolist() == [500, 500]


def test_predictions_of_mmpose_are_read_as_those_of_coco(tmp_path):
    far = {"keypoints": [[500.0, 9.0]] * 17}
    video = [
        {"frame_id": 0, "instances": [person(), person(**far)]},
        {"frame_id": 1, "instances": []},
        {"frame_id": 2, "instances": [person(**far)]},
    ]
    beside = [500.0, 9.0, 0.5] * 17
    coco = [(0, KEYPOINTS), (0, beside), (2, beside)]
    coco = [entry(image_id=frame, keypoints=keypoints) for frame, keypoints in coco]
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    expected = read_keypoints(tmp_path / "coco.json", "coco17")
    assert [track.frames.tolist() for track in expected] == [[0], [0, 2]]
    path = tmp_path / "mmpose.json"
    for content in (video, {"meta_info": {"dataset_name": "coco"}, "instance_info": video}):
        path.write_text(json.dumps(content))
        assert_same(read_keypoints(path, "coco17"), expected)
    # Of images, one file each, and of one alone.
    (tmp_path / "images").mkdir()
    for frame in video:
        file = tmp_path / "images" / f"walk_{frame['frame_id']}.json"
        file.write_text(json.dumps(frame["instances"]))
    assert_same(read_keypoints(tmp_path / "images", "coco17"), expected)
    alone = read_keypoints(tmp_path / "images" / "walk_0.json", "coco17")
    assert [track.frames.tolist() for track in alone] == [[0], [0]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "could not be read as JSON"),
        ("[{", "could not be read as JSON"),
        ("[" * 100_000, "could not be read as JSON"),
        ("\x00\x01", "could not be read as JSON"),
        ("[NaN]", "NaN is no JSON number"),
        ("[1" + "0" * 5000 + "]", "could not be read as JSON"),
        ("3", "a list of COCO results"),
        ("[]", "a list of COCO results"),
        ('{"annotations": []}', "a list of COCO results"),
        ('{"annotations": [{"image_id": 1}]}', "none of its 1 annotations has `keypoints`"),
        ('[{"image_id": 1}]', "`keypoints` of entry 0 must be a list"),
        ('{"people": 3}', "`people` must be a list"),
        ('{"people": [3]}', "`people[0]` must be an object"),
        ('{"people": [{}]}', "`people[0].pose_keypoints_2d` must be a list of 51 numbers"),
        ('{"people": []}', "holds no person"),
        ("[3]", "entry 0 must be an object"),
        (json.dumps([entry(), {}]), "`image_id` of entry 1 must be an integer"),
        (json.dumps([entry(image_id="front")]), "`image_id` of entry 0 must be an integer"),
        (json.dumps([entry(image_id=-1)]), "`image_id` of entry 0 must be an integer"),
        (json.dumps([entry(image_id=True)]), "`image_id` of entry 0 must be an integer"),
        (json.dumps([entry(), entry(image_id=10**9)]), "spans 1000000000 frames"),
        (json.dumps([entry(image_id="a1"), entry(image_id="b1")]), "have one number"),
        (json.dumps([entry(keypoints=None)]), "`keypoints` of entry 0 must be a list"),
        (json.dumps([entry(keypoints=KEYPOINTS[:-1])]), "not 50 values"),
        (json.dumps([entry(keypoints=["x", *KEYPOINTS[1:]])]), "numbers up to 1000000, not 'x'"),
        (json.dumps([entry(keypoints=[True, *KEYPOINTS[1:]])]), "not True"),
        (json.dumps([entry(keypoints=[1e9, *KEYPOINTS[1:]])]), "not 1000000000.0"),
        (json.dumps([entry(keypoints=[0, 1])]).replace("0, 1", "1e999"), "not 1 values"),
        (json.dumps([entry(track_id=1), entry(track_id=1)]), "twice in frame 1"),
        (json.dumps([entry(track_id=[1])]), "`track_id` of entry 0"),
        (json.dumps([person(keypoint_scores=[0.5])]), "each person must have `keypoints`, a list"),
        (json.dumps([person(keypoints=KEYPOINTS)]), "each person must have `keypoints`, a list"),
        (json.dumps([{"frame_id": 0, "instances": [3]}]), "as many `keypoint_scores`, not 3"),
        (json.dumps([{"frame_id": 0, "instances": 3}]), "`instances` of a frame must be a list"),
        (json.dumps([{"instances": []}]), "`frame_id` of frame 0 must be an integer"),
        (json.dumps({"instance_info": []}), "a list of COCO results"),
        (json.dumps([person(keypoints=[[1, [2]]] * 17)]), "numbers up to 1000000, not [2]"),
    ],
)
def test_malformed_json_is_refused_by_name(content, words, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_keypoints(path, "coco17")
    message = str(caught.value)
    assert words in message
    assert message.endswith(f"Received: path={str(path)!r}")
    assert "\n" not in message
    assert len(message) < 500


def npy_with(header):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"nothing", "could not be read"),
        (b"\x93NUMPY\x01\x00\xff", "could not be read"),
        (npy_with("{'descr': ("), "could not be read"),
        (npy_with("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 17, 2), }"), "fit"),
        (npy_with("[" * 110), "could not be read"),
        (
            npy_with("{'descr': '<f8', 'fortran_order': False, 'shape': (10**9, 17, 2)}"),
            "could not",
        ),
        (
            npy_with("{'descr': '<f8', 'fortran_order': False, 'shape': (999999999, 17, 2), }"),
            "fit",
        ),
        (npy_with("{'descr': '|O', 'fortran_order': False, 'shape': (1, 17, 2), }"), "pickled"),
    ],
)
def test_hostile_arrays_are_refused(content, words, tmp_path):
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_keypoints(path, "coco17")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 16, 2)), np.zeros((5, 17, 4)), np.zeros((0, 17, 2)), np.zeros((17, 2)),
        np.full((5, 17, 2), np.inf), np.full((5, 17, 2), 1e9), np.full((5, 17, 2), "a"),
        np.full((5, 17, 3), (1.0, 1.0, np.inf)), np.ones((5, 17, 2), bool),
    ],
    ids=str,
)  # fmt: skip
def test_arrays_of_other_shapes_and_numbers_are_refused(array, tmp_path):
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(InputError, match="`path` must hold keypoints"):
        read_keypoints(tmp_path / "bad.npy", "coco17")


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(2))
    (tmp_path / "keypoints.txt").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("two.npz", "keypoints.txt", "empty", "none.json", "none.npz"):
        with pytest.raises(InputError, match="`path` must hold keypoints"):
            read_keypoints(tmp_path / name, "coco17")
    with pytest.raises(InputError, match="`format` must be one of"):
        read_keypoints(tmp_path / "two.npz", "coco18")


def test_files_that_are_too_large_are_refused(tmp_path, monkeypatch):
    from keras_wsgcn.data import keypoint_files

    monkeypatch.setattr(keypoint_files, "MAX_BYTES", 1000)
    (tmp_path / "large.json").write_text(json.dumps([entry()] * 10))
    np.save(tmp_path / "large.npy", np.ones((10, 17, 2)))
    np.savez_compressed(tmp_path / "large.npz", np.ones((10, 17, 2)))
    for name in ("large.json", "large.npy", "large.npz"):
        with pytest.raises(InputError, match="more than 1000"):
            read_keypoints(tmp_path / name, "coco17")
    people = np.ones((300, 17, 2))
    with pytest.raises(InputError, match="at most 200 people"):
        track_people([(0, people, people[..., 0])], "coco17")


@pytest.mark.parametrize("video", ["gopro.take1", "2024.take", "a"])
def test_frames_of_videos_with_dots_in_their_names(video, tmp_path):
    people = json.dumps({"people": [{"pose_keypoints_2d": KEYPOINTS}]})
    for frame in (3, 4):
        (tmp_path / f"{video}_{frame:012d}_keypoints.json").write_text(people)
    (track,) = read_keypoints(tmp_path, "coco17")
    assert track.frames.tolist() == [3, 4]
    coco = tmp_path / "coco.json"
    for suffix in ("", ".jpg"):
        names = [f"{video}_{frame:04d}{suffix}" for frame in (3, 4)]
        coco.write_text(json.dumps([entry(image_id=name) for name in names]))
        (track,) = read_keypoints(coco, "coco17")
        assert track.frames.tolist() == [3, 4]


@pytest.mark.parametrize("known", [True, False])
def test_confidences_that_are_all_too_low_are_named(known, tmp_path):
    keypoints = np.ones((3, 17, 3)) * (5.0, 5.0, 0.2)
    np.save(tmp_path / "a.npy", keypoints)
    entries = [
        {
            "image_id": frame,
            "keypoints": found.ravel().tolist(),
            **({"track_id": 1} if known else {}),
        }
        for frame, found in enumerate(keypoints)
    ]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    for name in ("a.npy", "a.json"):
        with pytest.raises(InputError, match=r"joint of confidence 0\.3"):
            read_keypoints(tmp_path / name, "coco17")
        assert read_keypoints(tmp_path / name, "coco17", least_confidence=0.2)

from dataclasses import replace

import numpy as np
import pytest

from keras_wsgcn import InputError
from keras_wsgcn.data.archive import Motion, MotionArchive, save_archive
from keras_wsgcn.data.cameras import Camera
from keras_wsgcn.data.cmu import four_cameras, load_cmu24
from keras_wsgcn.data.motions import generate_motions
from keras_wsgcn.data.poses import PoseDataset, Splits, observe, observe_splits, select_joints
from keras_wsgcn.data.sources import load_splits
from keras_wsgcn.skeletons import Skeleton, h36m_16, h36m_17

pytestmark = pytest.mark.plain


@pytest.fixture(scope="module")
def archive():
    return generate_motions(subjects=3, takes=1, seconds=2.0, actions=["Walking", "Boxing"])


@pytest.fixture(scope="module")
def poses(archive):
    return observe(archive, four_cameras, stride=5)


def arrays(poses=4, **changes):
    values = {
        "pose2d": np.zeros((poses, 16, 2)),
        "pose3d": np.zeros((poses, 16, 3)),
        **{name: np.zeros(poses, int) for name in ("subject", "camera", "frame")},
        **{name: np.full(poses, "x") for name in ("action", "take")},
        "skeleton": h36m_16,
    }
    return {**values, **changes}


def with_value(shape, index, value):
    array = np.zeros(shape)
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pose2d": np.zeros((4, 17, 2))}, "`pose2d` must have the shape"),
        ({"pose3d": np.zeros((4, 16, 2))}, "`pose3d` must have the shape"),
        ({"pose3d": np.zeros((3, 16, 3))}, "`pose3d` must have the shape"),
        ({"pose2d": with_value((4, 16, 2), (1, 2, 0), np.nan)}, "`pose2d` must be finite"),
        ({"pose3d": with_value((4, 16, 3), (1, 2, 0), np.inf)}, "`pose3d` must be finite"),
        ({"pose2d": with_value((4, 16, 2), (1, 2, 0), 640)}, "screen coordinates"),
        ({"pose3d": with_value((4, 16, 3), (1, 2, 0), 850)}, "metres"),
        ({"pose3d": with_value((4, 16, 3), (1, 0, 0), 0.5)}, "relative to the root"),
        ({"subject": np.zeros(3, int)}, "`subject` must have the shape"),
    ],
)
def test_refuses_wrong_shapes_units_and_numbers(changes, message):
    with pytest.raises(InputError, match=f"(?s){message}.*Received: "):
        PoseDataset(**arrays(**changes))


def test_views_are_what_the_cameras_see(archive, poses):
    """Every column against the geometry, written out for a handful of rows."""
    assert len(poses) > 100
    motions = {(m.subject, m.action, m.take): m for m in archive.motions}
    joints = [h36m_17.joint_names.index(name) for name in h36m_16.joint_names]
    for row in range(0, len(poses), 37):
        motion = motions[poses.subject[row], poses.action[row], poses.take[row]]
        camera = four_cameras(motion)[poses.camera[row]]
        world = motion.positions[poses.frame[row]][joints].astype(float)
        points = (world - camera.position) @ camera.rotation.T
        pixels = points[:, :2] / points[:, 2:] * 1145 + 500
        np.testing.assert_allclose(poses.pose2d[row], pixels / 500 - 1, atol=1e-6)
        np.testing.assert_allclose(poses.pose3d[row], points - points[0], atol=1e-6)
    assert set(poses.frame % 5) == {0}


def test_people_stand_upright_in_the_picture(poses):
    head, ankle = (h36m_16.index(name) for name in ("head", "r_ankle"))
    upright = poses.subset(poses.action == "Walking")
    assert (upright.pose2d[:, head, 1] < upright.pose2d[:, ankle, 1]).all()  # y points down
    assert (upright.pose3d[:, head, 1] < -0.3).all()


def test_frames_that_leave_the_image_are_dropped_and_counted():
    positions = np.zeros((10, 17, 3), np.float32) + (0, 0, 1)
    positions[:, 1:] += np.linspace(0, 0.5, 16)[:, None] * (0, 0, 1)
    positions[7] += (0, 0, 4)  # above the image
    archive = MotionArchive(h36m_17, (Motion(positions, 1, "Standing", "01"),))
    seen = observe(archive, four_cameras)
    assert len(seen) == 36
    assert seen.dropped == 4
    assert seen.subset(seen.frame > 7).dropped == 0
    assert 7 not in seen.frame
    assert 7 in observe(archive, four_cameras, keep_unseen=True).frame


def test_nobody_is_seen_through_the_back_of_a_camera():
    away = Camera.look_at((0, 5, 1.6), (0, 9, 1), focal_length=1145.0, image_size=(1000, 1000))
    archive = generate_motions(subjects=1, takes=1, seconds=1)
    for keep_unseen in (False, True):
        with pytest.raises(InputError, match="`archive` must hold a frame that a camera sees"):
            observe(archive, lambda motion: [away], keep_unseen=keep_unseen)


def test_noise_is_added_in_pixels_and_reproducible(archive, poses):
    noisy = observe(archive, four_cameras, stride=5, noise_px=5.0, seed=3)
    again = observe(archive, four_cameras, stride=5, noise_px=5.0, seed=3)
    np.testing.assert_array_equal(noisy.pose2d, again.pose2d)
    np.testing.assert_array_equal(noisy.pose3d, poses.pose3d)
    np.testing.assert_allclose((noisy.pose2d - poses.pose2d).std() * 500, 5.0, rtol=0.03)


def test_splits_by_subject(poses):
    part = poses.of_subjects([1, 3])
    assert set(part.subject.tolist()) == {1, 3}
    assert len(part) + len(poses.of_subjects([2])) == len(poses)
    with pytest.raises(InputError, match=r"`subjects` must be among \[1, 2, 3\]; \[4\] are not"):
        poses.of_subjects([1, 4])


def test_each_part_of_a_split_counts_the_views_that_it_drops():
    positions = np.zeros((10, 17, 3), np.float32) + (0, 0, 1)
    positions[:, 1:] += np.linspace(0, 0.5, 16)[:, None] * (0, 0, 1)
    motions = [Motion(positions, subject, "Standing", "01") for subject in (1, 2, 3)]
    away = positions.copy()
    away[7] += (0, 0, 30)  # far above the image
    archive = MotionArchive(h36m_17, (Motion(away, 1, "Standing", "02"), *motions))
    splits = observe_splits(archive, four_cameras, name="x", validation=[2], test=[3])
    parts = (splits.train, splits.validation, splits.test)
    assert [part.subject.tolist() for part in parts] == [[1] * 76, [2] * 40, [3] * 40]
    assert [part.dropped for part in parts] == [4, 0, 0]
    noisy = observe_splits(archive, four_cameras, name="x", validation=[2], test=[3], noise_px=5.0)
    noise = [
        (getattr(noisy, part).pose2d - getattr(splits, part).pose2d).ravel()
        for part in ("validation", "test")
    ]
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.1
    with pytest.raises(InputError, match=r"subjects of the archive.*\[4\] are not.*Received: "):
        observe_splits(archive, four_cameras, name="x", validation=[4], test=[3])
    with pytest.raises(InputError, match=r"must leave subjects .* to train on.*Received: "):
        observe_splits(archive, four_cameras, name="x", validation=[1, 2], test=[3])


def test_splits_must_not_share_people(poses):
    one, two = poses.of_subjects([1]), poses.of_subjects([2])
    with pytest.raises(InputError, match="must not share subjects"):
        Splits("x", train=one, validation=two, test=one)


def test_statistics(poses):
    statistics = poses.statistics()
    assert statistics["poses"] == len(poses)
    assert statistics["subjects"] == [1, 2, 3]
    assert statistics["actions"] == ["Boxing", "Walking"]
    np.testing.assert_allclose(statistics["pose2d_mean"], poses.pose2d.mean((0, 1)), rtol=1e-3)
    np.testing.assert_allclose(statistics["pose3d_std_m"], poses.pose3d.std((0, 1)), rtol=1e-3)


def test_select_joints_names_what_is_missing():
    assert select_joints(h36m_17, h36m_16).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, *range(10, 17)]
    with pytest.raises(InputError, match="neck_nose"):
        select_joints(h36m_16, h36m_17)


def test_observe_refuses_bad_arguments(archive):
    with pytest.raises(InputError, match="`stride` must"):
        observe(archive, four_cameras, stride=0)
    out_of_sight = Motion(archive.motions[0].positions, 1, "Walking", "01")
    away = [Camera.look_at((50, 0, 1), (90, 0, 1), focal_length=1145, image_size=(100, 100))]
    with pytest.raises(InputError, match="`archive` must hold a frame"):
        observe(MotionArchive(h36m_17, (out_of_sight,)), lambda motion: away)


def test_load_splits_refuses_the_unknown(tmp_path, archive):
    with pytest.raises(InputError, match="`data` must be one of"):
        load_splits("h37m")
    with pytest.raises(InputError, match="could not be opened"):
        load_splits(tmp_path / "x.npz")
    save_archive(tmp_path / "x.npz", archive)
    with pytest.raises(InputError, match="must name subjects"):
        load_splits(tmp_path / "x.npz")
    with pytest.raises(InputError, match="are fixed for"):
        load_splits("generated", test=[1])
    with pytest.raises(InputError, match="must hold all subjects of the benchmark"):
        load_cmu24(tmp_path / "x.npz")


def test_the_cameras_of_an_archive_stand_around_its_root(tmp_path, archive):
    """Whichever joint is the first."""
    names, parents = h36m_17.joint_names[::-1], h36m_17.parents[::-1]
    turned = Skeleton("turned", names, [16 - parent if parent >= 0 else -1 for parent in parents])
    motions = [replace(m, positions=m.positions[:, ::-1]) for m in archive.motions]
    found = []
    for name, one in (("as_is", archive), ("turned", MotionArchive(turned, motions))):
        save_archive(tmp_path / f"{name}.npz", one)
        data = load_splits(tmp_path / f"{name}.npz", skeleton=None, validation=[2], test=[3])
        found.append(data.train)
    assert found[1].skeleton == turned
    np.testing.assert_array_equal(found[1].pose2d[:, ::-1], found[0].pose2d)
    np.testing.assert_array_equal(found[1].pose3d[:, ::-1], found[0].pose3d)


@pytest.mark.parametrize("option", [{"train_cameras": "varied"}, {"nois_px": 1}, {"cameras": None}])
def test_load_splits_refuses_options_of_other_data_sets(option, tmp_path, archive):
    save_archive(tmp_path / "x.npz", archive)
    for data, subjects in (
        ("generated", {}),
        (tmp_path / "x.npz", {"validation": [2], "test": [3]}),
    ):
        with pytest.raises(
            InputError, match=r"must be left out for data .*which takes.*Received: "
        ):
            load_splits(data, **subjects, **option)


def test_the_generated_default_has_its_people_apart():
    splits = load_splits("generated", stride=30)
    assert set(splits.train.subject.tolist()) == {1, 2, 3, 4, 5}
    assert set(splits.validation.subject.tolist()) == {6}
    assert set(splits.test.subject.tolist()) == {7, 8}
    dropped = splits.train.dropped / (len(splits.train) + splits.train.dropped)
    assert dropped < 0.05


def test_cameras_of_the_benchmark(archive):
    """The definition, recomputed: yaw from the key, 5 m around the median root, 1.6 m high."""
    import hashlib

    motion = archive.motions[0]
    digest = hashlib.sha256(motion.key.encode()).hexdigest()
    yaw = np.random.default_rng(int(digest[:8], 16)).uniform(0, 2 * np.pi)
    centre = np.median(motion.positions[:, 0, :2].astype(float), axis=0)
    for camera, angle in zip(
        four_cameras(motion), (0.7, np.pi - 0.7, np.pi + 0.7, -0.7), strict=True
    ):
        stand = centre + 5 * np.array([np.cos(yaw + angle), np.sin(yaw + angle)])
        np.testing.assert_allclose(camera.position, [*stand, 1.6], atol=1e-12)
        aim = camera.project(camera.world_to_camera(np.array([*centre, 0.9])))
        np.testing.assert_allclose(aim, [500, 500], atol=1e-9)
        assert camera.image_size == (1000, 1000)


def test_the_benchmark_s_own_counts(shared_data):
    splits = load_cmu24(shared_data / "cmu17_30fps.npz", stride=3)
    parts = (splits.train, splits.validation, splits.test)
    assert sum(part.dropped for part in parts) == 3_491
    assert sum(len(part) + part.dropped for part in parts) == 132_952
    assert set(splits.test.subject.tolist()) == {2, 5, 6, 9, 16, 35, 49, 127}
    assert set(splits.validation.subject.tolist()) == {3, 17, 131, 135}
    assert len(set(splits.train.subject.tolist())) == 12
    assert len(set(splits.test.action.tolist())) == 13


def test_each_part_of_the_benchmark_has_noise_of_its_own(shared_data):
    clean, noisy = (
        load_cmu24(shared_data / "cmu17_30fps.npz", stride=120, noise_px=noise) for noise in (0, 5)
    )
    noise = {
        part: (getattr(noisy, part).pose2d - getattr(clean, part).pose2d).ravel()[:9000]
        for part in ("train", "validation", "test")
    }
    assert (abs(np.corrcoef(list(noise.values()))[np.triu_indices(3, 1)]) < 0.1).all()


def test_the_archive_must_be_found(monkeypatch):
    monkeypatch.delenv("KERAS_WSGCN_DATA", raising=False)
    with pytest.raises(InputError, match="KERAS_WSGCN_DATA"):
        load_cmu24()

"""Human3.6M's files, written by the tests in their formats, through conversion to splits."""

import numpy as np
import pandas as pd
import pytest
from human36m_files import (
    METADATA,
    NAMES,
    as_32,
    npy,
    old_npy,
    positions_2d,
    positions_3d,
    seen,
    world,
    write_archives,
    write_zip,
)

from keras_wsgcn import InputError
from keras_wsgcn.data import human36m
from keras_wsgcn.data.archive import load_archive, save_archive
from keras_wsgcn.data.human36m_cameras import cameras_of
from keras_wsgcn.data.sources import load_splits
from keras_wsgcn.evaluation import ERRORS, paper_tables
from keras_wsgcn.skeletons import h36m_16, h36m_17

pytestmark = pytest.mark.plain


@pytest.fixture(scope="module")
def gt(tmp_path_factory):
    return human36m.read_archives(write_archives(tmp_path_factory.mktemp("h") / "gt"))


# --- conversion ---------------------------------------------------------------------------------


@pytest.mark.parametrize("joints", [17, 32])
@pytest.mark.parametrize("detections", ["gt", "cpn"])
def test_archives_come_back_number_by_number(tmp_path, joints, detections):
    write_archives(tmp_path, joints=joints, detections=detections, longer=3, noise_px=4.0)
    archive = human36m.read_archives(tmp_path, detections)
    save_archive(tmp_path / "out.npz", archive)
    archive = load_archive(tmp_path / "out.npz")
    expected = positions_2d(longer=3, noise_px=4.0)
    assert archive.skeleton is h36m_17
    assert archive.pose2d_source == detections
    assert len(archive.motions) == 4 * len(NAMES) - 1
    for motion in archive.motions:
        spelled = {"WalkingDog": "WalkDog"}.get(motion.action, motion.action)
        name = spelled if motion.take == "0" else f"{spelled} {motion.take}"
        np.testing.assert_array_equal(motion.positions, world(motion.subject, name))
        assert motion.fps == 50
        views = archive.views[motion.key]
        for view, camera, poses in zip(
            views, cameras_of(motion.subject), expected[f"S{motion.subject}"][name], strict=True
        ):
            np.testing.assert_array_equal(view.pose2d, poses[:24])  # trimmed to the motion
            assert (view.camera.name, type(view.camera)) == (camera.name, type(camera))
            np.testing.assert_array_equal(view.camera.rotation, camera.rotation)
            assert view.camera.tangential == camera.tangential
    assert not any(m.key.startswith("S011/Directions") for m in archive.motions)


@pytest.mark.parametrize("protocol", range(5))
def test_old_pickles(tmp_path, protocol):
    """Every protocol, `numpy.core`, and bytes as latin1 text below protocol 3."""
    write_zip(
        tmp_path / "data_3d_h36m.npz", {"positions_3d.npy": old_npy(positions_3d(32), protocol)}
    )
    members = {"positions_2d": positions_2d(), "metadata": METADATA}
    write_zip(
        tmp_path / "data_2d_h36m_gt.npz",
        {f"{name}.npy": old_npy(value, protocol) for name, value in members.items()},
    )
    motion = human36m.read_archives(tmp_path).motions[0]
    np.testing.assert_array_equal(motion.positions, world(1, "Directions"))


def test_pickles_of_python_2(tmp_path):
    """There a str holds bytes: the opcode BINSTRING, data included."""
    data = world(1, "Walking")
    raw = data.astype("<f4").tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K" + bytes([len(data)]) + b"K\x11K\x03tcnumpy\ndtype\n(U\x02f4K\x00K\x01tR"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )
    payload = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01)cnumpy\ndtype\n(U\x02O8K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK?tb\x89](}(U\x02S1}(U\x07Walking" + array + b"uu" + b"etb."
    )
    write_zip(tmp_path / "data_3d_h36m.npz", {"positions_3d.npy": npy(payload)})
    (motion,) = human36m.read_archives(tmp_path).motions
    np.testing.assert_array_equal(motion.positions, data)


def test_positions_in_the_camera_frames(tmp_path):
    """The same positions, given four times in camera coordinates."""
    tree = {"S1": {"Walking": [c.world_to_camera(world(1, "Walking")) for c in cameras_of(1)]}}
    np.savez(tmp_path / "data_3d_h36m.npz", positions_3d=tree)
    (motion,) = human36m.read_archives(tmp_path).motions
    np.testing.assert_allclose(motion.positions, world(1, "Walking"), atol=1e-6)
    tree["S1"]["Walking"][2] = tree["S1"]["Walking"][1]
    np.savez(tmp_path / "data_3d_h36m.npz", positions_3d=tree)
    with pytest.raises(InputError, match="m apart"):
        human36m.read_archives(tmp_path)


def write_cdf(path, values):
    from cdflib.cdfwrite import CDF

    path.parent.mkdir(parents=True, exist_ok=True)
    file = CDF(str(path), cdf_spec={"Compressed": 0})
    values = values.reshape(1, len(values), -1).astype("float32")
    spec = {
        "Variable": "Pose", "Data_Type": 44, "Num_Elements": 1, "Rec_Vary": True,
        "Dim_Sizes": list(values.shape[1:]), "Compress": 6,
    }  # fmt: skip
    file.write_var(spec, var_data=values)
    file.close()


@pytest.mark.parametrize("kind", ["D3_Positions_mono", "D3_Positions"])
def test_official_cdf_files(tmp_path, kind):
    pytest.importorskip("cdflib")
    for subject, name in ((1, "Walking 1"), (9, "Photo 1"), (11, "Directions")):
        folder = tmp_path / f"S{subject}" / "MyPoseFeatures"
        name_there = name.replace("Photo", "TakingPhoto")
        points = world(subject, name)
        if kind == "D3_Positions":
            write_cdf(folder / kind / f"{name_there}.cdf", as_32(points * 1000))
        for camera, pixels in zip(cameras_of(subject), seen(points, subject), strict=True):
            if kind == "D3_Positions_mono":
                local = camera.world_to_camera(points) * 1000
                write_cdf(folder / kind / f"{name_there}.{camera.name}.cdf", as_32(local))
            write_cdf(folder / "D2_Positions" / f"{name_there}.{camera.name}.cdf", as_32(pixels))
    archive = human36m.read_cdf(tmp_path)
    assert [m.key for m in archive.motions] == ["S001/Walking/1", "S009/Photo/1"]
    for motion in archive.motions:
        expected = world(motion.subject, f"{motion.action} 1")
        np.testing.assert_allclose(motion.positions, expected, atol=1e-5)
        for view, pixels in zip(
            archive.views[motion.key], seen(expected, motion.subject), strict=True
        ):
            np.testing.assert_allclose(view.pose2d, pixels, atol=1e-3)


def test_cdf_files_that_are_none(tmp_path):
    pytest.importorskip("cdflib")
    with pytest.raises(InputError, match="`folder` must hold folders"):
        human36m.read_cdf(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        human36m.read_cdf(tmp_path / "none")
    path = tmp_path / "S1" / "MyPoseFeatures" / "D3_Positions" / "Walking.cdf"
    write_cdf(path, np.zeros((4, 31, 3)))
    with pytest.raises(InputError, match=r"must hold float numbers.*Walking\.cdf"):
        human36m.read_cdf(tmp_path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"cdflib could not read.*Walking\.cdf"):
        human36m.read_cdf(tmp_path)


# --- from the archive to poses ------------------------------------------------------------------


def test_splits_by_subject_and_every_frame(tmp_path, gt):
    save_archive(tmp_path / "h36m.npz", gt)
    splits = load_splits(tmp_path / "h36m.npz", skeleton="h36m_17")
    assert splits.name == "human36m-gt"
    assert set(splits.train.subject.tolist()) == {1}
    assert set(splits.validation.subject.tolist()) == {8}
    assert set(splits.test.subject.tolist()) == {9, 11}
    assert len(splits.train) == len(NAMES) * 24 * 4
    assert len(splits.test) == (2 * len(NAMES) - 1) * 24 * 4
    assert splits.test.dropped == 0
    row = 24 * 4 + 24 + 5  # second take, second camera, sixth frame
    test = splits.test
    found = (test.subject[row], test.action[row], test.take[row], test.camera[row], test.frame[row])
    assert found == (9, "Photo", "1", 1, 5)
    camera, points = cameras_of(9)[1], world(9, "Photo 1")[5].astype(float)
    local = camera.world_to_camera(points)
    np.testing.assert_allclose(test.pose3d[row], local - local[0], atol=1e-6)
    pixels = camera.project(local)
    expected = pixels / 1000 * 2 - (1, camera.image_size[1] / 1000)
    np.testing.assert_allclose(test.pose2d[row], expected, atol=1e-6)


def test_projected_and_stored_true_poses_are_the_same(tmp_path, gt):
    folder = write_archives(tmp_path, detections=None)
    lines = []
    without = human36m.read_archives(folder, report=lines.append)
    assert not without.views
    assert "projected" in lines[0]
    a, b = human36m.split(without), human36m.split(gt)
    assert a.name == b.name == "human36m-gt"
    for part in ("train", "validation", "test"):
        one, other = getattr(a, part), getattr(b, part)
        assert one.skeleton is h36m_16
        np.testing.assert_allclose(one.pose2d, other.pose2d, atol=1e-6)
        np.testing.assert_array_equal(one.pose3d, other.pose3d)
        np.testing.assert_array_equal(one.action, other.action)


def test_detector_noise_and_other_subjects(gt):
    clean = human36m.split(gt, validation=[1], test=[9], stride=4)
    noisy = human36m.split(gt, validation=[1], test=[9], stride=4, noise_px=5.0, seed=1)
    assert set(clean.train.subject.tolist()) == {8, 11}
    assert (noisy.train.pose2d - clean.train.pose2d).std() * 500 == pytest.approx(5, rel=0.03)
    with pytest.raises(InputError, match="must be subjects of the archive"):
        human36m.split(gt, validation=[2])


@pytest.mark.parametrize("none", [{"validation": []}, {"test": ()}])
def test_no_subjects_are_not_the_usual_ones(none, gt, tmp_path):
    save_archive(tmp_path / "h36m.npz", gt)
    for split, data in ((human36m.split, gt), (load_splits, tmp_path / "h36m.npz")):
        with pytest.raises(InputError, match="`validation` and `test` must name subjects"):
            split(data, **none)


# --- what does not fit --------------------------------------------------------------------------


def changed(changes):
    tree = positions_3d(subjects=(1,))
    tree["S1"] = {"Walking": tree["S1"]["Walking"], **changes}
    return tree


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ([1, 2], "must be one pickled object, not int64"),
        ({"S1": np.zeros((2, 17, 3), "f4")}, "must hold a dict of dicts"),
        ({"Train/S1": {"Walking": np.zeros((2, 15, 3), "f4")}}, "must be called S1"),
        ({"S2": {"Walking": world(1, "Walking")}}, "must be one whose cameras are calibrated"),
        ({}, "no sequence"),
        (changed({"Walking": "text"}), "must be a float array, not str"),
        (changed({"Walking": np.zeros((2, 16, 3), "f4")}), r"not \(2, 16, 3\)"),
        (changed({"Walking": np.zeros((2, 17), "f4")}), r"not \(2, 17\)"),
        (changed({"Walking": np.zeros((0, 17, 3), "f4")}), "must hold frames"),
        (changed({"Walking": np.full((2, 17, 3), np.nan, "f4")}), "be finite"),
        (changed({"Walking": world(1, "Walking") * 1000}), "must be in metres"),
        (changed({"../Walking": world(1, "Walking")}), "is none of the actions"),
        (changed({"Boxing 1": world(1, "Walking")}), "is none of the actions"),
        (changed({"Walking": [world(1, "Walking")] * 3}), "has 3 cameras"),
    ],
)
def test_positions_that_do_not_fit(tmp_path, tree, words):
    np.savez(tmp_path / "data_3d_h36m.npz", positions_3d=tree)
    with pytest.raises(InputError, match=rf"(?s){words}.*Received: path=.*data_3d_h36m.npz"):
        human36m.read_archives(tmp_path)


def without_last(tree):
    del tree["S1"]["Photo 1"]
    return tree


def of_take(tree, value):
    tree["S1"]["Walking"] = value
    return tree


@pytest.mark.parametrize(
    ("tree", "metadata", "words"),
    [
        (lambda: without_last(positions_2d()), METADATA, "at least 24 2D poses, not none"),
        (
            lambda: of_take(positions_2d(), [p[:20] for p in seen(world(1, "Walking"), 1)]),
            METADATA,
            "at least 24 2D poses, not",
        ),
        (
            lambda: of_take(positions_2d(), [np.zeros((24, 17, 4))] * 4),
            METADATA,
            "must be of shape",
        ),
        (lambda: of_take(positions_2d(), [np.zeros((24, 17, 2))] * 4), METADATA, "pixels from"),
        (lambda: of_take(positions_2d(), np.zeros((24, 17, 2))), METADATA, "2D poses of the camer"),
        (lambda: of_take(positions_2d(), [np.full((24, 17, 2), np.inf)] * 4), METADATA, "finite"),
        (positions_2d, {**METADATA, "keypoints_symmetry": [[1], [2]]}, "left and right"),
        (positions_2d, {**METADATA, "keypoints_symmetry": 5}, "left and right"),
        (positions_2d, "17 joints", "must be one pickled object"),
    ],
)
def test_detections_that_do_not_fit(tmp_path, tree, metadata, words):
    write_archives(tmp_path, detections=None)
    np.savez(tmp_path / "data_2d_h36m_gt.npz", positions_2d=tree(), metadata=metadata)
    with pytest.raises(InputError, match=rf"(?s){words}.*Received: path=.*data_2d_h36m_gt.npz"):
        human36m.read_archives(tmp_path)


def test_missing_files_and_choices(tmp_path):
    with pytest.raises(InputError, match=r"could not be opened.*data_3d_h36m\.npz"):
        human36m.read_archives(tmp_path)
    write_archives(tmp_path, detections=None)
    with pytest.raises(InputError, match=r"could not be opened.*cpn_ft_h36m_dbb\.npz"):
        human36m.read_archives(tmp_path, "cpn")
    with pytest.raises(InputError, match="`detections` must be one of"):
        human36m.read_archives(tmp_path, "sh")


# --- views in an archive ------------------------------------------------------------------------


def test_stored_views_are_checked(tmp_path, gt):
    small = gt.of_subjects({8})
    save_archive(tmp_path / "a.npz", small)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        arrays = dict(file)
    name = arrays["camera_view"][0]
    assert name == "S008/Directions/0/54138969"
    for changes, words in (
        ({f"pose2d/{name}": np.zeros((3, 17, 2), "f4")}, "as many frames and joints"),
        ({f"pose2d/{name}": np.full((24, 17, 2), np.nan, "f4")}, "must be finite pixels"),
        ({"camera_lens": arrays["camera_lens"][:2]}, "must have a row for each"),
        ({"camera_lens": np.full(len(arrays["camera_lens"]), "fish")}, "must hold lenses among"),
        ({"camera_rotation": arrays["camera_rotation"] * 2}, "must be a rotation matrix"),
        ({"camera_view": np.roll(arrays["camera_view"], 1)[:1]}, "must have a row for each"),
        ({"pose2d_source": np.zeros(3)}, "`pose2d_source` must have 0 dimensions"),
    ):
        np.savez(tmp_path / "bad.npz", **{**arrays, **changes})
        with pytest.raises(InputError, match=rf"(?s){words}.*bad\.npz"):
            load_archive(tmp_path / "bad.npz")


# --- commands -----------------------------------------------------------------------------------


def test_convert_train_and_evaluate(tmp_path, capsys):
    import cli

    import evaluate as evaluate_command
    import prepare_data
    import train as train_command

    folder, output = write_archives(tmp_path / "in"), str(tmp_path / "h36m.npz")
    arguments = ["human36m", "--archives", str(folder), "-o", output]
    assert cli.run(prepare_data.main, arguments) == 0
    out = capsys.readouterr().out
    assert "19 sequences, 456 frames" in out
    assert "0.00 px from the projected ones" in out
    run = ["--data", output, "--stride", "4", "--scheme", "post_agg", "--channels", "4"]
    run += [
        "--blocks",
        "0",
        "--epochs",
        "1",
        "--batch-size",
        "64",
        "--name",
        "h",
        "--runs",
        str(tmp_path),
    ]
    assert cli.run(train_command.main, run) == 0
    assert cli.run(evaluate_command.main, [str(tmp_path / "h")]) == 0
    out = capsys.readouterr().out
    assert "Table 7: MPJPE, mm, gt keypoints" in out
    assert "WalkingDog" in out
    metrics = pd.read_csv(tmp_path / "h" / "metrics.csv")
    table = metrics[metrics["by"] == "Table 7"].set_index(["split", "group"])["value"]
    assert table["paper", "Average"] == 37.8
    assert table["ours", "Walking"] > 0


def test_wrong_input_is_one_clear_line(tmp_path, capsys):
    import cli

    import prepare_data

    for arguments in (["--archives", str(tmp_path)], ["--cdf", "x", "--detections", "cpn"]):
        command = ["human36m", *arguments, "-o", str(tmp_path / "o.npz")]
        assert cli.run(prepare_data.main, command) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_paper_s_tables():
    actions = human36m.ACTIONS
    errors = pd.DataFrame({"action": actions, **{name: np.arange(15.0) for name in ERRORS}})
    tables = paper_tables(errors, "cpn")
    assert [title[:7] for title in tables] == ["Table 5", "Table 6"]
    five, six = tables.values()
    assert five.loc["paper", "Average"] == 52.4
    assert six.loc["paper", "WalkingDog"] == 42.7
    assert five.loc["ours"].drop("Average").to_dict() == dict(zip(actions, range(15), strict=True))
    assert five.loc["ours", "Average"] == 7
    # The paper's averages are those of its rows.
    for table in (*tables.values(), *paper_tables(errors, "gt").values()):
        mean = table.loc["paper"].drop("Average").mean()
        assert table.loc["paper", "Average"] == pytest.approx(mean, abs=0.07)
    some = paper_tables(errors[errors["action"] != "Posing"], "gt")
    assert np.isnan(next(iter(some.values())).loc["ours", "Average"])
    with pytest.raises(InputError, match="`keypoints` must be one of"):
        paper_tables(errors, "hrnet")

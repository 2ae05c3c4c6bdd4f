"""`predict.py` from a detector's file to 3D poses, and the errors it makes on the way."""

import json
import os

import cli

import numpy as np
import pandas as pd
import predict as predict_command
import pytest
from detector import generated_walk, seen, truth, write_coco, write_openpose

from keras_wsgcn import inference
from keras_wsgcn.data.cameras import normalize_screen
from keras_wsgcn.data.cmu import four_cameras
from keras_wsgcn.data.keypoints import FORMATS, ORIGINS
from keras_wsgcn.data.motions import generate_motions
from keras_wsgcn.data.poses import observe
from keras_wsgcn.inference import PoseSequence
from keras_wsgcn.metrics import mpjpe
from keras_wsgcn.models import build_model
from keras_wsgcn.saving import save_model
from keras_wsgcn.skeletons import Skeleton, h36m_16, h36m_17

# On a generated walk of somebody whom the lifter has not seen, millimetres.
LARGEST_LIFTING_MM = 50  # true joints in
LARGEST_CONVERSION_MM = 15  # what the lifter makes else of joints that COCO does not have
SIZE = ["--image-size", "1000", "1000"]


class KernelLifter:
    """Stands for a trained network: kernel ridge regression, solved in a second."""

    def __init__(self, pose2d, pose3d):
        self.known = self._relative(pose2d)
        kernel = self._kernel(self.known) + 0.01 * np.eye(len(pose2d))
        self.weights = np.linalg.solve(kernel, pose3d.reshape(len(pose3d), -1))

    def __call__(self, model, pose2d):
        assert np.isfinite(pose2d).all()
        lifted = self._kernel(self._relative(pose2d)) @ self.weights
        return lifted.reshape(*pose2d.shape[:2], 3).astype(np.float32)

    def _relative(self, pose2d):
        return (pose2d - pose2d[:, :1]).reshape(len(pose2d), -1)

    def _kernel(self, poses):
        return np.exp(-((poses[:, None] - self.known[None]) ** 2).sum(axis=-1))


@pytest.fixture(scope="module")
def lifter():
    motions = generate_motions(subjects=6, takes=2, seconds=4.0, actions=["Walking"])
    poses = observe(motions, four_cameras, stride=4)
    train = poses.of_subjects([2, 3, 4, 5, 6])
    return KernelLifter(train.pose2d, train.pose3d)


@pytest.fixture(scope="module")
def walk():
    """A walk of subject 1, and a camera that sees it."""
    return generated_walk()


@pytest.fixture(scope="module")
def expected(walk):
    """The true 3D of the walk, `(frames, joints, 3)` metres."""
    positions, camera = walk
    joints = [h36m_17.index(name) for name in h36m_16.joint_names]
    points = camera.world_to_camera(positions)[:, joints]
    return points - points[:, :1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Small untrained models by their number of joints."""
    folder = tmp_path_factory.mktemp("models")
    for skeleton in (h36m_16, h36m_17):
        model = build_model("post_agg", channels=4, blocks=1, skeleton=skeleton.name)
        save_model(model, folder / f"{skeleton.num_joints}.keras")
    return {joints: folder / f"{joints}.keras" for joints in (16, 17)}


def predict(*arguments):
    return cli.run(predict_command.main, [str(argument) for argument in arguments])


# --- the poses ----------------------------------------------------------------------------------


def test_a_coco_file_of_a_walk_becomes_its_3d(
    walk, expected, lifter, models, tmp_path, monkeypatch
):
    monkeypatch.setattr(inference, "predict", lifter)
    path = write_coco(tmp_path, [seen(walk, "coco17")])
    out = tmp_path / "out.npz"
    assert predict(path, "--model", models[16], "--format", "coco17", *SIZE, "-o", out) == 0
    poses = np.load(out)["pose3d_m"][0]
    ideal = lifter(None, normalize_screen(truth(walk, h36m_16), (1000, 1000)))
    ideal -= ideal[:, :1]
    lifting, total, conversion = (
        mpjpe(a, b).mean() for a, b in ((expected, ideal), (expected, poses), (ideal, poses))
    )
    assert lifting <= LARGEST_LIFTING_MM
    assert conversion <= LARGEST_CONVERSION_MM
    assert total <= lifting + conversion + 1e-6


def test_the_shipped_model_lifts_a_coco_file(walk, expected, tmp_path):
    path = write_coco(tmp_path, [seen(walk, "coco17")])
    assert predict(path, *SIZE, "-o", tmp_path / "out.npz") == 0
    poses = np.load(tmp_path / "out.npz")["pose3d_m"][0]
    joints = [h36m_16.index(n) for n in h36m_16.joint_names if n[:2] in ("l_", "r_")]
    # 92 mm when it was shipped: another body than CMU's people, and depth by guess of its size.
    assert mpjpe(expected[:, joints], poses[:, joints]).mean() < 100


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("joints", [16, 17])
def test_every_format_meets_every_model(format, joints, walk, models, tmp_path):
    folder = write_openpose(tmp_path, [seen(walk, format)[:3]])
    out = tmp_path / "out.json"
    arguments = ["--model", models[joints], "--format", format, *SIZE, "-o", out]
    assert predict(folder, *arguments) == 0
    record = json.loads(out.read_text())
    assert np.shape(record["people"][0]["poses"][0]["pose3d"]) == (joints, 3)
    assert len(record["joint_names"]) == joints


def test_keypoints_can_be_the_joints_of_a_model_of_ones_own(rng, tmp_path):
    paw = Skeleton("paw", ("wrist", "a", "b", "c"), (1, -1, 1, 2))
    model = build_model("pre_agg", channels=4, blocks=0, skeleton=paw)
    save_model(model, tmp_path / "paw.keras")
    pixels = rng.uniform(0, 1000, (6, 4, 2)).astype("float32")
    np.save(tmp_path / "paw.npy", pixels)
    arguments = [tmp_path / "paw.npy", "--model", tmp_path / "paw.keras", *SIZE]
    out = tmp_path / "out.npz"
    assert predict(*arguments, "--format", "model", "-o", out) == 0
    with np.load(out) as file:
        assert tuple(file["joint_names"]) == paw.joint_names
        np.testing.assert_array_equal(file["pose2d_px"][0], pixels)
        lifted = model.predict(normalize_screen(pixels, (1000, 1000)), verbose=0)
        np.testing.assert_allclose(file["pose3d_m"][0], lifted - lifted[:, 1:2], atol=1e-5)


# --- what is written ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_people(walk, models, tmp_path_factory):
    """All three outputs of a file with two people, one of whom is lost for 20 frames."""
    folder = tmp_path_factory.mktemp("two")
    one = seen(walk, "coco17")[:60]
    two = one + (250, 0, 0)
    two[20:40, :, 2] = 0.0
    path = write_coco(folder, [one, two], image_ids=list(range(100, 160)))
    for suffix in ("npz", "json", "csv"):
        out = folder / f"out.{suffix}"
        assert predict(path, "--model", models[16], *SIZE, "--fps", 25, "-o", out) == 0
    return folder


def test_npz_holds_all_people_and_nan_where_nobody_is(two_people):
    with np.load(two_people / "out.npz") as file:
        arrays = dict(file)
    assert arrays["pose3d_m"].shape == (2, 60, 16, 3)
    assert arrays["pose2d_px"].shape == (2, 60, 16, 2)
    assert tuple(arrays["joint_names"]) == h36m_16.joint_names
    assert arrays["frames"].tolist() == list(range(100, 160))
    assert (float(arrays["fps"]), arrays["image_size_px"].tolist()) == (25.0, [1000, 1000])
    assert "metres" in str(arrays["coordinates"])
    missing = np.isnan(arrays["pose3d_m"]).any(axis=(2, 3))
    assert not missing[0].any()
    np.testing.assert_array_equal(np.flatnonzero(missing[1]), np.arange(20, 40))
    np.testing.assert_array_equal(arrays["pose3d_m"][0][:, 0], 0.0)
    assert tuple(arrays["origin_names"]) == ORIGINS


def test_json_and_csv_say_the_same_as_npz(two_people):
    with np.load(two_people / "out.npz") as file:
        arrays = dict(file)
    record = json.loads((two_people / "out.json").read_text())
    assert record["units"] == {"pose3d": "metres", "pose2d": "pixels"}
    table = pd.read_csv(two_people / "out.csv")
    columns = "person,frame,joint,x_m,y_m,z_m,u_px,v_px,origin"
    assert (two_people / "out.csv").read_text().splitlines()[0] == columns
    for number, person in enumerate(record["people"]):
        frames = [pose["frame"] for pose in person["poses"]]
        assert len(frames) == (60, 40)[number]
        rows = np.array(frames) - 100
        for key, name, columns, atol in (
            ("pose3d_m", "pose3d", ["x_m", "y_m", "z_m"], 1e-5),
            ("pose2d_px", "pose2d", ["u_px", "v_px"], 1e-3),
        ):
            wanted = arrays[key][number, rows]
            found = np.array([pose[name] for pose in person["poses"]])
            np.testing.assert_allclose(found, wanted, atol=atol)
            lines = table[table["person"] == person["person"]]
            np.testing.assert_allclose(
                lines[columns].to_numpy().reshape(wanted.shape), wanted, atol=atol
            )
        assert lines["frame"].tolist() == np.repeat(frames, 16).tolist()
        assert lines["joint"].tolist() == [*h36m_16.joint_names] * len(frames)


def test_pictures_are_passed_on(walk, models, tmp_path, monkeypatch):
    animation = pytest.importorskip("keras_wsgcn.animation")
    given = {}
    for name in ("picture", "animation", "page"):

        def write(sequence, path, name=name):
            given[name] = sequence
            path.write_text(name)

        monkeypatch.setattr(animation, f"write_{name}", write)
    path = write_coco(tmp_path, [seen(walk, "coco17")[:5]])
    files = {n: tmp_path / f"p.{s}" for n, s in
             (("picture", "png"), ("animation", "gif"), ("page", "html"))}  # fmt: skip
    options = [word for name, file in files.items() for word in (f"--{name}", file)]
    out = tmp_path / "o.csv"
    assert predict(path, "--model", models[16], *SIZE, "-o", out, *options) == 0
    assert all(file.read_text() == name for name, file in files.items())
    assert all(isinstance(sequence, PoseSequence) for sequence in given.values())
    assert given["page"].lifted.all()


def test_all_files_are_written_or_none(walk, models, tmp_path, monkeypatch, capsys):
    animation = pytest.importorskip("keras_wsgcn.animation")

    def fail(sequence, path):
        raise ImportError("ffmpeg is missing")

    monkeypatch.setattr(animation, "write_animation", fail)
    path = write_coco(tmp_path, [seen(walk, "coco17")[:5]])
    before = sorted(os.listdir(tmp_path))
    options = ["-o", tmp_path / "o.csv", "--animation", tmp_path / "o.mp4"]
    assert predict(path, "--model", models[16], *SIZE, *options) == 2
    assert capsys.readouterr().err == "error: ffmpeg is missing\n"
    assert sorted(os.listdir(tmp_path)) == before


# --- what is assumed ----------------------------------------------------------------------------


def test_an_unknown_image_size_is_assumed_and_said(walk, models, tmp_path, capsys):
    keypoints = seen(walk, "coco17")[:5]
    path = write_coco(tmp_path, [keypoints])
    out = tmp_path / "o.npz"
    assert predict(path, "--model", models[16], "-o", out) == 0
    x = keypoints[..., 0]
    width = int(np.load(out)["image_size_px"][0])
    assert width == np.ceil(x.min() + x.max())
    text = capsys.readouterr().out
    assert f"image size not given: assumed {width} x " in text
    assert "a camera like those of the training is assumed" in text


def test_an_image_size_that_does_not_fit_is_noticed(walk, models, tmp_path, capsys):
    keypoints = seen(walk, "coco17")[:5]
    np.save(tmp_path / "k.npy", keypoints)
    arguments = [tmp_path / "k.npy", "--model", models[16], "-o", tmp_path / "o.npz"]
    x, y = (int(np.ceil(keypoints[..., axis].max())) for axis in (0, 1))
    for size, hint in (((x, y), None), ((x // 2, y // 2), "image-size\n")):
        assert predict(*arguments, "--image-size", *size) == 0
        text = capsys.readouterr().err
        assert "note:" not in text if hint is None else hint in text
    wide = keypoints.copy()
    wide[..., 0] *= 2 * y / x
    np.save(tmp_path / "k.npy", wide)
    assert predict(*arguments, "--image-size", y, 2 * y) == 0
    assert f"check --image-size: {2 * y} {y} would fit" in capsys.readouterr().err


def test_people_cut_off_at_the_left_have_their_width(walk, models, tmp_path):
    keypoints = seen(walk, "coco17")[:5]
    keypoints[..., 0] -= keypoints[..., 0].max() - 100  # most of them lies left of the image
    np.save(tmp_path / "k.npy", keypoints)
    assert predict(tmp_path / "k.npy", "--model", models[16], "-o", tmp_path / "o.npz") == 0
    width = int(np.load(tmp_path / "o.npz")["image_size_px"][0])
    assert width == np.ceil(np.ptp(keypoints[..., 0]).round(6))


def test_confidences_in_percent_are_noticed(walk, models, tmp_path, capsys):
    keypoints = seen(walk, "coco17")[:5]
    keypoints[..., 2] *= 97
    np.save(tmp_path / "k.npy", keypoints)
    arguments = [tmp_path / "k.npy", "--model", models[16], "-o", tmp_path / "o.npz"]
    assert predict(*arguments) == 2
    assert "`confidence` must be on the scale of the keypoints'" in capsys.readouterr().err
    assert predict(*arguments, "--confidence", 30) == 0


def test_a_joint_that_is_missing_is_no_place_of_the_image(walk, models, tmp_path):
    keypoints = seen(walk, "coco17")[:5]
    keypoints[2, 0] = 0
    np.save(tmp_path / "k.npy", keypoints)
    arguments = [tmp_path / "k.npy", "--model", models[16], "-o", tmp_path / "o.npz"]
    sizes = []
    for confidence in (0, 0.01):
        assert predict(*arguments, "--confidence", confidence) == 0
        sizes.append(np.load(tmp_path / "o.npz")["image_size_px"].tolist())
    assert sizes[0] == sizes[1]


def test_fractions_are_scaled(walk, models, tmp_path):
    keypoints = seen(walk, "mediapipe33")[:5]
    arguments = ["--model", models[16], "--format", "mediapipe33", "--image-size", "1000", "500"]
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    np.save(tmp_path / "pixels.npy", keypoints)
    np.save(tmp_path / "fractions.npy", keypoints / (1000, 500, 1))
    assert predict(tmp_path / "pixels.npy", *arguments, "-o", a) == 0
    assert predict(tmp_path / "fractions.npy", *arguments, "--fractions", "-o", b) == 0
    np.testing.assert_allclose(np.load(a)["pose2d_px"], np.load(b)["pose2d_px"], atol=1e-3)


def test_people_hardly_seen_can_be_left_out(walk, models, tmp_path):
    one = seen(walk, "coco17")[:20]
    two = one + (300, 0, 0)
    two[5:, :, 2] = 0
    path = write_coco(tmp_path, [one, two])
    out = tmp_path / "o.npz"
    arguments = [path, "--model", models[16], *SIZE, "-o", out, "--least-frames"]
    assert predict(*arguments, 6) == 0
    assert np.load(out)["people"].tolist() == ["1"]
    assert predict(*arguments, 21) == 2
    array = np.stack([one, two])
    array[1, 5:] = np.nan
    np.save(tmp_path / "k.npy", array)
    assert predict(tmp_path / "k.npy", *arguments[1:], 6) == 0
    assert np.load(out)["people"].tolist() == ["1"]


# --- what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "o.txt"], "`output` must end in one of"),
        (["--picture", "o.gif"], "`picture` must end in one of"),
        (["--animation", "o.png"], "`animation` must end in one of"),
        (["--page", "o.pdf"], "`page` must end in one of"),
        (["-o", "results.json"], "not the one of the keypoints"),
        (["--model", "none.keras"], "`path` must name a `.keras` file"),
        (["--model", "no_such_name"], "`name` must be one of"),
        (["--format", "body25"], "list of 75 numbers"),
        (["--fps", "0"], "`fps` must be a number"),
        (["--max-gap", "-1"], "`max_gap` must be"),
        (["--image-size", "0", "5"], "`image_size` must be"),
        (["--confidence", "0.95"], "no person with a joint of confidence 0.95"),
        (["--confidence", "nan"], "`least_confidence` must be a number"),
        (["--fractions"], "given with `fractions`"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    arguments, words, walk, models, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path, [seen(walk, "coco17")[:3]])
    before = sorted(os.listdir(tmp_path))
    assert predict("results.json", "--model", models[16], "-o", "o.npz", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_fractions_taken_for_pixels_are_noticed(walk, models, tmp_path, capsys):
    np.save(tmp_path / "k.npy", seen(walk, "coco17") / (1000, 1000, 1))
    arguments = ["--model", models[16], *SIZE, "-o", tmp_path / "o.npz"]
    assert predict(tmp_path / "k.npy", *arguments) == 2
    assert "add --fractions" in capsys.readouterr().err
    np.save(tmp_path / "k.npy", seen(walk, "coco17"))
    assert predict(tmp_path / "k.npy", "--fractions", *arguments) == 2
    assert "leave out --fractions" in capsys.readouterr().err


def test_nobody_seen_whole_names_what_lacks(walk, models, tmp_path, capsys):
    keypoints = seen(walk, "coco17")[:10]
    keypoints[:, 11:, 2] = 0  # the picture ends above the hips
    arguments = ["--model", models[16], *SIZE, "-o", tmp_path / "o.npz"]
    assert predict(write_coco(tmp_path, [keypoints]), *arguments) == 2
    error = capsys.readouterr().err
    assert "show somebody whole" in error
    assert "'r_knee'" in error
    assert "'l_wrist'" not in error
    keypoints = seen(walk, "coco17")[:10]
    keypoints[:, [6, 8, 9, 10, 14, 15, 16], 2] = 0  # a guess for each of them can be made
    assert predict(write_coco(tmp_path, [keypoints]), *arguments) == 2
    assert "; no frame has all joints, half of them seen." in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        predict_command.main(["--help"])
    assert caught.value.code == 0
    assert "assumes one like those" in capsys.readouterr().out

import sys

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")

from mpl_toolkits.mplot3d import proj3d
from testing import read_picture

from keras_wsgcn import plots, skeletons
from keras_wsgcn.errors import InputError
from keras_wsgcn.plots import plot_poses, plot_training_curves

pytestmark = pytest.mark.plain

# A person who stands in front of the camera, in its frame: x right, y down, z forward, metres.
STANDING = np.array(
    [
        [0, 0, 0], [-0.13, 0, 0], [-0.14, 0.45, 0.02], [-0.15, 0.88, 0.1],
        [0.13, 0, 0], [0.14, 0.44, -0.1], [0.15, 0.87, -0.05],
        [0, -0.23, 0.02], [0, -0.48, 0], [0, -0.7, -0.04],
        [0.17, -0.45, 0], [0.22, -0.18, 0.05], [0.24, 0.05, -0.08],
        [-0.17, -0.45, 0], [-0.22, -0.18, 0.05], [-0.24, 0.05, -0.08],
    ]
)  # fmt: skip


def some_examples(count=2, joints=16):
    rng = np.random.default_rng(0)
    y_true = np.tile(np.resize(STANDING, (joints, 3)), (count, 1, 1))
    y_pred = y_true + rng.normal(size=y_true.shape) * 0.03
    pose2d = y_true[..., :2] / (y_true[..., 2:] + 5)
    return y_true, y_pred, pose2d


def some_history(epochs=40):
    epoch = np.arange(1, epochs + 1)
    curve = np.exp(-epoch / 10)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "loss": curve,
            "mpjpe_mm": 40 + 100 * curve,
            "val_loss": curve + 0.1,
            "val_mpjpe_mm": 50 + 100 * curve,
            "learning_rate": 1e-3,
            "seconds": 2.0,
        }
    )


def shows(pixels, colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return (np.abs(pixels[..., :3] - rgb).max(axis=-1) < 0.01).any()


# --- training curves ----------------------------------------------------------------------------


def test_training_curves_show_both_splits_in_two_panels(tmp_path):
    plot_training_curves(some_history(), tmp_path / "curves.png")
    pixels = read_picture(tmp_path / "curves.png")
    assert all(shows(pixels, colour) for colour in plots._SPLIT_COLOURS.values())
    plot_training_curves(some_history()[["loss", "val_loss"]], tmp_path / "one.png")
    assert read_picture(tmp_path / "one.png").shape[1] == pixels.shape[1] // 2


def test_training_curves_take_what_there_is(tmp_path):
    history = some_history()
    gaps = history.assign(val_loss=np.nan, loss=history["loss"].where(history["epoch"] != 3))
    gaps.loc[5, "mpjpe_mm"] = np.inf
    sparse = history.astype({"val_mpjpe_mm": object})
    sparse.loc[::2, "val_mpjpe_mm"] = None
    cases = [history[["mpjpe_mm"]], history[:1], history.assign(loss=0.0), gaps, sparse]
    for number, case in enumerate(cases):
        plot_training_curves(case, tmp_path / f"{number}.png")
        read_picture(tmp_path / f"{number}.png")


BAD_HISTORIES = [
    (some_history()[:0], "`history` must have rows"),
    (some_history()[["epoch", "seconds"]], "`history` must have rows"),
    (some_history().assign(epoch=np.nan), "`history` must hold finite numbers in .*`epoch`"),
    (some_history()[["loss"]] * np.nan, "`history` must have rows, and finite numbers"),
    (some_history().assign(loss="low"), "`history` must hold numbers in the column `loss`"),
    ({"loss": [1.0]}, "`history` must be a pandas DataFrame"),
]


@pytest.mark.parametrize(("history", "message"), BAD_HISTORIES)
def test_bad_histories_are_refused_before_a_file_is_written(tmp_path, history, message):
    with pytest.raises(InputError, match=rf"(?s){message}.*Received: "):
        plot_training_curves(history, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


# --- poses --------------------------------------------------------------------------------------


def test_poses_have_a_row_each_and_all_sides(tmp_path):
    y_true, y_pred, pose2d = some_examples(2)
    titles = ["Walking $1", "S9, Sitting Down 1, camera 2, and more than fits"]
    plot_poses(y_true, y_pred, tmp_path / "two.png", pose2d=pose2d, titles=titles)
    two = read_picture(tmp_path / "two.png")
    assert all(shows(two, colour) for colour in plots.SIDE_COLOURS.values())
    plot_poses(y_true[:1], y_pred[:1], tmp_path / "one.png")
    one = read_picture(tmp_path / "one.png")
    assert two.shape[0] > 1.7 * one.shape[0]
    assert two.shape[1] > 1.4 * one.shape[1]


def test_poses_stand_upright_with_their_right_on_the_left_of_the_picture(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "write", lambda figure, path: figures.append(figure))
    plot_poses(*some_examples(1)[:2], tmp_path / "pose.png", pose2d=some_examples(1)[2])
    head, ankle, left, right = 9, 3, 10, 13
    figures[0].canvas.draw()  # sets the projection
    flat, oblique, side = figures[0].axes
    projected = STANDING[:, [0, 2, 1]] * (1, 1, -1)
    x, y, _ = proj3d.proj_transform(*projected.T, oblique.get_proj())
    screen = {
        flat: flat.transData.transform(some_examples(1)[2][0]),
        oblique: np.stack([x, y], axis=1),
        side: side.transData.transform(STANDING[:, [2, 1]]),
    }
    for joints in screen.values():
        assert joints[head, 1] > joints[ankle, 1]
    for axes in (flat, oblique):  # the person faces the camera
        assert screen[axes][right, 0] < screen[axes][left, 0]


def test_colours_follow_the_outer_joint_of_a_bone():
    skeleton = skeletons.get("h36m_16")
    sides = {side: bones.tolist() for side, bones in plots.bones_by_side(skeleton).items()}
    assert [0, skeleton.index("l_hip")] in sides["left"]
    assert [8, skeleton.index("r_shoulder")] in sides["right"]
    assert [0, skeleton.index("spine")] in sides["centre"]
    bones = [tuple(bone) for some in sides.values() for bone in some]
    assert sorted(bones) == sorted(skeleton.bones)


def test_a_pose_is_one_line_a_side(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "write", lambda figure, path: figures.append(figure))
    plot_poses(*some_examples(1)[:2], tmp_path / "pose.png")
    for axes in figures[0].axes:  # the truth and the prediction
        assert [line.get_color() for line in axes.lines] == [*plots.SIDE_COLOURS.values()] * 2


def test_other_skeletons_and_extreme_poses_are_drawn(tmp_path):
    y_true, y_pred, _ = some_examples(1, joints=17)
    plot_poses(y_true, y_pred, tmp_path / "17.png", skeleton="h36m_17")
    read_picture(tmp_path / "17.png")
    zeros = np.zeros((1, 16, 3))
    for number, size in enumerate((0.0, 1e-12, 1e9)):
        plot_poses(zeros, size * STANDING[None], tmp_path / f"{number}.png")
        read_picture(tmp_path / f"{number}.png")


GOOD = dict(zip(("y_true", "y_pred", "pose2d"), some_examples(), strict=True))
BAD_POSES = [
    ({"y_true": GOOD["y_true"][0]}, "`y_true` must have the shape"),
    ({"y_true": GOOD["y_true"][:1]}, "`y_true` and `y_pred` must have the same shape"),
    ({"y_pred": GOOD["y_pred"] * np.nan}, "`y_pred` must hold finite"),
    ({"y_pred": "poses"}, "`y_pred` must be an array of numbers"),
    ({"skeleton": "h36m_17"}, r"`y_true` must have the shape \(examples, 17, 3\)"),
    ({"skeleton": "dog"}, "`skeleton` must be one of"),
    ({"pose2d": GOOD["y_true"]}, r"`pose2d` must have the shape \(2, 16, 2\)"),
    ({"pose2d": GOOD["pose2d"][:1]}, r"`pose2d` must have the shape \(2, 16, 2\)"),
    ({"pose2d": GOOD["pose2d"] + np.inf}, "`pose2d` must hold finite"),
    ({"titles": ["one"]}, "`titles` must hold one string for each"),
    ({"titles": "ab"}, "`titles` must hold one string for each"),
    ({"titles": 2}, "`titles` must hold one string for each"),
    ({k: v[:0] for k, v in GOOD.items()}, "`y_true` must .* with 1 to"),
    ({k: np.resize(v, (65, *v.shape[1:])) for k, v in GOOD.items()}, "`y_true` must .* with 1 to"),
]


@pytest.mark.parametrize(("change", "message"), BAD_POSES)
def test_bad_poses_are_refused_before_a_file_is_written(tmp_path, change, message):
    with pytest.raises(InputError, match=rf"(?s){message}.*Received: "):
        plot_poses(**GOOD | {"path": tmp_path / "poses.png"} | change)
    assert not list(tmp_path.iterdir())


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["curves", "curves.jpg", "", None, 3])
def test_only_png_files_are_written(path):
    with pytest.raises(InputError, match=r"`path` must .* Received: path="):
        plot_training_curves(some_history(), path)
    with pytest.raises(InputError, match=r"`path` must .* Received: path="):
        plot_poses(**GOOD, path=path)


def test_the_same_input_gives_the_same_file_and_no_global_state(tmp_path):
    for name in ("a.png", "b.png"):
        plot_training_curves(some_history(), tmp_path / "new" / name)
    first, second = (tmp_path / "new" / name for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(tmp_path.glob("new/*")) == [first, second]  # nothing temporary is left
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_a_missing_matplotlib_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "keras_wsgcn\[plots\]"'):
        plot_training_curves(some_history(), tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())

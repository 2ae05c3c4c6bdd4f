"""`query.py` on a server whose model has joints of another order, of which servers tell nothing."""

import shlex

import cli

import keras
import numpy as np
import pytest
import query as query_command
import serve as serve_command
from test_export import randomise

from keras_wsgcn import Skeleton, build_model, save_model, skeletons
from keras_wsgcn.exporting.formats import METADATA_FILE

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the stand-in is TensorFlow, whatever the backend",
)
SIZE = (1920, 1080)


@pytest.fixture
def pixels(rng):
    return rng.uniform(0, 1000, (6, 16, 2)).astype("float32")


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A served model of the joints of Human3.6M from the last to the first, and its folder."""
    from keras_wsgcn.serving.stand_in import StandIn

    folder, old = tmp_path_factory.mktemp("turned"), skeletons.h36m_16
    parents = [15 - parent if parent >= 0 else -1 for parent in old.parents[::-1]]
    skeleton = Skeleton("turned", old.joint_names[::-1], parents)
    model = build_model("post_agg", channels=4, blocks=0, skeleton=skeleton)
    save_model(randomise(model, np.random.default_rng(3)), folder / "m.keras")
    arguments = [str(folder / "m.keras"), "--name", "lifter", "--folder", str(folder / "served")]
    assert cli.run(serve_command.main, arguments) == 0
    with StandIn(folder / "served") as server:
        yield model, folder, f"http://127.0.0.1:{server.rest_port}"


@pytest.mark.parametrize("format", ["h36m16", "model"])
@pytest.mark.parametrize("told", ["--skeleton", "--compare"])
def test_query_takes_joints_of_another_order(told, format, turned, pixels, tmp_path, capsys):
    model, folder, address = turned
    np.save(tmp_path / "k.npy", pixels if format == "h36m16" else pixels[:, ::-1])
    card = folder / "served" / "lifter" / "1" / METADATA_FILE
    arguments = [
        str(tmp_path / "k.npy"), "--format", format, "--image-size", *map(str, SIZE),
        "--server", address, "--name", "lifter", "-o", str(tmp_path / "poses.npz"),
        told, str({"--skeleton": card, "--compare": folder / "m.keras"}[told]),
    ]  # fmt: skip
    assert cli.run(query_command.main, arguments) == 0
    found = np.load(tmp_path / "poses.npz")
    assert found["joint_names"][-1] == "pelvis"
    pose2d = (2 * pixels[:, ::-1] - np.float32(SIZE)) / np.float32(SIZE[0])
    expected = model.predict(pose2d, verbose=0)
    np.testing.assert_allclose(found["pose3d_m"][0], expected - expected[:, -1:], atol=2e-5)
    assert cli.run(serve_command.main, ["--folder", str(folder / "served")]) == 0
    assert f"--skeleton {shlex.quote(str(card))} --image-size" in capsys.readouterr().out


def test_query_compares_models_of_the_same_joints(turned, pixels, tmp_path, capsys):
    _, folder, address = turned
    np.save(tmp_path / "k.npy", pixels)
    save_model(build_model("pre_agg", channels=4), tmp_path / "other.keras")
    save_model(build_model("pre_agg", channels=4, skeleton="h36m_17"), tmp_path / "more.keras")
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    card = str(folder / "served" / "lifter" / "1" / METADATA_FILE)
    arguments = [str(tmp_path / "k.npy"), "--format", "h36m16", "--image-size", "9", "9"]
    arguments += ["--server", address, "--name", "lifter", "-o", str(tmp_path / "p.npz")]
    for more, message in (
        (["--compare", str(tmp_path / "more.keras")], "`compare` must have the model's 16 joints"),
        (["--skeleton", card, "--compare", str(tmp_path / "other.keras")], "of the same joints"),
        (["--skeleton", "h36m_17"], "`skeleton` must have the model's 16 joints"),
        (["--skeleton", str(broken)], "`skeleton` must be what the card"),
    ):
        assert cli.run(query_command.main, [*arguments, *more]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "p.npz").exists()

"""TensorFlow's own C++ loader runs the SavedModels, from a C program with no Python in it."""

import shutil
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from test_export import randomise

from keras_wsgcn import SCHEMES, build_model, export

SOURCE = Path(__file__).with_name("saved_model_loader.c")
SIZE = np.float32([1280, 720])
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it is TensorFlow's loader"),
    pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler"),
]


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    import tensorflow as tf

    program = tmp_path_factory.mktemp("loader") / "loader"
    library = tf.sysconfig.get_lib()
    subprocess.run(
        ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE,
         f"-I{tf.sysconfig.get_include()}", f"-L{library}", f"-Wl,-rpath,{library}",
         "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"],
        check=True,
    )  # fmt: skip
    return program


def call(loader, *arguments):
    """Runs the program in an empty environment: no Python, no paths of ours."""
    return subprocess.run(
        [loader, *arguments], env={"TF_CPP_MIN_LOG_LEVEL": "3"}, capture_output=True, text=True
    )


def lift(loader, folder, signature, arrays, tmp_path):
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    definition = saved.meta_graphs[0].signature_def[signature]
    inputs = []
    for name, array in arrays.items():
        array.astype("<f4").tofile(tmp_path / name)
        shape = ",".join(map(str, array.shape))
        inputs.append(f"{definition.inputs[name].name}={tmp_path / name}:{shape}")
    output = definition.outputs["pose3d"].name
    done = call(loader, folder, output, tmp_path / "pose3d", *inputs)
    assert done.returncode == 0, done.stderr
    shape = [int(size) for size in done.stdout.split()]
    return np.fromfile(tmp_path / "pose3d", "<f4").reshape(shape)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_loader_predicts_what_keras_does(scheme, loader, rng, tmp_path):
    model = randomise(build_model(scheme, channels=16, blocks=1), rng)
    folder = export(model, tmp_path / "lifter").path
    for batch in (1, 7, 64):
        pose2d = rng.uniform(-1, 1, (batch, 16, 2)).astype("float32")
        expected = model.predict(pose2d, verbose=0)
        assert expected.std() > 0.1
        got = lift(loader, folder, "serve", {"pose2d": pose2d}, tmp_path)
        np.testing.assert_allclose(got, expected, atol=1e-5)
        pixels = (pose2d * SIZE[0] + SIZE) / 2
        arrays = {"pixels": pixels, "image_size": np.tile(SIZE, (batch, 1))}
        got = lift(loader, folder, "serve_pixels", arrays, tmp_path)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_there_is_no_python_in_it(loader):
    libraries = subprocess.run(["ldd", loader], capture_output=True, text=True, check=True).stdout
    assert "libtensorflow_cc" in libraries
    assert "libpython" not in libraries


def test_a_damaged_model_is_an_error(loader, rng, tmp_path):
    folder = export(randomise(build_model("pre_agg", channels=4), rng), tmp_path / "lifter").path
    graph = folder / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:1000])
    done = call(loader, folder, "x:0", tmp_path / "y", "x:0=none:1")
    assert done.returncode == 1
    assert str(folder) in done.stderr.splitlines()[-1]

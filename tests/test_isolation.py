"""What the library leaves alone: heavy imports, and the network."""

import ast
import os
import socket
import subprocess
import sys
import urllib.request

import keras
import pytest
from testing import ROOT, run_python

BACKEND = keras.backend.backend()
IMPORTS = """
import sys
import keras
before = set(sys.modules)
import keras_wsgcn
print(sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
OFFLINE = """
import sys
import keras_wsgcn
from keras_wsgcn.training import train
config = keras_wsgcn.TrainConfig(channels=4, blocks=0, epochs=1, batch_size=64)
data = keras_wsgcn.load_splits("generated", stride=120)
result = train(config, data, sys.argv[1] + "/run", verbose=False)
keras_wsgcn.evaluate(result.model, data.test)
model = keras_wsgcn.load_pretrained()
keras_wsgcn.save_model(model, sys.argv[1] + "/a.keras")
keras_wsgcn.load_model(sys.argv[1] + "/a.keras").predict(data.test.pose2d[:2], verbose=0)
keras_wsgcn.export(model, sys.argv[1] + "/a.onnx")
keras_wsgcn.export(model, sys.argv[1] + "/served")
"""


def test_nothing_heavy_is_imported_before_it_is_needed():
    found = ast.literal_eval(run_python(IMPORTS, backend=BACKEND).splitlines()[-1])
    heavy = {"optuna", "sqlalchemy", "matplotlib", "plotly", "PIL", "onnx", "onnxruntime"}
    heavy |= {"openvino", "ai_edge_litert", "grpc", "tensorflow", "jax", "torch", "scipy", "cdflib"}
    assert not heavy & set(found)
    assert "keras_wsgcn" in found


@pytest.mark.plain
def test_no_test_can_ask_the_network(asked):
    for ask in (
        lambda: urllib.request.urlopen("http://example.org", timeout=1),
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
    ):
        with pytest.raises(OSError, match="a test asked the network"):
            ask()
    assert len(asked) == 2
    asked.clear()


@pytest.mark.slow
def test_everything_runs_without_a_network(tmp_path):
    """In a network namespace of its own, where there is no other machine: exports too."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", OFFLINE, str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": BACKEND}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "served" / "1" / "saved_model.pb").exists()

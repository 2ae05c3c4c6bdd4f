"""The scripts that check and time the exports, on a small model."""

import re

import cli

import benchmark_exports
import check_exports
import export
import keras
import pandas as pd
import pytest

from keras_wsgcn import build_model, save_model
from keras_wsgcn.data.archive import save_archive
from keras_wsgcn.data.motions import generate_motions

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="they start processes of their own"
)
SMALL = ["--budget", "2e4", "--backends", "tensorflow"]


def test_the_parity_table(tmp_path, capsys):
    output = tmp_path / "parity.csv"
    arguments = [*SMALL, "--schemes", "post_agg", "--formats", "onnx", "--output", str(output)]
    assert cli.run(check_exports.main, arguments) == 0
    frame = pd.read_csv(output)
    assert list(frame["format"]) == ["onnx", "keras on tensorflow"]
    assert (frame["parity_m"] < 1e-5).all()
    assert frame["parity_m"].iloc[0] > 0
    assert "post_agg" in capsys.readouterr().out


def test_the_error_of_int8_on_motions_and_joints_of_ones_own(tmp_path, capsys):
    model, motions = tmp_path / "m.keras", tmp_path / "motions.npz"
    save_model(build_model("post_agg", channels=4, blocks=0, skeleton="h36m_17"), model)
    save_archive(motions, generate_motions(subjects=3, takes=1, seconds=4, actions=["Walking"]))
    arguments = [str(model), str(tmp_path / "m.tflite"), "--int8", "--data", str(motions)]
    assert cli.run(export.main, arguments) == 2
    assert "`validation` and `test` must name subjects" in capsys.readouterr().err
    assert cli.run(export.main, [*arguments, "--validation", "2", "--test", "3"]) == 0
    assert re.search(r"millimetres: .*float32 \d+\.\d\d, int8", capsys.readouterr().out)


def test_a_difference_is_a_status(monkeypatch):
    rows = [{"scheme": "s", "saved_by": "b", "format": "f", "parity_m": value} for value in (0, 1)]
    monkeypatch.setattr(check_exports, "measure", lambda options: pd.DataFrame(rows))
    assert check_exports.main([]) == 1
    monkeypatch.setattr(check_exports, "measure", lambda options: pd.DataFrame(rows[:1]))
    assert check_exports.main([]) == 0


@pytest.mark.parametrize(
    ("script", "options", "error"),
    [
        (benchmark_exports, ["--rounds", "0"], "`rounds` must be an integer of at least 1"),
        (benchmark_exports, ["--cores", "0"], "`cores` must be an integer of at least 1"),
        (benchmark_exports, ["--budget", "1"], "`budget` must be"),
        (check_exports, ["--budget", "1"], "`budget` must be"),
        (export, ["m.keras", "m.tflite", "--data", "cmu24"], "`--int8` must be given with --data"),
    ],
)
def test_what_is_wrong_is_refused_before_the_work(script, options, error, monkeypatch, capsys):
    if script is not export:
        monkeypatch.setattr(script, "measure", None)
    assert cli.run(script.main, options) == 2
    assert f"error: {error}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmark(tmp_path):
    output = tmp_path / "speed.csv"
    arguments = [*SMALL, "--rounds", "1", "--output", str(output)]
    assert cli.run(benchmark_exports.main, arguments) == 0
    frame = pd.read_csv(output).set_index("runtime")
    assert {"savedmodel", "onnx", "litert int8", "keras tensorflow"} <= set(frame.index)
    assert (frame["p99_ms"] >= frame["median_ms"]).all()

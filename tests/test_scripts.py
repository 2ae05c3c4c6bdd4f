"""The commands as a user runs them, from training to pictures."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys

import cli

import benchmark
import benchmark_exports
import benchmark_worker
import check_exports
import evaluate as evaluate_command
import export as export_command
import keras
import numpy as np
import pandas as pd
import predict as predict_command
import pytest
import serve as serve_command
import train as train_command

from keras_wsgcn import SCHEMES, Skeleton, count_flops, load_model
from keras_wsgcn.data.archive import MotionArchive, save_archive
from keras_wsgcn.data.motions import generate_motions
from keras_wsgcn.errors import InputError
from keras_wsgcn.models import skeleton_of
from keras_wsgcn.recipes import RECIPES, TrainConfig

SMALL = [
    "--data", "generated", "--stride", "60", "--scheme", "post_agg", "--channels", "4",
    "--blocks", "1", "--epochs", "2", "--name", "small",
]  # fmt: skip
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert cli.run(train_command.main, [*SMALL, "--runs", str(folder), "--pictures"]) == 0
    return folder


def test_train_writes_a_run_with_its_recipe_changed(runs):
    record = json.loads((runs / "small" / "config.json").read_text())
    config = TrainConfig.from_config(record["config"])
    assert (config.scheme, config.channels, config.epochs) == ("post_agg", 4, 2)
    assert config.learning_rate == RECIPES["cmu"].learning_rate
    assert record["data"] | {"train_poses": 0, "validation_poses": 0} == {
        "name": "generated", "digest": "", "train_poses": 0, "validation_poses": 0,
        "validation_subjects": [6], "source": "generated", "stride": 60, "noise_px": 0.0,
    }  # fmt: skip
    assert (runs / "small" / "training.png").read_bytes().startswith(PNG)


def test_train_goes_on_where_it_was(runs, capsys):
    assert cli.run(train_command.main, [*SMALL, "--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "epoch   " not in out
    assert "best epoch" in out


def test_evaluate_prints_and_writes_both_protocols(runs, capsys):
    assert cli.run(evaluate_command.main, [str(runs / "small"), "--pictures"]) == 0
    out = capsys.readouterr().out
    for words in ("validation: ", "test: ", "Walking", "p_mpjpe_mm", "average", "pictures in"):
        assert words in out
    table = pd.read_csv(runs / "small" / "metrics.csv")
    test = table[table["split"] == "test"]
    assert set(test["by"]) == {"action", "subject", "all"}
    actions = test[test["by"] == "action"].set_index("group")
    mean = actions.drop("average")["mpjpe_mm"].mean()
    assert actions.loc["average", "mpjpe_mm"] == pytest.approx(mean)
    numbers = test[test["by"] == "all"].set_index("group")["value"]
    assert numbers["action_mean_mpjpe_mm"] == pytest.approx(mean)
    assert (runs / "small" / "poses.png").read_bytes().startswith(PNG)


@pytest.mark.plain
def test_the_last_epoch_has_files_of_its_own(runs, capsys):
    folder = runs / "small"
    (folder / "metrics.csv").write_text("of the best")
    assert cli.run(evaluate_command.main, [str(folder), "--last", "--pictures"]) == 0
    assert "metrics_last.csv" in capsys.readouterr().out
    assert (folder / "metrics.csv").read_text() == "of the best"
    assert set(pd.read_csv(folder / "metrics_last.csv")["split"]) == {"validation", "test"}
    assert (folder / "poses_last.png").read_bytes().startswith(PNG)


def test_evaluate_says_before_its_work_that_matplotlib_is_missing(runs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.run(evaluate_command.main, [str(runs / "small"), "--pictures"]) == 2
    captured = capsys.readouterr()
    assert "error: Pictures need matplotlib" in captured.err
    assert not captured.out


def test_tensorboard_on_request(runs):
    tensorboard = ["--runs", str(runs), "--name", "tb", "--epochs", "1", "--tensorboard"]
    assert cli.run(train_command.main, [*SMALL, *tensorboard]) == 0
    assert list((runs / "tb" / "tensorboard").rglob("events.out*"))


@pytest.mark.plain
@pytest.mark.parametrize("name", ["human36m-gt", "cmu24"])
def test_own_archive_with_subjects_of_its_own(name, runs, tmp_path, capsys):
    """Whatever it is called it is no benchmark."""
    archive = str(tmp_path / f"{name}.npz")
    save_archive(archive, generate_motions(subjects=3, takes=1, seconds=4.0))
    data = ["--data", archive, "--validation", "2", "--test", "3"]
    arguments = [*SMALL, "--runs", str(runs), "--name", name, "--stride", "5", *data]
    assert cli.run(train_command.main, arguments) == 0
    assert cli.run(evaluate_command.main, [str(runs / name)]) == 0
    out = capsys.readouterr().out
    assert "seen_mpjpe_mm" not in out
    assert "Table" not in out


@pytest.mark.plain
def test_an_archive_of_joints_of_its_own(runs, tmp_path, capsys):
    """From an archive of legs to 3D legs; the second training goes on where the first ended."""
    motions = generate_motions(subjects=3, takes=1, seconds=4.0)
    names = ("hips", "RHip", "RKnee", "RFoot", "LHip", "LKnee", "LFoot")
    legs = Skeleton("legs", names, motions.skeleton.parents[:7], centre="RKnee")
    cut = [dataclasses.replace(one, positions=one.positions[:, :7]) for one in motions.motions]
    archive = str(tmp_path / "legs.npz")
    save_archive(archive, MotionArchive(legs, cut))
    data = ["--data", archive, "--validation", "2", "--test", "3", "--stride", "5"]
    arguments = [*SMALL, *data, "--runs", str(runs), "--name", "legs"]
    assert cli.run(train_command.main, arguments) == 2
    assert "`skeleton` must have joints among" in capsys.readouterr().err
    for _ in range(2):
        assert cli.run(train_command.main, [*arguments, "--skeleton", "archive"]) == 0
    assert capsys.readouterr().out.count("epoch   1") == 1
    assert cli.run(evaluate_command.main, [str(runs / "legs")]) == 0
    model = load_model(runs / "legs" / "best.keras", compile=False)
    assert skeleton_of(model) == legs
    pixels = np.random.default_rng(0).uniform(0, 1000, (5, 7, 2))
    np.save(tmp_path / "k.npy", pixels)
    seen = [str(tmp_path / "k.npy"), "--format", "model", "--image-size", "1000", "1000"]
    out = str(tmp_path / "o.npz")
    assert cli.run(predict_command.main, [*seen, "--model", str(runs / "legs"), "-o", out]) == 0
    with np.load(out) as file:
        assert file["pose3d_m"].shape == (1, 5, 7, 3)
        assert tuple(file["joint_names"]) == names


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (train_command, ["--data", "h36m"], "`data` must be one of"),
        (train_command, ["--scheme", "gcn"], "`scheme` must be one of"),
        (train_command, ["--budget", "10"], "`budget` must be at least"),
        (train_command, ["--budget", "1e6", "--channels", "3"], "`budget` and `channels`"),
        (train_command, ["--learning-rate", "-1"], "`learning_rate` must be"),
        (train_command, ["--stride", "0"], "`stride` must be"),
        (train_command, ["--skeleton", "archiv"], "one of ['h36m_16', 'h36m_17', 'archive']."),
        (train_command, ["--study", "table3"], "`--from-trial` must be given with --study"),
        (serve_command, ["--name", "mine"], "`MODEL` must be given with --name"),
        *(
            (export_command, ["m.keras", "m.onnx", option, "1"], "`--data` must be given with")
            for option in ("--stride", "--validation", "--test")
        ),
        (evaluate_command, ["runs/none"], "`run` must be the folder of a run"),
    ],
)
def test_wrong_input_is_one_clear_line(command, arguments, words, tmp_path, capsys):
    runs = ["--runs", str(tmp_path)] if command is train_command else []
    assert cli.run(command.main, [*arguments, *runs]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_divergence_is_one_clear_line(tmp_path, capsys):
    rate = ["--learning-rate", "1e30", "--schedule", "constant", "--clip-norm", "none"]
    assert cli.run(train_command.main, [*SMALL, "--runs", str(tmp_path), *rate]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: The loss is no longer finite at step 2, in epoch 1")
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--epochs", "many"], ["--recipe", "x"], ["--epoch-count"]])
def test_options_that_are_none(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        train_command.main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize("command", [train_command, evaluate_command, benchmark])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--help"])
    assert caught.value.code == 0
    assert len(capsys.readouterr().out) > 300


@pytest.mark.plain
@pytest.mark.parametrize("command", [benchmark, benchmark_exports, check_exports])
def test_backends_are_those_installed(command, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "jax")
    assert command.parse([]).backends == ["jax"]
    assert command.parse(["--backends", "torch", "tensorflow"]).backends == ["torch", "tensorflow"]


def test_help_shows_defaults_and_choices_as_the_recipes_have_them(capsys):
    with pytest.raises(SystemExit):
        train_command.main(["--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for field in dataclasses.fields(TrainConfig):
        default = getattr(RECIPES["cmu"], field.name)
        option = field.name.replace("_", "-")
        assert re.search(rf" --{option}[ ,][^()]*\(default: {re.escape(str(default))}[;)]", text)
    assert "(default: 0.05; ablation 1.0; benchmark 1.0)" in text
    assert "--schedule {cosine,step,constant}" in text
    assert "--affinity {fixed,learned}" in text
    assert "--precision {float32,tf32,mixed_bfloat16,mixed_float16}" in text
    assert "see build_model" not in text


def test_every_setting_is_an_option_with_a_help_text():
    described = cli._described_arguments(TrainConfig)
    assert all(described[name] for name in TrainConfig.__dataclass_fields__)


def test_none_and_booleans_can_be_given():
    options = train_command.parse(["--clip-norm", "none", "--non-local", "--budget", "1e6"])
    assert (options.clip_norm, options.non_local, options.budget) == (None, True, 1e6)
    assert not hasattr(options, "dropout")


PEER = """
import torch
class GCN(torch.nn.Module):
    def __init__(self, adj, hid_dim, gcn_type, num_experts):
        super().__init__()
        assert adj.shape == (16, 16) and abs(adj.sum(1) - 1).max() < 1e-6
        assert (gcn_type, num_experts) == ("preagg", 0)
        self.layer = torch.nn.Linear(2, 3)
    def forward(self, x):
        return self.layer(x)
"""


@pytest.mark.parametrize(
    "also",
    [
        pytest.param(["--train-steps", "2"], id="train"),
        pytest.param(
            ["--jit-compile"],
            id="compiled",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(keras.backend.backend() != "torch", reason="they always do"),
            ],
        ),
    ],
)
def test_the_benchmark_times_backend_limit_and_peer(also, tmp_path, capsys):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "any_gcn.py").write_text(PEER)
    arguments = [
        "--backends", keras.backend.backend(), "--schemes", "pre_agg", "--channels", "4",
        "--batch-sizes", "8", "--rounds", "2", "--steps", "2", "--precision", "mixed_bfloat16",
        "--output", str(tmp_path / "b.csv"), *also,
    ]  # fmt: skip
    with_peer = keras.backend.backend() == "torch"  # as the peer is, whatever runs beside it
    if with_peer:
        arguments += ["--peer", str(tmp_path)]
    assert cli.run(benchmark.main, arguments) == 0
    rows = pd.read_csv(tmp_path / "b.csv").set_index("runs")
    ours = rows.loc[keras.backend.backend()]
    if "torch_compiled" in rows.index:
        compiled = rows.loc["torch_compiled"]
        assert compiled["step_ms"] > 0
        assert compiled["compile_s"] > 2 * ours["compile_s"]
    else:
        assert ours["train_ms"] > 0
    for name in ("step_ms", "fit_ms", "forward_ms", "products_ms", "compile_s"):
        assert ours[name] > 0
    assert ours["peak_mib"] > 10
    assert ours["precision"] == "mixed_bfloat16"
    assert ("peer" in rows.index) == with_peer
    if with_peer:
        assert rows.loc["peer", "precision"] == "float32"
        assert rows.loc["peer", "step_ms"] > 0
    assert "pre_agg" in capsys.readouterr().out


@pytest.mark.plain
def test_a_worker_that_is_killed_is_an_error_of_its_row():
    def worker(ending: str) -> benchmark.Worker:
        made = object.__new__(benchmark.Worker)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        made.process = subprocess.Popen([sys.executable, "-c", ending], **pipes)
        return made

    killed = worker("import os; os.kill(os.getpid(), 9)")
    for _ in range(2):
        assert killed.ask(measure="step") == {
            "error": "killed by signal 9, as where memory runs out"
        }
    killed.close()
    with pytest.raises(InputError, match="`--backends` must be able to run"):
        worker("import no_such_module").ask(measure="step")


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the others always compile")
def test_the_benchmark_refuses_to_compile_what_cannot_be(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert cli.run(benchmark.main, ["--jit-compile"]) == 2
    assert "error: `jit_compile` must be False where there is no C++" in capsys.readouterr().err


@pytest.mark.plain
@pytest.mark.parametrize("option", ["channels", "batch-sizes", "rounds", "steps"])
def test_the_benchmark_refuses_nothing_to_time(option, capsys):
    assert cli.run(benchmark.main, [f"--{option}", "0"]) == 2
    name = option.replace("-", "_")
    assert f"error: `{name}` must be an integer of at least 1" in capsys.readouterr().err


@pytest.mark.plain
def test_the_benchmark_refuses_a_folder_without_the_peer(tmp_path, capsys):
    assert cli.run(benchmark.main, ["--peer", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "error: `peer` must be the folder of a checkout of Any-GCN" in error
    assert f"Received: peer='{tmp_path}'" in error


@pytest.mark.plain
def test_the_peer_s_names_follow_from_the_table():
    names = {name: benchmark_worker.peer_name(scheme) for name, scheme in SCHEMES.items()}
    assert names["full_sharing"] == "vanilla"
    assert names["pre_agg_decoupled"] == "dc_preagg"
    assert names["conv_style"] == "convst"
    assert len(set(names.values())) == 8


@pytest.mark.plain
def test_the_limit_has_the_products_of_the_flop_count():
    """What a forward pass multiplies is what is counted for it, but for the mixing of joints."""
    for scheme in SCHEMES.values():
        flops = sum(
            2 * n * rows * i * o
            for layer in benchmark_worker.product_shapes(scheme, 32, 1)
            for n, rows, i, o in layer
        )
        mixing = count_flops(scheme, 32) - flops
        assert 0 < mixing < 0.7 * flops

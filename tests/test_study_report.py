"""Studies from the shell: run, report, repeat a trial."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import cli

import keras
import numpy as np
import pandas as pd
import pytest
import report_study
import run_study
import train as train_command

from keras_wsgcn.data.archive import save_archive
from keras_wsgcn.data.motions import generate_motions
from keras_wsgcn.studies.report import PAPER_RESULTS, costs, drawings, errors_table, sections
from keras_wsgcn.studies.results import StudyResults, read_nothing
from keras_wsgcn.studies.spec import StudySpec
from keras_wsgcn.studies.storage import read_trial

SPEC = """
title = "Two <small> schemes"
note = "What & why."
paper_table = 3
[data]
source = "generated"
stride = 60
[config]
channels = 4
blocks = 0
epochs = 2
[[grid]]
scheme = ["pre_agg_decoupled", "no_sharing"]
"""


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studied")
    path = folder / "small.toml"
    path.write_text(SPEC)
    arguments = [str(path), "--folder", str(folder)]
    assert cli.run(run_study.main, [*arguments, "--seeds", "0"]) == 0
    return folder


@pytest.mark.plain
def test_the_report_has_tables_pictures_and_a_page(studied, capsys):
    arguments = [str(studied / "small.toml"), "--folder", str(studied), "--seeds", "0", "1"]
    assert cli.run(report_study.main, arguments) == 0
    out = capsys.readouterr().out
    assert "# Two <small> schemes" in out
    assert re.search(r"4 trials: 2 finished, 2 not run\. \d+ seconds of training on", out)
    assert f"python scripts/run_study.py {studied / 'small.toml'}" in out
    assert re.search(r"\| pre_agg_decoupled \| 4 \|.*\| 1 of 2 \|.*\| 37\.8 \| 30\.1 \|", out)
    assert "| 3b | At equal size no-sharing does not have the lowest test error |" in out
    output = studied / "small"
    frame = pd.read_csv(output / "small.csv")
    assert frame["outcome"].tolist() == ["finished"] * 2 + ["not run"] * 2
    assert frame["backend"].tolist()[:2] == [keras.backend.backend()] * 2
    page = (output / "small.html").read_text()
    assert "Two &lt;small&gt; schemes" in page
    assert "What &amp; why." in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is loaded from elsewhere
    assert {p.name for p in output.glob("*.png")} == {"small_errors.png", "small_training.png"}


@pytest.mark.plain
def test_the_report_comes_from_the_csvs_as_well(studied, tmp_path, capsys):
    spec, folder = str(studied / "small.toml"), ["--folder", str(studied)]
    arguments = [spec, *folder, "--no-pictures", "--output", str(tmp_path)]
    assert cli.run(report_study.main, arguments) == 0
    first = capsys.readouterr().out
    assert f"    {shlex.join(['python', 'scripts/run_study.py', spec, *folder])}\n" in first
    assert cli.run(report_study.main, [*arguments, "--csv", str(tmp_path)]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.plain
def test_a_report_of_other_settings_says_so(studied, tmp_path, capsys):
    arguments = [str(studied / "small.toml"), "--folder", str(studied), "--no-pictures"]
    arguments += ["--output", str(tmp_path)]
    assert cli.run(report_study.main, arguments) == 0
    assert "note:" not in capsys.readouterr().err
    assert cli.run(report_study.main, [*arguments, "--channels", "5"]) == 0
    assert "small.toml was trained with channels 4 instead of 5" in capsys.readouterr().err


@pytest.mark.plain
def test_the_command_that_a_report_names_has_no_password_and_one_spec():
    words = ["./a.toml", "--csv", "x", "--storage=postgresql://me:secret@host/db", "--name", "b"]
    command = report_study.command_of(Path("a.toml"), report_study.parse(words), words)
    wanted = "a.toml '--storage=postgresql://me:***@host/db' --name b"
    assert command == f"python scripts/run_study.py {wanted}"


def test_a_trial_is_repeated_exactly(studied, tmp_path, capsys):
    storage = studied / "small" / "study.sqlite3"
    arguments = ["--from-trial", str(storage), "1", "--runs", str(tmp_path), "--name", "again"]
    assert cli.run(train_command.main, arguments) == 0
    (original,) = studied.glob("trials/*no_sharing*/last.keras")
    first, second = (
        keras.models.load_model(path, compile=False).get_weights()
        for path in (original, tmp_path / "again" / "last.keras")
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert "note:" not in capsys.readouterr().err


@pytest.mark.plain
def test_a_trial_is_repeated_where_its_archive_lies_now(tmp_path, capsys):
    first, moved, spec = (tmp_path / name for name in ("motions.npz", "moved.npz", "own.toml"))
    save_archive(first, generate_motions(subjects=3, takes=1, seconds=4.0))
    data = f"source = '{first}'\nstride = 5\nvalidation = [2]\ntest = [3]"
    spec.write_text(SPEC.replace('source = "generated"\nstride = 60', data))
    assert cli.run(run_study.main, [str(spec), "--folder", str(tmp_path), "--epochs", "1"]) == 0
    first.rename(moved)
    storage = str(tmp_path / "own" / "study.sqlite3")
    again = ["--from-trial", storage, "0", "--runs", str(tmp_path), "--name", "again"]
    assert cli.run(train_command.main, again) == 2
    assert str(first) in capsys.readouterr().err
    assert cli.run(train_command.main, [*again, "--data", str(moved)]) == 0
    record = json.loads((tmp_path / "again" / "config.json").read_text())
    assert record["data"]["source"] == str(moved)
    errors = pd.read_csv(tmp_path / "again" / "history.csv")["val_mpjpe_mm"]
    trial = read_trial(storage, 0)
    assert errors.min() == pytest.approx(trial.value, rel=1e-6)
    save_archive(moved, generate_motions(subjects=3, takes=1, seconds=4.0, seed=1))
    capsys.readouterr()
    assert cli.run(train_command.main, [*again, "--data", str(moved)]) == 2
    error = capsys.readouterr().err
    assert "`data` must be what the run was trained on, {'digest': " in error
    assert cli.run(train_command.main, [*again, "--data", "generated"]) == 2


@pytest.mark.plain
@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (train_command, ["--from-trial", "{storage}", "0", "--data", "x"], "must be left out"),
        (train_command, ["--from-trial", "{storage}", "7"], "`number` must be one of [0, 1]"),
        (train_command, ["--from-trial", "{storage}", "x"], "must end in a trial's number"),
        (train_command, ["--from-trial", "{storage}", "²"], "must end in a trial's number"),
        (train_command, ["--from-trial", "none.db", "0"], "`storage` must be a SQLite file"),
        (train_command, ["--from-trial", "{storage}", "0", "--epochs", "3"], "without other"),
        (train_command, ["--from-trial", "{storage}", "0", "--stride", "9"], "without other"),
        (train_command, ["--from-trial", "{storage}", "0", "--recipe", "cmu"], "without other"),
        (run_study, ["none.toml"], "`spec` must be a TOML file"),
        (run_study, ["{spec}", "--epochs", "3", "--folder", "{folder}"], "differs in"),
        (run_study, ["studies/table2.toml", "--budget", "1e5"], "`budget` must be left out"),
        (run_study, ["studies/tradeoff.toml", "--dropout", "0.4"], "`dropout` must be left out"),
        (
            run_study,
            ["studies/cmu24_fair_comparison.toml", "--data", "generated"],
            "`data` must be left out: 'cmu24_fair_tuning', which tunes",
        ),
        (run_study, ["{spec}", "--workers", "0", "--folder", "{folder}"], "`workers` must be"),
        (run_study, ["{spec}", "--storage", "nonsense://x"], "`storage` must be"),
        (report_study, ["{spec}", "--name", "other", "--folder", "{folder}"], "run_study.py"),
        (report_study, ["{spec}", "--csv", "{folder}/none"], "`results` must have the file"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_clear_line(command, arguments, words, studied, capsys):
    places = {
        "storage": studied / "small" / "study.sqlite3",
        "spec": studied / "small.toml",
        "folder": studied,
    }
    assert cli.run(command.main, [text.format(**places) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.plain
@pytest.mark.parametrize("command", [run_study, report_study])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "--storage" in out
    assert "--learning-rate" in out


# --- tables of made-up results ------------------------------------------------------------------


def made_up(errors, **changes):
    """Results whose test errors are given by scheme and seed."""
    table = {
        "name": "made_up",
        "data": {"source": "generated"},
        "config": {"channels": 128},
        "grid": [{"scheme": list(errors)}],
        "seeds": list(range(len(next(iter(errors.values()))))),
    }
    spec = StudySpec.from_config(json.loads(json.dumps(table)) | changes)
    results = read_nothing(spec)
    runs = results.runs.copy()
    runs["trial"] = range(len(runs))
    flat = [errors[row.scheme][row.seed] for row in runs.itertuples()]
    runs["outcome"] = ["not run" if value is None else "finished" for value in flat]
    for name in ("test_mpjpe_mm", "test_p_mpjpe_mm", "val_mpjpe_mm", "train_mpjpe_mm"):
        runs[name] = flat
    runs = runs.assign(train_loss_m2=1e-3, train_seconds=60.0, backend="jax", device="cpu:0")
    runs = runs.assign(machine="two cores", commit="abc")
    subjects = pd.DataFrame(
        [
            {"study": "made_up", "trial": row.trial, "split": "test", "subject": s, "poses": 1}
            | {"mpjpe_mm": value + s, "p_mpjpe_mm": value}
            for row, value in zip(runs.itertuples(), flat, strict=True)
            if value is not None
            for s in range(6)
        ]
    )
    return spec, StudyResults(runs, subjects, results.epochs, results.importances)


def test_errors_are_means_and_deviations_over_seeds():
    spec, results = made_up({"pre_agg": [50.0, 52.0], "no_sharing": [60.0, None]})
    table = errors_table(spec, results).set_index("scheme")
    assert table.loc["pre_agg", "test"] == "51.0 ± 1.4"
    assert table.loc["no_sharing", "test"] == "60.0"
    assert table["seeds"].tolist() == ["2 of 2", "1 of 2"]
    assert "paper: test" not in table


def test_errors_on_human36m_are_means_over_actions():
    spec, results = made_up({"pre_agg": [50.0]})
    runs = results.runs.assign(test_action_mean_mpjpe_mm=40.0, test_action_mean_p_mpjpe_mm=30.0)
    assert errors_table(spec, replace(results, runs=runs))["test"].tolist() == ["50.0"]
    results = replace(results, runs=runs.assign(keypoints="gt"))
    table = errors_table(spec, results)
    assert table[["test", "protocol 2"]].to_numpy().tolist() == [["40.0", "30.0"]]
    assert "means over actions of their" in sections(spec, results, "x")[1].text
    _, drawing = drawings(spec, results)["errors"]
    assert drawing.args[0]["test_mpjpe_mm"].tolist() == [40.0]


def test_the_papers_numbers_stand_beside_the_same_model():
    schemes = {"full_sharing_decoupled": [1.0], "conv_style": [1.0]}
    grid = [{"scheme": list(schemes), "budget": [4.2e6, 1.05e6]}]
    spec, results = made_up(schemes, paper_table=4, grid=grid, config={})
    table = errors_table(spec, results)
    paper = pd.read_csv(PAPER_RESULTS).query("table == 4")
    for row in table.itertuples():
        millions = min((4.2, 1.05), key=lambda size: abs(size - row.parameters / 1e6))
        wanted = paper[(paper["scheme"] == row.scheme) & (paper["params_millions"] == millions)]
        shown = table.loc[row.Index, "paper: test"]
        assert shown == f"{wanted['mpjpe_mm'].iloc[0]:.1f}"


def test_conclusions_are_drawn_from_the_errors():
    better = {"pre_agg": [70.0] * 5, "pre_agg_decoupled": [50.0, 50.2, 50.1, 49.9, 50.0]}
    spec, results = made_up(better)
    titles = {part.title: part for part in sections(spec, results, "command")}
    claims = titles["The paper's conclusions on this data"].table.set_index("claim")
    assert claims.loc["1a", "verdict"] == "holds among the schemes run"
    worse = dict(zip(better, reversed(better.values()), strict=True))
    spec, results = made_up(worse)
    titles = {part.title: part for part in sections(spec, results, "command")}
    claims = titles["The paper's conclusions on this data"].table.set_index("claim")
    assert claims.loc["1a", "verdict"] == "does not hold"


def test_a_tuned_study_says_where_its_settings_were_tuned():
    schemes = ["pre_agg_decoupled", "no_sharing"]
    table = {"name": "tune", "data": {"source": "generated", "stride": 12}, "recipe": "quickstart"}
    table |= {"config": {"budget": 1.05e6, "epochs": 3}, "grid": [{"scheme": schemes}]}
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2}, "dropout": {"low": 0.0, "high": 0.5}}
    tune = {**table, "search": {"trials": 2, "space": space}}

    def said(**changes):
        spec = StudySpec.from_config({**table, "name": "fair", "tuned_by": tune, **changes})
        parts = {part.title: part.text for part in sections(spec, read_nothing(spec), "command")}
        return parts["Where the settings were tuned"]

    found = "learning_rate, dropout: of each scheme the best that `tune` found, at "
    there = found + "1.05 M parameters, epochs 3, stride 12."
    assert said() == there
    wide = [{"scheme": schemes, "budget": [1.05e6, 2.1e6]}]
    assert said(grid=wide, config={"epochs": 3}) == (
        there + " Here: pre_agg_decoupled budget=2.1e+06 at 2.09 M parameters, no_sharing "
        "budget=2.1e+06 at 2.09 M parameters; others may be the best there."
    )
    otherwise = {"config": {"forward_mflop": 2.44, "epochs": 8}, "data": {"source": "generated"}}
    assert said(**otherwise) == (
        there + " Here: no_sharing at 0.896 M parameters, epochs 8, stride 1; others may be the "
        "best there."
    )
    tune |= {"config": {"channels": 8, "epochs": 20}}
    tune["search"] = {"trials": 2, "space": {"channels": {"low": 4, "high": 8}}}
    assert said(config={"epochs": 20}) == (
        "channels: of each scheme the best that `tune` found, at epochs 20, stride 12."
    )
    tune["search"]["space"] = space
    assert "0.0179 to 0.0256 M parameters, epochs" in said()


def test_what_the_schemes_cost():
    """Table 1 at 128 channels: kernels of method.md, products counted by hand."""
    spec = StudySpec.from_config(
        {"name": "t", "data": {"source": "generated"}, "grid": [{"scheme": "all"}], "seeds": []}
    )
    table = costs(spec).set_index("scheme")
    assert table["kernels"].tolist() == [1, 2, 16, 32, 16, 32, 3, 46]
    assert table.loc["pre_agg", "products C²"] == 16
    assert table.loc["no_sharing", "products C²"] == 46
    assert table.loc["pre_agg_decoupled", "model parameters"] == 4_218_243
    assert set(table["paper's complexity"]) == {"46 C²"}
    (part,) = sections(spec, read_nothing(spec), "command")
    assert part.title == "What the schemes cost"

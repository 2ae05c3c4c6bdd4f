"""The README's examples run, and its tables are those of the code and the results."""

import re
from pathlib import Path

import cli

import numpy as np
import pytest
import update_readme
from mocap_files import JOINTS, bvh_text

from keras_wsgcn import serving
from keras_wsgcn.data.archive import load_archive
from keras_wsgcn.serving.client import Client
from keras_wsgcn.studies import load_spec

README = Path(__file__).parent.parent / "README.md"


class Server:
    """In place of one; `test_serving.py` has the clients and the stand-in."""

    joints = staticmethod(lambda: 16)
    predict = staticmethod(lambda inputs: np.ones((*inputs["pixels"].shape[:2], 3), np.float32))


def test_every_python_example_runs(tmp_path, monkeypatch):
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(examples) >= 4
    monkeypatch.chdir(tmp_path)
    centimetres = {
        name: (above, [5 * x for x in offset]) for name, (above, offset) in JOINTS.items()
    }
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "08_01.bvh").write_text(bvh_text(*[{}] * 161, joints=centimetres))
    monkeypatch.setattr(serving, "connect", lambda server, name: Client(Server()))
    names = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    assert (tmp_path / "runs" / "readme" / "model.keras").exists()
    assert [motion.key for motion in load_archive("from_bvh.npz").motions] == ["S008/Unknown/08_01"]
    assert names["model"].input_shape == (None, 4, 2)
    assert names["pose3d"].shape == (2, 16, 3)


@pytest.mark.plain
def test_every_spec_is_one(tmp_path):
    specs = re.findall(r"```toml\n(# (\S+)\n.*?)```", README.read_text(), flags=re.DOTALL)
    for text, name in specs:
        (tmp_path / name).write_text(text, encoding="utf-8")
    read = {name: load_spec(tmp_path / name) for _, name in specs}
    assert read["mine.toml"].search.trials == 40
    assert read["fair.toml"].tuned_by == read["tune.toml"]


def test_tables_are_up_to_date():
    assert cli.run(update_readme.main, ["--check"]) == 0


def test_check_notices_an_old_table(monkeypatch, capsys):
    monkeypatch.setitem(update_readme.BLOCKS, "schemes", lambda: "| another |")
    assert cli.run(update_readme.main, ["--check"]) == 2
    assert "must be up to date" in capsys.readouterr().err


@pytest.mark.plain
def test_results_of_one_size_stand_together():
    rows = [line.split(" | ") for line in update_readme.results_table().splitlines()[2:]]
    sizes, errors = ([float(row[column].strip("| M")) for row in rows] for column in (0, 4))
    alike = [size for size in sizes if size > 1]
    assert sizes[: len(alike)] == alike
    assert errors[: len(alike)] == sorted(errors[: len(alike)])
    assert len(rows) == 8


def test_commands_named_in_the_readme_exist():
    scripts = re.findall(r"python (scripts/\w+\.py)", README.read_text())
    assert len(scripts) >= 4
    for script in scripts:
        assert (README.parent / script).is_file()

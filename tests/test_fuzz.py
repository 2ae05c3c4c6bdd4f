"""Rubbish for every public entry: accepted and right, or refused in the library's own words.

The table of readers is in `fuzz_readers.py`. The slow run gives each 10,000 inputs, or as many as
`KERAS_WSGCN_FUZZ` says, in a process of its own, whose memory is its own too.
"""

import json
import os
import signal
import sys

import fuzzing
import pytest
from fuzz_guard import MAX_GROWTH, SECONDS, guarded, run
from fuzz_readers import READERS
from testing import ROOT, run_python

from keras_wsgcn import InputError, load_model
from keras_wsgcn.data.archive import load_archive
from keras_wsgcn.data.human36m import read_archives
from keras_wsgcn.data.keypoint_files import read_keypoints
from keras_wsgcn.data.mocap import read_asf_amc, read_bvh
from keras_wsgcn.data.mocap_folders import read_labels
from keras_wsgcn.evaluation import read_run
from keras_wsgcn.studies.spec import load_spec
from keras_wsgcn.studies.storage import read_trial

COUNT = int(os.environ.get("KERAS_WSGCN_FUZZ", "10000"))
PLAIN = pytest.mark.plain
CODE = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from fuzz_guard import main
main(*sys.argv[2:])
"""


def rows(quick):
    return [
        pytest.param(reader, marks=[PLAIN] * reader.is_plain, id=reader.name)
        for reader in READERS.values()
        if reader.quick or not quick
    ]


@pytest.mark.parametrize("reader", rows(quick=True))
def test_rubbish_is_read_right_or_refused(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzing, "BOMB_RATE", 0.0)  # they take their time
    tally = run(reader, reader.quick, tmp_path, seed=1)
    assert not tally.leaks, "\n".join(tally.leaks.values())
    assert tally.accepted + tally.refused == reader.quick
    assert tally.refused


DOORS = {
    "a.npz": load_archive, "k.json": lambda path: read_keypoints(path, "coco17"),
    "k.npy": lambda path: read_keypoints(path, "coco17"), "s.toml": load_spec,
    "k.npz": lambda path: read_keypoints(path, "coco17"), "1_1.bvh": read_bvh,
    "1_1.amc": lambda path: read_asf_amc(path, path), "l.csv": read_labels,
    "data_3d_h36m.npz": lambda path: read_archives(path.parent), "m.keras": load_model,
    "config.json": lambda path: read_run(path.parent),
    "s.sqlite3": lambda path: read_trial(path, 0),
}  # fmt: skip


@PLAIN
@pytest.mark.parametrize("kind", ["pipe", "folder", "missing", "zero byte", "empty", "loop"])
@pytest.mark.parametrize("name", DOORS)
def test_what_is_no_such_file_is_refused_at_once(name, kind, tmp_path):
    path = tmp_path / name
    if kind == "pipe":  # nobody ever writes to it
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "zero byte":
        path = tmp_path / f"\0{name}"
    elif kind == "empty":
        path.touch()
    elif kind == "loop":
        path.symlink_to(path)
    with guarded(tmp_path) as watch:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        with pytest.raises(InputError, match=r"(?s)`.*Received"):
            DOORS[name](path)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert not watch.seen


BOMB = """
import resource, sys
sys.path[:0] = sys.argv[1].split(":")
import fuzz_files, fuzzing
from pathlib import Path
from keras_wsgcn import InputError
name, descr, rows = sys.argv[2], sys.argv[3], int(sys.argv[4])
folder, seeds = Path(sys.argv[5]), {"a.npz": fuzz_files.archives, "k.npz": fuzz_files.keypoint_npz}
members = list(fuzzing.unzip(seeds[name](folder)[0][name]).items())
width = 3 if name == "a.npz" else 2
size = rows * 17 * width * int(descr[-1])
content = fuzzing.with_zeros(members, 0, descr, f"({rows}, 17, {width})", size)
(folder / name).write_bytes(content)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = {"a.npz": fuzz_files.load_archive, "k.npz": fuzz_files.read_keypoints}[name]
try:
    read(folder / name, *["coco17"] * (name == "k.npz"))
except InputError as error:
    print(error)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@PLAIN
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "descr", "rows"),
    [
        ("a.npz", "<f4", 2_600_000), ("a.npz", "<f8", 1_300_000), ("a.npz", "<f2", 5_000_000),
        ("k.npz", "<f8", 490_000), ("k.npz", "<u1", 490_000), ("k.npz", "<u1", 9_000_000),
    ],
)  # fmt: skip
def test_bombs_that_fit_their_header_stay_below_a_gibibyte(name, descr, rows, tmp_path):
    folders = ":".join(str(ROOT / name) for name in ("tests", "scripts"))
    printed = run_python(BOMB, folders, name, descr, str(rows), str(tmp_path), backend="torch")
    assert int(printed.splitlines()[-1]) < MAX_GROWTH


@pytest.mark.slow
@pytest.mark.parametrize("reader", rows(quick=False))
def test_ten_thousand_inputs_a_reader(reader):
    import keras

    folders = ":".join(str(ROOT / name) for name in ("tests", "scripts"))
    printed = run_python(
        CODE, folders, reader.name, str(COUNT), backend=keras.backend.backend(), limit=3600
    )
    tally = json.loads(printed.splitlines()[-1])
    sys.stdout.write(f"{ {k: v for k, v in tally.items() if k != 'leaks'} }\n")
    assert not tally["leaks"], "\n".join(tally["leaks"].values())
    assert tally["accepted"] + tally["refused"] == COUNT
    assert tally["growth_bytes"] < MAX_GROWTH
    assert tally["slowest_s"] < SECONDS

"""Rubbish for every public entry: accepted and right, or refused in the library's own words.

The table of readers is in `fuzz_readers.py`. The slow run gives each 10,000 inputs, or as many as
`KERAS_WSGCN_FUZZ` says, in a process of its own, whose memory is its own too.
"""

import json
import os
import sys

import fuzzing
import pytest
from fuzz_guard import MAX_GROWTH, SECONDS, run
from fuzz_readers import READERS
from testing import ROOT, run_python

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

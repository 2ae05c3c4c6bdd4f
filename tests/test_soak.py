"""Two hundred short trials, one after another, take no more memory than the first ones did."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest
from testing import ROOT

TRIALS = int(os.environ.get("KERAS_WSGCN_SOAK", "200"))
SPEC = """
recipe = "quickstart"
seeds = {seeds}
[data]
source = "generated"
stride = 120
[config]
channels = 8
blocks = 1
epochs = 2
dropout = 0.1
[[grid]]
scheme = ["pre_agg"]
"""
ALLOWED_MIB = 64


def resident_mib(pid: int) -> float:
    """The memory of a process and of those that it started, as far as it is in use."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    kib = 0  # a page that two of them share, as after a fork, counts once
    for member in family:
        try:
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        kib += int(re.search(r"^Pss: +(\d+)", rollup, flags=re.MULTILINE)[1])
    return kib / 2**10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads /proc")
def test_memory_stays_flat(tmp_path):
    spec, out = tmp_path / "soak.toml", tmp_path / "out"
    spec.write_text(SPEC.format(seeds=list(range(TRIALS))))
    with open(out, "w") as stdout:
        process = subprocess.Popen(
            [sys.executable, "scripts/run_study.py", str(spec), "--folder", str(tmp_path / "runs")],
            cwd=ROOT, stdout=stdout, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    peaks: dict[int, float] = {}  # by tens of settled trials
    while process.poll() is None:
        settled = len(re.findall(r"^soak.*\[\d+/", out.read_text(), flags=re.MULTILINE))
        peaks[settled // 10] = max(peaks.get(settled // 10, 0.0), resident_mib(process.pid))
        time.sleep(0.2)
    assert process.returncode == 0
    assert settled == TRIALS
    print(f"\n{keras.backend.backend()}: { ({10 * n: round(p) for n, p in peaks.items()}) } MiB")
    early = max(peak for tens, peak in peaks.items() if tens < 4)
    late = max(peak for tens, peak in peaks.items() if tens >= 4)
    assert late < early + ALLOWED_MIB

"""Writes the generated tables of README.md: the schemes, from their one table, and the results.

With --check it writes nothing, and fails where README.md is out of date.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from cli import markdown, run

from keras_wsgcn.budget import count_flops, count_params, solve_channels
from keras_wsgcn.errors import InputError
from keras_wsgcn.files import write_text
from keras_wsgcn.schemes import SCHEMES, SPLITS
from keras_wsgcn.skeletons import h36m_16

ROOT = Path(__file__).parent.parent
BUDGETS = (4.2e6, 2.1e6, 1.05e6)
RESULTS = ROOT / "studies" / "results" / "cmu24_recipe.csv"
STEPS = ROOT / "studies" / "results" / "training_step.csv"


def schemes_table() -> str:
    rows = []
    for scheme in SCHEMES.values():
        channels = [solve_channels(scheme, budget) for budget in BUDGETS]
        rows.append(
            [
                f"`{scheme.name}`",
                " / ".join(SPLITS[scheme.split][0]),
                scheme.per,
                scheme.num_kernels(h36m_16),
                f"{count_params(scheme, 128):,}",
                f"{count_flops(scheme, 128) / 1e6:.1f}",
                *channels,
                scheme.equation,
            ]
        )
    columns = ["scheme", "split", "per", "kernels", "parameters at 128", "MFLOP at 128"]
    columns += [f"channels at {budget / 1e6:g} M" for budget in BUDGETS]
    return markdown([*columns, "paper"], rows)


def results_table() -> str:
    frame = pd.read_csv(RESULTS).sort_values("test_subject_mean_mpjpe_mm")
    columns = {
        "test": "test_subject_mean_mpjpe_mm",
        "protocol 2": "test_subject_mean_p_mpjpe_mm",
        "frame mean": "test_frame_mean_mpjpe_mm",
        "seen": "test_seen_mpjpe_mm",
        "unseen": "test_unseen_mpjpe_mm",
        "validation": "validation_subject_mean_mpjpe_mm",
        "training": "train_mpjpe_mm",
    }
    rows = [
        [
            f"`{row['scheme']}`", row["channels"], f"{row['params'] / 1e6:.2f} M",
            row["kernel_gain"], *(f"{row[column]:.1f}" for column in columns.values()),
        ]
        for _, row in frame.iterrows()
    ]  # fmt: skip
    return markdown(["scheme", "channels", "parameters", "gain", *columns], rows)


def steps_table() -> str:
    frame = pd.read_csv(STEPS)
    table = frame.pivot_table("train_ms", ["scheme", "channels"], "backend", sort=False)
    rows = [
        [f"`{scheme}`", channels, *(f"{value:.1f}" for value in row)]
        for (scheme, channels), row in zip(table.index, table.to_numpy(), strict=True)
    ]
    return markdown(["scheme", "channels", *table.columns], rows)


BLOCKS = {"schemes": schemes_table, "results": results_table, "steps": steps_table}


def updated(text: str) -> str:
    for name, table in BLOCKS.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        if not re.search(pattern, text, flags=re.DOTALL):
            raise InputError(f"`README.md` must have a block {name!r}. Received: none")
        text = re.sub(pattern, rf"\g<1>{table()}\n\g<2>", text, flags=re.DOTALL)
    return text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    options = parser.parse_args(argv)
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    new = updated(text)
    if options.check and new != text:
        raise InputError(
            "`README.md` must be up to date: run scripts/update_readme.py. Received: old tables"
        )
    if not options.check:
        write_text(path, new)


if __name__ == "__main__":
    sys.exit(run(main))

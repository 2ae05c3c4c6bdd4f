"""Gathers evaluated runs into two CSVs: one row a run, and one row a run and group.

The second, beside the first and ending in _groups.csv, has the errors by action and by subject.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import run

import pandas as pd

from keras_wsgcn.errors import InputError
from keras_wsgcn.evaluation import read_run
from keras_wsgcn.files import write_text
from keras_wsgcn.saving import read_metadata


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of evaluated runs")
    parser.add_argument("--output", type=Path, required=True, help="CSV to write")
    return parser.parse_args(argv)


def read_row(folder: Path) -> tuple[dict, pd.DataFrame]:
    """The row of a run, and its errors by group."""
    if not (folder / "metrics.csv").is_file():
        raise InputError(
            "`runs` must be folders that evaluate.py has written metrics.csv into. "
            f"Received: {str(folder)!r}"
        )
    record = read_run(folder)
    best, last = (read_metadata(folder / f"{epoch}.keras") for epoch in ("best", "last"))
    try:
        return _row(folder, record, best, last["training"]["history"])
    # What is missing or of another kind in files of any origin; pandas raises ValueErrors.
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"`runs` must be folders of evaluated runs; {folder} has a config.json, a model or a "
            f"metrics.csv that lacks something or has it otherwise ({type(error).__name__}: "
            f"{error}). Received: {str(folder)!r}"
        ) from None


def _row(folder: Path, record: dict, metadata: dict, history: list) -> tuple[dict, pd.DataFrame]:
    environment = record["environment"]
    row = {
        "run": folder.name,
        "data": record["data"]["name"],
        "stride": record["data"].get("stride", 1),
        "scheme": metadata["scheme"],
        "channels": metadata["channels"],
        "params": metadata["params"],
        **{name: record["config"][name] for name in ("kernel_gain", "epochs", "seed")},
        "best_epoch": len(metadata["training"]["history"]),
        "train_mpjpe_mm": history[-1]["mpjpe_mm"],
        "train_seconds": sum(epoch["seconds"] for epoch in history),
        **{name: environment[name] for name in ("backend", "device", "keras", "machine")},
    }
    table = pd.read_csv(folder / "metrics.csv")
    for split, part in table[table["by"] == "all"].groupby("split", sort=False):
        row |= {f"{split}_{name}": v for name, v in part.set_index("group")["value"].items()}
    groups = table[table["by"] != "all"].drop(columns="value")
    groups.insert(0, "run", folder.name)
    return row, groups


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    rows, groups = zip(*(read_row(folder) for folder in options.runs), strict=True)
    beside = options.output.with_name(f"{options.output.stem}_groups.csv")
    for path, frame in ((options.output, pd.DataFrame(rows)), (beside, pd.concat(groups))):
        write_text(path, frame.to_csv(index=False, float_format="%.6g"))
        print(path)


if __name__ == "__main__":
    sys.exit(run(main))

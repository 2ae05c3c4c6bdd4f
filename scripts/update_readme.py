"""Writes the generated tables of README.md, and studies/README.md, from the CSVs of results.

With --check it writes nothing, and fails where one of them is out of date.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cli import run

import benchmark
import numpy as np
import pandas as pd

from keras_wsgcn import markdown
from keras_wsgcn.budget import count_flops, count_params, solve_channels
from keras_wsgcn.errors import InputError
from keras_wsgcn.files import write_text
from keras_wsgcn.schemes import SCHEMES, SPLITS
from keras_wsgcn.skeletons import h36m_16
from keras_wsgcn.studies.report import as_markdown, pictures, sections
from keras_wsgcn.studies.results import read_nothing, read_results
from keras_wsgcn.studies.spec import load_spec
from keras_wsgcn.studies.storage import OUTCOMES

ROOT = Path(__file__).parent.parent
BUDGETS = (4.2e6, 2.1e6, 1.05e6)
STUDIES = ROOT / "studies"
RESULTS = STUDIES / "results" / "cmu24_recipe.csv"
STEPS = STUDIES / "results" / "training_speed.csv"
STEPS_AMD = STUDIES / "results" / "training_speed_amd.csv"
README_BATCH = 256  # of the rows that the README shows
PARITY = STUDIES / "results" / "export_parity.csv"
EXPORT_SPEED = STUDIES / "results" / "export_speed.csv"


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
    return markdown.table([*columns, "paper"], rows)


def results_table() -> str:
    frame = pd.read_csv(RESULTS)
    sizes = np.log2(frame["params"]).round()  # those within a factor of 1.4 stand together
    frame = frame.assign(size=-sizes).sort_values(["size", "test_subject_mean_mpjpe_mm"])
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
            f"{row['params'] / 1e6:.2f} M", f"`{row['scheme']}`", row["channels"],
            row["kernel_gain"], *(f"{row[column]:.1f}" for column in columns.values()),
        ]
        for _, row in frame.iterrows()
    ]  # fmt: skip
    return markdown.table(["parameters", "scheme", "channels", "gain", *columns], rows)


def steps_table(path: Path) -> str:
    frame = pd.read_csv(path)
    frame = frame[frame["batch"] == README_BATCH]
    table = benchmark.table(frame).reset_index().drop(columns="batch")
    ratios = ("share of their rate", "peer / best", "peer / slowest")
    rows = [
        [f"`{row['scheme']}`", row["channels"]]
        + [
            "-" if pd.isna(row[name]) else f"{row[name]:.{2 if name in ratios else 1}f}"
            for name in table.columns[2:]
        ]
        for _, row in table.iterrows()
    ]
    return markdown.table(list(table.columns), rows)


def parity_table() -> str:
    frame = pd.read_csv(PARITY)
    table = frame.pivot_table("parity_m", "scheme", "format", aggfunc="max", sort=False) * 1e6
    rows = [
        [f"`{scheme}`", *(f"{value:.1f}" for value in row)]
        for scheme, row in zip(table.index, table.to_numpy(), strict=True)
    ]
    return markdown.table(["scheme", *table.columns], rows)


def exports_table() -> str:
    frame = pd.read_csv(EXPORT_SPEED)
    rows = [
        [row["runtime"], f"{row['median_ms']:.2f}", f"{row['p99_ms']:.2f}"]
        + [f"{row[f'poses_per_s_at_{poses}']:,}" for poses in (1, 64, 1024)]
        for _, row in frame.iterrows()
    ]
    columns = ["runtime", "one pose, median ms", "99th percentile ms"]
    columns += [f"poses/s at {poses}" for poses in (1, 64, 1024)]
    return markdown.table(columns, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "schemes": schemes_table,
    "results": results_table,
    "steps": partial(steps_table, STEPS),
    "steps-amd": partial(steps_table, STEPS_AMD),
    "parity": parity_table,
    "exports": exports_table,
}


def updated(text: str) -> str:
    for name, table in BLOCKS.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        if not re.search(pattern, text, flags=re.DOTALL):
            raise InputError(f"`README.md` must have a block {name!r}. Received: none")
        text = re.sub(pattern, rf"\g<1>{table()}\n\g<2>", text, flags=re.DOTALL)
    return text


def studies_page() -> str:
    """studies/README.md: what came out of each study, and what has not been run."""
    specs = [load_spec(path) for path in sorted(STUDIES.glob("*.toml"))]
    rows, chapters = [], []
    for spec in specs:
        has_run = (STUDIES / "results" / f"{spec.name}.csv").is_file()
        results = read_results(STUDIES / "results", spec.name) if has_run else read_nothing(spec)
        command = f"python scripts/run_study.py studies/{spec.name}.toml"
        total, done = len(results.runs), int(results.runs["outcome"].isin(OUTCOMES).sum())
        link = f"[{spec.name}](#{spec.name})" if has_run or not spec.seeds else f"`{spec.name}`"
        state = f"{done} of {total}" if spec.seeds else "not trained"
        missing = f"`{command}`" if done < total else ""
        rows.append([link, spec.title, spec.data["source"], state, missing])
        if has_run or not spec.seeds:
            parts = sections(spec, results, command)
            parts += [
                p
                for p in pictures(spec, results, STUDIES / "results")
                if p.picture and p.picture.exists()
            ]
            body = as_markdown(parts, level=3, pictures="results/")
            title = spec.title + "." * (not spec.title.endswith("?"))
            chapters.append(f"## {spec.name}\n\n**{title}** {spec.note.strip()}\n\n{body}")
    introduction = (STUDIES / "introduction.md").read_text(encoding="utf-8").strip()
    table = markdown.table(["study", "", "data", "trials run", "what runs the rest"], rows)
    return "\n\n".join([introduction, table, *chapters]) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    options = parser.parse_args(argv)
    readme = ROOT / "README.md"
    pages = {
        readme: updated(readme.read_text(encoding="utf-8")),
        STUDIES / "README.md": studies_page(),
    }
    for path, new in pages.items():
        if not options.check:
            write_text(path, new)
        elif not path.exists() or path.read_text(encoding="utf-8") != new:
            raise InputError(
                f"`{path.name}` must be up to date: run scripts/update_readme.py. "
                f"Received: old tables in {path}"
            )


if __name__ == "__main__":
    sys.exit(run(main))

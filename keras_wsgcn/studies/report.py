"""Reports: what came out of a study, as sections for Markdown and for a page of HTML.

Every number comes from the tables of `results.py`; the paper's stand beside them.
"""

import base64
import functools
import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from keras_wsgcn import markdown, schemes, skeletons
from keras_wsgcn.files import write_text
from keras_wsgcn.studies import figures
from keras_wsgcn.studies.claims import SAME_SIZE, SIZES, check_claims, is_repeated, summarise_claims
from keras_wsgcn.studies.results import SETTINGS, StudyResults
from keras_wsgcn.studies.spec import StudySpec, solve

# Tables 2 to 7 of the paper.
PAPER_RESULTS = Path(__file__).parents[1] / "paper_results.csv"


@dataclass(frozen=True)
class Section:
    """A part of a report: a title, and below it text, a table or a picture."""

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    picture: Path | None = None


def sections(spec: StudySpec, results: StudyResults, command: str) -> list[Section]:
    """The parts of a study's report that need no pictures.

    Args:
        spec: the study.
        results: its tables.
        command: what runs it.

    Returns:
        The sections, those without content left out.
    """
    if not spec.seeds:
        return [Section("What the schemes cost", table=costs(spec))]
    parts = [Section("", text=f"{_status(results.runs)}\n\n    {command}")]
    if spec.tuned_by:
        parts.append(Section("Where the settings were tuned", text=tuning(spec, spec.tuned_by)))
    if spec.search:
        parts.append(Section("The best of each search", table=best_trials(spec, results)))
        if len(spec.search.objectives) > 1:
            front = front_trials(spec, results)
            parts.append(Section("The Pareto front over all schemes", table=front))
        parts.append(Section("What mattered", text=_IMPORTANCE, table=importance_table(results)))
    else:
        means = "over actions" if _has_action_means(results) else "over test subjects"
        text = _ERRORS.format(means=means)
        parts.append(Section("Errors", text=text, table=errors_table(spec, results)))
        parts += _conclusions(spec, results)
    return [part for part in parts if part.text or (part.table is not None and len(part.table))]


def _conclusions(spec: StudySpec, results: StudyResults) -> list[Section]:
    size, title = _size_of(spec), "The paper's conclusions on this data"
    if is_repeated(results.runs, size=size):
        return [Section(title, text=_NO_CLAIMS)]
    comparisons = check_claims(results.runs, results.subjects, size=size)
    return [
        Section(title, text=_CLAIMS, table=summarise_claims(comparisons)),
        Section("Comparisons behind them", table=_comparisons(comparisons)),
    ]


_ERRORS = (
    "Millimetres; test errors are means {means} of their frame means, of the epoch with "
    "the lowest validation error. Mean and standard deviation over seeds. `training` is the mean "
    "over the last epoch's steps."
)
_CLAIMS = (
    "A replicate is a test subject and a seed. Differences have 95 % intervals from a bootstrap "
    "over subjects and seeds, p-values are Holm-corrected within a claim; with fewer than five "
    "seeds a comparison is decided only where its interval excludes ±1 mm. A conclusion is judged "
    "by the schemes that this study has run; the verdict says so where others might change it. "
    "Intervals from few subjects come out too narrow, a "
    "little so with eight, and one seed says nothing about others."
)
_NO_CLAIMS = (
    "Not checked: they compare schemes and sizes, and this study varies other settings of one "
    "scheme at one size."
)
_IMPORTANCE = (
    "Share that each parameter has in reaching the best trials by validation error (PED-ANOVA, "
    "Watanabe et al., 2023)."
)


def _has_action_means(results: StudyResults) -> bool:
    """Whether test errors are averaged as the paper's, on Human3.6M: over its actions."""
    keypoints = results.runs.get("keypoints")
    return keypoints is not None and bool(keypoints.fillna("").astype(bool).any())


def _size_of(spec: StudySpec) -> str:
    """In what the sizes of a study's models are given."""
    by_flops = any("forward_mflop" in table for table in (spec.config, *spec.grid))
    return "forward_mflop" if by_flops else "params"


def _status(runs: pd.DataFrame) -> str:
    counts = runs["outcome"].value_counts()
    words = [f"{number} {str(name).replace('_', ' ')}" for name, number in counts.items()]
    text = f"{len(runs)} trials: {', '.join(words)}."
    done = runs[runs["outcome"] == "finished"]
    if len(done):
        seconds = done["train_seconds"].sum()
        spent = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
        spent = f"{seconds / 3600:.1f} hours" if seconds > 5400 else spent
        places = sorted(set(zip(done["backend"], done["device"], done["machine"], strict=True)))
        commits = ", ".join(sorted({str(c) for c in done["commit"] if str(c) not in ("", "nan")}))
        text += f" {spent} of training on {'; '.join(', '.join(map(str, p)) for p in places)}"
        text += f" (commit {commits})." if commits else "."
    return text


def tuning(spec: StudySpec, by: StudySpec) -> str:
    """At which size, and how long, the settings were tuned that a study takes over from another.

    And where it uses them at a size that is more than 10 % another, or otherwise long.
    """
    assert by.search is not None
    space, size = by.search.space, _size_of(by)
    scale, unit = SIZES[size]
    unit = {"M": "M parameters"}.get(unit, unit)
    then, now = ([solve(cell.config)[size] / scale for cell in one.cells] for one in (by, spec))
    of_scheme = dict(zip((cell.config.scheme for cell in by.cells), then, strict=True))
    low, high = min(then), max(then)
    tuned = [f"{low:.3g} {unit}" if high <= SAME_SIZE * low else f"{low:.3g} to {high:.3g} {unit}"]
    used = [
        f"{cell.label or schemes.get(cell.config.scheme).name} at {here:.3g} {unit}"
        for cell, here in zip(spec.cells, now, strict=True)
        if max(here, there := of_scheme[cell.config.scheme]) > SAME_SIZE * min(here, there)
    ]
    if any(name in space for name in ("budget", "channels")):  # the size is among what was tuned
        tuned, used = [], []

    def lengths(one: StudySpec) -> dict[str, str]:
        epochs = sorted({cell.config.epochs for cell in one.cells})
        return {"epochs": ", ".join(map(str, epochs)), "stride": str(one.data.get("stride", 1))}

    for (name, there), here in zip(lengths(by).items(), lengths(spec).values(), strict=True):
        if name not in space:
            tuned.append(f"{name} {there}")
            used += [f"{name} {here}"] if here != there else []
    text = f"{', '.join(space)}: of each scheme the best that `{by.name}` found, at "
    text += f"{', '.join(tuned)}."
    return text + f" Here: {', '.join(used)}; others may be the best there." * bool(used)


def costs(spec: StudySpec) -> pd.DataFrame:
    """Table 1 of the paper for the cells of a study: kernels, parameters and operations.

    The paper charges a graph convolution of every scheme one product of `C x C` for each edge and
    self-loop. Ours counts what the layer does, in the cheaper order.
    """
    rows = []
    for cell in spec.cells:
        config = cell.config
        scheme, skeleton = schemes.get(config.scheme), skeletons.get(config.skeleton)
        size = solve(config)
        c = size["channels"]
        contraction = scheme.contraction(skeleton, c, c)
        rows.append(
            {
                "scheme": scheme.name,
                "paper": scheme.equation,
                "channels": c,
                "kernels": scheme.num_kernels(skeleton),
                "layer parameters": scheme.num_kernels(skeleton) * c * c,
                "paper's complexity": f"{len(skeleton.edges)} C²",
                "products C²": contraction.num_products,
                "order": contraction.order,
                "layer MFLOP": round(contraction.flops(c, c) / 1e6, 3),
                "model parameters": size["params"],
                "model MFLOP": size["forward_mflop"],
            }
        )
    return pd.DataFrame(rows)


def errors_table(spec: StudySpec, results: StudyResults) -> pd.DataFrame:
    """One row a cell: its errors over seeds, and the paper's."""
    rows, mean = [], "action_mean_" if _has_action_means(results) else ""
    tuned = ["learning_rate", "kernel_gain", "weight_decay"] if spec.tuned_by else []
    begun = results.runs[results.runs["trial"].notna()]
    known = begun.reindex(columns=[n for n in SETTINGS if n not in (*tuned, "budget", "seed")])
    tuned += [str(name) for name, count in known.nunique(dropna=False).items() if count > 1]
    for _, runs in results.runs.groupby("cell", sort=False):
        done = runs[runs["outcome"] == "finished"]
        first = (done if len(done) else runs).iloc[0]
        row = {name: first[name] for name in ("scheme", "channels", "params", "forward_mflop")}
        row |= {name: first.get(name) for name in tuned}
        row["seeds"] = f"{len(done)} of {len(runs)}"
        for name, column in (
            ("test", f"test_{mean}mpjpe_mm"),
            ("protocol 2", f"test_{mean}p_mpjpe_mm"),
            ("validation", "val_mpjpe_mm"),
            ("training", "train_mpjpe_mm"),
        ):
            row[name] = _mean_and_spread(done[column]) if column in done else "not run"
        losses = done["train_loss_m2"] if "train_loss_m2" in done else pd.Series(dtype=float)
        row["training loss, m²"] = f"{losses.mean():.2e}" if len(losses) else "not run"
        rows.append(row | _paper_row(spec.paper_table, first))
    frame = pd.DataFrame(rows)
    return frame.rename(columns={"params": "parameters", "forward_mflop": "MFLOP"})


def _mean_and_spread(values: pd.Series) -> str:
    if not len(values):
        return "not run"
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread}"


def _paper_row(table: int | None, run: pd.Series) -> dict[str, str]:
    """The paper's errors for a run's scheme, of Table 4 also for its size."""
    if table is None:
        return {}
    paper = pd.read_csv(PAPER_RESULTS)
    rows = paper[(paper["table"] == table) & (paper["scheme"] == run["scheme"])]
    if table == 4:
        rows = rows[(1e6 * rows["params_millions"] / run["params"] - 1).abs() < SAME_SIZE - 1]
    columns = {"mpjpe_mm": "paper: test", "p_mpjpe_mm": "paper: protocol 2"}
    found = {}
    for column, name in columns.items():
        value = rows[column].iloc[0] if len(rows) else math.nan
        found[name] = "" if pd.isna(value) else f"{value:.1f}"
    return found


def best_trials(spec: StudySpec, results: StudyResults) -> pd.DataFrame:
    """The trial with the lowest validation error of each search."""
    rows = []
    for name, runs in results.runs.groupby("study", sort=False):
        done = runs[runs["outcome"] == "finished"]
        row: dict[str, Any] = {"study": name, "finished": f"{len(done)} of {len(runs)}"}
        if len(done):
            row |= _trial_row(spec, done.sort_values("val_mpjpe_mm").iloc[0])
        rows.append(row)
    return pd.DataFrame(rows)


def front_trials(spec: StudySpec, results: StudyResults) -> pd.DataFrame:
    """The trials that no other beats in every objective, over all searches of the study."""
    done = results.finished.reset_index(drop=True)
    assert spec.search is not None
    if not len(done):
        return done
    on_front = figures.pareto_front(done, list(spec.search.objectives))
    front = done[on_front].sort_values(spec.search.objectives[-1])
    return pd.DataFrame([_trial_row(spec, row) for _, row in front.iterrows()])


def _trial_row(spec: StudySpec, run: pd.Series) -> dict[str, Any]:
    assert spec.search is not None
    names = ["scheme", "channels", "params", *spec.search.space, *spec.search.objectives]
    names += [name for name in ("front_latency_ms",) if name in run and not pd.isna(run[name])]
    return {"trial": run["trial"], **{n: run[n] for n in dict.fromkeys(names) if n in run}}


def importance_table(results: StudyResults) -> pd.DataFrame:
    """One row a search, one column a parameter."""
    if not len(results.importances):
        return pd.DataFrame()
    table = results.importances.pivot_table("importance", "study", "parameter", sort=False)
    return table.round(2).reset_index().rename_axis(columns=None)


def _comparisons(table: pd.DataFrame) -> pd.DataFrame:
    if not len(table):
        return table
    shown = table[["claim", "comparison"]].copy()
    shown["difference, mm"] = table["difference_mm"].map("{:+.1f}".format)
    bounds = table[["low_mm", "high_mm"]].itertuples(index=False)
    shown["95 % interval"] = [
        "none" if math.isnan(low) else f"{low:+.1f} to {high:+.1f}" for low, high in bounds
    ]
    shown["p (Holm)"] = table["p_holm"].map(lambda p: "" if math.isnan(p) else f"{p:.2g}")
    return shown.assign(seeds=table["seeds"], subjects=table["subjects"], verdict=table["verdict"])


def drawings(spec: StudySpec, results: StudyResults) -> dict[str, tuple[str, Callable]]:
    """What there is to draw of a study: for the end of each file's name, a title and how."""
    if not spec.seeds:
        chosen = [cell.config.scheme for cell in spec.cells]
        skeleton = spec.cells[0].config.skeleton
        return {
            "schemes": (
                "Which edges share a kernel",
                lambda path: figures.draw_schemes(path, schemes=chosen, skeleton=skeleton),
            )
        }
    runs = results.runs
    if not len(results.finished):
        return {}
    if not spec.search:
        if _has_action_means(results):
            runs = runs.assign(test_mpjpe_mm=runs["test_action_mean_mpjpe_mm"])
        return {
            "errors": (
                "Test error against parameters",
                functools.partial(figures.plot_error_against_params, runs),
            ),
            "training": (
                "Training, as in the paper's Figure 6",
                lambda path: figures.plot_training_losses(runs, results.epochs, path),
            ),
        }
    searched = [name for name in spec.search.space if name != "scheme"] or ["scheme"]
    found: dict[str, tuple[str, Callable]] = {
        f"front_{cost}": (
            f"Validation error against {cost}",
            functools.partial(figures.plot_pareto, runs, cost=cost),
        )
        for cost in spec.search.objectives
        if cost != "val_mpjpe_mm"
    }
    found["search"] = (
        "What was tried",
        lambda path: figures.plot_search(runs, path, parameters=searched),
    )
    if len(results.importances):
        found["importances"] = (
            "Importance of each parameter",
            lambda path: figures.plot_importances(results.importances, path),
        )
    return found


def draw(spec: StudySpec, results: StudyResults, folder: Path) -> list[Section]:
    """Draws what there is to draw, as `NAME_*.png`; needs matplotlib.

    Returns:
        A section for each picture.
    """
    parts = pictures(spec, results, folder)
    for part, (_, drawing) in zip(parts, drawings(spec, results).values(), strict=True):
        drawing(part.picture)
    return parts


def pictures(spec: StudySpec, results: StudyResults, folder: Path) -> list[Section]:
    """A section for each picture that `draw` writes into a folder."""
    return [
        Section(title, picture=folder / f"{spec.name}_{suffix}.png")
        for suffix, (title, _) in drawings(spec, results).items()
    ]


# --- Markdown and HTML --------------------------------------------------------------------------


def as_markdown(parts: Sequence[Section], level: int = 2, pictures: str = "") -> str:
    """Sections as Markdown; pictures are named relative to `pictures`."""
    blocks = []
    for part in parts:
        blocks += [f"{'#' * level} {part.title}"] if part.title else []
        blocks += [part.text] if part.text else []
        if part.table is not None and len(part.table):
            rows = part.table.map(_shown).to_numpy().tolist()
            blocks.append(markdown.table(part.table.columns, rows))
        if part.picture:
            blocks.append(f"![{part.title}]({pictures}{part.picture.name})")
    return "\n\n".join(blocks)


def _shown(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; font-size: 13px }}
th, td {{ border: 1px solid #ccc; padding: .25rem .6rem; text-align: left }}
img {{ max-width: 100% }} pre {{ background: #f4f4f4; padding: .6rem; overflow-x: auto }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def write_page(title: str, note: str, parts: Sequence[Section], path: Path) -> None:
    """Writes sections as one page of HTML that holds its pictures."""
    blocks = [f"<p>{html.escape(note.strip())}</p>"]
    for part in parts:
        blocks += [f"<h2>{html.escape(part.title)}</h2>"] if part.title else []
        for paragraph in filter(None, part.text.split("\n\n")):
            tag = "pre" if paragraph.startswith("    ") else "p"
            blocks.append(f"<{tag}>{html.escape(paragraph.strip())}</{tag}>")
        if part.table is not None and len(part.table):
            blocks.append(part.table.map(_shown).to_html(index=False, border=0))
        if part.picture:
            data = base64.b64encode(part.picture.read_bytes()).decode()
            alt = html.escape(part.title)
            blocks.append(f'<img alt="{alt}" src="data:image/png;base64,{data}">')
    write_text(path, _PAGE.format(title=html.escape(title), body="\n".join(blocks)))

"""Pictures of a study; a scheme has the same colour and marker in all of them.

The tables are those of `results.py`, also as read back from CSV. A run counts if it is finished and
its numbers are finite. An `InputError` says where an argument is wrong or leaves nothing to draw.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_wsgcn import skeletons
from keras_wsgcn.errors import InputError
from keras_wsgcn.plots import checked_path, new_figure, shortened, write
from keras_wsgcn.schemes import PER, SCHEMES, SPLITS, Scheme
from keras_wsgcn.schemes import get as get_scheme
from keras_wsgcn.skeletons import Skeleton
from keras_wsgcn.studies.claims import SAME_SIZE

_WIDTH = 10.0  # inches
_VALIDATION = "val_mpjpe_mm"
_LABELS = {
    "params": "trainable parameters", "forward_mflop": "MFLOP to lift one pose",
    "latency_ms": "milliseconds to lift one pose", "loss_m2": "training loss in m²",
    "val_mpjpe_mm": "validation MPJPE in mm", "test_mpjpe_mm": "test MPJPE in mm",
}  # fmt: skip
_DISTINCT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]  # Okabe and Ito
_LOOKS = dict(zip(("graph", "source", "target", "edge", "depth"), zip(_DISTINCT, "o^sDP")))  # noqa: B905
_OWN_LOOKS = [(c, marker) for marker in "<>ph*" for c in ("#56b4e9", "#882255", "#777777")]
_DOTS = {"linestyle": "none"}


def scheme_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each scheme is drawn, as arguments of a line for matplotlib, in the order of legends."""
    names, styles = set(names), {}
    for scheme in SCHEMES.values():
        shares = scheme.split == "whole" and scheme.per != "edge"  # kernels with self-loops
        look = _LOOKS["depth" if scheme.split == "depth" else scheme.per]
        styles[scheme.name] = _style(*look, hollow=shares)
    for name in sorted(names - set(SCHEMES)):  # a user's own: by the name, as far as it is free
        start = zlib.crc32(name.encode()) % len(_OWN_LOOKS)
        own = [_style(*look) for look in _OWN_LOOKS[start:] + _OWN_LOOKS[:start]]
        styles[name] = next((style for style in own if style not in styles.values()), own[0])
    return {name: style for name, style in styles.items() if name in names}


def _style(colour: str, marker: str, hollow: bool = False) -> dict[str, Any]:
    face, dashes = ("white", (0, (4, 1.5))) if hollow else (colour, "-")
    look = {"color": colour, "marker": marker, "mfc": face, "linestyle": dashes}
    return look | {"lw": 1.4, "mew": 1.4}


# --- which edges share a kernel -----------------------------------------------------------------


def edge_kernels(scheme: str | Scheme, skeleton: str | Skeleton) -> np.ndarray:
    """The kernel of each edge, `(edges,)`, counted through all parts of the neighbourhood."""
    scheme, skeleton = get_scheme(scheme), skeletons.get(skeleton)
    target, source = skeleton.edges.T
    part = SPLITS[scheme.split][1](skeleton, target, source)
    kernels_of_a_part, kernel = PER[scheme.per]
    return part * kernels_of_a_part(skeleton) + kernel(target, source)


# From linear RGB to Oklab, where distances are as large as they look (B. Ottosson, 2020).
_TO_CONES = np.array([[0.412, 0.212, 0.088], [0.536, 0.681, 0.282], [0.051, 0.107, 0.630]])
_TO_LAB = np.array([[0.210, 1.978, 0.026], [0.794, -2.429, 0.783], [-0.004, 0.451, -0.809]])


def edge_colours(scheme: str | Scheme, skeleton: str | Skeleton) -> list[str]:
    """The colour of each edge: the same for two edges if and only if they share a kernel."""
    skeleton = skeletons.get(skeleton)
    used, kernel = np.unique(edge_kernels(scheme, skeleton), return_inverse=True)
    if len(used) <= len(_DISTINCT):
        return [_DISTINCT[k] for k in kernel]
    at_joint = np.zeros((len(used), skeleton.num_joints), dtype=int)
    at_joint[kernel[:, None], skeleton.edges] = 1
    weight = np.where(at_joint @ at_joint.T > 0, 1, 2)  # kernels that meet differ twice as much
    rgb = np.array(list(np.ndindex(18, 18, 18))) * 15
    lab = np.cbrt((rgb / 255) ** 2.2 @ _TO_CONES) @ _TO_LAB
    strong = (lab[:, 0] > 0.4) & (lab[:, 0] < 0.82) & (np.hypot(lab[:, 1], lab[:, 2]) > 0.07)
    rgb, lab = rgb[strong], lab[strong]  # on white
    nearest = np.full((len(used), len(rgb)), np.inf)  # weighted distance to the colours chosen
    chosen: list[int] = []
    for k in range(len(used)):
        chosen.append(int(nearest[k].argmax()))
        distance = np.linalg.norm(lab - lab[chosen[-1]], axis=1)
        nearest = np.minimum(nearest, weight[k][:, None] * distance)
    return ["#{:02x}{:02x}{:02x}".format(*rgb[chosen[k]]) for k in kernel]


# Someone who stands and faces the viewer. The left side is the mirror of the right one.
_STANDING = {
    "pelvis": (0, 0), "spine": (0, 0.95), "thorax": (0, 1.9), "neck_nose": (0, 2.5),
    "head": (0, 3.1), "r_hip": (-0.72, -0.3), "r_knee": (-0.82, -1.35), "r_ankle": (-0.92, -2.4),
    "r_shoulder": (-0.85, 1.75), "r_elbow": (-1.3, 0.85), "r_wrist": (-1.6, -0.1),
}  # fmt: skip


def joint_positions(skeleton: Skeleton) -> np.ndarray:
    """Where to draw each joint, `(joints, 2)`: a standing figure, or else the graph spread out."""
    known = _STANDING | {n.replace("r_", "l_"): (-x, y) for n, (x, y) in _STANDING.items() if x}
    if set(skeleton.joint_names) <= set(known):
        return np.array([known[name] for name in skeleton.joint_names])
    count = skeleton.num_joints
    steps = np.full((count, count), float(count))  # lengths of the shortest paths
    steps[tuple(skeleton.edges.T)] = 1
    for via in range(count):
        steps = np.minimum(steps, steps[:, via, None] + steps[via])
    np.fill_diagonal(steps, np.inf)
    # Stress majorisation from a circle: distances become like path lengths. x + iy is a place.
    place = np.exp(2j * np.pi * np.arange(count) / count)
    inverse = np.linalg.pinv(np.diag((steps**-2).sum(axis=1)) - steps**-2)
    for _ in range(300):
        ratio = 1 / steps / np.maximum(np.abs(place[:, None] - place), 1e-9)
        place = inverse @ (np.diag(ratio.sum(axis=1)) - ratio) @ place
    place *= 1j * np.exp(-1j * np.angle(place[skeleton.root] - place.mean()))  # the root to the top
    return np.stack([place.real, place.imag], axis=1)


def draw_schemes(
    path: str | PathLike, *, skeleton: Skeleton | str = "h36m_16", schemes: Iterable | None = None
) -> None:
    """Draws a skeleton once for each scheme, edges and self-loops coloured by their kernels.

    Args:
        path: the PNG file to be written.
        skeleton: a skeleton or its name.
        schemes: schemes or their names; by default all of the library.
    """
    path, skeleton = checked_path(path), skeletons.get(skeleton)
    chosen = list(dict.fromkeys(map(get_scheme, SCHEMES if schemes is None else schemes)))
    if not chosen:
        raise InputError(f"`schemes` must hold at least one scheme. Received: schemes={schemes}")
    place = joint_positions(skeleton)
    width, height = np.ptp(place, axis=0) + 0.8
    tall = float(np.clip(height / width, 0.7, 1.6)) * _WIDTH / 4 + 0.6
    columns = min(4, len(chosen))
    figure, grid = _panels(len(chosen), columns, tall, width=max(columns, 2) * _WIDTH / 4)
    for axes, scheme in zip(grid, chosen, strict=False):
        _draw_scheme(axes, scheme, skeleton, place)
    about = "Arrows lead from source to target; rings are self-loops."
    figure.supxlabel(f"Within a picture, one colour is one kernel.\n{about}", fontsize=9)
    write(figure, path)


def _draw_scheme(axes: Any, scheme: Scheme, skeleton: Skeleton, place: np.ndarray) -> None:
    from matplotlib.patches import FancyArrowPatch

    axes.set(xticks=[], yticks=[], frame_on=False, aspect="equal", adjustable="datalim")
    axes.margins(0.12)
    bones = {frozenset(bone) for bone in skeleton.bones}
    lengths = np.linalg.norm(np.subtract(*place[skeleton.edges.T]), axis=1)
    # All is drawn smaller where neighbours stand closer than 35 points.
    unit = 72 * _WIDTH / 4 / (np.ptp(place[:, 0]) + 0.8)
    size = min(1.0, unit * float(np.median(lengths[lengths > 0])) / 35)
    edges = zip(skeleton.edges.tolist(), lengths, edge_colours(scheme, skeleton), strict=True)
    for edge, length, colour in edges:
        target, source = place[edge]
        if edge[0] == edge[1]:
            axes.plot(*target, "o", color=colour, mfc="white", ms=10 * size, mew=3.2 * size)
            axes.plot(*target, "o", color="#333333", ms=3.2 * size)
            continue
        # Both directions bow to their right, and so apart. Joints may stand in a longer one's way.
        bow = 0.09 if frozenset(edge) in bones else 0.09 + 0.1 * length
        arrow = FancyArrowPatch(
            source, target, arrowstyle="-|>,head_length=3.6,head_width=2.1", color=colour,
            connectionstyle=f"arc3,rad={2 * bow / length}", mutation_scale=1.3 * size,
            shrinkA=7.5 * size, shrinkB=7.5 * size, linewidth=2.2 * size, capstyle="butt",
        )  # fmt: skip
        axes.add_patch(arrow)
    kernels, used = scheme.num_kernels(skeleton), len(set(edge_kernels(scheme, skeleton)))
    name = shortened(", ".join(filter(None, [scheme.name, scheme.equation])), 36)
    count = f"{kernels} kernel{'s' * (kernels > 1)}" + f" ({used} used)" * (used < kernels)
    parts = " / ".join(scheme.parts) * (len(scheme.parts) > 1)
    axes.set_title(f"{name}\n{count}, per {scheme.per}\n{parts}", fontsize=9, parse_math=False)


# --- charts of runs -----------------------------------------------------------------------------


def plot_error_against_params(
    runs: pd.DataFrame, path: str | PathLike, *, error: str = "test_mpjpe_mm"
) -> None:
    """Draws the error of each scheme against its parameters, or side by side at equal ones.

    Args:
        runs: one row a run. Those of the same scheme and parameters (and `study` and `cell`, if
            given) are seeds of one setting: a marker at their mean, a bar over their range.
        path: the PNG file to be written.
        error: the column of the error in millimetres.
    """
    path, found = checked_path(path), _finished(runs, ["params", error])
    by = {"scheme": ("scheme", "first"), "params": ("params", "first"), error: (error, "mean")}
    cells = found.groupby("setting").agg(**by, low=(error, "min"), high=(error, "max"))
    cells, styles, x = cells.sort_values("params"), scheme_styles(cells["scheme"]), "params"
    figure, (axes,) = _panels(1, 1, 5.0)
    if cells["params"].max() > SAME_SIZE * cells["params"].min():
        _use_log_axis(axes, "x", cells["params"])
    else:
        x = "scheme, and its trainable parameters"
        cells[x] = cells["scheme"].map(list(styles).index)
        sizes = cells.groupby(x)["params"].mean().map(_short)
        texts = [f"{shortened(n, 24)}\n{size}" for n, size in zip(styles, sizes, strict=True)]
        axes.set_xticks(range(len(texts)), texts, fontsize=8)
        axes.set_xlim(-0.5, len(texts) - 0.5)
    colours = [styles[name]["color"] for name in cells["scheme"]]
    axes.vlines(cells[x], cells["low"], cells["high"], colours)
    _draw(axes, cells, x, error, **(_DOTS if x != "params" else {}))
    if (cells["high"] > cells["low"]).any():
        axes.set_ylabel(f"{axes.get_ylabel()}, mean and range of the seeds")
    (_write if x == "params" else write)(figure, path)


def pareto_front(runs: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Which rows no other row beats, `(rows,)`: none is as good everywhere and somewhere better.

    Args:
        runs: the rows.
        columns: what to minimise. Equal rows are on the front together; rows without a finite
            number in every column never are.
    """
    if isinstance(columns, str) or not columns or not set(columns) <= set(runs):
        raise InputError(f"`columns` must be some of {list(runs)}. Received: columns={columns!r}")
    values = np.stack([_numbers(runs[column]).to_numpy() for column in columns], axis=1)
    front = np.isfinite(values).all(axis=1)
    for row in np.flatnonzero(front):  # what is compared with NaN is false
        as_good, better = values <= values[row], values < values[row]
        front[row] = not (as_good.all(axis=1) & better.any(axis=1)).any()
    return front


def plot_pareto(
    runs: pd.DataFrame, path: str | PathLike, *, cost: str = "params", error: str = _VALIDATION
) -> None:
    """Draws the trials of a search, cost against error, and the front of each scheme and of all.

    Args:
        runs: one row a trial.
        cost: the column of the cost: `"params"`, `"forward_mflop"` or `"latency_ms"`.
        error: the column of the error in millimetres.
    """
    path, found = checked_path(path), _finished(runs, [cost, error]).sort_values(cost)
    figure, (axes,) = _panels(1, 1, 5.6)
    of_all = found[pareto_front(found, [cost, error])]
    broad = {"color": "#cccccc", "linewidth": 7, "solid_capstyle": "round", "label": "front of all"}
    axes.plot(of_all[cost], of_all[error], **broad, drawstyle="steps-post")
    _draw(axes, found, cost, error, **_DOTS, alpha=0.4)
    fronts = [own[pareto_front(own, [cost, error])] for _, own in found.groupby("scheme")]
    _draw(axes, pd.concat(fronts), cost, error, drawstyle="steps-post")
    _use_log_axis(axes, "x", found[cost])
    _use_log_axis(axes, "y", found[error], least=3)
    _write(figure, path)


def plot_search(runs: pd.DataFrame, path: str | PathLike, *, parameters: Sequence[str]) -> None:
    """Draws what a search tried: each parameter against the validation error.

    Args:
        runs: one row a trial. The pruned and the diverged are grey crosses, at the top where their
            error is missing or larger than all others.
        parameters: the columns of the parameters; those without values are left out.
    """
    path, found = checked_path(path), _finished(runs, [_VALIDATION])
    names = [name for name in parameters if name in found and found[name].notna().any()]
    if not names:
        raise InputError(f"`parameters` must have values. Received: parameters={parameters!r}")
    top, lost = found[_VALIDATION].max(), runs[runs["outcome"].isin(["pruned", "diverged"])]
    lost_mm = _numbers(lost[_VALIDATION]).fillna(top).clip(upper=top)
    figure, grid = _panels(len(names), min(3, len(names)), 3.4, sharey=True)
    label = "pruned or diverged" if len(lost) else ""
    for axes, name in zip(grid, names, strict=False):
        tried = pd.concat([found[name], lost[name]], ignore_index=True)
        if (values := _numbers(tried)).isna().all():  # words
            codes, choices = pd.factorize(tried, sort=True)
            axes.set_xticks(range(len(choices)), choices, rotation=35, ha="right")
            values = pd.Series(codes).where(codes >= 0)
        else:
            _use_log_axis(axes, "x", values, least=10)
        axes.plot(values[len(found) :], lost_mm, "x", color="#999999", label=label)
        trials = found.assign(x=values[: len(found)].to_numpy())
        _draw(axes, trials, "x", _VALIDATION, **_DOTS, alpha=0.7)
        axes.set_xlabel(name)
        _use_log_axis(axes, "y", found[_VALIDATION], least=3)
    _write(figure, path)


def plot_training_losses(runs: pd.DataFrame, epochs: pd.DataFrame, path: str | PathLike) -> None:
    """Draws training loss and validation MPJPE over the epochs, as the paper's Figure 6.

    Args:
        runs: one row a run. Seeds, as in `plot_error_against_params`, are thin lines around their
            mean. Where a scheme has several sizes, each has a row of panels.
        epochs: one row a run and epoch: `study`, `trial`, `epoch`, `loss_m2`, `val_mpjpe_mm`.
    """
    keys, columns = ["study", "trial"], ["loss_m2", _VALIDATION]
    path, found = checked_path(path), _finished(runs, ["params"], keys)
    epochs = _rows("epochs", epochs, keys, ["epoch", *columns])
    sizes = found["params"].sort_values()
    found["size"] = (sizes > SAME_SIZE * sizes.shift()).cumsum()
    if found.groupby("scheme")["size"].nunique().max() == 1:
        found["size"] = 0  # as in the paper, whatever the size
    found = found[[*keys, "scheme", "params", "size", "setting"]]
    curves = _rows("epochs", epochs.merge(found, on=keys), keys, columns)
    rows, styles = sorted(set(curves["size"]), reverse=True), scheme_styles(curves["scheme"])
    figure, grid = _panels(2 * len(rows), 2, 3.6)
    for number, axes in enumerate(grid):
        own, column = curves[curves["size"] == rows[number // 2]], columns[number % 2]
        for (_, scheme), seeds in own.groupby(["setting", "scheme"]):
            mean = seeds.groupby("epoch")[column].mean().reset_index()
            _draw(axes, mean.assign(scheme=scheme), "epoch", column, markevery=0.15)
            thin = {"color": styles[scheme]["color"], "linewidth": 0.6, "alpha": 0.4}
            for _, seed in seeds.groupby(keys):
                axes.plot(seed["epoch"], seed[column], **thin)
        _use_log_axis(axes, "y", curves[column], least=2.5)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set_title(f"{_short(own['params'].mean())} parameters" * (len(rows) > 1), fontsize=10)
    _write(figure, path)


def plot_importances(importances: pd.DataFrame, path: str | PathLike) -> None:
    """Draws how much each searched parameter mattered, a panel for each study.

    Args:
        importances: one row a study and parameter: `study`, `parameter`, `importance` (0 to 1).
    """
    path = checked_path(path)
    found = _rows("importances", importances, ["study", "parameter"], ["importance"])
    table = found.pivot_table("importance", "parameter", "study", sort=False)
    table = table.loc[table.mean(axis=1).sort_values().index]
    tall, count = 0.8 + 0.3 * len(table), len(table.columns)
    figure, grid = _panels(count, min(3, count), tall, sharey=True)
    for axes, (study, values) in zip(grid, table.items(), strict=False):
        bars = axes.barh(table.index, values, color=_DISTINCT[0], height=0.7)
        axes.bar_label(bars, ["" if np.isnan(v) else f"{v:.2f}" for v in values], padding=3)
        axes.set(xlim=(0, 1.15), xticks=(0, 0.5, 1), xlabel="importance")
        axes.set_title(shortened(str(study), 44), fontsize=9, parse_math=False)
    write(figure, path)


def _finished(runs: pd.DataFrame, columns: list[str], keys: Sequence[str] = ()) -> pd.DataFrame:
    """The finished runs that have finite numbers in the columns; the seeds of a `setting`."""
    found = _rows("runs", runs, ["outcome", "scheme", *keys], columns)
    settings = [name for name in ("study", "cell", "scheme", "params") if name in runs]
    return found.assign(setting=found.groupby(settings, dropna=False).ngroup())


def _rows(name: str, table: pd.DataFrame, words: list[str], numbers: list[str]) -> pd.DataFrame:
    """The rows without a gap in these columns, the numbers as floats; only finished runs."""
    wanted, given = [*words, *numbers], list(getattr(table, "columns", ()))
    if not set(wanted) <= set(given):
        raise InputError(f"`{name}` must be a table with {wanted}. Received: columns={given}")
    found = table.assign(**{c: _numbers(table[c]) for c in numbers}).dropna(subset=wanted)
    if "outcome" in words:
        found = found[found["outcome"] == "finished"]
    if found.empty:
        wanted_rows = f"rows of finished runs with finite numbers in {numbers}"
        raise InputError(f"`{name}` must hold {wanted_rows}. Received: {name}={table.shape}")
    return found


def _numbers(values: pd.Series) -> pd.Series:
    """A column as floats, NaN where there is no finite number."""
    numbers = pd.to_numeric(values, errors="coerce").astype("Float64").astype(float)
    return numbers.where(np.isfinite(numbers))


def _panels(count: int, columns: int, height: float, width: float = _WIDTH, **shared) -> tuple:
    """A figure with so many panels, each of this height in inches, and the panels in a row."""
    rows = math.ceil(count / columns)
    figure = new_figure(width, rows * height + 0.6)
    figure.set_layout_engine("constrained", h_pad=0.14)
    grid = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for number, axes in enumerate(grid):
        axes.set(visible=number < count, axisbelow=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _draw(axes: Any, rows: pd.DataFrame, x: str, y: str, **look: Any) -> None:
    for name, style in scheme_styles(rows["scheme"]).items():
        own = rows[rows["scheme"] == name]
        axes.plot(own[x], own[y], **style | look, label=name)
    axes.set(xlabel=_LABELS.get(x, x), ylabel=_LABELS.get(y, y))


def _write(figure: Any, path: Path) -> None:
    named: dict[str, Any] = {}
    for axes in figure.axes:
        named |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    place = {"loc": "outside lower center", "ncols": 4, "frameon": False, "fontsize": 9}
    figure.legend([named[name] for name in scheme_styles(named)], scheme_styles(named), **place)
    write(figure, path)


def _use_log_axis(axes: Any, axis: str, values: pd.Series, least: float = 1) -> None:
    """A logarithmic axis, if the values are positive and span a factor of at least `least`."""
    low, high = values.min(), values.max()
    if not 0 < least * low <= high:
        return
    margin = max(1.1, math.sqrt(2 * low / high))  # wide enough for two of the ticks
    axes.set(**{f"{axis}scale": "log", f"{axis}lim": (low / margin, high * margin)})
    lines = axes.xaxis if axis == "x" else axes.yaxis
    subs = [1, 1.5, 2, 3, 4, 5, 6, 8] if high < 5 * low else [1.0, 2, 5]
    subs = subs if high < 30 * low else [1, 3] if high < 300 * low else [1]
    lines.get_major_locator().set_params(subs=subs)
    lines.set_major_formatter(lambda value, _: _short(value))
    lines.set_minor_formatter(lambda value, _: "")


def _short(number: float) -> str:
    unit, letter = (1e6, " M") if number >= 1e6 else (1e3, " k") if number >= 1e3 else (1, "")
    text = f"{number / unit:.3g}" if number >= 1e-3 else f"{number:.1e}".replace(".0e", "e")
    return f"{text}{letter}".replace("e-0", "e-")

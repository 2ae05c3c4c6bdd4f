"""Pictures of a run: training curves, and predicted poses over true ones.

Each function writes one PNG. matplotlib is imported when it draws (extra `plots`).
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_wsgcn import files, metrics, skeletons
from keras_wsgcn.errors import InputError
from keras_wsgcn.skeletons import Skeleton

_DPI = 120
_MAX_EXAMPLES = 64  # rows of one picture; more are neither readable nor within the limits of PNG
_MAX_TITLE = 40  # characters that fit above a pose
# Told apart by the colour-blind, too (Okabe and Ito).
SIDE_COLOURS = {"left": "#0072b2", "right": "#d55e00", "centre": "#444444"}
_SPLIT_COLOURS = {"training": "#0072b2", "validation": "#d55e00"}
# The truth lies below, broad and pale; the prediction above, thin and strong.
_TRUE_STYLE: dict[str, Any] = {"linewidth": 5.0, "alpha": 0.3, "solid_capstyle": "round"}
_PREDICTED_STYLE: dict[str, Any] = {"linewidth": 1.6, "solid_capstyle": "round"}


def plot_training_curves(history: pd.DataFrame, path: str | os.PathLike) -> None:
    """Draws loss and MPJPE over the epochs, for training and validation.

    Args:
        history: one row for each epoch, as in a run's `history.csv`: `epoch`, `loss`, and
            `mpjpe_mm` and `val_mpjpe_mm` in millimetres; a `val_loss` is drawn, too. What is
            missing or not finite is left out; without `epoch`, the rows are counted from 1.
        path: the PNG file to be written.

    Raises:
        InputError: if there is nothing to draw, a column is not numeric, or `path` does not end
            in `.png`.
        ImportError: if matplotlib is missing.
    """
    path = checked_path(path)
    curves = _curves(history)
    panels = [name for name in ("loss", "mpjpe_mm") if name in curves]
    figure = new_figure(5.2 * len(panels), 3.6)
    figure.set_layout_engine("constrained")
    for axes, name in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        _draw_curves(axes, curves["epoch"], curves[name])
        axes.set_xlabel("epoch")
        axes.set_ylabel("MPJPE in mm" if name == "mpjpe_mm" else name)
        if name == "loss" and all((values > 0).any() for values in curves[name].values()):
            axes.set_yscale("log")
        axes.legend(frameon=False)
    write(figure, path)


def plot_poses(
    y_true: Any,
    y_pred: Any,
    path: str | os.PathLike,
    *,
    skeleton: str | Skeleton | Mapping[str, Any] = "h36m_16",
    pose2d: Any = None,
    titles: Iterable[str] | None = None,
) -> None:
    """Draws predicted poses over the true ones, one row for each example.

    Each row has the 2D input, if given, a view of both 3D poses from the front and above, and one
    from the side, where errors in depth show. Poses stand in the camera's frame: x to the right, y
    down, z away from the camera. The MPJPE of each example stands above it.

    Args:
        y_true: true poses in metres, relative to the root, `(examples, joints, 3)`.
        y_pred: predicted poses in metres, of the same shape.
        path: the PNG file to be written.
        skeleton: a skeleton or its name.
        pose2d: the inputs, `(examples, joints, 2)`, in any unit, y down.
        titles: what each example is called; by default, its number.

    Raises:
        InputError: if the arrays do not fit the skeleton or each other or are not finite, there
            are no examples or more than 64, or `path` does not end in `.png`.
        ImportError: if matplotlib is missing.
    """
    path = checked_path(path)
    skeleton = skeletons.get(skeleton)
    y_true = _checked_poses(y_true, "y_true", skeleton, 3)
    y_pred = _checked_poses(y_pred, "y_pred", skeleton, 3)
    errors_mm = metrics.mpjpe(y_true, y_pred)
    if pose2d is not None:
        pose2d = _checked_poses(pose2d, "pose2d", skeleton, 2, examples=len(y_true))
    titles = _checked_titles(titles, len(y_true))

    figure, grid = _pose_grid(rows=len(y_true), columns=2 if pose2d is None else 3)
    for row, title in enumerate(titles):
        *input_place, oblique_place, side_place = [grid[row, c] for c in range(grid.ncols)]
        if pose2d is not None:
            _draw_input(figure.add_subplot(input_place[0]), pose2d[row], skeleton)
        axes = figure.add_subplot(oblique_place, projection="3d")
        _draw_oblique_view(axes, y_true[row], y_pred[row], skeleton)
        # Titles come from a user: a dollar sign is a dollar sign.
        text = f"{title}\nMPJPE {errors_mm[row]:.1f} mm"
        axes.set_title(text, fontsize=10, y=1.06, parse_math=False)
        _draw_side_view(figure.add_subplot(side_place), y_true[row], y_pred[row], skeleton)
    _add_pose_legend(figure)
    write(figure, path)


# --- training curves ----------------------------------------------------------------------------


def _curves(history: pd.DataFrame) -> dict[str, Any]:
    """`epoch` as an array; for each panel with values, the array of each split that has any."""
    if not isinstance(history, pd.DataFrame):
        raise InputError(
            f"`history` must be a pandas DataFrame. Received: type(history)={type(history)}"
        )
    columns = list(history.columns)
    curves: dict[str, Any] = {"epoch": np.arange(1, len(history) + 1)}
    if "epoch" in columns:
        curves["epoch"] = _numeric_column(history, "epoch")
        if not np.isfinite(curves["epoch"]).all():
            raise InputError(
                "`history` must hold finite numbers in the column `epoch`. "
                f"Received: history['epoch']={history['epoch'].tolist()}"
            )
    for name in ("loss", "mpjpe_mm"):
        splits = {"training": name, "validation": f"val_{name}"}
        values = {s: _numeric_column(history, c) for s, c in splits.items() if c in columns}
        values = {split: array for split, array in values.items() if np.isfinite(array).any()}
        if values:
            curves[name] = values
    if len(curves) == 1:
        raise InputError(
            "`history` must have rows, and finite numbers in at least one of the columns `loss`, "
            "`val_loss`, `mpjpe_mm` and `val_mpjpe_mm`. "
            f"Received: history.shape={history.shape}, history.columns={columns}"
        )
    return curves


def _numeric_column(history: pd.DataFrame, name: str) -> np.ndarray:
    try:
        values = history[name].to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError):
        raise InputError(
            f"`history` must hold numbers in the column `{name}`. "
            f"Received: history[{name!r}].dtype={history[name].dtype}"
        ) from None
    return np.where(np.isfinite(values), values, np.nan)


def _draw_curves(axes: Any, epoch: np.ndarray, splits: Mapping[str, np.ndarray]) -> None:
    marker = "." if len(epoch) < 30 else None  # a line of one epoch would not be seen
    for split, values in splits.items():
        colour = _SPLIT_COLOURS[split]
        axes.plot(epoch, values, color=colour, marker=marker, linewidth=1.5, label=split)
        if split == "validation":
            best = int(np.nanargmin(values))
            label = f"lowest: {values[best]:.4g} in epoch {epoch[best]:g}"
            axes.plot(
                epoch[best], values[best], "o", color=colour, markerfacecolor="white", label=label
            )
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)


# --- poses --------------------------------------------------------------------------------------


def _pose_grid(rows: int, columns: int) -> tuple[Any, Any]:
    """A figure and its grid, with room in inches for titles, labels and the legend.

    matplotlib's own layouts count the empty corners of 3D axes, and clip the titles above.
    """
    width, height = 3.7 * columns, 3.8 * rows + 0.5
    figure = new_figure(width, height)
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.65 / width,
        right=1 - 0.2 / width,
        top=1 - 0.65 / height,
        bottom=0.85 / height,
        hspace=0.35,
        wspace=0.22,
    )
    return figure, grid


def bones_by_side(skeleton: Skeleton) -> dict[str, np.ndarray]:
    """The bones of each side, that of their outer joint, as (parent, child), `(bones, 2)`."""
    sides = dict.fromkeys(range(skeleton.num_joints), "centre")
    for left, right in skeleton.mirror_pairs or ():
        sides[int(left)], sides[int(right)] = "left", "right"
    found: dict[str, list] = {side: [] for side in SIDE_COLOURS}
    for parent, child in skeleton.bones:
        found[sides[child]].append((parent, child))
    return {side: np.array(bones, dtype=int).reshape(-1, 2) for side, bones in found.items()}


def bone_path(poses: np.ndarray, bones: np.ndarray) -> np.ndarray:
    """Bones of many poses, `(poses, joints, d)`, as one line with gaps of NaN, `(points, d)`."""
    ends = poses[:, bones]
    gaps = np.full((*ends.shape[:2], 1, ends.shape[-1]), np.nan)
    return np.concatenate([ends, gaps], axis=2).reshape(-1, poses.shape[-1])


def _draw_bones(
    plot: Callable, pose: np.ndarray, skeleton: Skeleton, style: Mapping[str, Any]
) -> None:
    for side, bones in bones_by_side(skeleton).items():
        plot(*bone_path(pose[None], bones).T, color=SIDE_COLOURS[side], **style)


def _draw_input(axes: Any, pose2d: np.ndarray, skeleton: Skeleton) -> None:
    _draw_bones(axes.plot, pose2d, skeleton, _PREDICTED_STYLE)
    axes.scatter(*pose2d.T, s=8, color="black", zorder=3)
    _set_up_view(axes, pose2d, title="2D input", x="x", y="y")


def _draw_oblique_view(
    axes: Any, true: np.ndarray, predicted: np.ndarray, skeleton: Skeleton
) -> None:
    true, predicted = (pose[:, [0, 2, 1]] * (1, 1, -1) for pose in (true, predicted))  # z up
    _draw_bones(axes.plot, true, skeleton, _TRUE_STYLE)
    _draw_bones(axes.plot, predicted, skeleton, _PREDICTED_STYLE)
    low, high = equal_limits(true, predicted)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axes.set_box_aspect((1, 1, 1), zoom=1.3)
    axes.view_init(elev=15, azim=-65)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.get_major_locator().set_params(nbins=4)
        axis.set_ticklabels([])  # they would run into each other; the view beside has them


def _draw_side_view(axes: Any, true: np.ndarray, predicted: np.ndarray, skeleton: Skeleton) -> None:
    true, predicted = true[:, [2, 1]], predicted[:, [2, 1]]
    _draw_bones(axes.plot, true, skeleton, _TRUE_STYLE)
    _draw_bones(axes.plot, predicted, skeleton, _PREDICTED_STYLE)
    x, y = "z in m, away from the camera", "y in m"
    _set_up_view(axes, true, predicted, title="from the side", x=x, y=y)


def _set_up_view(axes: Any, *poses: np.ndarray, title: str, x: str, y: str) -> None:
    """Limits around some poses in the plane, and what the axes are called."""
    low, high = equal_limits(*poses)
    axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal")  # y points down
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def equal_limits(*poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limits of a square or cube that holds all joints, with a margin."""
    joints = np.concatenate(poses)
    low, high = joints.min(axis=0), joints.max(axis=0)
    half = 0.55 * ((high - low).max() or 1.0)
    return (low + high) / 2 - half, (low + high) / 2 + half


def _side_handles() -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=c, linewidth=2, label=s) for s, c in SIDE_COLOURS.items()]


def add_side_legend(figure: Any, bottom: float) -> None:
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, bottom)}
    figure.legend(handles=_side_handles(), ncols=3, frameon=False, fontsize=8, **place)


def _add_pose_legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    handles = _side_handles()
    handles.append(Line2D([], [], color="black", label="true", **_TRUE_STYLE))
    handles.append(Line2D([], [], color="black", label="predicted", **_PREDICTED_STYLE))
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9
    )


def _checked_poses(
    value: Any, name: str, skeleton: Skeleton, channels: int, examples: int | None = None
) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise InputError(
            f"`{name}` must be an array of numbers. Received: type({name})={type(value)}"
        ) from None
    wanted = ("examples" if examples is None else examples, skeleton.num_joints, channels)
    fits = array.ndim == 3 and array.shape[1:] == wanted[1:] and examples in (None, len(array))
    if not fits or not 0 < len(array) <= _MAX_EXAMPLES:
        raise InputError(
            f"`{name}` must have the shape ({', '.join(map(str, wanted))}), with 1 to "
            f"{_MAX_EXAMPLES} examples. Received: {name}.shape={array.shape}"
        )
    if not np.isfinite(array).all():
        raise InputError(
            f"`{name}` must hold finite numbers only. Received: {name}.shape={array.shape}, "
            f"{int((~np.isfinite(array)).sum())} of them not finite"
        )
    return array


def _checked_titles(titles: Iterable[str] | None, examples: int) -> list[str]:
    if titles is None:
        return [f"example {number}" for number in range(1, examples + 1)]
    is_list = isinstance(titles, Iterable) and not isinstance(titles, str)
    texts = [str(title) for title in titles] if is_list else []
    if len(texts) != examples:
        raise InputError(
            f"`titles` must hold one string for each of the {examples} examples. "
            f"Received: titles={titles!r}"
        )
    return [shortened(text, _MAX_TITLE) for text in texts]


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


# --- files --------------------------------------------------------------------------------------


def checked_path(path: str | os.PathLike, suffixes: tuple[str, ...] = (".png",)) -> Path:
    if not isinstance(path, str | os.PathLike) or Path(path).suffix.lower() not in suffixes:
        wanted = " or ".join(f"`{suffix}`" for suffix in suffixes)
        raise InputError(f"`path` must name a file that ends in {wanted}. Received: path={path!r}")
    return Path(path)


def new_figure(width: float, height: float, dpi: int = _DPI) -> Any:
    """A figure of its own, in inches: pyplot and its state stay out of it."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Pictures need matplotlib: pip install "keras_wsgcn[plots]"') from error
    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def write(figure: Any, path: Path) -> None:
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})

"""Evaluating a lifter: the errors of every pose, and tables by action and by subject."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_wsgcn import metrics, skeletons
from keras_wsgcn.data.poses import PoseDataset, Splits
from keras_wsgcn.data.sources import load_again
from keras_wsgcn.errors import InputError, check_choice, check_instance
from keras_wsgcn.prediction import check_joints, check_single, predict, root_aligned

# Tables 5, 6 and 7 of the paper: Human3.6M by action.
PAPER_TABLES = Path(__file__).with_name("paper_actions.csv")

ERRORS = {
    "mpjpe_mm": metrics.mpjpe,
    "p_mpjpe_mm": metrics.p_mpjpe,
    "n_mpjpe_mm": metrics.n_mpjpe,
    "pck150_percent": metrics.pck,
    "auc_percent": metrics.auc,
}


MAX_RECORD_BYTES = 1 << 20


def read_run(folder: str | os.PathLike) -> dict[str, Any]:
    """What a run's `config.json` says: `config`, `data` and, of newer runs, `environment`.

    Raises:
        InputError: if the folder holds no run.
    """
    path = Path(folder) / "config.json"
    try:
        if not path.is_file() or path.stat().st_size > MAX_RECORD_BYTES:
            raise ValueError(f"{path} is no regular file of at most {MAX_RECORD_BYTES} bytes")
        record = json.loads(path.read_text(encoding="utf-8"))
        for name in ("config", "data"):
            if not isinstance(record, dict) or not isinstance(record.get(name), dict):
                raise ValueError(f"{path} must hold an object `{name}`")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            "`run` must be the folder of a run, with a config.json that can be read "
            f"({error}). Received: run={str(folder)!r}"
        ) from None
    return record


def load_run_data(folder: str | os.PathLike, data: str | os.PathLike | None = None) -> Splits:
    """The data that a run was trained on, as its `config.json` says.

    Args:
        folder: of the run.
        data: where the archive is now, if it has moved.

    Raises:
        InputError: if the folder holds no run, its data cannot be loaded, or is not that of the
            run.
    """
    record = read_run(folder)
    try:
        skeleton = skeletons.get(record["config"].get("skeleton"))
        return load_again(record["data"], data, skeleton=skeleton)
    except InputError as error:
        raise InputError(f"{Path(folder) / 'config.json'}: {error}") from None


def evaluate(model: keras.Model, poses: PoseDataset) -> pd.DataFrame:
    """Evaluates a model on every pose.

    Args:
        model: a lifting model.
        poses: what to evaluate on.

    Returns:
        One row a pose: `subject`, `action`, `take`, `camera`, `frame`, and the errors, of poses
        aligned at the root: `mpjpe_mm` (protocol 1), `p_mpjpe_mm` (protocol 2, after similarity
        Procrustes), `n_mpjpe_mm`, `pck150_percent` and `auc_percent`.

    Raises:
        InputError: if the model takes other joints, or in another order, or has several inputs or
            outputs.
    """
    check_instance("model", model, keras.Model, "such as the `model` of what `train` returns")
    check_instance("poses", poses, PoseDataset, "such as the `test` poses of splits")
    check_single(model)
    for wanted in getattr(model, "inputs", None) or []:  # a subclassed model need not say
        if tuple(wanted.shape[1:]) != poses.pose2d.shape[1:]:
            raise InputError(
                f"`poses` must fit the model's input, {('poses', *wanted.shape[1:])}. "
                f"Received: poses.pose2d.shape={poses.pose2d.shape}"
            )
    check_joints(model, "poses", poses.skeleton)
    predicted = root_aligned(predict(model, poses.pose2d), poses.skeleton.root)
    columns = {name: getattr(poses, name) for name in ("subject", "action", "take", "camera")}
    errors = {name: error(poses.pose3d, predicted) for name, error in ERRORS.items()}
    return pd.DataFrame({**columns, "frame": poses.frame, **errors})


def table_by(errors: pd.DataFrame, by: str) -> pd.DataFrame:
    """Means by action or by subject, with the number of poses behind each, and their average.

    The row `average` is the mean of the rows above, as the paper's tables have it: every action,
    or subject, counts the same.

    Args:
        errors: what `evaluate` returns.
        by: `"action"` or `"subject"`.

    Returns:
        One row a group: `poses` and the errors.

    Raises:
        InputError: if `by` is neither.
    """
    check_choice("by", by, ("action", "subject"))
    groups = errors.groupby(by)
    table = groups[list(ERRORS)].mean()
    table.insert(0, "poses", groups.size())
    table.index = table.index.astype(str)
    average = table.mean()
    average["poses"] = len(errors)
    table.loc["average"] = average
    return table.astype({"poses": int})


def paper_tables(errors: pd.DataFrame, keypoints: str) -> dict[str, pd.DataFrame]:
    """The paper's tables of Human3.6M by action, its row beside ours.

    Args:
        errors: what `evaluate` returns for the test subjects.
        keypoints: what the 2D poses are: `"gt"` (Table 7) or `"cpn"` (Tables 5 and 6).

    Returns:
        For each table, by its title, the rows `paper` and `ours` in millimetres; a column an
        action and `Average`, which is NaN for us if an action is missing.
    """
    tables = pd.read_csv(PAPER_TABLES)
    check_choice("keypoints", keypoints, sorted(set(tables["keypoints"])))
    found = {}
    for row in tables[tables["keypoints"] == keypoints].to_dict("records"):
        number, _, error = row.pop("table"), row.pop("keypoints"), row.pop("metric_mm")
        paper = pd.Series(row, dtype=float)
        ours = errors.groupby("action")[f"{error}_mm"].mean().reindex(paper.index.drop("Average"))
        ours["Average"] = ours.mean(skipna=False)
        title = f"Table {number}: {error.upper().replace('_', '-')}, mm, {keypoints} keypoints"
        found[title] = pd.DataFrame({"paper": paper, "ours": ours}).T
    return found


def headline(errors: pd.DataFrame, seen_actions: Sequence[str] = ()) -> dict[str, float]:
    """The few numbers that stand for an evaluation, for both protocols.

    Args:
        errors: what `evaluate` returns.
        seen_actions: activities that also occur in training; the others are reported apart.

    Returns:
        For each of `mpjpe_mm` and `p_mpjpe_mm` the mean over subjects of their frame means (the
        headline), over frames, over actions, and over the frames of seen and unseen activities.
    """
    seen = errors["action"].isin(seen_actions)
    numbers: dict[str, float] = {}
    for error in ("mpjpe_mm", "p_mpjpe_mm"):
        column = errors[error]
        numbers[f"subject_mean_{error}"] = column.groupby(errors["subject"]).mean().mean()
        numbers[f"frame_mean_{error}"] = column.mean()
        numbers[f"action_mean_{error}"] = column.groupby(errors["action"]).mean().mean()
        for name, rows in (("seen", seen), ("unseen", ~seen)):
            if seen_actions and rows.any():
                numbers[f"{name}_{error}"] = column[rows].mean()
    return {name: float(number) for name, number in numbers.items()}


def worst_median_best(errors: pd.DataFrame) -> np.ndarray:
    """Rows of the worst pose, the median and the best, by MPJPE: what a picture should show."""
    order = np.argsort(errors["mpjpe_mm"].to_numpy())
    return order[[-1, len(order) // 2, 0]]

"""What came out of a study, as tables: one row a run, a run and subject, a run and epoch.

The tables are read from the storage, or from the CSVs that were written of them.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from keras_wsgcn import schemes
from keras_wsgcn.errors import InputError
from keras_wsgcn.files import write_text
from keras_wsgcn.recipes import TrainConfig
from keras_wsgcn.studies import storage as storages
from keras_wsgcn.studies.outages import reading
from keras_wsgcn.studies.planning import objectives_of, slots_of
from keras_wsgcn.studies.spec import Cell, StudySpec, solve

SETTINGS = tuple(
    field.name
    for field in fields(TrainConfig)
    if field.name not in ("scheme", "channels", "skeleton")
)
# What the columns of the headline are called in the table of runs.
_HEADLINE = {"subject_mean_mpjpe_mm": "mpjpe_mm", "subject_mean_p_mpjpe_mm": "p_mpjpe_mm"}
_WHOLE = ("trial", "channels", "params", "seed", "best_epoch", "batch_size", "blocks", "epochs")
_FRONT = "front_latency_ms"
_ENVIRONMENT = ("backend", "device", "machine", "keras", "numpy", "python", "commit")


@dataclass(frozen=True)
class StudyResults:
    """The tables of a study.

    Args:
        runs: one row a slot: `study`, `cell`, `slot`, `trial` (number in the storage), `outcome`
            (`"finished"`, `"pruned"`, `"diverged"`, `"refused"`, `"out_of_memory"`, `"killed"`,
            `"failed"`, `"waiting"`, `"running"`, or `"not run"`), `reason`, the settings, `params`,
            `forward_mflop`, errors in mm, seconds, and what it ran on.
        subjects: `study`, `trial`, `split`, `subject`, `poses`, `mpjpe_mm`, `p_mpjpe_mm`.
        epochs: `study`, `trial`, `epoch`, `loss_m2`, `mpjpe_mm`, `val_mpjpe_mm`,
            `learning_rate`, `seconds`.
        importances: of a search, `study`, `parameter`, `importance` (0 to 1).
    """

    runs: pd.DataFrame
    subjects: pd.DataFrame
    epochs: pd.DataFrame
    importances: pd.DataFrame

    @property
    def finished(self) -> pd.DataFrame:
        """The runs that finished."""
        return self.runs[self.runs["outcome"] == "finished"]


_SUFFIXES = {
    "runs": "", "subjects": "_subjects", "epochs": "_epochs", "importances": "_importances",
}  # fmt: skip
_COLUMNS: dict[str, tuple[str, ...]] = {
    "runs": ("study", "cell", "slot", "trial", "outcome", "reason", "scheme", "channels", "params"),
    "subjects": ("study", "trial", "split", "subject", "poses", "mpjpe_mm", "p_mpjpe_mm"),
    "epochs": ("study", "trial", "epoch", "loss_m2", "mpjpe_mm", "val_mpjpe_mm"),
    "importances": ("study", "parameter", "importance"),
}


def read_storage(spec: StudySpec, location: str | os.PathLike) -> StudyResults:
    """Reads a study's results from its storage; slots without a finished trial are there too.

    Args:
        spec: the study.
        location: a SQLite file, or a URL.

    Returns:
        The tables.

    Raises:
        InputError: if there is no such storage.
    """
    if "://" not in str(location) and not Path(location).exists():
        raise InputError(
            f"`storage` must be what run_study.py has written. Received: storage={str(location)!r}"
        )
    with reading(location):
        storage = storages.open_storage(location)
        known = set(optuna.get_all_study_names(storage))
        studies = {
            name: storages.open_study(storage, name, objectives_of(spec))
            for name in slots_of(spec)
            if name in known
        }
        return _tables(spec, studies)


def read_nothing(spec: StudySpec) -> StudyResults:
    """The tables of a study before it has run."""
    return _tables(spec, {})


def _tables(spec: StudySpec, studies: Mapping[str, optuna.Study]) -> StudyResults:
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in _SUFFIXES}
    for name, slots in slots_of(spec).items():
        found, front = {}, {}
        if study := studies.get(name):
            found, front = storages.trials_by_slot(study), study.user_attrs.get(_FRONT, {})
        for slot, (cell, seed) in slots.items():
            start = {"study": name, "cell": cell.label, "slot": slot}
            if slot not in found:
                tables["runs"].append({**start, **_not_run(spec, cell, seed)})
                continue
            trial = max(found[slot], key=lambda t: (storages.is_settled(t), t.number))
            begun = TrainConfig.from_config(trial.user_attrs["start"]["config"])
            planned = _not_run(spec, replace(cell, config=begun), seed)
            row = {**start, **planned, **_run_row(trial)}
            if str(trial.number) in front:
                row[_FRONT] = front[str(trial.number)]
            tables["runs"].append(row)
            tables["subjects"] += [{"study": name, **r} for r in _subject_rows(trial)]
            tables["epochs"] += [{"study": name, **r} for r in _epoch_rows(trial)]
        if study and spec.search:
            tables["importances"] += [{"study": name, **r} for r in _importance_rows(study)]
    return StudyResults(**{name: _frame(name, rows) for name, rows in tables.items()})


def _not_run(spec: StudySpec, cell: Cell, seed: int) -> dict[str, Any]:
    """What is known of a slot before it has run."""
    row = {"outcome": "not run", "scheme": schemes.get(cell.config.scheme).name}
    return row if spec.search else {**row, **solve(cell.config), "seed": seed}


def _run_row(trial: FrozenTrial) -> dict[str, Any]:
    known = trial.user_attrs
    row: dict[str, Any] = {
        "trial": trial.number,
        "outcome": storages.outcome(trial),
        "reason": known.get("reason", ""),
    }
    config = known.get("config") or known["start"]["config"]
    row |= {
        "scheme": schemes.get(trial.params.get("scheme", config["scheme"])).name,
        **known.get("size", {}),
    }
    # Where a budget was searched the configuration has its channels.
    row |= {name: trial.params.get(name, config.get(name)) for name in SETTINGS}
    row["data"] = Path(known["start"]["data"]["source"]).stem
    row["stride"] = known["start"]["data"].get("stride", 1)
    row["keypoints"] = known.get("keypoints", "")
    metrics = known.get("metrics", {})
    for name, value in metrics.items():
        split, _, rest = name.partition("_")
        row[f"test_{_HEADLINE.get(rest, rest)}" if split == "test" else name] = value
    if not metrics and (history := known.get("history")):  # pruned: the best it came to
        row["val_mpjpe_mm"] = min(epoch["val_mpjpe_mm"] for epoch in history)
        row["train_seconds"] = round(sum(epoch["seconds"] for epoch in history), 1)
    if "latency_ms" in known:
        row["latency_ms"] = known["latency_ms"]
    environment = known.get("environment", {})
    return row | {name: environment.get(name, "") for name in _ENVIRONMENT}


def _subject_rows(trial: FrozenTrial) -> list[dict[str, Any]]:
    return [
        {"trial": trial.number, "split": split, "subject": int(subject), **errors}
        for split, subjects in trial.user_attrs.get("subjects", {}).items()
        for subject, errors in subjects.items()
    ]


def _epoch_rows(trial: FrozenTrial) -> list[dict[str, Any]]:
    return [
        {"trial": trial.number, **{"loss_m2" if k == "loss" else k: v for k, v in row.items()}}
        for row in trial.user_attrs.get("history", [])
    ]


def _importance_rows(study: optuna.Study) -> list[dict[str, Any]]:
    """How much each parameter mattered for the validation error, by PED-ANOVA."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that low values are taken for good
            found = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                # It need be no objective.
                target=lambda trial: trial.user_attrs["metrics"]["val_mpjpe_mm"],
            )
    except (ValueError, RuntimeError):  # fewer than two trials, or all of them equal
        return []
    return [{"parameter": name, "importance": value} for name, value in found.items()]


def _frame(name: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    rest = [column for column in frame if column not in _COLUMNS[name]]
    frame = frame.reindex(columns=[*_COLUMNS[name], *rest])
    whole = {column: "Int64" for column in _WHOLE if column in frame}  # some rows have not run
    return frame.astype(whole)


def write_results(results: StudyResults, folder: str | os.PathLike, name: str) -> list[Path]:
    """Writes the tables as `NAME.csv` and, where there are rows, `NAME_subjects.csv` and so on.

    Args:
        results: the tables.
        folder: where to.
        name: what the files are called.

    Returns:
        The files.
    """
    paths = []
    for table, suffix in _SUFFIXES.items():
        frame: pd.DataFrame = getattr(results, table)
        if not len(frame) and table != "runs":
            continue
        path = Path(folder) / f"{name}{suffix}.csv"
        write_text(path, frame.to_csv(index=False, float_format="%.10g"))
        paths.append(path)
    return paths


def read_results(folder: str | os.PathLike, name: str) -> StudyResults:
    """Reads what `write_results` wrote.

    Raises:
        InputError: if a file is missing or is not such a table.
    """
    tables = {}
    for table, suffix in _SUFFIXES.items():
        path = Path(folder) / f"{name}{suffix}.csv"
        if table != "runs" and not path.exists():
            tables[table] = pd.DataFrame(columns=_COLUMNS[table])
            continue
        if not path.is_file():
            raise InputError(f"`results` must have the file {path.name}. Received: {folder}")
        frame = pd.read_csv(path)
        if missing := [column for column in _COLUMNS[table] if column not in frame]:
            raise InputError(f"`results` must have the columns {missing}. Received: {path}")
        tables[table] = frame
    for column in ("reason", "cell"):
        tables["runs"][column] = tables["runs"][column].fillna("")
    return StudyResults(**tables)

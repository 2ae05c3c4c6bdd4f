"""How a study searches: `Search`, the ranges of its space, and what reads them from a table."""

import numbers
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from keras_wsgcn import schemes
from keras_wsgcn.errors import (
    MAX_INTEGER,
    InputError,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    shown,
)
from keras_wsgcn.recipes import TrainConfig
from keras_wsgcn.records import Record

# What an objective can be; all of them are minimised.
OBJECTIVES = ("val_mpjpe_mm", "params", "forward_mflop", "latency_ms")
MAX_TRIALS = 100_000  # more is a slip of the pen: every trial is a training
SETTINGS = tuple(f.name for f in fields(TrainConfig) if f.name not in ("seed", "skeleton"))


@dataclass(frozen=True)
class Range:
    """What a searched parameter can be.

    Args:
        low: smallest value.
        high: largest value.
        log: whether to search its logarithm.
        choices: the values, instead of `low` and `high`; `"all"` for the scheme means every one.

    Raises:
        InputError: if it is neither, or empty.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple = ()

    def __post_init__(self):
        check_flag("log", self.log)
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise InputError(
                    "`choices` must stand alone, without low, high and log. "
                    f"Received: {asdict(self)}"
                )
            return
        check_number("low", self.low)
        check_number("high", self.high, least=self.low or 0)
        if self.log:
            check_number("low", self.low, above=0)


@dataclass(frozen=True)
class Search:
    """How Optuna searches in each cell.

    Args:
        trials: how many trials each cell gets.
        objectives: what to minimise: `"val_mpjpe_mm"`, `"params"`, `"forward_mflop"` or
            `"latency_ms"`. One of them, or several with a Pareto front.
        space: the range of each searched setting of `TrainConfig`.
        prune: whether hopeless trials end early; only where the validation error is the objective.
        seed: of the sampler.

    Raises:
        InputError: if a value is out of range.
    """

    trials: int
    space: Mapping[str, Range]
    objectives: tuple[str, ...] = ("val_mpjpe_mm",)
    prune: bool = True
    seed: int = 0

    def __post_init__(self):
        if check_integer("trials", self.trials, least=1) > MAX_TRIALS:
            raise InputError(
                f"`trials` must be at most {MAX_TRIALS}. Received: trials={self.trials}"
            )
        check_integer("seed", self.seed, least=0)
        check_flag("prune", self.prune)
        for objective in self.objectives:
            check_choice("objectives", objective, OBJECTIVES)
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise InputError(
                f"`objectives` must be one or more of {list(OBJECTIVES)}, each once. "
                f"Received: objectives={shown(self.objectives)}"
            )
        if not self.space:
            raise InputError("`space` must have a parameter to search. Received: space={}")


def corners(space: Mapping[str, Range]) -> Iterable[dict[str, Any]]:
    """The settings with every parameter at its lowest, and at its highest, and every choice."""
    ends = {name: bounds.choices or (bounds.low, bounds.high) for name, bounds in space.items()}
    for number in range(max(map(len, ends.values()))):
        yield {name: values[min(number, len(values) - 1)] for name, values in ends.items()}


def distributions_of(space: Mapping[str, Range]) -> dict[str, BaseDistribution]:
    """The ranges as Optuna has them."""
    found: dict[str, BaseDistribution] = {}
    for name, bounds in space.items():
        low, high = bounds.low or 0, bounds.high or 0
        if bounds.choices:
            found[name] = CategoricalDistribution(bounds.choices)
        elif takes_integers(name):
            found[name] = IntDistribution(int(low), int(high), log=bounds.log)
        else:
            found[name] = FloatDistribution(float(low), float(high), log=bounds.log)
    return found


def takes_integers(name: str) -> bool:
    """Whether a setting of `TrainConfig` is a whole number."""
    hint = typing.get_type_hints(TrainConfig)[name]
    kinds = set(typing.get_args(hint) or (hint,)) - {type(None)}
    return kinds == {int}


def search_from(table: Any) -> Search:
    """The search that a table describes.

    Raises:
        InputError: if it is none; the message names the key.
    """
    check_keys("search", table, [f.name for f in fields(Search)])
    values = dict(table)
    if missing := [name for name in ("trials", "space") if name not in values]:
        raise InputError(f"`search.{missing[0]}` must be given. Received: {shown(list(values))}")
    if not isinstance(values["space"], Mapping):
        raise InputError(f"`search.space` must be a table. Received: {shown(values['space'])}")
    objectives = values.get("objectives", Search.objectives)
    if not isinstance(objectives, list | tuple):
        raise InputError(f"`objectives` must be a list. Received: objectives={shown(objectives)}")
    values["objectives"] = tuple(objectives)
    values["space"] = {name: _range(name, item) for name, item in values["space"].items()}
    return Search(**values)


def _range(name: str, table: Any) -> Range:
    known = [f.name for f in fields(Range)]
    if not isinstance(table, Mapping):
        raise InputError(
            f"`search.space.{name}` must be a table of {known}. Received: {shown(table)}"
        )
    check_keys(f"search.space.{name}", table, known)
    try:
        found = Range(**{**table, "choices": _choices(name, table.get("choices", []))})
    except InputError as error:
        raise InputError(f"In `search.space.{name}`: {error}") from None
    numeric = name in SETTINGS and not found.choices
    if numeric and takes_integers(name) and any(v != int(v) for v in (found.low, found.high)):  # type: ignore[arg-type]
        raise InputError(
            f"`search.space.{name}` must have whole numbers. Received: {shown(dict(table))}"
        )
    return found


def _choices(name: str, choices: Any) -> tuple:
    if name == "scheme" and choices == "all":
        return tuple(schemes.SCHEMES)
    if not isinstance(choices, list):
        raise InputError(f"`choices` must be a list. Received: choices={shown(choices)}")
    for choice in choices:
        check_setting("choices", choice)
    return tuple(choices)


def check_setting(name: str, value: Any) -> None:
    """Refuses a value that no setting has; what `TrainConfig` does not check would be stored."""
    if isinstance(value, bool | str | Mapping | Record | None):
        return
    if isinstance(value, numbers.Integral) and -MAX_INTEGER <= int(value) <= MAX_INTEGER:
        return
    check_number(name, value)


def check_keys(name: str, table: Any, known: Iterable[str]) -> None:
    """Refuses what is no table, or has other keys than the known ones."""
    if not isinstance(table, Mapping):
        raise InputError(f"`{name}` must be a table. Received: {name}={shown(table)}")
    known = list(known)
    if unknown := [key for key in table if key not in known]:
        raise InputError(f"`{name}` must have keys among {known}. Received: {shown(unknown)}")

"""`StudySpec`: what a study trains, read from TOML and checked before any work is done.

A study is a list of cells, the product of its grid. With `[search]` every cell is an Optuna study
of its own; without, every cell is trained once for each seed.
"""

import itertools
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from keras_wsgcn import schemes
from keras_wsgcn.budget import count_flops, count_params, solve_channels
from keras_wsgcn.data.sources import check_options, differences
from keras_wsgcn.errors import (
    InputError,
    check_choice,
    check_integer,
    check_integers,
    check_string,
    shown,
)
from keras_wsgcn.files import plain
from keras_wsgcn.recipes import RECIPES, TrainConfig
from keras_wsgcn.studies.search import (
    SETTINGS,
    Search,
    check_keys,
    check_setting,
    corners,
    search_from,
)

# How a cell can say its size; they exclude each other.
SIZES = ("budget", "channels", "forward_mflop")
_DATA_OPTIONS = {
    "source": (str,),
    "stride": (int,),
    "noise_px": (int, float),
    "train_cameras": (str,),
    "mixed_trunks": (bool,),
    "validation": (list,),
    "test": (list,),
    "seed": (int,),
}
MAX_CELLS, MAX_SPEC_BYTES = 10_000, 1 << 20  # more is a slip of the pen
_FILE_NAME = re.compile(r"\w[\w .+=-]{0,99}")


@dataclass(frozen=True)
class Cell:
    """One setting of a study: its name within the study, and what it trains."""

    label: str
    config: TrainConfig


@dataclass(frozen=True)
class StudySpec:
    """A study.

    Args:
        name: what the study is called; the file's name by default.
        data: `source`, as `load_splits` takes it, and further arguments of it such as `stride`.
        grid: blocks of settings; the cells are the product of the lists in each block. Beside the
            settings of `TrainConfig`, `forward_mflop` gives the size as floating-point operations.
            By default one cell.
        title: a line for reports.
        note: a paragraph for reports.
        recipe: name of the recipe that the study starts from.
        config: settings of every cell, on top of the recipe.
        seeds: a fixed list of trials trains each cell with each of them; a search with the first.
            Without seeds nothing is trained.
        search: how to search in each cell, or `None` for a fixed list of trials.
        tuned_by: another study, a search with one objective, whose best settings for its scheme
            each cell takes over; in a file, the name of a file beside it.
        paper_table: the table of the paper to set the results beside.

    Raises:
        InputError: if a value is out of range or a setting unknown.
    """

    name: str
    data: Mapping[str, Any]
    grid: tuple[Mapping[str, Any], ...] = ({},)
    title: str = ""
    note: str = ""
    recipe: str = "cmu"
    config: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    search: Search | None = None
    tuned_by: "StudySpec | None" = None
    paper_table: int | None = None

    def __post_init__(self):
        for name in ("name", "title", "note"):
            check_string(name, getattr(self, name))
        if not _FILE_NAME.fullmatch(self.name):  # its files and folders are called so
            raise InputError(
                "`name` must be a plain name: a letter, a digit or `_`, then also spaces and any "
                f"of `.+=-`, 100 characters at most. Received: name={shown(self.name)}"
            )
        if self.paper_table is not None:
            check_integer("paper_table", self.paper_table, least=1)
        check_choice("recipe", self.recipe, RECIPES)
        check_keys("data", self.data, _DATA_OPTIONS)
        if "source" not in self.data:
            raise InputError(
                f"`data` must name a `source`. Received: data={shown(dict(self.data))}"
            )
        for name, value in self.data.items():
            if not isinstance(value, _DATA_OPTIONS[name]):
                kinds = " or ".join(kind.__name__ for kind in _DATA_OPTIONS[name])
                raise InputError(f"`data.{name}` must be {kinds}. Received: {name}={shown(value)}")
            if isinstance(value, list):
                check_integers(f"data.{name}", value, least=0)
            else:
                check_setting(f"data.{name}", value)
        options = dict(self.data)
        check_options(options.pop("source"), options)
        check_integers("seeds", self.seeds, least=0)
        check_keys("config", self.config, (*SETTINGS, "skeleton", "forward_mflop"))
        for block in self.grid:
            check_keys("grid", block, (*SETTINGS, "forward_mflop"))
        for table in (self.config, *self.grid):
            for name, value in table.items():
                for one in _values(name, value):
                    check_setting(name, one)
        if self.search:
            self._check_search(self.search)
        if self.tuned_by:
            self._check_tuning(self.tuned_by)
        for cell in self.cells:
            solve(cell.config)

    def _check_search(self, search: Search) -> None:
        if not self.seeds:
            raise InputError("`seeds` must hold the seed of the search. Received: seeds=[]")
        check_keys("search.space", search.space, SETTINGS)
        searched = [name for name in SIZES if name in search.space]
        for name in search.space:
            if any(name in block for block in self.grid):
                raise InputError(
                    f"`search.space` must leave out what the grid sets. Received: {name}"
                )
        by_flops = any("forward_mflop" in table for table in (self.config, *self.grid))
        if by_flops and (sized := [name for name in _SIZE_SETTINGS if name in search.space]):
            raise InputError(
                f"`forward_mflop` must be left out where {sized[0]!r} is searched: it would be "
                f"solved for one only. Received: forward_mflop, and {sized} in search.space"
            )
        if len(searched) > 1:
            raise InputError(f"`search.space` must have one size at most. Received: {searched}")
        for cell in self.cells:
            for values in corners(search.space):
                solve(with_settings(cell.config, values))

    def _check_tuning(self, tuning: "StudySpec") -> None:
        if not tuning.search or tuning.search.objectives != Search.objectives:
            raise InputError(
                f"`tuned_by` must be a search with one objective, {Search.objectives[0]!r}. "
                f"Received: {tuning.name!r}"
            )
        schemes_of = [cell.config.scheme for cell in tuning.cells]
        if "scheme" in tuning.search.space or len(set(schemes_of)) < len(schemes_of):
            raise InputError(
                "`tuned_by` must tune each scheme once, in a cell of its own. "
                f"Received: {tuning.name!r}"
            )
        if missing := {cell.config.scheme for cell in self.cells} - set(schemes_of):
            raise InputError(
                f"`tuned_by` must tune every scheme of the grid. Received: {tuning.name!r}, "
                f"without {sorted(map(str, missing))}"
            )
        if clash := self.varied(tuning.search.space, self.config):
            raise InputError(
                f"`tuned_by` must be left to set {clash[0]!r} alone. "
                f"Received: {tuning.name!r}, which tunes {list(tuning.search.space)}"
            )

    def varied(self, names: Iterable[str], *more: Mapping[str, Any]) -> list[str]:
        """Which of some settings the study itself sets: in its grid or search, or in `more`.

        Of the sizes any one sets them all.
        """
        set_here = {name for table in (*self.grid, *more) for name in table}
        set_here |= set(self.search.space) if self.search else set()
        if set_here & set(SIZES):
            set_here |= set(SIZES)
        return [name for name in names if name in set_here]

    @property
    def cells(self) -> list[Cell]:
        """What the study trains, in the order of the grid."""
        start = RECIPES[self.recipe]
        count = sum(math.prod(len(_values(*item)) for item in block.items()) for block in self.grid)
        if not 1 <= count <= MAX_CELLS:
            raise InputError(f"`grid` must have 1 to {MAX_CELLS} cells. Received: {count}")
        settings = [
            dict(zip(block, values, strict=True))
            for block in self.grid
            for values in itertools.product(*(_values(*item) for item in block.items()))
        ]
        names = list(dict.fromkeys(name for setting in settings for name in setting))
        varying = [n for n in names if len({shown(setting.get(n)) for setting in settings}) > 1]
        cells = [
            Cell(
                _label(setting, varying or names),
                with_settings(start, merge_settings(self.config, setting)),
            )
            for setting in settings
        ]
        if len({cell.label for cell in cells}) < len(cells):
            labels = [cell.label for cell in cells]
            raise InputError(f"`grid` must hold each cell once. Received: {shown(labels)}")
        return cells

    def get_config(self) -> dict[str, Any]:
        """The study as JSON can hold it; `from_config` reads it back."""
        config = json.loads(json.dumps(asdict(self), default=plain))
        if self.tuned_by:
            config["tuned_by"] = self.tuned_by.get_config()
        # Within the tables None is a value, such as that of no clipping.
        return {name: value for name, value in config.items() if value is not None}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "StudySpec":
        """Builds a study from plain lists and tables.

        Raises:
            InputError: if a key is unknown or a value out of range; the message names the key.
        """
        check_keys("study", config, [f.name for f in fields(cls)])
        values = dict(config)
        for name, kind in (("data", Mapping), ("config", Mapping), ("grid", list)):
            wanted = "table" if kind is Mapping else "list of tables"
            if name in values and not isinstance(values[name], kind):
                raise InputError(f"`{name}` must be a {wanted}. Received: {shown(values[name])}")
        for name in ("name", "data"):
            if name not in values:
                raise InputError(f"`{name}` must be given. Received: keys {shown(list(values))}")
        values["grid"] = tuple(values.get("grid") or [{}])
        if not all(isinstance(block, Mapping) for block in values["grid"]):
            raise InputError(f"`grid` must be a list of tables. Received: {shown(values['grid'])}")
        if isinstance(seeds := values.get("seeds", [0]), list | tuple):
            values["seeds"] = tuple(seeds)
        else:
            raise InputError(f"`seeds` must be a list of integers. Received: seeds={shown(seeds)}")
        if "search" in values:
            values["search"] = search_from(values["search"])
        if "tuned_by" in values:
            values["tuned_by"] = cls.from_config(values["tuned_by"])
        return cls(**values)


def load_spec(path: str | os.PathLike, **changes: Any) -> StudySpec:
    """Reads a study from a TOML file.

    Args:
        path: the file.
        **changes: fields that replace the file's, such as `seeds` or `name`.

    Returns:
        The study.

    Raises:
        InputError: if the file is no study; the message names the file and the key.
    """
    return _load_spec(Path(path), changes, ())


def _load_spec(path: Path, changes: Mapping[str, Any], above: tuple[Path, ...]) -> StudySpec:
    """The study in a file; `above` are the files that it tunes, which it cannot be tuned by."""
    if not path.exists():
        near = [*path.parent.glob("*.toml"), *Path("studies").glob("*.toml")]
        found = sorted({str(p) for p in near if p.name != "pyproject.toml"})
        raise InputError(
            f"`spec` must be a TOML file, such as {found or 'studies/table3.toml'}. "
            f"Received: spec={str(path)!r}"
        )
    config = _parsed(path)
    try:
        if isinstance(tuning := config.get("tuned_by"), str):
            if not _FILE_NAME.fullmatch(tuning) or path in above:
                raise InputError(
                    "`tuned_by` must be the name of another file beside it, which is not tuned by "
                    f"this one. Received: tuned_by={shown(tuning)}"
                )
            beside = path.with_name(f"{tuning}.toml")
            config["tuned_by"] = _load_spec(beside, {}, (*above, path)).get_config()
        return StudySpec.from_config({"name": path.stem, **config, **changes})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > MAX_SPEC_BYTES:
            raise ValueError(f"it is no regular file of at most {MAX_SPEC_BYTES} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Notepad's mark
    # Numbers with too many digits are ValueErrors too; arrays can be nested too deeply.
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: `spec` must be a TOML file that can be read ({error}). "
            f"Received: spec={str(path)!r}"
        ) from None


def merge_settings(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with some changed; of the sizes, which exclude each other, the new one stays."""
    sizes = [name for name in SIZES if name in changes]
    if len(sizes) > 1:
        raise InputError(f"`{sizes[0]}` must stand alone. Received: {sizes} together")
    return {k: v for k, v in settings.items() if not sizes or k not in SIZES} | dict(changes)


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """`config` with some settings of a study changed, `forward_mflop` among them."""
    changes = merge_settings({"budget": config.budget, "channels": config.channels}, settings)
    changes = {"budget": None, "channels": None} | changes
    mflop = changes.pop("forward_mflop", None)
    if mflop is not None:
        size = {name: changes.get(name, getattr(config, name)) for name in _SIZE_SETTINGS}
        changes["channels"] = solve_channels(flops=1e6 * mflop, **size)
    return replace(config, **changes)


_SIZE_SETTINGS = ("scheme", "blocks", "non_local", "affinity", "skeleton")


def solve(config: TrainConfig) -> dict[str, Any]:
    """The size of a configuration: `channels`, `params`, and `forward_mflop` a pose."""
    size = {name: getattr(config, name) for name in _SIZE_SETTINGS}
    size["channels"] = config.solved_channels()
    return {
        "channels": size["channels"],
        "params": count_params(**size),
        "forward_mflop": round(count_flops(**size) / 1e6, 4),
    }


def start_differences(
    found: Mapping[str, Mapping],
    wanted: Mapping[str, Mapping],
    digest_then: Callable[[str], str | None],
    digest_now: Callable[[str], str | None],
) -> list[str]:
    """Where a trial starts from something else.

    Args:
        found: its `config` and `data`, perhaps of an older version.
        wanted: what they are to be.
        digest_then: gives the digest of an archive that `found` names.
        digest_now: gives that of one that `wanted` names.

    Returns:
        The keys, such as `"data.stride"`. Another place of the same archive, or a default that is
        written out, makes no difference.
    """
    # A setting that an older version did not know has its default.
    config = {**TrainConfig().get_config(), **found["config"]}
    keys = config.keys() | wanted["config"].keys()
    differing = [f"config.{k}" for k in keys if config.get(k) != wanted["config"].get(k)]
    if found["data"] != wanted["data"]:
        then, now = (
            {**data, "digest": digest_of(data["source"])}
            for data, digest_of in ((found["data"], digest_then), (wanted["data"], digest_now))
        )
        differing += [f"data.{k}" for k in differences(then, now) if k != "digest"]
    return sorted(differing)


def _values(name: str, value: Any) -> list[Any]:
    if name == "scheme" and value == "all":
        return list(schemes.SCHEMES)
    return value if isinstance(value, list) else [value]


def _label(setting: Mapping[str, Any], names: Iterable[str]) -> str:
    parts = [
        schemes.get(setting[name]).name if name == "scheme" else f"{name}={_short(setting[name])}"
        for name in names
        if name in setting
    ]
    return " ".join(parts)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else shown(value, 200)

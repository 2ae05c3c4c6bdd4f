"""The paper's claims, checked on the runs of a study: the comparisons that each one asks for, their
bootstrap intervals over test subjects and seeds, and a verdict.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial

import numpy as np
import pandas as pd

from keras_wsgcn.errors import InputError, check_choice
from keras_wsgcn.schemes import PER, SCHEMES, Scheme
from keras_wsgcn.studies.bootstrap import Difference, bootstrap, holm

HOLDS, DOES_NOT_HOLD, NOT_DECIDABLE, NOT_RUN = "holds", "does not hold", "not decidable", "not run"
AMONG = " among the schemes run"  # behind a verdict that a further scheme might change
# How verdicts combine: the first of these that occurs is the verdict on all.
EVERY = (DOES_NOT_HOLD, NOT_DECIDABLE, HOLDS)
SOME = (HOLDS, NOT_DECIDABLE, DOES_NOT_HOLD)

LEVEL = 0.05  # of p-values, after Holm's correction within the claim
ENOUGH_SEEDS = 5  # with fewer, the whole interval must also lie
CLEAR_MM = 1.0  # farther from zero than this
SAME_SIZE = 1.1  # the factor by which runs of one size differ at most
SIZES = {"params": (1e6, "M"), "forward_mflop": (1, "MFLOP")}  # the unit in which to write them

COLUMNS = (
    "claim", "statement", "scheme", "comparison", "difference_mm", "low_mm", "high_mm",
    "p_value", "p_holm", "seeds", "subjects", "verdict", "complete",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A scheme at a size, and the errors of its runs in millimetres."""

    scheme: Scheme
    size: float  # the mean over the runs of this size
    unit: str  # of the size
    test_mm: np.ndarray  # MPJPE, (subjects, seeds)
    training_mm: np.ndarray  # root mean square of a joint, (1, seeds)


@dataclass(frozen=True)
class Comparison:
    """A signed sum of mean errors, such as one cell's less another's."""

    scheme: str  # the one that the claim speaks about
    label: str  # the difference in words
    terms: tuple[tuple[int, Cell], ...]  # +1 or -1, and the cell


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and how to check it."""

    name: str
    statement: str
    paper: str  # the paper's own figures
    compare: Callable[[list[Cell]], Iterator[Comparison]]  # what the cells of a study allow
    expected: int  # the sign of each difference if the claim is right
    rule: tuple[str, ...]  # how the verdicts on a scheme combine: EVERY or SOME
    errors: str = "test_mm"  # the field of a cell to compare
    settled: str = DOES_NOT_HOLD  # the verdict that no further scheme can change


def decide(found: Difference, p_holm: float, *, seeds: int, expected: int) -> str:
    """The verdict of one comparison: `"holds"`, `"does not hold"` or `"not decidable"`.

    The corrected p-value must be below 0.05. With fewer than five `seeds`, in the cell with the
    fewest, the whole interval must also lie above +1 mm or below -1 mm. Then the sign decides.
    """
    clear = found.low_mm > CLEAR_MM or found.high_mm < -CLEAR_MM
    if p_holm < LEVEL and (seeds >= ENOUGH_SEEDS or clear):
        return HOLDS if found.difference_mm * expected > 0 else DOES_NOT_HOLD
    return NOT_DECIDABLE


def _of(cells: list[Cell], split: str, per: str) -> list[Cell]:
    return [cell for cell in cells if (cell.scheme.split, cell.scheme.per) == (split, per)]


def _pairs(cells: list[Cell], *pers: str) -> list[tuple[Cell, ...]]:
    """The coupled and the decoupled cell of each `per`, at every size at which all were run."""
    groups = [_of(cells, split, per) for per in pers for split in ("whole", "self_others")]
    if all(len(group) == 1 for group in groups):
        return [tuple(group[0] for group in groups)]  # whatever their size, as in Table 2
    shared = set.intersection(*({cell.size for cell in group} for group in groups))
    by_size = [{cell.size: cell for cell in group} for group in groups]
    return [tuple(group[size] for group in by_size) for size in sorted(shared)]


def _label(*sides: tuple[str, tuple[Cell, ...]]) -> str:
    """`"a - b, 1.05 M"`, or `"a (2.1 M) - b (1.05 M)"`."""
    sizes = [sorted({(cell.size, cell.unit) for cell in cells}) for _, cells in sides]
    texts = ["/".join(f"{size:.3g} {unit}" for size, unit in of_side) for of_side in sizes]
    if len(set(texts)) == 1:
        return f"{' - '.join(text for text, _ in sides)}, {texts[0]}"
    return " - ".join(f"{text} ({size})" for (text, _), size in zip(sides, texts, strict=True))


def _less(first: Cell, second: Cell) -> Comparison:
    """The error of a cell, which the claim speaks about, less that of another."""
    label = _label((first.scheme.name, (first,)), (second.scheme.name, (second,)))
    return Comparison(first.scheme.name, label, ((1, first), (-1, second)))


def _decoupled_less_coupled(cells: list[Cell]) -> Iterator[Comparison]:
    for per in PER:
        for coupled, decoupled in _pairs(cells, per):
            yield _less(decoupled, coupled)


def _gain_less_others(cells: list[Cell], per: str) -> Iterator[Comparison]:
    """What decoupling gains the scheme of a `per`, less what it gains each other."""
    for other in (other for other in PER if other != per):
        for four in _pairs(cells, per, other):
            sides = [(f"gain of {pair[0].scheme.name}", pair) for pair in (four[:2], four[2:])]
            terms = tuple(zip((1, -1, -1, 1), four, strict=True))
            yield Comparison(four[1].scheme.name, _label(*sides), terms)


def _less_others(cells: list[Cell], split: str, per: str) -> Iterator[Comparison]:
    """The scheme of a row of the table, less every other at its size."""
    for cell in _of(cells, split, per):
        for other in (c for c in cells if c.size == cell.size and c.scheme != cell.scheme):
            yield _less(cell, other)


def _larger_less_smaller(cells: list[Cell]) -> Iterator[Comparison]:
    """Neighbouring sizes of the schemes with one kernel a part, run at three sizes or more."""
    for scheme in SCHEMES.values():
        own = [cell for cell in cells if cell.scheme == scheme]  # ordered by size
        if scheme.per == "graph" and len(scheme.parts) > 1 and len(own) >= 3:
            for smaller, larger in itertools.pairwise(own):
                yield _less(larger, smaller)


CLAIMS: tuple[Claim, ...] = (
    Claim("1a", "Decoupling self-connections always helps",
          "Table 2: from 53.5 to 42.0, from 40.3 to 37.8 and from 41.4 to 38.9 mm",
          _decoupled_less_coupled, -1, EVERY),
    Claim("1b", "Decoupling helps full-sharing most", "Table 2: by 11.6 mm, against 2.5 and 2.5 mm",
          partial(_gain_less_others, per="graph"), +1, EVERY),
    Claim("2a", "At equal size decoupled pre-aggregation has the lowest test error",
          "Table 4: 37.8 mm at 4.2 M and 40.1 mm at 1.05 M; at 2.1 M 39.9 mm, no-sharing 39.5 mm",
          partial(_less_others, split="self_others", per="source"), -1, EVERY),
    Claim("2b", "Decoupled full-sharing and conv-style do not improve steadily with size",
          "Table 4: at 1.05, 2.1 and 4.2 M 42.0, 42.2 and 41.7 mm; 42.7, 43.1 and 41.2 mm",
          _larger_less_smaller, +1, SOME),
    Claim("3a", "At equal size no-sharing has the lowest training loss",
          "Table 3: 6.2 mm RMS a joint against 6.9 mm and more; it had the most parameters",
          partial(_less_others, split="whole", per="edge"), -1, EVERY, "training_mm"),
    Claim("3b", "At equal size no-sharing does not have the lowest test error",
          "Table 3: 39.9 mm against 37.8 mm; Table 4: lowest at 2.1 M, not at 1.05 and 4.2 M",
          partial(_less_others, split="whole", per="edge"), +1, SOME, settled=HOLDS),
)  # fmt: skip


def check_claims(
    runs: pd.DataFrame, subjects: pd.DataFrame, *, size: str = "params"
) -> pd.DataFrame:
    """Checks each claim of the paper on the runs of one study.

    A cell is the runs of a scheme whose size differs by at most 10 %, one run a seed. Claims
    compare cells of one size, claim 1 also the only cells of its schemes at different sizes.
    `bootstrap_difference` says what the intervals cover, and how far to trust them.

    Args:
        runs: one row a run: `study`, `trial`, `outcome`, `scheme`, `seed`, `train_loss_m2` and
            the size. Only the outcome `"finished"` and the paper's schemes count.
        subjects: one row a run and subject: `study`, `trial`, `split`, `subject` and `mpjpe_mm`.
            Only the split `"test"` counts.
        size: the column that says how large a model is: `"params"` or `"forward_mflop"`.

    Returns:
        One row a comparison: `claim`, `statement`, `scheme` (that the claim speaks about),
        `comparison`, `difference_mm`, `low_mm`, `high_mm` (95 % interval), `p_value`, `p_holm`
        (corrected within the claim), `seeds` (of the cell with the fewest), `subjects`,
        `verdict`, as `decide` gives it, and `complete`: whether the claim could compare all of the
        paper's schemes that it is about, at each of its sizes. Claim 3a compares the root mean
        square training error of a joint, `sqrt(3 * train_loss_m2)`: 0 `subjects`, and an interval
        that covers seeds alone.

    Raises:
        InputError: if a column, number or test subject is missing, or a cell has a seed twice.
    """
    cells = _cells(runs, subjects, check_choice("size", size, SIZES))
    rows = [row for claim in CLAIMS for row in _rows(claim, cells)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def is_repeated(runs: pd.DataFrame, *, size: str = "params") -> bool:
    """Whether a scheme of one size was trained with one seed more than once, in other settings.

    Args:
        runs: as `check_claims` takes them, which refuses such runs.
        size: likewise.
    """
    finished = runs[runs["outcome"] == "finished"]
    if not len(finished):  # the table may have no other columns yet
        return False
    sized = finished.assign(size=_sizes(finished, size))
    return bool(sized.duplicated(["scheme", "size", "seed"]).any())


def summarise_claims(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The verdict on each claim.

    A claim holds if all its comparisons do, and does not hold if one does not. But claim 3b, and
    2b for each of its schemes, holds if one comparison does, and does not hold if none does.

    Args:
        comparisons: what `check_claims` returns.

    Returns:
        One row a claim: `claim`, `statement`, `paper` (its own figures), `verdict` (also
        `"not run"`; with `AMONG` behind it where a scheme that is missing might change it),
        `decided` and `comparisons` (how many are decided, and how many there are).

    Raises:
        InputError: if a column is missing, or a verdict unknown.
    """
    _check_columns("comparisons", comparisons, ["claim", "scheme", "verdict", "complete"])
    for verdict in set(comparisons["verdict"]):
        check_choice("comparisons.verdict", verdict, EVERY)
    rows = []
    for claim in CLAIMS:
        own = comparisons[comparisons["claim"] == claim.name]
        found = [min(each, key=claim.rule.index) for _, each in own.groupby("scheme")["verdict"]]
        verdict = min(found, key=EVERY.index, default=NOT_RUN)
        if verdict in {HOLDS, DOES_NOT_HOLD} - {claim.settled} and not own["complete"].all():
            verdict += AMONG
        decided = int((own["verdict"] != NOT_DECIDABLE).sum())
        rows.append((claim.name, claim.statement, claim.paper, verdict, decided, len(own)))
    return pd.DataFrame(rows, columns=[*COLUMNS[:2], "paper", "verdict", "decided", "comparisons"])


def _rows(claim: Claim, cells: list[Cell]) -> Iterator[tuple]:
    comparisons = list(claim.compare(cells))
    terms = [[(sign, getattr(c, claim.errors)) for sign, c in each.terms] for each in comparisons]
    found = [bootstrap(each) for each in terms]
    adjusted = holm([difference.p_value for difference in found]).tolist()
    complete = _is_complete(claim, comparisons)
    for comparison, difference, p_holm in zip(comparisons, found, adjusted, strict=True):
        seeds = min(cell.test_mm.shape[1] for _, cell in comparison.terms)
        subjects = len(cells[0].test_mm) if claim.errors == "test_mm" else 0
        verdict = decide(difference, p_holm, seeds=seeds, expected=claim.expected)
        numbers = (*astuple(difference), p_holm, seeds, subjects)
        about = (claim.name, claim.statement, comparison.scheme, comparison.label)
        yield *about, *numbers, verdict, complete


def _is_complete(claim: Claim, comparisons: Sequence[Comparison]) -> bool:
    """Whether a claim compares all schemes that it would if every one were run, equally often."""

    def compared(comparison: Comparison) -> frozenset[str]:
        return frozenset(cell.scheme.name for _, cell in comparison.terms)

    nothing = np.empty((0, 0))
    # Three sizes, as claim 2b wants them.
    every = [Cell(s, size, "", nothing, nothing) for size in (1, 2, 3) for s in SCHEMES.values()]
    counts = Counter(map(compared, comparisons))
    wanted = {compared(comparison) for comparison in claim.compare(every)}
    return all(counts[schemes] == max(counts.values(), default=0) for schemes in wanted)


def _cells(runs: pd.DataFrame, subjects: pd.DataFrame, size: str) -> list[Cell]:
    """The cells of a study, ordered by size."""
    trial, numbers = ["study", "trial"], [size, "seed", "train_loss_m2"]
    scale, unit = SIZES[size]
    _check_columns("runs", runs, ["outcome", "scheme"])
    counts = (runs["outcome"] == "finished") & runs["scheme"].isin(list(SCHEMES))
    if not counts.any():  # the table may have no other columns yet
        return []
    _check_columns("runs", runs, [*trial, *numbers])
    _check_columns("subjects", subjects, [*trial, "split", "subject", "mpjpe_mm"])
    columns = [*trial, "scheme", *numbers, *({"budget"} & set(runs))]
    finished = _with_numbers("runs", runs.loc[counts, columns], numbers)
    finished["size"] = _sizes(finished, size) / scale
    if (twice := finished.duplicated(["scheme", "size", "seed"])).any():
        raise InputError(
            f"`runs` must be of one study, with each seed once for a scheme and a size ({size} "
            f"within 10 %). Received: runs={finished[twice].to_dict('records')} once more"
        )
    tests = subjects.loc[subjects["split"] == "test", [*trial, "subject", "mpjpe_mm"]]
    joined = _with_numbers("subjects", finished.merge(tests, on=trial, how="left"), ["mpjpe_mm"])
    wanted = sorted(set(joined["subject"]))
    for run, tested in joined.groupby(trial)["subject"]:
        if sorted(tested) != wanted:
            raise InputError(
                f"`subjects` must hold each test subject, {wanted}, once for every finished run. "
                f"Received: subjects={sorted(tested)} for the run {run}"
            )
    cells = []
    for _, own in joined.groupby(["size", "scheme"]):
        test = own.pivot_table(index="subject", columns="seed", values="mpjpe_mm").to_numpy()
        loss = own.groupby("seed")["train_loss_m2"].first().to_numpy()
        training = 1000 * np.sqrt(3 * loss)[None, :]  # three coordinates; metres to millimetres
        scheme, mean = SCHEMES[own["scheme"].iloc[0]], own["size"].iloc[0]
        cells.append(Cell(scheme, mean, unit, test, training))
    return sorted(cells, key=lambda cell: (cell.size, list(SCHEMES).index(cell.scheme.name)))


def _sizes(runs: pd.DataFrame, size: str) -> pd.Series:
    """For each run the mean of all sizes that are at most 10 % above the smallest of them.

    Runs of one budget are of one size: with few channels they may come out farther apart.
    """
    given = runs[size]
    if size == "params" and "budget" in runs:
        given = given.groupby(runs["budget"]).transform("mean").fillna(given)
    counts = np.unique(given).tolist()
    smallest = [0.0]
    for count in counts:
        smallest.append(smallest[-1] if count <= SAME_SIZE * smallest[-1] else count)
    means = pd.Series(counts, dtype=float).groupby(smallest[1:]).transform("mean")
    return given.map(dict(zip(counts, means, strict=True)))


def _check_columns(name: str, frame: pd.DataFrame, columns: list[str]) -> None:
    if missing := [column for column in columns if column not in frame]:
        raise InputError(f"`{name}` must have columns {missing}. Received: columns={list(frame)}")


def _with_numbers(name: str, frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The frame, with these columns checked to be numbers."""
    numbers = frame[columns].apply(pd.to_numeric, errors="coerce")
    if (bad := ~(numbers.ge(0) & numbers.lt(math.inf)).all(axis=1)).any():
        raise InputError(
            f"`{name}` must have {columns} for every finished run, as numbers of at least 0. "
            f"Received: {name}={frame.loc[bad, ['study', 'trial', *columns]].to_dict('records')}"
        )
    return frame.assign(**{column: numbers[column] for column in columns})

import numpy as np
import pandas as pd
import pytest

from keras_wsgcn import InputError
from keras_wsgcn.schemes import SCHEMES
from keras_wsgcn.studies.bootstrap import Difference, bootstrap_difference, holm
from keras_wsgcn.studies.claims import (
    AMONG,
    CLAIMS,
    COLUMNS,
    check_claims,
    decide,
    summarise_claims,
)

pytestmark = pytest.mark.plain

M = 1_000_000
# The paper's tables 2 and 4: the test MPJPE of a scheme at its number of parameters.
TABLE_2 = {
    ("full_sharing", 264_963): 53.5,
    ("full_sharing_decoupled", 266_883): 42.0,
    ("pre_agg", 4_166_463): 40.3,
    ("pre_agg_decoupled", 4_218_243): 37.8,
    ("post_agg", 4_166_463): 41.4,
    ("post_agg_decoupled", 4_218_243): 38.9,
}
TABLE_4 = {
    (scheme, int(millions * M)): error
    for scheme, errors in {
        "full_sharing_decoupled": (42.0, 42.2, 41.7),
        "conv_style": (42.73, 43.14, 41.19),
        "pre_agg_decoupled": (40.14, 39.86, 37.83),
        "post_agg_decoupled": (40.41, 39.99, 38.92),
        "no_sharing": (40.75, 39.49, 39.62),
    }.items()
    for millions, error in zip((1.05, 2.1, 4.2), errors, strict=True)
}
# One size at which claims 2a, 3a and 3b hold.
ONE_SIZE = {
    ("conv_style", M): 42.0,
    ("pre_agg_decoupled", M + 60_000): 38.0,
    ("no_sharing", M): 40.0,
}
ALL = {**{(scheme, M): 42.0 for scheme in SCHEMES}, **ONE_SIZE}
del ALL["pre_agg_decoupled", M]
LOSSES = {"no_sharing": 1e-5}  # of the others 2e-5


def study(errors, *, seeds=5, subjects=8, losses=LOSSES, noise=0.05):
    """The tables of a study whose cells have these test errors.

    Subjects differ by far more than cells do: only a paired comparison sees anything.
    """
    rng = np.random.default_rng(0)
    offsets = np.linspace(-10, 10, subjects) if subjects > 1 else np.zeros(1)
    runs, tests = [], []
    for (scheme, params), error in errors.items():
        for seed in range(seeds):
            run = {"study": "grid", "trial": len(runs)}
            loss = losses.get(scheme, 2e-5) * (1 + 0.01 * rng.normal())
            runs.append({**run, "outcome": "finished", "scheme": scheme, "channels": 64,
                         "params": params, "seed": seed, "train_loss_m2": loss,
                         "val_mpjpe_mm": 1.0, "test_mpjpe_mm": error})  # fmt: skip
            tests.append({**run, "split": "validation", "subject": 99, "mpjpe_mm": rng.normal()})
            for subject, offset in enumerate(offsets):
                value = error + offset + noise * rng.normal()
                tests.append({**run, "split": "test", "subject": subject, "mpjpe_mm": value})
    return pd.DataFrame(runs), pd.DataFrame(tests).assign(poses=100, p_mpjpe_mm=1.0)


def verdicts(runs, subjects):
    return summarise_claims(check_claims(runs, subjects)).set_index("claim")["verdict"].to_dict()


def test_runs_of_one_budget_are_of_one_size():
    """With few channels the nearest sizes lie farther apart than 10 %."""
    runs, subjects = study({
        ("conv_style", 30_000): 42.0, ("pre_agg_decoupled", 27_473): 38.0,
        ("no_sharing", 32_124): 40.0,
    })  # fmt: skip
    assert verdicts(runs, subjects)["3a"] == "not run"
    assert verdicts(runs.assign(budget=3e4), subjects) == verdicts(*study(ONE_SIZE))
    assert verdicts(runs.assign(budget=np.nan), subjects)["3a"] == "not run"


def test_a_constant_shift_leaves_no_interval(rng):
    second = rng.normal(50, 5, (8, 1))
    found = bootstrap_difference(second + 3, second)
    np.testing.assert_allclose([found.difference_mm, found.low_mm, found.high_mm], 3)
    assert found.p_value == 2 / 10_001
    assert bootstrap_difference(second, second + 3).p_value == 2 / 10_001


def test_identical_errors_do_not_differ(rng):
    errors = rng.normal(50, 5, (8, 1))
    assert bootstrap_difference(errors, errors) == Difference(0, 0, 0, 1)
    errors = rng.normal(50, 5, (8, 5))
    found = bootstrap_difference(errors, errors)
    assert found.difference_mm == 0
    assert found.low_mm < 0 < found.high_mm
    assert found.p_value > 0.9


def test_intervals_worked_by_hand():
    """Two subjects, whose differences are -1 and 3: a resample has the mean -1, 1, 1 or 3."""
    found = bootstrap_difference([[10.0], [50.0]], [[11.0], [47.0]])
    assert (found.difference_mm, found.low_mm, found.high_mm) == (1, -1, 3)
    assert found.p_value == pytest.approx(0.5, abs=0.02)
    # One subject, two seeds: a mean is 0, 1, 1 or 2; those of the other are drawn apart.
    found = bootstrap_difference([[0.0, 2.0]], [[0.0]])
    assert np.isnan([found.low_mm, found.high_mm, found.p_value]).all()
    found = bootstrap_difference([[0.0, 2.0]], [[0.0, 0.0]])
    assert (found.difference_mm, found.low_mm, found.high_mm) == (1, 0, 2)
    found = bootstrap_difference([[0.0, 2.0]], [[0.0, 2.0]])
    assert (found.difference_mm, found.low_mm, found.high_mm) == (0, -2, 2)


def test_resampling_follows_the_seed(rng):
    first, second = rng.normal(size=(2, 6, 4))
    assert bootstrap_difference(first, second) == bootstrap_difference(first, second)
    assert bootstrap_difference(first, second) != bootstrap_difference(first, second, seed=1)


def test_coverage_with_eight_subjects(rng):
    """Subjects differ, in both and in the difference; so do seeds; and there is noise."""
    truth, covered = 1.5, []
    for seed in range(300):
        common, differing = rng.normal(50, 8, (8, 1)), rng.normal(truth, 2, (8, 1))
        first, second = (rng.normal(0, 0.5, (1, 5)) + rng.normal(0, 0.5, (8, 5)) for _ in range(2))
        found = bootstrap_difference(
            first + common + differing, second + common, resamples=500, seed=seed
        )
        covered.append(found.low_mm <= truth <= found.high_mm)
    assert 0.85 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": np.ones(3)}, r"`first` must be finite numbers, \(subjects, seeds\).*Received: "),
        ({"first": [[1.0], [np.nan], [2.0]]}, "`first` must be finite numbers"),
        ({"first": [["ten"], ["two"], ["six"]]}, "`first` must be finite numbers"),
        ({"second": np.ones((2, 1))}, r"`second` must have a row.* 3 .*second.shape=\(2, 1\)"),
        ({"resamples": 0}, "`resamples` must be an integer of at least 1"),
    ],
)
def test_bootstrap_refuses(change, message):
    arguments = {"first": np.ones((3, 2)), "second": np.ones((3, 1)), **change}
    with pytest.raises(InputError, match=message):
        bootstrap_difference(**arguments)


@pytest.mark.parametrize(
    ("given", "adjusted"),
    [
        # Sorted, times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; and none below the one before.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.7], [1, 1]),
        ([np.nan, 0.04, 0.02], [np.nan, 0.04, 0.04]),
        ([], []),
    ],
)
def test_holm_by_hand(given, adjusted):
    np.testing.assert_allclose(holm(given), adjusted)


@pytest.mark.parametrize("given", [[0.1, 1.1], [-0.1], [[0.1]]])
def test_holm_refuses(given):
    with pytest.raises(InputError, match=r"`p_values` must be.*Received: "):
        holm(given)


@pytest.mark.parametrize(
    ("interval", "p_holm", "seeds", "expected", "verdict"),
    [
        ((-0.3, -0.1), 0.01, 5, -1, "holds"),
        ((-0.3, -0.1), 0.01, 5, +1, "does not hold"),
        ((-0.3, -0.1), 0.05, 5, -1, "not decidable"),
        ((-0.3, -0.1), 0.01, 4, -1, "not decidable"),
        ((-3.0, -0.9), 0.01, 4, -1, "not decidable"),
        ((-3.0, -1.1), 0.01, 1, -1, "holds"),
        ((-3.0, -1.1), 0.05, 4, -1, "not decidable"),
        ((1.1, 3.0), 0.01, 4, -1, "does not hold"),
        ((np.nan, np.nan), np.nan, 5, -1, "not decidable"),
    ],
)
def test_five_seeds_or_a_millimetre(interval, p_holm, seeds, expected, verdict):
    difference = np.nan_to_num(np.mean(interval), nan=-2.0)
    found = Difference(difference, *interval, p_value=0.001)
    assert decide(found, p_holm, seeds=seeds, expected=expected) == verdict


STEPS = {("full_sharing_decoupled", n * M): error for n, error in ((1, 40), (2, 41), (4, 39))}
WORSE = {**STEPS, ("conv_style", M): 40, ("conv_style", 2 * M): 38, ("conv_style", 4 * M): 39}
BETTER = {**WORSE, ("conv_style", 4 * M): 36}
UNCLEAR = {**WORSE, ("conv_style", 4 * M): 38.5}


@pytest.mark.parametrize(
    ("claim", "errors", "options", "verdict"),
    [
        ("1a", TABLE_2, {}, "holds"),
        ("1a", {key: TABLE_2[key] for key in [*TABLE_2][2:]}, {}, "holds" + AMONG),
        ("1a", {**TABLE_2, ("post_agg_decoupled", 4_218_243): 41.9}, {}, "does not hold"),
        ("1a", {**TABLE_2, ("post_agg_decoupled", 4_218_243): 41.0}, {"seeds": 4}, "not decidable"),
        ("1b", TABLE_2, {}, "holds"),
        ("1b", TABLE_2, {"seeds": 1}, "holds"),
        ("1b", {**TABLE_2, ("post_agg", 4_166_463): 60}, {}, "does not hold"),
        ("1b", {**TABLE_2, ("post_agg", 4_166_463): 50}, {"seeds": 3}, "not decidable"),
        ("2a", ONE_SIZE, {}, "holds" + AMONG),
        ("2a", ALL, {}, "holds"),
        ("2a", {**ONE_SIZE, ("no_sharing", M): 36}, {}, "does not hold"),
        ("2a", {**ONE_SIZE, ("no_sharing", M): 38.5}, {"seeds": 3}, "not decidable"),
        ("2b", WORSE, {}, "holds"),
        ("2b", BETTER, {}, "does not hold"),
        ("2b", STEPS, {}, "holds" + AMONG),
        ("2b", UNCLEAR, {"seeds": 3}, "not decidable"),
        ("2b", {key: WORSE[key] for key in [*WORSE][1:3]}, {}, "not run"),
        ("3a", ONE_SIZE, {}, "holds" + AMONG),
        ("3a", {**ALL, **{(name, 2 * M): 40.0 for name, _ in ONE_SIZE}}, {}, "holds" + AMONG),
        ("3a", ONE_SIZE, {"seeds": 3, "losses": {"no_sharing": 1.6e-5}}, "not decidable"),
        ("3a", ONE_SIZE, {"losses": {**LOSSES, "conv_style": 5e-6}}, "does not hold"),
        ("3b", {**ONE_SIZE, ("no_sharing", M): 37}, {}, "does not hold" + AMONG),
        ("3b", {**ALL, ("no_sharing", M): 37}, {}, "does not hold"),
        ("3b", {**ONE_SIZE, ("no_sharing", M): 38.5}, {"seeds": 3}, "not decidable"),
    ],
)
def test_claims(claim, errors, options, verdict):
    assert verdicts(*study(errors, **options))[claim] == verdict


def test_comparisons_of_claim_1():
    table = check_claims(*study(TABLE_2, seeds=3))
    assert list(table) == list(COLUMNS)
    decoupling = table[table["claim"] == "1a"].set_index("comparison")
    by_hand = {
        "full_sharing_decoupled - full_sharing, 0.266 M": -11.5,
        "pre_agg_decoupled - pre_agg, 4.19 M": -2.5,
        "post_agg_decoupled - post_agg, 4.19 M": -2.5,
    }
    assert decoupling["difference_mm"].to_dict() == pytest.approx(by_hand, abs=0.1)
    gains = table[table["claim"] == "1b"].set_index("comparison")
    by_hand = {
        "gain of full_sharing (0.266 M) - gain of pre_agg (4.19 M)": 9,
        "gain of full_sharing (0.266 M) - gain of post_agg (4.19 M)": 9,
    }
    assert gains["difference_mm"].to_dict() == pytest.approx(by_hand, abs=0.1)
    assert set(gains["scheme"]) == {"full_sharing_decoupled"}
    assert (set(table["seeds"]), set(table["subjects"])) == ({3}, {8})
    assert table["difference_mm"].between(table["low_mm"], table["high_mm"]).all()
    np.testing.assert_allclose(gains["p_holm"], np.minimum(1, 2 * gains["p_value"]))


def test_claim_1_at_other_sizes():
    """The same channels make a decoupled scheme twice as large; with several sizes they match."""
    pair = {("pre_agg", M): 40, ("pre_agg_decoupled", 2 * M): 39}
    table = check_claims(*study(pair))
    assert table["comparison"].tolist() == ["pre_agg_decoupled (2 M) - pre_agg (1 M)"]
    more = {**pair, ("pre_agg", 2 * M): 39.5, ("pre_agg_decoupled", 4 * M): 38}
    table = check_claims(*study(more))
    table = table[table["claim"] == "1a"]
    assert table["comparison"].tolist() == ["pre_agg_decoupled - pre_agg, 2 M"]
    assert check_claims(*study({**pair, ("pre_agg", 3 * M): 39.5})).empty


def test_comparisons_of_sizes_and_of_training():
    table = check_claims(*study({**WORSE, **ONE_SIZE}, seeds=2)).set_index("comparison")
    steps = table[table["claim"] == "2b"]["difference_mm"].round().to_dict()
    assert steps == {
        "full_sharing_decoupled (2 M) - full_sharing_decoupled (1.03 M)": 1,
        "full_sharing_decoupled (4 M) - full_sharing_decoupled (2 M)": -2,
        "conv_style (2 M) - conv_style (1.03 M)": -4,
        "conv_style (4 M) - conv_style (2 M)": 1,
    }
    training = table[table["claim"] == "3a"]
    assert len(training) == 3
    assert set(training["subjects"]) == {0}
    # sqrt(3 * 1e-5) and sqrt(3 * 2e-5) metres.
    np.testing.assert_allclose(training["difference_mm"], 5.477 - 7.746, atol=0.1)
    alone = check_claims(*study(ONE_SIZE, seeds=1))
    training = alone[alone["claim"] == "3a"]
    assert training[["low_mm", "high_mm", "p_value", "p_holm"]].isna().all(axis=None)
    assert (training["difference_mm"] < -1).all()
    assert alone[alone["claim"] == "3b"]["p_holm"].notna().all()


def test_one_size_is_ten_percent():
    for params, compared in ((1_100_000, 2), (1_101_000, 0)):
        table = check_claims(*study({("no_sharing", M): 40, ("conv_style", params): 41}))
        assert len(table) == compared  # claims 3a and 3b
    runs, subjects = study({("no_sharing", M): 40, ("conv_style", 2 * M): 41})
    runs["forward_mflop"] = 3.217
    table = check_claims(runs, subjects, size="forward_mflop")
    assert set(table["comparison"]) == {"no_sharing - conv_style, 3.22 MFLOP"}
    three = {("no_sharing", M): 40, ("conv_style", 1_080_000): 41, ("pre_agg", 1_120_000): 42}
    table = check_claims(*study(three))
    assert set(table["comparison"]) == {"no_sharing - conv_style, 1.04 M"}


def test_the_papers_own_tables():
    """Its figures, as if known within 0.05 mm. Table 4 has no-sharing ahead at 2.1 M parameters."""
    found = verdicts(*study(TABLE_2))
    assert [*found.values()] == [*["holds"] * 2, "holds" + AMONG, *["not run"] * 3]
    found = verdicts(*study(TABLE_4))
    expected = [*["not run"] * 2, "does not hold", "holds", "holds" + AMONG, "holds"]
    assert [*found.values()] == expected


def test_holm_counts_the_comparisons_of_a_claim():
    errors = {("no_sharing", M): 40, ("pre_agg_decoupled", M): 40.7}
    errors |= {(name, M): 40 for name in ("conv_style", "pre_agg", "post_agg", "full_sharing")}
    table = check_claims(*study(errors, noise=1.4))
    for _, own in table.groupby("claim"):
        np.testing.assert_allclose(own["p_holm"], holm(own["p_value"]))
    # What alone would be decided is not, beside others.
    assert ((table["p_value"] < 0.05) & (table["verdict"] == "not decidable")).any()


def test_only_finished_runs_on_the_test_split_count():
    runs, subjects = study(ONE_SIZE)
    expected = check_claims(runs, subjects)
    diverged = runs.assign(trial=runs["trial"] + 100, outcome="diverged", train_loss_m2=np.nan)
    bad = subjects.assign(trial=subjects["trial"] + 100, mpjpe_mm=900.0)
    own = runs.assign(trial=runs["trial"] + 200, scheme="depth_pre_agg", mpjpe_mm=1.0)
    other = subjects.assign(trial=subjects["trial"] + 200)
    found = check_claims(pd.concat([runs, diverged, own]), pd.concat([subjects, bad, other]))
    pd.testing.assert_frame_equal(found, expected)
    worse = subjects.assign(mpjpe_mm=subjects["mpjpe_mm"].where(subjects["split"] == "test", 1e6))
    pd.testing.assert_frame_equal(check_claims(runs, worse), expected)


def test_runs_beside_slots_without_a_trial():
    """Their missing numbers turn the column `trial` into one of floats."""
    runs, subjects = study(ONE_SIZE, seeds=2)
    waiting = pd.DataFrame({"study": ["grid"], "outcome": ["not run"], "scheme": ["pre_agg"]})
    found = check_claims(pd.concat([waiting, runs]), subjects)
    pd.testing.assert_frame_equal(found, check_claims(runs, subjects))


def test_the_order_of_rows_does_not_matter():
    runs, subjects = study({**WORSE, **ONE_SIZE, ("pre_agg", M): 41}, seeds=3, noise=1.0)
    expected = check_claims(runs, subjects)
    found = check_claims(
        runs.sample(frac=1, random_state=1), subjects.sample(frac=1, random_state=2)
    )
    assert len(expected) > 10
    pd.testing.assert_frame_equal(found, expected)


def test_csv_round_trip(tmp_path):
    tables = study({**WORSE, **ONE_SIZE}, seeds=1)
    expected = check_claims(*tables)
    again = []
    for number, table in enumerate((*tables, expected)):
        table.to_csv(tmp_path / f"{number}.csv", index=False)
        again.append(pd.read_csv(tmp_path / f"{number}.csv"))
    pd.testing.assert_frame_equal(check_claims(*again[:2]), expected)
    pd.testing.assert_frame_equal(again[2], expected)
    pd.testing.assert_frame_equal(summarise_claims(again[2]), summarise_claims(expected))


def test_summary_counts_what_is_decided():
    table = summarise_claims(check_claims(*study({**ONE_SIZE, ("pre_agg", M): 38.5}, seeds=3)))
    assert list(table["claim"]) == [claim.name for claim in CLAIMS]
    best = table.set_index("claim").loc["2a"]
    assert (best["verdict"], best["decided"], best["comparisons"]) == ("not decidable", 2, 3)
    assert "no-sharing 39.5 mm" in best["paper"]


def test_the_cell_with_the_fewest_seeds_counts():
    runs, subjects = study({("no_sharing", M): 40.0, ("conv_style", M): 39.5})
    assert check_claims(runs, subjects).query("claim == '3b'")["verdict"].tolist() == ["holds"]
    for scheme in ("no_sharing", "conv_style"):
        short = runs[(runs["scheme"] != scheme) | (runs["seed"] != 2)]
        row = check_claims(short, subjects).query("claim == '3b'").iloc[0]
        assert (row["seeds"], row["verdict"]) == (4, "not decidable")


def test_without_runs_nothing_was_run(tmp_path):
    runs, subjects = study(ONE_SIZE, seeds=1)
    comparisons = check_claims(runs[["scheme"]].assign(outcome="not run"), subjects[:0])
    assert list(comparisons) == list(COLUMNS)
    comparisons.to_csv(tmp_path / "none.csv", index=False)
    for table in (comparisons, pd.read_csv(tmp_path / "none.csv")):
        summary = summarise_claims(table)
        assert (set(summary["verdict"]), set(summary["comparisons"])) == ({"not run"}, {0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r, s: (r.drop(columns="seed"), s),
            r"`runs` must have columns \['seed'\].*Received",
        ),
        (lambda r, s: (r, s.drop(columns="split")), r"`subjects` must have columns \['split'\]"),
        (lambda r, s: (r.assign(seed=0), s), "`runs` must be of one study, with each seed once"),
        (lambda r, s: (r.assign(params="1 M"), s), "`runs` must have .* numbers.*'params': '1 M'"),
        (lambda r, s: (r.assign(train_loss_m2=-1.0), s), "`runs` must have .* at least 0"),
        (lambda r, s: (r, s.assign(mpjpe_mm=np.inf)), "`subjects` must have .* numbers"),
        (lambda r, s: (r, s[s["trial"] != 2]), "`subjects` must have .* every finished run"),
        (lambda r, s: (r, s[2:]), "`subjects` must hold each test subject.*run .*0"),
        (lambda r, s: (r, pd.concat([s, s[-1:]])), "`subjects` must hold each .* once"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(InputError, match=message):
        check_claims(*change(*study(ONE_SIZE, seeds=2)))


def test_refuses_other_columns_and_verdicts():
    with pytest.raises(InputError, match="`comparisons` must have columns"):
        summarise_claims(pd.DataFrame({"claim": ["1a"]}))
    table = check_claims(*study(ONE_SIZE)).assign(verdict="maybe")
    with pytest.raises(InputError, match=r"`comparisons\.verdict` must be one of"):
        summarise_claims(table)
    with pytest.raises(InputError, match="`size` must be one of"):
        check_claims(*study(ONE_SIZE), size="channels")

import itertools

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")

from matplotlib import colors
from testing import read_picture

from keras_wsgcn import SCHEMES
from keras_wsgcn.errors import InputError
from keras_wsgcn.studies import figures
from keras_wsgcn.studies.figures import (
    draw_schemes,
    pareto_front,
    plot_error_against_params,
    plot_importances,
    plot_pareto,
    plot_search,
    plot_training_losses,
    scheme_styles,
)

pytestmark = pytest.mark.plain


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def some_runs(schemes=tuple(SCHEMES), sizes=(1.0e6, 2.0e6, 4.0e6), seeds=(0, 1)):
    rng = np.random.default_rng(0)
    cases = list(itertools.product(schemes, sizes, seeds))
    runs = pd.DataFrame(cases, columns=["scheme", "params", "seed"])
    nearly = runs.groupby("scheme", sort=False).ngroup() * 1000  # of one size, but not equal
    return runs.assign(
        study="table", cell=runs["scheme"], trial=range(len(runs)), outcome="finished",
        params=(runs["params"] + nearly).astype("Int64"),
        val_mpjpe_mm=rng.uniform(40, 60, len(runs)), test_mpjpe_mm=rng.uniform(40, 60, len(runs)),
    )  # fmt: skip


def some_epochs(runs, epochs=4):
    rows = runs[["study", "trial"]].merge(pd.DataFrame({"epoch": range(1, epochs + 1)}), "cross")
    return rows.assign(
        loss_m2=1e-4 / rows["epoch"] * (1 + rows["trial"] / 50), mpjpe_mm=40.0,
        val_mpjpe_mm=40 + 60 / rows["epoch"] + rows["trial"], learning_rate=1e-3, seconds=2.0,
    )  # fmt: skip


def some_trials(schemes=("pre_agg", "no_sharing", "mine")):
    rng = np.random.default_rng(0)
    outcomes = ["finished"] * 8 + ["pruned", "diverged", "failed"]
    cases = list(itertools.product(schemes, outcomes))
    trials = pd.DataFrame(cases, columns=["scheme", "outcome"])
    count = len(trials)
    error = np.where(trials["outcome"] == "diverged", np.nan, rng.uniform(40, 90, count))
    return trials.assign(
        study="search", trial=range(count), params=rng.integers(1e5, 1e7, count),
        channels=np.geomspace(16, 256, count).round(), dropout=rng.uniform(0, 0.5, count).round(1),
        learning_rate=np.geomspace(1e-2, 1e-4, count), latency_ms=rng.uniform(1, 2, count),
        affinity=rng.choice(["fixed", "learned"], count), val_mpjpe_mm=error, test_mpjpe_mm=np.nan,
    )  # fmt: skip


def some_importances(studies=("search: pre_agg", "search: no_sharing")):
    rows = [(s, p, v) for s in studies for p, v in (("channels", 0.7), ("dropout", 0.3))]
    return pd.DataFrame(rows, columns=["study", "parameter", "importance"])


# --- how a scheme looks -------------------------------------------------------------------------


def test_each_scheme_has_a_style_of_its_own_whatever_stands_beside_it():
    styles = scheme_styles(SCHEMES)
    assert list(styles) == list(SCHEMES)
    assert len({str(style) for style in styles.values()}) == 8
    for name in SCHEMES:
        assert scheme_styles([name, "mine"])[name] == styles[name]


def test_decoupled_schemes_are_filled_and_their_coupled_forms_hollow():
    styles = scheme_styles(SCHEMES)
    pairs = itertools.product(SCHEMES.values(), repeat=2)
    splits = ("whole", "self_others")
    pairs = [(a, b) for a, b in pairs if a.per == b.per and (a.split, b.split) == splits]
    assert len(pairs) == 3
    for coupled, decoupled in pairs:
        first, second = styles[coupled.name], styles[decoupled.name]
        assert (first["color"], first["marker"]) == (second["color"], second["marker"])
        assert first["mfc"] == "white" != second["mfc"]
        assert first["linestyle"] != "-" == second["linestyle"]


def test_schemes_of_ones_own_come_last_and_look_like_no_other():
    names = [f"mine_{number}" for number in range(10)]
    styles = scheme_styles([*names, *SCHEMES])
    assert list(styles) == [*SCHEMES, *names]
    assert len({str(style) for style in styles.values()}) == 18
    assert scheme_styles(["mine_0"])["mine_0"] == scheme_styles(["mine_0", "pre_agg"])["mine_0"]
    assert len(scheme_styles(f"mine_{number}" for number in range(40))) == 40


# --- the Pareto front ---------------------------------------------------------------------------


def front_by_definition(rows):
    def beats(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    complete = [row for row in rows if np.isfinite(row).all()]
    return [row in complete and not any(beats(other, row) for other in complete) for row in rows]


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_the_front_is_what_no_other_row_beats(rng, objectives):
    columns = list("abc")[:objectives]
    for size in (1, 2, 5, 40):
        for _ in range(20):
            values = rng.integers(0, 6, (size, objectives)).astype(float)  # with many ties
            values[rng.random(values.shape) < 0.1] = np.nan
            values[rng.random(values.shape) < 0.05] = rng.choice([np.inf, -np.inf])
            runs = pd.DataFrame(values, columns=columns, index=rng.permutation(size) + 7)
            expected = front_by_definition([tuple(row) for row in values.tolist()])
            np.testing.assert_array_equal(pareto_front(runs, columns), expected)
            assert len(runs[pareto_front(runs, columns)]) == sum(expected)


def test_the_front_takes_what_a_table_holds():
    runs = pd.DataFrame({"mm": [1.0, 2, 2, 3], "params": pd.array([3, 1, 1, None], "Int64")})
    assert pareto_front(runs, ["mm", "params"]).tolist() == [True, True, True, False]
    assert pareto_front(runs[:0], ["mm"]).tolist() == []
    words = pd.DataFrame({"mm": ["1.5", "none", None, "1"]})
    assert pareto_front(words, ["mm"]).tolist() == [False, False, False, True]


@pytest.mark.parametrize("columns", [[], "params", ["params", "speed"]])
def test_a_front_of_no_columns_is_refused(columns):
    with pytest.raises(InputError, match=r"`columns` must .*Received: columns="):
        pareto_front(some_runs(), columns)


# --- charts -------------------------------------------------------------------------------------


def test_errors_are_means_over_seeds_with_their_range(drawn, tmp_path):
    runs = some_runs(["pre_agg", "mine"], sizes=[4e6, 1e6, 2e6])
    runs.loc[len(runs)] = runs.iloc[0].to_dict() | {"outcome": "failed", "test_mpjpe_mm": 1.0}
    plot_error_against_params(runs, tmp_path / "errors.png")
    (axes,) = drawn[0].axes
    assert legend_of(drawn[0]) == ["pre_agg", "mine"]
    assert axes.get_xscale() == "log"
    own = runs[(runs["scheme"] == "pre_agg") & (runs["outcome"] == "finished")]
    errors = own.groupby("params")["test_mpjpe_mm"]
    line = next(line for line in axes.lines if line.get_label() == "pre_agg")
    np.testing.assert_allclose(line.get_xdata().astype(float), sorted(set(own["params"])))
    np.testing.assert_allclose(line.get_ydata(), errors.mean())
    bars = np.array([segment[:, 1] for segment in axes.collections[0].get_segments()])
    for low, high in zip(errors.min(), errors.max(), strict=True):
        assert np.isclose(bars, (low, high)).all(axis=1).any()
    styles = [style["color"] for style in scheme_styles(["pre_agg", "mine"]).values()]
    of_bars = [colors.to_hex(colour) for colour in axes.collections[0].get_colors()]
    assert of_bars == styles * 3  # by size, then scheme
    assert "range of the seeds" in axes.get_ylabel()


def test_schemes_of_equal_size_stand_side_by_side(drawn, tmp_path):
    runs = some_runs(sizes=[1e6], seeds=[0])
    plot_error_against_params(runs, tmp_path / "errors.png", error="val_mpjpe_mm")
    (axes,) = drawn[0].axes
    texts = [tick.get_text().split("\n")[0] for tick in axes.get_xticklabels()]
    assert texts == list(SCHEMES)
    for place, name in enumerate(SCHEMES):
        line = next(line for line in axes.lines if line.get_label() == name)
        expected = runs.loc[runs["scheme"] == name, "val_mpjpe_mm"]
        assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([place], [*expected])
    assert axes.get_ylabel() == "validation MPJPE in mm"
    assert not drawn[0].legends  # the schemes are named below


@pytest.mark.parametrize("cost", ["params", "latency_ms"])
def test_the_front_of_each_scheme_and_of_all_is_drawn(drawn, tmp_path, cost):
    trials = some_trials()
    plot_pareto(trials, tmp_path / "front.png", cost=cost)
    (axes,) = drawn[0].axes
    assert sorted(legend_of(drawn[0])) == ["front of all", "mine", "no_sharing", "pre_agg"]
    done = trials[trials["outcome"] == "finished"]
    steps = {li.get_label(): li for li in axes.lines if li.get_drawstyle() == "steps-post"}
    groups = {"front of all": done} | dict(list(done.groupby("scheme")))
    assert set(steps) == set(groups)
    for name, own in groups.items():
        front = own[pareto_front(own, [cost, "val_mpjpe_mm"])].sort_values(cost)
        np.testing.assert_allclose(steps[name].get_xdata(), front[cost])
        np.testing.assert_allclose(steps[name].get_ydata(), front["val_mpjpe_mm"])
    dots = sum(len(li.get_xdata()) for li in axes.lines if li.get_linestyle() == "None")
    assert dots == len(done)


def test_training_has_a_row_for_each_size(drawn, tmp_path):
    runs = some_runs(["pre_agg", "no_sharing"])
    plot_training_losses(runs, some_epochs(runs), tmp_path / "training.png")
    assert len(drawn[0].axes) == 6
    titles = [axes.get_title() for axes in drawn[0].axes[::2]]
    assert titles == ["4 M parameters", "2 M parameters", "1 M parameters"]
    for axes in drawn[0].axes:
        assert len(axes.lines) == 2 * (1 + 2)  # a mean and two seeds for each scheme
    assert drawn[0].axes[0].get_yscale() == "log"
    mean = drawn[0].axes[1].lines[0]
    own = runs[(runs["scheme"] == mean.get_label()) & (runs["params"] > 3e6)]
    epochs = some_epochs(runs)
    expected = epochs[epochs["trial"].isin(own["trial"])].groupby("epoch")["val_mpjpe_mm"].mean()
    np.testing.assert_allclose(mean.get_ydata(), expected)


def test_schemes_of_one_size_each_share_a_panel_as_in_the_paper(drawn, tmp_path):
    runs = some_runs(["pre_agg", "no_sharing"], sizes=[1e6], seeds=[0])
    runs["params"] = [1_000_000, 6_000_000]
    runs.loc[2] = runs.loc[0].to_dict() | {"trial": 2, "outcome": "diverged", "params": 9_000_000}
    plot_training_losses(runs, some_epochs(runs), tmp_path / "training.png")
    assert len(drawn[0].axes) == 2
    assert legend_of(drawn[0]) == ["pre_agg", "no_sharing"]


def test_importances_have_a_panel_for_each_study(drawn, tmp_path):
    plot_importances(some_importances("abcd"), tmp_path / "importances.png")
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == list("abcd")
    labels = [label.get_text() for label in panels[0].get_yticklabels()]
    assert labels == ["dropout", "channels"]  # from below
    for axes in panels:
        assert [bar.get_width() for bar in axes.patches] == [0.3, 0.7]


def test_a_search_has_a_panel_for_each_parameter(drawn, tmp_path):
    trials = some_trials().assign(epochs=np.resize([4, 8, 16], 33))
    names = ["channels", "dropout", "learning_rate", "affinity", "scheme", "epochs"]
    plot_search(trials, tmp_path / "search.png", parameters=[*names, "budget"])
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in panels] == names
    scales = [axes.get_xscale() for axes in panels]
    assert scales == [
        "log" if name in ("channels", "learning_rate") else "linear" for name in names
    ]
    assert "pruned or diverged" in legend_of(drawn[0])
    done = trials[trials["outcome"] == "finished"]
    for axes in panels:
        lines = {line.get_label(): line for line in axes.lines}
        crosses = lines.pop("pruned or diverged")
        assert set(lines) == set(trials["scheme"])
        assert sum(len(line.get_xdata()) for line in lines.values()) == len(done)
        assert len(crosses.get_xdata()) == 6  # the failed are not among them
        assert max(crosses.get_ydata()) == done["val_mpjpe_mm"].max()
        assert np.isfinite(crosses.get_ydata().astype(float)).all()
    plot_search(done, tmp_path / "search.png", parameters=names)
    assert legend_of(drawn[1]) == ["pre_agg", "no_sharing", "mine"]
    own = done[done["scheme"] == "mine"]
    line = next(line for line in panels[0].lines if line.get_label() == "mine")
    np.testing.assert_allclose(line.get_xdata(), own["channels"])


@pytest.mark.parametrize("factor", [1.2, 2, 4, 5, 25, 200, 1e4])
@pytest.mark.parametrize("least", [2e-5, 0.7, 9e5])
def test_logarithmic_axes_have_labels_that_do_not_run_into_each_other(least, factor):
    figure, (axes,) = figures._panels(1, 1, 3.4, width=3.3)  # as in a row of three
    for name in "xy":
        figures._use_log_axis(axes, name, pd.Series([least, least * factor]))
    figure.canvas.draw()
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        boxes = [text.get_window_extent() for place, text in ticks if low <= place <= high]
        assert len(boxes) >= 2
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


@pytest.mark.filterwarnings("error")
def test_tables_read_back_from_csv_are_drawn(tmp_path):
    runs, trials = some_runs(), some_trials()
    tables = {"runs": runs, "trials": trials, "epochs": some_epochs(runs)}
    for name, table in tables.items():
        table.to_csv(tmp_path / name, index=False)
        tables[name] = pd.read_csv(tmp_path / name)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    plot_error_against_params(tables["runs"], paths[0])
    plot_training_losses(tables["runs"], tables["epochs"], paths[1])
    plot_pareto(tables["trials"], str(paths[2]))
    plot_search(tables["trials"], paths[3], parameters=["learning_rate", "affinity"])
    plot_importances(some_importances(), paths[4])
    draw_schemes(paths[5])
    for path in paths:
        assert 1150 <= read_picture(path).shape[1] <= 1250


@pytest.mark.filterwarnings("error")
def test_a_single_run_is_drawn(tmp_path):
    runs = some_runs(["mine"], sizes=[1e6], seeds=[0])
    for number, draw in enumerate(
        (
            lambda path: plot_error_against_params(runs, path),
            lambda path: plot_training_losses(runs, some_epochs(runs, epochs=1), path),
            lambda path: plot_pareto(runs, path),
            lambda path: plot_search(runs, path, parameters=["params", "seed"]),
        )
    ):
        draw(tmp_path / f"{number}.png")
        read_picture(tmp_path / f"{number}.png")


# --- errors -------------------------------------------------------------------------------------

RUNS, TRIALS = some_runs(), some_trials()
EPOCHS = some_epochs(RUNS)
NOTHING = {
    "failed": RUNS.assign(outcome="failed"),
    "empty": RUNS[:0],
    "no numbers": RUNS.assign(params=np.nan, val_mpjpe_mm=np.inf),
    "no columns": RUNS[["outcome", "scheme"]],
    "no table": [1, 2],
}


@pytest.mark.parametrize("runs", NOTHING.values(), ids=NOTHING)
def test_nothing_to_draw_is_an_error_and_no_file(tmp_path, runs):
    path = tmp_path / "picture.png"
    for draw in (
        lambda: plot_error_against_params(runs, path, error="val_mpjpe_mm"),
        lambda: plot_pareto(runs, path),
        lambda: plot_training_losses(runs, EPOCHS, path),
        lambda: plot_search(runs, path, parameters=["params"]),
    ):
        with pytest.raises(InputError, match=r"(?s)`runs` must .*Received: "):
            draw()
    assert not list(tmp_path.iterdir())


BAD_CALLS = [
    (lambda p: plot_error_against_params(TRIALS, p), "`runs` must hold .*test_mpjpe_mm"),
    (lambda p: plot_pareto(TRIALS, p, cost="forward_mflop"), "`runs` must .*forward_mflop"),
    (lambda p: plot_training_losses(RUNS, EPOCHS[:0], p), "`epochs` must hold"),
    (lambda p: plot_training_losses(RUNS, EPOCHS.assign(trial=-1), p), "`epochs` must hold"),
    (lambda p: plot_training_losses(RUNS, EPOCHS[["epoch"]], p), "`epochs` must be a table"),
    (lambda p: plot_training_losses(RUNS.drop(columns="trial"), EPOCHS, p), "`runs` must be"),
    (lambda p: plot_search(TRIALS, p, parameters=[]), "`parameters` must"),
    (lambda p: plot_search(TRIALS, p, parameters=["budget"]), "`parameters` must"),
    (lambda p: plot_importances(some_importances([]), p), "`importances` must hold"),
    (lambda p: plot_importances(some_importances().drop(columns="study"), p), "`importances` must"),
    (lambda p: plot_importances(None, p), "`importances` must be a table"),
    (lambda p: draw_schemes(p, schemes=[]), "`schemes` must hold at least one"),
    (lambda p: draw_schemes(p, schemes=["dense"]), "`scheme` must be one of"),
    (lambda p: draw_schemes(p, skeleton="dog"), "`skeleton` must be one of"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD_CALLS, ids=[text for _, text in BAD_CALLS])
def test_bad_arguments_are_refused_before_a_file_is_written(tmp_path, call, message):
    with pytest.raises(InputError, match=rf"(?s){message}.*Received: "):
        call(tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["picture", "picture.jpg", None])
def test_only_png_files_are_written(path):
    for draw in (
        lambda: draw_schemes(path),
        lambda: plot_error_against_params(RUNS, path),
        lambda: plot_pareto(TRIALS, path),
        lambda: plot_training_losses(RUNS, EPOCHS, path),
        lambda: plot_importances(some_importances(), path),
        lambda: plot_search(TRIALS, path, parameters=["channels"]),
    ):
        with pytest.raises(InputError, match=r"`path` must .* Received: path="):
            draw()


def test_the_same_input_gives_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        plot_pareto(TRIALS, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

"""Pictures of studies appear, and say what the tables say."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from keras_wsgcn import SCHEMES, InputError, Scheme, Skeleton
from keras_wsgcn.skeletons import h36m_16
from keras_wsgcn.studies import figures

PNG = b"\x89PNG\r\n"
HAND = Skeleton(
    "hand",
    joint_names=("wrist", "thumb", "index", "ring"),
    parents=(-1, 0, 0, 0),
    extra_edges=[("index", "ring")],
)


def runs_of(schemes=("pre_agg", "no_sharing"), sizes=(1e6, 4e6), seeds=2, **columns):
    rng = np.random.default_rng(0)
    cells = list(itertools.product(schemes, sizes, range(seeds)))
    frame = pd.DataFrame(cells, columns=["scheme", "params", "seed"])
    frame = frame.assign(study="s", trial=range(len(cells)), outcome="finished")
    frame["cell"] = frame["scheme"] + frame["params"].astype(str)
    for name in ("val_mpjpe_mm", "test_mpjpe_mm", "latency_ms", "forward_mflop"):
        frame[name] = rng.uniform(40, 80, len(frame))
    frame["learning_rate"] = 10 ** rng.uniform(-4, -2, len(frame))
    frame["affinity"] = rng.choice(["fixed", "learned"], len(frame))
    return frame.assign(**columns)


def epochs_of(runs):
    rows = [
        {"study": "s", "trial": t, "epoch": e, "loss_m2": 1e-3 / e, "val_mpjpe_mm": 90 / e}
        for t in runs["trial"]
        for e in (1, 2, 3)
    ]
    return pd.DataFrame(rows)


def test_every_scheme_has_a_look_of_its_own():
    styles = figures.scheme_styles([*SCHEMES, "mine", "yours"])
    assert list(styles)[:8] == list(SCHEMES)
    assert len({json.dumps(style) for style in styles.values()}) == 10
    few = figures.scheme_styles(["no_sharing", "pre_agg"])
    assert few == {name: styles[name] for name in ("pre_agg", "no_sharing")}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("skeleton", [h36m_16, HAND], ids=["human", "hand"])
def test_edges_have_one_colour_if_and_only_if_they_share_a_kernel(scheme, skeleton):
    kernels = figures.edge_kernels(scheme, skeleton)
    assert len(kernels) == len(skeleton.edges)
    assert kernels.max() < SCHEMES[scheme].num_kernels(skeleton)
    if skeleton is h36m_16:  # every kernel has an edge
        assert len(set(kernels)) == SCHEMES[scheme].num_kernels(skeleton)
    colours = figures.edge_colours(scheme, skeleton)
    for a, b in itertools.combinations(range(len(colours)), 2):
        assert (colours[a] == colours[b]) == (kernels[a] == kernels[b])


def test_kernels_of_edges_by_hand():
    """Pre-aggregation looks at the source, post-aggregation at the target, whatever the other."""
    target, source = h36m_16.edges.T
    np.testing.assert_array_equal(figures.edge_kernels("pre_agg", h36m_16), source)
    np.testing.assert_array_equal(figures.edge_kernels("post_agg", h36m_16), target)
    decoupled = figures.edge_kernels("pre_agg_decoupled", h36m_16)
    np.testing.assert_array_equal(decoupled, source + 16 * (target != source))
    # Conv-style counts from the spine, joint 7: the thorax is farther, the pelvis as well.
    kernels = figures.edge_kernels("conv_style", h36m_16)
    by_edge = {tuple(edge): k for edge, k in zip(h36m_16.edges.tolist(), kernels, strict=True)}
    assert by_edge[7, 7] == by_edge[0, 0] == 0
    assert by_edge[8, 7] == by_edge[0, 7] == 1  # the source is nearer
    assert by_edge[7, 8] == by_edge[7, 0] == 2


@pytest.mark.parametrize("skeleton", ["h36m_16", "h36m_17", HAND], ids=str)
def test_joints_stand_apart(skeleton):
    from keras_wsgcn import skeletons

    place = figures.joint_positions(skeletons.get(skeleton))
    distances = np.linalg.norm(place[:, None] - place, axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 0.3


def test_the_front_is_what_no_other_row_beats():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, (40, 3)).astype(float)  # with ties
    values[3, 1], values[7, 0] = np.nan, np.inf
    frame = pd.DataFrame(values, columns=list("abc"))
    for columns in (["a", "b"], ["a", "b", "c"], ["b"]):
        rows = frame[columns].to_numpy()
        expected = [
            np.isfinite(row).all()
            and not any((other <= row).all() and (other < row).any() for other in rows)
            for row in rows
        ]
        np.testing.assert_array_equal(figures.pareto_front(frame, columns), expected)
    with pytest.raises(InputError, match="`columns` must be some of"):
        figures.pareto_front(frame, ["d"])


IMPORTANCES = pd.DataFrame(
    {"study": ["a", "a", "b"], "parameter": ["x", "y", "x"], "importance": [0.9, 0.1, 1.0]}
)
DRAWINGS = {
    "errors": lambda runs, path: figures.plot_error_against_params(runs, path),
    "pareto": lambda runs, path: figures.plot_pareto(runs, path, cost="params"),
    "training": lambda runs, path: figures.plot_training_losses(runs, epochs_of(runs), path),
    "search": lambda runs, path: figures.plot_search(
        runs, path, parameters=["learning_rate", "affinity", "missing"]
    ),
}


@pytest.mark.parametrize("drawing", DRAWINGS)
@pytest.mark.parametrize(
    "runs",
    [
        runs_of(),
        runs_of(sizes=(1e6,), seeds=1),
        runs_of(schemes=("mine",)),
        runs_of(outcome=["finished"] * 6 + ["pruned", "diverged"]),
    ],
    ids=["several sizes", "one size", "own scheme", "some pruned"],
)
def test_pictures_appear(drawing, runs, tmp_path):
    DRAWINGS[drawing](runs, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_nothing_finished_is_said(drawing, tmp_path):
    with pytest.raises(InputError, match="`runs` must hold rows of finished runs"):
        DRAWINGS[drawing](runs_of(outcome="not run"), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_importances_and_schemes(tmp_path):
    figures.plot_importances(IMPORTANCES, tmp_path / "a.png")
    own = Scheme("own", split="depth", per="source")
    figures.draw_schemes(tmp_path / "b.png", schemes=["conv_style", own], skeleton=HAND)
    assert all(path.read_bytes().startswith(PNG) for path in tmp_path.iterdir())
    with pytest.raises(InputError, match="`schemes` must hold at least one"):
        figures.draw_schemes(tmp_path / "c.png", schemes=[])
    with pytest.raises(InputError, match="`importances` must"):
        figures.plot_importances(IMPORTANCES[:0], tmp_path / "c.png")
    with pytest.raises(InputError, match="`path` must name a file"):
        figures.plot_pareto(runs_of(), tmp_path / "c.jpg")

"""What holds of any skeleton, any budget and any archive: properties, searched by Hypothesis."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testing import edge_products, in_one_order

from keras_wsgcn import SCHEMES, schemes, skeletons
from keras_wsgcn.budget import count_flops, count_params, solve_channels
from keras_wsgcn.data.archive import Motion, MotionArchive, load_archive, save_archive
from keras_wsgcn.errors import MAX_MESSAGE, InputError, check_integer, check_number, shown
from keras_wsgcn.skeletons import Skeleton

pytestmark = pytest.mark.plain
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def any_skeleton(draw):
    """A tree of joints in any order, with any further edges, pairs and centre."""
    count = draw(st.integers(2, 20))
    order = draw(st.permutations(range(count)))
    parents = [-1] * count
    for place in range(1, count):
        parents[order[place]] = order[draw(st.integers(0, place - 1))]
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    edges = draw(st.lists(pairs.filter(lambda pair: pair[0] != pair[1]), max_size=8))
    shuffled = draw(st.permutations(range(count)))
    mirrored = draw(st.integers(0, count // 2))
    mirror = [tuple(shuffled[2 * n : 2 * n + 2]) for n in range(mirrored)]
    return Skeleton(
        "any",
        tuple(f"joint {number}" for number in range(count)),
        tuple(parents),
        centre=draw(st.integers(0, count - 1)),
        extra_edges=tuple(edges),
        mirror_pairs=tuple(mirror),
    )


@QUICK
@given(any_skeleton())
def test_any_tree_with_any_edges_is_a_skeleton(skeleton):
    count, edges = skeleton.num_joints, {tuple(edge) for edge in skeleton.edges.tolist()}
    bones = {(child, parent) for child, parent in enumerate(skeleton.parents) if parent >= 0}
    undirected = bones | {tuple(edge) for edge in skeleton.extra_edges}
    wanted = {pair for a, b in undirected for pair in ((a, b), (b, a))}
    assert edges == wanted | {(joint, joint) for joint in range(count)}
    assert skeleton.edges.tolist() == sorted(skeleton.edges.tolist())
    # A depth is one more than that of the nearest neighbour, and 0 at the centre alone.
    depths = skeleton.depths
    assert depths[skeleton.centre] == 0
    for joint in set(range(count)) - {skeleton.centre}:
        assert depths[joint] == 1 + min(depths[b] for a, b in edges if a == joint != b)
    degrees = np.bincount(skeleton.edges[:, 0], minlength=count)
    for a, b in itertools.product(range(count), repeat=2):
        value = (degrees[a] * degrees[b]) ** -0.5 if (a, b) in edges else 0.0
        assert skeleton.affinity[a, b] == pytest.approx(value)
    assert np.array_equal(skeleton.mirror[skeleton.mirror], np.arange(count))
    assert skeletons.get(skeleton.get_config()) == skeleton


@QUICK
@given(any_skeleton(), st.sampled_from(list(SCHEMES)))
def test_every_edge_of_any_skeleton_takes_part_in_one_product(skeleton, name):
    for first in (True, False):
        contraction = in_one_order(schemes.get(name), skeleton, first)
        assert len(edge_products(contraction)) == len(skeleton.edges)
        assert set(edge_products(contraction).tolist()) == set(range(contraction.num_products))
        placed = np.concatenate([part.mixing_edges.ravel() for part in contraction.parts])
        assert sorted(placed[placed >= 0].tolist()) == list(range(len(skeleton.edges)))


@QUICK
@given(
    st.sampled_from(list(SCHEMES)),
    st.floats(1e3, 1e8),
    st.integers(0, 6),
    st.booleans(),
    st.booleans(),
    st.sampled_from((1, 2, 8)),
)
def test_no_other_channels_come_nearer_to_a_budget(scheme, budget, blocks, non_local, flops, step):
    cost = count_flops if flops else count_params
    size = {"blocks": blocks, "non_local": non_local}
    wanted = {"flops": budget} if flops else {"budget": budget}
    try:
        channels = solve_channels(scheme, **wanted, **size, multiple_of=step)
    except InputError:
        assert cost(scheme, 2 if step == 1 else step, **size) > budget or step == 1
        return
    assert channels % step == 0
    off = abs(cost(scheme, channels, **size) - budget)
    least = 2 if non_local else 1
    for other in (channels - step, channels + step):
        if other >= least:
            assert off <= abs(cost(scheme, other, **size) - budget)


@QUICK
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**9 - 1),
            st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_ .,+()=-]{0,20}\Z"),
            st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.,+()=-]{0,20}\Z"),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
            st.floats(0.5, 1000.0, width=32),
            st.integers(1, 4),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda row: row[:3],
    ),
    any_skeleton(),
)
def test_any_archive_comes_back(tmp_path, rows, skeleton):
    rng = np.random.default_rng(0)
    motions = [
        Motion(
            rng.uniform(0, 1, (frames, skeleton.num_joints, 3)).astype("float32"),
            subject, action, take, fps, description,
        )
        for subject, action, take, description, fps, frames in rows
    ]  # fmt: skip
    save_archive(tmp_path / "a.npz", MotionArchive(skeleton, tuple(motions)))
    again = load_archive(tmp_path / "a.npz")
    assert again.skeleton.joint_names == skeleton.joint_names
    assert again.skeleton.parents == skeleton.parents
    for one, other in zip(motions, again.motions, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
        assert {**vars(one), "positions": 0} == {**vars(other), "positions": 0}


PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@QUICK
@given(PLAIN_VALUES)
def test_anything_can_be_shown_and_is_checked(value):
    assert len(shown(value)) < 600
    for check in (
        lambda: check_integer("x", value, least=0),
        lambda: check_number("x", value, below=10.0),
        lambda: schemes.get(value),
        lambda: skeletons.get(value),
    ):
        message = refusal_of(check)
        assert message is None or "Received: " in message
        assert len(message or "") <= MAX_MESSAGE + 100


def refusal_of(check):
    try:
        check()
    except InputError as error:
        return str(error)
    return None


class Unprintable:
    def __repr__(self):
        raise ZeroDivisionError


HUGE = {
    "unprintable": Unprintable(), "digits": 10**5000, "text": "x" * 10**6, "list": [0] * 10**6,
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_what_cannot_be_written_out_can_be_shown(name):
    with pytest.raises(InputError, match=r"`x` must be .*Received: x=") as caught:
        check_integer("x", HUGE[name], least=1)
    assert len(str(caught.value)) < 1000

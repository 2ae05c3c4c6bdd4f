"""Pictures of schemes: which edges of a skeleton share a kernel."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")

from matplotlib import colors
from matplotlib.patches import FancyArrowPatch
from testing import edge_products, in_one_order, read_picture

from keras_wsgcn import SCHEMES, Scheme, Skeleton, skeletons
from keras_wsgcn.studies.figures import draw_schemes, edge_colours, edge_kernels, joint_positions

pytestmark = pytest.mark.plain

ARM = Skeleton("arm", ("shoulder", "elbow", "wrist"), (-1, 0, 1), centre="shoulder")
RING = Skeleton(  # no bones, a cycle, and a way across
    "ring", tuple("abcde"), (-1,) * 5, extra_edges=(*zip("abcde", "bcdea", strict=True), "ac")
)
OWN = Scheme("depth_per_source", split="depth", per="source")
SKELETONS = [*skeletons.SKELETONS.values(), ARM, RING]
ALL_SCHEMES = [*SCHEMES.values(), OWN]


@pytest.mark.parametrize("skeleton", SKELETONS, ids=lambda skeleton: skeleton.name)
@pytest.mark.parametrize("scheme", ALL_SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("transform_first", [True, False])
def test_kernels_of_edges_are_those_that_the_layer_uses(scheme, skeleton, transform_first):
    """The layer's own bookkeeping, `Contraction`, is the oracle."""
    contraction = in_one_order(scheme, skeleton, transform_first)
    lead = scheme.kernel_lead(skeleton)
    per_part = lead[1] if len(lead) > 1 else 1
    kernel_of_product = np.concatenate(
        [n * per_part + part.products[:, 1] for n, part in enumerate(contraction.parts)]
    )
    expected = kernel_of_product[edge_products(contraction)]
    np.testing.assert_array_equal(edge_kernels(scheme, skeleton), expected)
    assert expected.max() < scheme.num_kernels(skeleton)


@pytest.mark.parametrize("skeleton", SKELETONS, ids=lambda skeleton: skeleton.name)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_kernel_of_the_library_s_schemes_is_shown(scheme, skeleton):
    count = SCHEMES[scheme].num_kernels(skeleton)
    assert len(set(edge_kernels(scheme, skeleton))) == count
    assert len(set(edge_colours(scheme, skeleton))) == count


def test_kernels_that_no_edge_can_use_are_not_shown():
    """Nobody's neighbour is the shoulder and farther, or the wrist and nearer."""
    assert OWN.num_kernels(ARM) == 9
    assert sorted(set(edge_kernels(OWN, ARM))) == [0, 1, 2, 3, 4, 7, 8]
    assert len(set(edge_colours(OWN, ARM))) == 7


@pytest.mark.parametrize("skeleton", SKELETONS, ids=lambda skeleton: skeleton.name)
@pytest.mark.parametrize("scheme", ALL_SCHEMES, ids=lambda scheme: scheme.name)
def test_edges_share_a_colour_if_and_only_if_they_share_a_kernel(scheme, skeleton):
    kernels, colours = edge_kernels(scheme, skeleton), edge_colours(scheme, skeleton)
    same_kernel = kernels[:, None] == kernels[None]
    np.testing.assert_array_equal(np.equal.outer(colours, colours), same_kernel)
    assert len(colours) == len(skeleton.edges)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_colours_are_told_apart_above_all_at_a_joint(scheme):
    skeleton = skeletons.get("h36m_16")
    rgb = np.array([colors.to_rgb(colour) for colour in edge_colours(scheme, skeleton)])
    kernels = edge_kernels(scheme, skeleton)
    apart = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1)
    differ = kernels[:, None] != kernels[None]
    ends = [set(edge) for edge in skeleton.edges.tolist()]
    meet = np.array([[bool(a & b) for b in ends] for a in ends])
    assert apart[differ].min(initial=1) > 0.1
    assert apart[differ & meet].min(initial=1) > 0.2
    assert (1 - rgb).max(axis=1).min() > 0.2  # none is lost on white


@pytest.mark.parametrize("skeleton", SKELETONS, ids=lambda skeleton: skeleton.name)
def test_joints_stand_apart(skeleton):
    place = joint_positions(skeleton)
    apart = np.linalg.norm(place[:, None] - place[None], axis=-1)[~np.eye(len(place), dtype=bool)]
    joined = np.linalg.norm(np.subtract(*place[skeleton.edges.T]), axis=1)
    assert place.shape == (skeleton.num_joints, 2)
    assert apart.min() > 0.4
    assert joined.max() < 2


def test_people_stand_and_face_the_viewer_and_others_have_the_root_on_top():
    skeleton = skeletons.get("h36m_17")
    x, y = joint_positions(skeleton).T
    heights = [y[skeleton.index(n)] for n in ("head", "thorax", "pelvis", "l_knee", "l_ankle")]
    assert heights == sorted(heights, reverse=True)
    for left, right in skeleton.mirror_pairs:
        assert x[left] == -x[right] > 0
        assert y[left] == y[right]
    np.testing.assert_allclose(joint_positions(ARM), [[0, 1], [0, 0], [0, -1]], atol=0.1)


def test_schemes_have_a_panel_each_with_all_edges_in_their_colours(drawn, tmp_path):
    draw_schemes(tmp_path / "schemes.png")
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert len(panels) == 8
    skeleton = skeletons.get("h36m_16")
    loops = skeleton.edges[:, 0] == skeleton.edges[:, 1]
    for axes, (name, scheme) in zip(panels, SCHEMES.items(), strict=True):
        colours = np.array(edge_colours(name, skeleton))
        arrows = [p for p in axes.patches if isinstance(p, FancyArrowPatch)]
        shown = [colors.to_hex(arrow.get_edgecolor()) for arrow in arrows]
        assert shown == colours[~loops].tolist()
        rings = [line.get_color() for line in axes.lines if line.get_markerfacecolor() == "white"]
        assert rings == colours[loops].tolist()
        kernels = scheme.num_kernels(skeleton)
        title = axes.get_title()
        assert title.startswith(f"{name}, {scheme.equation}\n{kernels} kernel")


def test_arrows_lead_from_the_source_to_the_target(drawn, tmp_path):
    draw_schemes(tmp_path / "arm.png", skeleton=ARM, schemes=["no_sharing"])
    place = joint_positions(ARM)
    wanted = [(s, t) for t, s in ARM.edges.tolist() if s != t]
    ends = [arrow._posA_posB for arrow in drawn[0].axes[0].patches]
    np.testing.assert_allclose(ends, [place[list(edge)] for edge in wanted])


def test_schemes_and_skeletons_of_ones_own_are_drawn(tmp_path):
    draw_schemes(tmp_path / "arm.png", skeleton=ARM, schemes=[OWN, "pre_agg", OWN])
    draw_schemes(tmp_path / "five.png", skeleton=RING, schemes=list(SCHEMES)[:5])
    two, five = (read_picture(tmp_path / f"{name}.png") for name in ("arm", "five"))
    assert two.shape[1] * 2 == five.shape[1]


def test_unused_kernels_are_named(drawn, tmp_path):
    draw_schemes(tmp_path / "arm.png", skeleton=ARM, schemes=[OWN])
    assert drawn[0].axes[0].get_title().splitlines() == [
        "depth_per_source", "9 kernels (7 used), per source", "same depth / nearer / farther",
    ]  # fmt: skip

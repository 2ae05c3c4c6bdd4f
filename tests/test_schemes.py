import dataclasses
import json

import numpy as np
import pytest
import reference
from testing import edge_products, in_one_order

from keras_wsgcn import SCHEMES, InputError, Scheme, Skeleton, schemes
from keras_wsgcn.schemes import PER, SPLITS
from keras_wsgcn.skeletons import h36m_16

pytestmark = pytest.mark.plain

OWN = Scheme("depth_pre_agg", split="depth", per="source")


def test_the_table_has_the_eight_schemes_of_the_paper():
    assert tuple(SCHEMES) == reference.SCHEMES
    assert {name: scheme.num_kernels(h36m_16) for name, scheme in SCHEMES.items()} == (
        reference.KERNELS_16
    )


def test_rows_are_plain_frozen_data():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCHEMES["pre_agg"].split = "self_others"


@pytest.mark.parametrize("scheme", [*SCHEMES.values(), OWN], ids=lambda s: s.name)
@pytest.mark.parametrize("transform_first", [True, False])
def test_each_edge_takes_part_in_the_product_of_its_kernel(scheme, transform_first):
    contraction = in_one_order(scheme, h36m_16, transform_first)
    depth = h36m_16.depths
    number = {tuple(edge): n for n, edge in enumerate(h36m_16.edges.tolist())}
    products = [
        (number, *row)
        for number, part in enumerate(contraction.parts)
        for row in part.products.tolist()
    ]
    for edge, product in zip(h36m_16.edges.tolist(), edge_products(contraction), strict=True):
        part, joint, kernel = products[product]
        assert joint == (edge[1] if transform_first else edge[0])
        if scheme is OWN:
            step = np.sign(depth[edge[1]] - depth[edge[0]])
            assert (part, kernel) == ({0: 0, -1: 1, 1: 2}[step], edge[1])
        else:
            index = reference.kernel_index(scheme.name, *edge, depth, number)
            assert (part, kernel)[: len(index)] == index


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("full_sharing", 16), ("full_sharing_decoupled", 32), ("pre_agg", 16),
        ("pre_agg_decoupled", 32), ("post_agg", 16), ("post_agg_decoupled", 32),
        ("conv_style", 38), ("no_sharing", 46),
    ],
)  # fmt: skip
def test_the_cheaper_order_is_taken(name, products):
    assert SCHEMES[name].contraction(h36m_16, 128, 128).num_products == products


def test_pre_aggregation_would_cost_46_products_the_other_way():
    assert in_one_order(SCHEMES["pre_agg"], h36m_16, transform_first=False).num_products == 46
    for name, order in (("pre", "transform"), ("post", "aggregate")):
        for scheme in (f"{name}_agg", f"{name}_agg_decoupled"):
            assert SCHEMES[scheme].contraction(h36m_16, 8, 8).order == f"{order} first"


def test_each_part_takes_its_own_order():
    """The other way either neighbour's part would need 15, one for each joint but the centre."""
    contraction = SCHEMES["conv_style"].contraction(h36m_16, 8, 8)
    assert [len(part.products) for part in contraction.parts] == [16, 11, 11]
    assert contraction.order == "transform, transform, aggregate first"
    for first in (True, False):
        assert in_one_order(SCHEMES["conv_style"], h36m_16, first).num_products == 42


def test_mixing_happens_where_the_channels_are_fewer():
    full = SCHEMES["full_sharing"]
    assert full.contraction(h36m_16, 2, 128).order == "aggregate first"
    assert full.contraction(h36m_16, 128, 3).order == "transform first"


def test_no_scheme_of_the_paper_leaves_a_kernel_unused():
    for scheme in SCHEMES.values():
        parts = in_one_order(scheme, h36m_16, transform_first=True).parts
        used = {(n, k) for n, part in enumerate(parts) for k in part.products[:, 1].tolist()}
        assert len(used) == scheme.num_kernels(h36m_16)


def test_extra_edges_between_joints_of_one_depth_are_same_depth():
    ring = Skeleton("s", ("c", "p", "q"), (-1, 0, 0), extra_edges=[("p", "q")])
    found = SCHEMES["conv_style"].contraction(ring, 4, 4).parts
    parts = {tuple(ring.edges[e].tolist()): n for n, part in enumerate(found) for e in part.edges}
    assert parts[1, 2] == parts[2, 1] == parts[1, 1] == 0
    assert parts[1, 0] == 1
    assert parts[0, 1] == 2


@pytest.mark.parametrize("scheme", [*SCHEMES.values(), OWN], ids=lambda s: s.name)
def test_config_round_trip_through_json(scheme):
    config = json.loads(json.dumps(schemes.serialize(scheme)))
    assert schemes.get(config) == scheme
    assert isinstance(config, dict) == (scheme is OWN)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(name="", split="whole", per="graph"),
        dict(name="x", split="halves", per="graph"),
        dict(name="x", split="whole", per="joint"),
        dict(name="x", split="self_others", per="edge"),
    ],
)
def test_refuses_unknown_rows(arguments):
    with pytest.raises(InputError, match="Received: "):
        Scheme(**arguments)


def test_an_own_scheme_has_a_name_of_its_own():
    impostor = Scheme("pre_agg", split="self_others", per="source", equation="Eq. 5")
    for identifier in (impostor, impostor.get_config()):
        with pytest.raises(InputError, match=r"`scheme` .* name of its own .*'pre_agg'.*Received"):
            schemes.get(identifier)
    assert schemes.get(SCHEMES["pre_agg"].get_config()) == SCHEMES["pre_agg"]


def test_get_names_the_choices():
    with pytest.raises(InputError, match=r"`scheme` must be one of .*no_sharing.*Received: "):
        schemes.get("sharing")


def test_every_split_and_lead_is_used_by_the_table():
    assert {scheme.split for scheme in SCHEMES.values()} == set(SPLITS)
    assert {scheme.per for scheme in SCHEMES.values()} == set(PER)

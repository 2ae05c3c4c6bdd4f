import itertools
import math

import pytest

from keras_wsgcn import (
    SCHEMES,
    InputError,
    Scheme,
    Skeleton,
    build_model,
    count_flops,
    count_params,
    solve_channels,
)  # fmt: skip
from keras_wsgcn.budget import AFFINITIES

pytestmark = pytest.mark.plain

# method.md: the parameter table, to the last digit.
TABLE = [
    ("full_sharing", 180, "fixed", 264_963),
    ("full_sharing", 180, "learned", 265_423),
    ("full_sharing_decoupled", 128, "fixed", 266_883),
    ("full_sharing_decoupled", 511, "fixed", 4_196_846),
    ("full_sharing_decoupled", 512, "fixed", 4_213_251),
    ("pre_agg", 180, "fixed", 4_166_463),
    ("post_agg", 180, "fixed", 4_166_463),
    ("pre_agg_decoupled", 128, "fixed", 4_218_243),
    ("post_agg_decoupled", 128, "fixed", 4_218_243),
    ("conv_style", 128, "fixed", 398_595),
    ("conv_style", 415, "fixed", 4_150_833),
    ("conv_style", 417, "fixed", 4_190_853),
    ("no_sharing", 128, "fixed", 6_062_211),
]
BUDGETS = (4.2e6, 2.1e6, 1.05e6)
CHANNELS = {
    "full_sharing": (723, 510, 360),
    "full_sharing_decoupled": (511, 361, 255),
    "pre_agg": (181, 128, 90),
    "pre_agg_decoupled": (128, 90, 64),
    "post_agg": (181, 128, 90),
    "post_agg_decoupled": (128, 90, 64),
    "conv_style": (417, 295, 208),
    "no_sharing": (106, 75, 53),
}


def trainable(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


@pytest.mark.parametrize(("scheme", "channels", "affinity", "params"), TABLE)
def test_parameter_table_of_the_method(scheme, channels, affinity, params):
    assert count_params(scheme, channels, affinity=affinity) == params


@pytest.mark.parametrize(("scheme", "solved"), CHANNELS.items())
def test_channels_of_the_paper_s_budgets(scheme, solved):
    assert tuple(solve_channels(scheme, budget) for budget in BUDGETS) == solved


@pytest.mark.parametrize("scheme", SCHEMES)
def test_counts_equal_the_built_model(scheme):
    sizes = [(5, 1, *rest) for rest in itertools.product((False, True), AFFINITIES)]
    for channels, blocks, non_local, affinity in (
        *sizes,
        (2, 0, True, "fixed"),
        (4, 4, True, "learned"),
    ):
        size = {"blocks": blocks, "non_local": non_local, "affinity": affinity}
        model = build_model(scheme, channels=channels, **size)
        assert count_params(scheme, channels, **size) == trainable(model), size
        moving = model.count_params() - trainable(model)
        norms = 1 + 2 * blocks + (1 + blocks) * non_local
        assert moving == 2 * channels * norms


def test_counts_follow_the_skeleton_and_an_own_scheme():
    skeleton = Skeleton("s", ("a", "b", "c"), (-1, 0, 1), extra_edges=[("a", "c")])
    scheme = Scheme("own", split="depth", per="source")
    model = build_model(scheme, channels=7, skeleton=skeleton, affinity="learned", non_local=True)
    size = {"skeleton": skeleton, "affinity": "learned", "non_local": True}
    assert count_params(scheme, 7, **size) == trainable(model)


def test_non_local_block_has_the_parameters_of_the_method():
    with_blocks = count_params("pre_agg", 128, non_local=True)
    assert (with_blocks - count_params("pre_agg", 128)) == 5 * 33_472


@pytest.mark.parametrize(("scheme", "non_local"), itertools.product(SCHEMES, (False, True)))
def test_solved_channels_are_the_nearest(scheme, non_local):
    for budget in (12_345, 1.05e6, 3_000_001):
        channels = solve_channels(scheme, budget, non_local=non_local)

        def miss(c, budget=budget):
            return abs(count_params(scheme, c, non_local=non_local) - budget)

        assert miss(channels) <= miss(channels + 1)
        assert channels == 1 + non_local or miss(channels) < miss(channels - 1)


def test_ties_go_to_the_smaller():
    below, above = count_params("pre_agg", 10), count_params("pre_agg", 11)
    assert (below + above) % 2 == 1 or solve_channels("pre_agg", (below + above) // 2) == 10
    assert solve_channels("pre_agg", (below + above) / 2) == 10
    assert solve_channels("pre_agg", (below + above) / 2 + 1) == 11


@pytest.mark.parametrize("step", [8, 32])
def test_multiple_of(step):
    channels = solve_channels("no_sharing", 1.05e6, multiple_of=step)
    assert channels % step == 0

    def miss(c):
        return abs(count_params("no_sharing", c) - 1.05e6)

    assert miss(channels) == min(miss(c) for c in range(step, 512, step))


def test_impossible_budget_says_what_the_smallest_model_needs():
    least = count_params("no_sharing", 1)
    with pytest.raises(InputError, match=rf"`budget` must be at least {least:,}.*Received: "):
        solve_channels("no_sharing", least - 1)
    assert solve_channels("no_sharing", least) == 1
    with pytest.raises(InputError, match=f"at least {count_params('pre_agg', 8):,}"):
        solve_channels("pre_agg", 1000, multiple_of=8)


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf, "2e6", None, True])
def test_refuses_what_is_no_budget(budget):
    with pytest.raises(InputError, match=r"`budget` (or `flops` )?must be"):
        solve_channels("pre_agg", budget)
    with pytest.raises(InputError, match=r"`(budget` or `)?flops` must be"):
        solve_channels("pre_agg", flops=budget)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_channels_for_operations_are_the_nearest(scheme):
    for flops in (3e5, 2.71e6, 4e7):
        channels = solve_channels(scheme, flops=flops)
        distances = [
            abs(count_flops(scheme, c) - flops) for c in (channels - 1, channels, channels + 1)
        ]
        assert distances[1] == min(distances)


def test_a_budget_is_of_one_kind():
    with pytest.raises(InputError, match="`budget` or `flops` must be given, and only one"):
        solve_channels("pre_agg", 1e6, flops=1e6)
    with pytest.raises(InputError, match=r"`flops` must be at least .* smallest model"):
        solve_channels("pre_agg", flops=10)


@pytest.mark.parametrize("channels", [0, -4, 2.5, "8", None, True])
def test_refuses_what_is_no_channel_count(channels):
    for count in (count_params, count_flops):
        with pytest.raises(InputError, match="`channels` must be an integer"):
            count("pre_agg", channels)


def test_flops_of_a_model_by_hand():
    # Full sharing, C = 8, one block: products 16 (2 C + 2 C^2 + 3 C), mixing on the narrow side:
    # 2 channels in, C twice, 3 out, each by a 16 x 16 matrix; 2 per multiply-add.
    c = 8
    products = 16 * (2 * c + 2 * c * c + 3 * c)
    mixing = 16 * 16 * (2 + 2 * c + 3)
    assert count_flops("full_sharing", c, blocks=1) == 2 * (products + mixing)


def test_equal_channels_are_not_equal_cost():
    cost = {name: count_flops(name, 128) for name in SCHEMES}
    assert cost["pre_agg"] < cost["pre_agg_decoupled"] < cost["conv_style"] < cost["no_sharing"]
    # 46 products against 16, up to the mixing.
    assert 2.6 < cost["no_sharing"] / cost["full_sharing"] < 46 / 16 + 0.1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_flops_equal_the_products_that_the_layers_do(scheme, monkeypatch):
    """Counts multiply-adds while a model runs, by listening to every matrix product."""
    from keras import ops

    from keras_wsgcn import ops as graph_ops

    model = build_model(scheme, channels=6, blocks=1)
    counted = 0
    matmul = ops.matmul

    def listening(a, b):
        nonlocal counted
        y = matmul(a, b)
        counted += 2 * math.prod(y.shape) * a.shape[-1]
        return y

    monkeypatch.setattr(graph_ops.ops, "matmul", listening)
    for layer in model.layers:
        if layer.name.endswith("_conv"):
            layer(ops.zeros([layer.input_spec.axes.get(axis, 1) for axis in range(3)]))
    # What is no matrix product: scaling the joints' own part, the first, and adding up the parts.
    others = 0
    for layer in model.layers:
        if layer.name.endswith("_conv"):
            row, channels = layer.scheme, layer.input_spec.axes[layer.layout.index("c")]
            mixed = layer.units if layer.contraction.parts[0].transform_first else channels
            others += 16 * mixed * (len(row.parts) > 1) + 16 * layer.units * (len(row.parts) - 1)
    assert counted + others == count_flops(scheme, 6, blocks=1)

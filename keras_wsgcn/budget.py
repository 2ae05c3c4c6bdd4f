"""Parameters, operations and channels of a model as exact integers, without building it.

The counts follow the model of `models.py` layer by layer; tests hold them to the built model.
"""

import math
from collections.abc import Callable

from keras_wsgcn import schemes, skeletons
from keras_wsgcn.errors import (
    InputError,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    shown,
)
from keras_wsgcn.schemes import Scheme
from keras_wsgcn.skeletons import Skeleton

MAX_MIXING = 1 << 26  # numbers in the matrices of all layers of a model that mix joints
AFFINITIES = ("fixed", "learned")


def count_params(
    scheme: str | Scheme,
    channels: int,
    *,
    blocks: int = 4,
    non_local: bool = False,
    affinity: str = "fixed",
    skeleton: str | Skeleton = "h36m_16",
) -> int:
    """Trainable parameters of `build_model(scheme, channels=channels, ...)`.

    With `m` kernels a layer and 4 blocks this is `m (8 C^2 + 5 C) + (9 C + 3) + 18 C`: kernels,
    biases, and batch normalisation. Keras's `Model.count_params()` adds the moving statistics.

    Args:
        scheme: name of a scheme, or a `Scheme`.
        channels: channels of the hidden layers.
        blocks: residual blocks of two layers.
        non_local: whether non-local blocks follow the input layer and each residual block.
        affinity: `"fixed"` or `"learned"`; learned adds a logit for each edge and self-loop.
        skeleton: name of a skeleton, or a `Skeleton`.

    Returns:
        The count.

    Raises:
        InputError: if an argument is out of range.

    Example:

    >>> count_params("pre_agg_decoupled", 128)
    4218243
    """
    model = _Model(scheme, blocks, non_local, affinity, skeleton)
    return model.params(check_integer("channels", channels, least=model.least_channels))


def count_flops(
    scheme: str | Scheme,
    channels: int,
    *,
    blocks: int = 4,
    non_local: bool = False,
    affinity: str = "fixed",
    skeleton: str | Skeleton = "h36m_16",
) -> int:
    """Floating-point operations of one forward pass of one pose.

    Counts what the layers do: 2 for each multiply-add of kernels and aggregation, in the cheaper
    order. (The paper charges every scheme the same; here equal channels are not equal cost.)
    Arguments and errors are those of `count_params`.

    Returns:
        The count.
    """
    model = _Model(scheme, blocks, non_local, affinity, skeleton)
    return model.flops(check_integer("channels", channels, least=model.least_channels))


def solve_channels(
    scheme: str | Scheme,
    budget: float | None = None,
    *,
    flops: float | None = None,
    blocks: int = 4,
    non_local: bool = False,
    affinity: str = "fixed",
    skeleton: str | Skeleton = "h36m_16",
    multiple_of: int = 1,
) -> int:
    """The channels whose cost comes nearest to a budget, ties to the smaller.

    Args:
        scheme: name of a scheme, or a `Scheme`.
        budget: trainable parameters wanted, such as `2.1e6`.
        flops: operations wanted for one pose, as `count_flops` counts; excludes `budget`.
        blocks: residual blocks of two layers.
        non_local: whether non-local blocks follow the input layer and each residual block.
        affinity: `"fixed"` or `"learned"`.
        skeleton: name of a skeleton, or a `Skeleton`.
        multiple_of: the channels are a multiple of this; hardware likes 8, 16 or 32.

    Returns:
        The number of channels.

    Raises:
        InputError: if an argument is out of range, or even the smallest model needs more.

    Example:

    >>> solve_channels("post_agg", 2.1e6)
    128
    """
    model = _Model(scheme, blocks, non_local, affinity, skeleton)
    step = check_integer("multiple_of", multiple_of, least=1)
    if (budget is None) == (flops is None):
        raise InputError(
            "`budget` or `flops` must be given, and only one of them. "
            f"Received: budget={shown(budget)}, flops={shown(flops)}"
        )
    name, wanted, cost = ("budget", budget, model.params)
    if flops is not None:
        name, wanted, cost = ("flops", flops, model.flops)
    wanted = check_number(name, wanted, above=0)
    least = step * math.ceil(model.least_channels / step)
    if wanted < cost(least):
        raise InputError(
            f"`{name}` must be at least {cost(least):,}, what the smallest model of scheme "
            f"{model.scheme.name!r} ({least} channels) needs. Received: {name}={wanted!r}"
        )
    # Both costs grow with the channels: walk to the largest model within the budget.
    channels = least + step * _largest(lambda n: cost(least + step * n) <= wanted)
    below, above = cost(channels), cost(channels + step)
    return channels if wanted - below <= above - wanted else channels + step


def _largest(holds: Callable[[int], bool]) -> int:
    """The largest n for which `holds(n)`, which holds for 0 and, from some n on, no more."""
    high = 1
    while holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


class _Model:
    """The layers of a model as numbers."""

    def __init__(self, scheme, blocks, non_local, affinity, skeleton):
        self.scheme = schemes.get(scheme)
        self.skeleton = skeletons.get(skeleton)
        self.blocks = check_integer("blocks", blocks, least=0)
        self.non_local = check_flag("non_local", non_local)
        self.affinity = check_choice("affinity", affinity, AFFINITIES)
        # A non-local block halves the channels inside.
        self.least_channels = 2 if self.non_local else 1

    def _graph_convs(self, channels: int) -> tuple[tuple[int, int, int], ...]:
        """(channels in, channels out, how many) of the layers, whose number may be huge."""
        return ((2, channels, 1), (channels, channels, 2 * self.blocks), (channels, 3, 1))

    def params(self, channels: int) -> int:
        kernels = self.scheme.num_kernels(self.skeleton)
        logits = len(self.skeleton.edges) if self.affinity == "learned" else 0
        total = 0
        for inputs, outputs, count in self._graph_convs(channels):
            total += count * (kernels * inputs * outputs + outputs + logits)
        total += (1 + 2 * self.blocks) * 2 * channels  # batch normalisation: gamma and beta
        if self.non_local:
            inner = channels // 2
            embeddings = 3 * (channels * inner + inner) + 2 * inner  # theta, phi, g; w
            total += (1 + self.blocks) * (embeddings + inner * channels + channels + 2 * channels)
        return total

    def flops(self, channels: int) -> int:
        total = sum(
            count * self.scheme.contraction(self.skeleton, inputs, outputs).flops(inputs, outputs)
            for inputs, outputs, count in self._graph_convs(channels)
        )
        if self.non_local:
            joints = self.skeleton.num_joints
            pooled = len(self.skeleton.pooling_groups) or joints
            inner = channels // 2
            embeddings = 2 * joints * channels * (3 * inner + 1)  # phi, g, the output's W; theta
            affinities = 2 * pooled * inner + joints * pooled
            total += (1 + self.blocks) * (embeddings + affinities + 2 * joints * pooled * inner)
        return total


def count_mixing(scheme: Scheme, skeleton: Skeleton) -> int:
    """At most how many numbers the matrices of a layer hold by which joints are mixed."""
    parts, *lead = scheme.kernel_lead(skeleton)
    return 2 * parts * skeleton.num_joints * max([skeleton.num_joints, *lead])

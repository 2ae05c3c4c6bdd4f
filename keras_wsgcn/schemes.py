"""The table of weight-sharing schemes, and what follows from a row of it.

Every scheme is one sum over the edges of the skeleton, self-loops included,

    y_i = sum over j of  a_ij * x_j @ W[k(i, j)]

and a row says which kernel `k` an edge uses: how the neighbourhood of a joint is **split** into
parts, and what the kernel of a part varies **per**. Nothing else in the library lists the rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from keras_wsgcn import records
from keras_wsgcn.errors import InputError, check_choice, check_string
from keras_wsgcn.skeletons import Skeleton


def _depth_step(skeleton: Skeleton, target: np.ndarray, source: np.ndarray) -> np.ndarray:
    step = skeleton.depths[source] - skeleton.depths[target]
    return np.where(step == 0, 0, np.where(step < 0, 1, 2))


# How a neighbourhood can be split: the names of the parts, and the part of each edge
# (target, source).
SPLITS: dict[str, tuple[tuple[str, ...], Callable[..., np.ndarray]]] = {
    "whole": (("whole",), lambda skeleton, target, source: np.zeros_like(target)),
    "self_others": (
        ("self", "others"),
        lambda skeleton, target, source: (target != source).astype(int),
    ),
    "depth": (("same depth", "nearer", "farther"), _depth_step),
}

# What the kernel of a part can vary per: the number of kernels, and the one of each edge.
PER: dict[str, tuple[Callable[[Skeleton], int], Callable[..., np.ndarray]]] = {
    "graph": (lambda skeleton: 1, lambda target, source: np.zeros_like(target)),
    "source": (lambda skeleton: skeleton.num_joints, lambda target, source: source),
    "target": (lambda skeleton: skeleton.num_joints, lambda target, source: target),
    "edge": (lambda skeleton: len(skeleton.edges), lambda target, source: np.arange(len(target))),
}


@dataclass(frozen=True)
class Scheme(records.Record):
    """A way of sharing kernels between the edges of a skeleton.

    Args:
        name: what the scheme is called.
        split: how a joint's neighbourhood is split: `"whole"`, `"self_others"` or `"depth"`
            (same depth, nearer, farther than the joint, counted from the skeleton's centre).
        per: what the kernel of a part varies per: `"graph"` (one for all), `"source"`,
            `"target"` or `"edge"`.
        equation: where the scheme is defined.

    Raises:
        InputError: if `split` or `per` is unknown, or an edge's own kernel is split further.

    Example: a scheme of one's own is one more row.

    >>> Scheme("depth_pre_agg", split="depth", per="source").num_kernels(skeletons.h36m_16)
    48
    """

    name: str
    split: str
    per: str
    equation: str = ""

    def __post_init__(self):
        check_string("name", self.name, empty=False)
        check_string("equation", self.equation)
        for argument, choices in (("split", SPLITS), ("per", PER)):
            check_choice(argument, getattr(self, argument), choices)
        if self.per == "edge" and self.split != "whole":
            raise InputError(
                '`split` must be "whole" where `per` is "edge": such an edge has a kernel of its '
                f"own already. Received: split={self.split!r}"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts into which a neighbourhood is split."""
        return SPLITS[self.split][0]

    def kernel_lead(self, skeleton: Skeleton) -> tuple[int, ...]:
        """Leading axes of the kernel: `(parts,)`, or `(parts, joints)`, or `(1, edges)`."""
        varies = () if self.per == "graph" else (PER[self.per][0](skeleton),)
        return (len(self.parts), *varies)

    def num_kernels(self, skeleton: Skeleton) -> int:
        """How many `(in, out)` kernels a layer holds."""
        return int(np.prod(self.kernel_lead(skeleton)))

    def contraction(self, skeleton: Skeleton, inputs: int, outputs: int) -> "Contraction":
        """The cheaper order of computing each part of the sum, of `inputs` to `outputs` channels.

        Fewer matrix products come first: each also reads a joint's channels from memory. A part
        that needs as many in both is computed as is cheaper for all parts together: by products
        again, then by operations, which has the mixing on the side with fewer channels.
        """
        orders = [
            Contraction(tuple(PartialSum(self, skeleton, n, first) for n in range(len(self.parts))))
            for first in (True, False)
        ]
        orders.sort(key=lambda order: (order.num_products, order.flops(inputs, outputs)))
        parts = zip(*(order.parts for order in orders), strict=True)
        return Contraction(tuple(min(part, key=lambda one: len(one.products)) for part in parts))


@dataclass(frozen=True)
class PartialSum:
    """The sum over one part of each neighbourhood, in one order of computing it.

    *Transform first* multiplies each needed (source, kernel) pair and then mixes the products into
    the targets; *aggregate first* mixes the sources into each needed (target, kernel) pair and
    multiplies these. The matrix that mixes holds affinities and is dense: it has few rows, and a
    dense product takes less time, backwards above all, than gathering and adding edge by edge.

    Args:
        scheme: whose sum it is.
        skeleton: over whose edges.
        part: number of the part, as in `scheme.parts`.
        transform_first: the order.
    """

    scheme: Scheme
    skeleton: Skeleton
    part: int
    transform_first: bool

    @cached_property
    def edges(self) -> np.ndarray:
        """The edges of the part, as they are numbered in the skeleton."""
        target, source = self.skeleton.edges.T
        return np.flatnonzero(
            SPLITS[self.scheme.split][1](self.skeleton, target, source) == self.part
        )

    @cached_property
    def _products(self) -> tuple[np.ndarray, np.ndarray]:
        target, source = self.skeleton.edges[self.edges].T
        kernel = PER[self.scheme.per][1](*self.skeleton.edges.T)[self.edges]
        rows = np.stack((kernel, source if self.transform_first else target), axis=1)
        # Ordered by kernel, then joint, so that the products of one kernel stand together.
        products, product = np.unique(rows, axis=0, return_inverse=True)
        return products[:, ::-1], product.ravel()

    @property
    def products(self) -> np.ndarray:
        """The matrix products, `(products, 2)` rows of (joint, kernel of the part).

        The joint is the source where the transform comes first, else the target.
        """
        return self._products[0]

    @property
    def product_of_edge(self) -> np.ndarray:
        """For each of `edges` the product that it takes part in."""
        return self._products[1]

    @cached_property
    def joints(self) -> np.ndarray | None:
        """The joints to gather for the products; `None` stands for all of them in order.

        Where the aggregation comes first, mixing has gathered them.
        """
        if not self.transform_first:
            return None
        return _unless_all(self.products[:, 0], self.skeleton.num_joints)

    @cached_property
    def kernels(self) -> np.ndarray | None:
        """The kernels to gather for the products; `None` stands for all of them in order."""
        if self.scheme.per == "graph":
            return None
        return _unless_all(self.products[:, 1], PER[self.scheme.per][0](self.skeleton))

    @cached_property
    def mixing_edges(self) -> np.ndarray:
        """Which edge stands where in the matrix that mixes, -1 where none does.

        `(joints, products)` where the transform comes first, else `(products, joints)`; or
        `(joints,)`, the diagonal, where each joint takes part in nothing but its own product: a
        scaling takes half the time.
        """
        target, source = self.skeleton.edges[self.edges].T
        joints, count = self.skeleton.num_joints, len(self.products)
        if self.transform_first:
            where, shape = (target, self.product_of_edge), (joints, count)
        else:
            where, shape = (self.product_of_edge, source), (count, joints)
        matrix = np.full(shape, -1)
        matrix[where] = self.edges
        diagonal = all(_unless_all(index, joints) is None for index in where)
        return matrix.diagonal() if diagonal else matrix

    @cached_property
    def summing(self) -> np.ndarray | None:
        """Aggregating first, the 0/1 matrix that sums a target's products, `(joints, products)`.

        `None` where there is one product for every joint, in order.
        """
        joints, of = self.skeleton.num_joints, self.products[:, 0]
        if self.transform_first or _unless_all(of, joints) is None:
            return None
        return (of == np.arange(joints)[:, None]).astype(float)

    def flops(self, inputs: int, outputs: int) -> int:
        """Floating-point operations of one pose: 2 for each multiply-add, 1 for a plain one."""
        edges, mixed = self.mixing_edges, outputs if self.transform_first else inputs
        total = 2 * len(self.products) * inputs * outputs
        total += (edges.size if edges.ndim == 1 else 2 * edges.size) * mixed
        return total + (0 if self.summing is None else 2 * self.summing.size * outputs)


def _unless_all(indices: np.ndarray, count: int) -> np.ndarray | None:
    return None if np.array_equal(indices, np.arange(count)) else indices


@dataclass(frozen=True)
class Contraction:
    """How a layer computes a scheme's sum: part by part, so that nothing is concatenated or split.

    Args:
        parts: one for each part of the neighbourhoods.
    """

    parts: tuple[PartialSum, ...]

    @property
    def skeleton(self) -> Skeleton:
        return self.parts[0].skeleton

    @property
    def order(self) -> str:
        """What comes first, such as `"transform first"`; of each part, where they differ."""
        orders = ["transform" if part.transform_first else "aggregate" for part in self.parts]
        return f"{', '.join(orders if len({*orders}) > 1 else orders[:1])} first"

    @property
    def num_products(self) -> int:
        return sum(len(part.products) for part in self.parts)

    def flops(self, inputs: int, outputs: int) -> int:
        """Floating-point operations of one pose: 2 for each multiply-add, 1 for a plain one."""
        additions = (len(self.parts) - 1) * self.skeleton.num_joints * outputs
        return sum(part.flops(inputs, outputs) for part in self.parts) + additions


# The eight schemes of Liu et al., ECCV 2020.
SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("full_sharing", split="whole", per="graph", equation="Eq. 3"),
        Scheme("full_sharing_decoupled", split="self_others", per="graph", equation="Eq. 9"),
        Scheme("pre_agg", split="whole", per="source", equation="Eq. 5"),
        Scheme("pre_agg_decoupled", split="self_others", per="source", equation="Eq. 10"),
        Scheme("post_agg", split="whole", per="target", equation="Eq. 6"),
        Scheme("post_agg_decoupled", split="self_others", per="target", equation="Eq. 11"),
        Scheme("conv_style", split="depth", per="graph", equation="Eq. 8"),
        Scheme("no_sharing", split="whole", per="edge", equation="Eq. 7"),
    )
}


def get(identifier: "str | Scheme | Mapping[str, Any]") -> Scheme:
    """The scheme behind a name, a `Scheme` or the dict of its `get_config()`.

    Raises:
        InputError: if there is none.
    """
    return records.look_up("scheme", identifier, SCHEMES, Scheme)


def serialize(scheme: Scheme) -> str | dict[str, Any]:
    """What a config stores: the name of a scheme of the library, the record of any other."""
    return records.serialize(scheme, SCHEMES)

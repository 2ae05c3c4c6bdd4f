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
        """The cheaper order of computing the sum for a layer of `inputs` to `outputs` channels.

        Fewer matrix products come first: each also reads a joint's channels from memory. Where
        both orders need the same number, the mixing goes to the side with fewer channels.
        """
        orders = (Contraction(self, skeleton, first) for first in (True, False))
        return min(orders, key=lambda order: (order.num_products, order.flops(inputs, outputs)))


@dataclass(frozen=True)
class Contraction:
    """One order of computing a scheme's sum: which matrix products, and how joints are mixed.

    *Transform first* multiplies each needed (source, kernel) pair and then mixes the products into
    the targets; *aggregate first* mixes the sources into each needed (target, kernel) pair and
    multiplies these. Each part of the neighbourhoods is mixed for itself, so that nothing is
    concatenated or split, and the part of the joints themselves is a scaling: half the time of one
    matrix for all parts. The matrices hold the affinities and are dense: they have few rows, and a
    dense product takes less time, backwards above all, than gathering and adding edge by edge.
    """

    scheme: Scheme
    skeleton: Skeleton
    transform_first: bool

    @cached_property
    def parts(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each part its edges, its products (kernel, joint), and the product of each edge."""
        target, source = self.skeleton.edges.T
        part_of = SPLITS[self.scheme.split][1](self.skeleton, target, source)
        kernel = PER[self.scheme.per][1](target, source)
        rows = np.stack((kernel, source if self.transform_first else target), axis=1)
        found = []
        for part in range(len(self.scheme.parts)):
            edges = np.flatnonzero(part_of == part)
            # Ordered by kernel, then joint, so that the products of one kernel stand together.
            products, product = np.unique(rows[edges], axis=0, return_inverse=True)
            found.append((edges, products, product.ravel()))
        return found

    @cached_property
    def products(self) -> tuple[np.ndarray, ...]:
        """For each part its matrix products, `(products, 2)` rows of (joint, kernel of the part).

        The joint is the source where the transform comes first, else the target.
        """
        return tuple(rows[:, ::-1] for _, rows, _ in self.parts)

    @cached_property
    def gathers(self) -> tuple[tuple[np.ndarray | None, np.ndarray | None], ...]:
        """For each part the joints and kernels to gather for its products.

        `None` stands for all of them in order, which needs no gathering. Where the aggregation
        comes first, mixing has gathered the joints.
        """

        def unless_all(indices: np.ndarray, count: int) -> np.ndarray | None:
            return None if np.array_equal(indices, np.arange(count)) else indices

        joints = self.skeleton.num_joints
        kernels = PER[self.scheme.per][0](self.skeleton)
        return tuple(
            (
                unless_all(rows[:, 0], joints) if self.transform_first else None,
                unless_all(rows[:, 1], kernels) if self.scheme.per != "graph" else None,
            )
            for rows in self.products
        )

    @property
    def num_products(self) -> int:
        return sum(len(rows) for rows in self.products)

    @cached_property
    def mixing_edges(self) -> tuple[np.ndarray, ...]:
        """For each part, which edge stands where in its mixing matrix, -1 where none does.

        `(joints, products)` where the transform comes first, else `(products, joints)`; or
        `(joints,)`, the diagonal, where each joint takes part in nothing but its own product.
        """
        ends = self.skeleton.edges.T
        matrices = []
        for edge, rows, product in self.parts:
            target, source = ends[:, edge]
            if self.transform_first:
                where, shape = (target, product), (self.skeleton.num_joints, len(rows))
            else:
                where, shape = (product, source), (len(rows), self.skeleton.num_joints)
            matrix = np.full(shape, -1)
            matrix[where] = edge
            joints = np.arange(self.skeleton.num_joints)
            diagonal = all(np.array_equal(index, joints) for index in where)
            matrices.append(matrix.diagonal() if diagonal else matrix)
        return tuple(matrices)

    @cached_property
    def summing(self) -> tuple[np.ndarray | None, ...]:
        """Aggregating first, for each part the 0/1 matrix that sums a target's products.

        `(joints, products)`; `None` where the part has one product for every joint, in order.
        """
        joints = np.arange(self.skeleton.num_joints)
        return tuple(
            None
            if self.transform_first or np.array_equal(rows[:, 0], joints)
            else (rows[:, 0][None, :] == joints[:, None]).astype(float)
            for rows in self.products
        )

    def flops(self, inputs: int, outputs: int) -> int:
        """Floating-point operations of one pose: 2 for each multiply-add, 1 for a plain one."""
        mixed = outputs if self.transform_first else inputs
        total = 2 * self.num_products * inputs * outputs
        for edges in self.mixing_edges:
            total += (edges.size if edges.ndim == 1 else 2 * edges.size) * mixed
        total += sum(2 * matrix.size * outputs for matrix in self.summing if matrix is not None)
        return total + (len(self.products) - 1) * self.skeleton.num_joints * outputs


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

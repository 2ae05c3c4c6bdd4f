"""Skeletons: which joints there are, which are connected, and what follows from that.

The graph, its affinity matrix, the depths and the mirror all derive from one frozen record.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from keras_wsgcn import records
from keras_wsgcn.errors import InputError, check_string, is_integer, shown

Joint = int | str

MAX_JOINTS = 512  # the matrices over pairs of joints stay small; a body with hands has 150


@dataclass(frozen=True)
class Skeleton(records.Record):
    """A set of joints and the undirected edges between them.

    Joints may be given by name or by index; they are stored as indices. There can be 512.

    Args:
        name: what the skeleton is called.
        joint_names: the joints in their order, each name once.
        parents: the index of each joint's parent, -1 for a joint without one. The first joint
            without a parent is the root, to which 3D poses are relative.
        centre: the joint from which depths are counted (`conv_style` splits by them).
        extra_edges: pairs of joints connected beside the bones.
        mirror_pairs: (left, right) pairs of joints. `None` derives them from the names:
            `l_knee` and `r_knee`, `LKnee` and `RKnee`, `left_knee` and `right_knee`.
        pooling_groups: groups of joints over which non-local blocks pool, each joint once; empty
            for no pooling.

    Raises:
        InputError: if the parts do not fit together, or the graph is not connected.

    Example:

    >>> arm = Skeleton("arm", ("shoulder", "elbow", "wrist"), (-1, 0, 1), centre="shoulder")
    >>> arm.affinity.round(2)
    array([[0.5 , 0.41, 0.  ],
           [0.41, 0.33, 0.41],
           [0.  , 0.41, 0.5 ]])
    """

    name: str
    joint_names: tuple[str, ...]
    parents: tuple[int, ...]
    centre: Joint = 0
    extra_edges: tuple[tuple[Joint, Joint], ...] = ()
    mirror_pairs: tuple[tuple[Joint, Joint], ...] | None = None
    pooling_groups: tuple[tuple[Joint, ...], ...] = ()

    def __post_init__(self):
        check_string("name", self.name, empty=False)
        store = object.__setattr__  # the record is frozen for everyone else
        store(self, "joint_names", self._checked_names())
        names = self.joint_names
        store(self, "parents", self._checked_parents())
        store(self, "centre", self.index(self.centre, "centre"))
        store(self, "extra_edges", self._joint_groups("extra_edges", size=2))
        if self.mirror_pairs is None:
            store(self, "mirror_pairs", _mirror_pairs_of(names))
        else:
            store(self, "mirror_pairs", self._joint_groups("mirror_pairs", size=2))
        self._check_each_joint_once("mirror_pairs", complete=False)
        store(self, "pooling_groups", self._joint_groups("pooling_groups"))
        self._check_each_joint_once("pooling_groups", complete=bool(self.pooling_groups))
        unreached = [n for n, depth in zip(names, self.depths, strict=True) if depth < 0]
        if unreached:
            raise InputError(
                "`parents` and `extra_edges` must connect all joints; no path leads from the "
                f"centre to {unreached}. Received: parents={self.parents}, "
                f"extra_edges={self.extra_edges}"
            )

    # --- what follows from the record -----------------------------------------------------------

    @property
    def num_joints(self) -> int:
        return len(self.joint_names)

    @property
    def root(self) -> int:
        """Index of the joint to which 3D poses are relative."""
        return self.parents.index(-1)

    @cached_property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(parent, child) of every bone, in the order of the children."""
        return tuple((p, child) for child, p in enumerate(self.parents) if p >= 0)

    @cached_property
    def edges(self) -> np.ndarray:
        """All directed edges with the self-loops, `(edges, 2)` as (target, source), row by row."""
        connected = np.eye(self.num_joints, dtype=bool)
        for pair in (*self.bones, *self.extra_edges):
            a, b = map(int, pair)
            connected[a, b] = connected[b, a] = True
        return _frozen(np.argwhere(connected))

    @cached_property
    def affinity(self) -> np.ndarray:
        """`D^-1/2 (A + I) D^-1/2`, `(joints, joints)` float64 (Eq. 2 of the paper)."""
        with_loops = np.zeros((self.num_joints, self.num_joints))
        with_loops[self.edges[:, 0], self.edges[:, 1]] = 1.0
        scale = with_loops.sum(axis=1) ** -0.5
        return _frozen(scale[:, None] * with_loops * scale[None, :])

    @cached_property
    def depths(self) -> np.ndarray:
        """Path length of every joint from the centre, `(joints,)` integers, -1 if there is none."""
        depths = np.full(self.num_joints, -1)
        frontier, depth = [int(self.centre)], 0
        while frontier:
            depths[frontier] = depth
            neighbours = self.edges[np.isin(self.edges[:, 1], frontier), 0]
            frontier = [int(j) for j in np.unique(neighbours) if depths[j] < 0]
            depth += 1
        return _frozen(depths)

    @cached_property
    def mirror(self) -> np.ndarray:
        """Permutation that exchanges left and right, `(joints,)` indices."""
        permutation = np.arange(self.num_joints)
        for pair in self.mirror_pairs or ():
            left, right = map(int, pair)
            permutation[[left, right]] = right, left
        return _frozen(permutation)

    def index(self, joint: Joint, argument: str = "joint") -> int:
        """The index of a joint given by name or index.

        Raises:
            InputError: if there is no such joint.
        """
        if isinstance(joint, str) and joint in self.joint_names:
            return self.joint_names.index(joint)
        if is_integer(joint) and 0 <= int(joint) < len(self.joint_names):
            return int(joint)
        raise InputError(
            f"`{argument}` must be one of the joints {self.joint_names} or an index below "
            f"{len(self.joint_names)}. Received: {argument}={shown(joint)}"
        )

    # --- checks ---------------------------------------------------------------------------------

    def _checked_names(self) -> tuple[str, ...]:
        given = self.joint_names
        if isinstance(given, Iterable) and not isinstance(given, str):
            names = tuple(itertools.islice(given, MAX_JOINTS + 1))
            named = all(isinstance(name, str) and name for name in names)
            if named and 2 <= len(set(names)) == len(names) <= MAX_JOINTS:
                return names
        raise InputError(
            f"`joint_names` must hold 2 to {MAX_JOINTS} different non-empty strings. "
            f"Received: joint_names={shown(given)}"
        )

    def _checked_parents(self) -> tuple[int, ...]:
        count = len(self.joint_names)
        fits = isinstance(self.parents, Sequence | np.ndarray) and len(self.parents) == count
        if fits and all(map(is_integer, self.parents)):
            parents = tuple(int(p) for p in self.parents)
            if all(-1 <= p < count for p in parents):
                ends = np.append(parents, -1)  # the last is where -1 points to
                for _ in range(count.bit_length()):  # twice as far each time
                    ends = ends[ends]
                if (ends == -1).all():
                    return parents
        raise InputError(
            f"`parents` must hold {count} joint indices, one for each joint, which lead to a root, "
            f"-1. Received: parents={shown(self.parents)}"
        )

    def _joint_groups(self, argument: str, size: int | None = None) -> tuple[tuple[int, ...], ...]:
        value = getattr(self, argument)
        wanted = f"{size} different joints" if size else "different joints"
        groups = []
        try:
            for group in value:
                indices = tuple(self.index(joint, argument) for joint in group)
                if (
                    len(set(indices)) != len(indices)
                    or not indices
                    or size not in (None, len(indices))
                ):
                    raise TypeError
                groups.append(indices)
        except TypeError:
            raise InputError(
                f"`{argument}` must be a sequence of groups of {wanted}. "
                f"Received: {argument}={shown(value)}"
            ) from None
        return tuple(groups)

    def _check_each_joint_once(self, argument: str, complete: bool) -> None:
        joints = [joint for group in getattr(self, argument) for joint in group]
        if len(set(joints)) < len(joints) or (complete and len(joints) < self.num_joints):
            raise InputError(
                f"`{argument}` must name each joint {'exactly' if complete else 'at most'} once. "
                f"Received: {argument}={getattr(self, argument)}"
            )


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


# Each pattern finds the side in a name; what is left around it tells the joint.
_SIDES = (
    re.compile(r"^(?P<side>left|right)(?P<rest>.*)$", re.IGNORECASE),
    re.compile(r"^(?P<side>[lr])(?P<rest>[_. -].*)$", re.IGNORECASE),
    re.compile(r"^(?P<side>[LR])(?P<rest>[A-Z].*)$"),
    re.compile(r"^(?P<rest>.*[_. -])(?P<side>left|right|l|r)$", re.IGNORECASE),
)


def _mirror_pairs_of(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    sides: dict[tuple[int, str], dict[str, int]] = {}
    for joint, name in enumerate(names):
        for number, pattern in enumerate(_SIDES):
            if match := pattern.match(name):
                key = (number, match["rest"].lower())
                sides.setdefault(key, {})[match["side"][0].lower()] = joint
                break
    return tuple((pair["l"], pair["r"]) for pair in sides.values() if len(pair) == 2)


_H36M_17_NAMES = (
    "pelvis", "r_hip", "r_knee", "r_ankle", "l_hip", "l_knee", "l_ankle", "spine", "thorax",
    "neck_nose", "head", "l_shoulder", "l_elbow", "l_wrist", "r_shoulder", "r_elbow", "r_wrist",
)  # fmt: skip
_H36M_GROUPS = (
    ("r_knee", "r_ankle"), ("l_knee", "l_ankle"), ("r_hip", "l_hip"), ("pelvis", "spine"),
    ("thorax", "head"), ("r_elbow", "r_wrist"), ("l_elbow", "l_wrist"),
    ("l_shoulder", "r_shoulder"),
)  # fmt: skip

h36m_16 = Skeleton(
    name="h36m_16",
    joint_names=tuple(name for name in _H36M_17_NAMES if name != "neck_nose"),
    parents=(-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 8, 10, 11, 8, 13, 14),
    centre="spine",
    pooling_groups=_H36M_GROUPS,
)
h36m_17 = Skeleton(
    name="h36m_17",
    joint_names=_H36M_17_NAMES,
    parents=(-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
    centre="spine",
    pooling_groups=(*_H36M_GROUPS, ("neck_nose",)),
)
SKELETONS = {skeleton.name: skeleton for skeleton in (h36m_16, h36m_17)}


def get(identifier: "str | Skeleton | Mapping[str, Any]") -> Skeleton:
    """The skeleton behind a name, a `Skeleton` or the dict of its `get_config()`.

    Raises:
        InputError: if there is none.
    """
    return records.look_up("skeleton", identifier, SKELETONS, Skeleton)


def serialize(skeleton: Skeleton) -> str | dict[str, Any]:
    """What a config stores: the name of a skeleton of the library, the record of any other."""
    return records.serialize(skeleton, SKELETONS)

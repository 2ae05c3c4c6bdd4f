import json

import numpy as np
import pytest

from keras_wsgcn import InputError, Skeleton, skeletons
from keras_wsgcn.skeletons import h36m_16, h36m_17

pytestmark = pytest.mark.plain

SQUARE = dict(name="square", joint_names=("a", "b", "c", "d"), parents=(-1, 0, 1, 2))


def test_h36m_16_is_the_paper_s_skeleton():
    assert h36m_16.num_joints == 16
    assert len(h36m_16.edges) == 46  # 16 self-loops and 15 bones in both directions
    assert h36m_16.joint_names[h36m_16.centre] == "spine"
    assert h36m_16.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 8, 10, 11, 8, 13, 14)
    pairs = ((2, 3), (5, 6), (1, 4), (0, 7), (8, 9), (14, 15), (11, 12), (10, 13))
    assert h36m_16.pooling_groups == pairs


def test_h36m_17_adds_neck_nose():
    assert h36m_17.joint_names[9] == "neck_nose"
    assert h36m_17.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
    assert (9,) in h36m_17.pooling_groups
    assert sorted(j for group in h36m_17.pooling_groups for j in group) == list(range(17))


@pytest.mark.parametrize("skeleton", skeletons.SKELETONS.values(), ids=lambda s: s.name)
def test_affinity_is_eq_2(skeleton):
    adjacency = np.eye(skeleton.num_joints)
    for child, parent in enumerate(skeleton.parents):
        if parent >= 0:
            adjacency[child, parent] = adjacency[parent, child] = 1
    root = np.diag(adjacency.sum(axis=1) ** -0.5)
    np.testing.assert_allclose(skeleton.affinity, root @ adjacency @ root, rtol=1e-15)


def test_depths_are_path_lengths_from_the_centre():
    depth = dict(zip(h36m_16.joint_names, h36m_16.depths, strict=True))
    assert depth["spine"] == 0
    assert depth["pelvis"] == depth["thorax"] == 1
    assert depth["r_hip"] == depth["head"] == depth["l_shoulder"] == 2
    assert depth["r_ankle"] == depth["l_wrist"] == 4


def test_extra_edges_shorten_paths_and_join_the_affinity():
    ring = Skeleton(**SQUARE, extra_edges=[("a", "d")])
    assert ring.depths.tolist() == [0, 1, 2, 1]
    np.testing.assert_allclose(ring.affinity[0, 3], 1 / 3)
    assert len(ring.edges) == 4 + 8


@pytest.mark.parametrize(
    "names",
    [
        ("pelvis", "l_hip", "r_hip"),
        ("Hip", "LHip", "RHip"),
        ("hip", "left_hip", "right_hip"),
        ("hip", "LeftHip", "RightHip"),
        ("hip", "hip_l", "hip_r"),
        ("head", "l eye", "R eye"),
    ],
)
def test_mirror_pairs_follow_from_names(names):
    skeleton = Skeleton("s", names, (-1, 0, 0))
    assert skeleton.mirror_pairs == ((1, 2),)
    assert skeleton.mirror.tolist() == [0, 2, 1]


def test_names_that_only_look_sided_make_no_pairs():
    assert Skeleton("s", ("root", "leg", "rib", "lip"), (-1, 0, 0, 0)).mirror_pairs == ()


def test_given_mirror_pairs_win():
    skeleton = Skeleton("s", ("c", "p", "q"), (-1, 0, 0), mirror_pairs=[("p", "q")])
    assert skeleton.mirror.tolist() == [0, 2, 1]


def test_mirror_of_h36m_exchanges_left_and_right():
    for joint, mirrored in enumerate(h36m_16.mirror):
        name = h36m_16.joint_names[joint]
        expected = {"l": "r" + name[1:], "r": "l" + name[1:]}.get(name.split("_")[0], name)
        assert h36m_16.joint_names[mirrored] == expected


@pytest.mark.parametrize(
    "skeleton", [h36m_16, h36m_17, Skeleton(**SQUARE, extra_edges=[(0, 3)], centre="b")]
)
def test_config_round_trip_through_json(skeleton):
    config = json.loads(json.dumps(skeleton.get_config()))
    assert Skeleton.from_config(config) == skeleton
    assert skeletons.get(config) == skeleton
    assert skeletons.get(skeletons.serialize(skeleton)) == skeleton


def test_names_serialise_as_names_and_own_skeletons_as_records():
    assert skeletons.serialize(h36m_16) == "h36m_16"
    impostor = Skeleton("h36m_16", ("a", "b"), (-1, 0))
    assert isinstance(skeletons.serialize(impostor), dict)
    with pytest.raises(InputError, match=r"`skeleton` .* name of its own .*'h36m_16'.*Received: "):
        skeletons.get(impostor)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"name": ""}, "name"),
        ({"joint_names": ("a", "a", "b", "c")}, "joint_names"),
        ({"joint_names": ("a",)}, "joint_names"),
        ({"parents": (-1, 0)}, "parents"),
        ({"parents": (-1, 0, 1, 9)}, "parents"),
        ({"parents": (-1, 0, 2, 2)}, "parents"),
        ({"parents": (1, 0, 1, 2)}, "parents"),
        ({"parents": (-1, 0, 1, 2.5)}, "parents"),
        ({"parents": (-1, 0, True, 2)}, "parents"),
        ({"parents": (-1, 0, 3, 2)}, "parents"),  # c and d hang on each other alone
        ({"parents": (-1, 0, 3, 2), "extra_edges": [("a", "c")]}, "parents"),
        ({"parents": (-1, 0, -1, 2)}, "parents"),
        ({"centre": "e"}, "centre"),
        ({"centre": 4}, "centre"),
        ({"extra_edges": [("a", "z")]}, "extra_edges"),
        ({"extra_edges": [("a", "a")]}, "extra_edges"),
        ({"extra_edges": [("a", "b", "c")]}, "extra_edges"),
        ({"extra_edges": 3}, "extra_edges"),
        ({"mirror_pairs": [("a", "b"), ("b", "c")]}, "mirror_pairs"),
        ({"pooling_groups": [("a", "b")]}, "pooling_groups"),
        ({"pooling_groups": [("a", "b"), ("b", "c", "d")]}, "pooling_groups"),
    ],
)
def test_refuses_what_does_not_fit(changes, argument):
    with pytest.raises(InputError, match=rf"`{argument}`.*Received: ") as caught:
        Skeleton(**{**SQUARE, **changes})
    assert "Received: " in str(caught.value)


@pytest.mark.parametrize("value", ["h36m_18", 3, None, {"name": "x"}])
def test_get_refuses_the_unknown(value):
    with pytest.raises(InputError, match="Received: "):
        skeletons.get(value)


def test_cached_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        h36m_16.affinity[0, 0] = 2.0

"""BVH files: geometry worked out by hand, and files that are broken."""

import numpy as np
import pytest
from mocap_files import JOINTS, PLAIN, J, asf_text, bvh, bvh_text, near

from keras_wsgcn.data.mocap import CMU_METRES, BvhLayout, read_bvh
from keras_wsgcn.errors import InputError

pytestmark = pytest.mark.plain


def test_bvh_rest_pose(tmp_path):
    motion = bvh(tmp_path, {"Hips": (1, 2, 3, 0, 0, 0)})
    assert (motion.key, motion.source, motion.source_kind) == (
        "S008/Unknown/08_01", "08_01.bvh", "bvh",
    )  # fmt: skip
    pose = motion.positions[0] - np.array((0.05, -0.15, 0.1))
    for joint, place in {
        "pelvis": (0, 0, -1), "l_hip": (1, 0, -1), "r_ankle": (-1, 0, -14), "spine": (0, 0, 2),
        "thorax": (0, -0.5, 4), "neck_nose": (0, -0.5, 7), "head": (0, -0.5, 8),
        "l_shoulder": (3, -0.5, 5), "r_wrist": (-12, -0.5, 5),
    }.items():  # fmt: skip
        near(pose[J[joint]], np.array(place) / 20)


def test_bvh_joint_turns_what_hangs_on_it_and_not_itself(tmp_path):
    rest, turned = bvh(tmp_path, {}, {"LeftForeArm": (90, 0, 0)}).positions
    near(turned[J["l_elbow"]], rest[J["l_elbow"]])
    near(turned[J["l_wrist"]] - turned[J["l_elbow"]], (0, 0, 0.2))  # about z: left becomes up
    moved = np.abs(turned - rest).max(axis=-1) > 1e-6
    assert moved.nonzero()[0].tolist() == [J["l_wrist"]]


def test_bvh_rotations_apply_in_the_order_of_the_channels(tmp_path):
    angles = {"LeftUpLeg": (90, 0, 90)}
    pose = bvh(tmp_path, angles).positions[0]
    near(pose[J["l_knee"]] - pose[J["l_hip"]], (0, 0.35, 0))  # down, about x: back, about z: back
    pose = bvh(tmp_path, angles, order="Xrotation Yrotation Zrotation").positions[0]
    near(pose[J["l_knee"]] - pose[J["l_hip"]], (0.35, 0, 0))  # down, about z: left, about x: left


def test_bvh_with_z_up_stays_as_it_is(tmp_path):
    y_up = bvh(tmp_path, {"Spine": (30, 20, 10)}).positions
    layout = BvhLayout(joints=PLAIN.joints, metres_per_unit=0.05, up="z")
    z_up = bvh(tmp_path, {"Spine": (30, 20, 10)}, layout=layout).positions
    near(z_up, np.stack([y_up[..., 0], y_up[..., 2], -y_up[..., 1]], axis=-1))


def test_conversions_of_cmu_get_their_bones_back(tmp_path):
    first = {"Hips": (50, 50, 50, 10, 10, 10)}  # no part of the take
    motion = bvh(tmp_path, first, {"LeftForeArm": (90, 0, 0), "Spine1": (0, 0, 90)}, layout=None)
    assert motion.positions.shape == (1, 17, 3)
    pose = motion.positions[0] / CMU_METRES
    # below the end of (0, 2, 0.5), turned about x by 90 degrees: the bone (0, 2, 0.5 + 0.4 * 0.5)
    near(pose[J["spine"]], (0, 0, 2))
    thorax = np.array((0, -0.5 - 2, 4 - 0.7))
    near(pose[J["thorax"]], thorax)
    near(pose[J["neck_nose"]], np.add(thorax, (0, -3, 0)))
    near(pose[J["r_shoulder"]], np.add(thorax, (-3, -1, 0)))
    near(pose[J["r_wrist"]] - pose[J["r_elbow"]], (-6, 0, 0))  # the forearm and half of it
    near(pose[J["l_wrist"]] - pose[J["l_elbow"]], (0, -6, 0))


def test_thorax_of_the_persons_own_skeleton(tmp_path):
    (tmp_path / "own.asf").write_text(asf_text(length=0.45))
    motion = bvh(tmp_path, {}, {}, layout=None, asf=tmp_path / "own.asf")
    near(motion.positions[0, J["thorax"]] / CMU_METRES, (0, -0.5 - 0.02, 4 + 0.1))
    assert motion.source_kind == "bvh+asf"
    (tmp_path / "own.asf").write_text(asf_text().replace("thorax", "chest"))
    with pytest.raises(InputError, match=r"`asf` .*lacks \['thorax'\]"):
        bvh(tmp_path, {}, {}, layout=None, asf=tmp_path / "own.asf")


def test_file_of_the_same_names_from_elsewhere_is_not_taken_for_a_conversion(tmp_path):
    joints = {**JOINTS, "Neck": ("Spine1", (0, 1, 0))}
    with pytest.raises(InputError, match=r"missing above `Spine1`, but the file has one"):
        bvh(tmp_path, {}, {}, layout=None, joints=joints)


@pytest.mark.parametrize(("scale", "unit"), [(0.05, 1.0), (5, 0.01), (50, 0.001)])
def test_people_of_another_size_are_another_unit(tmp_path, scale, unit):
    """The hand-made person is of CMU's unit as it is; here it is written in metres, cm and mm."""
    joints = {name: (above, np.multiply(o, scale)) for name, (above, o) in JOINTS.items()}
    message = r"`metres_per_unit`, which is 0\.05644, must give people.*Received: 08_01\.bvh with"
    with pytest.raises(InputError, match=message):
        bvh(tmp_path, {}, {}, layout=None, joints=joints)
    given = bvh(tmp_path, {}, {}, layout=None, joints=joints, metres_per_unit=unit)
    expected = bvh(tmp_path, {}, layout=PLAIN).positions  # whose unit is 0.05
    near(given.positions[:, J["r_knee"]], expected[:, J["r_knee"]])
    with pytest.raises(InputError, match=r"`metres_per_unit` must be a number above 0.*nan"):
        bvh(tmp_path, {}, {}, layout=None, joints=joints, metres_per_unit=float("nan"))


def test_missing_joint_lists_those_of_the_file(tmp_path):
    layout = BvhLayout(joints={**PLAIN.joints, "head": "Skull"}, metres_per_unit=0.1)
    with pytest.raises(InputError, match=r"lacks \['Skull'\]; it has \['Head', 'Head/end', 'Hips'"):
        bvh(tmp_path, {}, layout=layout)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"joints": {"head": "Head"}}, "`joints` must have exactly the keys"),
        (
            {"joints": {**PLAIN.joints, "head": {"Head": 0.7, "Neck": 0.7}}},
            r"sum to 1. Received: joints\['head'\]",
        ),
        ({"up": "x"}, r"`up` must be one of \['y', 'z'\]. Received: up='x'"),
        ({"metres_per_unit": 0}, "`metres_per_unit` must be a number above 0"),
        ({"metres_per_unit": np.nan}, "`metres_per_unit` must be a number above 0"),
    ],
)
def test_layout_is_checked(changes, words):
    with pytest.raises(InputError, match=words):
        BvhLayout(**{"joints": PLAIN.joints, "metres_per_unit": 0.1} | changes)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("OFFSET 0 2 0.5", "OFFSET 0 2", ["expected 3 finite numbers"]),
        ("OFFSET 0 2 0.5", "OFFSET 0 2 inf", ["finite"]),
        ("CHANNELS 3 Zrotation", "CHANNELS 3 Wrotation", ["line {line}", "channels"]),
        ("CHANNELS 3 Zrotation", "CHANNELS 4 Zrotation", ["line {line}", "channels"]),
        ("CHANNELS 3 Zrotation", "CHANNELS 99999999999 Zrotation", ["line {line}", "channels"]),
        ("JOINT Spine1", "JOINT Spine", ["two joints `Spine`"]),
        ("JOINT Spine1", "BONE Spine1", ["'BONE' was not expected"]),
        ("HIERARCHY", "}", ["line 1", "'}' was not expected"]),
        ("HIERARCHY", "{", ["line {line}", "'{' was not expected"]),
        ("HIERARCHY", "OFFSET 0 0 0", ["line {line}", "'OFFSET' was not expected"]),
        ("}\nMOTION", "MOTION", ["'MOTION' was not expected"]),
        ("MOTION", "", ["'Frames:' was not expected"]),
        ("Frames: 2", "Frames: 3", ["declares 3 frames", "holds 2 frames"]),
        ("Frames: 2", "Frames: two", ["'two'"]),
        ("Frames: 2\n", "", ["expected `Frames:`"]),
        ("Frame Time: .0083333", "Frame Time: 0", ["of 0 s"]),
        ("\n0 0 0 ", "\n0 0 ", ["expected 60 finite numbers"]),
        ("\n0 0 0 ", "\n0 0 nan ", ["finite numbers"]),
    ],
)
def test_malformed_bvh(tmp_path, old, new, words):
    text = bvh_text({}, {})
    assert old in text
    (tmp_path / "08_01.bvh").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        read_bvh(tmp_path / "08_01.bvh", layout=PLAIN)
    line = text[: text.index(old)].count("\n") + 1
    for word in ("`path`", "08_01.bvh", "Received: path=", *words):
        assert word.replace("{line}", str(line)) in str(caught.value)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.97])
def test_truncated_bvh(tmp_path, part):
    text = bvh_text(*[{}] * 20)
    (tmp_path / "08_01.bvh").write_text(text[: int(len(text) * part)])
    with pytest.raises(InputError, match=r"`path` must be a readable \.bvh file"):
        read_bvh(tmp_path / "08_01.bvh", layout=PLAIN)


def test_bvh_with_no_frame_but_the_rest_pose(tmp_path):
    with pytest.raises(InputError, match="no frame after the first 1"):
        bvh(tmp_path, {}, layout=None)

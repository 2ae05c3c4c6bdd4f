"""Motion capture files: geometry worked out by hand, CMU's own files, and files that are broken."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path

import cli
import numpy as np
import prepare_data
import pytest

from keras_wsgcn.data import mocap_formats
from keras_wsgcn.data.archive import Motion, load_archive
from keras_wsgcn.data.mocap import (
    CGSPEED,
    CMU_BONES,
    CMU_METRES,
    BvhLayout,
    read_asf_amc,
    read_bvh,
)
from keras_wsgcn.data.mocap_folders import cut, read_folder, read_labels, split_at_jumps
from keras_wsgcn.errors import InputError
from keras_wsgcn.skeletons import h36m_17

J = {name: joint for joint, name in enumerate(h36m_17.joint_names)}


@pytest.fixture
def shared_data() -> Path:
    folder = os.environ.get("KERAS_WSGCN_DATA")
    if not folder or not Path(folder, "raw").is_dir():
        pytest.skip("KERAS_WSGCN_DATA does not name the folder with cmu17_30fps.npz and raw/")
    return Path(folder)


# --- files made by hand -------------------------------------------------------------------------

# name: parent, vector in file units, frame in which the bone turns, channels
BONES = {
    "lhipjoint": ("root", (0.1, 0, 0), "0 0 0 XYZ", ""),
    "lfemur": ("lhipjoint", (0, -0.4, 0), "0 0 0 XYZ", "rx ry rz"),
    "ltibia": ("lfemur", (0, -0.3, 0), "0 0 0 XYZ", "rx"),
    "rhipjoint": ("root", (-0.1, 0, 0), "0 0 0 XYZ", ""),
    "rfemur": ("rhipjoint", (0, -0.4, 0), "0 0 0 XYZ", ""),
    "rtibia": ("rfemur", (0, -0.3, 0), "0 0 0 XYZ", ""),
    "lowerback": ("root", (0, 0.2, 0), "0 0 0 XYZ", ""),
    "upperback": ("lowerback", (0, 0.1, 0), "0 0 0 XYZ", ""),
    "thorax": ("upperback", (0, 0.1, 0.02), "0 0 0 XYZ", ""),
    "lowerneck": ("thorax", (0, 0.1, 0), "0 0 0 XYZ", ""),
    "upperneck": ("lowerneck", (0, 0.05, 0), "0 0 0 XYZ", ""),
    "head": ("upperneck", (0, 0.1, 0), "0 0 0 XYZ", ""),
    "lclavicle": ("thorax", (0.2, 0, 0), "0 0 0 XYZ", ""),
    "lhumerus": ("lclavicle", (0.3, 0, 0), "0 0 90 XYZ", "rx"),
    "lradius": ("lhumerus", (0.25, 0, 0), "0 0 0 XYZ", ""),
    "lwrist": ("lradius", (0.125, 0, 0), "0 0 0 XYZ", ""),
    "rclavicle": ("thorax", (-0.2, 0, 0), "0 0 0 XYZ", ""),
    "rhumerus": ("rclavicle", (-0.3, 0, 0), "0 0 0 XYZ", ""),
    "rradius": ("rhumerus", (-0.25, 0, 0), "0 0 0 XYZ", ""),
    "rwrist": ("rradius", (-0.125, 0, 0), "0 0 0 XYZ", ""),
}
REST = "root 0 0 0 0 0 0\nlfemur 0 0 0\nltibia 0\nlhumerus 0\n"


def asf_text(length: float = 0.0254) -> str:  # with this length a unit is a metre
    lines = ["# made by hand", ":version 1.10", ":units", "  mass 1.0", f"  length {length}"]
    lines += ["  angle deg", ":root", "  order TX TY TZ RX RY RZ", "  axis XYZ"]
    lines += ["  position 0 0 0", "  orientation 0 0 0", ":bonedata"]
    for number, (name, (_, vector, axis, dof)) in enumerate(BONES.items(), 1):
        size = np.linalg.norm(vector)
        unit = " ".join(f"{x / size:.12f}" for x in vector)
        lines += [" begin", f"  id {number}", f"  name {name}", f"  direction {unit}"]
        lines += [f"  length {size:.12f}", f"  axis {axis}"]
        lines += [f"  dof {dof}", "  limits (-10 10)", "         (-20 20)"] if dof else []
        lines += [" end"]
    lines += [":hierarchy", " begin"]
    # Children stand before their parents, which the format allows.
    lines += [f"  {parent} {name}" for name, (parent, *_) in reversed(BONES.items())]
    return "\n".join([*lines, " end", ""])


def amc_text(*frames: str) -> str:
    numbered = "".join(f"{n}\n{frame}" for n, frame in enumerate(frames, 1))
    return f"# made by hand\n:FULLY-SPECIFIED\n:DEGREES\n{numbered}"


def acclaim(folder: Path, *frames: str, asf: str | None = None, take: str = "07_01") -> Motion:
    (folder / "07.asf").write_text(asf_text() if asf is None else asf)
    (folder / f"{take}.amc").write_text(amc_text(*frames))
    return read_asf_amc(folder / "07.asf", folder / f"{take}.amc", fps=120)


def near(actual: np.ndarray, expected: object) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-6)


# --- ASF/AMC ------------------------------------------------------------------------------------


def test_rest_pose_lies_where_the_bones_say(tmp_path):
    motion = acclaim(tmp_path, "root 1 2 3 0 0 0\nlfemur 0 0 0\nltibia 0\nlhumerus 0\n")
    assert motion.positions.shape == (1, 17, 3)
    assert motion.positions.dtype == np.float32
    assert motion.key == "S007/Unknown/07_01"
    assert (motion.source, motion.source_kind, motion.fps) == ("07_01.amc", "asf/amc", 120)
    # x stays, up (y in the file) becomes z, forward (z in the file) becomes -y
    expected = {
        "pelvis": (0, 0, 0), "r_hip": (-0.1, 0, 0), "r_knee": (-0.1, 0, -0.4),
        "r_ankle": (-0.1, 0, -0.7), "l_hip": (0.1, 0, 0), "l_knee": (0.1, 0, -0.4),
        "l_ankle": (0.1, 0, -0.7), "spine": (0, 0, 0.2), "thorax": (0, -0.02, 0.4),
        "neck_nose": (0, -0.02, 0.55), "head": (0, -0.02, 0.65), "l_shoulder": (0.2, -0.02, 0.4),
        "l_elbow": (0.5, -0.02, 0.4), "l_wrist": (0.875, -0.02, 0.4),
        "r_shoulder": (-0.2, -0.02, 0.4), "r_elbow": (-0.5, -0.02, 0.4),
        "r_wrist": (-0.875, -0.02, 0.4),
    }  # fmt: skip
    assert set(expected) == set(J)
    for joint, place in expected.items():
        near(motion.positions[0, J[joint]], np.add(place, (1, -3, 2)))


def test_unit_follows_from_the_length_in_the_file(tmp_path):
    metre = acclaim(tmp_path, REST).positions
    near(acclaim(tmp_path, REST, asf=asf_text(length=0.0508)).positions, metre / 2)


def test_bone_turns_about_its_start_and_takes_its_children_along(tmp_path):
    pose = acclaim(tmp_path, REST.replace("lfemur 0 0 0", "lfemur 90 0 0")).positions[0]
    # about x: down becomes backward in the file, which is +y
    near(pose[J["l_knee"]] - pose[J["l_hip"]], (0, 0.4, 0))
    near(pose[J["l_ankle"]] - pose[J["l_knee"]], (0, 0.3, 0))


def test_bone_turns_in_its_own_frame(tmp_path):
    pose = acclaim(tmp_path, REST.replace("lhumerus 0", "lhumerus 90")).positions[0]
    # its frame stands at 90 degrees about z: its x is the file's y, about which left becomes back
    near(pose[J["l_elbow"]] - pose[J["l_shoulder"]], (0, 0.3, 0))
    near(pose[J["l_wrist"]] - pose[J["l_elbow"]], (0, 0.375, 0))


def test_rotations_apply_in_the_order_of_the_file(tmp_path):
    frame = REST.replace("root 0 0 0 0 0 0", "root 0 0 0 90 0 90")
    pose = acclaim(tmp_path, frame).positions[0]
    near(pose[J["spine"]], (0, -0.2, 0))  # up, about x: forward, about z: still forward
    other = asf_text().replace("axis XYZ", "axis ZYX")
    pose = acclaim(tmp_path, frame, asf=other).positions[0]
    near(pose[J["spine"]], (-0.2, 0, 0))  # up, about z: right, about x: still right


def test_channels_go_by_name_not_by_place(tmp_path):
    asf = asf_text().replace("order TX TY TZ RX RY RZ", "order RX RY RZ TX TY TZ")
    frame = REST.replace("root 0 0 0 0 0 0", "root 90 0 0 1 2 3")
    pose = acclaim(tmp_path, frame, asf=asf).positions[0]
    near(pose[J["pelvis"]], (1, -3, 2))
    near(pose[J["spine"]], (1, -3.2, 2))


def test_every_fourth_frame_is_kept(tmp_path):
    frames = [REST.replace("root 0", f"root {n / 100}") for n in range(10)]
    acclaim(tmp_path, *frames)
    motion = read_asf_amc(tmp_path / "07.asf", tmp_path / "07_01.amc", action="Walking", take="x")
    near(motion.positions[:, 0, 0], (0, 0.04, 0.08))
    assert (motion.fps, motion.key) == (30.0, "S007/Walking/x")


@pytest.mark.parametrize("fps", [50.0, 0.0, 240.0])
def test_frame_rates_must_divide(tmp_path, fps):
    acclaim(tmp_path, REST)
    with pytest.raises(InputError, match="`fps` must be the 120 frames per second"):
        read_asf_amc(tmp_path / "07.asf", tmp_path / "07_01.amc", fps=fps)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ltibia 0", "ltibia 0 0", ["line {line}", "expected 1 finite numbers", "'0 0'"]),
        ("ltibia 0", "ltibia left", ["line {line}", "'left'"]),
        ("ltibia 0", "ltibia nan", ["line {line}", "'nan'"]),
        ("ltibia 0", "ltail 0", ["line {line}", "`ltail`"]),
        ("ltibia 0\n", "", ["`ltibia`"]),
        ("ltibia 0\n", "ltibia 0\nltibia 0\n", ["line 8", "`ltibia` is missing or twice"]),
        (":DEGREES", ":RADIANS", ["line {line}", "degrees"]),
        ("1\n", "", ["line 4", "`root`"]),
    ],
)
def test_malformed_amc(tmp_path, old, new, words):
    acclaim(tmp_path, REST, REST)
    path = tmp_path / "07_01.amc"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        read_asf_amc(tmp_path / "07.asf", path)
    line = text[: text.index(old)].count("\n") + 1
    for word in ("`amc`", "07_01.amc", "Received: amc=", *words):
        assert word.replace("{line}", str(line)) in str(caught.value)


def test_amc_without_frames(tmp_path):
    with pytest.raises(InputError, match="0 of 0 frames"):
        acclaim(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  length 0.400000000000\n", "", ["`lfemur` lacks `length`"]),
        ("  length 0.400000000000\n", "  length long\n", ["line {line}", "'long'"]),
        ("  axis 0 0 0 XYZ\n", "  axis 0 0 0 XYW\n", ["line {line}", "order of the axes"]),
        ("  dof rx ry rz\n", "  dof rx l\n", ["`lfemur` must turn by"]),
        ("  name lfemur\n", "  name lhipjoint\n", ["line {line}", "name of its own"]),
        ("  angle deg\n", "  angle rad\n", ["line {line}", "degrees"]),
        ("  length 0.0254\n", "  length 0\n", ["above 0"]),
        ("  lfemur ltibia\n", "  lfemur lshin\n", ["`lshin`, unknown"]),
        ("  lfemur ltibia\n", "  lfemur ltibia\n  lhipjoint ltibia\n", ["`ltibia`"]),
        ("  lfemur ltibia\n", "", ["lacks ['ltibia']", "'lfemur'"]),
        ("  order TX TY TZ RX RY RZ\n", "", ["`root` lacks `order`"]),
    ],
)
def test_malformed_asf(tmp_path, old, new, words):
    text = asf_text()
    assert old in text
    with pytest.raises(InputError) as caught:
        acclaim(tmp_path, REST, asf=text.replace(old, new, 1))
    line = text[: text.index(old)].count("\n") + 1
    for word in ("`asf`", "07.asf", "Received: asf=", *words):
        assert word.replace("{line}", str(line)) in str(caught.value)


def test_missing_and_oversized_files(tmp_path, monkeypatch):
    acclaim(tmp_path, REST)
    with pytest.raises(InputError, match=r"`amc` .*No such file"):
        read_asf_amc(tmp_path / "07.asf", tmp_path / "none_1.amc")
    with pytest.raises(InputError, match="`path`"):
        read_bvh(tmp_path)
    monkeypatch.setattr(mocap_formats, "MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="larger than 100 bytes"):
        read_asf_amc(tmp_path / "07.asf", tmp_path / "07_01.amc")


def test_subject_must_come_from_somewhere(tmp_path):
    with pytest.raises(InputError, match=r"`subject` must be given .*walk\.amc"):
        acclaim(tmp_path, REST, take="walk")
    assert read_asf_amc(tmp_path / "07.asf", tmp_path / "walk.amc", subject=3).subject == 3


def test_wrong_unit_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"07_01\.amc: `positions` must be in metres"):
        acclaim(tmp_path, REST, asf=asf_text(length=0.0000254))


def test_bones_are_a_table(tmp_path):
    acclaim(tmp_path, REST)
    files = (tmp_path / "07.asf", tmp_path / "07_01.amc")
    bones = {**CMU_BONES, "head": {"upperneck": 0.5, "head": 0.5}}
    near(read_asf_amc(*files, bones=bones).positions[0, J["head"]], (0, -0.02, 0.6))
    with pytest.raises(InputError, match=r"lacks \['skull'\]; it has"):
        read_asf_amc(*files, bones={**CMU_BONES, "head": "skull"})
    with pytest.raises(InputError, match="`bones` must mix with weights that sum to 1"):
        read_asf_amc(*files, bones={**CMU_BONES, "head": {"head": 0.5}})
    with pytest.raises(InputError, match="`bones` must have exactly the keys"):
        read_asf_amc(*files, bones={"head": "head"})


# --- BVH ----------------------------------------------------------------------------------------

ZYX = "Zrotation Yrotation Xrotation"
# name: parent, offset in file units; the ends are the end sites
JOINTS: Mapping[str, tuple[str, tuple[float, float, float]]] = {
    "Hips": ("", (0, 0, 0)),
    "LeftUpLeg": ("Hips", (1, -1, 0)),
    "LeftLeg": ("LeftUpLeg", (0, -7, 0)),
    "LeftFoot": ("LeftLeg", (0, -6, 0)),
    "RightUpLeg": ("Hips", (-1, -1, 0)),
    "RightLeg": ("RightUpLeg", (0, -7, 0)),
    "RightFoot": ("RightLeg", (0, -6, 0)),
    "Spine": ("Hips", (0, 2, 0)),
    "Spine1": ("Spine", (0, 2, 0.5)),
    "Neck": ("Spine1", (0, 0, 0)),
    "Head": ("Neck", (0, 3, 0)),
    "Head/end": ("Head", (0, 1, 0)),
    "LeftShoulder": ("Spine1", (0, 0, 0)),
    "LeftArm": ("LeftShoulder", (3, 1, 0)),
    "LeftForeArm": ("LeftArm", (5, 0, 0)),
    "LeftHand": ("LeftForeArm", (4, 0, 0)),
    "RightShoulder": ("Spine1", (0, 0, 0)),
    "RightArm": ("RightShoulder", (-3, 1, 0)),
    "RightForeArm": ("RightArm", (-5, 0, 0)),
    "RightHand": ("RightForeArm", (-4, 0, 0)),
}
PLAIN = BvhLayout(
    joints={**CGSPEED.joints, "l_wrist": "LeftHand", "r_wrist": "RightHand"}, metres_per_unit=0.1
)


def bvh_text(*frames: Mapping[str, tuple], order: str = ZYX, joints: Mapping = JOINTS) -> str:
    """A BVH file; a frame gives channels by joint, all others are 0."""
    lines = ["HIERARCHY"]

    def write(name: str) -> None:
        parent, offset = joints[name]
        kind = "End" if name.endswith("/end") else "JOINT" if parent else "ROOT"
        lines.append(f"{kind} {'Site' if kind == 'End' else name}")
        lines.extend(["{", "OFFSET " + " ".join(map(str, offset))])
        if kind == "ROOT":
            lines.append(f"CHANNELS 6 Xposition Yposition Zposition {order}")
        elif kind == "JOINT":
            lines.append(f"CHANNELS 3 {order}")
        for child, (above, _) in joints.items():
            if above == name:
                write(child)
        lines.append("}")

    write("Hips")
    lines += ["MOTION", f"Frames: {len(frames)}", "Frame Time: .0083333"]
    named = [line.split()[1] for line in lines if line.startswith(("ROOT", "JOINT"))]
    for frame in frames:
        values = [frame.get(n, (0,) * (6 if n == "Hips" else 3)) for n in named]
        lines.append(" ".join(str(v) for value in values for v in value))
    return "\n".join([*lines, ""])


def bvh(folder: Path, *frames: Mapping, layout=PLAIN, order=ZYX, joints=JOINTS, **kwargs) -> Motion:
    path = folder / "08_01.bvh"
    path.write_text(bvh_text(*frames, order=order, joints=joints))
    return read_bvh(path, layout=layout, fps=120, **kwargs)


def test_bvh_rest_pose(tmp_path):
    motion = bvh(tmp_path, {"Hips": (1, 2, 3, 0, 0, 0)})
    assert (motion.key, motion.source, motion.source_kind) == (
        "S008/Unknown/08_01", "08_01.bvh", "bvh",
    )  # fmt: skip
    pose = motion.positions[0] - np.array((0.1, -0.3, 0.2))
    for joint, place in {
        "pelvis": (0, 0, -1), "l_hip": (1, 0, -1), "r_ankle": (-1, 0, -14), "spine": (0, 0, 2),
        "thorax": (0, -0.5, 4), "neck_nose": (0, -0.5, 7), "head": (0, -0.5, 8),
        "l_shoulder": (3, -0.5, 5), "r_wrist": (-12, -0.5, 5),
    }.items():  # fmt: skip
        near(pose[J[joint]], np.array(place) / 10)


def test_bvh_joint_turns_what_hangs_on_it_and_not_itself(tmp_path):
    rest, turned = bvh(tmp_path, {}, {"LeftForeArm": (90, 0, 0)}).positions
    near(turned[J["l_elbow"]], rest[J["l_elbow"]])
    near(turned[J["l_wrist"]] - turned[J["l_elbow"]], (0, 0, 0.4))  # about z: left becomes up
    moved = np.abs(turned - rest).max(axis=-1) > 1e-6
    assert moved.nonzero()[0].tolist() == [J["l_wrist"]]


def test_bvh_rotations_apply_in_the_order_of_the_channels(tmp_path):
    angles = {"LeftUpLeg": (90, 0, 90)}
    pose = bvh(tmp_path, angles).positions[0]
    near(pose[J["l_knee"]] - pose[J["l_hip"]], (0, 0.7, 0))  # down, about x: back, about z: back
    pose = bvh(tmp_path, angles, order="Xrotation Yrotation Zrotation").positions[0]
    near(pose[J["l_knee"]] - pose[J["l_hip"]], (0.7, 0, 0))  # down, about z: left, about x: left


def test_bvh_with_z_up_stays_as_it_is(tmp_path):
    y_up = bvh(tmp_path, {"Spine": (30, 20, 10)}).positions
    layout = BvhLayout(joints=PLAIN.joints, metres_per_unit=0.1, up="z")
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
        ({"metres_per_unit": 0}, "`metres_per_unit` must be above 0"),
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


# --- pieces and folders -------------------------------------------------------------------------


def walk(frames: int, *jumps: int, take: str = "07_01") -> Motion:
    """A body that drifts, and leaps by 1 m where a frame is named."""
    x = np.arange(frames) * 0.01 + sum((np.arange(frames) >= jump) for jump in jumps)
    positions = np.zeros((frames, 17, 3))
    positions[..., 0] = x[:, None]
    return Motion(positions, 7, "Walking", take)


def test_split_at_jumps():
    positions = walk(100, 40, 41).positions
    assert split_at_jumps(positions, 30) == [slice(0, 40), slice(40, 41), slice(41, 100)]
    assert split_at_jumps(positions, 10) == [slice(0, 100)]  # 10 m/s
    assert split_at_jumps(positions, 10, max_speed=10) == [
        slice(0, 40), slice(40, 41), slice(41, 100),
    ]  # fmt: skip
    assert split_at_jumps(positions[:1], 30) == [slice(0, 1)]


def test_a_jump_of_one_joint_is_enough():
    positions = walk(60).positions.copy()
    positions[20:, 13, 2] += 0.6  # 18 m/s
    assert split_at_jumps(positions, 30) == [slice(0, 20), slice(20, 60)]


def test_cut_names_the_pieces():
    whole = walk(100)
    assert [m.take for m in cut(whole)] == ["07_01"]
    assert [(m.take, len(m.positions)) for m in cut(walk(100, 40))] == [
        ("07_01a", 40), ("07_01b", 60),
    ]  # fmt: skip
    pieces = cut(walk(100, 29, 69))  # the first piece is one frame short
    assert [(m.take, len(m.positions)) for m in pieces] == [("07_01a", 40), ("07_01b", 31)]
    np.testing.assert_array_equal(pieces[0].positions, walk(100, 29, 69).positions[29:69])
    assert [m.take for m in cut(walk(100, 10))] == ["07_01"]
    assert cut(walk(20)) == []
    many = cut(walk(30, *range(1, 30)), min_frames=1)
    assert [m.take for m in many][24:28] == ["07_01y", "07_01z", "07_01ba", "07_01bb"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """07_01 as AMC and BVH, 07_02 with a jump, 08_01 as BVH, a short 07_03, and actions."""
    still = [REST] * 160
    leap = [REST] * 160 + [REST.replace("root 0", "root 3")] * 124
    place = tmp_path / "takes"
    (place / "more").mkdir(parents=True)
    acclaim(place, *still)
    acclaim(place, *leap, take="07_02")
    acclaim(place, *still[:40], take="07_03")
    (place / "07_01.bvh").write_text("never read")
    (place / "more" / "08_01.bvh").write_text(bvh_text(*[{}] * 161))
    (tmp_path / "actions.csv").write_text(
        "file,subject,action,description\n"
        '07_01.amc,,Walking,"slow, then fast"\n08_01,18,Jumping,\n09_09,,Dance,\n'
    )
    return place


def test_read_folder(folder):
    lines: list[str] = []
    labels = read_labels(folder.parent / "actions.csv")
    archive = read_folder(folder, labels=labels, report=lines.append)
    assert [(m.key, len(m.positions)) for m in archive.motions] == [
        ("S007/Walking/07_01", 40),
        ("S007/Unknown/07_02a", 40),
        ("S007/Unknown/07_02b", 31),
        ("S018/Jumping/08_01", 40),
    ]
    assert archive.skeleton is h36m_17
    assert archive.motions[0].description == "slow, then fast"
    assert archive.motions[3].source_kind == "bvh"
    report = "\n".join(lines)
    assert "07_01.bvh: dropped, 07_01.amc is read" in report
    assert "09_09: labelled, but there is no such file" in report
    assert "07_02.amc: S007/Unknown/07_02a, S007/Unknown/07_02b, 71 frames at 30 Hz\n" in report
    assert "07_03.amc: nothing, 0 frames at 30 Hz; 10 frames dropped" in report


def test_folder_takes_the_thorax_from_a_skeleton_beside_a_bvh_file(folder):
    (folder / "more" / "08.asf").write_text(asf_text())
    archive = read_folder(folder)
    assert archive.motions[-1].source_kind == "bvh+asf"


def test_folders_that_do_not_serve(folder, tmp_path):
    (folder / "07.asf").rename(folder / "17.asf")
    with pytest.raises(InputError, match=r"`folder` must hold the skeleton .*07_01\.amc"):
        read_folder(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    for place in (empty, tmp_path / "none"):
        with pytest.raises(InputError, match="`folder` must hold AMC or BVH files"):
            read_folder(place)
    for name in ("a", "b"):
        (empty / name).mkdir()
        (empty / name / "08_01.bvh").write_text(bvh_text(*[{}] * 161))
    with pytest.raises(InputError, match="`folder` must hold each name once"):
        read_folder(empty)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "first line must name the columns"),
        ("name,action\n07_01,Walking\n", "first line must name the columns"),
        ("file,subject\n07_01,seven\n", "line 2: `subject` must be a whole number"),
        ("file,action\n07_01,Walking\n07_01.amc,Dance\n", "line 3: `file` must be there"),
        ("file,action\n,Walking\n", "line 2: `file` must be there"),
    ],
)
def test_malformed_labels(tmp_path, text, words):
    (tmp_path / "actions.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_labels(tmp_path / "actions.csv")


# --- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command():
    return functools.partial(cli.run, prepare_data.main)


def test_command_writes_an_archive(command, folder, tmp_path, capsys):
    output, actions = str(tmp_path / "out.npz"), str(tmp_path / "actions.csv")
    arguments = ["mocap", str(folder), "--output", output, "--actions", actions]
    assert command(arguments) == 0
    written = load_archive(output)
    assert [m.key for m in written.motions] == [
        "S007/Walking/07_01", "S007/Unknown/07_02a", "S007/Unknown/07_02b", "S018/Jumping/08_01",
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "07_01.bvh: dropped" in out
    assert out.splitlines()[-1] == f"{output}: 4 sequences, 151 frames"
    assert command([*arguments, "--fps", "60", "--min-frames", "10"]) == 0
    assert [len(m.positions) for m in load_archive(output).motions] == [80, 80, 62, 20, 80]


def test_command_says_what_is_wrong_in_one_line(command, folder, tmp_path, capsys):
    (folder / "07_02.amc").write_text(amc_text("root 1 2\n"))
    assert command(["mocap", str(folder), "--output", str(tmp_path / "out.npz")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: `amc` must be a readable .amc file; line 5: ")
    assert errors.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()


def test_command_explains_itself(command, capsys):
    for arguments in (["--help"], ["mocap", "--help"]):
        with pytest.raises(SystemExit) as caught:
            command(arguments)
        assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for word in ("mocap", "--output", "--actions", "subject, action, description", "default: 30"):
        assert word in out
    with pytest.raises(SystemExit) as caught:
        command([])
    assert caught.value.code == 2


# --- CMU's own files ----------------------------------------------------------------------------

MICROMETRE = 1e-6


def archived(shared_data: Path, key: str) -> np.ndarray:
    with np.load(shared_data / "cmu17_30fps.npz", allow_pickle=False) as file:
        return file[key]


@pytest.mark.parametrize(
    ("take", "key"), [("02_01", "S002/Walking/02_01"), ("02_03", "S002/Running/02_03")]
)
def test_amc_files_give_the_archive(shared_data, take, key):
    raw = shared_data / "raw"
    motion = read_asf_amc(raw / "02.asf", raw / f"{take}.amc")
    expected = archived(shared_data, key)
    assert motion.positions.shape == expected.shape
    np.testing.assert_allclose(motion.positions, expected, atol=1 * MICROMETRE)


def test_bvh_and_amc_of_one_take_agree(shared_data):
    raw = shared_data / "raw"
    motion = read_bvh(raw / "02_01.bvh", asf=raw / "02.asf")
    expected = archived(shared_data, "S002/Walking/02_01")
    np.testing.assert_allclose(motion.positions, expected, atol=6 * MICROMETRE)


@pytest.mark.parametrize(
    ("name", "key", "millimetres"),
    [("02_01", "S002/Walking/02_01", 2.0), ("131_01", "S131/Walking/131_01", 0.6)],
)
def test_bvh_without_a_skeleton_is_off_by_the_predicted_thorax(shared_data, name, key, millimetres):
    motion = read_bvh(shared_data / "raw" / f"{name}.bvh")
    error = np.linalg.norm(motion.positions - archived(shared_data, key), axis=-1)
    below = [J[n] for n in ("pelvis", "r_hip", "r_ankle", "l_knee", "spine")]
    assert error[:, below].max() < 6 * MICROMETRE
    # All that hangs on the thorax is off by one and the same vector of the chest's frame.
    above = list(range(J["thorax"], 17))
    assert np.ptp(error[:, above]) < 6 * MICROMETRE
    assert 0.4e-3 < error.max() < millimetres * 1e-3


def test_command_reads_the_real_files(command, shared_data, tmp_path):
    output = tmp_path / "raw.npz"
    assert command(["mocap", str(shared_data / "raw"), "--output", str(output)]) == 0
    assert [(m.key, len(m.positions)) for m in load_archive(output).motions] == [
        ("S002/Unknown/02_01", 86), ("S002/Unknown/02_03", 44), ("S131/Unknown/131_01", 249),
    ]  # fmt: skip

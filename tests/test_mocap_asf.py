"""ASF/AMC files: geometry worked out by hand, and files that are broken."""

import numpy as np
import pytest
from mocap_files import REST, J, acclaim, asf_text, near

from keras_wsgcn.data import mocap_formats
from keras_wsgcn.data.mocap import CMU_BONES, read_asf_amc, read_bvh
from keras_wsgcn.errors import InputError

pytestmark = pytest.mark.plain


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
        (":DEGREES", ":radians", ["line {line}", "degrees"]),
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
    for length in (0.000254, 0.00254, 0.254):  # a person of 170 m, 17 m and 17 cm
        with pytest.raises(InputError, match=r"`length` of the units in 07\.asf must give.*07_01"):
            acclaim(tmp_path, REST, asf=asf_text(length=length))
    acclaim(tmp_path, REST, asf=asf_text(length=0.0508))  # a child


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

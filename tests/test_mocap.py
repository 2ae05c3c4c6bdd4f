"""Takes cut into pieces, folders of them, the command that reads them, and CMU's own files."""

import functools
from pathlib import Path

import cli

import numpy as np
import prepare_data
import pytest
from mocap_files import REST, J, acclaim, amc_text, asf_text, bvh_text
from testing import ROOT

from keras_wsgcn.data.archive import Motion, load_archive
from keras_wsgcn.data.mocap import read_asf_amc, read_bvh
from keras_wsgcn.data.mocap_folders import cut, read_folder, read_labels, split_at_jumps
from keras_wsgcn.errors import InputError
from keras_wsgcn.skeletons import h36m_17

pytestmark = pytest.mark.plain


@pytest.fixture
def shared_data(shared_data: Path) -> Path:
    if not (shared_data / "raw").is_dir():
        pytest.skip("KERAS_WSGCN_DATA names a folder without raw/")
    return shared_data


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


def test_files_that_a_mac_leaves_beside_others_are_none(folder):
    before = read_folder(folder)
    for name in ("._08_01.bvh", "._02.asf", "._02_01.amc"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    assert [m.key for m in read_folder(folder).motions] == [m.key for m in before.motions]
    (folder / "_walk.bvh").write_text("no motion")
    with pytest.raises(InputError, match=r"_walk\.bvh"):
        read_folder(folder)


def test_suffixes_in_capitals(folder):
    for path in [*folder.rglob("*.asf"), *folder.rglob("*.amc"), *folder.rglob("*.bvh")]:
        path.rename(path.with_suffix(path.suffix.upper()))
    (folder / "more" / "08.ASF").write_text(asf_text())
    kinds = [motion.source_kind for motion in read_folder(folder).motions]
    assert kinds == ["asf/amc", "asf/amc", "asf/amc", "bvh+asf"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_speed", value) for value in (0, -1, np.nan, np.inf, "fast")),
        *(("min_frames", value) for value in (0, -5, 1.5)),
        *(("metres_per_unit", value) for value in (0, -1, np.nan)),
    ],
)
def test_settings_out_of_range_are_refused_before_a_file_is_read(name, value, tmp_path):
    with pytest.raises(InputError, match=rf"`{name}` must be .*Received: {name}="):
        read_folder(tmp_path / "none", **{name: value})
    if name != "metres_per_unit":
        with pytest.raises(InputError, match=rf"`{name}` must be .*Received: {name}="):
            cut(walk(100), **{name: value})


def test_folders_that_do_not_serve(folder, tmp_path):
    (folder / "07.asf").rename(folder / "17.asf")
    with pytest.raises(InputError, match=r"`folder` must hold the skeleton .*07_01\.amc"):
        read_folder(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="`folder` must hold AMC or BVH files"):
        read_folder(empty)
    for place in (tmp_path / "none", folder / "07_01.amc"):
        with pytest.raises(InputError, match=r"there is no such folder\. Received: folder="):
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
        ("file,action,action\n07_01,a,b\n", "first line must name the columns"),
        ("file,action\n07_01,Walking,slow\n", "line 2: there are more cells"),
        ("file,activity\n07_01,Walking\n", r"not \['file', 'activity'\]"),
        ("file,subject\n07_01,seven\n", "line 2: `subject` must be a whole number"),
        (f"file,subject\n07_01,{'7' * 5000}\n", "line 2: `subject` must be a whole number"),
        ("file,action\n07_01,Walking\n07_01.amc,Dance\n", "line 3: `file` must be there"),
        ("file,action\n,Walking\n", "line 2: `file` must be there"),
    ],
)
def test_malformed_labels(tmp_path, text, words):
    (tmp_path / "actions.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_labels(tmp_path / "actions.csv")


def test_labels_name_files_with_dots_in_their_names(folder, tmp_path):
    (folder / "more" / "08_01.bvh").rename(folder / "more" / "09_walk.v2.bvh")
    (tmp_path / "actions.csv").write_text("file,action\n09_walk.v2,Walking\n07_01.AMC,Standing\n")
    motions = read_folder(folder, labels=read_labels(tmp_path / "actions.csv")).motions
    assert motions[0].key == "S007/Standing/07_01"
    assert motions[-1].key == "S009/Walking/09_walk.v2"


def test_spaces_between_labels_say_nothing(tmp_path):
    (tmp_path / "actions.csv").write_text('file, subject , action,\n07_01 , 7, "Walking, slow",\n')
    assert read_labels(tmp_path / "actions.csv") == {
        "07_01": {"subject": 7, "action": "Walking, slow"}
    }


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


def test_only_what_is_labelled_on_request(command, folder, tmp_path, capsys):
    output, actions = str(tmp_path / "out.npz"), str(tmp_path / "actions.csv")
    (folder / "07_02.amc").write_text("never read")
    arguments = ["mocap", str(folder), "--output", output, "--only-labelled"]
    assert command([*arguments, "--actions", actions]) == 0
    keys = ["S007/Walking/07_01", "S018/Jumping/08_01"]
    assert [m.key for m in load_archive(output).motions] == keys
    assert "2 files are left out, which are not labelled" in capsys.readouterr().out
    assert command(arguments) == 2
    assert "`--actions` must be given with --only-labelled." in capsys.readouterr().err
    (tmp_path / "others.csv").write_text("file\n09_09\n")
    assert command([*arguments, "--actions", str(tmp_path / "others.csv")]) == 2
    assert "`folder` must hold labelled AMC or BVH files" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out", "out.NPZ", "out.csv", ".npz"])
@pytest.mark.parametrize("source", [["mocap"], ["human36m", "--archives"]])
def test_command_refuses_names_that_other_commands_would(command, name, source, tmp_path, capsys):
    assert command([*source, str(tmp_path / "none"), "-o", name]) == 2
    assert capsys.readouterr().err == (
        f"error: `--output` must end in .npz. Received: --output {name}\n"
    )


def test_command_takes_the_unit_of_bvh_files(command, folder, tmp_path, capsys):
    output = str(tmp_path / "out.npz")
    arguments = ["mocap", str(folder / "more"), "--output", output]
    assert command([*arguments, "--metres-per-unit", "1"]) == 2
    assert "error: `metres_per_unit`, which is 1, must give people" in capsys.readouterr().err
    assert command([*arguments, "--metres-per-unit", "0.04"]) == 0
    half = load_archive(output).motions[0].positions
    assert command([*arguments, "--metres-per-unit", "0.08"]) == 0
    np.testing.assert_allclose(load_archive(output).motions[0].positions, 2 * half, rtol=1e-5)


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


def test_the_list_of_the_benchmark_names_what_the_archive_holds(command, shared_data, tmp_path):
    takes = ROOT / "studies" / "cmu24_takes.csv"
    listed = {
        f"S{label['subject']:03}/{label['action']}/{take}"
        for take, label in read_labels(takes).items()
    }
    with np.load(shared_data / "cmu17_30fps.npz", allow_pickle=False) as file:
        keys = [str(key) for key in file["meta_key"]]
    assert len(keys) == 335
    assert listed == {key.rstrip("ab") for key in keys}  # two takes are in two pieces
    arguments = ["mocap", str(shared_data / "raw"), "--actions", str(takes), "--only-labelled"]
    assert command([*arguments, "--output", str(tmp_path / "raw.npz")]) == 0
    assert {m.key for m in load_archive(tmp_path / "raw.npz").motions} < set(keys)


def test_command_reads_the_real_files(command, shared_data, tmp_path):
    output = tmp_path / "raw.npz"
    assert command(["mocap", str(shared_data / "raw"), "--output", str(output)]) == 0
    assert [(m.key, len(m.positions)) for m in load_archive(output).motions] == [
        ("S002/Unknown/02_01", 86), ("S002/Unknown/02_03", 44), ("S131/Unknown/131_01", 249),
    ]  # fmt: skip

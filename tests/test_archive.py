"""Motion archives: what is written comes back, and what is damaged or hostile is refused."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from keras_wsgcn.data import archive as archives
from keras_wsgcn.data.archive import Motion, MotionArchive, load_archive, save_archive
from keras_wsgcn.data.cameras import Camera
from keras_wsgcn.data.views import View
from keras_wsgcn.errors import InputError
from keras_wsgcn.skeletons import Skeleton, h36m_16, h36m_17

pytestmark = pytest.mark.plain


def poses(frames: int = 4, joints: int = 17, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1.8, (frames, joints, 3)).astype("float32")


def example() -> MotionArchive:
    return MotionArchive(
        h36m_17,
        (
            Motion(poses(5), 2, "Walking", "02_01", 30.0, "walk, slow", "02_01.amc", "asf/amc"),
            Motion(poses(3, seed=1), 131, "Jumping", "131_03b", 50.0),
        ),
    )


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, np.ndarray]:
    save_archive(tmp_path / "good.npz", example())
    with np.load(tmp_path / "good.npz", allow_pickle=False) as file:
        return dict(file)


def written(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


def refuses(path: Path, *words: str) -> str:
    with pytest.raises(InputError) as caught:
        load_archive(path)
    message = str(caught.value)
    for word in (*words, "`path`", path.name):
        assert word in message
    assert message.count("must be a motion archive") == 1
    return message


def assert_same(left: MotionArchive, right: MotionArchive) -> None:
    assert left.skeleton == right.skeleton
    assert len(left.motions) == len(right.motions)
    for a, b in zip(left.motions, right.motions, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        assert {**vars(a), "positions": 0} == {**vars(b), "positions": 0}


# --- round trips --------------------------------------------------------------------------------


def test_what_is_saved_comes_back(tmp_path):
    save_archive(tmp_path / "a.npz", example())
    loaded = load_archive(tmp_path / "a.npz")
    assert_same(loaded, example())
    assert loaded.skeleton is h36m_17
    assert loaded.motions[0].positions.dtype == np.float32


def test_layout_is_the_documented_one(arrays):
    assert arrays["S002/Walking/02_01"].shape == (5, 17, 3)
    assert arrays["meta_key"].tolist() == ["S002/Walking/02_01", "S131/Jumping/131_03b"]
    assert arrays["meta_subject"].tolist() == [2, 131]
    assert arrays["meta_action"].tolist() == ["Walking", "Jumping"]
    assert arrays["meta_trial"].tolist() == [1, 3]
    assert arrays["meta_description"].tolist() == ["walk, slow", ""]
    assert arrays["meta_fps"].tolist() == [30.0, 50.0]
    assert arrays["meta_source_file"].tolist() == ["02_01.amc", ""]
    assert arrays["meta_source_kind"].tolist() == ["asf/amc", ""]
    assert arrays["joint_names"].tolist() == list(h36m_17.joint_names)
    assert arrays["parents"].tolist() == list(h36m_17.parents)
    assert (arrays["units"].item(), arrays["up_axis"].item()) == ("metre", "z")
    assert len(arrays) == 14


def test_name_without_suffix_is_kept(tmp_path):
    save_archive(tmp_path / "archive", example())
    assert [p.name for p in tmp_path.iterdir()] == ["archive"]
    assert_same(load_archive(tmp_path / "archive"), example())


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_archive(path, example())
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        save_archive(path, example())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_other_skeletons_and_arrays_beside_the_motions(tmp_path, arrays):
    names, parents, motions = ("a", "b", "c"), (-1, 0, 1), (Motion(poses(2, 3), 1, "Arm", "1"),)
    for arm in (
        Skeleton("arm", names, parents, centre="b", extra_edges=[("a", "c")], mirror_pairs=()),
        Skeleton("archive", names, parents),  # what names and parents alone tell
    ):
        save_archive(tmp_path / "arm.npz", MotionArchive(arm, motions))
        assert load_archive(tmp_path / "arm.npz").skeleton == arm
        with np.load(tmp_path / "arm.npz") as written_arrays:
            assert ("skeleton" in written_arrays) == (arm.name == "arm")

    arrays["pose2d/S002/Walking/02_01/54138969"] = np.zeros((5, 17, 2), "float32")
    assert_same(load_archive(written(tmp_path / "more.npz", arrays)), example())


def test_real_archive(shared_data):
    archive = load_archive(shared_data / "cmu17_30fps.npz")
    assert archive.skeleton is h36m_17
    assert len(archive.motions) == 335
    assert sum(len(motion.positions) for motion in archive.motions) == 99_386
    assert len({motion.subject for motion in archive.motions}) == 24
    walk = next(motion for motion in archive.motions if motion.key == "S002/Walking/02_01")
    assert (walk.fps, walk.source_kind, walk.description) == (30.0, "asf/amc", "walk")
    assert walk.source.endswith("02_01.amc")


def test_real_archive_survives_a_round_trip(shared_data, tmp_path):
    save_archive(tmp_path / "again.npz", load_archive(shared_data / "cmu17_30fps.npz"))
    with (
        np.load(shared_data / "cmu17_30fps.npz") as old,
        np.load(tmp_path / "again.npz") as new,
    ):
        assert set(old.files) == set(new.files)
        for name in old.files:
            assert old[name].dtype == new[name].dtype
            np.testing.assert_array_equal(old[name], new[name])


# --- records ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("positions", np.zeros((4, 17))),
        ("positions", np.zeros((4, 17, 2))),
        ("positions", np.zeros((0, 17, 3))),
        ("positions", np.full((4, 17, 3), "x")),
        ("positions", np.full((4, 17, 3), np.nan)),
        ("positions", poses() * 1e30),
        ("subject", -1),
        ("subject", 1.5),
        ("subject", True),
        ("action", "../Walking"),
        ("action", ""),
        ("action", "a\\b"),
        ("take", ".hidden"),
        ("take", "02/01"),
        ("take", "02\n01"),
        ("take", 201),
        ("take", "x" * 101),
        ("fps", 0.0),
        ("fps", float("nan")),
        ("fps", "30"),
        ("description", None),
        ("source_kind", 3),
    ],
)
def test_motion_refuses(field, value):
    fields = {"positions": poses(), "subject": 2, "action": "Walking", "take": "02_01"}
    Motion(**fields)
    with pytest.raises(InputError, match=rf"(?s)`{field}` must .*Received: "):
        Motion(**fields | {field: value})


def test_non_finite_frame_is_named():
    positions = poses(6)
    positions[4, 2, 1] = np.inf
    with pytest.raises(InputError, match="first in frame 4"):
        Motion(positions, 2, "Walking", "02_01")


@pytest.mark.parametrize("factor", [1000, 100, 1 / 0.0254])
def test_other_units_than_metres_are_refused(factor):
    with pytest.raises(InputError, match="must be in metres"):
        Motion(poses() * factor, 2, "Walking", "02_01")


def test_one_frame_of_lost_tracking_is_no_other_unit():
    positions = poses(5)
    positions[2] *= 1000
    assert Motion(positions, 2, "Walking", "02_01").key == "S002/Walking/02_01"


def test_archive_refuses_motions_that_do_not_belong_together():
    walk = Motion(poses(), 2, "Walking", "02_01")
    with pytest.raises(InputError, match="each key once"):
        MotionArchive(h36m_17, (walk, walk))
    with pytest.raises(InputError, match="16 joints"):
        MotionArchive(h36m_16, (walk,))
    with pytest.raises(InputError, match="at least one Motion"):
        MotionArchive(h36m_17, ())
    with pytest.raises(InputError, match="'ndarray'"):
        MotionArchive(h36m_17, (poses(),))


# --- hostile and damaged files ------------------------------------------------------------------


def test_what_could_not_be_loaded_is_not_saved(tmp_path, monkeypatch):
    for limit, value in (("MAX_BYTES", 2000), ("MAX_META_BYTES", 80), ("MAX_MEMBERS", 13)):
        with monkeypatch.context() as patch:
            patch.setattr(archives, limit, value)
            with pytest.raises(InputError, match=r"(?s)`archive` must take at most.*Received: "):
                save_archive(tmp_path / "a.npz", example())
    assert not list(tmp_path.iterdir())
    camera = Camera(np.eye(3), (0, 0, 0), (1000, 1000), (500, 500), (1000, 1000), name="left/1")
    with pytest.raises(InputError, match=r"name without `/`\. Received: 'left/1'"):
        View(camera, np.zeros((5, 17, 2)))


def test_a_camera_of_ones_own_is_not_saved_as_another(tmp_path):
    class FishEye(Camera):
        pass

    camera = FishEye(np.eye(3), (0, 0, 0), (1000, 1000), (500, 500), (1000, 1000), name="left")
    views = {"S131/Jumping/131_03b": (View(camera, np.zeros((3, 17, 2))),)}
    archive = MotionArchive(h36m_17, example().motions, views)
    with pytest.raises(InputError, match=r"`views` must be of cameras.*Received: \['FishEye'\]"):
        save_archive(tmp_path / "a.npz", archive)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*archives._META, *archives._HEADER, "S002/Walking/02_01"])
def test_missing_array(tmp_path, arrays, name):
    del arrays[name]
    refuses(written(tmp_path / "bad.npz", arrays), f"`{name}` is missing")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("S002/Walking/02_01", poses(joints=16), "17 joints"),
        ("S002/Walking/02_01", np.zeros((5, 51), "float32"), "must have 3 dimensions"),
        ("S002/Walking/02_01", np.zeros((5, 17, 3), "int32"), "dtype int32"),
        ("S002/Walking/02_01", np.zeros((5, 17, 3), "float16"), "float32 or float64"),
        ("S002/Walking/02_01", np.full((5, 17, 3), np.nan), "must be finite"),
        ("S002/Walking/02_01", poses() * 1000, "must be in metres"),
        ("meta_fps", np.array([30.0, 0.0]), "`fps` must be"),
        ("meta_fps", np.array([30.0]), "of one length"),
        ("meta_subject", np.array([3, 131]), "`meta_key` says 'S002/Walking/02_01'"),
        ("meta_key", np.array(["S002/../02_01", "S131/Jumping/131_03b"]), "S002/../02_01"),
        ("meta_key", np.array(["../../etc/x", "S131/Jumping/131_03b"]), "../../etc/x"),
        ("meta_key", np.array(["/S002/Walking/02_01", "S131/Jumping/131_03b"]), "`meta_key`"),
        ("meta_key", np.array(["S131/Jumping/131_03b"] * 2), "`meta_key` must have each key once"),
        ("meta_action", np.array(["..", "Jumping"]), "`action` must be"),
        ("parents", np.zeros(17, "int32"), "`parents` must hold"),
        ("joint_names", np.array(["a"]), "`joint_names` must hold"),
        ("skeleton", np.array("{"), "`skeleton` must be a skeleton as JSON"),
        ("skeleton", np.array("[" * 100_000), "`skeleton` must be a skeleton as JSON"),
        ("skeleton", np.array('{"name": "arm"}'), "`config` must hold the fields of a Skeleton"),
        ("skeleton", np.array('"h36m_16"'), "`skeleton` must have the `joint_names` and"),
        ("skeleton", np.array(["h36m_17"]), "must have 0 dimensions"),
        ("units", np.array("millimetre"), "`units` must be 'metre'"),
        ("up_axis", np.array("y"), "`up_axis` must be 'z'"),
        ("S003/Walking/03_01", poses(), "does not list the array `S003/Walking/03_01`"),
    ],
)
def test_wrong_array(tmp_path, arrays, name, value, words):
    refuses(written(tmp_path / "bad.npz", arrays | {name: value}), words)


class Bomb:
    exploded = False

    def __reduce__(self):
        return (setattr, (Bomb, "exploded", True))


@pytest.mark.parametrize("name", ["meta_description", "S002/Walking/02_01"])
def test_pickled_objects_are_never_loaded(tmp_path, arrays, name):
    path = written(tmp_path / "bad.npz", arrays | {name: np.array([Bomb(), Bomb()], dtype=object)})
    refuses(path, f"`{name}` holds pickled objects")
    assert not Bomb.exploded
    with zipfile.ZipFile(path) as file:  # the bomb is a real one
        pickle.loads(file.read(f"{name}.npy")[128:])
    assert Bomb.exploded
    Bomb.exploded = False


def test_missing_file_and_files_of_other_kinds(tmp_path):
    refuses(tmp_path / "none.npz", "could not be opened")
    refuses(tmp_path, "could not be opened")
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    refuses(text, "could not be opened")
    single = tmp_path / "single.npz"
    with open(single, "wb") as file:
        np.save(file, poses())
    refuses(single, "could not be opened")


@pytest.mark.parametrize("part", [0.2, 0.5, 0.99])
def test_truncated_file(tmp_path, part):
    save_archive(tmp_path / "a.npz", example())
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: int(len(content) * part)])
    refuses(tmp_path / "cut.npz", "could not be opened")


def test_flipped_byte(tmp_path, arrays):
    path = written(tmp_path / "a.npz", arrays)
    content = bytearray(path.read_bytes())
    at = content.find(arrays["S002/Walking/02_01"].tobytes())
    content[at + 7] ^= 0xFF
    path.write_bytes(content)
    refuses(path, "`S002/Walking/02_01` is damaged")


def replace_member(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    with zipfile.ZipFile(path, "w") as file:
        for member, old in (members | {name: content}).items():
            file.writestr(member, content if member == name else old)
    return path


def npy_header(text: str) -> bytes:
    body = text.encode().ljust(118 - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 17, 3)}"),
            "does not fit its 0 bytes",
        ),
        (
            npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (5, 17, 3)}") + b"1234",
            "does not fit its 4 bytes",
        ),
        (npy_header("__import__('os').getcwd()"), "damaged"),
        (b"\x93NUMPY\x09\x00" + bytes(200), "unknown version"),
        (b"", "damaged"),
        (b"PK", "damaged"),
    ],
)
def test_member_that_lies_about_itself(tmp_path, arrays, content, words):
    path = written(tmp_path / "bad.npz", arrays)
    refuses(replace_member(path, "S002/Walking/02_01.npy", content), words, "`S002/Walking/02_01`")


def test_declared_sizes_are_capped_before_anything_is_read(tmp_path, arrays, monkeypatch):
    path = written(tmp_path / "a.npz", arrays)
    with zipfile.ZipFile(path) as file:
        declared = sum(info.file_size for info in file.infolist())
        members = len(file.infolist())
    monkeypatch.setattr(archives, "MAX_BYTES", declared)
    monkeypatch.setattr(archives, "MAX_MEMBERS", members)
    load_archive(path)

    def never(*args, **kwargs):
        raise AssertionError("a member was read")

    monkeypatch.setattr(zipfile.ZipFile, "read", never)
    monkeypatch.setattr(archives, "MAX_BYTES", declared - 1)
    refuses(path, f"declare {declared} bytes")
    monkeypatch.setattr(archives, "MAX_BYTES", declared)
    monkeypatch.setattr(archives, "MAX_MEMBERS", members - 1)
    refuses(path, f"has {members} members")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path, arrays):
    path = written(tmp_path / "a.npz", arrays)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("units.npy", file.read("units.npy"))
    refuses(path, "two members of one name")

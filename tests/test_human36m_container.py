"""Hostile ZIP archives of Human3.6M: their members, what they declare, and damage."""

import struct
import zipfile

import pytest
from human36m_files import old_npy, positions_3d, refuses, refuses_file, write_zip

from keras_wsgcn.data import human36m_formats

pytestmark = pytest.mark.plain


def test_members(tmp_path, canary, monkeypatch):
    good = old_npy(positions_3d(subjects=(1,)))
    path = tmp_path / "data_3d_h36m.npz"
    for name in ("../canary", "/canary.npy", "canary.npy", "positions_3d", "positions_3d.pkl"):
        write_zip(path, {"positions_3d.npy": good, name: b"x"})
        refuses_file(tmp_path, "has a member", repr(name))
    write_zip(path, {f"{i}.npy": good for i in range(17)})
    refuses_file(tmp_path, "17 members")
    write_zip(path, {})
    refuses_file(tmp_path, "`positions_3d` is missing".replace("`", "'"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("positions_3d.npy", good)
    refuses_file(tmp_path, "unusual way")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("positions_3d.npy", good)
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("positions_3d.npy", good)
    refuses_file(tmp_path, "two members")
    assert not (tmp_path.parent / "canary").exists()


def test_a_zip_bomb_is_not_opened(tmp_path, canary, monkeypatch):
    path = write_zip(tmp_path / "data_3d_h36m.npz", {"positions_3d.npy": bytes(50_000_000)})
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(human36m_formats, "MAX_BYTES", 49_999_999)

    def never(*args, **kwargs):
        raise AssertionError("a member was opened")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", never)
        refuses_file(tmp_path, "declare 50000000 bytes")
    # A member that declares less than it holds is read no further than declared.
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = content.find(signature) + at
        content[place : place + 4] = struct.pack("<I", 1000)
    path.write_bytes(content)
    refuses_file(tmp_path, "damaged")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file(tmp_path, canary, part):
    path = write_zip(
        tmp_path / "data_3d_h36m.npz", {"positions_3d.npy": old_npy(positions_3d(subjects=(1,)))}
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refuses_file(tmp_path, "could not be opened")


@pytest.mark.parametrize("part", [0.001, 0.01, 0.5, 0.99])
def test_truncated_member_and_flipped_bytes(tmp_path, canary, part):
    good = old_npy(positions_3d(subjects=(1,)))
    refuses(tmp_path, good[: int(part * len(good))], "positions_3d")
    path = write_zip(tmp_path / "data_3d_h36m.npz", {"positions_3d.npy": good})
    content = bytearray(path.read_bytes())
    content[100 + int(part * (len(content) - 300))] ^= 0x55
    path.write_bytes(content)
    refuses_file(tmp_path, "positions_3d")

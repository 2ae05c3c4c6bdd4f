"""Files appear whole or not at all, and what a killed process left is removed in time."""

import errno
import os
import time

import pytest

from keras_wsgcn import files
from keras_wsgcn.environment import command_line
from keras_wsgcn.files import atomic_path, remove_leftovers, sync_folder, write_text

pytestmark = pytest.mark.plain


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    target = tmp_path / "history.csv"
    write_text(target, "old")

    def write():
        with atomic_path(target) as temporary:
            temporary.touch()
            with open("/dev/full", "w") as file:  # gives the error of a full disk
                file.write("new")

    with pytest.raises(OSError, match="No space left") as caught:
        write()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(target))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["history.csv"]


def test_an_error_that_names_its_file_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.txt"):
        (tmp_path / "other").read_text()
    assert caught.value.filename == str(tmp_path / "other")


def test_files_are_open_for_writing_when_they_are_written_out(tmp_path, monkeypatch):
    """Windows refuses any other, with a bad file descriptor."""
    fcntl, synced = pytest.importorskip("fcntl"), []
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_RDWR)
    )
    write_text(tmp_path / "a.txt", "text")
    sync_folder(tmp_path)
    assert synced == [os.O_RDWR, os.O_RDWR]


def test_a_file_that_somebody_has_open_is_replaced_a_little_later(tmp_path, monkeypatch):
    """On Windows, where it is refused."""
    original, refusals = os.replace, iter([True, True, False])

    def replace(source, target):
        if next(refusals):
            raise PermissionError(13, "open elsewhere", str(target))
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a.txt", "text")
    monkeypatch.setattr(files, "_WAITS", (0.001, 0.001))
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_printed_commands_are_of_the_system_s_shell(monkeypatch):
    words = ["python", "a b", r"C:\runs\x"]
    assert command_line(words) == r"python 'a b' 'C:\runs\x'"
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        line = command_line(words)
    assert line == r'python "a b" C:\runs\x'


def test_leftovers_are_removed_when_they_are_old(tmp_path):
    names = [".last.0123abcd.keras", ".last.0123abcd.rewritten.keras", ".history.0123abcd.csv"]
    kept = ["last.keras", ".hidden", ".last.0123abcd.keras.d", ".young.0123abcd.csv"]
    for name in [*names, *kept]:
        if name.endswith(".d"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).touch()
        if "young" not in name:
            os.utime(tmp_path / name, (time.time() - 100,) * 2)
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_leftovers(tmp_path / "none")

"""Writing without loss: every file appears whole, under its final name, or not at all."""

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `target`, renamed onto `target` when the block succeeds.

    The temporary name keeps the suffix of the target, because Keras and NumPy choose the
    format by it. When the block raises, the temporary file is removed and `target` is as it was.

    Args:
        target: the file to be written. Its folder is made if need be.

    Yields:
        The path to write to.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    try:
        yield temporary
        _sync(temporary)
        replace_file(temporary, target)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        # A full disk, say: the error of a write does not name its file.
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        temporary.unlink(missing_ok=True)


# On Windows no file is replaced that somebody has open; indexers and scanners close it soon.
_WAITS = (0.05, 0.1, 0.2, 0.5, 1.0) if os.name == "nt" else ()


def replace_file(source: Path, target: Path) -> None:
    """`os.replace`, tried again where it is refused on Windows."""
    for seconds in _WAITS:
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(seconds)
    os.replace(source, target)


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.rewritten)?(\.\w+)?")


def remove_leftovers(folder: Path) -> None:
    """Removes what `atomic_path` left of processes that were killed while they wrote.

    Those of the last minute stay: they may be another process's at work.
    """
    for path in folder.glob(".*") if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # another process may remove it too
            is_old = path.stat().st_mtime < time.time() - 60
            if is_old and path.is_file() and _TEMPORARY.fullmatch(path.name):
                path.unlink()


def write_text(target: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8 to `target`, atomically, its ends of lines as they are."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(target: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON to `target`, atomically."""
    write_text(target, json.dumps(value, indent=2, default=plain) + "\n")


def plain(value: Any) -> Any:
    """A number of NumPy's as one of Python's, which JSON can hold: for `json.dumps(default=)`."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is nothing that JSON can hold")


def copy_file(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies a file to `target`, atomically."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def check_regular(path: Path) -> None:
    """Refuses a pipe, which would be waited for, or a folder; a missing file passes.

    Raises:
        OSError: if something is there that is no regular file.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")


NPY_HEADERS: dict[tuple[int, int], Callable] = {  # what reads them, by the version of the format
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npy_header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether column by column, and dtype of an `.npy` file of `size` bytes.

    Raises:
        ValueError: if the version is unknown, or the rest is not as large as such an array is.
    """
    version = np.lib.format.read_magic(stream)
    if version not in NPY_HEADERS:
        raise ValueError(f"unknown version {version} of the npy format")
    shape, by_columns, dtype = NPY_HEADERS[version](stream)
    present = size - stream.tell()
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != present:
        raise ValueError(f"shape {shape} of {dtype} does not fit its {present} bytes")
    return shape, by_columns, dtype


def digest_of(path: str | os.PathLike) -> str:
    """The start of a file's SHA-256, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def digest_of_arrays(arrays: Iterable[np.ndarray]) -> str:
    """Sixteen hexadecimal digits that tell arrays of the same shapes from others."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def sync_folder(folder: Path) -> None:
    """Has the system write out every file below `folder`, before a rename makes them count."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)


def _sync(path: Path) -> None:
    with open(path, "r+b") as file:  # Windows writes out no file that is open for reading alone
        os.fsync(file.fileno())

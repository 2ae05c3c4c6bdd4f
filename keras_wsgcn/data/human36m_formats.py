"""VideoPose3D's archives, `.npz` files that hold pickles, read without unpickling.

Sizes are checked before bytes, and the pickles go through `human36m_pickles`.
"""

import os
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from keras_wsgcn.data.human36m_pickles import PickleError, unpickle
from keras_wsgcn.errors import InputError
from keras_wsgcn.files import NPY_HEADERS, check_regular

MAX_BYTES = 2**29  # of all members as declared; all of Human3.6M's 2D poses take 286 MB
MAX_MEMBERS = 16


def read_objects(
    path: str | os.PathLike, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Reads the object that each member of an archive holds.

    Args:
        path: an `.npz` file as `np.savez(path, name=some_dict)` writes it, by any version of NumPy
            and Python.
        required: names of members that must be there.
        optional: names of members that may be there. A file with any other is refused.

    Returns:
        For each name dicts, lists, tuples, strings, numbers and float arrays. The arrays are
        read-only.

    Raises:
        InputError: if the file is missing, damaged, too large, or holds anything else. Nothing
            that the file names has then been imported or called.
    """
    path = Path(path)
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as file:
            infos = _checked_members(path, file, required, optional)
            return {name: _read_member(path, file, name, info) for name, info in infos.items()}
    except InputError:
        raise
    except Exception as error:  # whatever zipfile makes of bytes that are no archive
        raise refusal(path, f"it could not be opened ({error})") from None


def refusal(path: Path, problem: str) -> InputError:
    """The error for a file that is not what it should be."""
    return InputError(
        f"`path` must be a Human3.6M file as documented; {problem}. Received: path={str(path)!r}"
    )


def _checked_members(
    path: Path, file: zipfile.ZipFile, required: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, zipfile.ZipInfo]:
    infos = file.infolist()
    if len(infos) > MAX_MEMBERS:
        raise refusal(path, f"it has {len(infos)} members, more than {MAX_MEMBERS}")
    declared = sum(info.file_size for info in infos)
    if declared > MAX_BYTES:
        raise refusal(path, f"its members declare {declared} bytes, more than {MAX_BYTES}")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if name not in (*required, *optional) or not info.filename.endswith(".npy"):
            raise refusal(path, f"it has a member {info.filename!r}, where only {required} belong")
        if name in members:
            raise refusal(path, f"it has two members {info.filename!r}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refusal(path, f"its member {name!r} is compressed in an unusual way")
        members[name] = info
    if missing := sorted(set(required) - set(members)):
        raise refusal(path, f"its member {missing[0]!r} is missing")
    return members


def _read_member(path: Path, file: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Any:
    try:
        with file.open(info) as stream:
            _check_header(stream)
            return unpickle(stream)
    except PickleError as error:
        raise refusal(path, f"its member `{name}` {error}") from None
    except Exception as error:  # whatever zipfile, NumPy and pickletools make of damaged bytes
        raise refusal(path, f"its member `{name}` is damaged ({error})") from None


def _check_header(stream: IO[bytes]) -> None:
    version = np.lib.format.read_magic(stream)
    if version not in NPY_HEADERS:
        raise PickleError(f"is damaged: unknown version {version} of the npy format")
    shape, _, dtype = NPY_HEADERS[version](stream)
    if dtype != np.dtype(object) or shape != ():
        raise PickleError(f"must be one pickled object, not {dtype} of shape {shape}")

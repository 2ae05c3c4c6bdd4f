"""What an HDF5 file of weights may hold: plain arrays, in no more bytes than the file has."""

import io
from typing import Any

import h5py

from keras_wsgcn.errors import Refused

_MAX_OBJECTS, _MAX_DEPTH = 50_000, 40


def check_arrays(content: bytes, name: str) -> int:
    """Checks the bytes of a Keras weights file: they may hold plain arrays in groups, no larger
    than the file itself.

    Args:
        content: the file.
        name: what it is called in messages.

    Returns:
        The number of the optimiser's variables in it.

    Raises:
        Refused: if it holds links, filters, other files' data, objects, or is no HDF5.
    """
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            stored, seen = 0, {h5py.h5o.get_info(file.id).addr}
            groups: list[tuple[h5py.Group, int]] = [(file, 0)]
            while groups:
                group, depth = groups.pop()
                for key in group:
                    item = _hard_linked(group, key, name)
                    address = h5py.h5o.get_info(item.id).addr
                    if address in seen or len(seen) > _MAX_OBJECTS or depth > _MAX_DEPTH:
                        raise Refused(f"{name!r} has a circle, or too many objects")
                    seen.add(address)
                    if isinstance(item, h5py.Group):
                        groups.append((item, depth + 1))
                    else:
                        stored += _stored_bytes(item, name)
            if stored > len(content):
                raise Refused(f"{name!r} claims {stored} bytes of arrays")
            optimizer = file.get("optimizer/vars")
            return 0 if optimizer is None else len(optimizer)
    except Refused:
        raise
    except Exception as error:  # whatever h5py makes of bytes that are no HDF5
        raise Refused(f"{name!r} cannot be read ({type(error).__name__}: {error})") from None


def _hard_linked(group: h5py.Group, key: str, name: str) -> Any:
    if type(group.get(key, getlink=True)) is not h5py.HardLink:
        raise Refused(f"{name!r} has a link at {group.name}/{key[:80]}")
    item = group[key]
    if not isinstance(item, h5py.Group | h5py.Dataset):
        raise Refused(f"{name!r} has a type at {item.name}")
    return item


def _stored_bytes(array: h5py.Dataset, name: str) -> int:
    settings = array.id.get_create_plist()
    if settings.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT):
        raise Refused(f"{name!r} has chunks, filters or other files at {array.name}")
    if settings.get_external_count() or array.dtype.kind not in "fiu":
        raise Refused(f"{name!r} must hold plain numbers at {array.name}")
    return int(array.nbytes)

"""Seeded mutators for bytes, plain values and archives: rubbish as a stranger, or a disk, makes it.

Each takes a `random.Random`, from which everything that it does follows.
"""

import copy
import io
import json
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

CANARY = "canary"  # a folder that executed code would make
FOLDER = "rubbish"  # where the files of an input lie


class Canary:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, (CANARY,))


# --- bytes ---------------------------------------------------------------------------------------


def _truncate(rng: random.Random, data: bytearray, other: bytes) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _flip(rng: random.Random, data: bytearray, other: bytes) -> None:
    for _ in range(rng.choice((1, 1, 4, 40)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _span(rng: random.Random, length: int) -> slice:
    start = rng.randrange(length + 1)
    return slice(start, min(length, start + rng.choice((1, 4, 16, 64, 512, 4096))))


def _remove(rng: random.Random, data: bytearray, other: bytes) -> None:
    del data[_span(rng, len(data))]


def _repeat(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[_span(rng, len(data))] * rng.choice((1, 2, 50))


def _exchange(rng: random.Random, data: bytearray, other: bytes) -> None:
    one, two = _span(rng, len(data)), _span(rng, len(data))
    data[one], data[two] = data[two], data[one]


def _insert(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 300)))


def _extreme(rng: random.Random, data: bytearray, other: bytes) -> None:
    """A number of one to eight bytes at its limits: lengths, counts and offsets."""
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(len(data) + 1)
    data[at : at + size] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * size


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]


_BYTES = (_truncate, _flip, _flip, _remove, _repeat, _exchange, _insert, _extreme, _splice)


def damage(rng: random.Random, content: bytes, other: bytes = b"") -> bytes:
    """`content` with one or a few things wrong; `other` is a valid file to splice with."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_BYTES)(rng, data, other)
    return bytes(data[: 4 << 20])


# --- text ----------------------------------------------------------------------------------------

_WORDS = (
    "nan", "inf", "-inf", "1e308", "-1e308", "1e-320", "1e999", "0", "-1", "99999999999999999999",
    "1" * 5000, "0x10", "", "#", ":", "{", "}", "[", "]", '"', "\x00", "é漢💥", "root", "../../x",
)  # fmt: skip


def scribble(rng: random.Random, content: bytes, other: bytes = b"") -> bytes:
    """Text with words and lines exchanged, removed, repeated and overwritten."""
    lines = content.decode("utf-8", "replace").split("\n")
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
        what = rng.randrange(6)
        if what < 3:
            words = lines[at].split(" ")
            words[rng.randrange(len(words))] = rng.choice(_WORDS)
            lines[at] = " ".join(words)
        elif what == 3:
            lines[at], lines[to] = lines[to], lines[at]
        elif what == 4 and len(lines) > 1:
            del lines[at]
        else:
            lines[to:to] = [lines[at]] * rng.choice((1, 3, 200))
    return "\n".join(lines).encode("utf-8", "replace")


# --- plain values --------------------------------------------------------------------------------

# What JSON and TOML can write, but Python's writers cannot, as texts that are put in afterwards.
_RAW = {
    "@deep": "[" * 3000 + "]" * 3000,
    "@digits": "1" + "0" * 5000,
    "@large": "1" + "0" * 400,
    "@infinite": "1e999",
}
_RAW_JSON = {**_RAW, "@nan": "NaN", "@objects": '{"a":' * 3000 + "1" + "}" * 3000}
_RAW_TOML = {**_RAW, "@nan": "nan", "@infinite": "inf", "@hex": "0x1" + "0" * 5000}

RUBBISH: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 0.5, -0.0, 1e308, 1e-308, 1e9,
    "", "x", "0", "all", "x" * 20_000, "../../etc/passwd", "/", "a\x00b", "é漢💥", "nan", "\n",
    [], {}, [[]], [None], [0, 1], ["a", "b"], {"a": 1}, {"": {}}, [{}], [1e308] * 3,
    *_RAW_JSON,
)  # fmt: skip


def _deep(kind: type) -> Any:
    value: Any = kind()
    for _ in range(3000):
        value = [value] if kind is list else {"a": value}
    return value


# For arguments, where any object can come.
OBJECTS: dict[str, Callable[[], Any]] = {
    "@deep": lambda: _deep(list),
    "@objects": lambda: _deep(dict),
    "@digits": lambda: 10**5000,
    "@large": lambda: 10**400,
    "@infinite": lambda: float("inf"),
    "@nan": lambda: float("nan"),
    "@array": lambda: np.array([1.0, 2.0]),
    "@integer": lambda: np.int64(3),
    "@float": lambda: np.float32(0.5),
    "@bytes": lambda: b"x",
    "@set": lambda: {1},
    "@object": object,
    "@class": lambda: dict,
    "@complex": lambda: 1 + 2j,
    "@pairs": lambda: {(1, 2): 3, None: 4},
    "@many": lambda: ["j"] * 100_000,
    "@names": lambda: [f"joint{n}" for n in range(100_000)],
    "@numbers": lambda: list(range(-1, 99_999)),
}


def _places(value: Any, found: list, above: Any = None, key: Any = None) -> list:
    """Every (container, key) within a value."""
    if above is not None:
        found.append((above, key))
    if isinstance(value, dict):
        for name, item in value.items():
            _places(item, found, value, name)
    elif isinstance(value, list):
        # Of a long list of numbers a few places will do.
        for number, item in enumerate(value[:40]):
            _places(item, found, value, number)
    return found


def rewrite(rng: random.Random, value: Any, others: tuple[Any, ...] = RUBBISH) -> Any:
    """A copy of a plain value with items replaced, removed, renamed, wrapped or exchanged."""
    value = json.loads(json.dumps(value))  # a copy in which no two places share a list
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(value, [])
        if not places:
            return rng.choice(others)
        above, key = rng.choice(places)
        what = rng.randrange(10)
        if what == 0 and isinstance(above, dict):
            del above[key]
        elif what == 0:
            above.pop(key)
        elif what == 1 and isinstance(above, dict):
            above[rng.choice(("", "x", "name", "config", str(key).upper()))] = above.pop(key)
        elif what == 1:
            above.insert(key, copy.deepcopy(above[key]))
        elif what == 2:
            above[key] = [above[key]]
        elif what == 3:
            there, other = rng.choice(places)
            above[key] = copy.deepcopy(there[other])
        elif what == 4 and isinstance(above[key], int | float):
            above[key] = rng.choice((-above[key], above[key] * 10**6, above[key] + 0.5))
        elif what == 5 and isinstance(above, dict):
            above["unknown"] = rng.choice(others)
        else:
            above[key] = copy.deepcopy(rng.choice(others))
    return value


def as_objects(value: Any) -> Any:
    """A value with the objects that its names stand for."""
    if isinstance(value, str) and value in OBJECTS:
        return OBJECTS[value]()
    if isinstance(value, dict):
        return {key: as_objects(item) for key, item in value.items()}
    return [as_objects(item) for item in value] if isinstance(value, list) else value


def as_json(value: Any) -> bytes:
    text = json.dumps(value)
    for name, raw in _RAW_JSON.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


def as_toml(value: Any) -> bytes:
    """TOML of a table; what is None is left out, as TOML has no word for it."""
    lines = [f"{_key(key)} = {_toml(item)}" for key, item in value.items() if item is not None]
    text = "\n".join(lines) + "\n"
    for name, raw in _RAW_TOML.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode("utf-8", "replace")


def _key(key: Any) -> str:
    return json.dumps(str(key), ensure_ascii=False)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        items = ((key, item) for key, item in value.items() if item is not None)
        return "{" + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value if item is not None) + "]"
    return json.dumps(value, ensure_ascii=False)


# --- archives ------------------------------------------------------------------------------------


def unzip(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezip(
    members: dict[str, bytes] | list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return file.getvalue()


def npy(payload: bytes, descr: str = "<f4", shape: str = "()") -> bytes:
    """An `.npy` file with any header."""
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head = head.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + payload


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


_SHAPES = (
    "(99999999999, 17, 3)", "(1000000000,)", "(-1, 17, 3)", "()", "(0, 17, 3)", "(2**70,)",
    "(3, 17, 3)", "(1, 1, 1, 1, 1)", "17", "(True, 17, 3)", "(9999999999999999999999, 2)",
    "(" * 200 + ")" * 200,
)  # fmt: skip
_DESCRS = (
    "|O", "<f8", ">f4", "<i4", "<U9", "|S7", "<c16", "<M8[s]", "|V8", "?", "<U99999999", "evil",
)  # fmt: skip
# Arrays of zeros that fit their header, by the bytes of a row; and how often a bomb is made of one.
_BOMBS = (("<f4", "({}, 17, 3)", 204), ("<u1", "({}, 17, 2)", 34), ("<U1", "({},)", 4))
_BOMB_BYTES = (1 << 28, 3 << 28, 5 << 28)
BOMB_RATE = 0.003


def misfit(rng: random.Random, content: bytes, other: bytes = b"") -> bytes:
    """The `.npy` file of an array as something else."""
    end = content.find(b"\n") + 1
    payload = content[end:]
    what = rng.randrange(8)
    if what == 0:
        return npy(payload, descr=rng.choice(_DESCRS), shape=rng.choice(_SHAPES))
    if what == 1:
        return npy(payload, shape=rng.choice(_SHAPES))
    if what == 2:
        head = re.sub(rb"'descr': '[^']*'", f"'descr': '{rng.choice(_DESCRS)}'".encode(), content)
        return head
    if what == 3:
        return npy(pickle.dumps(Canary(), rng.randrange(5)), descr="|O")
    if what == 4:
        return saved(np.array([Canary(), Canary()], dtype=object))
    if what == 5:
        return npy(payload, shape=f"__import__('os').mkdir('{CANARY}')")
    if what == 6:
        return content[:end] + np.full(len(payload) // 4 + 1, rng.choice(
            (np.nan, np.inf, 1e30, -1.0)), "<f4").tobytes()[: len(payload)]  # fmt: skip
    return damage(rng, content, other)


def reassemble(
    rng: random.Random,
    content: bytes,
    other: bytes,
    change: Callable[[random.Random, bytes, bytes], bytes] = misfit,
) -> bytes:
    """An archive whose members are changed, renamed, missing, twice, strange or a bomb."""
    members, others = list(unzip(content).items()), list(unzip(other).items())
    compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    for _ in range(rng.choice((1, 1, 1, 2))):
        at = rng.randrange(len(members))
        name, member = members[at]
        what = rng.randrange(12)
        if what < 6:
            members[at] = name, change(rng, member, rng.choice(others)[1])
        elif what == 6:
            members[at] = (
                rng.choice((f"../{name}", f"/tmp/{name}", "x.npy", " ", "a" * 300)),
                member,
            )
        elif what == 7 and len(members) > 1:
            del members[at]
        elif what == 8:
            members.append((name, member))
        elif what == 9:
            to = rng.randrange(len(members))
            members[at], members[to] = (name, members[to][1]), (members[to][0], member)
        elif what == 10:
            members[at] = name, dict(others).get(name, b"")
        else:
            members.append(rng.choice(others))
    if rng.random() < BOMB_RATE:
        return _bomb(rng, members)
    if rng.random() < 0.05:
        compression = rng.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    return rezip(members, compression)


def _bomb(rng: random.Random, members: list[tuple[str, bytes]]) -> bytes:
    """An archive with one huge array of zeros, which is never held itself."""
    (descr, shape, row), size = rng.choice(_BOMBS), rng.choice(_BOMB_BYTES)
    # More often in place of the largest, whose header would fit.
    largest = max(range(len(members)), key=lambda number: len(members[number][1]))
    at = rng.choice((largest, rng.randrange(len(members))))
    rows = size // row
    return with_zeros(members, at, descr, shape.format(rows), rows * row)


def with_zeros(
    members: list[tuple[str, bytes]], at: int, descr: str, shape: str, size: int
) -> bytes:
    """An archive whose member `at` is an array of `size` zero bytes, packed a thousandfold."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number, (name, content) in enumerate(members):
            if number != at:
                archive.writestr(name, content)
                continue
            with archive.open(name, "w", force_zip64=True) as stream:
                stream.write(npy(b"", descr, shape))
                for start in range(0, size, 1 << 20):
                    stream.write(bytes(min(1 << 20, size - start)))
    return file.getvalue()

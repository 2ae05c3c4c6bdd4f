"""Hostile archives: each is refused by name, and nothing that it asks for happens."""

import builtins
import contextlib
import encodings.cp437  # zipfile and pickle load them at their first use
import encodings.raw_unicode_escape  # noqa: F401
import functools
import io
import operator
import os
import pathlib
import pickle
import pickletools
import shutil
import struct
import subprocess
import zlib

import numpy as np
import pytest
from human36m_files import (
    npy,
    object_array,
    old_npy,
    positions_3d,
    refuses,
    refuses_file,
    write_zip,
)

from keras_wsgcn import InputError
from keras_wsgcn.data import human36m, human36m_pickles

pytestmark = pytest.mark.plain


# --- callables of every kind, in every protocol ---------------------------------------------------


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.value = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.value

    def __call__(self):
        """Pickle takes only a callable as the function of another call."""


class CallEx(Call):
    def __reduce_ex__(self, protocol):
        return self.value


class Listed(list):
    """Pickles as a list whose items come from a call."""

    def __reduce__(self):
        return (list, (), None, iter([Call(os.system, "touch canary")]))


class WithState:
    def __setstate__(self, state):
        pathlib.Path("canary").touch()

    def __getstate__(self):
        return {"a": 1}


class WithNew:
    def __new__(cls, *arguments):
        if arguments:
            pathlib.Path("canary").touch()
        return super().__new__(cls)

    def __getnewargs__(self):
        return (1,)


class WithNewEx(WithNew):
    def __getnewargs_ex__(self):
        return (1,), {}


def with_open():
    return Call(builtins.getattr, Call(builtins.open, "canary", "w"), "close")


CALLS = {
    "os.system": lambda: Call(os.system, "touch canary"),
    "subprocess": lambda: Call(subprocess.check_call, ["touch", "canary"]),
    "eval": lambda: Call(eval, "open('canary', 'w').close()"),
    "exec": lambda: Call(exec, "open('canary', 'w').close()"),
    "open": with_open,
    "getattr chain": lambda: Call(
        Call(builtins.getattr, Call(builtins.__import__, "os"), "system"), "touch canary"
    ),
    "map": lambda: Call(list, Call(map, os.system, ["touch canary"])),
    "partial": lambda: Call(functools.partial(os.system, "touch canary")),
    "methodcaller": lambda: Call(operator.methodcaller("touch"), pathlib.Path("canary")),
    "Path.touch": lambda: Call(pathlib.Path.touch, pathlib.Path("canary")),
    "shutil": lambda: Call(shutil.copy, "source", "canary"),
    "numpy.save": lambda: Call(np.save, open_for("canary"), np.zeros(1)),
    "numpy.memmap": lambda: Call(np.memmap, "canary", "uint8", "w+", 0, (1,)),
    "numpy.savetxt": lambda: Call(np.savetxt, "canary", [1.0]),
    "numpy runstring": lambda: Call(np.testing.runstring, "open('canary', 'w').close()", {}),
    "reduce_ex": lambda: CallEx(os.system, "touch canary"),
    "with a state": lambda: Call(os.system, "touch canary", state={"a": 1}),
    "list items": Listed,
    "setstate": WithState,
    "new": WithNew,
    "new_ex": WithNewEx,
}


def open_for(name):
    return Call(builtins.open, name, "wb")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", CALLS)
def test_calls(tmp_path, canary, call, protocol):
    (tmp_path / "source").touch()
    payload = pickle.dumps(object_array({"S1": {"Walking": CALLS[call]()}}), protocol)
    with contextlib.suppress(Exception):  # many a payload fails once it has done its harm
        pickle.loads(payload)
    if not canary.exists():
        pytest.skip("harmless in this protocol")
    canary.unlink()  # the payload is a real one: Python itself does what it asks for
    refuses(tmp_path, npy(payload), "asks for")


@pytest.mark.parametrize(
    "place",
    [
        lambda bomb: bomb,
        lambda bomb: {"S1": bomb},
        lambda bomb: {"S1": {"Walking": [bomb] * 4}},
        lambda bomb: {"S1": {"Walking": object_array(bomb)}},
        lambda bomb: {"S1": {"Walking": np.array([bomb, 1], dtype=object)}},
        lambda bomb: [[[[(bomb,)]]]],
    ],
)
def test_places(tmp_path, canary, place):
    payload = pickle.dumps(object_array(place(Call(os.system, "touch canary"))), 4)
    refuses(tmp_path, npy(payload), "'posix.system'")


def test_the_metadata_of_detections_is_read_the_same_way(tmp_path, canary):
    np.savez(tmp_path / "data_3d_h36m.npz", positions_3d=positions_3d(subjects=(1,)))
    bomb = pickle.dumps(object_array({"num_joints": Call(os.system, "touch canary")}), 3)
    members = {"positions_2d.npy": old_npy({}), "metadata.npy": npy(bomb)}
    write_zip(tmp_path / "data_2d_h36m_gt.npz", members)
    with pytest.raises(InputError, match=r"`metadata` asks for 'posix\.system'.*data_2d_h36m_gt"):
        human36m.read_archives(tmp_path)
    assert not canary.exists()


# --- pickles written by hand ----------------------------------------------------------------------

TOUCH = b"(X\x0c\x00\x00\x00touch canaryt"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
EMPTY = RECONSTRUCT + b"(" + NDARRAY + b"K\x00\x85C\x01btR"
HUGE = b"\x8a\x06" + (10**14).to_bytes(6, "little")

BY_HAND = {
    "GLOBAL": (b"cos\nsystem\n" + TOUCH + b"R.", "'os.system'"),
    "INST": (b"(" + TOUCH[1:-1] + b"ios\nsystem\n.", "operation INST"),
    "OBJ": (b"(cos\nsystem\n" + TOUCH[1:-1] + b"o.", "'os.system'"),
    "OBJ of an allowed class": (b"(" + NDARRAY + b"K\x05o.", "operation OBJ"),
    "NEWOBJ": (NDARRAY + b"K\x05\x85\x81.", "operation NEWOBJ"),
    "NEWOBJ_EX": (NDARRAY + b"K\x05\x85}\x92.", "operation NEWOBJ_EX"),
    "EXT1": (b"\x82\x01.", "operation EXT1"),
    "PERSID": (b"Pcanary\n.", "operation PERSID"),
    "BINPERSID": (b"K\x01Q.", "operation BINPERSID"),
    "NEXT_BUFFER": (b"\x97.", "operation NEXT_BUFFER"),
    "BYTEARRAY8": (b"\x96" + struct.pack("<Q", 2**62) + b".", "damaged"),
    "STACK_GLOBAL": (b"\x80\x04" + stack_global("os", "system") + TOUCH + b"R.", "'os.system'"),
    "dotted name": (
        b"\x80\x04" + stack_global("numpy", "ndarray.__class__.__base__") + b".",
        "ndarray.__class__",
    ),
    "module through numpy": (
        b"\x80\x04" + stack_global("numpy", "os.system") + TOUCH + b"R.", "'numpy.os.system'"
    ),
    "name with a line break": (
        b"\x80\x04" + stack_global("os\nnumpy", "ndarray\n") + b".", r"'os\nnumpy.ndarray\n'"
    ),
    "look-alike letters": (b"\x80\x04" + stack_global("numpy", "ndаrray") + b".", "ndаrray"),
    "names that are no text": (b"\x80\x04K\x01K\x02\x93.", "'?.?'"),
    "endless name": (b"\x80\x04" + stack_global("o" * 10**6, "s") + b".", "oooo"),
    "frombuffer": (b"cnumpy._core.numeric\n_frombuffer\n.", "_frombuffer"),
    "scalar": (b"cnumpy.core.multiarray\nscalar\n.", "scalar"),
    "call of the class": (NDARRAY + HUGE + b"\x85R.", "calls ndarray"),
    "call of a string": (text("os.system") + TOUCH + b"R.", "calls str"),
    "huge array": (
        RECONSTRUCT + b"(" + NDARRAY + HUGE + b"\x85C\x01btR.", "something else than an empty"
    ),
    "another class": (RECONSTRUCT + b"(cnumpy\ndtype\nK\x00\x85C\x01btR.", "something else"),
    "another type code": (RECONSTRUCT + b"(" + NDARRAY + b"K\x00\x85C\x01OtR.", "something else"),
    "zlib codec": (
        b"c_codecs\nencode\n" + text("x" * 99) + text("zlib") + b"\x86R.", "another purpose"
    ),
    "codec of one's own": (
        b"c_codecs\nencode\n" + text("x") + text("../canary") + b"\x86R.", "another purpose"
    ),
    "encode with errors": (
        b"c_codecs\nencode\n" + text("x") + text("latin1") + text("os") + b"\x87R.",
        "another purpose",
    ),
    "text that is not latin1": (
        b"c_codecs\nencode\n" + text("\u0416") + text("latin1") + b"\x86R.", "damaged"
    ),
    "list with arguments": (b"cbuiltins\nlist\n(K\x01K\x02K\x03tR.", "calls list with arguments"),
    "state of a function": (
        RECONSTRUCT + b"}" + text("__code__") + text("x") + b"sb.", "sets the state of a _Name"
    ),
    "state of a dict": (b"}}b.", "sets the state of a dict"),
    "state of a class": (NDARRAY + b"}b.", "sets the state of a _Name"),
    "state too short": (EMPTY + b"K\x01\x85b.", "damaged state"),
    "state without dtype": (EMPTY + b"(K\x01K\x00\x85NK\x00C\x00tb.", "without a dtype"),
    "dtype with a string of fields": (
        b"cnumpy\ndtype\n" + text("f4,f4,O") + b"\x85R.", "dtype 'f4,f4,O'"
    ),
    "dtype with fields": (
        b"cnumpy\ndtype\n" + text("f4") + b"\x85R(K\x03X\x01\x00\x00\x00<N" + text("a")
        + b"\x85}K\x01K\x01K\x00tb.",
        "dtype with fields",
    ),
    "dtype of a list": (b"cnumpy\ndtype\n]\x85R.", "dtype 'list'"),
    "key that is no text": (b"}K\x01K\x02s.", "keys are no strings"),
    "key that is nested deeply": (b"})" + b"\x85" * 100_000 + b"K\x01s.", "keys are no strings"),
    "append to a dict": (b"}K\x01a.", "appends to what is no list"),
    "empty stack": (b"0.", "takes more from the stack"),
    "mark that is not there": (b"K\x01t.", "takes more from the stack"),
    "recall of nothing": (b"h\x07.", "recalls what it never stored"),
    "memory at a far index": (b"K\x01r\xff\xff\xff\xff.", "must be an array that holds one"),
    "endless number": (b"L" + b"9" * 100_000 + b"L\n.", "damaged"),
    "bytes that are not there": (b"\x8e" + struct.pack("<Q", 2**60) + b".", "damaged"),
    "text that is not there": (b"\x8d" + struct.pack("<Q", 2**60) + b".", "damaged"),
    "unknown operation": (b"\xff.", "damaged"),
    "no end": (b"K\x01", "damaged"),
    "nothing": (b"", "damaged"),
    "a second pickle behind": (b"K\x01." + b"cos\nsystem\n" + TOUCH + b"R.", "bytes after its end"),
    "no array": (b"}.", "must be an array that holds one object"),
    "unfinished array": (EMPTY + b".", "must be an array that holds one object"),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(tmp_path, canary, name):
    payload, words = BY_HAND[name]
    refuses(tmp_path, npy(payload), words)


def state(shape: bytes, dtype: bytes, data: bytes, order: bytes = b"<") -> bytes:
    made = b"cnumpy\ndtype\n" + text(dtype.decode()) + b"\x85R"
    made += b"(K\x03X\x01\x00\x00\x00" + order + b"NNNK\x00K\x00K\x00tb"
    return EMPTY + b"(K\x01" + shape + made + b"\x89" + data + b"tb"


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (state(HUGE + b"\x85", b"f4", b"C\x04abcd"), "does not fit"),
        (state(HUGE * 3 + b"\x87", b"f4", b"C\x00"), "does not fit"),
        (state(b"(" + HUGE * 4 + b"K\x00t", b"f4", b"C\x00"), "damaged shape"),
        (state(b"J\xff\xff\xff\xff\x85", b"f4", b"C\x00"), "damaged shape"),
        (state(b"\x88\x85", b"f4", b"C\x04abcd"), "damaged shape"),
        (state(b"G?\xf0\x00\x00\x00\x00\x00\x00\x85", b"f4", b"C\x04abcd"), "damaged shape"),
        (state(b"K\x01\x85", b"f4", b"]"), "does not fit"),
        (state(b"K\x02\x85", b"O8", b"](K\x01K\x02e", b"|"), "array of objects of shape (2,)"),
        (state(b")", b"O8", b"]", b"|"), "array of objects"),
        (state(b"K\x01\x85", b"f4", b"C\x04abcd", b"!"), "damaged one"),
    ],
)
def test_arrays_that_lie(tmp_path, canary, array, words):
    payload = state(b")", b"O8", b"](" + array + b"e", b"|") + b"."
    refuses(tmp_path, npy(payload), words)


def test_bombs_of_memory_and_time(tmp_path, canary, monkeypatch):
    monkeypatch.setattr(human36m_pickles, "MAX_OPERATIONS", 10_000)
    refuses(tmp_path, npy(b"(" + b"N" * 20_000 + b"t."), "more than 10000 operations")
    # One text, encoded again and again.
    monkeypatch.setattr(human36m_pickles, "MAX_ENCODED", 10_000_000)
    again = b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R"
    refuses(tmp_path, npy(text("x" * 10**6) + b"q\x00" + again * 11 + b"."), "out of text")
    # One array in many places, each of which would become a copy.
    monkeypatch.setattr(human36m, "MAX_BYTES", 10_000_000)
    same = np.zeros((1000, 17, 3), "f4")
    takes = {f"Walking {i}": same for i in range(50)}
    np.savez_compressed(tmp_path / "data_3d_h36m.npz", positions_3d={"S1": takes})
    refuses_file(tmp_path, "take more than")


def test_a_list_within_itself(tmp_path, canary):
    endless: dict = {"S1": {}}
    endless["S1"]["Walking"] = endless
    endless["S1"]["Walking 1"] = [endless] * 4
    refuses(
        tmp_path, npy(pickle.dumps(object_array(endless), 4)), "must be a float array, not dict"
    )


def test_dtypes_beside_floats(tmp_path, canary):
    for values in (["a"], [1], [1j], [True], np.zeros(1, "V8"), np.zeros(1, "M8[s]")):
        tree = {"S1": {"Walking": np.array(values)}}
        refuses(tmp_path, npy(pickle.dumps(object_array(tree), 4)), "has an array of dtype")


# --- noise and headers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy(b"", "<f4", "(99999999999,)"), "not float32"),
        (npy(b"", "|O", "(4,)"), "not object of shape (4,)"),
        (npy(b"", "__import__('os').system('touch canary')"), "damaged"),
        (b"\x93NUMPY\x09\x00" + bytes(99), "damaged"),
        (b"\x80\x04cos\nsystem\n" + TOUCH + b"R.", "damaged"),
        (b"", "damaged"),
        (npy(b"", "|O", "(" * 30 + ")" * 30), "positions_3d"),
        (zlib.compress(b"x"), "damaged"),
    ],
)
def test_headers(tmp_path, canary, content, words):
    refuses(tmp_path, content, words)


def test_random_pickles_of_known_operations(tmp_path, canary):
    """Noise out of valid operations: an error of ours or nothing, never another."""
    rng = np.random.default_rng(0)
    codes = [operation.code.encode("latin1") for operation in pickletools.opcodes]
    names = [RECONSTRUCT, NDARRAY, b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b"cos\nsystem\n"]
    parts = [*codes, *names, text("latin1"), text("f4"), b"K\x00\x85", b"C\x01b", EMPTY, TOUCH]
    expected = (human36m_pickles.PickleError, ValueError, OverflowError, struct.error)
    for _ in range(3000):
        payload = b"".join(parts[i] for i in rng.integers(len(parts), size=12)) + b"."
        with contextlib.suppress(*expected):
            human36m_pickles.unpickle(io.BytesIO(payload))
    assert not canary.exists()

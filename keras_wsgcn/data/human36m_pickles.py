"""Pickles of NumPy arrays, followed step by step by a small machine instead of being unpickled.

It knows dicts, lists, tuples, text, numbers and plain float arrays; it imports nothing and calls
nothing that a pickle names.
"""

import math
import pickletools
from collections.abc import Callable
from typing import IO, Any

import numpy as np

MAX_ENCODED = 2**29  # bytes made out of text, in pickles of old protocols
MAX_PIECE = 2**26  # bytes of one argument; the longest take has under 5 MB
MAX_OPERATIONS = 1_000_000  # of one pickle; the largest real one has about 20,000
_MAX_DIMENSIONS = 4

# What may be named, and which part of the machine stands in for it.
_RECONSTRUCT = "_reconstruct"
ALLOWED = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", _RECONSTRUCT): "reconstruct",
    ("numpy._core.multiarray", _RECONSTRUCT): "reconstruct",
    ("_codecs", "encode"): "encode",
    **{(module, name): name for module in ("builtins", "__builtin__") for name in ("dict", "list")},
}
_DTYPES = ("f4", "f8", "O8")


class PickleError(Exception):
    """A pickle asks for something that is not on the list, or is damaged."""


def unpickle(stream: IO[bytes]) -> Any:
    """The one object within a pickled NumPy array of no dimensions.

    Args:
        stream: the pickle, in any protocol up to 4, to its end.

    Returns:
        Dicts, lists, tuples, strings, numbers and read-only float arrays.

    Raises:
        PickleError: if the pickle asks for anything else.
        ValueError: if it is damaged.
    """
    machine = _Machine()
    pieces: Any = _Pieces(stream)  # all of a file that is needed here
    for count, (operation, argument, _) in enumerate(pickletools.genops(pieces)):
        if count >= MAX_OPERATIONS:
            raise PickleError(f"has more than {MAX_OPERATIONS} operations")
        machine.step(operation.name, argument)
    if stream.read(1):
        raise PickleError("has bytes after its end")
    outer = machine.stack[-1] if machine.stack else None
    if isinstance(outer, PickledArray) and isinstance(outer.value, _Held):
        return outer.value.content
    raise PickleError("must be an array that holds one object")


class _Pieces:
    """A stream that gives nothing huge at once: unpacking it would take its size twice."""

    def __init__(self, stream: IO[bytes]):
        self.readline = stream.readline
        self._read = stream.read

    def read(self, size: int) -> bytes:
        if size > MAX_PIECE:
            raise ValueError(f"a piece of {size} bytes, more than {MAX_PIECE}")
        return self._read(size)


class _Held:
    """What an array of objects without dimensions holds."""

    def __init__(self, content: Any):
        self.content = content


class _Name:
    """A name that a pickle may mention, and the part that it plays."""

    def __init__(self, part: str):
        self.part = part


class _Dtype:
    """A dtype under construction: complete once its byte order is known."""

    def __init__(self, code: str):
        self.code = code
        self.dtype: np.dtype | None = None

    def build(self, state: Any) -> None:
        """Takes over `(version, byte order, None, None, None, ...)`."""
        if (
            not isinstance(state, tuple)
            or len(state) < 5
            or state[1] not in ("<", ">", "|", "=")
            or any(part is not None for part in state[2:5])
        ):
            raise PickleError("has a dtype with fields, or a damaged one")
        order = state[1].replace("|", "=")
        self.dtype = np.dtype(object) if self.code == "O8" else np.dtype(order + self.code)


class PickledArray:
    """An array under construction: `value` is there once its state is."""

    def __init__(self):
        self.value: np.ndarray | _Held | None = None

    def build(self, state: Any) -> None:
        """Takes over `(version, shape, dtype, column by column or not, data)`."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleError("has an array with a damaged state")
        _, shape, dtype, by_columns, data = state
        if not isinstance(dtype, _Dtype) or dtype.dtype is None:
            raise PickleError("has an array without a dtype")
        sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not sizes or len(shape) > _MAX_DIMENSIONS:
            raise PickleError("has an array with a damaged shape")
        if dtype.dtype.hasobject:
            if shape != () or not isinstance(data, list) or len(data) != 1:
                raise PickleError(f"has an array of objects of shape {shape}")
            self.value = _Held(data[0])
            return
        # In Python's integers, which do not overflow, and before anything is allocated.
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.dtype.itemsize:
            raise PickleError(f"has an array of shape {shape} whose data does not fit it")
        flat = np.frombuffer(data, dtype.dtype)
        self.value = flat.reshape(shape, order="F" if by_columns else "C")


_MAKERS: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_NO_EFFECT = {"PROTO", "FRAME", "STOP"}


class _Machine:
    """The stack and the memory of a pickle; everything it cannot do is refused."""

    def __init__(self):
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # what lay on the stack at each open mark
        self.memory: dict[int, Any] = {}
        self.encoded = 0  # bytes made out of text so far

    def step(self, name: str, argument: Any) -> None:
        """Does one operation."""
        try:
            self._do(name, argument)
        except IndexError:
            raise PickleError("takes more from the stack than there is") from None

    def _do(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _MAKERS:
            self.stack.append(_MAKERS[name]())
        elif name in _PUTS:
            self.memory[argument] = self.stack[-1]
        elif name in _GETS:
            if argument not in self.memory:
                raise PickleError("recalls what it never stored")
            self.stack.append(self.memory[argument])
        elif name in _TUPLES:
            items = [self.stack.pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(reversed(items)))
        elif name in _MARKED:
            _MARKED[name](self, self._since_mark())
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        elif name not in _NO_EFFECT:
            raise PickleError(f"asks for the operation {name}, which is never done")

    def _mark(self, _) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _memoize(self, _) -> None:
        self.memory[len(self.memory)] = self.stack[-1]

    def _pop(self, _) -> None:
        self.stack.pop()

    def _dict(self, items: list[Any]) -> None:
        self.stack.append({})
        self._set_items(items)

    def _append(self, _) -> None:
        self._extend([self.stack.pop()])

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise PickleError("appends to what is no list")
        self.stack[-1].extend(items)

    def _setitem(self, _) -> None:
        value = self.stack.pop()
        self._set_items([self.stack.pop(), value])

    def _set_items(self, items: list[Any]) -> None:
        # Only text: the hash of deeply nested tuples would overflow the C stack.
        fits = type(self.stack[-1]) is dict and all(type(key) is str for key in items[::2])
        if not fits or len(items) % 2:
            raise PickleError("has a dict whose keys are no strings")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _global(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self._push_name(module, name)

    def _stack_global(self, _) -> None:
        name = self.stack.pop()
        self._push_name(self.stack.pop(), name)

    def _push_name(self, module: Any, name: Any) -> None:
        known = isinstance(module, str) and isinstance(name, str) and (module, name) in ALLOWED
        if not known:
            allowed = ", ".join(sorted({".".join(pair) for pair in ALLOWED}))
            asked = ".".join(part[:80] if isinstance(part, str) else "?" for part in (module, name))
            raise PickleError(f"asks for {asked!r}, which is none of {allowed}")
        self.stack.append(_Name(ALLOWED[module, name]))

    def _reduce(self, _) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        part = function.part if isinstance(function, _Name) else type(function).__name__
        if part not in _CALLS or not isinstance(arguments, tuple):
            raise PickleError(f"calls {part}, which is never called")
        self.stack.append(_CALLS[part](self, arguments))

    def _build(self, _) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, PickledArray | _Dtype):
            raise PickleError(f"sets the state of a {type(target).__name__}")
        if isinstance(target, PickledArray) and isinstance(state, tuple) and state:
            data = state[-1]  # text in pickles of Python 2
            state = (*state[:-1], self._latin1(data) if isinstance(data, str) else data)
        target.build(state)

    def _latin1(self, text: str) -> bytes:
        # One text may be recalled many times, and each time makes new bytes.
        self.encoded += len(text)
        if self.encoded > MAX_ENCODED:
            raise PickleError(f"makes more than {MAX_ENCODED} bytes out of text")
        return text.encode("latin1")

    def _make_encoded(self, arguments: tuple) -> bytes:
        if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] != "latin1":
            raise PickleError("calls _codecs.encode for another purpose than latin1 text")
        return self._latin1(arguments[0])

    def _make_array(self, arguments: tuple) -> PickledArray:
        of = arguments[0] if len(arguments) == 3 else None
        is_empty = arguments[1:] in (((0,), b"b"), ((0,), "b"))
        if not isinstance(of, _Name) or of.part != "ndarray" or not is_empty:
            raise PickleError("reconstructs something else than an empty ndarray")
        return PickledArray()

    def _make_dtype(self, arguments: tuple) -> _Dtype:
        code = arguments[0] if arguments else None
        if type(code) is not str or code not in _DTYPES:
            found = code[:20] if type(code) is str else type(code).__name__
            raise PickleError(f"has an array of dtype {found!r}, which is none of {_DTYPES}")
        return _Dtype(code)

    def _make_empty(self, arguments: tuple, kind: type) -> Any:
        if arguments:
            raise PickleError(f"calls {kind.__name__} with arguments")
        return kind()


# Of what lies on the stack since the last mark.
_MARKED: dict[str, Callable[[_Machine, list[Any]], None]] = {
    "TUPLE": lambda machine, items: machine.stack.append(tuple(items)),
    "LIST": lambda machine, items: machine.stack.append(items),
    "DICT": _Machine._dict,
    "APPENDS": _Machine._extend,
    "SETITEMS": _Machine._set_items,
}
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark, "MEMOIZE": _Machine._memoize, "POP": _Machine._pop,
    "APPEND": _Machine._append, "SETITEM": _Machine._setitem,
    "GLOBAL": _Machine._global, "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce, "BUILD": _Machine._build,
}  # fmt: skip
_CALLS: dict[str, Callable[[_Machine, tuple], Any]] = {
    "reconstruct": _Machine._make_array,
    "dtype": _Machine._make_dtype,
    "encode": _Machine._make_encoded,
    "dict": lambda machine, arguments: machine._make_empty(arguments, dict),
    "list": lambda machine, arguments: machine._make_empty(arguments, list),
}

"""The exceptions of the library, and the checks that say that what a user gave is wrong."""

import math
import numbers
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

MAX_MESSAGE = 2000  # characters; of a longer message the middle is left out
MAX_INTEGER = 2**63 - 1


class InputError(ValueError):
    """An argument, a file or a setting is not what was asked for.

    The message names the argument in backticks, says what was expected, and ends in
    `Received: name=value`.
    """

    def __init__(self, message: str = ""):
        if len(message) > MAX_MESSAGE:
            said, received, value = message.rpartition("Received: ")
            # The end, what was received, stays: of a long value its own middle is left out.
            said = _shortened(said, MAX_MESSAGE * 3 // 4)
            message = said + received + _shortened(value, MAX_MESSAGE - len(said))
        super().__init__(message)


class Failure(RuntimeError):
    """What was asked for was right, but could not be done; the message says why."""


class Refused(Exception):
    """What is wrong with a file or a trial, as its checks say it to each other."""


def shown(value: Any, most: int = 500) -> str:
    """`repr(value)` for a message: at most so many characters, and never an error of its own.

    A list can be nested too deeply for Python to write, an integer have too many digits.
    """
    try:
        return _shortened(repr(value), most)
    except Exception:  # what a stranger's `__repr__` may raise
        return f"<{type(value).__name__} that cannot be shown>"


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most * 3 // 4]} ... {text[-most // 5 :]}"


def first_line(error: BaseException, most: int | None = None) -> str:
    """The first line of an error's message, or its type; at most so many characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def check_folder(name: str, folder: str | os.PathLike) -> Path:
    """The path of a folder, if there is one.

    Raises:
        InputError: otherwise.
    """
    if os.path.isdir(folder):
        return Path(folder)
    raise InputError(
        f"`{name}` must be a folder; there is no such folder. Received: {name}={str(folder)!r}"
    )


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number, Python's or NumPy's; true and false are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_integer(name: str, value: Any, *, least: int) -> int:
    """`value` as an `int`, if it is a whole number of at least `least`, and of 64 bits.

    Raises:
        InputError: otherwise.
    """
    if is_integer(value) and least <= int(value) <= MAX_INTEGER:
        return int(value)
    raise InputError(
        f"`{name}` must be an integer of at least {least}. Received: {name}={shown(value)}"
    )


def check_number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """`value` as a `float`, if it is finite, at least `least`, above `above` and below `below`.

    Raises:
        InputError: otherwise.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if number >= least and above < number < below:
            return number
    bounds = [
        text
        for text, is_bounded in (
            (f"of at least {least}", least > -math.inf),
            (f"above {above}", above > -math.inf),
            (f"below {below}", below < math.inf),
            ("finite", not below < math.inf),
        )
        if is_bounded
    ]
    raise InputError(
        f"`{name}` must be a number {', '.join(bounds)}. Received: {name}={shown(value)}"
    )


def check_flag(name: str, value: Any) -> bool:
    """`value`, if it is true or false.

    Raises:
        InputError: otherwise.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InputError(f"`{name}` must be true or false. Received: {name}={shown(value)}")


def check_integers(name: str, values: Any, *, least: int) -> tuple[int, ...]:
    """`values` as a tuple of `int`, if they are a sequence of whole numbers of at least `least`.

    Raises:
        InputError: otherwise.
    """
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | dict):
        return tuple(check_integer(name, value, least=least) for value in values)
    raise InputError(
        f"`{name}` must be a sequence of integers of at least {least}. "
        f"Received: {name}={shown(values)}"
    )


def check_numbers(name: str, value: Any) -> np.ndarray:
    """`value` as an array of float64, if it is numbers in equal rows.

    Raises:
        InputError: otherwise.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind in "fiub":
            return array.astype(np.float64, copy=False)
    except (ValueError, TypeError, OverflowError, RecursionError):  # ragged, or beyond numbers
        pass
    raise InputError(f"`{name}` must hold numbers, in equal rows. Received: {name}={shown(value)}")


def check_string(name: str, value: Any, *, empty: bool = True) -> str:
    """`value`, if it is a string, and not empty where it may not be.

    Raises:
        InputError: otherwise.
    """
    if isinstance(value, str) and (value or empty):
        return value
    kind = "string" if empty else "non-empty string"
    raise InputError(f"`{name}` must be a {kind}. Received: {name}={shown(value)}")


def check_instance(name: str, value: Any, kind: type, example: str) -> None:
    """Refuses what is of another kind; the message gives an example.

    Raises:
        InputError: if it is.
    """
    if not isinstance(value, kind):
        raise InputError(
            f"`{name}` must be a {kind.__name__}, {example}. "
            f"Received: {name} of type {type(value).__name__}"
        )


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """`value`, if it is one of `choices`.

    Raises:
        InputError: otherwise.
    """
    choices = list(choices)
    if isinstance(value, str) and value in choices:
        return value
    raise InputError(f"`{name}` must be one of {choices}. Received: {name}={shown(value)}")

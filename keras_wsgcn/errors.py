"""The one exception of the library, what a user gave is wrong, and the checks that raise it."""

import math
import numbers
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """An argument, a file or a setting is not what was asked for.

    The message names the argument in backticks, says what was expected, and ends in
    `Received: name=value`.
    """


class Refused(Exception):
    """What is wrong with a file, as its checks say it to each other: part of an `InputError`."""


def check_integer(name: str, value: Any, *, least: int) -> int:
    """`value` as an `int`, if it is a whole number of at least `least`.

    Raises:
        InputError: otherwise.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise InputError(f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}")


def check_number(
    name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, below: float
) -> float:
    """`value` as a `float`, if it is at least `least`, above `above` and below `below`.

    Raises:
        InputError: otherwise.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if number >= least and above < number < below:
            return number
    bounds = [f"of at least {least}"] * (least > -math.inf) + [f"above {above}"] * (
        above > -math.inf
    )
    bounds.append(f"below {below}" if below < math.inf else "finite")
    raise InputError(f"`{name}` must be a number {', '.join(bounds)}. Received: {name}={value!r}")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """`value`, if it is one of `choices`.

    Raises:
        InputError: otherwise.
    """
    choices = list(choices)
    if value in choices:
        return value
    raise InputError(f"`{name}` must be one of {choices}. Received: {name}={value!r}")

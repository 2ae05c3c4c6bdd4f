"""What the commands share: options from a dataclass, and errors as one clear line."""

import _thread
import argparse
import dataclasses
import importlib.util
import inspect
import os
import re
import sys
import threading
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None):
    """Ctrl-C within the seconds in which the libraries are imported is no error to be shown."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


def _show_ignored(ignored: Any) -> None:
    """Ctrl-C within a callback of a library would be dropped there: it comes again, outside."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        again = threading.Timer(0.05, _thread.interrupt_main)
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(ignored)


# Before Keras is imported, by this module or by a command.
sys.excepthook, sys.unraisablehook = _show_error, _show_ignored


def add_options(
    parser: argparse._ActionsContainer,
    record: type,
    leave_out: Iterable[str] = (),
    *,
    choices: Mapping[str, Iterable[str]] = {},
    recipes: Mapping[str, Any] = {},
) -> None:
    """Adds one option for each field of a dataclass: type and help come from the record itself.

    An option that is not given is left out of the result, so that a recipe's value stays.

    Args:
        parser: where to add them.
        record: a dataclass whose docstring has an `Args:` section.
        leave_out: fields that get no option.
        choices: of the fields that have some.
        recipes: named records whose values the help shows, the one that is the default first.
    """
    described = _described_arguments(record)
    hints = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        if field.name in leave_out:
            continue
        kinds = typing.get_args(hints[field.name]) or (hints[field.name],)  # of a union, or the one
        kind = next(kind for kind in kinds if kind in (str, int, float, bool))
        reading = _reading(kind, optional=type(None) in kinds)
        if field.name in choices:  # the record itself refuses others
            reading["metavar"] = f"{{{','.join(choices[field.name])}}}"
        text = described[field.name] + _values(field.name, recipes)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=field.name,
            default=argparse.SUPPRESS,
            help=text.replace("%", "%%"),
            **reading,
        )


def given_fields(options: argparse.Namespace, record: type) -> dict[str, Any]:
    """What was given of the options that `add_options` added for a dataclass."""
    names = {field.name for field in dataclasses.fields(record)}
    return {name: value for name, value in vars(options).items() if name in names}


BACKENDS = ("tensorflow", "jax", "torch")


def add_backends(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--backends`."""
    installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        default=installed,
        help="default: those installed, %(default)s",
    )


def add_subjects(parser: argparse.ArgumentParser) -> None:
    """Adds the options that split an own archive: `--validation` and `--test`."""
    parser.add_argument(
        "--validation", type=int, nargs="+", help="subjects of an archive to validate on"
    )
    parser.add_argument("--test", type=int, nargs="+", help="subjects of an archive to test on")


def _reading(kind: type, optional: bool) -> dict[str, Any]:
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}

    def read(text: str) -> Any:
        return None if optional and text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse names it in its message
    return {"type": read, "metavar": kind.__name__.upper()}


def _values(name: str, recipes: Mapping[str, Any]) -> str:
    """A field's default, and where it is another in the other recipes, as a help text ends."""
    values = {recipe: getattr(record, name) for recipe, record in recipes.items()}
    default = next(iter(values.values()), None)
    others = [f"{recipe} {value}" for recipe, value in values.items() if value != default]
    return f" (default: {'; '.join([str(default), *others])})" if values else ""


def _described_arguments(record: type) -> dict[str, str]:
    section = (inspect.getdoc(record) or "").split("Args:\n")[1].split("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
    # What Python's documentation says further on, a shell cannot show.
    plain = {name: re.sub(r";\s+see `\w+`", "", text).rstrip(".") for name, text in found}
    return {name: re.sub(r"\s+", " ", text).replace("`", "") for name, text in plain.items()}


def run(command: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None = None) -> int:
    """Runs a command's `main` and returns its exit status.

    What a user gave wrong ends in one line on stderr and status 2, so does a disk that is full or
    may not be written; what could not be done, such as a training that diverges, in status 1;
    Ctrl-C in status 130. Else the status is what `main` returns, 0 if that is nothing.
    """
    from keras_wsgcn.errors import Failure, InputError

    try:
        return command(argv) or 0
    except (InputError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def leave(status: int) -> NoReturn:
    """Ends the process of a command that trains.

    After Ctrl-C it does so at once: a thread of Keras that was cut off while it started may never
    end, and Python would wait for it.
    """
    if status == 130:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)

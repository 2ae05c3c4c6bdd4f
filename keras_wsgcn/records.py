"""What schemes and skeletons share as records: plain configs, and a look-up by name."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Self, TypeVar

from keras_wsgcn.errors import InputError, shown


class Record:
    """A named frozen dataclass that reads and writes itself as plain lists and strings."""

    name: str
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def get_config(self) -> dict[str, Any]:
        """The record as plain lists and strings; `from_config` reads it back."""
        return {key: _as_lists(value) for key, value in asdict(self).items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Rebuilds a record from `get_config()`.

        Raises:
            InputError: if `config` is not such a record.
        """
        try:
            return cls(**config)
        except TypeError as error:
            raise InputError(
                f"`config` must hold the fields of a {cls.__name__} ({error}). "
                f"Received: config={shown(config)}"
            ) from None


R = TypeVar("R", bound=Record)


def look_up(argument: str, identifier: Any, table: Mapping[str, R], kind: type[R]) -> R:
    """The record behind a name in `table`, a record, or the dict of its `get_config()`.

    Raises:
        InputError: if there is none, or an own one bears the name of another in `table`; the
            message names `argument`.
    """
    if isinstance(identifier, str) and identifier in table:
        return table[identifier]
    record = kind.from_config(identifier) if isinstance(identifier, Mapping) else identifier
    if not isinstance(record, kind):
        raise InputError(
            f"`{argument}` must be one of {list(table)}, a {kind.__name__} or its config. "
            f"Received: {argument}={shown(identifier)}"
        )
    if table.get(record.name, record) != record:
        raise InputError(
            f"`{argument}` must have a name of its own where it differs from the library's "
            f"{record.name!r}. Received: {argument}={shown(identifier)}"
        )
    return record


def serialize(record: R, table: Mapping[str, R]) -> str | dict[str, Any]:
    """What a config stores: the name of a record in `table`, the whole of any other."""
    return record.name if table.get(record.name) == record else record.get_config()


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value

"""What becomes of a storage that is lost, full, damaged or of something else: one plain error."""

import contextlib
import os
import threading
from collections.abc import Iterator

from keras_wsgcn.errors import InputError, first_line


@contextlib.contextmanager
def reading(location: str | os.PathLike) -> Iterator[None]:
    """Within it, whatever a damaged or a foreign storage does to Optuna is an `InputError`.

    Raises:
        InputError: for any exception, with the place of the storage.
    """
    place = without_password(str(location))
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    except Exception as error:  # rows that are missing, and values of any other kind
        raise InputError(
            "`storage` must hold trials as the library's studies store them "
            f"({type(error).__name__}: {first_line(error)}). Received: storage={place!r}"
        ) from None


@contextlib.contextmanager
def writing(location: str | os.PathLike) -> Iterator[None]:
    """Within it, a storage that cannot be written any more is an `OSError` that says so.

    A full disk and a lost server reach Optuna as errors of SQL, which it meets with others of its
    own. The trial in work counts as that of a process that died. Optuna's thread that says that a
    trial is alive meets the same error, and says nothing of it.

    Raises:
        OSError: with the place of the storage and the database's own words.
    """
    before = threading.excepthook

    def show(of_thread: threading.ExceptHookArgs) -> None:
        if _database_error(of_thread.exc_value) is None:
            before(of_thread)

    threading.excepthook = show
    try:
        yield
    except Exception as error:
        if (cause := _database_error(error)) is None:
            raise
        raise OSError(f"{without_password(str(location))}: {first_line(cause)}") from error
    finally:
        threading.excepthook = before


def _database_error(error: BaseException | None) -> BaseException | None:
    """The database's own error among those that led to this one."""
    import sqlalchemy

    while error is not None and not isinstance(error, sqlalchemy.exc.OperationalError):
        error = error.__cause__ or error.__context__
    return error


def without_password(url: str) -> str:
    """A URL as it may be printed."""
    import sqlalchemy

    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url

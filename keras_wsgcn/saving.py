"""Saving and loading: a `.keras` file that also says what it holds, written whole or not at all."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import keras

from keras_wsgcn import layers  # noqa: F401  registers the layers, which loading needs
from keras_wsgcn.errors import InputError
from keras_wsgcn.files import atomic_path
from keras_wsgcn.models import describe

METADATA_MEMBER = "keras_wsgcn.json"
_METADATA_BYTES = 1 << 20

# How inputs are normalised and what comes out: the same for every model of the library.
NORMALISATION = {
    "pose2d": "pixels / width * 2 - (1, height / width)",
    "pose3d": "metres, camera frame, relative to the root",
}


def save_model(model: keras.Model, path: str | os.PathLike, **facts: Any) -> None:
    """Saves `model` as a `.keras` file with the library's metadata in it.

    The file is written beside `path` and renamed, so `path` is never half written. Keras's own
    `keras.saving.load_model` opens it too, once `keras_wsgcn` is imported.

    Args:
        model: a lifting model.
        path: where to; must end in `.keras`.
        **facts: what else the metadata shall say, such as `training={...}`; JSON values.

    Raises:
        InputError: if `path` does not end in `.keras`, or `model` is no lifting model.
    """
    path = _checked_path(path)
    metadata = {
        **describe(model),
        "normalisation": NORMALISATION,
        **getattr(model, "metadata", {}),
        **facts,
    }
    text = json.dumps(metadata, indent=2)
    with atomic_path(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(METADATA_MEMBER, text)
    model.metadata = json.loads(text)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata of a `.keras` file that `save_model` wrote, without loading the model.

    Raises:
        InputError: if `path` is no such file.
    """
    path = _checked_path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(METADATA_MEMBER).file_size > _METADATA_BYTES:
                raise InputError(
                    f"`path` must hold at most {_METADATA_BYTES} bytes of metadata in "
                    f"{METADATA_MEMBER!r}. Received: path={str(path)!r}"
                )
            metadata = json.loads(archive.read(METADATA_MEMBER))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"`path` must name a `.keras` file written by `keras_wsgcn.save_model` ({error}). "
            f"Received: path={str(path)!r}"
        ) from None
    if not isinstance(metadata, dict):
        raise InputError(
            f"`path` must hold a JSON object in {METADATA_MEMBER!r}. Received: path={str(path)!r}"
        )
    return metadata


def load_model(path: str | os.PathLike) -> keras.Model:
    """Loads a model that `save_model` wrote, under any backend.

    The model comes without its compilation, which names the backend that saved it. What the file
    says of itself is in `model.metadata`.

    Args:
        path: a `.keras` file.

    Returns:
        The model, ready to predict.

    Raises:
        InputError: if `path` is no file that `save_model` wrote.
    """
    metadata = read_metadata(path)
    model = keras.saving.load_model(path, compile=False)
    model.metadata = metadata
    return model


def _checked_path(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.suffix != ".keras":
        raise InputError(f"`path` must end in `.keras`. Received: path={str(path)!r}")
    return path

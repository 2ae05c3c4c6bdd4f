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
        _finish(temporary, text)
    model.metadata = json.loads(text)


def _finish(path: Path, metadata: str) -> None:
    """Adds the metadata, and frees the configuration of the backend that saved it."""
    rewritten = path.with_suffix(".rewritten.keras")
    try:
        with zipfile.ZipFile(path) as saved, zipfile.ZipFile(rewritten, "w") as archive:
            for member in saved.infolist():
                content = saved.read(member)
                if member.filename == "config.json":
                    content = json.dumps(_portable(json.loads(content))).encode()
                archive.writestr(member, content)
            archive.writestr(METADATA_MEMBER, metadata)
        os.replace(rewritten, path)
    finally:
        rewritten.unlink(missing_ok=True)


def _portable(config: Any) -> Any:
    """The configuration of a model without what only the saving backend understands.

    Keras 3.15 names torch's own optimiser classes, and stores whether it compiled rather than
    whether it was asked to: a file from JAX would spend minutes in `torch.compile`.
    """
    if isinstance(config, list):
        return [_portable(item) for item in config]
    if not isinstance(config, dict):
        return config
    config = {key: _portable(value) for key, value in config.items()}
    if str(config.get("module", "")).startswith("keras.src.backend.torch.optimizers"):
        config.update(module="keras.optimizers", registered_name=None)
    if isinstance(config.get("jit_compile"), bool):
        config["jit_compile"] = "auto"
    return config


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

"""Saving and loading: a `.keras` file that also says what it holds, written whole or not at all."""

import contextlib
import inspect
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras

from keras_wsgcn import (
    layers,  # noqa: F401  registers the layers, which loading needs
    metrics,  # noqa: F401  and the metrics
    screening,
)
from keras_wsgcn.errors import InputError, Refused, first_line, shown
from keras_wsgcn.files import atomic_path, plain, replace_file
from keras_wsgcn.hdf5 import check_arrays
from keras_wsgcn.models import describe

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
        **facts: what else the metadata shall say, such as `training={...}`; JSON values. The
            metadata of a loaded model is kept: give `training` anew if you have trained it further.

    Raises:
        InputError: if `path` does not end in `.keras`, or `model` is no lifting model, or has
            layers, weights or facts that `load_model` does not open.
    """
    path = _checked_path(path)
    own = {**describe(model), "dtype_policy": model.dtype_policy.name}
    if taken := sorted({"normalisation", *own} & set(facts)):
        raise InputError(
            f"`facts` must not be called {taken}, which the model says itself. "
            f"Received: {shown(facts)}"
        )
    known = getattr(model, "metadata", {})
    metadata = {"normalisation": NORMALISATION, **known, **facts, **own}
    try:
        text = json.dumps(metadata, indent=2, default=plain)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`facts` must be what JSON can hold ({error}). Received: {shown(facts)}"
        ) from None
    with atomic_path(path) as temporary:
        model.save(temporary)
        _finish(temporary, text, _losses_of_keras(model))
    model.metadata = json.loads(text)


def _losses_of_keras(model: keras.Model) -> set[str]:
    """Names of the functions of `keras.losses` that a model was compiled with, if any.

    Keras records a function as its name alone, whoever wrote it.
    """
    functions = filter(inspect.isfunction, keras.tree.flatten(model.loss))
    return {f.__name__ for f in functions if getattr(keras.losses, f.__name__, None) is f}


def _finish(path: Path, metadata: str, losses: set[str]) -> None:
    """Adds the metadata, and frees the configuration of the backend that saved it."""
    rewritten = path.with_suffix(".rewritten.keras")
    try:
        with zipfile.ZipFile(path) as saved, zipfile.ZipFile(rewritten, "w") as archive:
            for member in saved.infolist():
                content = saved.read(member)
                if member.filename == "config.json":
                    config = _portable(json.loads(content), losses)
                    content = json.dumps(config).encode()
                    without = {k: v for k, v in config.items() if k != "compile_config"}
                    _check_readable(screening.check_config, without)
                elif member.filename == screening.WEIGHTS_MEMBER:
                    _check_readable(check_arrays, content, member.filename)
                _check_size(member.filename, content)
                archive.writestr(member, content)
            _check_size(screening.METADATA_MEMBER, metadata.encode())
            archive.writestr(screening.METADATA_MEMBER, metadata)
        replace_file(rewritten, path)
    finally:
        rewritten.unlink(missing_ok=True)


def _check_readable(check: Callable[..., Any], *content: Any) -> None:
    """Refuses to write what `load_model` would refuse to open."""
    try:
        check(*content)
    except Refused as problem:
        raise InputError(
            f"`model` must be one that `load_model` opens. Received: a model of which {problem}"
        ) from None


def _check_size(name: str, content: bytes) -> None:
    if len(content) > screening.MEMBERS[name]:
        raise InputError(
            "`model` must be one that `load_model` opens, with at most "
            f"{screening.MEMBERS[name]} bytes of {name!r}. Received: {len(content)}"
        )


def _portable(config: Any, losses: set[str]) -> Any:
    """The configuration of a model without what only the saving backend understands.

    Keras 3.15 names torch's own optimiser classes, and stores whether it compiled rather than
    whether it was asked to: a file from JAX would spend minutes in `torch.compile`. Losses of
    Keras's that are functions are told by their names, as users may.
    """
    if isinstance(config, list):
        return [_portable(item, losses) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "function" and config.get("config") in losses:
        return config["config"]
    config = {key: _portable(value, losses) for key, value in config.items()}
    if str(config.get("module", "")).startswith("keras.src.backend.torch.optimizers"):
        config.update(module="keras.optimizers", registered_name=None)
    if isinstance(config.get("jit_compile"), bool):
        config["jit_compile"] = "auto"
    if "synchronized" in config:  # between devices, which only TensorFlow has to be told
        config["synchronized"] = False
    return config


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata of a `.keras` file that `save_model` wrote, without loading the model.

    Raises:
        InputError: if `path` is no such file.
    """
    return screening.read_metadata(_checked_path(path))


def load_model(path: str | os.PathLike, *, compile: bool = True) -> keras.Model:
    """Loads a model that `save_model` wrote, under any backend.

    The file may come from strangers. Before Keras sees any of it, its members, sizes, links and
    types are checked, and its configuration may name only the library's layers, a short list of
    Keras's, and plain names (`screening.py`); no code in it is ever run. What the file says of
    itself is in `model.metadata`.

    Args:
        path: a `.keras` file.
        compile: whether a model that was compiled comes compiled, with the state of its optimiser:
            `fit` goes on where it was. The optimiser, loss and metrics must be Keras's or the
            library's.

    Returns:
        The model, from `(batch, joints, 2)` normalised screen coordinates to `(batch, joints, 3)`
        metres; ready to predict.

    Raises:
        InputError: if `path` is no file that `save_model` wrote, or holds anything else.
    """
    path = _checked_path(path)
    file = screening.screen(path)
    compilation = file.compilation if compile else None
    try:
        if compilation is not None:
            screening.check_compilation(compilation)
    except Refused as problem:
        raise screening.refusal(path, f"{problem}; load it with compile=False") from None
    # Layers say theirs, the model as a whole does not: of mixed_float16 it scales its loss.
    policy = str(file.metadata.get("dtype_policy"))
    try:
        with dtype_policy(policy if policy in screening.DTYPES else "float32"):
            model = keras.saving.deserialize_keras_object(file.config, safe_mode=True)
            if compilation is not None:
                model.compile_from_config(compilation)
    except Exception as error:  # the tables are met, but the values make no model
        raise screening.refusal(path, f"it describes no model ({first_line(error, 300)})") from None
    _load_state(model, file, path, optimizer=compilation is not None)
    model.metadata = file.metadata
    return model


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Within it models are built under another policy than Keras's global one."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build_optimizer(model: keras.Model) -> None:
    """Makes the variables of a model's optimiser: once, for one that scales losses adds its own."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def restore_model(model: keras.Model, path: str | os.PathLike) -> dict[str, Any]:
    """Gives a compiled model the weights, the optimiser's state and its step count of a file.

    Args:
        model: a compiled model like the saved one.
        path: a `.keras` file.

    Returns:
        The metadata of the file.

    Raises:
        InputError: if `path` is no file that `save_model` wrote, or of another model.
    """
    path = _checked_path(path)
    file = screening.screen(path)
    build_optimizer(model)
    if file.optimizer_variables < len(model.optimizer.variables):
        raise screening.refusal(path, "it lacks the state of an optimiser")
    _load_state(model, file, path, optimizer=True)
    return file.metadata


def _load_state(
    model: keras.Model, file: screening.ScreenedFile, path: Path, *, optimizer: bool
) -> None:
    """Weights and, for a compiled model, the optimiser's state, or none of it if none was saved."""
    if optimizer:
        build_optimizer(model)
        # Files of before have the variables by which a loss is scaled two or three times.
        if hasattr(model.optimizer, "inner_optimizer"):
            for _ in range(2):
                if len(model.optimizer.variables) < file.optimizer_variables:
                    model.optimizer.build(model.trainable_variables)
        wanted, found = len(model.optimizer.variables), file.optimizer_variables
        # An optimiser that has not begun has its step count and rate. Keras would only warn of
        # any other number, and begin anew.
        if found > 2 and found != wanted:
            raise screening.refusal(
                path, f"it has {found} variables of an optimiser that has {wanted}"
            )
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / screening.WEIGHTS_MEMBER
        weights.write_bytes(file.weights)
        try:
            model.load_weights(weights)
        except Exception as error:  # shapes, types or layers of another model
            raise screening.refusal(
                path, f"its weights do not fit ({first_line(error, 300)})"
            ) from None


def _checked_path(path: str | os.PathLike) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"`path` must be a path. Received: path of type {type(path).__name__}")
    path = Path(path)
    if path.suffix != ".keras":
        raise InputError(f"`path` must end in `.keras`. Received: path={str(path)!r}")
    return path

"""Models that come with the library: weights, what they are, and a checksum that is checked."""

import hashlib
import json
from pathlib import Path

import keras

from keras_wsgcn.errors import InputError, check_choice
from keras_wsgcn.models import build_model
from keras_wsgcn.saving import dtype_policy

_FOLDER = Path(__file__).parent
DEFAULT_MODEL = "cmu_small"


def names() -> list[str]:
    """Names of the models that come with the library."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_pretrained(name: str = DEFAULT_MODEL) -> keras.Model:
    """Loads a model that comes with the library; works offline and on every backend.

    Its card, `pretrained/NAME.md`, says what it was trained on and how large its errors are.

    Args:
        name: which model.

    Returns:
        The model, from `(batch, 16, 2)` normalised screen coordinates to `(batch, 16, 3)` metres.
        What is known of it is in `model.metadata`.

    Raises:
        InputError: if there is no such model, or its weights are not those that were shipped.
    """
    check_choice("name", name, names())
    record = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    weights = _FOLDER / f"{name}.weights.h5"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != record["sha256"]:
        raise InputError(
            f"`name` must have weights with the SHA-256 {record['sha256']}: install the library "
            f"again. Received: name={name!r} with {digest}"
        )
    with dtype_policy("float32"):  # whose errors the card states
        model = build_model(**record["model"], name=name)
    model.load_weights(weights)
    model.metadata = {**model.metadata, **record["facts"]}
    return model

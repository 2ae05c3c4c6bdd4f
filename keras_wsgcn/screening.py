"""What a `.keras` file may hold, checked before Keras sees any of it.

Model files come from strangers. A file is read once, into memory; nothing is unpacked, unpickled
or looked up by a name that is not in the tables below.
"""

import json
import os
import re
import stat
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_wsgcn.declared_size import declared_params
from keras_wsgcn.errors import InputError, Refused
from keras_wsgcn.hdf5 import check_arrays

METADATA_MEMBER = "keras_wsgcn.json"
WEIGHTS_MEMBER = "model.weights.h5"
# Every member that a file has, and the most bytes it can have.
MEMBERS = {
    "metadata.json": 1 << 16,
    "config.json": 8 << 20,
    METADATA_MEMBER: 1 << 20,
    WEIGHTS_MEMBER: 1 << 30,
}
MAX_LAYERS, MAX_DEPTH = 2000, 40
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # not to wait for a pipe that nobody writes to

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
DTYPES = ("float32", "float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16")
_ACTIVATIONS = (
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "tanh",
    "sigmoid", "hard_sigmoid", "softplus", "softsign", "softmax", "exponential", "mish",
)  # fmt: skip
_OURS = ("GraphConv", "BatchNormalization", "GraphNonLocal", "Turn")

Record = tuple[str | None, str, str | None]


def _records(module: str, names: str) -> set[Record]:
    return {(module, name, None) for name in names.split()}


# (module, class, registered name), as Keras writes them.
_MODELS: set[Record] = {
    ("keras.src.models.functional", "Functional", "Functional"),
    ("keras", "Sequential", None),
}
_LAYERS: set[Record] = {
    ("keras_wsgcn.layers", name, f"keras_wsgcn>{name}") for name in _OURS
} | _records(
    "keras.layers",
    "InputLayer Dense Activation ReLU LeakyReLU ELU Dropout SpatialDropout1D GaussianNoise "
    "BatchNormalization LayerNormalization Add Subtract Multiply Average Maximum Concatenate",
)
_PARTS: set[Record] = (
    {(None, "__keras_tensor__", None)}
    | _records("keras", "DTypePolicy")
    | _records(
        "keras.initializers",
        "Zeros Ones Constant RandomNormal RandomUniform TruncatedNormal VarianceScaling "
        "GlorotUniform GlorotNormal HeUniform HeNormal LecunUniform LecunNormal Orthogonal",
    )
    | _records("keras.regularizers", "L1 L2 L1L2")
    | _records("keras.constraints", "MaxNorm MinMaxNorm NonNeg UnitNorm")
)
_COMPILATION: set[Record] = (
    {("keras_wsgcn.metrics", name, f"keras_wsgcn>{name}") for name in ("MPJPE", "PMPJPE")}
    | _records(
        "keras.optimizers",
        "Adam AdamW SGD RMSprop Adagrad Adadelta Adamax Nadam Ftrl Lion Lamb Adafactor "
        "LossScaleOptimizer",
    )
    | _records(
        "keras.optimizers.schedules",
        "CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay PiecewiseConstantDecay "
        "PolynomialDecay",
    )
    | _records(
        "keras.losses",
        "MeanSquaredError MeanAbsoluteError Huber LogCosh MeanAbsolutePercentageError "
        "MeanSquaredLogarithmicError",
    )
    | _records("keras.metrics", "Mean MeanSquaredError MeanAbsoluteError RootMeanSquaredError")
    | _records("keras", "DTypePolicy")
)


@dataclass(frozen=True)
class ScreenedFile:
    """The contents of a `.keras` file that may be given to Keras.

    Args:
        metadata: what the file says of itself.
        config: the model's configuration, without its compilation.
        compilation: the configuration of its compilation, or None; not checked yet.
        weights: the HDF5 file with weights and optimiser state.
        optimizer_variables: how many of them are the optimiser's.
    """

    metadata: dict[str, Any]
    config: dict[str, Any]
    compilation: dict[str, Any] | None
    weights: bytes
    optimizer_variables: int


def screen(path: Path) -> ScreenedFile:
    """Reads and checks a `.keras` file.

    Raises:
        InputError: if it is no such file, or holds anything that a lifting model does not need.
    """
    try:
        members = _read_members(path, MEMBERS)
        metadata, config = (_parsed(members, name) for name in (METADATA_MEMBER, "config.json"))
        config = _without_builds(config)
        compilation = config.pop("compile_config", None) or None
        weights = members[WEIGHTS_MEMBER]
        check_config(config, len(weights))
        count = check_arrays(weights, WEIGHTS_MEMBER)
    except Refused as problem:
        raise refusal(path, problem) from None
    return ScreenedFile(metadata, config, compilation, weights, count)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a `.keras` file alone.

    Raises:
        InputError: if it is no such file.
    """
    try:
        return _parsed(_read_members(path, [METADATA_MEMBER]), METADATA_MEMBER)
    except Refused as problem:
        raise refusal(path, problem) from None


def refusal(path: Path, problem: object) -> InputError:
    """The error that says what is wrong with a file."""
    return InputError(
        f"`path` must name a `.keras` file as `keras_wsgcn.save_model` writes it: {problem}. "
        f"Received: path={str(path)!r}"
    )


# --- the archive ---------------------------------------------------------------------------------


def _read_members(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    try:
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | _AT_ONCE)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refused("it is no regular file")
            with zipfile.ZipFile(file) as archive:
                _check_members(archive.infolist(), wanted)
                return {name: archive.read(name) for name in wanted}
    except Refused:
        raise
    except Exception as error:  # whatever zipfile makes of bytes that are no archive
        raise Refused(f"it cannot be read ({type(error).__name__}: {error})") from None


def _check_members(found: list[zipfile.ZipInfo], wanted: Collection[str]) -> None:
    names = sorted(member.filename for member in found)
    missing = sorted(set(wanted) - set(names))
    if missing or len(set(names)) < len(names) or not set(names) <= set(MEMBERS):
        what = f"it lacks {missing}" if missing else f"its members are {names[:10]}"
        raise Refused(f"{what}; there must be {sorted(MEMBERS)}, each once")
    for member in found:
        # Stored as they are, members take no more memory than the file has bytes.
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise Refused(f"{member.filename!r} is compressed or encrypted")
        if member.file_size > MEMBERS[member.filename]:
            raise Refused(
                f"{member.filename!r} has {member.file_size} bytes, more than "
                f"{MEMBERS[member.filename]}"
            )


def _parsed(members: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        content = json.loads(members[name].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refused(f"{name!r} is no JSON ({error})") from None
    if not isinstance(content, dict):
        raise Refused(f"{name!r} must hold a JSON object")
    return content


# --- the configuration ---------------------------------------------------------------------------


def _without_builds(value: Any, depth: int = 0) -> Any:
    """The configuration without `build_config`, whose shapes Keras would allocate at once."""
    if depth > MAX_DEPTH:
        raise Refused("'config.json' is nested too deeply")
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key != "build_config"}
        return {key: _without_builds(item, depth + 1) for key, item in kept.items()}
    if isinstance(value, list):
        return [_without_builds(item, depth + 1) for item in value]
    return value


def check_config(config: Mapping[str, Any], weights_bytes: int | None = None) -> None:
    """Checks the configuration of a model.

    Args:
        config: as `keras.saving.serialize_keras_object` gives it, without `compile_config`.
        weights_bytes: the size of the stored weights, which the model must not exceed.

    Raises:
        Refused: if it names anything that is not in the tables, or asks for too much memory.
    """
    if not _is_among(config, _MODELS):
        raise Refused(f"the model is a {_shown(config)}; it must be functional or sequential")
    inside = config.get("config")
    layers = inside.get("layers") if isinstance(inside, dict) else None
    if not isinstance(layers, list) or not 0 < len(layers) <= MAX_LAYERS:
        raise Refused(f"the model must have between 1 and {MAX_LAYERS} layers")
    assert isinstance(inside, dict)
    _check_name(inside.get("name"))
    names = [_check_layer(layer) for layer in layers]
    if len(set(names)) != len(names):
        raise Refused("two layers have the same name")
    _check_values({key: value for key, value in inside.items() if key != "layers"}, _PARTS)
    params = declared_params(layers, functional=config["class_name"] == "Functional")
    if weights_bytes is not None and 2 * params > weights_bytes:  # two bytes in half precision
        raise Refused(
            f"the layers ask for {params} parameters, but {WEIGHTS_MEMBER!r} has "
            f"{weights_bytes} bytes"
        )


def check_compilation(compilation: Any) -> None:
    """Checks the configuration of a model's compilation.

    Raises:
        Refused: if it names anything but Keras's and the library's own optimisers, losses, metrics.
    """
    if not isinstance(compilation, dict):
        raise Refused("the compilation must be a JSON object")
    _check_values(compilation, _COMPILATION)


def _check_layer(layer: Any) -> str:
    if not isinstance(layer, dict) or not _is_among(layer, _LAYERS):
        allowed = sorted(name for _, name, _ in _LAYERS)
        raise Refused(f"a layer is {_shown(layer)}; it must be one of {allowed}")
    config = layer.get("config")
    if not isinstance(config, dict):
        raise Refused(f"a layer {_shown(layer)} has no configuration")
    name = _check_name(config.get("name"))
    if layer.get("name", name) != name:
        raise Refused(f"layer {name!r} is also called {layer.get('name')!r}")
    rest = {key: value for key, value in layer.items() if key not in ("class_name", "module")}
    try:
        _check_values({**rest, "registered_name": None}, _PARTS)
    except Refused as problem:
        raise Refused(f"layer {name!r}: {problem}") from None
    return name


def _check_name(name: Any) -> str:
    if isinstance(name, str) and _PLAIN_NAME.fullmatch(name) and ".." not in name:
        return name
    raise Refused(f"names must be of letters, digits, `_`, `-` and `.`; one is {str(name)[:80]!r}")


def _is_among(value: Mapping[str, Any], records: set[Record]) -> bool:
    record = tuple(value.get(key) for key in ("module", "class_name", "registered_name"))
    return all(isinstance(part, str | None) for part in record) and record in records


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)[:80]
    return ".".join(str(part)[:80] for part in (value.get("module"), value.get("class_name")))


def _check_values(value: Any, allowed: set[Record], key: str = "") -> None:
    """Checks every value below, by the key that it stands under."""
    if isinstance(value, dict):
        named = {"class_name", "module"} & set(value)
        if named and not _is_among(value, allowed):
            raise Refused(f"{key or 'it'!r} is {_shown(value)}, which is not allowed")
        for name, item in value.items():
            if not (named and name in ("module", "class_name", "registered_name")):
                _check_values(item, allowed, name)
    elif isinstance(value, list):
        for item in value:
            _check_values(item, allowed, key)
    elif isinstance(value, str):
        _check_string(key, value)


def _check_string(key: str, value: str) -> None:
    """Strings by which Keras looks something up must be among those it knows itself."""
    if key == "activation" and value not in _ACTIVATIONS:
        raise Refused(f"'activation' must be one of {list(_ACTIVATIONS)}; it is {value[:80]!r}")
    if key == "dtype" and value not in DTYPES:
        raise Refused(f"'dtype' must be one of {list(DTYPES)}; it is {value[:80]!r}")
    if key.endswith(("initializer", "regularizer", "constraint", "policy")):
        raise Refused(f"{key!r} must be a record; it is {value[:80]!r}")
    if key in ("optimizer", "loss", "metrics", "weighted_metrics") and not (
        _IDENTIFIER.fullmatch(value)
    ):
        raise Refused(f"{key!r} must be a name; it is {value[:80]!r}")

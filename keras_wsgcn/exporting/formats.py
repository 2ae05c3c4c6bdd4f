"""The formats that models are exported to, as one table, and each one's own runtime.

A runtime is a function from named arrays to poses; none of them needs Keras.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_wsgcn import skeletons
from keras_wsgcn.errors import InputError, check_choice, check_integer, first_line
from keras_wsgcn.files import check_regular
from keras_wsgcn.skeletons import Skeleton

# What a signature takes; each gives `pose3d` (batch, joints, 3).
SIGNATURES = {"serve": ("pose2d",), "serve_pixels": ("pixels", "image_size")}
METADATA_FILE = "assets.extra/keras_wsgcn.json"  # of a SavedModel
MAX_CARD_BYTES = 1 << 24  # it also holds the history of the training

Predictor = Callable[..., np.ndarray]
# Of each input; None where any size goes, as a batch's.
Shapes = dict[str, tuple[int | None, ...]]


def _open_savedmodel(path: Path, signature: str, threads: int) -> tuple[Predictor, Shapes]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures[signature]

    def predict(**inputs: np.ndarray) -> np.ndarray:
        tensors = {name: tf.convert_to_tensor(value) for name, value in inputs.items()}
        return function(**tensors)["pose3d"].numpy()

    predict.model = loaded  # type: ignore[attr-defined]  # its variables live as long as it does
    specs = function.structured_input_signature[1]
    return predict, {name: tuple(spec.shape) for name, spec in specs.items()}


def _open_onnx(path: Path, signature: str, threads: int) -> tuple[Predictor, Shapes]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # It names the sizes that are free.
    shapes = {
        node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
        for node in session.get_inputs()
    }
    return lambda **inputs: session.run(["pose3d"], inputs)[0], shapes


def _open_litert(path: Path, signature: str, threads: int) -> tuple[Predictor, Shapes]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=threads).get_signature_runner(signature)
    shapes = {
        name: tuple(None if size < 0 else int(size) for size in details["shape_signature"])
        for name, details in runner.get_input_details().items()
    }
    return lambda **inputs: runner(**inputs)["pose3d"], shapes


def _open_openvino(path: Path, signature: str, threads: int) -> tuple[Predictor, Shapes]:
    import openvino

    # Without the hint it computes in bfloat16 where the processor can: 0.2 mm off.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    shapes = {
        port.any_name: tuple(
            size.get_length() if size.is_static else None for size in port.partial_shape
        )
        for port in compiled.inputs
    }

    def predict(**inputs: np.ndarray) -> np.ndarray:
        poses = request.infer(inputs)["pose3d"].copy()  # the next call overwrites it
        for value in inputs.values():  # to its `relu` what is no number is zero
            lost = ~np.isfinite(value).all(axis=tuple(range(1, np.ndim(value))))
            poses[np.broadcast_to(lost, len(poses))] = np.nan
        return poses

    return predict, shapes


@dataclass(frozen=True)
class Format:
    """A file format for trained models.

    Args:
        suffix: of its file; empty where it is a folder of versions.
        writing: packages that writing and checking it needs, besides TensorFlow.
        all_signatures: whether one file holds every signature.
        open: makes a function of a file, a signature and a number of threads, and says which
            shapes it takes.
    """

    suffix: str
    writing: tuple[str, ...]
    all_signatures: bool
    open: Callable[[Path, str, int], tuple[Predictor, Shapes]]


FORMATS: dict[str, Format] = {
    "savedmodel": Format("", ("tensorflow_serving",), True, _open_savedmodel),
    "onnx": Format(".onnx", ("tf2onnx", "onnxruntime"), False, _open_onnx),
    "litert": Format(".tflite", ("ai_edge_litert",), True, _open_litert),
    "openvino": Format(".xml", ("openvino", "tf2onnx"), False, _open_openvino),
}


def format_of(path: Path) -> str:
    """The name of the format of a file, by its suffix.

    Raises:
        InputError: if no format has the suffix.
    """
    for name, form in FORMATS.items():
        if path.suffix == form.suffix:
            return name
    if path.suffix[1:].isdecimal():  # `model.2`
        return "savedmodel"
    suffixes = [form.suffix for form in FORMATS.values() if form.suffix]
    raise InputError(
        f"`path` must end in one of {suffixes}, or name a folder. Received: path={str(path)!r}"
    )


def check_packages(name: str) -> None:
    """Checks that what writing a format needs is installed.

    Raises:
        InputError: if something is missing.
    """
    missing = [
        package
        for package in ("tensorflow", *FORMATS[name].writing)
        if importlib.util.find_spec(package) is None
    ]
    if missing:
        raise InputError(
            f'`format` {name!r} needs the packages {missing}: pip install "keras_wsgcn[export]". '
            f"Received: format={name!r}"
        )


def open_exported(
    path: str | os.PathLike, *, signature: str | None = None, threads: int = 1
) -> Predictor:
    """Opens an exported model in its own runtime: TensorFlow, ONNX Runtime, LiteRT or OpenVINO.

    Args:
        path: a file that `export` wrote, or the version folder of a SavedModel.
        signature: one of `SIGNATURES`, by default `"serve"`. ONNX and OpenVINO files hold the one
            that they were written with, which is their default.
        threads: processor threads. TensorFlow shares its threads among all models: there the
            number is left as it is.

    Returns:
        A function of float32 arrays, named as the signature has them: `pose2d` (batch, joints, 2)
        normalised, or `pixels` (batch, joints, 2) and `image_size` (batch, 2) as width, height. It
        returns `(batch, joints, 3)` metres, and raises `InputError` where the names or shapes are
        others: not every runtime would.

    Raises:
        InputError: if there is no such file, it holds another signature, or an argument is out of
            range.
        ImportError: if the runtime is not installed.
    """
    path = Path(path)
    form = FORMATS[format_of(path)]
    if signature is not None:
        check_choice("signature", signature, SIGNATURES)
    check_integer("threads", threads, least=1)
    if not path.exists():
        raise InputError(f"`path` must exist. Received: path={str(path)!r}")
    predict, shapes = form.open(path, signature or "serve", threads)
    if signature and sorted(shapes) != sorted(SIGNATURES[signature]):
        raise InputError(
            f"`signature` must be the one that the file holds: {path} takes {sorted(shapes)}. "
            f"Received: signature={signature!r}"
        )

    # LiteRT would resize itself to any joints; OpenVINO gives the last call's poses again.
    def checked(**inputs: np.ndarray) -> np.ndarray:
        if sorted(inputs) != sorted(shapes):
            raise InputError(f"inputs must be {sorted(shapes)}. Received: {sorted(inputs)}")
        inputs = {name: _as_float32(name, value) for name, value in inputs.items()}
        for name, shape in shapes.items():
            received = inputs[name].shape
            if len(received) != len(shape) or any(
                size not in (None, found) for size, found in zip(shape, received, strict=True)
            ):
                expected = ", ".join("batch" if size is None else str(size) for size in shape)
                raise InputError(
                    f"`{name}` must have the shape ({expected}). Received: shape={received}"
                )
        batches = {name: len(value) for name, value in inputs.items()}
        if len(set(batches.values()) - {1}) > 1:
            raise InputError(f"inputs must be as many as each other, or one. Received: {batches}")
        if not max(batches.values()):  # which not every runtime takes
            return np.empty((0, next(iter(inputs.values())).shape[-2], 3), np.float32)
        return predict(**inputs)

    return checked


def _as_float32(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError, RuntimeError):  # the last: PyTorch's, of one with a gradient
        raise InputError(
            f"`{name}` must be an array of numbers. Received: {name} of type {type(value).__name__}"
        ) from None


def skeleton_of_card(path: str | os.PathLike) -> Skeleton:
    """The joints that an exported model takes, as its card says, a SavedModel's `METADATA_FILE`.

    Raises:
        InputError: if the file is no card.
    """
    path = Path(path)
    try:
        check_regular(path)
        with open(path, "rb") as file:
            content = file.read(MAX_CARD_BYTES + 1)
        if len(content) > MAX_CARD_BYTES:
            raise ValueError(f"it has more than {MAX_CARD_BYTES} bytes")
        return skeletons.get(json.loads(content)["skeleton"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            "`skeleton` must be what the card of an exported model says, `keras_wsgcn.json` "
            f"({first_line(error, 300)}). Received: {str(path)!r}"
        ) from None

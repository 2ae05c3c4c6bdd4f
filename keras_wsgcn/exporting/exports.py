"""`export`: writes a model in another format, checks it in that format's own runtime, and only
then puts it where it was asked for.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_wsgcn import metrics
from keras_wsgcn.data.poses import PoseDataset
from keras_wsgcn.errors import Failure, InputError, check_choice, check_instance
from keras_wsgcn.exporting.folding import inference_model
from keras_wsgcn.exporting.formats import (
    FORMATS,
    METADATA_FILE,
    SIGNATURES,
    check_packages,
    format_of,
    skeleton_of_card,
)
from keras_wsgcn.files import sync_folder
from keras_wsgcn.models import skeleton_of
from keras_wsgcn.prediction import check_joints, check_single, predict, root_aligned
from keras_wsgcn.saving import load_model, save_model
from keras_wsgcn.skeletons import Skeleton

TOLERANCE_M = 1e-5
PARITY_BATCHES = (1, 7, 64)
QUANTIZATIONS = ("int8",)
_IMAGE_SIZES = ((1000, 1000), (1920, 1080), (720, 1280))
_SECONDS = 600  # a process that writes takes some ten


class ExportError(Failure):
    """An export could not be made, or does not predict what the model predicts."""


@dataclass(frozen=True)
class Export:
    """What an export wrote, and how close it is.

    Args:
        path: the file, or the version folder of a SavedModel.
        format: one of `FORMATS`.
        signatures: the signatures in it.
        parity_m: the largest difference to the Keras model in any coordinate of random poses, in
            metres.
        errors_mm: of a quantised model: `difference`, the mean distance to the Keras model's
            joints, and with a data set its MPJPE, `float32` and `int8`; millimetres.
    """

    path: Path
    format: str
    signatures: tuple[str, ...]
    parity_m: float
    errors_mm: Mapping[str, float] = field(default_factory=dict)


def export(
    model: keras.Model | str | os.PathLike,
    path: str | os.PathLike,
    *,
    format: str | None = None,
    signature: str | None = None,
    quantize: str | None = None,
    data: PoseDataset | None = None,
) -> Export:
    """Exports a lifting model, from any backend, and checks it in the format's own runtime.

    Two signatures, the batch dynamic, all of them float32: `serve` takes `pose2d`
    (batch, joints, 2), normalised; `serve_pixels` takes `pixels` (batch, joints, 2) and
    `image_size` (batch, 2), width and height in pixels, and normalises in the graph. Both give
    `pose3d` (batch, joints, 3), metres in the camera frame. Batch normalisation is folded into the
    kernels (`inference_model`), and a model of mixed precision is exported in float32.

    A SavedModel is a folder for TensorFlow Serving: `path` is `.../NAME`, and the model appears as
    `NAME/VERSION/`, the next number, only when it is complete; no version is ever replaced, nor
    followed by one with other joints. In it are warm-up requests, and only operators that stock
    TensorFlow has.

    Args:
        model: a lifting model, or the `.keras` file of one.
        path: where to. Other files than SavedModel are replaced whole; OpenVINO's is a pair, `.xml`
            and `.bin`, and must be new.
        format: `"savedmodel"`, `"onnx"`, `"litert"` or `"openvino"`; by default by the suffix of
            `path`, a SavedModel without one.
        signature: which signature an ONNX or OpenVINO file shall hold, `"serve"` by default; the
            others hold both.
        quantize: `"int8"` stores LiteRT's weights in 8 bits (dynamic range).
        data: poses on which the error of a quantised model is measured.

    Returns:
        What was written, and how close it is to `model`.

    Raises:
        InputError: if an argument is wrong, or a package is missing.
        ExportError: if writing fails, or a coordinate is further than 1e-5 m from the model's; a
            quantised model is measured instead.
    """
    path = Path(path)
    format = format_of(path) if format is None else check_choice("format", format, FORMATS)
    chosen = _checked_options(path, format, signature, quantize, data)
    check_packages(format)
    if isinstance(model, str | os.PathLike):
        model = load_model(model, compile=False)
    skeleton = skeleton_of(model)  # refuses what is no lifting model
    check_single(model)
    shape = tuple(getattr(model, "input_shape", ()))
    if len(shape) != 3 or None in shape[1:] or shape[2] != 2:
        raise InputError(
            "`model` must be built, functional or sequential, with the input (batch, joints, 2). "
            f"Received: {type(model).__name__} with input_shape={shape}"
        )
    if format == "savedmodel":
        _check_successor(path, skeleton)
    inputs = _random_inputs(model.input_shape[1], chosen)
    if data is not None:
        check_joints(model, "data", data.skeleton)
        inputs["serve/data"] = {"pose2d": data.pose2d.astype(np.float32)}
    expected = _expected(model, inputs)
    with _staging(path, format) as staging:
        with tempfile.TemporaryDirectory() as scratch:
            predicted = _write(
                model, inputs, Path(scratch),
                {"format": format, "target": str(staging), "signature": chosen[0],
                 "quantize": quantize, "name": path.name},
            )  # fmt: skip
        parity = max(
            float(np.abs(predicted[case] - expected[case]).max())
            for case in inputs
            if case != "serve/data"
        )
        if not np.isfinite(parity) or (quantize is None and parity > TOLERANCE_M):
            raise ExportError(
                f"the {format} export is {parity:.3g} m from the Keras model, more than "
                f"{TOLERANCE_M} m; nothing was written to {path}"
            )
        written = _publish(staging, path, format)
    errors = _errors_mm(expected, predicted, data) if quantize else {}
    return Export(written, format, chosen, parity, errors)


def _checked_options(
    path: Path, format: str, signature: str | None, quantize: str | None, data: Any
) -> tuple[str, ...]:
    """The signatures to write, everything checked that can be before the work begins."""
    form = FORMATS[format]
    if path.suffix != form.suffix and form.suffix:
        raise InputError(
            f"`path` must end in {form.suffix!r} for {format!r}. Received: path={str(path)!r}"
        )
    if form.suffix and path.is_dir():
        raise InputError(f"`path` must not be a folder. Received: path={str(path)!r}")
    if not form.suffix and path.exists() and not path.is_dir():
        raise InputError(f"`path` must be a folder of versions. Received: path={str(path)!r}")
    if format == "openvino" and (path.exists() or path.with_suffix(".bin").exists()):
        raise InputError(
            f"`path` must be new, with the `.bin` beside it. Received: path={str(path)!r}"
        )
    if signature is not None:
        check_choice("signature", signature, SIGNATURES)
        if form.all_signatures:
            raise InputError(
                f"`signature` must be None for {format!r}, which holds all of them. "
                f"Received: signature={signature!r}"
            )
    if quantize is not None:
        check_choice("quantize", quantize, QUANTIZATIONS)
        if format != "litert":
            raise InputError(
                f"`quantize` must be None for {format!r}: only 'litert' has it. "
                f"Received: quantize={quantize!r}"
            )
    elif data is not None:
        raise InputError("`data` must be None without `quantize`. Received: data")
    if data is not None:
        check_instance("data", data, PoseDataset, "such as the `test` poses of splits")
    return tuple(SIGNATURES) if form.all_signatures else (signature or "serve",)


def _check_successor(path: Path, skeleton: Skeleton) -> None:
    """Refuses other joints than those of the version that is served now: clients know its own."""
    cards = [card for card in path.glob(f"*/{METADATA_FILE}") if card.parts[-3].isdecimal()]
    if not cards:
        return
    served = max(cards, key=lambda card: int(card.parts[-3]))
    try:
        before = skeleton_of_card(served)
    except InputError:
        return  # somebody else's: nothing is known of its joints
    if (before.joint_names, before.root) != (skeleton.joint_names, skeleton.root):
        raise InputError(
            f"`path` must be another folder, which for serve.py is another --name: version "
            f"{served.parts[-3]} there has the {before.num_joints} joints of {before.name!r}, and "
            f"the model the {skeleton.num_joints} of {skeleton.name!r}. "
            f"Received: path={str(path)!r}"
        )


def _random_inputs(joints: int, signatures: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """Random poses at each batch size, for each signature: `serve/7` and the like."""
    rng = np.random.default_rng(0)
    inputs = {}
    for batch in PARITY_BATCHES:
        pose2d = rng.uniform(-1.0, 1.0, (batch, joints, 2))
        size = rng.choice(np.array(_IMAGE_SIZES, dtype=np.float64), batch)
        pixels = (pose2d * size[:, None, :1] + size[:, None]) / 2
        arrays = {"pose2d": pose2d, "pixels": pixels, "image_size": size}
        for signature in signatures:
            inputs[f"{signature}/{batch}"] = {
                name: arrays[name].astype(np.float32) for name in SIGNATURES[signature]
            }
    return inputs


def _expected(
    model: keras.Model, inputs: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What the Keras model itself predicts, pixels normalised in NumPy."""
    if any(layer.compute_dtype != "float32" for layer in model.layers):
        model = inference_model(model)  # half precision is itself further off than the tolerance
    expected = {}
    for case, arrays in inputs.items():
        if "pixels" in arrays:
            size = arrays["image_size"][:, None].astype(np.float64)
            pose2d = ((2.0 * arrays["pixels"] - size) / size[..., :1]).astype(np.float32)
        else:
            pose2d = arrays["pose2d"]
        expected[case] = predict(model, pose2d)
    return expected


def _write(
    model: keras.Model,
    inputs: Mapping[str, Mapping[str, np.ndarray]],
    scratch: Path,
    job: dict[str, Any],
) -> dict[str, np.ndarray]:
    """Writes the export under TensorFlow; returns what its own runtime predicts."""
    files = {name: str(scratch / file) for name, file in (
        ("model", "model.keras"), ("arrays", "inputs.npz"), ("predictions", "predictions.npz"),
    )}  # fmt: skip
    save_model(model, files["model"])
    arrays = {f"{case}/{name}": array for case in inputs for name, array in inputs[case].items()}
    np.savez(files["arrays"], **arrays)  # type: ignore[arg-type]
    job = {**job, **files}
    if keras.backend.backend() == "tensorflow":
        from keras_wsgcn.exporting.writers import run_job

        try:
            run_job(job)
        except Exception as error:
            raise ExportError(f"the {job['format']} export failed: {error}") from error
    else:
        (scratch / "job.json").write_text(json.dumps(job), encoding="utf-8")
        environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
        # The processor writes: an accelerator may be full, and rounds otherwise.
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
        command = [sys.executable, "-m", "keras_wsgcn.exporting.writers"]
        try:
            done = subprocess.run(
                [*command, str(scratch / "job.json")],
                env={**os.environ, **environment}, capture_output=True, text=True, timeout=_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ExportError(
                f"the {job['format']} export was not done after {_SECONDS} seconds"
            ) from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise ExportError(f"the {job['format']} export failed: {lines[-1]}\n{done.stderr}")
    with np.load(files["predictions"]) as predicted:
        return dict(predicted)


@contextmanager
def _staging(path: Path, format: str) -> Iterator[Path]:
    """Where to write until all is checked: in a hidden folder beside the target's final place."""
    parent = path.parent if FORMATS[format].suffix else path
    existed = parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f".{path.stem}.{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder / (path.name if FORMATS[format].suffix else "model")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed and not any(parent.iterdir()):
            parent.rmdir()


def _publish(staging: Path, path: Path, format: str) -> Path:
    """Moves what was written to its place; the last step is one rename."""
    sync_folder(staging.parent)
    if format == "savedmodel":
        return _publish_version(staging, path)
    if format == "openvino":
        os.replace(staging.with_suffix(".bin"), path.with_suffix(".bin"))
    os.replace(staging, path)
    return path


def _publish_version(staging: Path, path: Path) -> Path:
    while True:
        taken = [int(p.name) for p in path.iterdir() if p.name.isdecimal()]
        version = path / str(max(taken, default=0) + 1)
        try:
            os.rename(staging, version)
        except OSError:
            if not version.exists():
                raise
        else:
            return version  # had another process taken the number, the rename would have failed


def _errors_mm(
    expected: Mapping[str, np.ndarray],
    predicted: Mapping[str, np.ndarray],
    data: PoseDataset | None,
) -> dict[str, float]:
    case = f"serve/{PARITY_BATCHES[-1]}" if data is None else "serve/data"
    errors = {"difference": float(metrics.mpjpe(expected[case], predicted[case]).mean())}
    if data is not None:
        for name, found in (("float32", expected[case]), ("int8", predicted[case])):
            aligned = root_aligned(found, data.skeleton.root)
            errors[name] = float(metrics.mpjpe(data.pose3d, aligned).mean())
    return errors

"""Exports a model for other runtimes and checks it there: SavedModel, ONNX, LiteRT, OpenVINO.

MODEL is a .keras file, the folder of a run, or the name of a model of the library. A path without
a suffix becomes a SavedModel, in the layout of TensorFlow Serving: PATH/1/, PATH/2/, ...
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import add_subjects, run

from predict import find_model

from keras_wsgcn.data.sources import load_splits
from keras_wsgcn.errors import InputError
from keras_wsgcn.exporting import FORMATS, SIGNATURES, Export, export
from keras_wsgcn.models import describe as describe_model

STRIDE = 10  # frames of a test pose to the next


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "model", help="a .keras file, the folder of a run, or the name of a model of the library"
    )
    suffixes = ", ".join(f"{form.suffix} ({name})" for name, form in FORMATS.items() if form.suffix)
    parser.add_argument("path", type=Path, help=f"where to: {suffixes}, or a folder of versions")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of the path")
    parser.add_argument(
        "--signature",
        choices=SIGNATURES,
        help="what an ONNX or OpenVINO file takes: normalised poses (serve, the default), or "
        "pixels and image size; the other formats hold both",
    )
    parser.add_argument(
        "--int8", action="store_true", help="LiteRT only: weights in 8 bits, a quarter of the size"
    )
    parser.add_argument(
        "--data", help="measure the error of --int8 on the test poses of this data, such as cmu24"
    )
    parser.add_argument(
        "--stride", type=int, help=f"take every so many frames of it (default: {STRIDE})"
    )
    add_subjects(parser)
    return parser.parse_args(argv)


def describe(done: Export) -> str:
    line = f"{done.path}: {done.format}, signatures {', '.join(done.signatures)}; "
    if not done.errors_mm:
        return line + f"at most {1e3 * done.parity_m:.2g} mm from the Keras model"
    errors = ", ".join(f"{name} {value:.2f}" for name, value in done.errors_mm.items())
    return line + f"millimetres: {errors}"


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    of_data = {name: getattr(options, name) for name in ("stride", "validation", "test")}
    of_data = {name: value for name, value in of_data.items() if value is not None}
    if of_data and not options.data:
        named = ", ".join(f"--{name}" for name in of_data)
        raise InputError(f"`--data` must be given with {named}. Received: data=None")
    if options.data and not options.int8:
        raise InputError(f"`--int8` must be given with --data. Received: --data {options.data}")
    model = find_model(options.model)
    data = None
    if options.data:
        skeleton = describe_model(model)["skeleton"]
        data = load_splits(options.data, skeleton=skeleton, **{"stride": STRIDE, **of_data}).test
    done = export(
        model,
        options.path,
        format=options.format,
        signature=options.signature,
        quantize="int8" if options.int8 else None,
        data=data,
    )
    print(describe(done))


if __name__ == "__main__":
    sys.exit(run(main))

"""The parity table: every scheme, saved and exported from every backend, against its own model.

For each backend, models of the schemes with weights as after a training are exported in each
format, where the format's own runtime must predict what the backend does within 10 micrometres;
and the `.keras` file that the backend saved is loaded by each backend. Status 1 if one is off.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from cli import add_backends, run

import keras
import numpy as np
import pandas as pd

from keras_wsgcn import SCHEMES, build_model, load_model, save_model
from keras_wsgcn.budget import solve_channels
from keras_wsgcn.environment import environment
from keras_wsgcn.errors import InputError
from keras_wsgcn.exporting import FORMATS, TOLERANCE_M, ExportError, export
from keras_wsgcn.files import write_text
from keras_wsgcn.prediction import predict

_POSES = 64


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_backends(parser)
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--budget", type=float, default=1.05e6, help="default: %(default)g")
    parser.add_argument("--output", type=Path, help="CSV to write")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def trained_like(scheme: str, budget: float, pose2d: np.ndarray) -> keras.Model:
    """A model whose weights and statistics are random, and its poses of the size of people."""
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    model = build_model(scheme, budget=budget, kernel_gain=1.0)
    for weight in model.weights:
        if any(part in weight.path for part in ("gamma", "variance")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape).astype("float32"))
        elif any(part in weight.path for part in ("beta", "mean", "bias")):
            weight.assign(rng.normal(0.0, 0.1, weight.shape).astype("float32"))
    output = model.get_layer("output_conv")
    output.set_weights([w * 0.4 / predict(model, pose2d).std() for w in output.get_weights()])
    return model


def work(options: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """One backend's share: exports and saves; or, where the files are there, loads them."""
    pose2d = np.random.default_rng(1).uniform(-1, 1, (_POSES, 16, 2)).astype("float32")
    backend = keras.backend.backend()
    for scheme in options.schemes:
        model = trained_like(scheme, options.budget, pose2d)
        save_model(model, folder / f"{backend}-{scheme}.keras")
        np.save(folder / f"{backend}-{scheme}.npy", predict(model, pose2d))
        facts = {"scheme": scheme, "saved_by": backend, "params": model.metadata["params"]}
        for name in options.formats:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / f"model{FORMATS[name].suffix}"
                try:
                    parity = export(model, path, format=name).parity_m
                except ExportError as error:
                    print(f"{scheme} {backend} {name}: {error}", file=sys.stderr)
                    parity = float("nan")
            yield {**facts, "format": name, "parity_m": parity}


def read_back(options: argparse.Namespace, folder: Path) -> Iterator[dict]:
    pose2d = np.random.default_rng(1).uniform(-1, 1, (_POSES, 16, 2)).astype("float32")
    for path in sorted(folder.glob("*.keras")):
        saved_by, scheme = path.stem.split("-", 1)
        model = load_model(path, compile=False)
        parity = float(np.abs(predict(model, pose2d) - np.load(path.with_suffix(".npy"))).max())
        facts = {"scheme": scheme, "saved_by": saved_by, "params": model.metadata["params"]}
        yield {**facts, "format": f"keras on {keras.backend.backend()}", "parity_m": parity}


def ask(backend: str, options: argparse.Namespace, folder: Path) -> list[dict]:
    command = [sys.executable, __file__, "--worker", str(folder), "--budget", str(options.budget)]
    command += ["--schemes", *options.schemes, "--formats", *options.formats]
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"`backends` must be able to run. Received: {backend!r}, which failed")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def measure(options: argparse.Namespace) -> pd.DataFrame:
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for backend in options.backends:
            rows += ask(backend, options, folder)
            print(f"  {backend}: exported", file=sys.stderr)
        (folder / "complete").touch()
        for backend in options.backends:
            rows += ask(backend, options, folder)
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    if options.worker:
        part = read_back if (options.worker / "complete").exists() else work
        for row in part(options, options.worker):
            print(json.dumps({**row, "keras": environment()["keras"]}), flush=True)
        return 0
    for scheme in options.schemes:
        solve_channels(scheme, options.budget)  # refuses what is out of reach
    frame = measure(options)
    table = frame.pivot_table("parity_m", ["scheme", "saved_by"], "format", sort=False)
    print("\nLargest difference of a coordinate to the saved model's, in micrometres\n")
    print((1e6 * table).round(2).to_string())
    if options.output:
        write_text(options.output, frame.to_csv(index=False))
    worst = frame["parity_m"].max(skipna=False)
    return 0 if worst <= TOLERANCE_M else 1


if __name__ == "__main__":
    sys.exit(run(main))

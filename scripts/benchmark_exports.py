"""Times the exports of a model in their own runtimes, and Keras itself on every backend.

Latency of one pose, median and 99th percentile over all calls, and throughput at each batch size
from the median call. Every candidate is a process of its own; all run on the same cores and take
turns, so that a noisy machine is noisy for all. `keras jax` and so on are the model compiled by
its backend (eager under torch) and called directly; `predict` is `model.predict`, which makes a
data set of each call.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from cli import run

BACKENDS = ("tensorflow", "jax", "torch")
BATCHES = {1: 200, 64: 20, 1024: 4}  # calls a round
SLOW_CALLS = 20  # of one pose, where a call takes many milliseconds


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scheme", default="pre_agg_decoupled", help="default: %(default)s")
    parser.add_argument("--budget", type=float, default=1.05e6, help="default: %(default)g")
    parser.add_argument("--cores", type=int, default=1, help="of the processor (default: 1)")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, help="default: those installed")
    parser.add_argument("--output", type=Path, help="CSV to write")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# --- a worker ------------------------------------------------------------------------------------


def lifter(kind: str, path: str, threads: int) -> Callable[[np.ndarray], object]:
    """The function to be timed, from `(poses, 16, 2)` float32."""
    if kind == "export":
        from keras_wsgcn.exporting import open_exported

        predict = open_exported(path, threads=threads)
        return lambda pose2d: predict(pose2d=pose2d)
    import keras

    from keras_wsgcn import load_model

    model = load_model(path, compile=False)
    if kind == "predict":
        return lambda pose2d: model.predict(pose2d, verbose=0)
    return direct(model, keras.backend.backend(), threads)


def direct(model, backend: str, threads: int) -> Callable[[np.ndarray], object]:
    if backend == "tensorflow":
        import tensorflow as tf

        spec = tf.TensorSpec(model.input_shape, tf.float32)
        compiled = tf.function(lambda x: model(x, training=False), input_signature=[spec])
        return lambda pose2d: compiled(tf.convert_to_tensor(pose2d)).numpy()
    if backend == "jax":
        import jax

        weights = [v.value for v in model.trainable_variables]
        others = [v.value for v in model.non_trainable_variables]
        jitted = jax.jit(lambda w, o, x: model.stateless_call(w, o, x, training=False)[0])
        return lambda pose2d: np.asarray(jitted(weights, others, pose2d))
    import torch

    torch.set_num_threads(threads)

    def predict(pose2d: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(pose2d), training=False).numpy()

    return predict


def work(options: argparse.Namespace) -> None:
    kind, path = options.worker
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    predict = lifter(kind, path, options.cores)
    rng = np.random.default_rng(0)
    for line in sys.stdin:
        question = json.loads(line)
        inputs = rng.uniform(-1, 1, (8, question["poses"], 16, 2)).astype("float32")
        for pose2d in inputs[:3]:
            predict(pose2d)
        times = []
        for call in range(question["calls"]):
            began = time.perf_counter()
            predict(inputs[call % len(inputs)])
            times.append(1e3 * (time.perf_counter() - began))
        print(json.dumps({"ms": times}), flush=True)


# --- the whole -----------------------------------------------------------------------------------


class Worker:
    """A process that times one candidate when it is told to."""

    def __init__(self, kind: str, path: Path, backend: str, options: argparse.Namespace):
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, "--worker", kind, str(path)]
        command += ["--cores", str(options.cores)]
        self.name, self.slow = f"{kind} {backend}", kind == "predict"
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def time(self, poses: int, calls: int) -> list[float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        calls = min(calls, SLOW_CALLS) if self.slow else calls
        self.process.stdin.write(json.dumps({"poses": poses, "calls": calls}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"ms"'):
                return json.loads(line)["ms"]
        raise ChildProcessError(f"the worker of {self.name} ended")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def candidates(options: argparse.Namespace, folder: Path) -> dict[str, tuple[str, Path, str]]:
    """What is timed: a name, and the kind, file and backend of its worker."""
    from keras_wsgcn import build_model, save_model
    from keras_wsgcn.exporting import FORMATS, export

    model = build_model(options.scheme, budget=options.budget)
    save_model(model, folder / "model.keras")
    found = {}
    for name, form in FORMATS.items():
        done = export(model, folder / f"model{form.suffix}", format=name)
        # TensorFlow is the one runtime that Keras may hold too: not beside another backend's.
        found[name] = ("export", done.path, "tensorflow")
    small = export(model, folder / "small.tflite", quantize="int8").path
    found["litert int8"] = ("export", small, "tensorflow")
    backends = options.backends or [name for name in BACKENDS if importlib.util.find_spec(name)]
    for kind in ("keras", "predict"):
        for backend in backends:
            found[f"{kind} {backend}"] = (kind, folder / "model.keras", backend)
    return found


def measure(options: argparse.Namespace) -> pd.DataFrame:
    from keras_wsgcn.training import environment

    with tempfile.TemporaryDirectory() as scratch:
        found = candidates(options, Path(scratch))
        workers = {name: Worker(*what, options) for name, what in found.items()}
        times: dict[tuple[str, int], list[float]] = {(n, b): [] for n in workers for b in BATCHES}
        for _ in range(options.rounds):
            for poses, calls in BATCHES.items():
                for name, worker in workers.items():
                    times[name, poses] += worker.time(poses, calls)
        for worker in workers.values():
            worker.end()
    rows = []
    for name in workers:
        row = {"runtime": name, "median_ms": np.median(times[name, 1])}
        row["p99_ms"] = np.percentile(times[name, 1], 99)
        for poses in BATCHES:
            row[f"poses_per_s_at_{poses}"] = round(1e3 * poses / np.median(times[name, poses]))
        rows.append({**row, "scheme": options.scheme, "cores": options.cores})
    facts = {key: environment()[key] for key in ("machine", "keras")}
    return pd.DataFrame(rows).assign(**facts, **versions()).round(4)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("tensorflow", "onnxruntime", "openvino", "ai-edge-litert", "jax", "torch")
    found = [name for name in names if importlib.util.find_spec(name.replace("-", "_"))]
    return {name: version(name) for name in found}


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    if options.worker:
        return work(options)
    from keras_wsgcn.files import write_text

    frame = measure(options)
    print(frame.set_index("runtime").loc[:, "median_ms":"poses_per_s_at_1024"].to_string())
    if options.output:
        write_text(options.output, frame.to_csv(index=False))
    return None


if __name__ == "__main__":
    sys.exit(run(main))

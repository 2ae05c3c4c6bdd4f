"""Times the exports of a model in their own runtimes, and Keras itself on every backend.

Latency of one pose, median and 99th percentile over all calls, and throughput at each batch size
from the median call. Every candidate is a process of its own, bound to its cores; only one computes
at a time, and all take turns, so that a noisy machine is noisy for all. `keras jax` and so on are
the model compiled by its backend (eager under torch) and called directly; `predict` is
`model.predict` in batches of 1024, which makes a data set of each call.
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

from cli import add_backends, run

import numpy as np
import pandas as pd

BATCHES = {1: 200, 64: 20, 1024: 4}  # calls a round
SLOW_CALLS = 20  # of one pose, where a call takes many milliseconds


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scheme", default="pre_agg_decoupled", help="default: %(default)s")
    parser.add_argument("--budget", type=float, default=1.05e6, help="default: %(default)g")
    parser.add_argument("--cores", type=int, default=1, help="of the processor (default: 1)")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    add_backends(parser)
    parser.add_argument("--output", type=Path, help="CSV to write")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
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

    model, backend = load_model(path, compile=False), keras.backend.backend()
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)  # it counts the machine's cores, not the process's
    if kind == "predict":
        return lambda pose2d: model.predict(pose2d, batch_size=1024, verbose=0)
    return direct(model, backend)


def direct(model, backend: str) -> Callable[[np.ndarray], object]:
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

    def predict(pose2d: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(pose2d, training=False).cpu().numpy()

    return predict


def work(options: argparse.Namespace) -> None:
    kind, path, number = options.worker
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        # Before the runtime is imported, which makes as many threads as there are cores.
        cores = sorted(os.sched_getaffinity(0))
        first = int(number) * options.cores % max(len(cores) - options.cores + 1, 1)
        os.sched_setaffinity(0, cores[first : first + options.cores])
    predict = lifter(kind, path, options.cores)
    rng = np.random.default_rng(0)
    poses = {n: rng.uniform(-1, 1, (8, n, 16, 2)).astype("float32") for n in BATCHES}
    for inputs in poses.values():  # a backend may compile for each size
        predict(inputs[0])
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        inputs = poses[question["poses"]]
        for pose2d in inputs[:2]:
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

    def __init__(self, number: int, kind: str, path: Path, backend: str, cores: int):
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, "--worker", kind, str(path), str(number)]
        command += ["--cores", str(cores)]
        self.name, self.slow = f"{kind} {backend}", kind == "predict"
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def wait(self) -> None:
        """Until its runtime is imported and has computed once."""
        self._read("ready")

    def time(self, poses: int, calls: int) -> list[float]:
        assert self.process.stdin is not None
        calls = min(calls, SLOW_CALLS) if self.slow else calls
        self.process.stdin.write(json.dumps({"poses": poses, "calls": calls}) + "\n")
        self.process.stdin.flush()
        return json.loads(self._read('{"ms"'))["ms"]

    def _read(self, beginning: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(beginning):
                return line
        raise ChildProcessError(f"the worker of {self.name} ended")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def candidates(options: argparse.Namespace, folder: Path) -> dict[str, tuple[str, Path, str]]:
    """What is timed: a name, and the kind, file and backend of its worker."""
    from check_exports import trained_like

    from keras_wsgcn import save_model
    from keras_wsgcn.exporting import FORMATS, export

    poses = np.random.default_rng(0).uniform(-1, 1, (1024, 16, 2)).astype("float32")
    model = trained_like(options.scheme, options.budget, poses)
    save_model(model, folder / "model.keras")
    found = {}
    for name, form in FORMATS.items():
        say(f"exporting to {name}")
        done = export(model, folder / f"model{form.suffix}", format=name)
        # TensorFlow is the one runtime that Keras may hold too: not beside another backend's.
        found[name] = ("export", done.path, "tensorflow")
    small = export(model, folder / "small.tflite", quantize="int8").path
    found["litert int8"] = ("export", small, "tensorflow")
    for kind in ("keras", "predict"):
        for backend in options.backends:
            found[f"{kind} {backend}"] = (kind, folder / "model.keras", backend)
    return found


def measure(options: argparse.Namespace) -> pd.DataFrame:
    from keras_wsgcn.environment import environment

    with tempfile.TemporaryDirectory() as scratch:
        found = candidates(options, Path(scratch))
        workers = {
            name: Worker(number, *what, options.cores)
            for number, (name, what) in enumerate(found.items())
        }
        say(f"starting {len(workers)} processes")
        for worker in workers.values():
            worker.wait()
        times: dict[tuple[str, int], list[float]] = {(n, b): [] for n in workers for b in BATCHES}
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
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


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("tensorflow", "onnxruntime", "openvino", "ai-edge-litert", "jax", "torch")
    found = [name for name in names if importlib.util.find_spec(name.replace("-", "_"))]
    return {name: version(name) for name in found}


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    if options.worker:
        return work(options)
    from keras_wsgcn.budget import solve_channels
    from keras_wsgcn.errors import check_integer
    from keras_wsgcn.files import write_text

    for name in ("cores", "rounds"):
        check_integer(name, getattr(options, name), least=1)
    solve_channels(options.scheme, options.budget)  # refuses what is out of reach
    frame = measure(options)
    print(frame.set_index("runtime").loc[:, "median_ms":"poses_per_s_at_1024"].to_string())
    if options.output:
        write_text(options.output, frame.to_csv(index=False))
    return None


if __name__ == "__main__":
    sys.exit(run(main))

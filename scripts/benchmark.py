"""Times one training step and one forward pass of every scheme, on every installed backend.

Each backend runs in a process of its own; all of them are alive at once and take turns, scheme by
scheme, so that a machine that slows down slows down for all. Prints a table, writes a CSV.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from cli import run

from keras_wsgcn.budget import count_flops, count_params, solve_channels
from keras_wsgcn.errors import InputError
from keras_wsgcn.files import write_text
from keras_wsgcn.schemes import SCHEMES

BACKENDS = ("tensorflow", "jax", "torch")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, help="default: those installed")
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--budget", type=float, default=1.05e6, help="default: %(default)g")
    size.add_argument("--channels", type=int)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7, help="rounds, of which the median counts")
    parser.add_argument("--steps", type=int, default=4, help="steps timed together in a round")
    parser.add_argument("--output", type=Path, help="CSV to write")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


class Worker:
    """A process that holds one backend and times what it is told to."""

    def __init__(self, backend: str, options: argparse.Namespace):
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, "--worker", "--batch-size", str(options.batch_size)]
        command += ["--steps", str(options.steps)]
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, **question) -> dict:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise InputError(
            f"`--backends` must be able to run. Received: a worker that ended with {question}"
        )


def work(options: argparse.Namespace) -> None:
    """The worker's loop: prepares a model, then times rounds of it."""
    import keras
    import numpy as np

    from keras_wsgcn.recipes import TrainConfig, compile_model
    from keras_wsgcn.training import environment

    rng = np.random.default_rng(0)
    poses = options.batch_size * options.steps
    pose2d = rng.uniform(-1, 1, (poses, 16, 2)).astype("float32")
    pose3d = rng.uniform(-1, 1, (poses, 16, 3)).astype("float32")
    fit = {"batch_size": options.batch_size, "shuffle": False, "verbose": 0}
    for line in sys.stdin:
        question = json.loads(line)
        if "scheme" in question:
            keras.backend.clear_session()
            config = TrainConfig(scheme=question["scheme"], channels=question["channels"])
            model = config.build_model()
            compile_model(model, config, steps_per_epoch=10_000)
            began = time.perf_counter()
            model.fit(pose2d, pose3d, **fit)
            model.predict(pose2d, batch_size=options.batch_size, verbose=0)
            answer = {"compile_s": time.perf_counter() - began, **environment()}
        else:
            began = time.perf_counter()
            model.fit(pose2d, pose3d, **fit)
            trained = time.perf_counter()
            model.predict(pose2d, batch_size=options.batch_size, verbose=0)
            ended = time.perf_counter()
            answer = {
                "train_ms": 1e3 * (trained - began) / options.steps,
                "forward_ms": 1e3 * (ended - trained) / options.steps,
            }
        print(json.dumps(answer), flush=True)


def measure(options: argparse.Namespace) -> pd.DataFrame:
    installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
    workers = {name: Worker(name, options) for name in options.backends or installed}
    rows = []
    for scheme in options.schemes:
        channels = options.channels or solve_channels(scheme, options.budget)
        about = {name: w.ask(scheme=scheme, channels=channels) for name, w in workers.items()}
        rounds = [{n: w.ask(time=True) for n, w in workers.items()} for _ in range(options.repeats)]
        for backend, facts in about.items():
            medians = {
                key: round(statistics.median(one[backend][key] for one in rounds), 2)
                for key in ("train_ms", "forward_ms")
            }
            rows.append(
                {
                    "scheme": scheme,
                    "backend": backend,
                    "channels": channels,
                    "params": count_params(scheme, channels),
                    "forward_mflop_per_pose": round(count_flops(scheme, channels) / 1e6, 2),
                    "batch_size": options.batch_size,
                    **medians,
                    "poses_per_s": round(1e3 * options.batch_size / medians["train_ms"]),
                    "compile_s": round(facts["compile_s"], 1),
                    "device": facts["device"],
                    "machine": facts["machine"],
                    "keras": facts["keras"],
                }
            )
            print(f"  {scheme} {backend}: {medians['train_ms']} ms", file=sys.stderr)
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    if options.worker:
        return work(options)
    frame = measure(options)
    print(f"\nOne training step, ms; batch {options.batch_size}, medians of {options.repeats}\n")
    table = frame.pivot_table("train_ms", ["scheme", "channels"], "backend")
    print(table.loc[options.schemes].to_string())
    if options.output:
        write_text(options.output, frame.to_csv(index=False))
    return None


if __name__ == "__main__":
    sys.exit(run(main))

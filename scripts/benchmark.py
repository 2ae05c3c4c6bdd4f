"""Times training steps and forward passes of every scheme, on every installed backend.

Beside them stand the limit, which is the same matrix products alone, and with --peer the training
step of Any-GCN, from a checkout of it. Each backend is a process of its own, another for each case;
those of a case are alive at once and take turns, so that a machine that slows down slows down for
all. Prints a table, writes a CSV.

`step` is one step inside `train()`, `fit` the same by Keras's own loop, `train` all that a user of
`train()` waits for, with validation and saving, by step (--train-steps).
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cli import BACKENDS, add_backends, run

import pandas as pd

from keras_wsgcn.budget import count_flops, count_params, solve_channels
from keras_wsgcn.errors import InputError, check_integer
from keras_wsgcn.files import write_text
from keras_wsgcn.recipes import PRECISIONS, TrainConfig
from keras_wsgcn.schemes import SCHEMES
from keras_wsgcn.torch_steps import check_jit_compile

OURS = ("step", "fit", "forward", "products")
MEASURES = {
    **dict.fromkeys(BACKENDS, OURS),
    "torch_compiled": ("step",),
    "peer": ("step", "forward"),
}
ADAM_BYTES = 28  # a parameter: reads it, its gradient and two moments, writes all but the gradient


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_backends(parser)
    parser.add_argument(
        "--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES), help="default: all"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--budget",
        type=float,
        default=4.2e6,
        help="trainable parameters to come nearest to (default: %(default)g)",
    )
    size.add_argument("--channels", type=int, help="of the hidden layers, instead of a budget")
    parser.add_argument(
        "--batch-sizes",
        type=int,
        nargs="+",
        default=[64, 256, 1024],
        help="poses a step (default: %(default)s)",
    )
    for name, default, text in (
        ("rounds", 5, "of which the median counts"),
        ("steps", 4, "timed together in a round"),
        ("train-steps", 0, "of an epoch of train(); 0 leaves it out"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default: %(default)s)"
        )
    parser.add_argument(
        "--jit-compile", action="store_true", help="also PyTorch with its step compiled"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of ours; default: %(default)s"
    )
    parser.add_argument("--peer", type=Path, help="folder of a checkout of Any-GCN")
    parser.add_argument("--output", type=Path, help="CSV to write")
    return parser.parse_args(argv)


class Worker:
    """A process that times what it is told to."""

    def __init__(self, name: str, options: argparse.Namespace):
        self.measures = MEASURES[name]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment["KERAS_BACKEND"] = name if name in BACKENDS else "torch"
        # To compile shall take what it takes a user for the first time.
        environment["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        script = Path(__file__).with_name("benchmark_worker.py")
        with_what = options.peer.resolve() if name == "peer" else options.precision
        command = [sys.executable, str(script), name, str(options.steps), str(with_what)]
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, **question) -> dict:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        if (status := self.process.wait()) < 0:
            return {"error": f"killed by signal {-status}, as where memory runs out"}
        raise InputError(
            f"`--backends` must be able to run. Received: a worker that ended with {question}"
        )

    def close(self) -> None:
        self.process.communicate()

    def time(self) -> dict[str, float]:
        # Threads of the worker before may spin for a while on the cores that this one needs.
        time.sleep(0.3)
        return {k: v for name in self.measures for k, v in self.ask(measure=name).items()}


def cases(options: argparse.Namespace) -> list[dict]:
    """What is to be timed; refuses what cannot be before a process is started."""
    for name in ("rounds", "steps"):
        check_integer(name, getattr(options, name), least=1)
    check_integer("train_steps", options.train_steps, least=0)
    if options.jit_compile:
        if importlib.util.find_spec("torch") is None:
            raise InputError(
                "`jit_compile` must be False without torch. Received: jit_compile=True"
            )
        check_jit_compile(options.precision)
    if options.peer and not (options.peer / "models" / "any_gcn.py").is_file():
        raise InputError(
            "`peer` must be the folder of a checkout of Any-GCN, with models/any_gcn.py. "
            f"Received: peer={str(options.peer)!r}"
        )
    found = []
    for batch in options.batch_sizes:
        check_integer("batch_sizes", batch, least=1)
        for scheme in options.schemes:
            channels = options.channels
            if channels is None:
                channels = solve_channels(scheme, options.budget)
            TrainConfig(scheme=scheme, channels=channels, batch_size=batch)
            found.append({"scheme": scheme, "channels": channels, "batch": batch})
    return found


def measure(wanted: list[dict], options: argparse.Namespace) -> Iterator[list[dict]]:
    """Rows of one case after another."""
    also = {"torch_compiled": options.jit_compile, "peer": options.peer}
    names = [*options.backends, *(name for name, asked in also.items() if asked)]
    for case in wanted:
        # New ones: what a process keeps of another case would count as memory of this one. And one
        # after another, so that none compiles while others are still importing.
        workers, about = {}, {}
        for name in names:
            workers[name] = Worker(name, options)
            about[name] = workers[name].ask(**case)
        rounds: dict[str, list[dict]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name, worker in workers.items():
                if "error" not in about[name]:
                    rounds[name].append(worker.time())
                    if error := rounds[name][-1].get("error"):  # such as too little memory
                        about[name]["error"] = error
        size, rows = sizes(case["scheme"], case["channels"]), []
        for name, facts in about.items():
            times = [] if "error" in facts else rounds[name]
            medians = {k: statistics.median(t[k] for t in times) for k in (times or [{}])[0]}
            if options.train_steps and times and name != "peer":
                medians |= workers[name].ask(measure="train", steps=options.train_steps)
            precision = "float32" if name == "peer" else options.precision
            rows.append({**case, "runs": name, "precision": precision, **size, **medians, **facts})
            workers[name].close()
        yield rows


def sizes(scheme: str, channels: int) -> dict[str, float]:
    params = count_params(scheme, channels)
    return {
        "params": params,
        "forward_mflop_per_pose": count_flops(scheme, channels) / 1e6,
        "adam_mb": ADAM_BYTES * params / 1e6,
    }


def say(rows: list[dict]) -> None:
    times = ", ".join(f"{row['runs']} {row.get('step_ms', float('nan')):.1f}" for row in rows)
    print(
        f"  {rows[0]['scheme']} batch {rows[0]['batch']}: {times} ms", file=sys.stderr, flush=True
    )


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds a step, and how the best of the backends compares with limit and peer."""
    index = ["batch", "scheme", "channels"]
    steps = frame.pivot_table("step_ms", index, "runs", sort=False)
    limit = frame.groupby(index, sort=False)["products_ms"].min()
    ours = steps.drop(columns="peer", errors="ignore")
    steps.insert(0, "products alone", limit)
    steps["share of their rate"] = limit / ours.min(axis=1)
    if "peer" in steps:
        steps["peer / best"] = steps["peer"] / ours.min(axis=1)
        steps["peer / slowest"] = steps["peer"] / ours.max(axis=1)
    return steps.round(2)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    rows = []
    for of_case in measure(cases(options), options):
        say(of_case)
        rows += of_case
        frame = pd.DataFrame(rows).round(3)
        if options.output:  # what comes may take hours, or fail
            write_text(options.output, frame.to_csv(index=False))
    print(f"\nOne training step, ms; medians of {options.rounds}\n")
    print(table(frame).to_string())


if __name__ == "__main__":
    sys.exit(run(main))

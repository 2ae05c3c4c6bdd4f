"""The processes that work on a study side by side, each on its share of the cores."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_wsgcn.errors import InputError
from keras_wsgcn.studies import liveness

_POLL_SECONDS = 0.1
RENEW = 75  # the status of a worker that another is to follow
_REFUSED = 2  # that of one which met what every other would meet as well


def supervise(
    function: str,
    task: Mapping[str, Any],
    workers: int,
    on_death: Callable[[str], bool] = lambda name: False,
) -> None:
    """Starts workers and waits for them. Ctrl-C reaches them through this process only.

    Args:
        function: what a worker does, `module:function`; it reads its task from stdin, and returns
            the status of its process.
        task: what JSON can hold. To it are added `parent`, the life of this process, and the file
            of `refused`.
        workers: how many.
        on_death: called with the name of the signal that ended a worker; says whether a trial was
            cut off. If so, another follows the last worker. While others are left none follows:
            they may need the memory.

    Raises:
        InputError, OSError: what a worker was refused; the others have ended then.
    """
    with tempfile.TemporaryDirectory() as notes:
        note = Path(notes) / "refused.json"
        # Not its number: on Windows a virtual environment's Python is a child of what was started.
        task = {**task, "parent": liveness.own_life(), "note": str(note)}
        processes = dict(enumerate(_start(function, task, n, workers) for n in range(workers)))
        try:
            while processes:
                for number, process in list(processes.items()):
                    status = process.poll()
                    if status is None:
                        continue
                    del processes[number]
                    if status == _REFUSED:
                        _stop(processes.values())
                        processes.clear()
                        break
                    died = not 0 <= status <= 255  # Windows has no signals: 0xC0000005 and the like
                    if died:
                        names = {number.value: number.name for number in signal.Signals}
                        unnamed = f"signal {-status}" if status < 0 else f"status {status:#x}"
                        name = names.get(-status, unnamed)
                        print(f"worker {number + 1} was ended by {name}", file=sys.stderr)
                    if status == RENEW or (died and on_death(name) and not processes):
                        processes[number] = _start(function, task, number, workers)
                time.sleep(_POLL_SECONDS)
        except BaseException:
            _stop(processes.values())
            raise
        if note.exists():
            kind, message = json.loads(note.read_text(encoding="utf-8"))
            raise {"OSError": OSError}.get(kind, InputError)(message)


def refused(task: Mapping[str, Any], error: Exception) -> int:
    """Leaves the error of a worker for `supervise` to raise, and returns the worker's status."""
    kind = "OSError" if isinstance(error, OSError) else "InputError"
    try:
        with open(task["note"], "x", encoding="utf-8") as note:
            json.dump([kind, str(error)], note)
    except FileExistsError:
        pass  # another has met it, too
    except OSError:  # there is no place left at all
        print(f"error: {error}", file=sys.stderr)
    return _REFUSED


def _stop(processes: Iterable[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()  # not SIGINT: what a shell starts in the background ignores it
    for process in processes:
        process.wait()


def _start(function: str, task: Mapping[str, Any], number: int, workers: int) -> subprocess.Popen:
    module, name = function.split(":")
    cores = _cores_of(number, workers)
    environment = {
        # Workers that share an accelerator take of its memory what they need, not all of it.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        **os.environ,
        "OMP_NUM_THREADS": str(len(cores)),
    }
    # All backends size their thread pools by the cores that they may use. Set here and inherited,
    # it holds from the worker's first import on.
    with _on_cores(cores):
        process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; from {module} import {name}; sys.exit({name}())"],
            env=environment,
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps(task))
    process.stdin.close()
    return process


def _cores_of(number: int, workers: int) -> list[int]:
    if not hasattr(os, "sched_getaffinity"):
        return list(range(max(1, (os.cpu_count() or 1) // workers)))
    cores = sorted(os.sched_getaffinity(0))
    return cores[number::workers] or [cores[number % len(cores)]]


@contextlib.contextmanager
def _on_cores(cores: list[int]) -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):  # not on macOS and Windows
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)

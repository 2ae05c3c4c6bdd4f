"""Runs readers on rubbish, watched: what they raise, write and start, how long and how much.

    python tests/fuzz_guard.py READER COUNT [SEED]

prints what was found as JSON, with one example of each kind of leak.
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz_readers import READERS, Reader
from fuzzing import CANARY, FOLDER

from keras_wsgcn.errors import InputError

SECONDS = 10.0  # for one input
MAX_GROWTH = 1 << 30  # bytes
MAX_MESSAGE = 5000  # characters

# Events of Python's own audit that a reader has no business with.
_NEVER = {
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect",
    "pickle.find_class", "ctypes.dlopen", "os.chmod", "os.chown",
}  # fmt: skip
# And those that it may cause below its folder only: the paths among their arguments.
_PATHS = {
    "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2,
    "os.truncate": 1, "shutil.rmtree": 1, "sqlite3.connect": 1,
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Hang(BaseException):
    """An input takes too long. No `except Exception` catches it."""


class _Watch:
    """What happens outside `root` while it is set."""

    def __init__(self):
        self.root: str | None = None
        self.seen: list[str] = []
        self.installed = False

    def install(self) -> None:
        if not self.installed:  # an audit hook stays for good
            sys.addaudithook(self)
            self.installed = True

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.root is None:
            return
        if event in _NEVER:
            self.seen.append(f"{event}{arguments!r}"[:300])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            self._check(event, arguments[:1])
        elif event in _PATHS:
            self._check(event, arguments[: _PATHS[event]])

    def _check(self, event: str, paths: tuple[Any, ...]) -> None:
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                text = os.path.abspath(os.fsdecode(path))
                # conftest.py says where JAX keeps what it compiles.
                cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.devnull)
                inside = text.startswith((f"{self.root}{os.sep}", f"{cache}{os.sep}"))
                if not inside and text not in (cache, os.devnull):
                    self.seen.append(f"{event} {text}"[:300])


_WATCH = _Watch()


@contextlib.contextmanager
def guarded(root: Path) -> Iterator[_Watch]:
    """Within `root` as the current and the temporary folder, everything outside being watched."""
    _WATCH.install()
    before = os.getcwd(), tempfile.tempdir, sys.dont_write_bytecode
    os.chdir(root)
    tempfile.tempdir, sys.dont_write_bytecode = str(root), True
    _WATCH.seen = []

    def stop(*_: Any) -> None:
        raise Hang(f"more than {SECONDS:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield _WATCH
    finally:
        signal.signal(signal.SIGALRM, handler)
        os.chdir(before[0])
        tempfile.tempdir, sys.dont_write_bytecode = before[1:]


@dataclass
class Tally:
    """What became of the inputs; `leaks` are neither accepted nor refused as they should be."""

    reader: str
    accepted: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    growth_bytes: int = 0
    seconds: float = 0.0
    leaks: dict[str, str] = field(default_factory=dict)


def run(reader: Reader, count: int, root: Path, seed: int = 0) -> Tally:
    """Feeds a reader `count` inputs, each a function of (reader, seed, number)."""
    tally, began = Tally(reader.name), time.perf_counter()
    root = root.resolve()
    with guarded(root) as watch:
        seeds = reader.seeds(root)
        # What is loaded late is loaded now.
        valid = [outcome(reader, case, root, watch) for case in seeds]
        assert any(accepted and not leak for accepted, leak in valid), valid
        before = _most_bytes()
        for number in range(count):
            rng = random.Random(f"{reader.name} {seed} {number}")
            case = reader.mutate(rng, rng.choice(seeds), rng.choice(seeds))
            start = time.perf_counter()
            accepted, leak = outcome(reader, case, root, watch)
            tally.slowest_s = max(tally.slowest_s, time.perf_counter() - start)
            if leak:
                tally.leaks.setdefault(_kind(leak), f"input {number} of seed {seed}: {leak}")
            elif accepted:
                tally.accepted += 1
            else:
                tally.refused += 1
    tally.growth_bytes = _most_bytes() - before
    tally.seconds = time.perf_counter() - began
    return tally


def outcome(reader: Reader, case: Any, root: Path, watch: _Watch) -> tuple[bool, str]:
    """Whether a reader accepts an input, and what is wrong with how it does so."""
    folder = root / FOLDER
    names = reader.write(folder, case)
    present = set(os.listdir(root))
    accepted, leak = False, ""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        watch.root = str(root)
        reader.read(folder if names else case)
        accepted = True
    except reader.refusal as error:
        leak = _unclear(str(error), names) if isinstance(error, InputError) else ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        leak = "".join(traceback.format_exception(error)[-8:])[-4000:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watch.root = None
    if watch.seen or CANARY in os.listdir(root):
        leak, watch.seen = f"it did {watch.seen[:5] or 'run code'}", []
    left = set(os.listdir(root)) - present - {CANARY, FOLDER}
    if left:
        leak = leak or f"it left {sorted(left)[:5]}"
    for name in left | {CANARY, FOLDER}:
        shutil.rmtree(root / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            (root / name).unlink()
    return accepted, leak


def _unclear(message: str, names: list[str]) -> str:
    """What an error's message lacks: the file, the field in backticks, what was received."""
    if names and not any(name in message for name in names):
        return f"message names no file of {names}: {message[:500]}"
    if not re.search(r"`[^`]+`", message) or "Received" not in message:
        return f"message of another form: {message[:500]}"
    if len(message) > MAX_MESSAGE:
        return f"message of {len(message)} characters: {message[:200]}"
    return ""


def _kind(leak: str) -> str:
    """What tells leaks apart: the last line of the library, and the exception's type."""
    lines = [line for line in leak.splitlines() if "keras_wsgcn/" in line and "line " in line]
    last = (leak.strip().splitlines() or [""])[-1]
    return f"{lines[-1].strip() if lines else ''} {re.split(r'[:(]', last)[0][:80]}"


def _most_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(name: str, count: str, seed: str = "0") -> None:
    with tempfile.TemporaryDirectory() as folder:
        tally = run(READERS[name], int(count), Path(folder), int(seed))
    print(json.dumps(vars(tally)))


if __name__ == "__main__":
    main(*sys.argv[1:])

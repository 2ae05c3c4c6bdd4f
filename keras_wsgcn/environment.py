"""What a run ran on: versions, backend, device, and the commit of a checkout."""

import functools
import importlib
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np


def command_line(words: Sequence[str]) -> str:
    """Words as a line for this system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def environment() -> dict[str, str]:
    """What a run ran on: versions, backend, device and processor; in a checkout, its commit."""
    import platform

    from keras_wsgcn import __version__

    backend = keras.backend.backend()
    found = {
        "keras_wsgcn": __version__,
        "keras": keras.__version__,
        "backend": backend,
        backend: importlib.import_module(backend).__version__,
        "numpy": np.__version__,
        "device": _device(),
        "python": platform.python_version(),
        "machine": f"{processor() or platform.machine()}, {os.cpu_count()} cores",
    }
    commit = _commit()
    return {**found, "commit": commit} if commit else found


@functools.cache
def _commit() -> str | None:
    """The commit that the library is a checkout of, with `+` where its files were changed."""
    package = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # installed is not checked out
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def processor() -> str | None:
    """What the processor calls itself, where the system tells (Linux)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^model name\s*:\s*(\S.*)$", text, flags=re.MULTILINE)
    return found and found[1].strip()


def _device() -> str:
    if keras.backend.backend() == "torch":
        import torch

        device = keras.ops.convert_to_tensor(0.0).device  # where Keras computes, be there a GPU
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return ", ".join(keras.distribution.list_devices())

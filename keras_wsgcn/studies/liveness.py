"""Whether a process of this machine still lives, told by a lock that it holds for its lifetime.

A heartbeat tells it of any machine, but only after a minute. What names a process here is a lock
file in the user's own folder for temporary files; a folder of the same contents is the same
machine, or another container with the same files, where locks work as well.
"""

import atexit
import functools
import getpass
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import filelock

from keras_wsgcn.files import write_text


@functools.cache
def own_life() -> dict[str, str]:
    """What tells this process from all others; the first call starts to hold its lock."""
    name = f"{uuid.uuid4().hex}.lock"
    path = _folder() / name
    lock = filelock.FileLock(path)
    lock.acquire()

    def end() -> None:
        lock.release()
        path.unlink(missing_ok=True)

    atexit.register(end)
    return {"place": _place(), "lock": name}


def is_dead(life: Any) -> bool:
    """Whether a process has certainly ended; of another machine that cannot be said.

    Args:
        life: what `own_life` gave in that process.
    """
    if not isinstance(life, dict) or life.get("place") != _place():
        return False
    path = _folder() / Path(str(life.get("lock"))).name
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    lock.release()
    path.unlink(missing_ok=True)
    return True


def _folder() -> Path:
    # In a container a user may have a number only.
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(tempfile.gettempdir()) / f"keras_wsgcn-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@functools.cache
def _place() -> str:
    """The name of this machine's folder, made up when the folder is new."""
    path = _folder() / "place"
    with filelock.FileLock(path.with_suffix(".lock")):
        if not path.exists():
            write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")

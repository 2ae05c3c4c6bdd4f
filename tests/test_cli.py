"""What becomes of an interrupt, and of the errors of a thread that serves a storage."""

import subprocess
import sys
import threading

import optuna
import pytest
import sqlalchemy
from testing import ROOT

from keras_wsgcn.studies.outages import writing

pytestmark = pytest.mark.plain

DROPPED = """
import signal
import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored

class Callback:
    def __del__(self):  # Python drops what is raised here
        raise KeyboardInterrupt

def command(argv):
    Callback()
    for _ in range(10**8):
        pass

raise SystemExit(cli.run(command))
"""


def test_an_interrupt_that_python_would_drop_comes_again():
    done = subprocess.run(
        [sys.executable, "-c", DROPPED], cwd=ROOT / "scripts", capture_output=True, text=True
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def error_of_storage():
    try:
        raise sqlalchemy.exc.OperationalError("UPDATE", {}, Exception("disk is full"))
    except sqlalchemy.exc.OperationalError as error:
        raise optuna.exceptions.StorageInternalError from error


def other_error():
    raise ValueError


@pytest.mark.parametrize(("target", "shown"), [(error_of_storage, 0), (other_error, 1)])
def test_only_the_storage_speaks_of_its_errors(target, shown, monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    before = threading.excepthook
    with writing("study.sqlite3"):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert len(seen) == shown
    assert threading.excepthook == before


def test_a_storage_that_cannot_be_written_is_an_oserror():
    with pytest.raises(OSError, match=r"study\.sqlite3: .*disk is full"), writing("study.sqlite3"):
        error_of_storage()

"""Workers as processes: here they only pretend to work."""

import time
from types import SimpleNamespace

import pytest

from keras_wsgcn.errors import InputError
from keras_wsgcn.studies import processes
from keras_wsgcn.studies.processes import supervise

pytestmark = pytest.mark.plain

WORKERS = """
import json, os, signal, sys, time

def share():
    with open(json.load(sys.stdin)["marks"], "a+") as marks:
        marks.write("x")
        marks.seek(0)
        return 75 * (len(marks.read()) < 3)

def be_killed():
    with open(json.load(sys.stdin)["marks"], "a") as marks:
        marks.write("x")
    os.kill(os.getpid(), signal.SIGKILL)

def meet_an_error():
    from keras_wsgcn.studies.processes import refused  # here, for it takes seconds
    task = json.load(sys.stdin)
    try:
        with open(task["marks"], "x"):
            time.sleep(60)  # at work until it is told to stop
    except FileExistsError:
        return refused(task, {"disk": OSError, "data": ValueError}[task["what"]]("no place"))
"""


@pytest.fixture
def marks(tmp_path, monkeypatch):
    (tmp_path / "pretended.py").write_text(WORKERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("KERAS_BACKEND", "numpy")  # the quickest to start; nothing is computed
    return tmp_path / "marks"


def test_a_worker_that_did_its_share_is_followed_by_another(marks):
    supervise("pretended:share", {"marks": str(marks)}, 1)
    assert marks.read_text() == "xxx"


@pytest.mark.parametrize(("what", "error"), [("disk", OSError), ("data", InputError)])
def test_what_a_worker_is_refused_ends_the_others_and_is_raised(what, error, marks):
    began = time.monotonic()
    with pytest.raises(error, match="no place"):
        supervise("pretended:meet_an_error", {"marks": str(marks), "what": what}, 2)
    assert time.monotonic() - began < 50


@pytest.mark.parametrize("workers", [1, 2])
def test_the_last_worker_that_a_trial_kills_is_followed_by_another(workers, marks, capsys):
    cut_off = iter([True, True, False])
    deaths = []
    supervise(
        "pretended:be_killed",
        {"marks": str(marks)},
        workers,
        lambda name: deaths.append(name) or next(cut_off),
    )
    assert deaths == ["SIGKILL"] * 3
    assert len(marks.read_text()) == 3
    assert capsys.readouterr().err.count("was ended by SIGKILL") == 3


def test_a_worker_that_windows_ended_is_followed_by_another(monkeypatch, capsys):
    statuses = iter([0xC0000005, 0])
    ended = SimpleNamespace(poll=lambda: next(statuses))
    monkeypatch.setattr(processes, "_start", lambda *task: ended)
    deaths = []
    supervise("pretended:share", {}, 1, lambda name: deaths.append(name) or True)
    assert deaths == ["status 0xc0000005"]
    assert "worker 1 was ended by status 0xc0000005" in capsys.readouterr().err

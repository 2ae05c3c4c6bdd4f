"""Studies whose processes are killed and interrupted, on SQLite: nothing is lost or done twice."""

import contextlib
import functools
import os
import re
import signal
import sqlite3
import time

import cli

import numpy as np
import pytest
import run_study
import sqlalchemy
import study_processes as processes
from optuna.trial import TrialState
from study_processes import EPOCHS, FIXED, HEADER, SLOTS

from keras_wsgcn.studies import storage as storages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not processes.LINUX, reason="watches processes through /proc"),
]

# With three startup trials, the sampler learns from the fourth on.
SEARCH = f"""
{HEADER}
[[grid]]
scheme = ["pre_agg"]

[search]
trials = 5

[search.space]
learning_rate = {{ low = 1e-4, high = 1e-1, log = true }}
"""


@pytest.fixture
def start(tmp_path):
    with processes.starter(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return processes.undisturbed(tmp_path_factory.getbasetemp())


def storage_in(folder, name="tiny"):
    return folder / name / "study.sqlite3"


def assert_as_undisturbed(folder, undisturbed):
    processes.assert_settled_once(storage_in(folder), SLOTS)
    processes.assert_same_runs(folder, as_in=undisturbed)
    expected = processes.metrics_of(storage_in(undisturbed))
    assert processes.metrics_of(storage_in(folder)) == expected


# --- killed -------------------------------------------------------------------------------------


def wait_for_start(command, rng):
    """To within a moment of the making of the storage, or while it is opened."""
    command.until((command.folder / "tiny").exists, "a storage")
    time.sleep(rng.uniform(0, 0.5))


def wait_for_epoch(command, rng):
    """To within an epoch's time after an epoch."""
    before = processes.histories(command.folder)
    after = command.until(lambda: new_rows(before, processes.histories(command.folder)), "an epoch")
    time.sleep(rng.uniform(0, after[-1]["seconds"]))


def wait_for_claim(command, rng):
    """To within a moment of the end of a trial, when the next one is claimed."""
    command.until(lambda: re.search(r"\[\d+/\d+\]", command.output), "the end of a trial")
    time.sleep(rng.uniform(0, 0.1))


def new_rows(before, after):
    return [row for run, rows in after.items() for row in rows[len(before.get(run, [])) :]]


def test_a_command_killed_again_and_again_ends_as_an_undisturbed_one(start, tmp_path, undisturbed):
    rng = np.random.default_rng(0)
    moments = (wait_for_start, wait_for_epoch, wait_for_claim, wait_for_epoch) + (
        wait_for_claim, wait_for_epoch,
    )  # fmt: skip
    kept = []
    for wait in moments:
        command = start(FIXED, tmp_path)
        wait(command, rng)
        command.kill()
        kept.append(processes.histories(tmp_path))
    start(FIXED, tmp_path).finish()
    # A process trains one epoch at a time: if no finished one was trained again, then each kill
    # has cost one at most.
    for before in kept:
        processes.assert_kept(before, tmp_path)
    assert_as_undisturbed(tmp_path, undisturbed)


# Between two steps that belong together. Each is the n-th call of a function.
TAKEN = ("optuna.storages", "RDBStorage.record_heartbeat", 1)
TRAINED = ("optuna.study._optimize", "_tell_with_warning", 1)
WORST = {
    "taken, without a heartbeat": TAKEN,
    "trained, without a result": TRAINED,
    "the best model saved, not the last": ("keras_wsgcn.training", "save_model", 2),
    "the last epoch saved, not the history": ("keras_wsgcn.training", "write_text", EPOCHS),
}


def test_killed_at_the_worst_moments(start, tmp_path, undisturbed):
    """Four studies, one for each moment and slot; together they have the undisturbed one's runs."""
    specs = {}
    for slot, (moment, place) in zip(SLOTS, WORST.items(), strict=True):
        scheme, seed = re.fullmatch(r"(\w+) seed=(\d)", slot).groups()
        name = re.sub(r"\W+", "_", moment)
        text = f'seeds = [{seed}]\n{HEADER}\n[[grid]]\nscheme = ["{scheme}"]\n'
        command = start({name: text}, tmp_path, signal_at=(signal.SIGKILL, *place))
        assert command.wait() == -signal.SIGKILL, moment
        trials = processes.trials_of(storage_in(tmp_path, name), name)
        assert [trial.state for trial in trials] == [TrialState.RUNNING], moment
        specs[name] = text
    start(specs, tmp_path).finish()
    for slot, name in zip(SLOTS, specs, strict=True):
        processes.assert_settled_once(storage_in(tmp_path, name), [slot], name)
    processes.assert_same_runs(tmp_path, as_in=undisturbed)


def test_a_killed_worker_is_noticed_by_the_other(start, tmp_path, undisturbed):
    command = start(FIXED, tmp_path, cores=(0, 1))
    victim = command.wait_for_workers(2)[0]
    run = command.pause_in_trial(victim)
    os.kill(victim, signal.SIGKILL)
    kept = processes.histories(tmp_path)
    command.finish()
    assert re.search(r"worker [12] was ended by SIGKILL", command.errors)
    assert not command.tracebacks
    processes.assert_kept(kept, tmp_path)
    assert_as_undisturbed(tmp_path, undisturbed)
    trials = [t for t in processes.trials_of(storage_in(tmp_path)) if t.user_attrs["folder"] == run]
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].params == trials[1].params
    assert trials[1].system_attrs["retry_history"] == [trials[0].number]


def test_workers_end_when_the_command_is_killed(start, tmp_path, undisturbed):
    command = start(FIXED, tmp_path, cores=(0, 1))
    workers = command.wait_for_workers(2)
    command.until_in_trials(workers)
    command.kill()
    processes.wait_until(lambda: not any(map(processes.is_alive, workers)), "the workers' end")
    kept = processes.histories(tmp_path)
    start(FIXED, tmp_path, cores=(0, 1)).finish()
    processes.assert_kept(kept, tmp_path)
    assert_as_undisturbed(tmp_path, undisturbed)


# --- interrupted --------------------------------------------------------------------------------


@pytest.mark.parametrize("cores", [(0,), (0, 1)], ids=["one worker", "two workers"])
def test_a_signal_ends_a_command_tidily(start, tmp_path, undisturbed, cores):
    for number in (signal.SIGINT, signal.SIGTERM):
        command = start(FIXED, tmp_path, cores=cores, deaf=number == signal.SIGTERM)
        workers = command.wait_for_workers(2) if len(cores) > 1 else []
        command.until_in_trials(workers or [command.pid])
        command.send(number)
        assert command.wait() == 130
        assert not command.tracebacks
        assert not any(map(processes.is_alive, workers))
        processes.assert_none_runs(storage_in(tmp_path))
    kept = processes.histories(tmp_path)
    start(FIXED, tmp_path, cores=cores).finish()
    processes.assert_kept(kept, tmp_path)
    assert_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.parametrize("place", [TAKEN, TRAINED], ids=["taken", "trained"])
def test_a_signal_while_the_storage_is_told_of_a_trial_loses_nothing(
    start, tmp_path, undisturbed, place
):
    """Optuna does not expect it in these milliseconds: only what is stored counts then."""
    command = start(FIXED, tmp_path, signal_at=(signal.SIGINT, *place))
    assert command.wait() != 0
    start(FIXED, tmp_path).finish()
    assert_as_undisturbed(tmp_path, undisturbed)


def test_a_signal_while_workers_start(start, tmp_path):
    command = start(FIXED, tmp_path, cores=(0, 1))
    workers = command.wait_for_workers(2)
    command.send(signal.SIGINT)
    assert command.wait() == 130
    assert not command.tracebacks
    assert not any(map(processes.is_alive, workers))


# --- together -----------------------------------------------------------------------------------


def test_two_commands_share_a_study(start, tmp_path, undisturbed):
    """As two machines do: each has a folder of its own."""
    storage = tmp_path / "shared.sqlite3"
    folders = tmp_path / "a", tmp_path / "b"
    commands = [
        start(FIXED, folder, "--storage", str(storage), cores=(core,))
        for core, folder in enumerate(folders)
    ]
    for command in commands:
        command.finish()
    assert len(processes.trials_of(storage)) == len(SLOTS)
    processes.assert_settled_once(storage, SLOTS)
    assert sum(len(processes.histories(folder)) for folder in folders) == len(SLOTS)
    processes.assert_same_runs(*folders, as_in=undisturbed)
    assert processes.metrics_of(storage) == processes.metrics_of(storage_in(undisturbed))


def is_printed(words, command):
    return words in command.output


def test_a_killed_search_goes_on_with_the_same_parameters(start, tmp_path, tmp_path_factory):
    plain = processes.undisturbed(tmp_path_factory.getbasetemp(), SEARCH)
    # The last in the third trial: the fourth, taken first, would have too few to learn from. The
    # heartbeat is slow, so that the next command is there before it takes the trial for dead.
    for line in ("", "[2/5]"):
        command = start(SEARCH, tmp_path, "--heartbeat", "5")
        command.until(functools.partial(is_printed, line, command), f"a line with {line}")
        command.pause_in_trial(command.pid)
        command.kill()
    start(SEARCH, tmp_path, "--heartbeat", "5").finish()

    def results(folder):
        trials = processes.trials_of(storage_in(folder), "tiny: pre_agg")
        ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        return sorted((t.user_attrs["slot"], t.state, t.params, t.value) for t in ended)

    names = [str(number) for number in range(1, 6)]
    processes.assert_settled_once(storage_in(tmp_path), names, "tiny: pre_agg")
    assert results(tmp_path) == results(plain)


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    processes.assert_lock_is_released(tmp_path / "a.sqlite3")


# --- the storage --------------------------------------------------------------------------------


def test_the_making_of_a_storage_may_fail_at_any_statement(tmp_path):
    """SQLite keeps what was made before: were that found later, parts would stay missing."""

    class StopError(BaseException):
        pass

    complete = schema_of(made(tmp_path / "whole"))
    statements = 0

    def stop(*_):
        nonlocal statements
        statements += 1
        if statements == stop_at:
            raise StopError

    for stop_at in range(1, 1000):
        path, statements = tmp_path / f"{stop_at}" / "a.sqlite3", 0
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", stop)
        try:
            with contextlib.suppress(StopError):
                storages.open_storage(path)
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", stop)
        assert schema_of(made(path)) == complete, f"stopped at statement {stop_at}"
        if statements < stop_at:
            break
    assert stop_at > 20  # so many statements were tried


def made(path):
    storages.open_storage(path).engine.dispose()
    return path


def schema_of(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2"
        ).fetchall()


def run_command(tmp_path, text, storage, *options):
    spec = tmp_path / "tiny.toml"
    spec.write_text(text)
    arguments = [str(spec), "--folder", str(tmp_path / "runs"), "--storage", str(storage)]
    return cli.run(run_study.main, [*arguments, *options])


def test_a_file_that_is_no_database_is_refused(tmp_path, capsys):
    storage = tmp_path / "notes.txt"
    storage.write_text("These are notes, and no database at all.\n" * 50)
    before = storage.read_bytes()
    assert run_command(tmp_path, FIXED, storage) == 2
    assert storage.read_bytes() == before
    assert re.fullmatch(r"error: `storage` must be .*\n", capsys.readouterr().err)


def test_a_database_of_something_else_is_refused(tmp_path, capsys):
    storage = tmp_path / "shop.sqlite3"
    with contextlib.closing(sqlite3.connect(storage)) as connection:
        connection.execute("CREATE TABLE goods (name TEXT)")
        connection.commit()
    before = storage.read_bytes()
    assert run_command(tmp_path, FIXED, storage) == 2
    assert storage.read_bytes() == before
    assert re.fullmatch(r"error: `storage` must be .*\n", capsys.readouterr().err)


def test_other_settings_under_the_same_name_are_refused(tmp_path, capsys, undisturbed):
    storage = storage_in(undisturbed)
    before = processes.trials_of(storage)
    assert run_command(tmp_path, FIXED, storage, "--dropout", "0.5", "--seeds", "0", "7") == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: `name` must be new .*config\.dropout.*\n", err)
    assert processes.trials_of(storage) == before

"""Studies on PostgreSQL: a server of the test's own, shared by several commands."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import uuid
from pathlib import Path

import cli

import pytest
import run_study
import study_processes as processes
from study_processes import FIXED, SLOTS

psycopg = pytest.importorskip("psycopg")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not processes.LINUX, reason="watches processes through /proc"),
]


def find_programs():
    """The folder of `initdb` and `pg_ctl`, the newest version; Debian keeps it out of PATH."""
    if found := shutil.which("pg_ctl"):
        return Path(found).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")
    newest = max(installed, key=lambda path: float(path.parts[-3]), default=None)
    return newest and newest.parent


@pytest.fixture(scope="module")
def server():
    """The folder of the socket on which a server listens; nothing else reaches it."""
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL here")
    user = None
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        user = "postgres"
        if user not in {entry.pw_name for entry in pwd.getpwall()}:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    # Not below pytest's folder, which other users cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if user:
        shutil.chown(folder, user)

    def run(name, *arguments):
        # The server inherits the output, so that a pipe would stay open.
        with open(folder.with_suffix(".log"), "ab") as log:
            subprocess.run(
                [programs / name, "-D", folder / "data", *arguments],
                user=user, cwd="/", stdout=log, stderr=log, check=True, timeout=processes.LIMIT,
            )  # fmt: skip

    try:
        run("initdb", "--auth=trust", "--username=postgres", "--no-sync")
        options = f"-F -k {folder} -c listen_addresses=''"
        run("pg_ctl", "start", "-w", "-t", str(processes.LIMIT), "-o", options)
        try:
            yield folder
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate")
    finally:
        shutil.rmtree(folder)
        folder.with_suffix(".log").unlink()


@pytest.fixture
def database(server):
    """The URL of an empty database."""
    name = f"studies_{uuid.uuid4().hex}"
    with psycopg.connect(f"host={server} user=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql+psycopg://postgres@/{name}?host={server}"


@pytest.fixture
def start(tmp_path):
    with processes.starter(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return processes.undisturbed(tmp_path_factory.getbasetemp())


def advisory_locks(database):
    with psycopg.connect(database.replace("+psycopg", "")) as connection:
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        return connection.execute(query).fetchone()[0]


def test_two_commands_share_a_database_though_a_worker_is_killed(
    start, tmp_path, database, undisturbed
):
    """Both start at once on an empty database: three workers, in two folders."""
    folders = tmp_path / "a", tmp_path / "b"
    commands = [
        start(FIXED, folder, "--storage", database, cores=cores)
        for folder, cores in zip(folders, [(0, 1), (0,)], strict=True)
    ]
    victim = commands[0].wait_for_workers(2)[1]
    run = commands[0].pause_in_trial(victim)
    os.kill(victim, signal.SIGKILL)
    kept = processes.histories(folders[0])
    for command in commands:
        command.finish()
        assert not command.tracebacks
    assert "was ended by SIGKILL" in commands[0].errors
    assert len(processes.trials_of(database)) == len(SLOTS) + 1
    processes.assert_settled_once(database, SLOTS)
    assert processes.metrics_of(database) == processes.metrics_of(
        undisturbed / "tiny" / "study.sqlite3"
    )
    # The trial may have gone on in the other folder, from its beginning.
    del kept[run]
    for folder in folders:
        after = processes.histories(folder)
        processes.assert_kept({name: kept[name] for name in kept if name in after}, folder)
    assert advisory_locks(database) == 0


def test_the_lock_of_a_killed_process_is_free(database):
    processes.assert_lock_is_released(database)
    assert advisory_locks(database) == 0


def test_a_server_that_cannot_be_reached_is_one_clear_line(tmp_path, capsys):
    spec = tmp_path / "tiny.toml"
    spec.write_text(FIXED)
    url = "postgresql+psycopg://reader:open-sesame@127.0.0.1:1/studies"
    arguments = [str(spec), "--folder", str(tmp_path / "runs"), "--storage", url]
    assert cli.run(run_study.main, arguments) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: `storage` must be .*127\.0\.0\.1.*\n", err)
    assert "open-sesame" not in err

"""Where trials live: an Optuna storage, and the slots that give each trial out exactly once.

Every trial that a study wants is a *slot*. A slot is settled when a trial of it ended by itself,
and open when none is waiting, running or settled: then, and only then, a trial is put in the
queue. Whoever fills slots or takes trials holds the storage's lock: any number of processes may.
"""

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from keras_wsgcn.data.sources import archive_digest
from keras_wsgcn.errors import InputError, check_integer, first_line
from keras_wsgcn.files import atomic_path
from keras_wsgcn.studies import liveness
from keras_wsgcn.studies.outages import reading, without_password
from keras_wsgcn.studies.spec import start_differences

# A process that is killed is noticed after GRACE times the heartbeat.
HEARTBEAT_SECONDS = 10
GRACE = 6
BEGUN = "begun"  # the user attribute of a trial whose process can be told to live
KILLED_BY = "killed_by"  # that of one whose process alone was killed: the signal
# How a trial can end by itself; any other failed trial is tried again.
OUTCOMES = ("finished", "pruned", "diverged", "refused", "out_of_memory", "killed")


def open_storage(location: str | os.PathLike, heartbeat_seconds: int | None = None) -> RDBStorage:
    """Opens a storage, making it if need be.

    Args:
        location: a path, for a SQLite file, or a URL such as
            `postgresql+psycopg://user@host/database`.
        heartbeat_seconds: how often a running trial says that it is alive. After six times
            that, without a sign, it counts as dead. By default 10 s.

    Returns:
        The storage.

    Raises:
        InputError: if it cannot be opened.
    """
    import sqlalchemy

    url = storage_url(location)
    seconds = HEARTBEAT_SECONDS if heartbeat_seconds is None else heartbeat_seconds
    check_integer("heartbeat_seconds", seconds, least=1)
    is_file = url.startswith("sqlite")
    try:
        if is_file:
            _make_sqlite(url)
            making: contextlib.AbstractContextManager = contextlib.nullcontext()
        else:
            making = _database_lock(sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool))
        with making, _quietly():
            return RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": 60}}
                if is_file
                else {"pool_pre_ping": True},
                heartbeat_interval=seconds,
                grace_period=GRACE * seconds,
            )
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError, AssertionError) as error:
        raise InputError(
            "`storage` must be a SQLite file or the URL of a PostgreSQL database that Optuna can "
            f"use ({first_line(error)}). Received: storage={without_password(url)!r}"
        ) from None


def _make_sqlite(url: str) -> None:
    """Makes a SQLite storage as a whole, tables and versions; refuses a file of something else."""
    import sqlalchemy

    path = _file_of(url)
    with _file_lock(url):
        if not path.exists():
            with atomic_path(path) as temporary, _quietly():
                RDBStorage(f"sqlite:///{temporary}").engine.dispose()
            return
    engine = sqlalchemy.create_engine(url)
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()
    if not {"studies", "trials", "version_info"} <= tables:
        raise InputError(
            f"`storage` must be a SQLite file that Optuna has made, or a new one. "
            f"Received: storage={str(path)!r}, with the tables {sorted(tables)}"
        )


def storage_url(location: str | os.PathLike) -> str:
    """The URL of a storage: itself, or that of a SQLite file."""
    text = str(location)
    return text if "://" in text else f"sqlite:///{Path(text).absolute()}"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the notes that heartbeats are experimental, and that a study was made."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _file_lock(url: str) -> contextlib.AbstractContextManager:
    import filelock

    path = _file_of(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(path.with_name(f"{path.name}.lock"))


def _file_of(url: str) -> Path:
    import sqlalchemy

    place = sqlalchemy.make_url(url).database
    if not place or place == ":memory:":  # which no other process would see
        raise InputError(f"`storage` must be a file where it is SQLite. Received: storage={url!r}")
    return Path(place)


def exclusive(storage: RDBStorage) -> contextlib.AbstractContextManager:
    """Holds a storage for one process among all that use it; a killed process lets go of it."""
    is_file = storage.url.startswith("sqlite")
    return _file_lock(storage.url) if is_file else _database_lock(storage.engine)


@contextlib.contextmanager
def _database_lock(engine: Any) -> Iterator[None]:
    import sqlalchemy

    with engine.connect() as connection:
        key = {"key": 0x77736763}  # any number will do: "wsgc"
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), key)
        connection.commit()
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), key)
            connection.commit()


def open_study(
    storage: RDBStorage, name: str, objectives: tuple[str, ...], **arguments: Any
) -> optuna.Study:
    """The study of that name, made if need be, minimising `objectives`.

    Raises:
        InputError: if there is one with other objectives.
    """
    with exclusive(storage), _quietly():
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=["minimize"] * len(objectives),
            load_if_exists=True,
            **arguments,
        )
        if study.metric_names is None and not study.get_trials(deepcopy=False):
            study.set_metric_names(list(objectives))
    if study.metric_names != list(objectives):
        raise InputError(
            f"`name` must be new where the objectives change. Received: name={name!r}, whose "
            f"objectives are {study.metric_names}, with objectives={list(objectives)}"
        )
    return study


def fill_slots(
    study: optuna.Study, slots: Mapping[str, Mapping], most: int | None = None
) -> list[FrozenTrial]:
    """Puts a trial in the queue for every slot that is open; to be called under the lock.

    A slot whose trial was killed, interrupted or failed for a reason of the moment comes first,
    with the same parameters. One whose trial has not begun may start from something else since.

    Args:
        study: an Optuna study.
        slots: for each slot's name what its trial starts from, `attributes` that go into the
            trial's `start`; and the `params` that are known, with their `distributions`.
        most: how many trials shall wait at most. A search takes one slot after the other: what it
            draws depends on what is finished.

    Returns:
        The trials that wait.

    Raises:
        InputError: if the study holds a slot of that name that began with something else.
    """
    known = {k: v for t in study.get_trials(deepcopy=False) for k, v in t.distributions.items()}
    found = _that_fit(study, slots)
    for name, trials in found.items():
        if not any(is_live(trial) or is_settled(trial) for trial in trials):
            start = slots[name]["attributes"] if name in slots else trials[-1].user_attrs["start"]
            _retry(study, trials[-1], start)
    waiting = _waiting(study)
    missing = [name for name in slots if name not in found]
    for name in missing[: None if most is None else max(0, most - len(waiting))]:
        # Optuna keeps to one kind of a parameter; older studies hold whole numbers for fractions.
        fitting = {
            k: v
            for k, v in slots[name]["distributions"].items()
            if isinstance(v, type(known.get(k, v)))
        }
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params={k: slots[name]["params"][k] for k in fitting},
                distributions=fitting,
                user_attrs={"slot": name, "start": slots[name]["attributes"]},
            )
        )
    return _waiting(study)


def _waiting(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def fail_dead(study: optuna.Study, killed_by: str = "") -> bool:
    """Fails the trials whose process died; to be called under the lock.

    Args:
        study: an Optuna study.
        killed_by: the signal that ended a process, where the command that started it lives on.

    Returns:
        Whether there was one of this machine.
    """
    with _quietly():
        optuna.storages.fail_stale_trials(study)
    found = False
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        known = trial.user_attrs
        # Taken from the queue and not begun, while nobody holds the lock: its process died before
        # the first heartbeat, and Optuna would wait for another for ever.
        if "slot" in known and (BEGUN not in known or liveness.is_dead(known[BEGUN])):
            if killed_by:
                study._storage.set_trial_user_attr(trial._trial_id, KILLED_BY, killed_by)
            study.tell(trial.number, state=TrialState.FAIL)
            found = True
    return found


def begin(trial: optuna.Trial, storage: RDBStorage) -> None:
    """Says that a trial has begun, and in which process: from now on one can tell if it lives.

    To be called under the lock under which the trial was taken.
    """
    storage.record_heartbeat(trial._trial_id)
    trial.set_user_attr(BEGUN, liveness.own_life())


def _retry(study: optuna.Study, trial: FrozenTrial, start: Mapping) -> None:
    before = trial.system_attrs
    history = [*before.get("retry_history", []), trial.number]
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={"slot": trial.user_attrs["slot"], "start": start},
            # As Optuna's own retries: `retried_trial_number` and `retry_history` read them.
            system_attrs={
                **before, "failed_trial": before.get("failed_trial", trial.number),
                "retry_history": history,
            },
        )
    )  # fmt: skip


def _that_fit(study: optuna.Study, slots: Mapping[str, Mapping]) -> dict[str, list[FrozenTrial]]:
    """The trials of each slot, but for those that had not begun when the slot's start changed.

    Where only the place of an archive has changed, or a default is written out now, the trials
    that wait get the new start.

    Raises:
        InputError: if a trial has begun with something else.
    """
    found = trials_by_slot(study)
    trials = [trial for some in found.values() for trial in some]
    digests = {  # of archives, also of those that lie elsewhere now
        trial.user_attrs["start"]["data"]["source"]: trial.user_attrs["digest"]
        for trial in trials
        if "digest" in trial.user_attrs
    }
    digest_now = functools.cache(archive_digest)
    told, replaced = [], set()
    for name, slot in slots.items():
        wanted = slot["attributes"]
        for trial in found.get(name, []):
            start = trial.user_attrs["start"]
            if start == wanted:
                continue
            if differing := start_differences(start, wanted, digests.get, digest_now):
                if not _has_not_begun(trial):
                    raise InputError(
                        "`name` must be new where a study's settings change. Received: "
                        f"name={study.study_name!r}, whose slot {name!r} differs in {differing}"
                    )
                replaced.add(trial.number)
            elif trial.state == TrialState.WAITING:
                told.append((trial, wanted))
    for trial, wanted in told:
        study._storage.set_trial_user_attr(trial._trial_id, "start", wanted)
    for trial in trials:
        if trial.number in replaced and trial.state == TrialState.WAITING:
            study._storage.set_trial_user_attr(trial._trial_id, "outcome", "replaced")
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    rest = {name: [t for t in some if t.number not in replaced] for name, some in found.items()}
    return {name: some for name, some in rest.items() if some}


def _has_not_begun(trial: FrozenTrial) -> bool:
    """Whether a trial waits, or failed before its data was loaded."""
    failed = trial.state == TrialState.FAIL and not is_settled(trial)
    return trial.state == TrialState.WAITING or (failed and "digest" not in trial.user_attrs)


def trials_by_slot(study: optuna.Study) -> dict[str, list[FrozenTrial]]:
    """The trials of each slot, oldest first."""
    slots: dict[str, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        if (slot := trial.user_attrs.get("slot")) is not None:
            slots.setdefault(slot, []).append(trial)
    return slots


def is_live(trial: FrozenTrial) -> bool:
    """Whether a trial waits or runs."""
    return trial.state in (TrialState.WAITING, TrialState.RUNNING)


def is_settled(trial: FrozenTrial) -> bool:
    """Whether a trial ended for good: any other that failed is tried again."""
    return outcome(trial) in OUTCOMES


def outcome(trial: FrozenTrial) -> str:
    """How a trial ended, one of `OUTCOMES`; or `"running"`, `"waiting"` or `"failed"`."""
    if is_live(trial):
        return trial.state.name.lower()
    said = trial.user_attrs.get("outcome")
    if trial.state == TrialState.FAIL:
        # It may have said that it is finished, and been killed before its result was stored.
        return said if said in ("out_of_memory", "killed") else "failed"
    return "finished" if trial.state == TrialState.COMPLETE else said or "pruned"


def read_trial(location: str | os.PathLike, number: int, name: str | None = None) -> FrozenTrial:
    """A trial that has at least begun, by its number.

    Args:
        location: a SQLite file, or a URL.
        number: the trial's number in its study.
        name: the study; may be left out where the storage holds only one.

    Returns:
        The trial. Its user attributes `config` and `start["data"]` say what it trained.

    Raises:
        InputError: if there is no such trial.
    """
    if "://" not in str(location) and not Path(location).is_file():
        raise InputError(
            f"`storage` must be a SQLite file or a URL. Received: storage={str(location)!r}"
        )
    with reading(location):
        return _read_trial(open_storage(location), number, name)


def _read_trial(storage: RDBStorage, number: int, name: str | None) -> FrozenTrial:
    names = optuna.get_all_study_names(storage)
    if (name or (names[0] if len(names) == 1 else None)) not in names:
        raise InputError(f"`study` must be one of {names}. Received: study={name!r}")
    study = optuna.load_study(study_name=name or names[0], storage=storage)
    begun = [trial for trial in study.get_trials() if "config" in trial.user_attrs]
    for trial in begun:
        if trial.number == number:
            return trial
    raise InputError(
        f"`number` must be one of {[trial.number for trial in begun]}, the trials that have begun. "
        f"Received: number={number}"
    )

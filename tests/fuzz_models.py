"""Valid models, runs, storages and requests for `fuzz_readers.py`, and how they are spoilt."""

import contextlib
import functools
import io
import json
import os
import random
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import collect_runs
import h5py
import keras
import numpy as np
import optuna
from fuzz_files import splits
from fuzzing import CANARY, RUBBISH, as_json, damage, reassemble, rewrite, rezip, scribble, unzip

from keras_wsgcn import build_model, load_model, save_model
from keras_wsgcn.evaluation import load_run_data
from keras_wsgcn.saving import read_metadata
from keras_wsgcn.serving import stand_in
from keras_wsgcn.studies import results
from keras_wsgcn.studies import storage as stored
from keras_wsgcn.studies.planning import open_study, plan
from keras_wsgcn.studies.spec import StudySpec

Files = dict[str, bytes]
CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "keras_wsgcn.json"

# --- .keras files --------------------------------------------------------------------------------


@functools.cache
def _model_files() -> tuple[bytes, ...]:
    path, contents = Path("seed.keras").absolute(), []
    for scheme, options in (
        ("post_agg", {}),
        ("no_sharing", {"affinity": "learned"}),
        ("conv_style", {"non_local": True, "dropout": 0.1}),
    ):
        model = build_model(scheme, channels=4, blocks=1, **options)
        model.compile("adam", "mse")
        if not options:
            model.fit(np.zeros((2, 16, 2)), np.zeros((2, 16, 3)), verbose=0)
        save_model(model, path, training={"history": [{"epoch": 1, "val_mpjpe_mm": 9.0}]})
        contents.append(path.read_bytes())
        path.unlink()
    return tuple(contents)


def models(folder: Path) -> list[Files]:
    return [{"m.keras": content} for content in _model_files()]


@functools.cache
def _foreign() -> tuple[Any, ...]:
    """Records of layers and functions that no lifting model needs, some with code in them."""
    code = keras.layers.Lambda(lambda x: os.mkdir(CANARY), name="input_relu")
    function = {"module": "os", "class_name": "function", "config": "mkdir"}
    return (
        keras.saving.serialize_keras_object(code),
        {"module": "os", "class_name": "mkdir", "config": CANARY, "registered_name": None},
        {**function, "registered_name": None},
        {"module": "builtins", "class_name": "exec", "config": {"name": f"mkdir {CANARY}"}},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "/"}},
        {"class_name": "__lambda__", "config": {"value": "eA=="}},
        {"class_name": "__numpy__", "config": {"value": [0] * 99, "dtype": "float64"}},
        {"class_name": "__tensor__", "config": {"value": [0], "dtype": "float32"}},
        {"class_name": "__typespec__", "spec_name": "x", "module": "os", "config": []},
        10**9, [None, 10**9, 2], [None, 16, 2**31], [10**6, 16, 2], [2], [],
    )  # fmt: skip


def _spoil_member(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """JSON is rewritten, HDF5 edited, anything damaged."""
    if rng.random() < 0.2:
        return damage(rng, content, other)
    with contextlib.suppress(Exception):  # it may have been spoilt before
        if content[:1] == b"{":
            return as_json(rewrite(rng, json.loads(content), (*RUBBISH, *_foreign())))
        return _edited(rng, content)
    return damage(rng, content, other)


def _edited(rng: random.Random, content: bytes) -> bytes:
    """Weights with arrays of another shape or kind, links, attributes, or groups missing."""
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as weights:
        names: list[str] = []
        weights.visit(names.append)
        name = rng.choice(names)
        shape = getattr(weights[name], "shape", (2,))
        del weights[name]
        what = rng.randrange(9)
        if what == 1:
            weights[name] = h5py.ExternalLink("/etc/passwd", "/x")
        elif what == 2:
            weights[name] = h5py.SoftLink("/layers")
        elif what == 3:
            weights.create_dataset(name, shape=(1 << 40,), dtype="f4")
        elif what == 4:
            weights.create_dataset(
                name, shape=shape, dtype="f4", external=[("out.bin", 0, h5py.h5f.UNLIMITED)]
            )
        elif what == 5:
            weights[name] = rng.choice(("text", np.zeros(shape, "i8"), np.full(shape, np.nan)))
        elif what == 6:
            big = {"shape": (1 << 20, 99), "chunks": True, "compression": "gzip"}
            weights.create_dataset(name, dtype="f4", **big)
        elif what == 7:
            weights[name] = np.zeros(rng.choice(((), (0,), (1, 2, 3), (16, 4))), "f4")
        elif what == 8:
            weights[name] = weights.get("layers", 0.0)
    return stream.getvalue()


def spoil_model(rng: random.Random, case: Files, other: Files) -> Files:
    content, second = case["m.keras"], other["m.keras"]
    what = rng.random()
    if what < 0.2:
        return {"m.keras": damage(rng, content, second)}
    if what < 0.5:
        return {"m.keras": reassemble(rng, content, second, _spoil_member)}
    members = unzip(content)
    name = rng.choice((CONFIG, CONFIG, CONFIG, WEIGHTS, METADATA))
    members[name] = _spoil_member(rng, members[name], unzip(second)[name])
    return {"m.keras": rezip(members)}


def read_model(folder: Path) -> None:
    model = load_model(folder / "m.keras", compile=len(os.listdir(folder)) > 0)
    assert isinstance(model.metadata, dict)
    assert all(tuple(w.shape) == tuple(w.value.shape) for w in model.weights)
    assert len(model.output_shape) == 3


def read_model_metadata(folder: Path) -> None:
    assert isinstance(read_metadata(folder / "m.keras"), dict)


# --- folders of runs -----------------------------------------------------------------------------


def runs(folder: Path) -> list[Files]:
    data = {"source": "rubbish/s.npz", "validation": [2], "test": [3], "stride": 1}
    config = {"scheme": "pre_agg", "skeleton": "h36m_16", "kernel_gain": 1.0, "epochs": 1}
    environment = dict.fromkeys(("backend", "device", "keras", "machine"), "x")
    record = {
        "config": {**config, "seed": 0},
        "data": {"name": "s", **data},
        "environment": environment,
    }
    history = [{"epoch": 1, "mpjpe_mm": 9.0, "val_mpjpe_mm": 9.0, "seconds": 1.0}]
    metadata = {"scheme": "pre_agg", "channels": 4, "params": 9, "training": {"history": history}}
    members = dict.fromkeys(("metadata.json", CONFIG, WEIGHTS), b"{}")
    model = rezip({**members, METADATA: as_json(metadata)})
    metrics = b"split,by,group,value,mpjpe_mm\ntest,all,a,1.0,\ntest,action,Walking,,2.0\n"
    return [
        {
            "config.json": as_json(record),
            "best.keras": model,
            "last.keras": model,
            "metrics.csv": metrics,
            "s.npz": case["s.npz"],
        }
        for case in splits(folder)
    ]


def spoil_run(rng: random.Random, case: Files, other: Files) -> Files:
    name = rng.choice(("config.json", "config.json", "best.keras", "last.keras", "metrics.csv"))
    content = case[name]
    if rng.random() < 0.2:
        return {**case, name: damage(rng, content, other[name])}
    if name == "config.json":
        return {**case, name: as_json(rewrite(rng, json.loads(content)))}
    if name.endswith(".keras"):
        members = unzip(content)
        members[METADATA] = as_json(rewrite(rng, json.loads(members[METADATA])))
        return {**case, name: rezip(members)}
    return {**case, name: scribble(rng, content)}


def read_run(folder: Path) -> None:
    row, _ = collect_runs.read_row(folder)
    assert row["run"] == folder.name
    assert len(load_run_data(folder).test) > 0


# --- storages ------------------------------------------------------------------------------------

_SPEC = StudySpec.from_config(
    {
        "name": "s",
        "data": {"source": "generated"},
        "config": {"channels": 4, "blocks": 1},
        "seeds": [0],
        "search": {"trials": 2, "space": {"learning_rate": {"low": 1e-4, "high": 0.1}}},
    }
)


@functools.cache
def _sqlite_files() -> tuple[bytes, ...]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path, contents = Path("seed.sqlite3").absolute(), []
    for is_ours in (True, False):
        storage = stored.open_storage(path)
        if is_ours:
            ((name, slots),) = plan(_SPEC, Path()).items()
            study = open_study(storage, _SPEC, name)
            with stored.exclusive(storage):
                stored.fill_slots(study, slots)
            for value in (3.0, 2.0):
                trial = study.ask()
                trial.suggest_float("learning_rate", 1e-4, 0.1)
                for key, given in (
                    ("outcome", "finished"), ("config", trial.user_attrs["start"]["config"]),
                    ("metrics", {"val_mpjpe_mm": value}), ("seconds", 1.0),
                    ("subjects", {"test": {"2": {"poses": 3, "mpjpe_mm": 1.0}}}),
                    ("history", [{"epoch": 1, "loss": 1.0, "val_mpjpe_mm": value}]),
                    ("environment", {"backend": "torch"}),
                ):  # fmt: skip
                    trial.set_user_attr(key, given)
                study.tell(trial, value)
        else:  # somebody else's study, of the same name
            study = optuna.create_study(study_name=_SPEC.name, storage=storage)
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        storage.engine.dispose()
        contents.append(path.read_bytes())
        for name in ("seed.sqlite3", "seed.sqlite3.lock"):
            Path(name).unlink(missing_ok=True)
    return tuple(contents)


def storages(folder: Path) -> list[Files]:
    return [{"s.sqlite3": content} for content in _sqlite_files()]


_TABLES = (
    "studies", "trials", "trial_user_attributes", "trial_system_attributes", "trial_params",
    "trial_values", "study_directions", "study_system_attributes", "version_info",
    "alembic_version", "study_user_attributes",
)  # fmt: skip
_CELLS = (
    None,
    0,
    -1,
    2**62,
    1.5,
    "",
    "x",
    "{",
    "[]",
    "null",
    '{"a": 1}',
    "RUNNING",
    b"\xff",
    "9" * 9999,
)


def spoil_sqlite(rng: random.Random, case: Files, other: Files) -> Files:
    content, second = case["s.sqlite3"], other["s.sqlite3"]
    if rng.random() < 0.35:
        return {"s.sqlite3": damage(rng, content, second)}
    connection = sqlite3.connect(":memory:")
    connection.deserialize(content)
    for _ in range(rng.choice((1, 1, 2))):
        table, what = rng.choice(_TABLES), rng.randrange(10)
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        with contextlib.suppress(sqlite3.Error):
            if what == 0:
                connection.execute(f"DROP TABLE {table}")
            elif what == 1:
                connection.execute(f"DELETE FROM {table}")
            elif what == 2:
                connection.execute(f"ALTER TABLE {table} RENAME TO other")
            elif what == 3 and columns:
                connection.execute(f"ALTER TABLE {table} DROP COLUMN {rng.choice(columns)}")
            elif columns:
                cell = rng.choice(_CELLS)
                connection.execute(f"UPDATE {table} SET {rng.choice(columns)} = ?", (cell,))
    connection.commit()
    return {"s.sqlite3": connection.serialize()}


def read_storage(folder: Path) -> None:
    path = folder / "s.sqlite3"
    tables = results.read_storage(_SPEC, path)
    assert len(tables.runs) == 2
    stored.read_trial(path, 1, _SPEC.name)


# --- requests ------------------------------------------------------------------------------------


def requests(folder: Path) -> list[Any]:
    poses = np.zeros((2, 16, 2)).tolist()
    path = "/v1/models/m:predict"
    bodies = (
        {"instances": poses}, {"inputs": {"pose2d": poses}}, {"inputs": poses},
        {"instances": [{"pose2d": pose} for pose in poses], "signature_name": "serving_default"},
    )  # fmt: skip
    return [{"method": "POST", "path": path, "body": body} for body in bodies] + [
        {"method": "GET", "path": "/v1/models/m/versions/1/metadata", "body": {}}
    ]


_PARTS = (
    "/", "//", "..", "%2e%2e", ":predict", "/metadata", "/versions/", "9" * 5000, "٣", "m", "\x00",
)  # fmt: skip


def spoil_request(rng: random.Random, case: Any, other: Any) -> Any:
    changed = dict(case)
    if rng.random() < 0.2:
        at = rng.randrange(len(case["path"]))
        changed["path"] = case["path"][:at] + rng.choice(_PARTS) + case["path"][at:]
    body = as_json(case["body"])
    if rng.random() < 0.3:
        body = damage(rng, body, as_json(other["body"]))
    else:
        body = as_json(rewrite(rng, case["body"]))
    return {**changed, "body": body.decode("latin1")}


class _Servable:
    """A model that answers zeros, with the checks of the stand-in's own."""

    name, version = "m", 1
    signature_defs = {"serving_default": SimpleNamespace(inputs={"pose2d": None})}  # noqa: RUF012

    def predict(self, signature: str, inputs: Any) -> dict[str, np.ndarray]:
        pose2d = stand_in.checked_inputs(self.signature_defs, signature, inputs)["pose2d"]
        return {"pose3d": np.zeros((*pose2d.shape[:-1], 3))}


def _find(name: str, version: int | None) -> _Servable:
    if name != "m" or version not in (None, 1):
        raise stand_in.Refusal("NOT_FOUND", f"no `{name}`. Received: {version}")
    return _Servable()


def read_request(case: Any) -> None:
    body = case["body"] if isinstance(case["body"], str) else json.dumps(case["body"])
    if case["path"].endswith("metadata"):
        return
    server = SimpleNamespace(servable=_find)
    method, path = case["method"], case["path"]
    answer = stand_in._rest_answer(server, method, path, body.encode("latin1"))  # type: ignore[arg-type]
    json.dumps(answer)

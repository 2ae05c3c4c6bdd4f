"""Fixtures that several test files share, a closed network, and what makes the suite quick."""

import functools
import gc
import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

# Many tests, and the commands that they start, train the same small models: what JAX has compiled
# is kept for the others, which takes a quarter of the time away. Read when JAX is imported.
_compiled = tempfile.TemporaryDirectory(prefix="jax-", ignore_cleanup_errors=True)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compiled.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


# Names looked up, and addresses, that are not of this machine. No test may ask for any.
_asked = []


def _refuse_network(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[:1]
    else:
        return
    local = (None, "", "localhost", "127.0.0.1", "0.0.0.0", "::", "::1")
    if isinstance(address, tuple) and address[0] not in local:  # others are paths of this machine
        _asked.append((event, address))
        raise PermissionError(f"a test asked the network: {event} {address}")


sys.addaudithook(_refuse_network)


@pytest.fixture(autouse=True)
def asked():
    """What a test asks the network; that it was refused may have been caught and forgotten."""
    yield _asked
    found, _asked[:] = list(_asked), []
    assert not found


def pytest_collection_modifyitems(config, items):
    """Leaves out, but under one backend, tests that are the same under all."""
    import keras

    if keras.backend.backend() == "torch":  # the quickest to start
        return
    plain = [item for item in items if item.get_closest_marker("plain")]
    config.hook.pytest_deselected(items=plain)
    items[:] = [item for item in items if item not in plain]


def pytest_collection_finish():
    """Garbage is looked for less often, and not in what is imported: up to a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session", autouse=True)
def motions_made_once():
    """The generated motions are the same each time; a suite asks for them dozens of times."""
    from keras_wsgcn.data import sources

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "generate_motions", functools.cache(sources.generate_motions))
        yield


@pytest.fixture(autouse=True)
def seeded():
    """Keras draws the seeds of weights and masks from Python's generator, and shuffles by NumPy's.

    Not `keras.utils.set_random_seed`, which imports TensorFlow.
    """
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be written."""
    from keras_wsgcn.studies import figures

    found = []
    monkeypatch.setattr(figures, "write", lambda figure, path: found.append(figure))
    return found


@pytest.fixture(scope="session")
def generated():
    """Splits of the generated motions, some thousand poses."""
    from keras_wsgcn import load_splits

    return load_splits("generated", stride=120)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real motion data; tests that want it are skipped where there is none."""
    folder = os.environ.get("KERAS_WSGCN_DATA")
    if not folder or not Path(folder, "cmu17_30fps.npz").is_file():
        pytest.skip("KERAS_WSGCN_DATA does not name the folder with cmu17_30fps.npz")
    return Path(folder)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that a payload would write; relative, so that a payload is the same everywhere."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


# --- for test_torture.py and test_outages.py ----------------------------------------------------


@pytest.fixture(scope="session")
def starter(tmp_path_factory):
    """Starts commands as processes."""
    import torture

    starter = torture.Starter(tmp_path_factory.mktemp("lives"))
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, starter):
    """The folder of a run that nothing disturbed."""
    import torture

    folder = tmp_path_factory.mktemp("undisturbed")
    life = starter(torture.training(folder), cold=True)
    assert life.wait() == 0, life.errors[-3000:]
    rows = torture.rows_of(folder / "run" / "last.keras")
    assert len(rows) < 40, "early stopping should be among what is tested"
    return folder / "run"


@pytest.fixture(scope="session")
def undisturbed_study(tmp_path_factory, starter):
    import torture

    folder = tmp_path_factory.mktemp("undisturbed_study") / "study"
    life = starter(torture.study(folder), cold=True)
    assert life.wait() == 0, life.errors[-3000:]
    return folder

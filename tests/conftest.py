"""Fixtures that several test files share."""

import os
from pathlib import Path

import numpy as np
import pytest


def pytest_collection_modifyitems(config, items):
    """Leaves out tests that compute nothing with Keras, but under one backend."""
    import keras

    if keras.backend.backend() == "torch":  # the quickest to start
        return
    plain = [item for item in items if item.get_closest_marker("plain")]
    config.hook.pytest_deselected(items=plain)
    items[:] = [item for item in items if item not in plain]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real motion data; tests that want it are skipped where there is none."""
    folder = os.environ.get("KERAS_WSGCN_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("KERAS_WSGCN_DATA names no folder")
    return Path(folder)

"""The floors of pyproject.toml are the versions that `make test-lowest` installs."""

import itertools
import re
import tomllib

import pytest
from testing import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = {"mypy", "pandas-stubs", "ruff"}  # look at the code, and are no part of a run
UNTESTED = {"torch"}  # its older builds bring CUDA along

pytestmark = pytest.mark.plain


def floors():
    for text in itertools.chain(
        PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()
    ):
        name, floor = re.match(r"([\w-]+)(?:\[\w+(?:,\w+)*\])?(?:>=([\d.]+))?", text).groups()
        if name != "keras_wsgcn" and name not in TOOLS | UNTESTED:
            yield name, floor


def test_each_is_installed_exactly():
    pins = dict(
        re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "tests" / "lowest.txt").read_text(), re.M)
    )
    for name, floor in floors():
        assert floor, f"{name} has no floor"
        length = len(floor.split("."))
        assert pins[name].split(".")[:length] == floor.split("."), name
        assert not int("".join(pins[name].split(".")[length:]) or 0), name

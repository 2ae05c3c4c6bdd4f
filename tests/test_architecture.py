"""The shape of the house: who may import whom, how long a file may be, where the table stands."""

import ast
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.plain

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "keras_wsgcn"

# Each module knows only those before it, and the data modules no model.
PLAIN = ("errors", "files", "markdown", "records", "skeletons", "schemes", "budget")
KERAS = (
    "alignment", "ops", "per_kernel", "layers", "models", "hdf5", "declared_size", "screening",
    "saving",
)  # fmt: skip
DATA = (
    "data.cameras", "data.human36m_cameras", "data.views", "data.archive", "data.poses",
    "data.activities", "data.bodies",
    "data.motions", "data.mocap_formats", "data.mocap",
    "data.mocap_folders", "data.cmu", "data.human36m_pickles", "data.human36m_formats",
    "data.human36m_cdf", "data.human36m", "data.sources",
    "data.keypoints", "data.keypoint_tracks", "data.keypoint_files",
)  # fmt: skip
LAST = (
    "recipes", "environment", "devices", "torch_steps", "epochs", "prediction", "training",
    "evaluation", "plots", "inference", "animation",
    "exporting.folding", "exporting.formats", "exporting.writers", "exporting.exports",
    "serving.config", "serving.client", "serving.stand_in",
    "studies.search", "studies.spec", "studies.liveness", "studies.outages",
    "studies.storage", "studies.planning", "studies.trials", "studies.processes", "studies.workers",
    "studies.results", "studies.bootstrap", "studies.claims", "studies.figures", "studies.report",
)  # fmt: skip
BACKENDS = {"tensorflow", "jax", "torch"}
MAX_LINES = 420


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {
    name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"
}


def allowed(name):
    """The modules that `name` may import."""
    if name in PLAIN:
        return PLAIN[: PLAIN.index(name)]
    if name in KERAS:
        return (*PLAIN, *KERAS[: KERAS.index(name)], *(["metrics"] if name == "saving" else []))
    if name == "metrics":
        return (*PLAIN, "alignment")
    if name in DATA:
        return (*PLAIN, *DATA[: DATA.index(name)])
    return (*PLAIN, *KERAS, *DATA, "metrics", *LAST[: LAST.index(name)])


def imports(path, top_only=False):
    """(module, at module level) of every import in a file, `from a import b` as `a` and `a.b`."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", MODULES)
def test_modules_know_only_those_above_them(name):
    known = {f"keras_wsgcn.{module}" for module in allowed(name)}
    ours = {module for module in imports(MODULES[name]) if module.startswith("keras_wsgcn.")}
    modules = {f"keras_wsgcn.{module}" for module in MODULES}
    assert {m for m in ours if m in modules} <= known


def test_every_module_has_its_place():
    assert set(MODULES) == {*PLAIN, *KERAS, *DATA, *LAST, "metrics"}


@pytest.mark.parametrize("name", [*PLAIN, *DATA])
def test_plain_modules_and_data_import_no_framework(name):
    found = {module.split(".")[0] for module in imports(MODULES[name])}
    assert not found & {"keras", *BACKENDS}


@pytest.mark.parametrize("name", MODULES)
def test_no_backend_at_module_level(name):
    top = {module.split(".")[0] for module in imports(MODULES[name], top_only=True)}
    assert not top & BACKENDS
    assert "matplotlib" not in top  # heavy, and not always there
    assert "optuna" not in top or name.startswith("studies.")
    assert not any(module.startswith("keras.src") for module in imports(MODULES[name]))


def test_nothing_imports_scripts_or_studies():
    for path in [*MODULES.values(), PACKAGE / "__init__.py"]:
        assert not {m.split(".")[0] for m in imports(path)} & {"scripts", "studies"}


def test_commands_import_cli_before_what_takes_seconds():
    """Else Ctrl-C among the imports ends in a traceback."""
    for path in (ROOT / "scripts").glob("*.py"):
        names = [module.split(".")[0] for module in imports(path, top_only=True)]
        if "cli" in names:
            assert next(name for name in names if name not in sys.stdlib_module_names) == "cli"


def test_keras_src_is_imported_in_one_place():
    users = {
        path.name
        for folder in ("tests", "scripts", "keras_wsgcn")
        for path in (ROOT / folder).rglob("*.py")
        if any(module.startswith("keras.src") for module in imports(path))
    }
    assert users == {"testing.py"}


def test_the_eight_names_stand_in_one_table():
    """No file lists them again; a file may use one or two as an example."""
    from keras_wsgcn import SCHEMES

    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if path.name != "schemes.py":
            assert len(strings & set(SCHEMES)) <= 2, path


@pytest.mark.parametrize("path", [*MODULES.values()], ids=name_of)
def test_files_fit_a_room(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_init_holds_the_public_names_and_nothing_else():
    import keras_wsgcn

    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    kinds = {type(node) for node in tree.body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}
    imported = {
        alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == set(keras_wsgcn.__all__)

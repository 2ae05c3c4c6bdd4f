"""Runs studies: the paper's tables as fixed lists of trials, or Optuna searches.

Called again it goes on where it was; a finished study returns at once.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cli import add_options, add_subjects, given_fields, leave, run

from keras_wsgcn.errors import InputError
from keras_wsgcn.recipes import TrainConfig
from keras_wsgcn.studies.spec import StudySpec, load_spec, merge_settings
from keras_wsgcn.studies.workers import check_data
from keras_wsgcn.studies.workers import run as run_study


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The backend is Keras's: set KERAS_BACKEND to tensorflow, jax or torch. "
        "scripts/report_study.py shows what came out.",
    )
    parser.add_argument(
        "specs", nargs="+", type=Path, metavar="SPEC", help="TOML files, run one after the other"
    )
    add_study_options(parser)
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share this machine (default: 1)"
    )
    parser.add_argument(
        "--together",
        type=int,
        default=1,
        metavar="SEEDS",
        help="train so many seeds of a cell at once, each step one for all: for an accelerator "
        "that one model does not fill (JAX; default: 1)",
    )
    parser.add_argument(
        "--heartbeat",
        type=int,
        metavar="SECONDS",
        help="how often a trial says that it is alive; after six times that, it is dead "
        "(default: 10)",
    )
    return parser.parse_args(argv)


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which study is meant, where it lives, and what differs from its file."""
    parser.add_argument(
        "--storage",
        help="a SQLite file, or the URL of a database that several machines share, such as "
        "postgresql+psycopg://user@host/optuna (default: FOLDER/NAME/study.sqlite3)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/studies"),
        help="folder of studies (default: %(default)s)",
    )
    parser.add_argument("--name", help="name of the study (default: that of its file)")
    parser.add_argument("--data", help="another data set than the file's, as train.py takes it")
    parser.add_argument("--stride", type=int, help="take every n-th frame")
    add_subjects(parser)
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than the file's")
    group = parser.add_argument_group("configuration", "settings of every trial")
    add_options(group, TrainConfig, leave_out=("seed", "scheme", "skeleton"))


def read_study(path: Path, options: argparse.Namespace) -> StudySpec:
    """The study of a file, with what the options change."""
    changes = {name: getattr(options, name) for name in ("name", "seeds")}
    spec = load_spec(path, **{name: value for name, value in changes.items() if value})
    data = {"source": options.data}
    data |= {name: getattr(options, name) for name in ("stride", "validation", "test")}
    data = {name: value for name, value in data.items() if value is not None}
    settings = given_fields(options, TrainConfig)
    if clash := spec.varied(settings):
        raise InputError(
            f"`{clash[0]}` must be left out: the study sets it for each of its trials. "
            f"Received: {clash[0]}={settings[clash[0]]}, for {str(path)!r}"
        )
    if spec.tuned_by and (other := [name for name in data if name != "stride"]):
        option = "data" if other[0] == "source" else other[0]
        raise InputError(
            f"`{option}` must be left out: {spec.tuned_by.name!r}, which tunes {str(path)!r}, has "
            f"data of its own. Received: {option}={data[other[0]]!r}"
        )
    if not data and not settings:
        return spec
    return dataclasses.replace(
        spec, data={**spec.data, **data}, config=merge_settings(spec.config, settings)
    )


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    specs = [read_study(path, options) for path in options.specs]
    for spec in specs[1:]:  # the first is about to be looked at
        check_data(spec, options.folder, options.storage)
    for spec in specs:
        done = run_study(
            spec,
            options.folder,
            storage=options.storage,
            workers=options.workers,
            together=options.together,
            heartbeat_seconds=options.heartbeat,
        )
        print(f"{spec.name}: {'done' if done else 'not done yet: run the same command again'}")
        if not done:
            return 1
    return 0


if __name__ == "__main__":
    leave(run(main))

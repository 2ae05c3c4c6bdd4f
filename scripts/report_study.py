"""Shows what came out of studies: tables beside the paper's, conclusions, and pictures.

Prints Markdown, and writes CSVs (one row a run, a run and subject, a run and epoch), pictures and
one page of HTML that holds all of it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import run

from run_study import add_study_options, read_study

from keras_wsgcn.environment import command_line
from keras_wsgcn.studies.outages import without_password
from keras_wsgcn.studies.planning import storage_of
from keras_wsgcn.studies.report import as_markdown, draw, sections, write_page
from keras_wsgcn.studies.results import (
    SETTINGS,
    StudyResults,
    read_nothing,
    read_results,
    read_storage,
    write_results,
)
from keras_wsgcn.studies.spec import StudySpec


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Give the options that run_study.py was given."
    )
    parser.add_argument("specs", nargs="+", type=Path, metavar="SPEC", help="TOML files")
    add_study_options(parser)
    _add_own_options(parser)
    return parser.parse_args(argv)


def _add_own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--csv", type=Path, metavar="FOLDER", help="read the CSVs there, not a storage"
    )
    parser.add_argument(
        "--output", type=Path, help="folder to write to (default: FOLDER/NAME, beside the storage)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="only tables")


def command_of(path: Path, options: argparse.Namespace, argv: Sequence[str] | None) -> str:
    """What runs the study of a file: with the options that this report of it was given."""
    own = argparse.ArgumentParser(add_help=False)
    _add_own_options(own)
    _, words = own.parse_known_args(argv)
    words = [word for word in words if Path(word) not in options.specs]
    if options.storage:  # the page may be passed on
        plain = without_password(options.storage)
        words = [word.replace(options.storage, plain) for word in words]
    return command_line(["python", "scripts/run_study.py", str(path), *words])


def trained_otherwise(spec: StudySpec, results: StudyResults) -> list[str]:
    """Settings with which the trials began where the study, as it is given now, sets others."""
    begun = results.runs[results.runs["trial"].notna()]
    names = [name for name in ("channels", *SETTINGS) if name in begun]
    values = {name: begun[name].dropna().unique() for name in names}
    return [
        f"{name} {', '.join(map(str, values[name]))} instead of {value}"
        for name, value in spec.config.items()
        if value is not None and any(other != value for other in values.get(name, ()))
    ]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    for path in options.specs:
        spec = read_study(path, options)
        output = options.output or options.folder / spec.name
        if not spec.seeds:
            results = read_nothing(spec)
        elif options.csv:
            results = read_results(options.csv, spec.name)
        else:
            results = read_storage(spec, storage_of(spec, options.folder, options.storage))
        if others := trained_otherwise(spec, results):
            print(f"note: {path} was trained with {', '.join(others)}", file=sys.stderr)
        parts = sections(spec, results, command_of(path, options, argv))
        print(f"# {spec.title or spec.name}\n\n{spec.note.strip()}\n\n{as_markdown(parts)}\n")
        if spec.seeds and not options.csv:
            write_results(results, output, spec.name)
        if drawn := not options.no_pictures:
            parts += draw(spec, results, output)
        page = output / f"{spec.name}.html"
        write_page(spec.title or spec.name, spec.note, parts, page)
        print(f"written to {output}: tables{', pictures' * drawn} and {page.name}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(main))

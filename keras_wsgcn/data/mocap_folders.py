"""Folders of motion capture files, cut where tracking was lost, as one motion archive."""

import csv
import os
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_wsgcn.data.archive import Motion, MotionArchive
from keras_wsgcn.data.mocap import BvhLayout, read_asf_amc, read_bvh
from keras_wsgcn.data.mocap_formats import TextFile
from keras_wsgcn.errors import InputError, check_folder, check_integer, check_number, shown
from keras_wsgcn.skeletons import h36m_17

MAX_SPEED = 15.0  # m/s; a joint that is faster was lost by the cameras
MAX_LINE = 10_000  # characters of a line of labels
MOTIONS = (".amc", ".bvh")  # of two files of one take the first is read
MIN_FRAMES = 30  # of a piece that is worth keeping

_LABELS = ("subject", "action", "description")  # what a CSV says of a file


def split_at_jumps(positions: np.ndarray, fps: float, max_speed: float = MAX_SPEED) -> list[slice]:
    """The pieces of a sequence between the frames where a joint is faster than a person can be.

    Args:
        positions: `(frames, joints, 3)` metres.
        fps: frames per second.
        max_speed: metres per second, from one frame to the next.

    Returns:
        Slices over the frames, in order, which together hold every frame once.
    """
    speed = np.linalg.norm(np.diff(positions, axis=0), axis=-1).max(axis=-1) * fps
    cuts = (np.flatnonzero(speed > max_speed) + 1).tolist()
    return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(positions)], strict=True)]


def cut(
    motion: Motion, *, max_speed: float = MAX_SPEED, min_frames: int = MIN_FRAMES
) -> list[Motion]:
    """The pieces of a take between its jumps, without those of fewer than `min_frames` frames.

    Where there are several, letters are added to the take: `01_06a`, `01_06b`.

    Raises:
        InputError: if `max_speed` or `min_frames` is out of range.
    """
    _check_cuts(max_speed, min_frames)
    pieces = split_at_jumps(motion.positions, motion.fps, max_speed)
    kept = [motion.positions[p] for p in pieces if p.stop - p.start >= min_frames]
    letters = [""] if len(kept) == 1 else [_letters(i) for i in range(len(kept))]
    return [
        replace(motion, positions=positions, take=motion.take + letter)
        for positions, letter in zip(kept, letters, strict=True)
    ]


def read_folder(
    folder: str | os.PathLike,
    *,
    labels: Mapping[str, Mapping[str, Any]] | None = None,
    only_labelled: bool = False,
    fps: float = 30.0,
    max_speed: float = MAX_SPEED,
    min_frames: int = MIN_FRAMES,
    layout: BvhLayout | None = None,
    metres_per_unit: float | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> MotionArchive:
    """Reads every take in a folder and the folders in it.

    A motion `02_01.amc` needs its skeleton `02.asf` (or `02_01.asf`) beside it; a BVH file uses one
    for the bone `thorax`. Of a take that is there as both, the AMC file is read. Suffixes may be in
    capitals.

    Args:
        folder: where the files are.
        labels: what the files do not say, by file name without suffix, as `read_labels` gives it.
        only_labelled: leave out the takes that `labels` does not name.
        fps: frames per second to keep.
        max_speed: speed of a joint, in metres per second, at which a take is cut.
        min_frames: pieces with fewer frames are dropped.
        layout: how the BVH files are to be read; see `read_bvh`.
        metres_per_unit: length of a unit of the BVH files, in metres. `None` takes the layout's.
            An ASF file says its own.
        report: is called with a line for each file, and for what is dropped.

    Raises:
        InputError: if an argument is out of range, a file is malformed, or no take is left.
    """
    _check_cuts(max_speed, min_frames)
    if metres_per_unit is not None:
        check_number("metres_per_unit", metres_per_unit, above=0)
    place = check_folder("folder", folder)
    labels, motions = labels or {}, []
    paths = _takes_in(place, report)
    skeletons = {path.with_suffix(""): path for path in _files_in(place, ".asf")}
    for stem in sorted(set(labels) - set(paths)):
        report(f"{stem}: labelled, but there is no such file")
    if only_labelled and (others := set(paths) - set(labels)):
        report(f"{len(others)} files are left out, which are not labelled")
        paths = {stem: path for stem, path in paths.items() if stem in labels}
    for stem, path in paths.items():
        beside = (path.parent / name for name in (stem, stem.split("_")[0]))
        asf = next((skeletons[name] for name in beside if name in skeletons), None)
        label = labels.get(stem, {})
        if path.suffix.lower() == ".bvh":
            motion = read_bvh(
                path, **label, fps=fps, layout=layout, metres_per_unit=metres_per_unit, asf=asf
            )
        elif asf:
            motion = read_asf_amc(asf, path, **label, fps=fps)
        else:
            raise InputError(
                "`folder` must hold the skeleton (.asf) beside each motion (.amc). "
                f"Received: {str(path)!r} without one"
            )
        pieces = cut(motion, max_speed=max_speed, min_frames=min_frames)
        read, kept = len(motion.positions), sum(len(p.positions) for p in pieces)
        keys = ", ".join(piece.key for piece in pieces) or "nothing"
        dropped = f"; {read - kept} frames dropped around jumps" if kept < read else ""
        report(f"{path.name}: {keys}, {kept} frames at {fps:g} Hz{dropped}")
        motions += pieces
    if not motions:
        raise InputError(
            f"`folder` must hold {'labelled ' * only_labelled}AMC or BVH files with at least one "
            f"take of {min_frames} frames. Received: folder={str(folder)!r}"
        )
    return MotionArchive(h36m_17, tuple(motions))


def read_labels(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Reads what motion files do not say, from a CSV file.

    Its columns are file, subject, action, description, and no others. Only `file` is needed, with
    or without its suffix; an empty cell says nothing.

    Returns:
        By file name without suffix, the keyword arguments for `read_asf_amc` and `read_bvh`.

    Raises:
        InputError: if the file is missing or malformed; the message names the line.
    """
    source = TextFile(path, "path")
    lines = source.text().splitlines()
    if any(len(line) > MAX_LINE for line in lines):
        raise source.refusal(f"a line has more than {MAX_LINE} characters")
    reader = csv.DictReader(lines, strict=True, skipinitialspace=True)
    try:
        return _labels_of(source, reader)
    except csv.Error as error:
        raise source.refusal(str(error), reader.line_num) from None


def _labels_of(source: TextFile, reader: csv.DictReader) -> dict[str, dict[str, Any]]:
    columns = [name.strip() for name in reader.fieldnames or ()]
    named = [name for name in columns if name]  # spreadsheets leave commas at the end
    if "file" not in named or not set(named) <= {"file", *_LABELS} or len({*named}) < len(named):
        raise source.refusal(
            f"the first line must name the columns, `file` and any of {list(_LABELS)}, "
            f"not {shown(columns)}"
        )
    reader.fieldnames = columns
    labels: dict[str, dict[str, Any]] = {}
    for row in reader:
        if any(row.get(None) or ()):
            raise source.refusal("there are more cells than columns", reader.line_num)
        file = Path((row["file"] or "").strip())
        stem = file.stem if file.suffix.lower() in MOTIONS else file.name
        if not stem or stem in labels:
            raise source.refusal("`file` must be there, and each once", reader.line_num)
        label: dict[str, Any] = {
            column: row[column].strip() for column in _LABELS if (row.get(column) or "").strip()
        }
        if "subject" in label:
            if not re.fullmatch(r"\d{1,9}", label["subject"]):
                raise source.refusal(
                    "`subject` must be a whole number of at most nine digits", reader.line_num
                )
            label["subject"] = int(label["subject"])
        labels[stem] = label
    return labels


def _takes_in(folder: Path, report: Callable[[str], None]) -> dict[str, Path]:
    takes: dict[str, Path] = {}
    for suffix in MOTIONS:
        for path in _files_in(folder, suffix):
            first = takes.setdefault(path.stem, path)
            if first != path and first.suffix.lower() == suffix:
                raise InputError(
                    f"`folder` must hold each name once. Received: {str(first)!r} and {str(path)!r}"
                )
            if first != path:
                report(f"{path.relative_to(folder)}: dropped, {first.relative_to(folder)} is read")
    return dict(sorted(takes.items()))


def _check_cuts(max_speed: float, min_frames: int) -> None:
    check_number("max_speed", max_speed, above=0)
    check_integer("min_frames", min_frames, least=1)


def _files_in(folder: Path, suffix: str) -> list[Path]:
    # macOS writes a `._name` beside some files.
    return sorted(path for path in folder.rglob("[!.]*") if path.suffix.lower() == suffix)


def _letters(number: int) -> str:
    """`a`, ..., `z`, `ba`, ...: the number in base 26."""
    digits = string.ascii_lowercase
    return (_letters(number // 26) if number >= 26 else "") + digits[number % 26]

"""Named data sets, and anybody's own archive, as training, validation and test poses."""

import functools
import inspect
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keras_wsgcn.data import human36m
from keras_wsgcn.data.archive import load_archive
from keras_wsgcn.data.cmu import find_archive, four_cameras, load_cmu24
from keras_wsgcn.data.motions import generate_motions
from keras_wsgcn.data.poses import DATA_FACTS, Splits, observe, observe_splits
from keras_wsgcn.errors import InputError, check_integers, shown
from keras_wsgcn.files import digest_of, plain
from keras_wsgcn.skeletons import Skeleton

# Which of the eight generated people are held out.
_GENERATED_VALIDATION, _GENERATED_TEST = (6,), (7, 8)


def load_generated(*, seed: int = 0, **options) -> Splits:
    """The generated default: eight people, five to train on, one to validate, two to test.

    Args:
        seed: of the motions.
        **options: further arguments of `observe`, such as `stride` or `noise_px`.

    Returns:
        The splits.
    """
    return observe_splits(
        generate_motions(seed=seed),
        four_cameras,
        name="generated",
        validation=_GENERATED_VALIDATION,
        test=_GENERATED_TEST,
        **options,
    )


SOURCES = {"generated": load_generated, "cmu24": load_cmu24}


def load_splits(
    data: str | os.PathLike,
    *,
    validation: Iterable[int] | None = None,
    test: Iterable[int] | None = None,
    **options,
) -> Splits:
    """Loads a data set by name, or a motion archive.

    An archive of Human3.6M has its own subjects, cameras and perhaps 2D poses. Any other is seen by
    the cameras whose 2D poses it stores, or else by the benchmark's four.

    Args:
        data: `"generated"`, `"cmu24"`, or the path of a motion archive (`.npz`).
        validation: subjects of an archive to validate on. Named sets and Human3.6M have theirs.
        test: subjects of an archive to test on, likewise.
        **options: further arguments of `observe`: `skeleton`, `stride`, `noise_px`, `seed`; and
            of `load_cmu24`, `train_cameras` and `mixed_trunks`. For `"generated"` the `seed` is
            that of the motions, not of the noise.

    Returns:
        The splits.

    Raises:
        InputError: if there is no such data set, it does not take an option, or the subjects do
            not fit.
    """
    if not isinstance(data, str | os.PathLike):
        raise InputError(
            f"`data` must be one of {list(SOURCES)} or a path. Received: data={shown(data)}"
        )
    check_options(data, options)
    if data in SOURCES:
        if validation is not None or test is not None:
            raise InputError(
                f"`validation` and `test` are fixed for {data!r}: leave them out. "
                f"Received: validation={shown(validation)}, test={shown(test)}"
            )
        splits = SOURCES[str(data)](**options)
        return splits.loaded(_origin(data, options), splits.digest)
    if Path(data).suffix != ".npz":
        raise InputError(
            f"`data` must be one of {list(SOURCES)} or the path of a motion archive (.npz). "
            f"Received: data={str(data)!r}"
        )
    subjects: dict[str, Any] = {
        name: check_integers(name, value, least=0)
        for name, value in (("validation", validation), ("test", test))
        if value is not None
    }
    archive = load_archive(data)
    if human36m.is_human36m(archive):
        splits = human36m.split(archive, **subjects, **options)
    else:
        around = functools.partial(four_cameras, root=archive.skeleton.root)
        cameras = None if archive.views else around
        named: dict[str, Any] = {"validation": (), "test": (), **subjects}
        splits = observe_splits(archive, cameras, name=Path(data).stem, **named, **options)
    return splits.loaded(_origin(data, {**options, **subjects}), digest_of(data))


def load_again(
    recorded: Mapping[str, Any],
    data: str | os.PathLike | None = None,
    *,
    skeleton: str | Skeleton,
) -> Splits:
    """The splits of a record, wherever their archive lies now.

    Args:
        recorded: what `Splits.facts` said, or of it the `source`, its options and the `digest`.
        data: where the archive is now, if it has moved.
        skeleton: that of the model.

    Returns:
        The splits.

    Raises:
        InputError: if they cannot be loaded, or are not those of the record.
    """
    options = {key: value for key, value in recorded.items() if key not in DATA_FACTS}
    source = options.pop("source", None)
    if not isinstance(source, str):
        raise InputError(
            "`data` must say where it is from, `source`, as it does where `load_splits` made "
            f"it; of poses made otherwise use `evaluate`. Received: {shown(recorded)}"
        )
    if data is not None and source == "generated":
        raise InputError(
            "`data` must be left out for a run on 'generated', which is no archive. "
            f"Received: data={str(data)!r}"
        )
    if data is not None and source == "cmu24":
        options["path"] = data
    elif data is not None:
        source = data
    known = options_of(source).keys() - {"skeleton"}
    if unknown := sorted(set(options) - known):
        raise InputError(f"`data` must have keys among {sorted(known)}. Received: {shown(unknown)}")
    splits = load_splits(source, skeleton=skeleton, **options)
    facts = splits.facts()
    if found := differences(recorded, facts):
        then, now = ({key: said.get(key) for key in found} for said in (recorded, facts))
        raise InputError(
            f"`data` must be what the run was trained on, {shown(then)}. "
            f"Received: {str(source)!r} with {shown(now)}"
        )
    return splits


def archive_digest(data: str | os.PathLike) -> str | None:
    """The digest of the archive that `load_splits` would read; None where it lies elsewhere."""
    if data == "generated":
        return ""
    try:
        return digest_of(find_archive() if data == "cmu24" else data)
    except (InputError, OSError):
        return None


def _origin(data: str | os.PathLike, options: Mapping[str, object]) -> dict[str, object]:
    """What `load_splits` was told, but the skeleton; the two options of interest in any case."""
    usual = {name: options_of(data)[name] for name in ("stride", "noise_px")}
    told = {"source": data, **usual, **options}
    return {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in told.items()
        if name != "skeleton"
    }


def differences(recorded: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Where splits are not those of a record.

    Args:
        recorded: what `Splits.facts` said. What an older version did not say counts as equal, and
            so does another place of an archive with the same digest.
        facts: what it says now.

    Returns:
        The keys, such as `"noise_px"`.
    """
    facts = json.loads(json.dumps(facts, default=plain))  # as in a record
    found, wanted = _comparable(recorded), _comparable(facts)
    keys = found.keys() | wanted.keys()
    if "validation_subjects" not in found:
        keys -= set(DATA_FACTS if "source" in found else wanted) - found.keys()
    if "digest" in found and found["digest"] == wanted.get("digest"):
        keys -= {"source", "path", "name"}
    return sorted(key for key in keys if found.get(key) != wanted.get(key))


def _comparable(data: Mapping[str, Any]) -> dict[str, Any]:
    """A record with every option that has a default, and nothing that is empty or a user's own."""
    source, options = data.get("source"), {}
    if isinstance(source, str) and (source in SOURCES or source.endswith(".npz")):
        options = {"source": source, **options_of(source)}
    known = {*DATA_FACTS, *options} - {"skeleton"}
    merged = {name: value for name, value in {**options, **data}.items() if name in known}
    return {
        name: sorted(value) if name in ("validation", "test") else value
        for name, value in merged.items()
        if value not in ("", None)
    }


def options_of(data: str | os.PathLike) -> dict[str, Any]:
    """The further arguments of `load_splits` for a data set, and their defaults."""
    loader = SOURCES[str(data)] if data in SOURCES else load_splits
    return {
        name: parameter.default
        for function in (observe, loader)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
        and name not in ("archive", "cameras", "data")
    }


def check_options(data: str | os.PathLike, options: Mapping[str, object]) -> None:
    """Refuses further arguments of `load_splits` that a data set does not take.

    Args:
        data: as `load_splits` takes it.
        options: the further arguments, by name.

    Raises:
        InputError: if it does not take one of them.
    """
    known = options_of(data)
    for name, value in options.items():
        if name not in known:
            raise InputError(
                f"`{name}` must be left out for data {str(data)!r}, which takes {sorted(known)}. "
                f"Received: {name}={shown(value)}"
            )

"""Trains a model and writes it, its history and its configuration under runs/NAME/."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import add_options, add_subjects, given_fields, leave, run

import keras

from keras_wsgcn import schemes
from keras_wsgcn.budget import AFFINITIES, count_params
from keras_wsgcn.data.cmu import CAMERAS
from keras_wsgcn.data.poses import Splits
from keras_wsgcn.data.sources import SOURCES, load_again, load_splits
from keras_wsgcn.environment import environment
from keras_wsgcn.errors import InputError, check_choice
from keras_wsgcn.plots import new_figure, plot_training_curves
from keras_wsgcn.recipes import PRECISIONS, RECIPES, SCHEDULES, TrainConfig
from keras_wsgcn.schemes import SCHEMES
from keras_wsgcn.skeletons import SKELETONS
from keras_wsgcn.training import train

RECIPE = "cmu"  # without --recipe
OWN = "archive"  # as a skeleton: that of what is trained on
CHOICES = {
    "scheme": SCHEMES,
    "affinity": AFFINITIES,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "skeleton": [*SKELETONS, OWN],
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Called again with the same options, a run goes on after its last finished epoch. "
        f"The backend is Keras's: set KERAS_BACKEND to tensorflow, jax or torch. --skeleton {OWN} "
        "takes all joints of an archive of your own.",
    )
    parser.add_argument(
        "--data",
        help=f"one of {', '.join(SOURCES)}, or the path of a motion archive (default: generated)",
    )
    parser.add_argument("--stride", type=int, help="take every n-th frame (default: 1)")
    parser.add_argument(
        "--noise-px", type=float, help="detector noise on the 2D input, in pixels (default: 0)"
    )
    parser.add_argument(
        "--train-cameras", choices=CAMERAS, help="cameras of the training poses (cmu24 only)"
    )
    parser.add_argument(
        "--mixed-trunks",
        action="store_true",
        default=None,
        help="every second camera sees the trunk as detectors do (cmu24 only)",
    )
    add_subjects(parser)
    parser.add_argument(
        "--from-trial",
        nargs=2,
        metavar=("STORAGE", "NUMBER"),
        help="repeat a trial of a study, such as runs/studies/table3/study.sqlite3 0; data and "
        "configuration are the trial's; with --data where its archive lies now, if it has moved",
    )
    parser.add_argument("--study", help="the trial's study, where the storage holds several")
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help=f"named configuration, which the options below change (default: {RECIPE})",
    )
    parser.add_argument("--name", help="name of the run (default: data, scheme and seed)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument(
        "--devices", type=int, default=1, help="spread each batch over so many (JAX, TensorFlow)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard logs")
    parser.add_argument("--pictures", action="store_true", help="draw the training curves")
    add_options(
        parser.add_argument_group("configuration"),
        TrainConfig,
        choices=CHOICES,
        recipes={RECIPE: RECIPES[RECIPE], **RECIPES},
    )
    return parser.parse_args(argv)


DATA_OPTIONS = ("stride", "noise_px", "train_cameras", "mixed_trunks", "validation", "test")


def settings(options: argparse.Namespace) -> tuple[TrainConfig, Splits]:
    """What to train, and the data."""
    changes = given_fields(options, TrainConfig)
    data = {name: getattr(options, name) for name in DATA_OPTIONS}
    data = {name: value for name, value in data.items() if value is not None}
    if options.study and not options.from_trial:
        raise InputError(
            f"`--from-trial` must be given with --study. Received: --study {options.study}"
        )
    if options.from_trial:
        recipe = ["recipe"] if options.recipe else []
        if given := [*recipe, *data, *changes]:
            raise InputError(
                "`--from-trial` must stand without other settings; --data says where the trial's "
                f"archive lies now. Received: {sorted(given)}"
            )
        storage, number = options.from_trial
        return settings_of_trial(storage, number, options.study, options.data)
    if "skeleton" in changes:
        check_choice("skeleton", changes["skeleton"], CHOICES["skeleton"])
    own = changes.get("skeleton") == OWN
    if own:
        del changes["skeleton"]
    config = dataclasses.replace(RECIPES[options.recipe or RECIPE], **changes)
    data["skeleton"] = None if own else config.skeleton
    splits = load_splits(options.data or "generated", **data)
    if own:
        config = dataclasses.replace(config, skeleton=splits.train.skeleton)
    return config, splits


def settings_of_trial(
    storage: str, number: str, study: str | None, moved: str | None
) -> tuple[TrainConfig, Splits]:
    from keras_wsgcn.studies.storage import read_trial

    if not re.fullmatch(r"\d{1,18}", number):
        raise InputError(f"`--from-trial` must end in a trial's number. Received: {number!r}")
    known = read_trial(storage, int(number), study).user_attrs
    config = TrainConfig.from_config(known["config"])
    recorded = {**known["start"]["data"], "digest": known.get("digest", "")}
    splits = load_again(recorded, moved, skeleton=config.skeleton)
    then, now = known.get("environment", {}), environment()
    for name in ("backend", "device", "machine", "commit", "together"):
        if then.get(name) != now.get(name):
            print(
                f"note: the trial ran with {name} {then.get(name)!r}, this is {now.get(name)!r}: "
                "the numbers may differ",
                file=sys.stderr,
            )
    return config, splits


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    config, splits = settings(options)
    scheme = schemes.get(config.scheme).name
    name = options.name or f"{splits.name}-{scheme}-{config.seed}"
    folder = options.runs / name
    channels = config.solved_channels()
    shape = {
        name: getattr(config, name) for name in ("blocks", "non_local", "affinity", "skeleton")
    }
    params = count_params(config.scheme, channels, **shape)
    print(f"{scheme}: {channels} channels, {params:,} parameters")
    print(f"{len(splits.train)} training and {len(splits.validation)} validation poses; {folder}")
    seen, dropped = len(splits.train), splits.train.dropped
    if dropped > seen / 10:
        print(
            f"note: {dropped} of {seen + dropped} training views are left out, where a joint lies "
            "outside of the image; are the motions in metres, z up?",
            file=sys.stderr,
        )
    callbacks = []
    if options.pictures:
        new_figure(1, 1)  # says before the work is done if matplotlib is missing
    if options.tensorboard:
        import tensorboard  # noqa: F401  Keras itself asks for it only after an epoch

        callbacks.append(keras.callbacks.TensorBoard(folder / "tensorboard"))
    result = train(config, splits, folder, callbacks=callbacks, devices=options.devices)
    best = result.history.nsmallest(1, "val_mpjpe_mm").iloc[0]
    print(f"best epoch {best['epoch']:.0f}: validation MPJPE {best['val_mpjpe_mm']:.1f} mm")
    if options.pictures:
        plot_training_curves(result.history, folder / "training.png")


if __name__ == "__main__":
    leave(run(main))

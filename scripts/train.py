"""Trains a model and writes it, its history and its configuration under runs/NAME/."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import add_options, run

from keras_wsgcn.data.cmu import CAMERAS
from keras_wsgcn.data.sources import SOURCES, load_splits
from keras_wsgcn.recipes import RECIPES, TrainConfig
from keras_wsgcn.training import train


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Called again with the same options, a run goes on after its last finished epoch. "
        "The backend is Keras's: set KERAS_BACKEND to tensorflow, jax or torch.",
    )
    parser.add_argument(
        "--data",
        default="generated",
        help=f"one of {', '.join(SOURCES)}, or the path of a motion archive (default: generated)",
    )
    parser.add_argument("--stride", type=int, default=1, help="take every n-th frame")
    parser.add_argument(
        "--noise-px", type=float, default=0.0, help="detector noise on the 2D input, in pixels"
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
    parser.add_argument(
        "--validation", type=int, nargs="+", help="subjects of an archive to validate on"
    )
    parser.add_argument("--test", type=int, nargs="+", help="subjects of an archive to test on")
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default="cmu",
        help="named configuration, which the options below change (default: cmu)",
    )
    parser.add_argument("--name", help="name of the run (default: data, scheme and seed)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard logs")
    parser.add_argument("--pictures", action="store_true", help="draw the training curves")
    add_options(parser.add_argument_group("configuration"), TrainConfig)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    changes = {name: value for name, value in vars(options).items() if name in names}
    config = dataclasses.replace(RECIPES[options.recipe], **changes)
    data = {
        name: getattr(options, name)
        for name in ("stride", "noise_px", "train_cameras", "mixed_trunks", "validation", "test")
        if getattr(options, name) is not None
    }
    splits = load_splits(options.data, skeleton=config.skeleton, **data)
    name = options.name or f"{splits.name}-{config.scheme}-{config.seed}"
    folder = options.runs / name
    print(f"{len(splits.train)} training and {len(splits.validation)} validation poses; {folder}")
    callbacks = []
    if options.tensorboard:
        import keras
        import tensorboard  # noqa: F401  Keras itself asks for it only after an epoch

        callbacks.append(keras.callbacks.TensorBoard(folder / "tensorboard"))
    result = train(
        config, splits, folder, callbacks=callbacks, facts={"source": options.data, **data}
    )
    best = result.history.nsmallest(1, "val_mpjpe_mm").iloc[0]
    print(f"best epoch {best['epoch']:.0f}: validation MPJPE {best['val_mpjpe_mm']:.1f} mm")
    if options.pictures:
        from keras_wsgcn.plots import plot_training_curves

        plot_training_curves(result.history, folder / "training.png")


if __name__ == "__main__":
    sys.exit(run(main))

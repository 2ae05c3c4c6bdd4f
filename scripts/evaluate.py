"""Evaluates a run's best model on its validation and test subjects and prints the errors.

Writes metrics.csv, and pictures on request, into the run's folder; metrics_last.csv with --last.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import run

import pandas as pd

from keras_wsgcn import schemes
from keras_wsgcn.data.poses import PoseDataset
from keras_wsgcn.evaluation import (
    evaluate,
    headline,
    load_run_data,
    paper_tables,
    read_run,
    table_by,
    worst_median_best,
)
from keras_wsgcn.files import write_text
from keras_wsgcn.plots import new_figure, plot_poses, plot_training_curves
from keras_wsgcn.prediction import predict, root_aligned
from keras_wsgcn.saving import load_model


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run, such as runs/quickstart")
    parser.add_argument("--data", type=Path, help="where the run's motion archive lies now")
    parser.add_argument("--last", action="store_true", help="take the last epoch, not the best")
    parser.add_argument(
        "--pictures", action="store_true", help="draw training curves and predicted skeletons"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    if options.pictures:
        new_figure(1, 1)  # says before the work is done if matplotlib is missing
    record, splits = read_run(options.run), load_run_data(options.run, options.data)
    model = load_model(options.run / f"{'last' if options.last else 'best'}.keras", compile=False)
    suffix = "_last" if options.last else ""
    tables = []
    for split in ("validation", "test"):
        poses: PoseDataset = getattr(splits, split)
        errors = evaluate(model, poses)
        print(f"\n{split}: {len(poses)} poses, {poses.dropped} views dropped")
        for by in ("action", "subject"):
            table = table_by(errors, by)
            tables.append(table.rename_axis("group").reset_index().assign(split=split, by=by))
            print(f"\nby {by}, millimetres and percent")
            print(table.T.to_string(float_format="{:.1f}".format, line_width=110))
        numbers = pd.Series(headline(errors, splits.seen_actions))
        print("\n" + numbers.to_string(float_format="{:.2f}".format))
        tables.append(
            numbers.rename("value").rename_axis("group").reset_index().assign(split=split, by="all")
        )
    tables += print_paper_tables(splits.keypoints, errors)
    frame = pd.concat(tables, ignore_index=True)
    frame = frame[["split", "by", *[c for c in frame if c not in ("split", "by")]]]
    path = options.run / f"metrics{suffix}.csv"
    write_text(path, frame.to_csv(index=False))
    scheme = schemes.get(record["config"].get("scheme"))
    print(f"\n{scheme.name}: metrics in {path}")
    if options.pictures:
        draw(options.run, f"poses{suffix}.png", model, splits.test, errors)


def print_paper_tables(keypoints: str, errors: pd.DataFrame) -> list[pd.DataFrame]:
    """Prints Tables 5 to 7 beside the test errors, where the keypoints are Human3.6M's."""
    if not keypoints:
        return []
    written = []
    for title, table in paper_tables(errors, keypoints).items():
        print(f"\n{title}")
        print(table.T.to_string(float_format="{:.1f}".format))
        rows = table.T.rename_axis("group").reset_index().melt("group", var_name="split")
        written.append(rows.assign(by=title.split(":")[0]))
    return written


def draw(folder: Path, picture: str, model, poses: PoseDataset, errors: pd.DataFrame) -> None:
    plot_training_curves(pd.read_csv(folder / "history.csv"), folder / "training.png")
    rows = worst_median_best(errors)
    examples = poses.subset(rows)
    titles = [
        f"{name}: {row.action}, subject {row.subject}"
        for name, (_, row) in zip(
            ("worst", "median", "best"), errors.iloc[rows].iterrows(), strict=True
        )
    ]
    plot_poses(
        examples.pose3d,
        root_aligned(predict(model, examples.pose2d), poses.skeleton.root),
        folder / picture,
        skeleton=poses.skeleton,
        pose2d=examples.pose2d,
        titles=titles,
    )
    print(f"pictures in {folder / 'training.png'} and {folder / picture}")


if __name__ == "__main__":
    sys.exit(run(main))

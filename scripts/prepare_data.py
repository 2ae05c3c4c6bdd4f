"""Turns data in formats of others into motion archives, one subcommand for each format.

Example: python scripts/prepare_data.py mocap recordings/ --output archive.npz --actions actions.csv
"""

import argparse
import sys
from collections.abc import Sequence

from cli import run

from keras_wsgcn.data import mocap_folders
from keras_wsgcn.data.archive import save_archive


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(title="formats", required=True, metavar="FORMAT")
    _add_mocap(commands)
    return parser


def _add_mocap(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "mocap",
        help="motion capture: ASF/AMC and BVH files",
        description="Reads every AMC and BVH file in a folder as the 17 joints of h36m_17. A "
        "skeleton 02.asf lies beside the motions 02_01.amc, 02_02.amc, ... of its person. Subject "
        "and take come from the names of the files, actions from a CSV file.",
    )
    command.add_argument("folder", metavar="FOLDER", help="where the files are, in it or below")
    command.add_argument(
        "-o", "--output", metavar="NPZ", required=True, help="the motion archive to be written"
    )
    command.add_argument(
        "--actions",
        metavar="CSV",
        help="columns: file (02_01.amc or 02_01), subject, action, description; without it, or in "
        'an empty cell, subject and take are those of the file name, and the action is "Unknown"',
    )
    command.add_argument(
        "--fps", type=float, default=30.0, help="frames per second to keep (default: %(default)g)"
    )
    command.add_argument(
        "--max-speed",
        metavar="M/S",
        type=float,
        default=mocap_folders.MAX_SPEED,
        help="takes are cut where a joint is faster, which is lost tracking (default: %(default)g)",
    )
    command.add_argument(
        "--min-frames",
        metavar="N",
        type=int,
        default=mocap_folders.MIN_FRAMES,
        help="pieces with fewer frames are dropped (default: %(default)s)",
    )
    command.set_defaults(run=_run_mocap)


def _run_mocap(args: argparse.Namespace) -> None:
    archive = mocap_folders.read_folder(
        args.folder,
        labels=mocap_folders.read_labels(args.actions) if args.actions else None,
        fps=args.fps,
        max_speed=args.max_speed,
        min_frames=args.min_frames,
        report=print,
    )
    save_archive(args.output, archive)
    frames = sum(len(motion.positions) for motion in archive.motions)
    print(f"{args.output}: {len(archive.motions)} sequences, {frames} frames")


if __name__ == "__main__":
    sys.exit(run(main))

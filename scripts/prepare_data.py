"""Turns data in formats of others into motion archives, one subcommand for each format.

Examples:
    python scripts/prepare_data.py mocap recordings/ --output archive.npz --actions actions.csv
    python scripts/prepare_data.py human36m --archives folder/ --detections cpn -o human36m.npz
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import run

from keras_wsgcn.data import human36m, mocap_folders
from keras_wsgcn.data.archive import MotionArchive, save_archive
from keras_wsgcn.data.mocap import CMU_METRES
from keras_wsgcn.errors import InputError


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if Path(args.output).suffix != ".npz":  # by which the other commands know an archive
        raise InputError(f"`--output` must end in .npz. Received: --output {args.output}")
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(title="formats", required=True, metavar="FORMAT")
    _add_mocap(commands)
    _add_human36m(commands)
    return parser


def _add_mocap(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "mocap",
        help="motion capture: ASF/AMC and BVH files",
        description="Reads every AMC and BVH file in a folder as the 17 joints of h36m_17: AMC "
        "with CMU's bones at 120 Hz, BVH as cgspeed made it of CMU's. Other motion comes in from "
        "Python, see README. A skeleton 02.asf lies beside the motions 02_01.amc, 02_02.amc, ... "
        "of its person. Subject and take come from the names of the files, actions from a CSV "
        "file.",
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
        "--only-labelled",
        action="store_true",
        help="leave out the files that --actions does not name",
    )
    command.add_argument(
        "--fps", type=float, default=30.0, help="frames per second to keep (default: %(default)g)"
    )
    command.add_argument(
        "--metres-per-unit",
        metavar="M",
        type=float,
        help="length of a unit of the BVH files, such as 0.01 for centimetres (default: that of "
        f"cgspeed's conversions, {CMU_METRES:.4f})",
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
    if args.only_labelled and not args.actions:
        raise InputError("`--actions` must be given with --only-labelled. Received: no --actions")
    archive = mocap_folders.read_folder(
        args.folder,
        labels=mocap_folders.read_labels(args.actions) if args.actions else None,
        only_labelled=args.only_labelled,
        fps=args.fps,
        metres_per_unit=args.metres_per_unit,
        max_speed=args.max_speed,
        min_frames=args.min_frames,
        report=print,
    )
    _save(args.output, archive)


def _add_human36m(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "human36m",
        help="Human3.6M: the archives of VideoPose3D, or the official CDF files",
        description="Converts Human3.6M once into a motion archive with the 17 joints of h36m_17, "
        "and the 2D poses of the four cameras where they are there. Archives are pickles; they are "
        "read by a reader of our own, which refuses all but plain arrays and executes nothing.",
    )
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--archives",
        metavar="FOLDER",
        help=f"where {human36m.POSITIONS_NAME} and {' or '.join(human36m.DETECTIONS.values())} are",
    )
    source.add_argument(
        "--cdf",
        metavar="FOLDER",
        help="where S1, S5, ... are, each with MyPoseFeatures/D3_Positions_mono (or D3_Positions) "
        "and D2_Positions",
    )
    command.add_argument(
        "--detections",
        choices=human36m.DETECTIONS,
        help="2D poses to take from the archives: true ones or a detector's (default: gt)",
    )
    command.add_argument(
        "-o", "--output", metavar="NPZ", required=True, help="the motion archive to be written"
    )
    command.set_defaults(run=_run_human36m)


def _run_human36m(args: argparse.Namespace) -> None:
    if args.cdf and args.detections == "cpn":
        raise InputError(
            "`--detections` must be gt, or left out, with --cdf. Received: --detections cpn"
        )
    if args.cdf:
        archive = human36m.read_cdf(args.cdf, print)
    else:
        archive = human36m.read_archives(args.archives, args.detections or "gt", print)
    _save(args.output, archive)


def _save(output: str, archive: MotionArchive) -> None:
    save_archive(output, archive)
    frames = sum(len(motion.positions) for motion in archive.motions)
    print(f"{output}: {len(archive.motions)} sequences, {frames} frames")


if __name__ == "__main__":
    sys.exit(run(main))

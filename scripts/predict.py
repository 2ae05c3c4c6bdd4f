"""Lifts the 2D keypoints of a video to 3D poses and writes them as NPZ, JSON or CSV.

KEYPOINTS is a file of COCO's, AlphaPose's or MMPose's results (.json), a folder of OpenPose's or
MMPose's files, or an array (.npy, .npz).
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli import run

import keras
import numpy as np

from keras_wsgcn import animation
from keras_wsgcn.data.keypoint_files import read_keypoints
from keras_wsgcn.data.keypoints import FORMATS, KeypointFormat, KeypointTrack, format_of
from keras_wsgcn.errors import InputError, check_number
from keras_wsgcn.files import atomic_path
from keras_wsgcn.inference import WRITERS, PoseSequence, lift_tracks, save_poses
from keras_wsgcn.models import skeleton_of
from keras_wsgcn.pretrained import DEFAULT_MODEL, load_pretrained
from keras_wsgcn.saving import load_model
from keras_wsgcn.skeletons import Skeleton

# Which endings each of the outputs can have.
SUFFIXES = {
    "output": tuple(WRITERS),
    "picture": (".png",),
    "animation": (".gif", ".mp4"),
    "page": (".html",),
}
EPILOG = (
    "The 3D is in metres, in the camera's frame (x right, y down, z away), relative to the pelvis, "
    "or the root of another skeleton. "
    "The camera need not be known: the model assumes one like those it was trained with, so what a "
    "very wide or very long lens sees comes out distorted."
)
OWN = "model"  # the format of keypoints that are the model's joints
_FRACTION = 2.0  # pixels in which no person fits: such numbers are fractions of the image
_PERCENT = 10.0  # a confidence above is none between 0 and 1, nor OpenPose's, a little above
_OUTSIDE_SHARE = 0.1  # of the joints; more is no person at the edge
_OUTSIDE = 10.0  # a fraction so far outside of the image is no fraction


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a .keras file, the folder of a run, or the name of a model of the library "
        f"(default: {DEFAULT_MODEL})",
    )
    add_keypoint_options(parser)
    return parser.parse_args(argv)


def add_keypoint_options(parser: argparse.ArgumentParser) -> None:
    """The options of what is read and written, which `query.py` has too."""
    parser.add_argument("keypoints", type=Path, help="file or folder of the keypoints")
    parser.add_argument(
        "--format",
        choices=[*FORMATS, OWN],
        default="coco17",
        help=f"of the keypoints; {OWN}: they are the model's joints in its order (default: coco17)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("W", "H"),
        help="of the video in pixels (default: as if the people were in its middle)",
    )
    parser.add_argument(
        "--fractions",
        action="store_true",
        help="coordinates are fractions of the image's width and height, as MediaPipe writes them",
    )
    parser.add_argument("--fps", type=float, default=30.0, help="frames per second (default: 30)")
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.3,
        help="a joint of which the detector is less sure is missing (default: 0.3)",
    )
    parser.add_argument(
        "--max-gap",
        type=int,
        default=8,
        help="frames in a row that are interpolated at most; longer gaps stay (default: 8)",
    )
    parser.add_argument(
        "--least-frames",
        type=int,
        default=1,
        help="leave out people who are seen in fewer frames (default: 1)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="3D poses: .npz, .json or .csv"
    )
    parser.add_argument("--picture", type=Path, help="also draw some poses: .png")
    parser.add_argument("--animation", type=Path, help="also animate them: .gif or .mp4")
    parser.add_argument("--page", type=Path, help="also write a page to turn and play them: .html")


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    model = functools.cache(lambda: find_model(options.model))

    def lift(tracks: list[KeypointTrack], size: tuple[int, int], **settings: Any) -> PoseSequence:
        return lift_tracks(model(), tracks, size, **settings)

    lift_file(options, lift, lambda: skeleton_of(model()))


def lift_file(
    options: argparse.Namespace, lift: Callable[..., PoseSequence], joints: Callable[[], Skeleton]
) -> PoseSequence:
    """Reads the keypoints, lifts them with `lift`, reports and writes all that was asked for.

    What the model's `joints` are is asked only where the keypoints are said to be them.
    """
    writers = plan_outputs(options)
    check_number("fps", options.fps, above=0.0, below=1000.0)
    format = format_of(joints()) if options.format == OWN else options.format
    tracks = read_people(options, format)
    size = tuple(options.image_size) if options.image_size else assumed_size(tracks, options)
    sequence = lift(
        tracks,
        size,
        fps=options.fps,
        least_confidence=options.confidence,
        max_gap=options.max_gap,
    )
    if not sequence.lifted.any():
        lost = lost_joints(sequence)
        reason = f"{lost} are missing" if lost else "no frame has all joints, half of them seen"
        raise InputError(
            f"`keypoints` must show somebody whole in some frame; {reason}. "
            f"Received: keypoints={str(options.keypoints)!r}"
        )
    report(sequence)
    if options.image_size:
        note_outside(tracks, size, options.confidence)
    with contextlib.ExitStack() as finished:  # all of the files appear, or none
        for path, write in writers.items():
            write(sequence, finished.enter_context(atomic_path(path)))
    print(f"wrote {', '.join(map(str, writers))}")
    return sequence


def plan_outputs(options: argparse.Namespace) -> dict[Path, Callable[[PoseSequence, Path], None]]:
    """What to write where, everything checked that can be before the work begins."""
    chosen = {name: getattr(options, name) for name in SUFFIXES if getattr(options, name)}
    for name, path in chosen.items():
        if path.suffix not in SUFFIXES[name]:
            raise InputError(
                f"`{name}` must end in one of {list(SUFFIXES[name])}. "
                f"Received: {name}={str(path)!r}"
            )
        source = options.keypoints
        if path.is_dir() or (path.exists() and source.exists() and path.samefile(source)):
            raise InputError(
                f"`{name}` must be a file, and not the one of the keypoints. "
                f"Received: {name}={str(path)!r}"
            )
    writers: dict[str, Callable] = {"output": lambda sequence, path: save_poses(path, sequence)}
    drawn = [name for name in chosen if name != "output"]
    writers |= {name: getattr(animation, f"write_{name}") for name in drawn}
    return {path: writers[name] for name, path in chosen.items()}


def read_people(options: argparse.Namespace, format: str | KeypointFormat) -> list[KeypointTrack]:
    """The people of the file, in pixels, those left out who are hardly seen."""
    found = read_keypoints(options.keypoints, format, least_confidence=options.confidence)
    frames = [int(track.seen(options.confidence).any(axis=1).sum()) for track in found]
    if options.least_frames > max(frames):
        raise InputError(
            f"`least_frames` must be at most {max(frames)}, which is as long as anybody is seen. "
            f"Received: least_frames={options.least_frames}"
        )
    tracks = [
        track for track, count in zip(found, frames, strict=True) if count >= options.least_frames
    ]
    sure = np.concatenate([track.confidence[track.confidence > 0] for track in tracks])
    if len(sure) and np.median(sure) > _PERCENT and 0 < options.confidence < 1:
        raise InputError(
            "`confidence` must be on the scale of the keypoints', which seems not to be 0 to 1; 0 "
            f"takes every joint. Received: confidence={options.confidence:g} for confidences of "
            f"{np.median(sure):.4g} in the middle"
        )
    largest = float(np.abs(seen_points(tracks, options.confidence)).max(initial=0.0))
    if options.fractions:
        if not options.image_size:
            raise InputError(
                "`image_size` must be given with `fractions`. Received: image_size=None"
            )
        if largest > _OUTSIDE:
            raise InputError(
                "`keypoints` must be fractions of the image; leave out --fractions for pixels. "
                f"Received: keypoints={str(options.keypoints)!r} with values up to {largest:.4g}"
            )
        size = np.array(options.image_size, dtype=float)
        return [replace(track, keypoints=track.keypoints * size) for track in tracks]
    if largest <= _FRACTION:
        raise InputError(
            "`keypoints` must be pixels; for fractions of the image add --fractions. "
            f"Received: keypoints={str(options.keypoints)!r} with values up to {largest:.4g}"
        )
    return tracks


def seen_points(tracks: list[KeypointTrack], confidence: float) -> np.ndarray:
    """Where joints were seen, of all people and frames, `(points, 2)`."""
    return np.concatenate([track.keypoints[track.seen(confidence)] for track in tracks])


def find_model(name: str) -> keras.Model:
    """A model out of a file, the best of a run's folder, or one of the library by its name."""
    if (Path(name) / "best.keras").is_file():
        name = str(Path(name) / "best.keras")
    if Path(name).suffix or Path(name).is_file():
        return load_model(name, compile=False)
    return load_pretrained(name)


def assumed_size(tracks: list[KeypointTrack], options: argparse.Namespace) -> tuple[int, int]:
    """An image size for want of the true one: as if the people were in the image's middle."""
    points = seen_points(tracks, options.confidence)
    low, high = points.min(axis=0), points.max(axis=0)
    size = np.maximum(high + np.maximum(low, 0), high - low)  # detectors also see what is cut off
    width, height = np.ceil(np.maximum(size, 1)).astype(int).tolist()
    print(
        f"image size not given: assumed {width} x {height} pixels, as if the people were in the "
        "middle; give --image-size W H for better poses"
    )
    return width, height


def note_outside(tracks: list[KeypointTrack], size: tuple[int, int], confidence: float) -> None:
    """Says so where many joints lie outside of the image: the size is then another."""
    points = seen_points(tracks, confidence)

    def outside(size: tuple[int, int]) -> float:
        return float((points > size).any(axis=1).mean()) if len(points) else 0.0

    if (share := outside(size)) > _OUTSIDE_SHARE:
        swapped = (size[1], size[0])
        hint = f": {swapped[0]} {swapped[1]} would fit" if outside(swapped) < share / 4 else ""
        print(
            f"note: {share:.0%} of the seen joints lie right of or below the image of {size[0]} x "
            f"{size[1]} pixels, check --image-size{hint}",
            file=sys.stderr,
        )


def report(sequence: PoseSequence) -> None:
    print(
        f"people: {len(sequence.people)}, frames {sequence.frames[0]} to {sequence.frames[-1]}, "
        f"{sequence.skeleton.num_joints} joints; {sequence.image_size[0]} x "
        f"{sequence.image_size[1]} pixels, a camera like those of the training is assumed"
    )
    for name, lifted, pose2d in zip(sequence.people, sequence.lifted, sequence.pose2d, strict=True):
        seen = np.isfinite(pose2d).any(axis=(1, 2))
        print(f"person {name}: {lifted.sum()} poses of {seen.sum()} frames in which they are seen")


def lost_joints(sequence: PoseSequence) -> list[str]:
    """Joints that are missing in most frames in which anybody is seen."""
    there = np.isfinite(sequence.pose2d).all(axis=-1)
    there = there[there.any(axis=-1)]
    names = sequence.skeleton.joint_names
    return [name for name, share in zip(names, there.mean(axis=0), strict=True) if share < 0.5]


if __name__ == "__main__":
    sys.exit(run(main))

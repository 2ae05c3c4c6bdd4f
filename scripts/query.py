"""Lifts 2D keypoints on a server: TensorFlow Serving, by REST or gRPC. Writes NPZ, JSON or CSV.

KEYPOINTS is a file of COCO's, AlphaPose's or MMPose's results (.json), a folder of OpenPose's or
MMPose's files, or an array (.npy, .npz).
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli import run

import keras
import numpy as np
from predict import EPILOG, add_keypoint_options, find_model, lift_file

from keras_wsgcn import skeletons
from keras_wsgcn.data.keypoints import KeypointTrack
from keras_wsgcn.errors import InputError
from keras_wsgcn.exporting.formats import METADATA_FILE, skeleton_of_card
from keras_wsgcn.inference import PoseSequence, lift_tracks, lift_tracks_with
from keras_wsgcn.models import skeleton_of
from keras_wsgcn.serving import connect
from keras_wsgcn.serving.client import Client
from keras_wsgcn.serving.config import REST_PORT
from keras_wsgcn.skeletons import Skeleton


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "--server",
        default=f"http://localhost:{REST_PORT}",
        help="http://HOST:8501, https://..., or grpc://HOST:8500 (default: %(default)s)",
    )
    parser.add_argument("--name", required=True, help="of the model on the server")
    parser.add_argument("--version", type=int, help="of the model (default: the newest)")
    parser.add_argument(
        "--skeleton",
        help=f"joints of the model: h36m_16, h36m_17, or its card, NAME/VERSION/{METADATA_FILE} "
        "(default: those of the model compared with, else h36m_16 or h36m_17, by their number)",
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, help="seconds to wait for an answer (default: 30)"
    )
    parser.add_argument(
        "--compare",
        metavar="MODEL",
        help="also lift with this .keras file or model here, and print how far the server is off",
    )
    add_keypoint_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    model = find_model(options.compare) if options.compare else None
    asked: dict[str, Any] = {}

    @functools.cache
    def served() -> tuple[Client, Skeleton]:
        client = connect(
            options.server, options.name, version=options.version, timeout=options.timeout
        )
        return client, joints_of(client, options, model)

    def lift(tracks: list[KeypointTrack], size: tuple[int, int], **settings: Any) -> PoseSequence:
        client, skeleton = served()
        asked.update(tracks=tracks, image_size=size, **settings)
        return lift_tracks_with(client.lift, skeleton, **asked)

    sequence = lift_file(options, lift, lambda: served()[1])
    if model is not None:
        here = lift_tracks(model, **asked)
        apart = 1e3 * np.linalg.norm(sequence.pose3d - here.pose3d, axis=-1)[sequence.lifted]
        print(
            f"{options.server} and {options.compare} here: {apart.mean():.2g} mm apart on average, "
            f"{apart.max():.2g} mm at most, over {sequence.lifted.sum()} poses"
        )


def joints_of(client: Client, options: argparse.Namespace, model: keras.Model | None) -> Skeleton:
    """What joints the server takes, of which it says the number alone."""
    compared = skeleton_of(model) if model is not None else None
    if options.skeleton is None:
        skeleton = compared or skeletons.get(f"h36m_{client.num_joints}")
    elif Path(options.skeleton).suffix == ".json":
        skeleton = skeleton_of_card(options.skeleton)
    else:
        skeleton = skeletons.get(options.skeleton)
    if compared and compared.joint_names != skeleton.joint_names:
        raise InputError(
            "`compare` must be a model of the same joints. "
            f"Received: compare={options.compare!r}, skeleton={options.skeleton!r}"
        )
    if skeleton.num_joints != client.num_joints:
        raise InputError(
            f"`{'compare' if options.skeleton is None else 'skeleton'}` must have the model's "
            f"{client.num_joints} joints. Received: the {skeleton.num_joints} of {skeleton.name!r}"
        )
    return skeleton


if __name__ == "__main__":
    sys.exit(run(main))

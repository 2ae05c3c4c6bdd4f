"""Lifts 2D keypoints on a server: TensorFlow Serving, by REST or gRPC. Writes NPZ, JSON or CSV.

KEYPOINTS is a COCO results file (.json), a folder of OpenPose's files, or an array (.npy, .npz).
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from cli import run
from predict import EPILOG, add_keypoint_options, find_model, lift_file

from keras_wsgcn import skeletons
from keras_wsgcn.data.keypoints import KeypointTrack
from keras_wsgcn.errors import InputError
from keras_wsgcn.inference import PoseSequence, lift_tracks, lift_tracks_with
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
        "--skeleton", help="joints of the model (default: h36m_16 or h36m_17, by their number)"
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

    def lift(tracks: list[KeypointTrack], size: tuple[int, int], **settings: Any) -> PoseSequence:
        client = connect(
            options.server, options.name, version=options.version, timeout=options.timeout
        )
        asked.update(tracks=tracks, image_size=size, **settings)
        return lift_tracks_with(client.lift, joints_of(client, options), **asked)

    sequence = lift_file(options, lift)
    if model is not None:
        here = lift_tracks(model, **asked)
        apart = 1e3 * np.linalg.norm(sequence.pose3d - here.pose3d, axis=-1)[sequence.lifted]
        print(
            f"{options.server} and {options.compare} here: {apart.mean():.2g} mm apart on average, "
            f"{apart.max():.2g} mm at most, over {sequence.lifted.sum()} poses"
        )


def joints_of(client: Client, options: argparse.Namespace) -> Skeleton:
    skeleton = skeletons.get(options.skeleton or f"h36m_{client.num_joints}")
    if skeleton.num_joints != client.num_joints:
        raise InputError(
            f"`skeleton` must have the model's {client.num_joints} joints. "
            f"Received: skeleton={options.skeleton!r}"
        )
    return skeleton


if __name__ == "__main__":
    sys.exit(run(main))

"""Makes a folder that TensorFlow Serving can serve, and says how to start and query it.

Exports MODEL as the next version of FOLDER/NAME, writes FOLDER/models.config for all models in
the folder, and prints the exact `docker run` line. Without MODEL, what is in the folder is served.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cli import run

from export import describe
from predict import find_model

from keras_wsgcn import skeletons
from keras_wsgcn.environment import command_line
from keras_wsgcn.errors import InputError
from keras_wsgcn.exporting import export
from keras_wsgcn.exporting.formats import METADATA_FILE, skeleton_of_card
from keras_wsgcn.serving import docker_command, served_models, write_config
from keras_wsgcn.serving.config import (
    GRPC_PORT,
    IMAGE,
    REST_PORT,
    check_name,
    check_ports,
    models_in,
    versions,
)
from keras_wsgcn.serving.stand_in import StandIn


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a .keras file, the folder of a run, or the name of a model of the library",
    )
    parser.add_argument(
        "--name", help="to serve it under (default: name of the run, file or model)"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/serving"), help="default: runs/serving"
    )
    parser.add_argument("--rest-port", type=int, default=REST_PORT, help=f"default: {REST_PORT}")
    parser.add_argument("--grpc-port", type=int, default=GRPC_PORT, help=f"default: {GRPC_PORT}")
    parser.add_argument("--image", help=f"of TensorFlow Serving (default: {IMAGE})")
    parser.add_argument(
        "--stand-in",
        action="store_true",
        help="start a stand-in with the server's REST and gRPC interface on this machine, until "
        "Ctrl-C: to try clients, not for production; port 0 takes any",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    if options.name and not options.model:
        raise InputError(f"`MODEL` must be given with --name. Received: --name {options.name}")
    if options.image and options.stand_in:
        raise InputError(
            f"`--image` must be left out with --stand-in. Received: --image {options.image}"
        )
    image = options.image or IMAGE
    ports = {"rest_port": options.rest_port, "grpc_port": options.grpc_port}
    if options.stand_in:  # checked before the work
        check_ports(0, **ports)
        check_free(ports)
    else:
        docker_command(options.folder, image=image, **ports)
    name = None
    if options.model:
        name = check_name(options.name or name_of(Path(options.model)))
        models_in(options.folder)  # whose names are in the configuration, too
        print(describe(export(find_model(options.model), options.folder / name)))
    config = write_config(options.folder)
    models = served_models(options.folder)
    print(f"{config}: {', '.join(f'{name} version {v[-1]}' for name, v in models.items())}")
    name = name or next(iter(models))
    if options.stand_in:
        stand_in(options.folder, name, ports)
        return
    print("\nTensorFlow Serving:\n")
    print(f"  {docker_command(options.folder, image=image, **ports)}")
    print_queries(options.folder, name, **ports)


def name_of(model: Path) -> str:
    """What a model is served under: the name of its run, whose files are all called alike."""
    return model.resolve().parent.name if model.name in ("best.keras", "last.keras") else model.stem


def check_free(ports: dict[str, int]) -> None:
    """Refuses a port that is taken: a server there would take up what is exported here."""
    for name, port in ports.items():
        with socket.socket() as own:
            if os.name != "nt":  # where it means another thing: to share the port
                own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                own.bind(("127.0.0.1", port))
            except OSError:
                raise InputError(f"`{name}` must be free. Received: {name}={port}") from None


def print_queries(folder: Path, name: str, rest_port: int, grpc_port: int) -> None:
    print("\nand then one of\n")
    joints = joints_of(folder / name / str(versions(folder / name)[-1]) / METADATA_FILE)
    for server in (f"http://localhost:{rest_port}", f"grpc://localhost:{grpc_port}"):
        print(
            f"  python scripts/query.py KEYPOINTS --server {server} --name {name} "
            f"{joints}--image-size W H -o poses.npz"
        )


def joints_of(card: Path) -> str:
    """What `query.py` is told of joints that are not the library's, which it assumes otherwise."""
    try:
        own = skeleton_of_card(card).name not in skeletons.SKELETONS
    except InputError:
        return ""  # not an export of the library
    return f"--skeleton {command_line([str(card)])} " if own else ""


def stand_in(folder: Path, name: str, ports: dict[str, int]) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    with StandIn(folder, rest_port=ports["rest_port"], grpc_port=ports["grpc_port"]) as server:
        print(
            f"stand-in for TensorFlow Serving: REST on port {server.rest_port}, gRPC on port "
            f"{server.grpc_port}; not for production. Ctrl-C ends it."
        )
        print_queries(folder, name, server.rest_port, server.grpc_port)
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)


if __name__ == "__main__":
    sys.exit(run(main))

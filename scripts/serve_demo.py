"""From the shipped model to a served one and back, on this machine: `make serve-demo`.

Writes a keypoint file of a generated walk, exports the model in every format, starts the stand-in
for TensorFlow Serving, queries it by REST and gRPC with the file, and says how far its poses are
from those that Keras computes here.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cli import run

import numpy as np
from export import describe
from predict import find_model

from keras_wsgcn.data.cmu import four_cameras
from keras_wsgcn.data.motions import generate_motions
from keras_wsgcn.errors import InputError
from keras_wsgcn.exporting import FORMATS, export
from keras_wsgcn.files import atomic_path
from keras_wsgcn.pretrained import DEFAULT_MODEL

SCRIPTS = Path(__file__).parent
IMAGE_SIZE = ("1000", "1000")  # of the generated cameras


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a .keras file or a model's name (default: %(default)s)",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/serve_demo"), help="default: runs/serve_demo"
    )
    return parser.parse_args(argv)


def write_keypoints(path: Path) -> None:
    """A generated walk as one camera sees it, `(frames, 17, 2)` pixels."""
    motion = generate_motions(subjects=1, takes=1, seconds=4.0, actions=["Walking"]).motions[0]
    camera = four_cameras(motion)[1]
    positions = motion.positions.astype(np.float64)
    with atomic_path(path) as temporary:
        np.save(temporary, camera.project(camera.world_to_camera(positions)))


@contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """Starts `serve.py --stand-in` as a user would; yields its addresses by protocol."""
    command = [sys.executable, str(SCRIPTS / "serve.py"), "--folder", str(folder), "--stand-in"]
    command += ["--rest-port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        addresses: dict[str, str] = {}
        for line in process.stdout:
            words = line.split()
            if "--server" in words:
                address = words[words.index("--server") + 1]
                addresses[address.split(":")[0]] = address
            if len(addresses) == 2:
                break
        else:
            raise InputError(f"`folder` must be servable. Received: folder={str(folder)!r}")
        yield addresses
    finally:
        process.terminate()
        process.wait(timeout=30)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    keypoints, served = options.folder / "walk.npy", options.folder / "models"
    write_keypoints(keypoints)
    model, name = find_model(options.model), Path(options.model).stem
    for form in FORMATS.values():
        path = options.folder / f"{name}{form.suffix}" if form.suffix else served / name
        if form.suffix == ".xml":  # a pair of files, which is never replaced
            path.unlink(missing_ok=True)
            path.with_suffix(".bin").unlink(missing_ok=True)
        print(describe(export(model, path)))
    with server(served) as addresses:
        for protocol, address in addresses.items():
            print(f"\n{address}")
            command = [sys.executable, str(SCRIPTS / "query.py"), str(keypoints)]
            command += ["--format", "h36m17", "--image-size", *IMAGE_SIZE, "--server", address]
            command += ["--name", name, "--compare", options.model]
            output = options.folder / f"poses_{'rest' if protocol == 'http' else protocol}.npz"
            subprocess.run([*command, "-o", str(output)], check=True)
    print("\nTensorFlow Serving itself takes the same folder; python scripts/serve.py --help")


if __name__ == "__main__":
    sys.exit(run(main))

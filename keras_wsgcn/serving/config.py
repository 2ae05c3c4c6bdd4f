"""What TensorFlow Serving is started with: its list of models, and the command line."""

import json
import os
import re
from pathlib import Path

from keras_wsgcn.environment import command_line
from keras_wsgcn.errors import InputError, check_integer
from keras_wsgcn.files import write_text

CONFIG_FILE = "models.config"
IMAGE = "tensorflow/serving"
REST_PORT, GRPC_PORT = 8501, 8500  # the server's own
_MOUNT = "/models"  # where the image looks
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # of a model


def versions(folder: Path) -> list[int]:
    """The complete versions of a served model, in order; the server takes the last."""
    if not folder.is_dir():
        return []
    numbered = [path for path in folder.iterdir() if path.name.isdecimal()]
    return sorted(int(path.name) for path in numbered if (path / "saved_model.pb").is_file())


def served_models(folder: str | os.PathLike) -> dict[str, list[int]]:
    """The models in a folder of SavedModels, `folder/NAME/VERSION/`, and their versions.

    Raises:
        InputError: if there is none, or a name would not do in an address.
    """
    found = models_in(folder)
    if not found:
        raise InputError(
            "`folder` must hold models as `NAME/VERSION/saved_model.pb`. "
            f"Received: folder={str(folder)!r}"
        )
    return found


def models_in(folder: str | os.PathLike) -> dict[str, list[int]]:
    """As `served_models`, of a folder that may still be empty, or not there.

    Raises:
        InputError: if a name would not do in an address, or there is a folder where the list of
            models goes, as docker makes where it shall mount a file that is not there.
    """
    if (path := Path(folder) / CONFIG_FILE).is_dir():
        raise InputError(f"`folder` must hold no folder {CONFIG_FILE!r}. Received: {str(path)!r}")
    found = {path.name: versions(path) for path in sorted(Path(folder).glob("*"))}
    return {check_name(name): numbers for name, numbers in found.items() if numbers}


def check_name(name: str) -> str:
    """`name`, if a model can be served under it.

    Raises:
        InputError: otherwise.
    """
    if NAME.fullmatch(name):
        return name
    raise InputError(
        "`name` must begin with a letter, digit or `_`, and go on with these, `-` and `.`. "
        f"Received: name={name!r}"
    )


def write_config(folder: str | os.PathLike) -> Path:
    """Writes `folder/models.config`, the list of the models in it, as the server reads it.

    Args:
        folder: SavedModels as `NAME/VERSION/`.

    Returns:
        The file.

    Raises:
        InputError: if the folder holds no model.
    """
    entries = "".join(
        f"  config {{\n    name: {json.dumps(name)}\n"
        f"    base_path: {json.dumps(f'{_MOUNT}/{name}')}\n"
        '    model_platform: "tensorflow"\n  }\n'
        for name in served_models(folder)
    )
    path = Path(folder) / CONFIG_FILE
    write_text(path, f"model_config_list {{\n{entries}}}\n")
    return path


def check_ports(least: int = 1, **ports: int) -> None:
    """Refuses, by its name, what is no port.

    Raises:
        InputError: if one is not an integer from `least` to 65535, or two are the same.
    """
    for name, port in ports.items():
        if check_integer(name, port, least=least) > 65535:
            raise InputError(f"`{name}` must be at most 65535. Received: {name}={port}")
    taken = [port for port in ports.values() if port]  # 0 stands for any
    if len(set(taken)) < len(taken):
        received = ", ".join(f"{name}={port}" for name, port in ports.items())
        raise InputError(
            f"{' and '.join(f'`{n}`' for n in ports)} must differ. Received: {received}"
        )


def docker_command(
    folder: str | os.PathLike,
    *,
    image: str = IMAGE,
    rest_port: int = REST_PORT,
    grpc_port: int = GRPC_PORT,
) -> str:
    """The line that serves a folder with TensorFlow Serving's own image.

    Args:
        folder: the folder that `write_config` wrote into.
        image: name of the image.
        rest_port: port of this machine for REST.
        grpc_port: port of this machine for gRPC.

    Returns:
        A line for the shell.

    Raises:
        InputError: if a port is out of range, or docker could not mount the folder.
    """
    check_ports(rest_port=rest_port, grpc_port=grpc_port)
    source = str(Path(folder).resolve())
    if "," in source:
        raise InputError(f"`folder` must have no comma in its path. Received: folder={source!r}")
    return command_line(
        [
            "docker", "run", "--rm", "-p", f"{rest_port}:{REST_PORT}",
            "-p", f"{grpc_port}:{GRPC_PORT}",
            "--mount", f"type=bind,source={source},target={_MOUNT},readonly",
            image,
            f"--model_config_file={_MOUNT}/{CONFIG_FILE}",
            "--model_config_file_poll_wait_seconds=60",
        ]
    )  # fmt: skip

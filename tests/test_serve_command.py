"""`serve.py` and the docker line: what is exported for a server, and what is refused before."""

import shlex
import socket
from pathlib import Path

import cli

import keras
import pytest
import serve as serve_command
from predict import find_model
from test_export import randomise

from keras_wsgcn import InputError, build_model, save_model
from keras_wsgcn.serving import docker_command

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the stand-in is TensorFlow, whatever the backend",
)


def test_serve_exports_and_says_how_to_go_on(rng, tmp_path, capsys):
    model = randomise(build_model("post_agg", channels=8, blocks=1), rng)
    save_model(model, tmp_path / "mine.keras")
    arguments = [str(tmp_path / "mine.keras"), "--folder", str(tmp_path / "served")]
    assert cli.run(serve_command.main, arguments) == 0
    output = capsys.readouterr().out
    assert "docker run --rm -p 8501:8501" in output
    assert "--name mine" in output
    assert cli.run(serve_command.main, [*arguments, "--name", "another"]) == 0  # before `mine`
    save_model(model, tmp_path / "zoo.keras")
    assert cli.run(serve_command.main, [str(tmp_path / "zoo.keras"), *arguments[1:]]) == 0
    assert "--name zoo" in capsys.readouterr().out.rpartition("docker run")[2]
    assert (tmp_path / "served" / "mine" / "1" / "saved_model.pb").is_file()


def test_the_docker_line_survives_the_shell(tmp_path):
    words = shlex.split(docker_command(tmp_path / "a b", rest_port=1234, image="mine:1"))
    assert words[:3] == ["docker", "run", "--rm"]
    assert f"type=bind,source={tmp_path / 'a b'},target=/models,readonly" in words
    assert words.index("mine:1") < words.index("--model_config_file=/models/models.config")
    assert "1234:8501" in words
    for wrong in ({"rest_port": 0}, {"grpc_port": 70000}):
        with pytest.raises(InputError, match=r"`(rest|grpc)_port` must be"):
            docker_command(tmp_path, **wrong)


@pytest.mark.parametrize("port", [99999, -1, 1.5, "8500"])
def test_what_is_no_port_is_refused_before_a_model_is_loaded(port, tmp_path, capsys):
    from keras_wsgcn.serving.stand_in import StandIn

    for name in ("rest_port", "grpc_port"):
        with pytest.raises(InputError, match=rf"`{name}` must be .*Received: {name}={port!r}"):
            StandIn(tmp_path / "none", **{name: port})
    arguments = ["none.keras", "--folder", str(tmp_path), "--stand-in", "--grpc-port", "99999"]
    assert cli.run(serve_command.main, arguments) == 2
    assert "`grpc_port` must be at most 65535" in capsys.readouterr().err


def test_ports_differ_and_are_free_before_a_model_is_exported(tmp_path, capsys):
    with pytest.raises(InputError, match=r"`rest_port` and `grpc_port` must differ.*Received: "):
        docker_command(tmp_path, rest_port=9000, grpc_port=9000)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        arguments = ["none.keras", "--folder", str(tmp_path), "--stand-in", "--rest-port", port]
        assert cli.run(serve_command.main, arguments) == 2
    assert f"`rest_port` must be free. Received: rest_port={port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my model/1/saved_model.pb", "Received: name='my model'"),
        ("models.config/any", "`folder` must hold no folder 'models.config'"),
    ],
)
def test_the_folder_is_looked_at_before_a_model_is_exported(path, message, tmp_path, capsys):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    save_model(build_model("pre_agg", channels=4, blocks=0), tmp_path / "mine.keras")
    assert (
        cli.run(serve_command.main, [str(tmp_path / "mine.keras"), "--folder", str(tmp_path)]) == 2
    )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_the_models_of_runs_are_called_as_their_runs(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    for path in ("best.keras", "../mine/last.keras", "mine", "elsewhere/mine.keras"):
        assert serve_command.name_of(Path(path)) == "mine"
    save_model(build_model("pre_agg", channels=4, blocks=0), "best.keras")
    assert find_model(str(tmp_path / "mine")).metadata["channels"] == 4


def test_an_image_is_for_no_stand_in(tmp_path, capsys):
    arguments = ["none.keras", "--folder", str(tmp_path), "--stand-in", "--image", "mine:1"]
    assert cli.run(serve_command.main, arguments) == 2
    assert "`--image` must be left out with --stand-in" in capsys.readouterr().err

"""Clients and `query.py` against the stand-in for TensorFlow Serving, its statuses, and files."""

import json
import os
import shutil
import socket
import threading
import urllib.error
import urllib.request

import cli

import keras
import numpy as np
import pytest
import query as query_command
from test_export import randomise

from keras_wsgcn import InputError, Skeleton, build_model, export, save_model
from keras_wsgcn.exporting import exports
from keras_wsgcn.exporting.formats import METADATA_FILE
from keras_wsgcn.serving import ServingError, connect, served_models, write_config
from keras_wsgcn.serving.client import Client

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the stand-in is TensorFlow, whatever the backend",
)
SIZE = (1920, 1080)


@pytest.fixture(scope="module")
def model():
    return randomise(build_model("post_agg", channels=8, blocks=1), np.random.default_rng(1))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    export(model, folder / "lifter")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    from keras_wsgcn.serving.stand_in import StandIn

    with StandIn(folder) as running:
        yield running


@pytest.fixture(scope="module")
def addresses(server):
    return {
        "rest": f"http://127.0.0.1:{server.rest_port}",
        "grpc": f"grpc://127.0.0.1:{server.grpc_port}",
    }


@pytest.fixture
def pixels(rng):
    return rng.uniform(0, 1000, (6, 16, 2)).astype("float32")


def local(model, pixels):
    pose2d = (2 * pixels - np.float32(SIZE)) / np.float32(SIZE[0])
    return model.predict(pose2d, verbose=0)


def ask(server, path, body=None):
    """A plain HTTP request; returns the status and the parsed answer."""
    url = f"http://127.0.0.1:{server.rest_port}{path}"
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data)) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


# --- clients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_client_gets_the_poses_of_the_model(protocol, addresses, model, pixels):
    client = connect(addresses[protocol], "lifter")
    assert client.num_joints == 16
    np.testing.assert_allclose(client.lift(pixels, SIZE), local(model, pixels), atol=1e-5)
    assert client.lift(pixels[:0], SIZE).shape == (0, 16, 3)
    many = np.tile(pixels, (400, 1, 1))  # several requests
    np.testing.assert_allclose(client.lift(many, SIZE), local(model, many), atol=1e-5)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_what_the_server_refuses_is_one_clear_error(protocol, addresses):
    with pytest.raises(ServingError, match=r"(404|NOT_FOUND): Servable not found.*Latest\(other\)"):
        connect(addresses[protocol], "other")
    with pytest.raises(ServingError, match=r"Specific\(lifter, 9\)"):
        connect(addresses[protocol], "lifter", version=9)
    assert connect(addresses[protocol], "lifter", version=1).num_joints == 16


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_nobody_there_is_one_clear_error(protocol):
    with pytest.raises(ServingError, match=r"gave no answer|UNAVAILABLE|DEADLINE"):
        connect(f"{protocol}://127.0.0.1:9", "lifter", timeout=5)
    with pytest.raises(ServingError, match=r"//\[::1\]:9.*(gave no answer|UNAVAILABLE)"):
        connect(f"{protocol}://[::1]:9", "lifter", timeout=5)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ("Content-Length: 99", "answered 500: Odd"),
        ("Transfer-Encoding: chunked", "answered 500: Odd"),
        ("Connection: close", "answered 500: it broke"),
    ],
)
def test_an_error_that_is_cut_off_is_one_clear_error(headers, words):
    with socket.create_server(("127.0.0.1", 0)) as server:
        body = "zz" if "chunked" in headers else "it broke"

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(f"HTTP/1.1 500 Odd\r\n{headers}\r\n\r\n{body}".encode())
                if "Length" in headers:
                    connection.recv(1)  # which never comes: the client gives up first

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ServingError, match=words):
            connect(f"http://127.0.0.1:{server.getsockname()[1]}", "lifter", timeout=0.5)
        thread.join()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"server": "localhost:8501"}, "`server` must be"),
        ({"server": "ftp://localhost"}, "`server` must be"),
        ({"server": "http://localhost:99999"}, "`server` must be"),
        ({"name": "../etc"}, "`name` must begin"),
        ({"version": -1}, "`version` must be an integer"),
        ({"timeout": 0}, "`timeout` must be a number"),
    ],
)
def test_connect_refuses_before_it_asks(arguments, message):
    server, name = (arguments.pop(k, d) for k, d in (("server", "http://x"), ("name", "lifter")))
    with pytest.raises(InputError, match=rf"{message}.*Received: "):
        connect(server, name, **arguments)


NOT_FINITE = np.zeros((2, 16, 2))
NOT_FINITE[1, 3, 0] = np.nan


@pytest.mark.parametrize(
    ("pixels", "size", "message"),
    [
        (np.zeros((2, 17, 2)), SIZE, r"`pixels` must have the shape \(poses, 16, 2\)"),
        ([[1], [1, 2]], SIZE, "`pixels` must hold numbers"),
        (NOT_FINITE, SIZE, "`pixels` must be finite.*first in pose 1"),
        (np.full((2, 16, 2), 1e39), SIZE, "`pixels` must be finite.*first in pose 0"),
        (np.zeros((2, 16, 2)), (0, 1080), "`image_size` must be"),
        (np.zeros((2, 16, 2)), (1920, np.nan), "`image_size` must be"),
        (np.zeros((2, 16, 2)), 1920, "`image_size` must be"),
        (np.zeros((2, 16, 2)), ((1920, 1080),) * 2, "`image_size` must be"),
        (np.zeros((2, 16, 2)), ("w", "h"), "`image_size` must hold numbers"),
    ],
)
def test_a_client_refuses_before_it_asks(pixels, size, message):
    class Transport:
        joints = staticmethod(lambda: 16)  # and no `predict`

    with pytest.raises(InputError, match=message):
        Client(Transport()).lift(pixels, size)


# --- the server's side of REST -------------------------------------------------------------------


def test_status_and_metadata(server):
    status, answer = ask(server, "/v1/models/lifter")
    assert status == 200
    assert answer["model_version_status"][0] == {
        "version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""},
    }  # fmt: skip
    status, answer = ask(server, "/v1/models/lifter/versions/1/metadata")
    assert (status, answer["model_spec"]["version"]) == (200, "1")
    signature = answer["metadata"]["signature_def"]["signature_def"]["serve"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["pose2d"]["dtype"] == "DT_FLOAT"
    sizes = [one["size"] for one in signature["outputs"]["pose3d"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "16", "3"]


def test_rows_and_columns(server, model, pixels):
    pose2d = ((2 * pixels - np.float32(SIZE)) / np.float32(SIZE[0])).tolist()
    expected = local(model, pixels)
    for body in (
        {"instances": pose2d},
        {"instances": [{"pose2d": pose} for pose in pose2d]},
        {"signature_name": "serve", "instances": pose2d},
        {"signature_name": "serve_pixels",
         "instances": [{"pixels": p, "image_size": SIZE} for p in pixels.tolist()]},
    ):  # fmt: skip
        status, answer = ask(server, "/v1/models/lifter:predict", body)
        assert status == 200, answer
        np.testing.assert_allclose(answer["predictions"], expected, atol=1e-5)
    for inputs in (pose2d, {"pose2d": pose2d}):
        _, answer = ask(server, "/v1/models/lifter/versions/1:predict", {"inputs": inputs})
        np.testing.assert_allclose(answer["outputs"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/models/other:predict", {"instances": [1]}, 404, "Servable not found for request"),
        ("/v1/models/lifter/versions/2", None, 404, "Servable not found for request"),
        ("/v1/models/..", None, 404, "Servable not found"),
        ("/v2/models/lifter", None, 400, "Malformed request: GET /v2/models/lifter"),
        ("/v1/models/lifter:classify", {}, 400, "Malformed request: POST"),
        ("/v1/models/lifter:predict", None, 400, "Malformed request: GET"),
        ("/v1/models/lifter:predict", b"{", 400, "JSON Parse error"),
        ("/v1/models/lifter:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("/v1/models/lifter:predict", {"instances": []}, 400, "'instances' must be"),
        ("/v1/models/lifter:predict", {"instances": [[1.0]]}, 400, ""),
        ("/v1/models/lifter:predict", {"instances": [[[1]], [[1, 2]]]}, 400, ""),
        ("/v1/models/lifter:predict", {"inputs": {"x": [1.0]}}, 400, "input keys do not match"),
        ("/v1/models/lifter:predict", {"signature_name": "no", "instances": [1]}, 400, "signature"),
    ],
)
def test_statuses_and_error_bodies(path, body, status, message, server):
    got, answer = ask(server, path, body)
    assert got == status
    assert set(answer) == {"error"}
    assert message in answer["error"]


def test_nothing_beside_the_folder_is_served(folder, tmp_path):
    from keras_wsgcn.serving.stand_in import StandIn

    shutil.copytree(folder, tmp_path / "models")
    shutil.copytree(folder / "lifter" / "1", tmp_path / "1")
    with StandIn(tmp_path / "models") as running:
        assert ask(running, "/v1/models/..")[0] == 404


def test_a_new_version_is_served_when_it_is_there(model, tmp_path, pixels):
    from keras_wsgcn.serving.stand_in import StandIn

    folder = tmp_path / "lifter"
    export(model, folder)
    other = randomise(build_model("pre_agg", channels=4, blocks=0), np.random.default_rng(2))
    with StandIn(tmp_path) as server:
        client = connect(f"http://127.0.0.1:{server.rest_port}", "lifter")
        (folder / "5").mkdir()  # not complete: nothing is served of it
        np.testing.assert_allclose(client.lift(pixels, SIZE), local(model, pixels), atol=1e-5)
        assert export(other, folder).path.name == "6"
        np.testing.assert_allclose(client.lift(pixels, SIZE), local(other, pixels), atol=1e-5)


def arm(*joint_names, scheme="post_agg", parents=(-1, 0, 1)):
    skeleton = Skeleton("arm", joint_names, parents)
    return build_model(scheme, channels=4, blocks=0, skeleton=skeleton)


def test_the_next_version_has_the_joints_of_the_one_before(tmp_path, monkeypatch):
    folder = tmp_path / "lifter"
    names = ("shoulder", "elbow", "wrist")
    export(arm(*names), folder)
    assert export(arm(*names, scheme="pre_agg"), folder).path == folder / "2"
    monkeypatch.setattr(exports, "_write", None)  # which is the work
    for model in (
        arm("elbow", "shoulder", "wrist"),
        arm(*names, parents=(1, 2, -1)),  # relative to another root
        build_model("post_agg", channels=4, blocks=0),
    ):
        with pytest.raises(InputError, match=r"`path` must be another folder.*version 2 there has"):
            export(model, folder)
    assert sorted(os.listdir(folder)) == ["1", "2"]
    for foreign in ("none", "{}", '{"skeleton": "other"}'):  # nothing is known of its joints
        (folder / "2" / METADATA_FILE).write_text(foreign)
        with pytest.raises(TypeError, match="not callable"):  # on to the writing
            export(model, folder)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
@pytest.mark.parametrize("holder", ["stand-in", "other"])
def test_a_port_that_is_taken_is_an_oserror(protocol, holder, server, folder):
    from keras_wsgcn.serving.stand_in import StandIn

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        stand_ins = getattr(server, f"{protocol}_port")
        port = other.getsockname()[1] if holder == "other" else stand_ins
        with pytest.raises(OSError, match=r"in use|Failed to bind"):
            StandIn(folder, **{f"{protocol}_port": port})


# --- configuration -------------------------------------------------------------------------------


def test_the_configuration_is_the_servers(folder):
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    text = write_config(folder).read_text()
    parsed = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (entry,) = parsed.model_config_list.config
    assert (entry.name, entry.base_path) == ("lifter", "/models/lifter")
    assert entry.model_platform == "tensorflow"
    assert served_models(folder) == {"lifter": [1]}


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="`folder` must hold models"):
        write_config(tmp_path)


# --- the commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_query_lifts_a_keypoint_file(protocol, addresses, model, pixels, tmp_path, capsys):
    np.save(tmp_path / "k.npy", pixels)
    save_model(model, tmp_path / "m.keras")
    arguments = [
        str(tmp_path / "k.npy"), "--format", "h36m16", "--image-size", *map(str, SIZE),
        "--server", addresses[protocol], "--name", "lifter", "-o", str(tmp_path / "poses.npz"),
        "--compare", str(tmp_path / "m.keras"),
    ]  # fmt: skip
    assert cli.run(query_command.main, arguments) == 0
    assert "mm apart on average" in capsys.readouterr().out
    got = np.load(tmp_path / "poses.npz")["pose3d_m"][0]
    expected = local(model, pixels)
    np.testing.assert_allclose(got, expected - expected[:, :1], atol=2e-5)


def test_query_says_when_nobody_answers(pixels, tmp_path, capsys):
    np.save(tmp_path / "k.npy", pixels)
    arguments = [str(tmp_path / "k.npy"), "--format", "h36m16", "--image-size", "9", "9"]
    arguments += ["--server", "http://127.0.0.1:9", "--name", "m", "-o", str(tmp_path / "p.npz")]
    assert cli.run(query_command.main, arguments) == 1
    assert (
        "error: http://127.0.0.1:9/v1/models/m/metadata gave no answer" in capsys.readouterr().err
    )
    assert not (tmp_path / "p.npz").exists()

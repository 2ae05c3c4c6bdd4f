"""Clients of TensorFlow Serving, by REST and by gRPC: pixels go out, poses in metres come back."""

import contextlib
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import numpy as np

from keras_wsgcn.data.cameras import checked_size
from keras_wsgcn.errors import Failure, InputError, check_integer, check_number, check_numbers
from keras_wsgcn.serving.config import GRPC_PORT, REST_PORT, check_name

SIGNATURE = "serve_pixels"
POSES_A_REQUEST = 1024  # 200 kB of answer: far from the 4 MB that a gRPC client accepts


class ServingError(Failure):
    """The server cannot be reached, or refused a request."""


class Client:
    """A model that a server holds. `connect` makes one."""

    def __init__(self, transport: "_Rest | _Grpc"):
        self._transport = transport
        self.num_joints = transport.joints()

    def lift(self, pixels: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
        """Lifts poses on the server, 1024 a request.

        Args:
            pixels: `(poses, joints, 2)`.
            image_size: (width, height), pixels.

        Returns:
            `(poses, joints, 3)` float32, metres, camera frame.

        Raises:
            InputError: if the shape is another, a pixel is not finite, or there is no such image.
            ServingError: if the server cannot be reached, or refuses.
        """
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
            pixels = check_numbers("pixels", pixels).astype(np.float32)
        if pixels.ndim != 3 or pixels.shape[1:] != (self.num_joints, 2):
            raise InputError(
                f"`pixels` must have the shape (poses, {self.num_joints}, 2). "
                f"Received: pixels.shape={pixels.shape}"
            )
        finite = np.isfinite(pixels).all(axis=(1, 2))
        if not finite.all():
            raise InputError(
                "`pixels` must be finite: leave poses out in which a joint is missing. "
                f"Received: pixels that are not, first in pose {int(np.argmin(finite))}"
            )
        size = np.array(checked_size(image_size), dtype=np.float32)
        lifted = [np.empty((0, self.num_joints, 3), np.float32)]
        for start in range(0, len(pixels), POSES_A_REQUEST):
            part = pixels[start : start + POSES_A_REQUEST]
            poses = self._transport.predict(
                {"pixels": part, "image_size": np.tile(size, (len(part), 1))}
            )
            if poses.shape != (*part.shape[:2], 3):
                raise ServingError(
                    f"the server must answer with poses {(*part.shape[:2], 3)}, and did with "
                    f"{poses.shape}"
                )
            lifted.append(poses)
        return np.concatenate(lifted)


def connect(server: str, name: str, *, version: int | None = None, timeout: float = 30.0) -> Client:
    """Connects to a model on TensorFlow Serving.

    Args:
        server: `http://HOST:8501` for REST (or `https://`), `grpc://HOST:8500` for gRPC.
        name: of the model.
        version: of the model; by default the newest.
        timeout: seconds to wait for an answer.

    Returns:
        The client. It has asked the server for the model's inputs.

    Raises:
        InputError: if an argument is out of range, or the model takes no pixels.
        ServingError: if the server cannot be reached, or has no such model.
    """
    address = urllib.parse.urlsplit(server)
    ports = {"http": REST_PORT, "https": REST_PORT, "grpc": GRPC_PORT}
    try:
        port = address.port or ports.get(address.scheme, 0)
    except ValueError:
        port = 0
    if address.scheme not in ports or not address.hostname or not port:
        raise InputError(
            "`server` must be `http://HOST:PORT`, `https://HOST:PORT` or `grpc://HOST:PORT`. "
            f"Received: server={server!r}"
        )
    check_name(name)
    if version is not None:
        check_integer("version", version, least=0)
    check_number("timeout", timeout, above=0.0)
    host = f"[{address.hostname}]" if ":" in address.hostname else address.hostname
    if address.scheme == "grpc":
        return Client(_Grpc(f"{host}:{port}", name, version, timeout))
    base = f"{address.scheme}://{host}:{port}{address.path.rstrip('/')}"
    return Client(_Rest(base, name, version, timeout))


class _Rest:
    def __init__(self, base: str, name: str, version: int | None, timeout: float):
        self.url = f"{base}/v1/models/{name}"
        if version is not None:
            self.url += f"/versions/{version}"
        self.timeout = timeout

    def joints(self) -> int:
        answer = self._ask("/metadata")
        try:
            signatures = answer["metadata"]["signature_def"]["signature_def"]
            dimensions = signatures[SIGNATURE]["inputs"]["pixels"]["tensor_shape"]["dim"]
            return int(dimensions[1]["size"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise _no_pixels(self.url) from None

    def predict(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        body = {
            "signature_name": SIGNATURE,
            "inputs": {name: value.tolist() for name, value in inputs.items()},
        }
        answer = self._ask(":predict", json.dumps(body).encode())
        try:
            return np.array(answer["outputs"], dtype=np.float32)
        except (KeyError, TypeError, ValueError):
            raise ServingError(f"{self.url} answered without poses") from None

    def _ask(self, what: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(
            self.url + what, body, {"Content-Type": "application/json"} if body else {}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            text = error.reason
            # It can be cut off, or come from something other than the server, such as a proxy.
            with contextlib.suppress(
                OSError, http.client.HTTPException, ValueError, KeyError, TypeError
            ):
                text = error.read(1 << 16).decode(errors="replace")
                text = json.loads(text)["error"]
            raise ServingError(f"{self.url}{what} answered {error.code}: {text}") from None
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise ServingError(f"{self.url}{what} gave no answer: {error}") from None


class _Grpc:
    def __init__(self, target: str, name: str, version: int | None, timeout: float):
        try:
            import grpc
            from tensorflow_serving.apis import (
                get_model_metadata_pb2,
                predict_pb2,
                prediction_service_pb2_grpc,
            )
        except ImportError as error:
            raise InputError(
                '`server` by gRPC needs `tensorflow_serving`: pip install "keras_wsgcn[export]". '
                f"Received: server='grpc://{target}' ({error})"
            ) from None
        self.target, self.name, self.version, self.timeout = target, name, version, timeout
        self.predict_request = predict_pb2.PredictRequest
        self.metadata = get_model_metadata_pb2
        self.errors = grpc.RpcError
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(target))

    def joints(self) -> int:
        request = self.metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
        answer = self._ask(self.stub.GetModelMetadata, request)
        signatures = self.metadata.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        if SIGNATURE not in signatures.signature_def:
            raise _no_pixels(f"grpc://{self.target} model {self.name!r}")
        shape = signatures.signature_def[SIGNATURE].inputs["pixels"].tensor_shape
        return int(shape.dim[1].size)

    def predict(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        from tensorflow.core.framework import types_pb2

        request = self.predict_request()
        request.model_spec.signature_name = SIGNATURE
        for name, value in inputs.items():
            tensor = request.inputs[name]
            tensor.dtype = types_pb2.DT_FLOAT
            for size in value.shape:
                tensor.tensor_shape.dim.add(size=size)
            tensor.tensor_content = value.astype("<f4").tobytes()
        tensor = self._ask(self.stub.Predict, request).outputs["pose3d"]
        shape = [dimension.size for dimension in tensor.tensor_shape.dim]
        # The server answers with values, other implementations with bytes.
        if tensor.tensor_content:
            return np.frombuffer(tensor.tensor_content, "<f4").reshape(shape)
        return np.array(tensor.float_val, dtype=np.float32).reshape(shape)

    def _ask(self, method: Any, request: Any) -> Any:
        request.model_spec.name = self.name
        if self.version is not None:
            request.model_spec.version.value = self.version
        try:
            return method(request, timeout=self.timeout)
        except self.errors as error:
            raise ServingError(
                f"grpc://{self.target} answered {error.code().name}: {error.details()}"
            ) from None


def _no_pixels(where: str) -> InputError:
    return InputError(
        f"`name` must be a model with the signature {SIGNATURE!r}, as `keras_wsgcn.export` writes "
        f"it. Received: {where}"
    )

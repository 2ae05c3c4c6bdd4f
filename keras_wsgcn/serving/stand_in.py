"""A stand-in for TensorFlow Serving, to try clients on where the server cannot be installed.

It holds what the server promises to clients of one model: the paths, the statuses and the error
bodies of REST, the messages of gRPC (Google's own stubs), versions that appear while it runs, and
warm-up. It is no server for production: it has no batching, no limits and no monitoring, and
Python between the network and the model.
"""

import json
import re
import threading
from collections.abc import Mapping
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from keras_wsgcn.serving.config import NAME, check_ports, served_models, versions

_MAX_BODY = 256 << 20
_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]{1,18}))?(?P<what>:predict|/metadata|)"
)
DEFAULT_SIGNATURE = "serving_default"
HTTP_STATUS = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404}


class Refusal(Exception):
    """A request that cannot be answered: the name of a gRPC status, and a message."""

    def __init__(self, status: str, message: str):
        super().__init__(message)
        self.status, self.message = status, message


def checked_inputs(
    signatures: Mapping[str, Any], signature: str, inputs: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The inputs of a request as float32 arrays, if there is such a signature and they are its own.

    Raises:
        Refusal: otherwise.
    """
    signature = signature or DEFAULT_SIGNATURE
    definition = signatures.get(signature)
    if definition is None:
        raise Refusal("INVALID_ARGUMENT", f'Serving signature key "{signature[:200]}" not found.')
    if set(inputs) != set(definition.inputs):
        raise Refusal(
            "INVALID_ARGUMENT",
            "input keys do not match the signature: expected "
            f"{sorted(definition.inputs)}, got {sorted(inputs)[:20]}",
        )
    try:
        return {key: np.asarray(value, dtype=np.float32) for key, value in inputs.items()}
    except (ValueError, TypeError, OverflowError) as error:  # ragged, no numbers, or beyond them
        raise Refusal("INVALID_ARGUMENT", str(error)[:200]) from None


class _Servable:
    """One version of a model."""

    def __init__(self, name: str, version: int, folder: Path):
        import tensorflow as tf
        from tensorflow.core.protobuf import saved_model_pb2

        self.name, self.version = name, version
        self.loaded = tf.saved_model.load(str(folder), tags=["serve"])
        saved = saved_model_pb2.SavedModel()
        saved.ParseFromString((folder / "saved_model.pb").read_bytes())
        self.signature_defs = {
            key: value
            for key, value in saved.meta_graphs[0].signature_def.items()
            if not key.startswith("__")
        }
        self._warm_up(folder / "assets.extra" / "tf_serving_warmup_requests")

    def _warm_up(self, path: Path) -> None:
        import tensorflow as tf
        from tensorflow_serving.apis import prediction_log_pb2

        if not path.is_file():
            return
        for record in tf.data.TFRecordDataset(str(path)):
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log
            inputs = {key: tf.make_ndarray(value) for key, value in log.request.inputs.items()}
            self.predict(log.request.model_spec.signature_name, inputs)

    def predict(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        import tensorflow as tf

        arrays = checked_inputs(self.signature_defs, signature, inputs)
        try:
            tensors = {key: tf.constant(value) for key, value in arrays.items()}
            outputs = self.loaded.signatures[signature or DEFAULT_SIGNATURE](**tensors)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise Refusal("INVALID_ARGUMENT", " ".join(str(error).split())[:1000]) from None
        return {key: value.numpy() for key, value in outputs.items()}


class StandIn:
    """Serves the SavedModels of a folder by REST and gRPC, as a context manager.

    Args:
        folder: `NAME/VERSION/`, as `export` writes it.
        rest_port: port for REST; 0 for any.
        grpc_port: port for gRPC; 0 for any.
        host: address to listen on.

    Raises:
        InputError: if the folder holds no model, or a port is out of range.
        OSError: if a port is taken.
    """

    def __init__(
        self, folder: Path, *, rest_port: int = 0, grpc_port: int = 0, host: str = "127.0.0.1"
    ):
        check_ports(0, rest_port=rest_port, grpc_port=grpc_port)
        self.folder = Path(folder)
        self._loaded: dict[str, _Servable] = {}
        self._lock = threading.Lock()
        for name in served_models(self.folder):
            self.servable(name, None)
        self._http = ThreadingHTTPServer((host, rest_port), _handler(self))
        self._http.daemon_threads = True
        self.rest_port = self._http.server_address[1]
        try:
            self._grpc, self.grpc_port = _grpc_server(self, host, grpc_port)
        except BaseException:
            self._http.server_close()
            raise

    def __enter__(self) -> "StandIn":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self._grpc.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(grace=1).wait()

    def servable(self, name: str, version: int | None) -> _Servable:
        """The newest version of a model, the only one that is served, loaded if it is new."""
        with self._lock:
            found = versions(self.folder / name) if NAME.fullmatch(name) else []
            if not found or version not in (None, found[-1]):
                wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise Refusal("NOT_FOUND", f"Servable not found for request: {wanted}")
            current = self._loaded.get(name)
            if current is None or current.version != found[-1]:
                current = _Servable(name, found[-1], self.folder / name / str(found[-1]))
                self._loaded[name] = current
            return current


# --- REST ----------------------------------------------------------------------------------------


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            given = self.headers.get("Content-Length") or "0"
            # Digits alone: of a negative length the server would read for ever.
            length = int(given) if re.fullmatch("[0-9]{1,12}", given) else _MAX_BODY + 1
            if length > _MAX_BODY:
                self.close_connection = True
                return self._send(413, {"error": f"body of {given[:20]} bytes"})
            return self._answer(self.rfile.read(length))

        def _answer(self, body: bytes) -> None:
            try:
                answer = _rest_answer(stand_in, self.command, self.path, body)
            except Refusal as refusal:
                self._send(HTTP_STATUS[refusal.status], {"error": refusal.message})
            else:
                self._send(200, answer)

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


def _rest_answer(stand_in: StandIn, method: str, path: str, body: bytes) -> dict[str, Any]:
    match = _PATH.fullmatch(path)
    if not match or (method == "POST") != (match["what"] == ":predict"):
        raise Refusal("INVALID_ARGUMENT", f"Malformed request: {method} {path}")
    version = int(match["version"]) if match["version"] else None
    if match["what"] == ":predict":
        request = _parsed(body)
        return _rest_predict(stand_in.servable(match["name"], version), request)
    servable = stand_in.servable(match["name"], version)
    if match["what"] == "/metadata":
        return _rest_metadata(servable)
    status = {"error_code": "OK", "error_message": ""}
    state = {"version": str(servable.version), "state": "AVAILABLE", "status": status}
    return {"model_version_status": [state]}


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:  # a RecursionError where it is nested too deeply
        raise Refusal("INVALID_ARGUMENT", f"JSON Parse error: {error}") from None
    if not isinstance(request, dict) or ("inputs" in request) == ("instances" in request):
        raise Refusal("INVALID_ARGUMENT", "Missing 'inputs' or 'instances' key")
    return request


def _rest_predict(servable: _Servable, request: dict[str, Any]) -> dict[str, Any]:
    signature = str(request.get("signature_name") or DEFAULT_SIGNATURE)
    definition = servable.signature_defs.get(signature)
    names = list(definition.inputs) if definition else []
    by_row = "instances" in request
    values = request["instances" if by_row else "inputs"]
    if by_row:
        if not isinstance(values, list) or not values:
            raise Refusal("INVALID_ARGUMENT", "'instances' must be a list with elements")
        if isinstance(values[0], dict):
            if not all(isinstance(one, dict) and set(one) == set(values[0]) for one in values):
                raise Refusal("INVALID_ARGUMENT", "'instances' must have the same keys")
            values = {name: [one[name] for one in values] for name in values[0]}
    if not isinstance(values, dict):  # a signature with one input needs no name
        values = dict.fromkeys(names[:1] if len(names) == 1 else [""], values)
    outputs = {key: value.tolist() for key, value in servable.predict(signature, values).items()}
    if len(outputs) == 1:
        answer: Any = next(iter(outputs.values()))
    elif by_row:
        rows = zip(*outputs.values(), strict=True)
        answer = [dict(zip(outputs, row, strict=True)) for row in rows]
    else:
        answer = outputs
    return {"predictions" if by_row else "outputs": answer}


def _rest_metadata(servable: _Servable) -> dict[str, Any]:
    from google.protobuf import json_format

    signatures = {
        key: json_format.MessageToDict(
            value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        for key, value in servable.signature_defs.items()
    }
    spec = {"name": servable.name, "signature_name": "", "version": str(servable.version)}
    return {"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}}


# --- gRPC ----------------------------------------------------------------------------------------


def _grpc_server(stand_in: StandIn, host: str, port: int) -> tuple[Any, int]:
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    def find(request: Any, context: Any) -> _Servable:
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        return stand_in.servable(spec.name, version)

    def refusing(answer: Any) -> Any:
        def method(service: Any, request: Any, context: Any) -> Any:
            try:
                return answer(request, context)
            except Refusal as refusal:
                context.abort(grpc.StatusCode[refusal.status], refusal.message)

        return method

    def predict(request: Any, context: Any) -> Any:
        servable = find(request, context)
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        outputs = servable.predict(request.model_spec.signature_name, inputs)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        response.model_spec.signature_name = request.model_spec.signature_name
        for key, value in outputs.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return response

    def metadata(request: Any, context: Any) -> Any:
        servable = find(request, context)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, value in servable.signature_defs.items():
            signatures.signature_def[key].CopyFrom(value)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        response.metadata["signature_def"].Pack(signatures)
        return response

    methods = {"Predict": refusing(predict), "GetModelMetadata": refusing(metadata)}
    service = type("Service", (prediction_service_pb2_grpc.PredictionServiceServicer,), methods)
    # Without the option two servers share a port in silence, and the requests for it.
    options = [("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service(), server)
    try:
        return server, server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"gRPC port {port}: {error}") from None

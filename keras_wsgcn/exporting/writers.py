"""Writing the formats, under TensorFlow: from JAX and torch this module is a process of its own.

KERAS_BACKEND=tensorflow python -m keras_wsgcn.exporting.writers JOB.json
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_wsgcn.exporting.folding import inference_model
from keras_wsgcn.exporting.formats import FORMATS, METADATA_FILE, SIGNATURES, open_exported
from keras_wsgcn.models import skeleton_of
from keras_wsgcn.saving import NORMALISATION, load_model

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
_WARMUP_BATCHES = (1, 64)
_ONNX_OPSET = 18
_CHUNK = 1024
_NEXT_TO_NOTHING = 1e-30  # metres: vanishes in any sum

# Kernels that every build of TensorFlow has, the server's among them: arithmetic of the models,
# and what every SavedModel holds to save and restore variables, even if it has none.
_STOCK = """
    AddN AddV2 BatchMatMulV2 BiasAdd BroadcastTo Cast ConcatV2 Const Einsum Elu Erf Exp ExpandDims
    FloorMod GatherV2 Greater Identity IdentityN LeakyRelu Less LogicalAnd MatMul Max Maximum Mean
    Minimum Mul Neg NoOp Pack Placeholder Pow Prod RealDiv Relu Relu6 Reshape Rsqrt Select SelectV2
    Selu Shape Sigmoid Softmax Softplus Softsign Split SplitV Sqrt Square SquaredDifference Squeeze
    StridedSlice Sub Sum Tanh Tile Transpose Unpack ZerosLike
    MergeV2Checkpoints PartitionedCall RestoreV2 SaveV2 ShardedFilename StatefulPartitionedCall
    StaticRegexFullMatch StringJoin
"""
STOCK_OPERATORS = frozenset(_STOCK.split())


def signatures(model: keras.Model) -> dict[str, tuple[Callable, list]]:
    """Each signature's function and the specifications of its inputs, the batch dynamic.

    The weights are constants of the graph: a runtime can then fold what depends on nothing else,
    and LiteRT's converter loses variables where a model has two signatures.
    """
    import tensorflow as tf

    joints = model.input_shape[1]
    weights = [variable.numpy() for variable in model.trainable_variables]
    others = [variable.numpy() for variable in model.non_trainable_variables]

    @tf.function(input_signature=[tf.TensorSpec((None, joints, 2), tf.float32, "pose2d")])
    def serve(pose2d):  # one function in the graph for both signatures, and the weights once
        outputs, _ = model.stateless_call(
            [tf.constant(value) for value in weights],
            [tf.constant(value) for value in others],
            pose2d,
            training=False,
        )
        return {"pose3d": outputs}

    def serve_pixels(pixels, image_size):
        size = tf.reshape(image_size, (-1, 1, 2))  # width, height
        return serve((2.0 * pixels - size) / size[..., :1])

    shapes = {"pose2d": (None, joints, 2), "pixels": (None, joints, 2), "image_size": (None, 2)}
    functions = {"serve": serve, "serve_pixels": serve_pixels}
    return {
        name: (
            functions[name],
            [tf.TensorSpec(shapes[argument], tf.float32, argument) for argument in arguments],
        )
        for name, arguments in SIGNATURES.items()
    }


def card(model: keras.Model) -> dict[str, Any]:
    """The metadata of a model, with what a client must know: joints in order, shapes, units."""
    skeleton = skeleton_of(model)
    poses = f"(batch, {skeleton.num_joints}, "
    return {
        **model.metadata,
        "joint_names": skeleton.joint_names,
        "root": skeleton.joint_names[skeleton.root],
        "inputs": {
            "pose2d": f"{poses}2), {NORMALISATION['pose2d']}",
            "pixels": f"{poses}2), pixels, x to the right and y down",
            "image_size": "(batch, 2), width and height in pixels",
        },
        "outputs": {
            "pose3d": f"{poses}3), metres, camera frame (x right, y down, z away), relative to the "
            "root, which is predicted too: subtract it",
        },
    }


def write_savedmodel(model: keras.Model, target: Path, job: dict[str, Any]) -> None:
    _write_archive(model, target)
    (target / "assets.extra").mkdir()
    (target / METADATA_FILE).write_text(json.dumps(card(model), indent=2), encoding="utf-8")
    _write_warmup(target / WARMUP_FILE, job["inputs"], job["name"])
    if foreign := operators(target) - STOCK_OPERATORS:
        raise RuntimeError(f"the graph has operators that a server may lack: {sorted(foreign)}")


def _write_archive(model: keras.Model, target: Path) -> None:
    import tensorflow as tf

    functions = {
        name: tf.function(function, input_signature=specs).get_concrete_function()
        for name, (function, specs) in signatures(model).items()
    }
    first = next(iter(functions.values()))
    tf.saved_model.save(tf.Module(), str(target), {**functions, "serving_default": first})


def operators(folder: Path) -> set[str]:
    """The operators of a SavedModel, those of its functions included."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    used = (meta.meta_info_def.stripped_op_list for meta in saved.meta_graphs)
    return {definition.name for ops in used for definition in ops.op}


def _write_warmup(path: Path, inputs: dict[str, dict[str, np.ndarray]], name: str) -> None:
    """Requests that TensorFlow Serving sends itself before it lets anyone else in."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    with tf.io.TFRecordWriter(str(path)) as records:
        for case, arrays in inputs.items():
            if len(next(iter(arrays.values()))) not in _WARMUP_BATCHES:
                continue
            request = predict_pb2.PredictRequest()
            request.model_spec.name = name
            request.model_spec.signature_name = case.split("/")[0]
            for argument, value in arrays.items():
                request.inputs[argument].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            records.write(log.SerializeToString())


def write_onnx(model: keras.Model, target: Path, job: dict[str, Any]) -> None:
    import onnx
    import tensorflow as tf
    import tf2onnx

    function, specs = signatures(model)[job["signature"]]
    graph, _ = tf2onnx.convert.from_function(
        tf.function(function, input_signature=specs), specs, opset=_ONNX_OPSET
    )
    onnx.helper.set_model_props(graph, {"keras_wsgcn": json.dumps(card(model))})
    onnx.checker.check_model(graph)
    onnx.save(graph, str(target))


def write_openvino(model: keras.Model, target: Path, job: dict[str, Any]) -> None:
    import openvino

    through = target.with_suffix(".onnx")
    write_onnx(model, through, job)
    openvino.save_model(openvino.convert_model(through), target, compress_to_fp16=False)
    through.unlink()


def write_litert(model: keras.Model, target: Path, job: dict[str, Any]) -> None:
    import tensorflow as tf

    # The converter drops an addition of zeros, and then merges two reshapes into one with two
    # unknown sizes, which no runtime opens. Of a model that was never trained, all biases are 0.
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None:
            bias = layer.bias.numpy()
            layer.bias.assign(np.where(bias == 0, _NEXT_TO_NOTHING, bias))
    through = target.with_suffix(".savedmodel")
    _write_archive(model, through)
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(through), signature_keys=list(SIGNATURES)
    )
    if job["quantize"] == "int8":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]  # weights in int8: dynamic range
    target.write_bytes(converter.convert())


WRITERS = {
    "savedmodel": write_savedmodel,
    "onnx": write_onnx,
    "litert": write_litert,
    "openvino": write_openvino,
}
assert set(WRITERS) == set(FORMATS)


def run_job(job: dict[str, Any]) -> None:
    """Writes one export, and what its own runtime predicts for the inputs of the job.

    Args:
        job: `model`, a `.keras` file; `format`; `target`, where to write; `signature`, of a format
            that holds one; `quantize`; `name` of the served model; `arrays`, an `.npz` of inputs
            named `case/argument`, where the case begins with a signature; `predictions`, the
            `.npz` to write, named by the cases.
    """
    target = Path(job["target"])
    with np.load(job["arrays"]) as arrays:
        inputs: dict[str, dict[str, np.ndarray]] = {}
        for key in arrays.files:
            case, argument = key.rsplit("/", 1)
            inputs.setdefault(case, {})[argument] = arrays[key]
    model = inference_model(load_model(job["model"], compile=False))
    WRITERS[job["format"]](model, target, {**job, "inputs": inputs})
    runtimes: dict[str, Callable] = {}
    predicted = {}
    for case, values in inputs.items():
        signature = case.split("/")[0]
        if signature not in runtimes:
            runtimes[signature] = open_exported(target, signature=signature, threads=1)
        predicted[case] = _in_chunks(runtimes[signature], values)
    np.savez(job["predictions"], **predicted)  # type: ignore[arg-type]


def _in_chunks(predict: Callable, values: dict[str, np.ndarray]) -> np.ndarray:
    poses = len(next(iter(values.values())))
    return np.concatenate(
        [
            predict(**{name: value[start : start + _CHUNK] for name, value in values.items()})
            for start in range(0, poses, _CHUNK)
        ]
    )


if __name__ == "__main__":
    run_job(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

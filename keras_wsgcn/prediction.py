"""Prediction of many poses, as fast as the backend and its devices can."""

import math
import threading
from typing import Any

import keras
import numpy as np

from keras_wsgcn.devices import float32_products, keep_freed_memory, replicas
from keras_wsgcn.errors import InputError
from keras_wsgcn.layers import GraphConv
from keras_wsgcn.skeletons import Skeleton
from keras_wsgcn.torch_steps import replay_predictions

PREDICT_BATCH = 1024
_one_at_a_time = threading.Lock()  # Keras's prediction is no thing for threads that share a model


def predict(model: keras.Model, pose2d: np.ndarray) -> np.ndarray:
    """Lifts poses in batches: `(poses, joints, 2)` to `(poses, joints, 3)` metres.

    Raises:
        InputError: if the model has several inputs or outputs, or its output is no pose.
    """
    check_single(model)
    if not len(pose2d):
        return np.empty((*np.shape(pose2d)[:2], 3), np.float32)
    backend = keras.backend.backend()
    # PyTorch has one trace, of full batches; the others compile each size, so all have the same.
    size = PREDICT_BATCH if backend == "torch" else _even_batch(len(pose2d))
    padding = 0 if backend == "torch" else -len(pose2d) % size
    whole = np.pad(pose2d, ((0, padding), (0, 0), (0, 0)), mode="edge")
    keep_freed_memory()
    with _one_at_a_time, float32_products():
        if backend == "torch":
            replay_predictions(model, size)
        if backend == "tensorflow" and replicas() == 1:
            predicted = _predict_without_pipeline(model, whole, size)
        else:
            predicted = model.predict(whole, batch_size=size, verbose=0)
    if np.shape(predicted) != (*whole.shape[:2], 3):
        raise InputError(
            "`model` must give one array (poses, joints, 3). Received: "
            f"{type(predicted).__name__} of shape {np.shape(predicted)}"
        )
    return np.asarray(predicted)[: len(pose2d)]


def _even_batch(poses: int) -> int:
    """The size of batches that are all alike, of which each device takes its share."""
    count = replicas()
    batches = math.ceil(poses / (PREDICT_BATCH // count * count))
    return math.ceil(poses / batches / count) * count


def _predict_without_pipeline(model: keras.Model, pose2d: np.ndarray, size: int) -> Any:
    """What `model.predict` gives under TensorFlow, which builds an input pipeline for it each time.

    That takes 60 ms, and its threads the cores of others: 6000 poses take 0.64 (`no_sharing`, 1 M
    parameters) to 0.79 (`pre_agg_decoupled`, 4.2 M) of the time without it, 64 poses 0.1 to 0.2.
    """
    batches = np.split(pose2d, len(pose2d) // size)
    parts = [model.predict_on_batch(batch) for batch in batches]
    return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)


def check_single(model: keras.Model) -> None:
    """Refuses models that have more than a lifter's one input and one output.

    Raises:
        InputError: if the model has.
    """
    inputs, outputs = (len(getattr(model, name, None) or [0]) for name in ("inputs", "outputs"))
    if (inputs, outputs) != (1, 1):
        raise InputError(
            "`model` must have one input (batch, joints, 2) and one output (batch, joints, 3). "
            f"Received: {inputs} inputs and {outputs} outputs"
        )


def check_joints(model: keras.Model, name: str, skeleton: Skeleton) -> None:
    """Refuses poses that are not the model's joints in the model's order.

    Args:
        model: a lifting model, or any Keras model, with graph layers of the library or without.
        name: of the argument that holds the poses.
        skeleton: that of the poses.

    Raises:
        InputError: if they are others.
    """
    layers = model._flatten_layers()  # a lifter may be a part of a model
    convs = [layer for layer in layers if isinstance(layer, GraphConv)]
    wanted = convs[0].skeleton.joint_names if convs else skeleton.joint_names
    if wanted != skeleton.joint_names:
        raise InputError(
            f"`{name}` must have the model's {len(wanted)} joints, {wanted}. "
            f"Received: those of {skeleton.name!r}, {skeleton.joint_names}"
        )


def root_aligned(poses: np.ndarray, root: int) -> np.ndarray:
    """Poses `(poses, joints, 3)` relative to their root, as protocol 1 compares them.

    The target is so by itself; a model predicts the root as any other joint.
    """
    return poses - poses[:, [root]]

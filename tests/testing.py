"""What tests need of Keras's insides, backends and pictures; nothing else imports `keras.src`."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import reference
from keras import ops
from keras.src import testing as keras_testing

from keras_wsgcn.schemes import Contraction, PartialSum
from keras_wsgcn.skeletons import h36m_16

BACKENDS = ("tensorflow", "jax", "torch")
ROOT = Path(__file__).parent.parent


def run_layer_test(layer_class, **arguments) -> None:
    """Keras's own check of a layer: config, saving, dtypes, symbolic and eager calls, training."""
    keras_testing.TestCase().run_layer_test(layer_class, **arguments)


def value_and_gradients(layer, x: np.ndarray, upstream: np.ndarray, **options):
    """Output of a built layer, and the gradients of `sum(output * upstream)`.

    Args:
        layer: a built layer.
        x: its input.
        upstream: of the shape of its output.
        **options: for the call of the layer, such as `training=True`.

    Returns:
        The output, the gradient for `x`, and a dict of the gradients by weight name.
    """
    names = [weight.name for weight in layer.trainable_weights]
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        values = [weight.value for weight in layer.trainable_weights]
        frozen = [weight.value for weight in layer.non_trainable_variables]

        def loss(values, x):
            y, _ = layer.stateless_call(values, frozen, x, **options)
            return (y * upstream).sum(), y

        gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (_, y), (by_weight, by_x) = gradients(values, x)
    elif backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        weights = [weight.value for weight in layer.trainable_weights]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **options)
            loss = tf.reduce_sum(y * upstream)
        by_x, *by_weight = tape.gradient(loss, [x, *weights])
    else:
        import torch

        x = torch.tensor(x, requires_grad=True)
        y = layer(x, **options)
        weights = [weight.value for weight in layer.trainable_weights]
        loss = (y * torch.tensor(upstream)).sum()
        by_x, *by_weight = torch.autograd.grad(loss, [x, *weights])
    numpy = {name: ops.convert_to_numpy(g) for name, g in zip(names, by_weight, strict=True)}
    return ops.convert_to_numpy(y), ops.convert_to_numpy(by_x), numpy


def lift_by_oracle(model, pose2d: np.ndarray) -> np.ndarray:
    """What a model of the 16 joints predicts, edge by edge in float64."""
    near = reference.neighbours(h36m_16.num_joints, h36m_16.bones)
    weights = {
        layer.name: [weight.astype("float64") for weight in layer.get_weights()]
        for layer in model.layers
    }
    x = pose2d.astype("float64")
    return reference.lifter(model.metadata["scheme"], weights, x, near, h36m_16.centre)


def run_python(code: str, *arguments: str, backend: str, limit: float = 300) -> str:
    """Runs Python code in a process of its own under a backend; returns what it printed."""
    process = start_python(code, *arguments, backend=backend)
    try:
        printed, errors = process.communicate(timeout=limit)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    return printed


def start_python(code: str, *arguments: str, backend: str) -> subprocess.Popen:
    """Python code in a process of its own under a backend."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **pipes)


def read_picture(path):
    """The pixels; fails if the file is no PNG, shows nothing or is cut off at an edge."""
    from matplotlib import image

    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(path)
    assert len(np.unique(pixels[..., 0])) > 10
    margins = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (margins == 1).all(), "something is cut off at the edge"
    return pixels


def in_one_order(scheme, skeleton, transform_first: bool) -> Contraction:
    """A scheme's sum with every part in the same order, be it the cheaper one or not."""
    parts = range(len(scheme.parts))
    return Contraction(tuple(PartialSum(scheme, skeleton, n, transform_first) for n in parts))


def edge_products(contraction):
    """For each edge of a contraction the number of its product, counted over all parts."""
    found, start = np.full(len(contraction.skeleton.edges), -1), 0
    for part in contraction.parts:
        found[part.edges] = start + part.product_of_edge
        start += len(part.products)
    return found

"""Whole epochs of a compiled model, from arrays that lie on the device.

`fit` hands over one batch at a time from the host; here a step picks its rows on the device, no
step waits for the host, and the backend sees as much of the epoch as it can make use of.
"""

import itertools
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_wsgcn.torch_epochs import torch_runner

# Trains on the rows `(steps, batch_size)` of the data. Returns the losses `(steps,)`, each that of
# its step or a mean with those before: they are finite up to the step at which training diverges.
Runner = Callable[[np.ndarray], np.ndarray]


class Epochs:
    """Trains a compiled model epoch by epoch.

    Args:
        model: a compiled Keras model with one input and one output.
        inputs: `(poses, ...)` NumPy array; it is copied to the device.
        targets: `(poses, ...)` NumPy array.
        batch_size: poses a step.
    """

    def __init__(
        self, model: keras.Model, inputs: np.ndarray, targets: np.ndarray, batch_size: int
    ) -> None:
        self.model, self.batch_size = model, batch_size
        model.optimizer.build(model.trainable_variables)
        _build_metrics(model, inputs[:1], targets[:1])
        runner = _RUNNERS[keras.backend.backend()]
        self._run: Runner = runner(model, inputs, targets, batch_size)

    def run(self, order: np.ndarray) -> tuple[dict[str, float], int | None]:
        """Trains on the rows `order` of the data, one batch after another.

        Args:
            order: `(steps * batch_size,)` integers.

        Returns:
            The loss and the metrics over all of them, and the first step, counted from 0, whose
            loss was not finite, or None.
        """
        self.model.reset_metrics()
        losses = self._run(order.reshape(-1, self.batch_size).astype(np.int32))
        logs = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        diverged = np.flatnonzero(~np.isfinite(losses))
        return logs, int(diverged[0]) if len(diverged) else None


def _build_metrics(model: keras.Model, inputs: np.ndarray, targets: np.ndarray) -> None:
    """Lets the loss and the metrics make their variables, as the first step would."""
    predicted = model(inputs, training=False)
    targets = keras.ops.convert_to_tensor(targets)
    model.compute_loss(x=inputs, y=targets, y_pred=predicted)
    model.compute_metrics(inputs, targets, predicted)


def _jax_runner(
    model: keras.Model, inputs: np.ndarray, targets: np.ndarray, batch_size: int
) -> Runner:
    """An epoch is one program: a scan over the steps."""
    import jax

    # With several devices each holds all data, and its share of the rows of a step.
    everywhere, shared = _shardings()
    arrays = jax.device_put((inputs, targets), everywhere)
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )

    def train(state, arrays, order):
        def step(state, rows):
            logs, state = model.train_step(state, tuple(array[rows] for array in arrays))
            return tuple(map(list, state)), logs["loss"]

        return jax.lax.scan(step, state, order)

    program = jax.jit(train, donate_argnums=0, compiler_options=xla_options())
    for variable in itertools.chain(*groups):  # two of them may share what can be given away once
        variable.assign(jax.numpy.array(variable.value, copy=True))

    def run(order: np.ndarray) -> np.ndarray:
        state = tuple([variable.value for variable in group] for group in groups)
        state, losses = program(state, arrays, jax.device_put(order, shared))
        for group, values in zip(groups, state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        return np.asarray(losses)

    return run


def _shardings() -> tuple[Any, Any]:
    """Where data lies, and where the rows `(steps, batch_size)`; None, None on one device."""
    from jax.sharding import NamedSharding, PartitionSpec

    distribution = keras.distribution.distribution()
    if distribution is None:
        return None, None
    mesh, axis = distribution.device_mesh.backend_mesh, distribution.batch_dim_name
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, axis))


def xla_options() -> dict[str, Any] | None:
    """How XLA is to compile, where it differs from its default.

    On a CPU its library for matrix products runs a batch of small ones on one core: without it a
    step of `pre_agg_decoupled` at 4.2 M parameters, batch 256, takes 90 instead of 119 ms on two
    cores. On a GPU it times several algorithms and takes the fastest, not the same in each
    process, and a resumed training would end elsewhere; XLA_FLAGS=--xla_gpu_deterministic_ops=false
    lets it: 1.7 instead of 3.2 ms a step of the benchmark recipe at 4.2 M parameters on an H100.
    """
    import jax

    name = "xla_gpu_deterministic_ops"
    options: dict[str, Any] = {} if name in os.environ.get("XLA_FLAGS", "") else {name: True}
    if jax.default_backend() == "cpu":
        options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:  # an option of another version
        return None
    return options


def _tensorflow_runner(
    model: keras.Model, inputs: np.ndarray, targets: np.ndarray, batch_size: int
) -> Runner:
    """An epoch is one graph: a loop over steps that XLA compiles.

    Keras leaves XLA out on a CPU, where it gains a few per cent. Compiled with the loop in it, the
    products would run on one core.
    """
    import tensorflow as tf

    arrays = tf.constant(inputs), tf.constant(targets)
    strategy = tf.distribute.get_strategy()
    share = batch_size // strategy.num_replicas_in_sync
    if strategy.num_replicas_in_sync == 1:
        step = tf.function(model.train_step, jit_compile=True)
    else:  # XLA cannot compile what devices tell each other
        step = model.train_step
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True

    def one_step(rows):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        rows = rows[replica * share : (replica + 1) * share]
        return step(tuple(tf.gather(array, rows) for array in arrays))["loss"]

    @tf.function(reduce_retracing=True)
    def train(order):
        losses = tf.TensorArray(tf.float32, size=tf.shape(order)[0])
        for number in tf.range(tf.shape(order)[0]):
            loss = strategy.run(one_step, args=(order[number],))
            losses = losses.write(number, strategy.reduce("mean", loss, axis=None))
        return losses.stack()

    return lambda order: train(tf.constant(order)).numpy()


_RUNNERS: dict[str, Callable[..., Runner]] = {
    "jax": _jax_runner,
    "tensorflow": _tensorflow_runner,
    "torch": torch_runner,
}

"""Whole epochs of a compiled model, from arrays that lie on the device.

`fit` hands over one batch at a time from the host; here a step picks its rows on the device, no
step waits for the host, and the backend sees as much of the epoch as it can make use of.
"""

import functools
import itertools
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_wsgcn.devices import keep_freed_memory
from keras_wsgcn.saving import build_optimizer
from keras_wsgcn.torch_steps import torch_runner

# Trains on the rows `(models, steps, batch_size)` of the data, for those models that shall learn.
# Returns the losses `(models, steps)`, each that of its step or a mean with those before: they are
# finite up to the step at which training diverges.
Runner = Callable[[np.ndarray, Sequence[bool]], np.ndarray]
# What the metrics of a model say of an epoch, and the first step, counted from 0, whose loss was
# not finite, or None.
Outcome = tuple[dict[str, float], int | None]


class Epochs:
    """Trains compiled models epoch by epoch; under JAX several at once.

    To XLA several models are one with larger arrays, which fills an accelerator better. Each
    computes what it would alone but for rounding, whatever the others compute.

    Args:
        models: compiled Keras models with one input and one output, which differ in nothing but
            the values of their variables.
        inputs: `(poses, ...)` NumPy array; it is copied to the device.
        targets: `(poses, ...)` NumPy array.
        batch_size: poses a step, of each model.
        jit_compile: whether PyTorch compiles its step, as the others do anyway.
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        inputs: np.ndarray,
        targets: np.ndarray,
        batch_size: int,
        *,
        jit_compile: bool = False,
    ) -> None:
        keep_freed_memory()
        self.models, self.batch_size = models, batch_size
        for model in models:
            build_optimizer(model)
            _build_metrics(model, inputs[:1], targets[:1])
        runner = _RUNNERS[keras.backend.backend()]
        if jit_compile and keras.backend.backend() == "torch":
            runner = functools.partial(runner, jit_compile=True)
        self._run: Runner = runner(models, inputs, targets, batch_size)

    def run(self, orders: Sequence[np.ndarray | None]) -> list[Outcome | None]:
        """Trains each model on its rows of the data, one batch after another.

        Args:
            orders: for each model `(steps * batch_size,)` integers, or None: it stays as it is.

        Returns:
            For each model its outcome, or None.
        """
        learns = [order is not None for order in orders]
        idle = next(order for order in orders if order is not None)
        rows = np.stack([idle if order is None else order for order in orders]).astype(np.int32)
        for model in itertools.compress(self.models, learns):
            model.reset_metrics()
        losses = self._run(rows.reshape(len(orders), -1, self.batch_size), learns)
        return [
            _outcome(model, of_model) if own else None
            for model, of_model, own in zip(self.models, losses, learns, strict=True)
        ]


def _outcome(model: keras.Model, losses: np.ndarray) -> Outcome:
    logs = {name: float(value) for name, value in model.get_metrics_result().items()}
    diverged = np.flatnonzero(~np.isfinite(losses))
    return logs, int(diverged[0]) if len(diverged) else None


def _build_metrics(model: keras.Model, inputs: np.ndarray, targets: np.ndarray) -> None:
    """Lets the loss and the metrics make their variables, as the first step would."""
    predicted = model(inputs, training=False)
    targets = keras.ops.convert_to_tensor(targets)
    model.compute_loss(x=inputs, y=targets, y_pred=predicted)
    model.compute_metrics(inputs, targets, predicted)


def _jax_runner(
    models: Sequence[keras.Model], inputs: np.ndarray, targets: np.ndarray, batch_size: int
) -> Runner:
    """An epoch is one program: a scan over the steps, mapped over the models."""
    import jax

    # With several devices each holds all data, and its share of the rows of a step.
    everywhere, shared = _shardings()
    arrays = jax.device_put((inputs, targets), everywhere)

    def train(state, arrays, order):
        def step(state, rows):
            logs, state = models[0].train_step(state, tuple(array[rows] for array in arrays))
            return tuple(map(list, state)), logs["loss"]

        return jax.lax.scan(step, state, order)

    def train_all(states, arrays, orders):
        if len(states) == 1:  # mapped over, it would be compiled otherwise
            state, losses = train(states[0], arrays, orders[0])
            return [state], losses[None]
        state = jax.tree.map(lambda *values: jax.numpy.stack(values), *states)
        state, losses = jax.vmap(train, in_axes=(0, None, 0))(state, arrays, orders)
        return [jax.tree.map(operator.itemgetter(k), state) for k in range(len(states))], losses

    program = jax.jit(train_all, donate_argnums=0, compiler_options=xla_options())
    groups_of = [_variable_groups(model) for model in models]

    def values_of(groups, copy: bool):
        array = functools.partial(jax.numpy.array, copy=copy)
        return tuple([array(variable.value) for variable in group] for group in groups)

    def assign(groups, state) -> None:
        for variable, value in zip(itertools.chain(*groups), itertools.chain(*state), strict=True):
            variable.assign(value)

    for groups in groups_of:  # two variables may share an array, which can be given away once
        assign(groups, values_of(groups, copy=True))

    def run(orders: np.ndarray, learns: Sequence[bool]) -> np.ndarray:
        # What is given to the program is gone, but for a copy.
        states = [
            values_of(groups, copy=not own) for groups, own in zip(groups_of, learns, strict=True)
        ]
        states, losses = program(states, arrays, jax.device_put(orders, shared))
        for groups, state in itertools.compress(zip(groups_of, states, strict=True), learns):
            assign(groups, state)
        return np.asarray(losses)

    return run


def _variable_groups(model: keras.Model) -> tuple[list[keras.Variable], ...]:
    """The state that Keras's step takes and gives."""
    return (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )


def _shardings() -> tuple[Any, Any]:
    """Where data lies, and the rows `(models, steps, batch_size)`; None, None on one device."""
    from jax.sharding import NamedSharding, PartitionSpec

    distribution = keras.distribution.distribution()
    if distribution is None:
        return None, None
    mesh, axis = distribution.device_mesh.backend_mesh, distribution.batch_dim_name
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(
        mesh, PartitionSpec(None, None, axis)
    )


def xla_options() -> dict[str, Any] | None:
    """How XLA is to compile, where it differs from its default.

    On a CPU its library for matrix products runs a batch of small ones on one core: without it a
    step of `pre_agg_decoupled` at 4.2 M parameters, batch 256, takes 90 instead of 119 ms on two
    cores. On a GPU it times several algorithms and takes the fastest, not the same in each
    process, and a resumed training would end elsewhere; XLA_FLAGS=--xla_gpu_deterministic_ops=false
    lets it: 1.69 instead of 1.81 ms a step of the benchmark recipe at 4.2 M parameters on an H100.
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


def _one_model(
    runner: Callable[..., Callable[[np.ndarray], np.ndarray]],
) -> Callable[..., Runner]:
    """The runner of a backend that trains one model at a time."""

    def runner_of_one(models: Sequence[keras.Model], *data: Any, **options: Any) -> Runner:
        (model,) = models
        run = runner(model, *data, **options)
        return lambda orders, learns: run(orders[0])[None]

    return runner_of_one


def _tensorflow_runner(
    model: keras.Model, inputs: np.ndarray, targets: np.ndarray, batch_size: int
) -> Callable[[np.ndarray], np.ndarray]:
    """An epoch is one graph: a loop over steps that XLA compiles.

    Keras leaves XLA out on a CPU, where it gains a few per cent. Compiled with the loop in it, the
    products would run on one core.
    """
    import tensorflow as tf

    arrays = tf.constant(inputs), tf.constant(targets)
    strategy = tf.distribute.get_strategy()
    share = batch_size // strategy.num_replicas_in_sync
    one = strategy.num_replicas_in_sync == 1
    if one and not isinstance(strategy, tf.distribute.MirroredStrategy):
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
    "tensorflow": _one_model(_tensorflow_runner),
    "torch": _one_model(torch_runner),
}

"""Whole epochs of a compiled model, from arrays that lie on the device.

`fit` hands over one batch at a time from the host; here a step picks its rows on the device, no
step waits for the host, and the backend sees as much of the epoch as it can make use of.
"""

import ctypes
import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

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


def _torch_runner(
    model: keras.Model, inputs: np.ndarray, targets: np.ndarray, batch_size: int
) -> Runner:
    """Steps are replayed from a trace: the operations alone, forward, backward and update.

    Through Keras's layers, PyTorch's tape and the optimiser's eight passes over the weights, for
    which there is one kernel, a step of `fit` takes 145 instead of 84 ms on two cores.
    """
    import torch

    _keep_freed_memory()
    arrays = [keras.ops.convert_to_tensor(array) for array in (inputs, targets)]
    model.train()
    step: Callable[..., Any] = _plain_step(model)
    if _has_plain_adam(model):
        with _state_kept(model):  # tracing and warming up are steps
            batch = [array[:batch_size].clone() for array in arrays]
            gradients = _traced(_gradient_step(model), *batch)
            update = _traced(_adam_update(model), gradients(*batch)[1])

            def step(*batch):
                loss, of_weights = gradients(*batch)
                update(of_weights)
                return loss

            if arrays[0].is_cuda:
                step = _captured(step, batch)

    def run(order: np.ndarray) -> np.ndarray:
        rows = keras.ops.convert_to_tensor(order)
        losses = [step(*(array[batch] for array in arrays)) for batch in rows]
        return torch.stack(losses).cpu().numpy()

    return run


def _traced(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The operations of a function alone, those on constants done."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    trace = make_fx(function)(*arguments)
    _fold_constants(trace)
    return torch.no_grad()(trace)  # what there was to differentiate is in the trace


def _fold_constants(trace: Any) -> None:
    """Computes once, in place, what every step of a trace would compute from constants alone.

    Such as the indices of joints, which Keras makes tensors of at every call.
    """
    import torch

    def changes(node) -> bool:
        return not hasattr(node.target, "_schema") or node.target._schema.is_mutable

    constants = {}
    for node in trace.graph.nodes:
        if node.op == "get_attr":
            value = getattr(trace, node.target)
            if not isinstance(value, torch.nn.Parameter):  # those are variables
                constants[node] = value
        elif (
            node.op == "call_function"
            and node.all_input_nodes
            and all(source in constants for source in node.all_input_nodes)
            and not any(changes(one) for one in (node, *node.users))
            and torch.Tag.nondeterministic_seeded not in node.target.tags
        ):
            of = torch.fx.node.map_arg((node.args, node.kwargs), constants.__getitem__)
            name = f"_folded_{node.name}"
            trace.register_buffer(name, node.target(*of[0], **of[1]))
            with trace.graph.inserting_before(node):
                folded = trace.graph.get_attr(name)
            constants[folded] = getattr(trace, name)
            node.replace_all_uses_with(folded)
    trace.graph.eliminate_dead_code(lambda node: node.op != "get_attr" and changes(node))
    trace.recompile()


def _keep_freed_memory() -> None:
    """Has the C library keep what tensors give back, for the next ones.

    By default it returns blocks of megabytes to the system, which then maps and clears them page by
    page, some 20,000 times a step: `pre_agg_decoupled` at 4.2 M parameters, batch 256, takes 95
    instead of 72 ms. Other systems than Linux with glibc are left as they are.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 32 << 20)  # the most it takes
        libc.mallopt(trim_threshold, 2**31 - 1)


def _plain_step(model: keras.Model) -> Callable[..., Any]:
    def step(*batch):
        model.train_step(batch)
        return model._loss_tracker.result().detach()

    return step


def _has_plain_adam(model: keras.Model) -> bool:
    """Whether the one kernel does all that the optimiser is asked for."""
    optimizer = model.optimizer
    if not isinstance(optimizer, keras.optimizers.Adam):  # such as the one that scales losses
        return False
    asked = ("amsgrad", "clipnorm", "clipvalue", "use_ema", "gradient_accumulation_steps")
    return (
        not any(getattr(optimizer, name) for name in (*asked, "loss_scale_factor"))
        and all(variable.constraint is None for variable in model.trainable_variables)
        and not (optimizer.weight_decay and hasattr(optimizer, "_exclude_from_weight_decay"))
    )


class _state_kept:
    """Gives all variables of a model their values back at the end."""

    def __init__(self, model: keras.Model):
        variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
        self.values = [(variable, variable.value.clone()) for variable in variables]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_) -> None:
        for variable, value in self.values:
            variable.assign(value)


def _gradient_step(model: keras.Model) -> Callable[..., Any]:
    """The loss of a batch and its gradients; metrics are told of it."""
    import torch

    weights = [variable.value for variable in model.trainable_variables]

    def step(inputs, targets):
        with torch.enable_grad():
            predicted = model(inputs, training=True)
            loss = model.compute_loss(x=inputs, y=targets, y_pred=predicted, training=True)
            # In one piece each: the kernel of the update takes them for that, and some are slices.
            gradients = [g.contiguous() for g in torch.autograd.grad(loss, weights)]
        with torch.no_grad():
            loss, predicted = loss.detach(), predicted.detach()
            model._loss_tracker.update_state(loss, sample_weight=len(inputs))
            model.compute_metrics(inputs, targets, predicted)
        return loss, gradients

    return step


def _adam_update(model: keras.Model) -> Callable[..., None]:
    """Keras's Adam in one kernel; the same numbers but for rounding."""
    import torch

    optimizer = model.optimizer
    weights = [variable.value for variable in model.trainable_variables]
    moments = [variable.value for variable in optimizer._momentums]
    velocities = [variable.value for variable in optimizer._velocities]
    # So late the kernel's own bias correction is 1: Keras's, with its epsilon, is in the rate.
    late = [torch.tensor(1e9, device=weights[0].device)] * len(weights)

    @torch.no_grad()
    def update(gradients):
        rate, count = optimizer.learning_rate, optimizer.iterations.value + 1
        if optimizer.weight_decay:
            torch._foreach_mul_(weights, 1.0 - rate * optimizer.weight_decay)
        divisor = None
        if optimizer.global_clipnorm:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            divisor = torch.clamp(norm / optimizer.global_clipnorm, min=1.0)
        correction = torch.sqrt(1 - optimizer.beta_2**count) / (1 - optimizer.beta_1**count)
        torch._fused_adam_(
            weights, gradients, moments, velocities, [], late,
            lr=rate * correction, beta1=optimizer.beta_1, beta2=optimizer.beta_2,
            weight_decay=0.0, eps=optimizer.epsilon, amsgrad=False, maximize=False,
            grad_scale=divisor,
        )  # fmt: skip
        optimizer.iterations.assign_add(1)

    return update


def _captured(step: Callable[..., Any], batch: list) -> Callable[..., Any]:
    """The step as one CUDA graph: to launch its kernels one by one would take longer than they do.

    Args:
        step: the traced step.
        batch: inputs and targets of a step; the graph reads from here.
    """
    import torch

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):  # libraries choose their kernels before anything is captured
            step(*batch)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(*batch)

    def replay(*values):
        for place, value in zip(batch, values, strict=True):
            place.copy_(value)
        graph.replay()
        return loss.clone()

    return replay


_RUNNERS: dict[str, Callable[..., Runner]] = {
    "jax": _jax_runner,
    "tensorflow": _tensorflow_runner,
    "torch": _torch_runner,
}

"""Steps under PyTorch: traced once, and replayed; those of a training on CUDA as one graph."""

import contextlib
import functools
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_wsgcn.environment import processor
from keras_wsgcn.errors import InputError
from keras_wsgcn.models import LAYERS

# Devices whose kernel of Adam divides the gradients by what it is given, to clip them: not MPS.
DIVIDING_KERNELS = ("cpu", "cuda")


def torch_runner(
    model: keras.Model,
    inputs: np.ndarray,
    targets: np.ndarray,
    batch_size: int,
    jit_compile: bool = False,
) -> Callable[[np.ndarray], np.ndarray]:
    """Steps are replayed from a trace: the operations alone, forward, backward and update.

    Through Keras's layers, PyTorch's tape and the optimiser's eight passes over the weights, for
    which there is one kernel, a step of `fit` takes 145 instead of 84 ms on two cores. To compile
    it fuses what lies between the matrix products: 69 instead of 88 ms (`pre_agg`, 4.2 M
    parameters, batch 256).
    """
    import torch

    arrays = [keras.ops.convert_to_tensor(array) for array in (inputs, targets)]
    model.train()
    step: Callable[..., Any] = _plain_step(model)
    if _has_plain_adam(model):
        with _state_kept(model):  # tracing and warming up are steps
            batch = [array[:batch_size].clone() for array in arrays]
            gradients = _traced(_gradient_step(model), *batch, jit_compile=jit_compile)
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


def replay_predictions(model: keras.Model, batch_size: int) -> None:
    """Has `model.predict` replay a trace where it is given a whole batch.

    Keras's model keeps all that its layers compute until the last is done, which is more than the
    caches hold: 4500 poses take 0.63 instead of 0.43 s (`pre_agg`, 4.2 M parameters, two cores).
    Smaller batches are not worth their traces, half a second each. Other layers than the library's
    may look at values, or be changed between two predictions, which a trace would not know.
    """
    if not all(type(layer) in LAYERS for layer in model.layers):
        return
    model.make_predict_function()
    if not model.jit_compile and not isinstance(model.predict_function, _Predictions):
        model.predict_function = _Predictions(model.predict_function, batch_size)


class _Predictions:
    """A predict function of Keras's, which replays those of whole batches."""

    def __init__(self, plain: Callable[..., Any], batch_size: int):
        self.plain, self.batch_size = plain, batch_size
        self.replays: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(self, batches: Sequence[Any]) -> Any:
        inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batches[0])
        if len(inputs) != self.batch_size:
            return self.plain(batches)
        inputs = keras.ops.convert_to_tensor(inputs)
        kind = (inputs.dtype, *inputs.shape)  # for which a trace holds
        if kind not in self.replays:
            self.replays[kind] = _traced(lambda inputs: self.plain([inputs]), inputs)
        return self.replays[kind](inputs)


_tracing = threading.Lock()  # PyTorch traces one function at a time


def _traced(
    function: Callable[..., Any], *arguments: Any, jit_compile: bool = False
) -> Callable[..., Any]:
    """The operations of a function alone, those on constants done."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    with _tracing:
        trace = make_fx(function)(*arguments)
    _fold_constants(trace)
    if torch.backends.mkldnn.is_available() and (processor() or "").startswith("AMD"):
        _multiply_by_onednn(trace)
    trace.recompile()
    replay = torch.compile(trace) if jit_compile else trace
    return torch.no_grad()(replay)  # what there was to differentiate is in the trace


def check_jit_compile(precision: str) -> None:
    """Refuses to compile where that cannot work.

    Args:
        precision: that of the training, see `TrainConfig`.

    Raises:
        InputError: if there is no C++ compiler, or a GPU: on an H100 what PyTorch 2.11 had compiled
            ended half of the trainings with an assertion. Or if the loss is scaled: then Keras's
            own step runs, which finds out as it goes whether it overflowed.
    """
    import torch

    if precision == "mixed_float16":
        reason = "`precision` is 'mixed_float16'"
    elif torch.cuda.is_available():
        reason = "torch computes on a GPU, where compiled steps failed"
    elif not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))):
        reason = "there is no C++ compiler (`g++`, `clang++`, or what CXX names)"
    else:
        return
    raise InputError(f"`jit_compile` must be False where {reason}. Received: jit_compile=True")


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
            folded.meta, constants[folded] = node.meta, getattr(trace, name)
            node.replace_all_uses_with(folded)
    trace.graph.eliminate_dead_code(lambda node: node.op != "get_attr" and changes(node))


def _multiply_by_onednn(trace: Any) -> None:
    """Has oneDNN do, in place, the products of all joints with the kernel that they share.

    PyTorch has MKL do them, which on AMD's processors multiplies rows that are no whole number of
    vectors, such as 417 or 723 channels, at half the rate: a step of the schemes with one kernel
    for all joints takes 0.74 to 0.88 of what it did (4.2 M parameters, batch 256, two cores).
    """
    import torch

    def value(node):  # older versions of PyTorch do not say it of a parameter
        return node.meta["val"] if "val" in node.meta else getattr(trace, node.target)

    for node in trace.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default):
        rows, product = value(node.args[0]), value(node)
        tall = len(rows) > max(rows.shape[1], product.shape[1])  # not so the kernel's gradient
        if tall and product.device.type == "cpu" and product.dtype == torch.float32:
            node.target = _onednn_product()


@functools.cache
def _onednn_product() -> Any:
    """The product of two matrices by oneDNN, as one operation."""
    import torch
    from torch import library

    @library.custom_op("keras_wsgcn::onednn_product", mutates_args=())
    def product(rows: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, kernel.t(), None, "none", [], "")

    product.register_fake(torch.mm)
    return torch.ops.keras_wsgcn.onednn_product.default


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


@contextlib.contextmanager
def _state_kept(model: keras.Model) -> Iterator[None]:
    """Gives all variables of a model their values back at the end."""
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    values = [variable.value.clone() for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
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
            if weights[0].is_cuda:
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            else:  # a processor computes norms one by one, and products in half the time
                flat = [gradient.flatten() for gradient in gradients]
                norm = torch.stack([torch.dot(one, one) for one in flat]).sum().sqrt()
            divisor = torch.clamp(norm / optimizer.global_clipnorm, min=1.0)
            if weights[0].device.type not in DIVIDING_KERNELS:
                gradients, divisor = torch._foreach_div(gradients, divisor), None
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

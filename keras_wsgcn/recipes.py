"""What to train and how: `TrainConfig`, the named recipes, and the optimiser they ask for."""

import contextlib
import random
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import keras
import numpy as np

from keras_wsgcn import metrics, schemes, skeletons
from keras_wsgcn.errors import (
    InputError,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    shown,
)
from keras_wsgcn.models import DEFAULT_KERNEL_GAIN, build_model, checked_channels
from keras_wsgcn.saving import dtype_policy
from keras_wsgcn.schemes import Scheme
from keras_wsgcn.skeletons import Skeleton

SCHEDULES = ("cosine", "step", "constant")
MAX_EPOCHS = 4000  # a `.keras` file holds the history of so many
PRECISIONS = ("float32", "tf32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training run computes, but the data.

    Args:
        scheme: name of a weight-sharing scheme; in Python also a `Scheme`.
        budget: trainable parameters to come nearest to; excludes `channels`.
        channels: channels of the hidden layers; with neither, 128.
        blocks: residual blocks.
        dropout: fraction of the activations dropped.
        non_local: whether non-local blocks are used.
        affinity: `"fixed"` or `"learned"`.
        kernel_gain: gain of the initial kernels; see `build_model`.
        skeleton: name of a skeleton; in Python also a `Skeleton`.
        batch_size: poses a step. An epoch leaves out its last incomplete batch.
        epochs: passes over the training poses, at most 4000.
        learning_rate: Adam's, at the start.
        schedule: `"cosine"` to zero over the whole run, `"step"` or `"constant"`.
        decay_rate: what a step of the schedule `"step"` multiplies the learning rate with; this and
            the next two are of no effect under the others.
        decay_steps: training steps between two steps of the schedule; excludes `decay_epochs`.
        decay_epochs: epochs between two steps of the schedule.
        clip_norm: largest global norm of the gradients; `None` for no clipping.
        weight_decay: decoupled weight decay.
        patience: epochs without a better validation error after which to stop; `None` for never.
        precision: `"float32"`; on accelerators also `"tf32"`, where products round their factors;
            or a policy of Keras, `"mixed_bfloat16"` or `"mixed_float16"`, the latter with a scaled
            loss. Weights are float32, and so is prediction but under a policy.
        jit_compile: whether PyTorch compiles its step for the processor, which takes a C++ compiler
            and some 20 s, and computes the same but for rounding and which units drop out; not with
            `"mixed_float16"`. JAX and TensorFlow always compile.
        seed: of weights, order and dropout.

    Raises:
        InputError: if a value is out of range.
    """

    scheme: str | Scheme = "pre_agg_decoupled"
    budget: float | None = None
    channels: int | None = None
    blocks: int = 4
    dropout: float = 0.0
    non_local: bool = False
    affinity: str = "fixed"
    kernel_gain: float = DEFAULT_KERNEL_GAIN
    skeleton: str | Skeleton = "h36m_16"
    batch_size: int = 256
    epochs: int = 8
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    decay_rate: float = 1.0
    decay_steps: int | None = None
    decay_epochs: int | None = None
    clip_norm: float | None = 1.0
    weight_decay: float = 0.0
    patience: int | None = None
    precision: str = "float32"
    jit_compile: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, module in (("scheme", schemes), ("skeleton", skeletons)):
            if isinstance(getattr(self, name), Mapping):  # a record, as in a file
                object.__setattr__(self, name, module.get(getattr(self, name)))
        self.solved_channels()
        for name in ("batch_size", "epochs"):
            check_integer(name, getattr(self, name), least=1)
        if self.epochs > MAX_EPOCHS:
            raise InputError(
                f"`epochs` must be at most {MAX_EPOCHS}. Received: epochs={self.epochs}"
            )
        if check_integer("seed", self.seed, least=0) >= 2**32:
            raise InputError(f"`seed` must be below 2**32. Received: seed={self.seed}")
        for name in ("decay_steps", "decay_epochs", "patience"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), least=1)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, above=0)
        check_flag("jit_compile", self.jit_compile)
        check_number("decay_rate", self.decay_rate, above=0)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("weight_decay", self.weight_decay, least=0)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("schedule", self.schedule, SCHEDULES)
        if self.schedule == "step" and (self.decay_steps is None) == (self.decay_epochs is None):
            raise InputError(
                "`decay_steps` or `decay_epochs` must be given, and only one of them. "
                f"Received: decay_steps={self.decay_steps}, decay_epochs={self.decay_epochs}"
            )
        if self.schedule == "step" and self.decay_rate == 1:
            raise InputError(
                "`decay_rate` must be given with schedule 'step', and other than 1. "
                f"Received: decay_rate={self.decay_rate}"
            )
        for field in fields(self):  # equal settings are the same run, and JSON can hold them
            value, kinds = getattr(self, field.name), typing.get_args(field.type) or (field.type,)
            for kind in {bool, int, float} & set(kinds):
                if value is not None:
                    object.__setattr__(self, field.name, kind(value))

    def build_model(self) -> keras.Model:
        """The untrained model, its weights drawn from `seed`."""
        policy = self.precision if "mixed" in self.precision else "float32"
        with dtype_policy(policy), random_state_kept():
            keras.utils.set_random_seed(self.seed)
            return build_model(self.scheme, **self._model_arguments())

    def solved_channels(self) -> int:
        """The channels of that model's hidden layers."""
        return checked_channels(self.scheme, **self._model_arguments())

    def _model_arguments(self) -> dict[str, Any]:
        names = ("budget", "channels", "blocks", "dropout", "non_local", "affinity")
        return {name: getattr(self, name) for name in (*names, "kernel_gain", "skeleton")}

    def learning_rates(self, steps_per_epoch: int) -> Any:
        """The learning rate as Keras takes it: a number or a schedule over steps."""
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "cosine":
            return keras.optimizers.schedules.CosineDecay(
                self.learning_rate, decay_steps=self.epochs * steps_per_epoch
            )
        return keras.optimizers.schedules.ExponentialDecay(
            self.learning_rate,
            decay_steps=self.decay_steps or (self.decay_epochs or 1) * steps_per_epoch,
            decay_rate=self.decay_rate,
            staircase=True,
        )

    def get_config(self) -> dict[str, Any]:
        """The configuration as JSON can hold it; `from_config` reads it back."""
        config = {field.name: getattr(self, field.name) for field in fields(self)}
        config["scheme"] = schemes.serialize(schemes.get(self.scheme))
        config["skeleton"] = skeletons.serialize(skeletons.get(self.skeleton))
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TrainConfig":
        """Rebuilds a configuration from `get_config()`.

        Raises:
            InputError: if a key is unknown or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(config, Mapping):
            raise InputError(f"`config` must be a mapping. Received: config={shown(config)}")
        if unknown := sorted(map(str, set(config) - set(known))):
            raise InputError(f"`config` must have keys among {known}. Received: {shown(unknown)}")
        return cls(**config)


RECIPES: dict[str, TrainConfig] = {
    # Tables 2 to 4 of the paper.
    "ablation": TrainConfig(
        kernel_gain=1.0,
        batch_size=64,
        epochs=50,
        learning_rate=1e-3,
        schedule="step",
        decay_rate=0.96,
        decay_steps=100_000,
    ),
    # Tables 5 to 7 of the paper.
    "benchmark": TrainConfig(
        kernel_gain=1.0,
        non_local=True,
        dropout=0.2,
        batch_size=256,
        epochs=30,
        learning_rate=1e-4,
        schedule="step",
        decay_rate=0.95,
        decay_epochs=4,
    ),
    # The CMU-24 benchmark; it is read at every third frame.
    "cmu": TrainConfig(),
    # A few minutes on two cores.
    "quickstart": TrainConfig(epochs=6),
}


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Within it Keras can be seeded; what a user draws afterwards stays as it was.

    That is: from Python, NumPy and PyTorch. TensorFlow's generator cannot be read.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with _torch_random_state_kept():
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002


def _torch_random_state_kept() -> contextlib.AbstractContextManager[None]:
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.random.fork_rng(devices=range(torch.cuda.device_count()))


def compile_model(model: keras.Model, config: TrainConfig, steps_per_epoch: int) -> None:
    """Compiles a model as `config` says: Adam, mean squared error in square metres, MPJPE."""
    model.compile(
        optimizer=keras.optimizers.Adam(
            config.learning_rates(steps_per_epoch),
            global_clipnorm=config.clip_norm,
            weight_decay=config.weight_decay or None,
        ),
        loss="mse",
        metrics=[metrics.MPJPE()],
    )

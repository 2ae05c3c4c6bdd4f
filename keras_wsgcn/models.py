"""The lifting model: input layer, residual blocks of two graph convolutions, output layer."""

import math
import re
from typing import Any

import keras

from keras_wsgcn import schemes, skeletons
from keras_wsgcn.budget import MAX_MIXING, count_mixing, count_params, solve_channels
from keras_wsgcn.errors import InputError, check_instance, check_integer, check_number, shown
from keras_wsgcn.layers import BatchNormalization, GraphConv, GraphNonLocal, Turn
from keras_wsgcn.schemes import Scheme
from keras_wsgcn.skeletons import Skeleton

PAPER_CHANNELS = 128
DEFAULT_KERNEL_GAIN = 0.05
# The square of a gain is the scale of an initializer, in float32.
MIN_GAIN, MAX_GAIN = 1e-6, 1e6
# What `load_model` opens again: layers, and 340 MB of weights, with Adam's a GB.
MAX_BLOCKS, MAX_PARAMS = 150, 85_000_000


LAYERS = (  # the kinds that `build_model` makes
    keras.layers.InputLayer, Turn, GraphConv, GraphNonLocal, BatchNormalization,
    keras.layers.ReLU, keras.layers.Dropout, keras.layers.Add,
)  # fmt: skip


def build_model(
    scheme: str | Scheme,
    *,
    budget: float | None = None,
    channels: int | None = None,
    blocks: int = 4,
    dropout: float = 0.0,
    non_local: bool = False,
    affinity: str = "fixed",
    kernel_gain: float = DEFAULT_KERNEL_GAIN,
    skeleton: str | Skeleton = "h36m_16",
    name: str | None = None,
) -> keras.Model:
    """Builds a functional model that lifts 2D poses to 3D.

    Input layer 2 to C, residual blocks `x + block(x)` of two layers C to C, output layer C to 3.
    Every layer but the last is followed by batch normalisation (momentum 0.9, epsilon 1e-5), ReLU
    and dropout. Initial weights are drawn from Keras's global generator: call
    `keras.utils.set_random_seed` first for the same weights again.

    Args:
        scheme: name of a weight-sharing scheme (see `SCHEMES`), or a `Scheme`.
        budget: trainable parameters to come nearest to, such as `2.1e6`. Excludes `channels`.
        channels: channels of the hidden layers. With neither, 128, as in the paper.
        blocks: number of residual blocks.
        dropout: fraction of the activations that are dropped in training, in [0, 1).
        non_local: whether a `GraphNonLocal` follows the input layer and each residual block.
        affinity: `"fixed"` (Eq. 2 of the paper) or `"learned"`.
        kernel_gain: multiplies the Glorot-uniform bound of a single kernel in every graph
            convolution. Behind batch normalisation it sets the effective learning rate; in the
            output layer it sets the first loss, whose large gradients would otherwise hold back
            Adam's steps for an epoch and more. In the first layer it also makes activations
            smaller: below 0.2 their variance comes near the normalisation's epsilon (at 0.05
            they are 0.6 of what they would be). The paper's tables run at 1.
        skeleton: name of a skeleton, or a `Skeleton`.
        name: name of the model; by default scheme and channels.

    Returns:
        A `keras.Model` from `(batch, joints, 2)` normalised screen coordinates to
        `(batch, joints, 3)` metres in the camera frame, relative to the root. In between the
        batch is not the first axis; `Turn` brings it there.

    Raises:
        InputError: if an argument is out of range.

    Example:

    >>> model = build_model("post_agg", budget=2.1e6)
    >>> model.name
    'post_agg_128'

    Reference:

    - [Liu et al., 2020](https://arxiv.org/abs/2007.06178)
    """
    scheme, skeleton = schemes.get(scheme), skeletons.get(skeleton)
    channels = checked_channels(
        scheme,
        budget=budget,
        channels=channels,
        blocks=blocks,
        dropout=dropout,
        non_local=non_local,
        affinity=affinity,
        kernel_gain=kernel_gain,
        skeleton=skeleton,
    )
    if name is not None and not (
        isinstance(name, str)
        and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name)
        and ".." not in name
    ):
        raise InputError(
            "`name` must be letters, digits, `_`, `.` and `-`, 100 at most, without `..`. "
            f"Received: name={shown(name)}"
        )
    # The result is in metres: half precision would round it to half a millimetre.
    full_precision = keras.config.dtype_policy().variable_dtype

    # See `ops.py`; the linear maps of a non-local block are one kernel for all joints.
    layout = "jbc" if scheme.per == "graph" or non_local else "jcb"

    def conv(x, units, name, dtype=None):
        return GraphConv(
            units,
            scheme,
            skeleton=skeleton,
            affinity=affinity,
            layout=layout,
            kernel_initializer=keras.initializers.VarianceScaling(
                scale=float(kernel_gain) ** 2,  # the bound grows with the root of the scale
                mode="fan_avg",
                distribution="uniform",
            ),
            name=f"{name}_conv",
            dtype=dtype,
        )(x)

    def layer(x, name):
        x = conv(x, channels, name)
        x = BatchNormalization(
            axis=layout.index("c"), momentum=0.9, epsilon=1e-5, name=f"{name}_norm"
        )(x)
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
        return keras.layers.Dropout(float(dropout), name=f"{name}_dropout")(x) if dropout else x

    def non_local_block(x, name):
        return GraphNonLocal(skeleton, layout=layout, name=name)(x) if non_local else x

    inputs = keras.Input((skeleton.num_joints, 2), name="pose2d")
    x = Turn("bjc", layout, name="joints_first")(inputs)
    x = non_local_block(layer(x, "input"), "input_non_local")
    for block in range(1, blocks + 1):
        residual = layer(layer(x, f"block{block}_layer1"), f"block{block}_layer2")
        x = keras.layers.Add(name=f"block{block}_add")([x, residual])
        x = non_local_block(x, f"block{block}_non_local")
    x = conv(x, 3, "output", dtype=full_precision)
    outputs = Turn(layout, "bjc", name="pose3d", dtype=full_precision)(x)
    # A scheme may be called anything.
    own = re.sub("[^A-Za-z0-9_]", "_", f"{scheme.name[:80]}_{channels}")
    model = keras.Model(inputs, outputs, name=name or own)
    model.metadata = describe(model) | {"budget": budget}
    return model


def checked_channels(
    scheme: str | Scheme,
    *,
    budget: float | None,
    channels: int | None,
    blocks: int,
    dropout: float,
    non_local: bool,
    affinity: str,
    kernel_gain: float,
    skeleton: str | Skeleton,
) -> int:
    """The channels of the model that `build_model` makes of these arguments.

    Raises:
        InputError: if it would refuse them.
    """
    scheme, skeleton = schemes.get(scheme), skeletons.get(skeleton)
    size: dict[str, Any] = {
        "blocks": blocks,
        "non_local": non_local,
        "affinity": affinity,
        "skeleton": skeleton,
    }
    if check_integer("blocks", blocks, least=0) > MAX_BLOCKS:
        raise InputError(f"`blocks` must be at most {MAX_BLOCKS}. Received: blocks={blocks}")
    if budget is not None and channels is not None:
        raise InputError(
            "`budget` and `channels` exclude each other: give one of them. "
            f"Received: budget={shown(budget)}, channels={shown(channels)}"
        )
    if budget is not None:
        channels = solve_channels(scheme, budget, **size)
    elif channels is None:
        channels = PAPER_CHANNELS
    check_number("dropout", dropout, least=0, below=1)
    check_number("kernel_gain", kernel_gain, least=MIN_GAIN, below=MAX_GAIN)
    if (params := count_params(scheme, channels, **size)) > MAX_PARAMS:
        raise InputError(
            f"`channels` and `blocks` must give at most {MAX_PARAMS:,} parameters, not {params:,}. "
            f"Received: channels={channels}, blocks={blocks}"
        )
    layers = 2 * blocks + 2
    if layers * count_mixing(scheme, skeleton) > MAX_MIXING:
        raise InputError(
            f"`blocks` must be fewer on so many joints: {MAX_MIXING} weights of edges at most. "
            f"Received: blocks={blocks}, with {skeleton.num_joints} joints"
        )
    return channels


def describe(model: keras.Model) -> dict[str, Any]:
    """What the layers of a lifting model say of it: scheme, skeleton, channels and the rest.

    Args:
        model: a model of `build_model`, or one put together of the same layers.

    Returns:
        A dict that JSON can hold. `skeleton` and `scheme` are names, or the record of an own one.

    Raises:
        InputError: if the model holds no `GraphConv`.
    """
    convs = _convs_of(model)
    moving = ("moving_mean", "moving_variance")  # all other weights count, also while frozen
    dropouts = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    return {
        "scheme": schemes.serialize(convs[0].scheme),
        "skeleton": skeletons.serialize(convs[0].skeleton),
        "channels": convs[0].units,
        "blocks": max((len(convs) - 2) // 2, 0),
        "dropout": dropouts[0] if dropouts else 0.0,
        "non_local": any(isinstance(layer, GraphNonLocal) for layer in model.layers),
        "affinity": convs[0].affinity,
        "params": sum(math.prod(w.shape) for w in model.weights if w.name not in moving),
    }


def skeleton_of(model: keras.Model) -> Skeleton:
    """The joints of a lifting model.

    Args:
        model: as for `describe`, and so is the error.
    """
    return _convs_of(model)[0].skeleton


def _convs_of(model: keras.Model) -> list[GraphConv]:
    check_instance("model", model, keras.Model, "such as the `model` of what `train` returns")
    convs = [layer for layer in model.layers if isinstance(layer, GraphConv)]
    if not convs:
        raise InputError(
            f"`model` must hold `GraphConv` layers. Received: model={model.name!r} with "
            f"{sorted({type(layer).__name__ for layer in model.layers})}"
        )
    return convs

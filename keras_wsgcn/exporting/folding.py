"""A model for prediction only: batch normalisation folded into the kernels before it."""

from typing import Any

import keras
import numpy as np

from keras_wsgcn.declared_size import sources_in
from keras_wsgcn.layers import GraphConv
from keras_wsgcn.models import LAYERS

_ONLY_IN_TRAINING = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.GaussianNoise,
)


def inference_model(model: keras.Model) -> keras.Model:
    """The same function in float32, without what only training needs.

    A batch normalisation behind a graph convolution is one more scale and offset per channel, and
    the sum over joints is linear in them: with `s = gamma / sqrt(variance + epsilon)`,

        kernel' = kernel * s        bias' = (bias - mean) * s + beta

    hold for every scheme. Dropout disappears. A single pose costs some 40 operations less. The
    channels are the last axis again: LiteRT stores only right-hand sides of products in 8 bits.

    Args:
        model: a lifting model, functional or sequential.

    Returns:
        A new model; `model` is left as it is.
    """
    metadata = getattr(model, "metadata", {})
    # The graph alone, of a sequential model too: Keras would copy what `compile` was given.
    model = keras.Model(model.inputs, model.outputs, name=model.name)
    folded = _foldable(model)
    # The layers of `build_model` know of their axes no more than they are told.
    turnable = all(type(layer) in LAYERS for layer in model.layers) and any(
        isinstance(layer, GraphConv) and layer.layout == "jcb" for layer in model.layers
    )

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = {**layer.get_config(), "dtype": "float32"}
        return layer.__class__.from_config(_with_channels_last(config) if turnable else config)

    def call(layer: keras.layers.Layer, *arguments: Any, **options: Any) -> Any:
        if layer.name in folded or isinstance(layer, _ONLY_IN_TRAINING):
            return arguments[0]
        return layer(*arguments, **options)

    lean = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in lean.layers:
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    for norm_name, conv_name in folded.items():
        norm, conv = model.get_layer(norm_name), model.get_layer(conv_name)
        scale, offset = _scale_and_offset(norm)
        target = lean.get_layer(conv_name)
        target.kernel.assign(_float64(conv.kernel) * scale)
        target.bias.assign(_float64(conv.bias) * scale + offset)
    lean.metadata = metadata
    return lean


def _with_channels_last(config: dict[str, Any]) -> dict[str, Any]:
    layouts = {k: "jbc" for k in ("layout", "source", "target") if config.get(k) == "jcb"}
    return config | layouts | ({"axis": 2} if config.get("axis") in (1, -2) else {})


def _scale_and_offset(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    scale = 1.0 / np.sqrt(_float64(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        scale = scale * _float64(norm.gamma)
    offset = -_float64(norm.moving_mean) * scale
    return scale, offset + _float64(norm.beta) if norm.center else offset


def _float64(variable: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype(np.float64)


def _foldable(model: keras.Model) -> dict[str, str]:
    """Names of the batch normalisations that can be folded, and of the layers before them."""
    inputs = {
        layer["name"]: list(sources_in(layer["inbound_nodes"]))
        for layer in model.get_config()["layers"]
    }
    outputs = set(model.output_names)
    readers = [source for sources in inputs.values() for source in sources]
    found = {}
    for name, sources in inputs.items():
        norm = model.get_layer(name)
        if not isinstance(norm, keras.layers.BatchNormalization) or len(sources) != 1:
            continue
        conv = model.get_layer(sources[0])
        channels_axis = conv.layout.index("c") if isinstance(conv, GraphConv) else 2
        if (
            norm.axis in (channels_axis, channels_axis - 3)
            and isinstance(conv, GraphConv | keras.layers.Dense)
            and conv.activation is keras.activations.linear
            and conv.use_bias
            and readers.count(conv.name) == 1
            and conv.name not in outputs
        ):
            found[name] = conv.name
    return found

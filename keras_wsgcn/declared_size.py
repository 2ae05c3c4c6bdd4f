"""What a model's configuration asks for, counted before anything of it is built."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from keras_wsgcn import schemes, skeletons
from keras_wsgcn.budget import MAX_MIXING, count_mixing
from keras_wsgcn.errors import InputError, Refused, check_integer
from keras_wsgcn.skeletons import MAX_JOINTS

MAX_BATCH = 1 << 16


def declared_params(layers: list[dict[str, Any]], functional: bool) -> int:
    """The parameters of a model, from its configuration: channels change in few layers only.

    Args:
        layers: the configurations of its layers, of the classes that `screening` allows.
        functional: whether they say what their inputs are, or stand one behind the other.

    Returns:
        The parameters; not fewer than Keras would make.

    Raises:
        Refused: if a layer cannot be built, or the layers ask for too much beside their weights.
    """
    outputs: dict[str, tuple[int, str]] = {}
    total, mixing, waiting, before = 0, 0, list(layers), None
    while waiting:
        left = []
        for layer in waiting:
            if functional:
                sources = list(sources_in(layer.get("inbound_nodes")))
            else:
                sources = [] if before is None else [before]
            before = layer["config"]["name"]
            if all(source in outputs for source in sources):
                params, outputs[before] = _size(layer, [outputs[s] for s in sources])
                total += params
                mixing += _mixing_numbers(layer)
                if mixing > MAX_MIXING:
                    raise Refused(f"the layers ask for more than {MAX_MIXING} weights of edges")
            else:
                left.append(layer)
        if len(left) == len(waiting):
            raise Refused(f"layer {left[0]['config']['name']!r} has no input")
        waiting = left
    return total


def sources_in(nodes: Any) -> Iterator[str]:
    """Names of the layers whose outputs stand in inbound nodes, each as often as it does."""
    if isinstance(nodes, dict):
        if nodes.get("class_name") == "__keras_tensor__":
            try:
                yield str(nodes["config"]["keras_history"][0])
            except (KeyError, IndexError, TypeError):
                raise Refused("an inbound node has no history") from None
        else:
            for value in nodes.values():
                yield from sources_in(value)
    elif isinstance(nodes, list | tuple):  # tuples in the configuration of a live model
        for value in nodes:
            yield from sources_in(value)


def _size(layer: Mapping[str, Any], inputs: list[tuple[int, str]]) -> tuple[int, tuple[int, str]]:
    """Parameters of a layer, and channels and layout of its output, from those of its inputs."""
    kind, config = layer["class_name"], layer["config"]
    try:
        if kind == "InputLayer":
            shape = config.get("batch_shape") or config.get("batch_input_shape")
            if not isinstance(shape, list) or not 2 <= len(shape) <= 3:
                raise InputError(f"its shape must be (batch, joints, channels). Received: {shape}")
            for size in shape[:-1]:
                if size is not None and check_integer("batch_shape", size, least=1) > MAX_BATCH:
                    raise InputError(f"`batch_shape` must be at most {MAX_BATCH}. Received: {size}")
            return 0, (check_integer("channels", shape[-1], least=1), "bjc")
        if not inputs:
            raise Refused(f"layer {config['name']!r} has no input")
        # Broadcast, or of a layer that is called twice: the widest is what can follow.
        channels, layout = max(inputs)
        _check_layout(kind, config, {layout for _, layout in inputs})
        if kind == "Turn":
            return 0, (channels, config["target"])
        if kind in ("GraphConv", "GraphNonLocal"):
            skeleton = _checked_skeleton(config.get("skeleton"))
            if kind == "GraphNonLocal":
                return 2 * channels**2 + 10 * channels, (channels, layout)
            lead = schemes.get(config["scheme"]).kernel_lead(skeleton)
            units = check_integer("units", config["units"], least=1)
            return prod(lead) * channels * units + units, (units, layout)
        if kind == "Dense":
            for name in ("lora_rank", "quantization_config"):  # would bring weights of their own
                if config.get(name) is not None:
                    raise InputError(f"`{name}` must be None. Received: {config[name]!r:.80}")
            units = check_integer("units", config["units"], least=1)
            return (channels + 1) * units, (units, layout)
        if kind == "Concatenate":
            return 0, (sum(channels for channels, _ in inputs), layout)
        return 4 * channels * kind.endswith("Normalization"), (channels, layout)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Refused(f"layer {config['name']!r} cannot be built ({error})") from None


def _mixing_numbers(layer: Mapping[str, Any]) -> int:
    """At most how many numbers the matrices hold by which a layer mixes joints."""
    if layer["class_name"] != "GraphConv":
        return 0
    skeleton = _checked_skeleton(layer["config"].get("skeleton"))
    return count_mixing(schemes.get(layer["config"]["scheme"]), skeleton)


def _check_layout(kind: str, config: Mapping[str, Any], layouts: set[str]) -> None:
    """Refuses layers on other axes than the channels: of those nobody would count parameters."""
    name, (expected,) = config["name"], layouts  # inputs of two layouts fit no layer
    if kind in ("Turn", "GraphConv", "GraphNonLocal"):
        layout = config["source"] if kind == "Turn" else config.get("layout", "bjc")
        if layout != expected:
            raise Refused(f"layer {name!r} must take the layout {expected!r}")
        if kind == "Turn" and sorted(config["target"]) != sorted("bjc"):
            raise Refused(f"layer {name!r} must give a layout")
    elif kind in ("Dense", "Concatenate") or kind.endswith("Normalization"):
        channels = expected.index("c")
        axis = config.get("axis", -1)
        (axis,) = axis if isinstance(axis, list) and len(axis) == 1 else (axis,)
        if type(axis) is not int or axis not in (channels, channels - 3):
            raise Refused(f"layer {name!r} must work on the channels, axis {channels}")


def _checked_skeleton(value: Any) -> skeletons.Skeleton:
    if isinstance(value, dict) and any(
        (isinstance(item, list | str | dict) and len(item) > MAX_JOINTS**2)
        or (key == "joint_names" and len(item) > MAX_JOINTS)
        for key, item in value.items()
    ):
        raise Refused(f"a skeleton must have at most {MAX_JOINTS} joints")
    return skeletons.get(value)

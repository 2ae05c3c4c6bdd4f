"""Readers of arguments for `fuzz_readers.py`: public functions and records, fed any objects.

A row is a function, arguments that it takes, and what must hold of what it then gives.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from fuzzing import OBJECTS, RUBBISH, as_objects, rewrite

from keras_wsgcn import GraphConv, build_model, count_flops, count_params, schemes, skeletons
from keras_wsgcn.budget import solve_channels
from keras_wsgcn.data.archive import Motion
from keras_wsgcn.data.cameras import Camera
from keras_wsgcn.data.keypoints import KeypointTrack, convert_track
from keras_wsgcn.recipes import TrainConfig
from keras_wsgcn.schemes import Scheme
from keras_wsgcn.skeletons import Skeleton
from keras_wsgcn.studies.spec import StudySpec

_ANYTHING = (*RUBBISH, *OBJECTS)
# A layer of Keras walks through its arguments before it looks at them, and Python is not deep.
_TOO_MUCH = {"@deep", "@objects", "@digits", "@array", "@many", "@names", "@numbers"}
_FOR_LAYERS = tuple(v for v in _ANYTHING if not (isinstance(v, str) and v in _TOO_MUCH))
_ARM = {
    "name": "arm",
    "joint_names": ["body", "l_hand", "r_hand", "head"],
    "parents": [-1, 0, 0, 0],
    "centre": "body",
    "extra_edges": [["l_hand", 2]],
    "mirror_pairs": [[1, 2]],
    "pooling_groups": [[0, 3], [1, 2]],
}
_SCHEME = {"name": "mine", "split": "depth", "per": "source", "equation": ""}
_SIZE = {"blocks": 1, "non_local": False, "affinity": "learned", "skeleton": "h36m_16"}
_SPEC = {
    "name": "s",
    "data": {"source": "motions.npz", "stride": 3, "validation": [1], "noise_px": 0.5},
    "grid": [{"scheme": ["pre_agg", "no_sharing"], "channels": [4, 8]}],
    "recipe": "quickstart",
    "config": {"blocks": 1, "skeleton": dict(_ARM)},
    "seeds": [0, 1],
    "search": {
        "trials": 4,
        "space": {
            "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "dropout": {"low": 0.0, "high": 0.5},
            "batch_size": {"choices": [64, 128]},
        },
        "objectives": ["val_mpjpe_mm", "params"],
        "prune": False,
    },
}


def mutate(rng: random.Random, case: Any, other: Any, anything: tuple[Any, ...] = _ANYTHING) -> Any:
    """Arguments with some rubbish in them; none is left out and none is added at the top."""
    name = rng.choice(list(case))
    changed = rewrite(rng, {name: case[name]}, anything)
    kept = changed if isinstance(changed, dict) else {}
    return {key: kept.get(key, value) for key, value in case.items()}


def mutate_model(rng: random.Random, case: Any, other: Any) -> Any:
    """Like `mutate`; a model that is accepted stays small, for there are many of them."""
    while True:
        changed = mutate(rng, case, other, _FOR_LAYERS)
        if not any(_is_large(changed.get(name), most) for name, most in _LARGEST.items()):
            return changed


_LARGEST = {"channels": 64, "units": 64, "budget": 1e5, "blocks": 8}


def _is_large(value: Any, most: float) -> bool:
    value = as_objects(value)
    return isinstance(value, int | float) and most < value < 1e9  # beyond it is refused


def check_skeleton(skeleton: Skeleton) -> None:
    joints = skeleton.num_joints
    assert skeleton.affinity.shape == (joints, joints)
    assert np.isfinite(skeleton.affinity).all()
    assert sorted(skeleton.mirror.tolist()) == list(range(joints))
    assert (skeleton.depths >= 0).all()
    assert Skeleton.from_config(skeleton.get_config()) == skeleton


def check_scheme(scheme: Scheme) -> None:
    assert scheme.num_kernels(skeletons.h36m_16) > 0
    assert Scheme.from_config(scheme.get_config()) == scheme


def check_model(model: Any) -> None:
    joints = model.input_shape[1]
    poses = np.asarray(model.predict_on_batch(np.zeros((2, joints, 2), "float32")))
    assert poses.shape == (2, joints, 3)
    assert np.isfinite(poses).all()


def check_layer(layer: GraphConv) -> None:
    shape = layer.compute_output_shape((2, layer.skeleton.num_joints, 3))
    assert shape[-1] == layer.units


def check_config(config: TrainConfig) -> None:
    assert TrainConfig.from_config(config.get_config()) == config


def check_spec(spec: StudySpec) -> None:
    assert spec.cells
    assert StudySpec.from_config(spec.get_config()).get_config() == spec.get_config()


def check_count(count: int) -> None:
    assert type(count) is int
    assert count > 0


def _motion(**arguments: Any) -> Motion:
    return Motion(np.zeros((2, 3, 3)), **arguments)


_TRACK_OPTIONS = {"skeleton": "h36m_16", "least_confidence": 0.3, "max_gap": 3}


def _track(frames: Any, keypoints: Any, confidence: Any, options: dict[str, Any]) -> Any:
    kept = options if isinstance(options, dict) else {}
    known = {name: kept[name] for name in _TRACK_OPTIONS if name in kept}
    return convert_track(KeypointTrack(1, frames, keypoints, confidence, "h36m17"), **known)


def _each(function: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda value: function(value)


# name: function, arguments, check; `KERAS` are those that compute with it.
ARGUMENTS: dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[[Any], None]]] = {
    "Skeleton": (Skeleton, _ARM, check_skeleton),
    "skeletons.get": (_each(skeletons.get), {"value": _ARM}, check_skeleton),
    "Scheme": (Scheme, _SCHEME, check_scheme),
    "schemes.get": (_each(schemes.get), {"value": _SCHEME}, check_scheme),
    "count_params": (count_params, {"scheme": "pre_agg", "channels": 8, **_SIZE}, check_count),
    "count_flops": (count_flops, {"scheme": _SCHEME, "channels": 8, **_SIZE}, check_count),
    "solve_channels": (
        solve_channels,
        {"scheme": "pre_agg", "budget": 1e5, **_SIZE, "skeleton": _ARM, "multiple_of": 2},
        check_count,
    ),
    "TrainConfig": (
        TrainConfig,
        {
            "scheme": "post_agg", "channels": 8, "budget": None, **_SIZE, "batch_size": 4,
            "epochs": 2, "learning_rate": 1e-3, "schedule": "step", "decay_rate": 0.9,
            "decay_steps": 5, "clip_norm": 1.0, "patience": 3, "precision": "float32", "seed": 1,
            "dropout": 0.1, "kernel_gain": 0.1, "weight_decay": 0.0,
        },
        check_config,
    ),
    "TrainConfig.from_config": (
        lambda **config: TrainConfig.from_config(config),
        {"scheme": dict(_SCHEME), "skeleton": dict(_ARM), "epochs": 2},
        check_config,
    ),
    "StudySpec.from_config": (_each(StudySpec.from_config), {"value": _SPEC}, check_spec),
    "Motion": (
        _motion,
        {"subject": 1, "action": "Walking", "take": "1", "fps": 30.0, "description": "d"},
        lambda motion: None,
    ),
    "Camera": (
        Camera,
        {
            "rotation": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "position": [0, 0, 0],
            "focal_length": [1000, 1000], "principal_point": [500, 500], "image_size": [10, 20],
            "radial": [0, 0, 0], "tangential": [0, 0], "name": "c",
        },
        lambda camera: camera.project(np.ones((1, 3))),
    ),
    "KeypointTrack": (
        _track,
        {
            "frames": [0, 2, 3], "keypoints": [[[1.0, 2.0]] * 17] * 3,
            "confidence": [[1.0] * 17] * 3,
            "options": _TRACK_OPTIONS,
        },
        lambda track: None,
    ),
}  # fmt: skip
KERAS: dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[[Any], None]]] = {
    "build_model": (
        build_model,
        {
            "scheme": "pre_agg", "budget": None, "channels": 4, "blocks": 1, "dropout": 0.1,
            "non_local": False, "affinity": "fixed", "kernel_gain": 0.1, "skeleton": _ARM,
        },
        check_model,
    ),
    "GraphConv": (
        GraphConv,
        {
            "units": 4, "scheme": "pre_agg", "skeleton": _ARM, "affinity": "fixed",
            "layout": "bjc",
        },
        check_layer,
    ),
}  # fmt: skip


def reading(name: str) -> Callable[[Any], None]:
    """Calls the function of a row and checks what it gives."""
    function, _, check = (ARGUMENTS | KERAS)[name]

    def read(case: Any) -> None:
        check(function(**as_objects(case)))

    return read

"""`TrainConfig`: its schedule, its file, what it refuses; and the recipes."""

import json
import math

import numpy as np
import pytest

from keras_wsgcn import InputError, Scheme
from keras_wsgcn.recipes import RECIPES, TrainConfig


def test_the_learning_rate_follows_its_schedule():
    def rates(config, steps):
        schedule = config.learning_rates(steps_per_epoch=10)
        return [float(schedule(step)) for step in steps]

    cosine = TrainConfig(epochs=4, learning_rate=2.0, schedule="cosine")
    expected = [1 + math.cos(math.pi * t) for t in (0, 0.25, 0.5, 1)]
    np.testing.assert_allclose(rates(cosine, (0, 10, 20, 40)), expected, atol=1e-6)
    ablation = RECIPES["ablation"]
    got = rates(ablation, (0, 99_999, 100_000, 200_000))
    np.testing.assert_allclose(got, [1e-3, 1e-3, 0.96e-3, 0.96**2 * 1e-3], rtol=1e-6)
    benchmark = rates(RECIPES["benchmark"], (0, 39, 40, 80))
    np.testing.assert_allclose(benchmark, [1e-4, 1e-4, 0.95e-4, 0.95**2 * 1e-4], rtol=1e-6)


def test_recipes_are_those_of_the_paper_and_the_benchmark():
    ablation, benchmark, cmu = (RECIPES[name] for name in ("ablation", "benchmark", "cmu"))
    assert (ablation.batch_size, ablation.epochs, ablation.dropout) == (64, 50, 0.0)
    assert (benchmark.batch_size, benchmark.epochs, benchmark.dropout) == (256, 30, 0.2)
    assert benchmark.non_local
    assert not ablation.non_local
    assert (cmu.batch_size, cmu.learning_rate, cmu.schedule) == (256, 2e-3, "cosine")
    assert {recipe.clip_norm for recipe in RECIPES.values()} == {1.0}


def test_config_round_trip_through_json():
    config = TrainConfig(scheme=Scheme("own", split="depth", per="source"), budget=1e5, patience=3)
    assert TrainConfig.from_config(json.loads(json.dumps(config.get_config()))) == config


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 4001}, "epochs"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"schedule": "linear"}, "schedule"),
        ({"schedule": "step"}, "decay_steps"),
        ({"schedule": "step", "decay_steps": 1, "decay_epochs": 1}, "decay_steps"),
        ({"schedule": "step", "decay_steps": 1}, "decay_rate"),
        ({"clip_norm": 0}, "clip_norm"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"patience": 0}, "patience"),
        ({"seed": -1}, "seed"),
        ({"scheme": "none"}, "scheme"),
        ({"blocks": -1}, "blocks"),
        ({"channels": 1.5}, "channels"),
        ({"budget": "much"}, "budget"),
        ({"budget": 10}, "budget"),
        ({"budget": 1e6, "channels": 3}, "budget"),
        ({"channels": 1, "non_local": True}, "channels"),
        ({"channels": 10**5}, "channels"),
        ({"blocks": 10**5}, "blocks"),
        ({"non_local": 1}, "non_local"),
        ({"affinity": "free"}, "affinity"),
        ({"decay_steps": 0}, "decay_steps"),
        ({"seed": 2**32}, "seed"),
        ({"precision": "half"}, "precision"),
        ({"jit_compile": 1}, "jit_compile"),
    ],
)
def test_refuses_bad_settings(changes, argument):
    with pytest.raises(InputError, match=rf"`{argument}`.*Received: "):
        TrainConfig(**changes)


def test_refuses_unknown_keys_with_the_valid_ones():
    with pytest.raises(InputError, match=r"keys among .*batch_size.*Received: \['batchsize'\]"):
        TrainConfig.from_config({"batchsize": 3})

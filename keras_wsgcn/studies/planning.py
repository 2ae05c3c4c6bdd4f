"""What a study asks of Optuna: its studies, their slots, and how they sample and prune."""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from keras_wsgcn.budget import AFFINITIES
from keras_wsgcn.errors import InputError
from keras_wsgcn.recipes import SCHEDULES, TrainConfig
from keras_wsgcn.schemes import SCHEMES
from keras_wsgcn.studies import storage as storages
from keras_wsgcn.studies.search import distributions_of
from keras_wsgcn.studies.spec import Cell, StudySpec, with_settings

_CHOICES = {"scheme": tuple(SCHEMES), "affinity": AFFINITIES, "schedule": SCHEDULES}


def storage_of(
    spec: StudySpec, folder: str | os.PathLike, storage: str | os.PathLike | None = None
) -> str | os.PathLike:
    """Where a study's trials are stored."""
    return storage or Path(folder) / spec.name / "study.sqlite3"


def study_names(spec: StudySpec) -> list[str]:
    """The names of a spec's Optuna studies: one for each cell of a search, else one in all."""
    if spec.search:
        return [": ".join(filter(None, (spec.name, cell.label))) for cell in spec.cells]
    return [spec.name]


def objectives_of(spec: StudySpec) -> tuple[str, ...]:
    """What the trials of a study minimise; a fixed list has the validation error as its value."""
    return spec.search.objectives if spec.search else ("val_mpjpe_mm",)


def plan(
    spec: StudySpec, folder: str | os.PathLike, storage: str | os.PathLike | None = None
) -> dict[str, dict[str, Any]]:
    """The slots of each Optuna study of a spec, as `fill_slots` takes them.

    Raises:
        InputError: if the study that tunes this one has no result yet.
    """
    tuned = best_settings(spec.tuned_by, folder, storage) if spec.tuned_by else {}
    return {
        name: {
            slot: _start(spec, with_settings(cell.config, tuned.get(cell.config.scheme, {})), seed)
            for slot, (cell, seed) in slots.items()
        }
        for name, slots in slots_of(spec).items()
    }


def slots_of(spec: StudySpec) -> dict[str, dict[str, tuple[Cell, int]]]:
    """For each Optuna study of a spec its slots by name, each with its cell and seed."""
    if spec.search:
        numbers = range(1, spec.search.trials + 1)
        return {
            name: {str(number): (cell, spec.seeds[0]) for number in numbers}
            for name, cell in zip(study_names(spec), spec.cells, strict=True)
        }
    # Seed by seed: a list that is cut short has every cell once.
    every = [(cell, seed) for seed in spec.seeds for cell in spec.cells]
    return {spec.name: {f"{cell.label} seed={seed}".strip(): (cell, seed) for cell, seed in every}}


def _start(spec: StudySpec, config: TrainConfig, seed: int) -> dict[str, Any]:
    config = with_settings(config, {"seed": seed})
    attributes = {"config": config.get_config(), "data": dict(spec.data)}
    settings = dict.fromkeys([*spec.config, *(name for block in spec.grid for name in block)])
    names = [] if spec.search else [*settings, "seed"]
    distributions = {
        name: distribution
        for name in names
        if (distribution := _distribution(name, getattr(config, name, None)))
    }
    return {
        "attributes": json.loads(json.dumps(attributes)),
        "params": {name: getattr(config, name) for name in distributions},
        "distributions": distributions,
    }


def _distribution(name: str, value: Any) -> BaseDistribution | None:
    """What a fixed parameter is to Optuna: as wide as can be, so that a list can grow."""
    if name in _CHOICES and value in _CHOICES[name]:
        return CategoricalDistribution(_CHOICES[name])
    if isinstance(value, bool):
        return CategoricalDistribution((False, True))
    if isinstance(value, int):  # a setting that can be a fraction is never one
        return IntDistribution(0, max(value, 2**31))
    return FloatDistribution(0.0, max(value, 1e12)) if isinstance(value, float) else None


def open_study(storage: RDBStorage, spec: StudySpec, name: str) -> optuna.Study:
    """The Optuna study of that name of a spec, made if need be."""
    search = spec.search
    startup = max(3, min(10, search.trials // 3)) if search else 0
    study = storages.open_study(
        storage,
        name,
        objectives_of(spec),
        sampler=SlotSampler(search.seed, startup) if search else None,
        # Not after the first epoch yet: it favours low learning rates.
        pruner=optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=2),
    )
    if search:
        _check_space(study, distributions_of(search.space))
    return study


def _check_space(study: optuna.Study, space: Mapping[str, BaseDistribution]) -> None:
    """Refuses ranges that Optuna cannot search after those of the study's earlier trials."""
    for trial in study.get_trials(deepcopy=False):
        for name in space.keys() & trial.distributions.keys():
            try:
                check_distribution_compatibility(trial.distributions[name], space[name])
            except ValueError:
                raise InputError(
                    "`name` must be new where the choices, or the kind, of a range change. "
                    f"Received: name={study.study_name!r}, whose {name} is "
                    f"{trial.distributions[name]}, with {space[name]}"
                ) from None


def has_trained(spec: StudySpec, storage: RDBStorage) -> bool:
    """Whether a trial of a study has begun to train: then its data could be loaded."""
    known = set(optuna.get_all_study_names(storage))
    return any(
        "digest" in trial.user_attrs
        for name in study_names(spec)
        if name in known
        for trial in optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    )


def check_archive(study: optuna.Study, digest: str) -> None:
    """Refuses an archive that is another than that of the study's earlier trials.

    Raises:
        InputError: if it is.
    """
    trials = study.get_trials(deepcopy=False)
    if {trial.user_attrs.get("digest", digest) for trial in trials} - {digest}:
        raise InputError(
            "`data` must be the archive of the study's other trials, byte by byte: give the study "
            f"a new name. Received: an archive of the digest {digest!r}"
        )


class SlotSampler(optuna.samplers.BaseSampler):
    """TPE whose random numbers follow from a seed and the slot.

    One worker draws the same trials whether or not it was interrupted in between.
    """

    def __init__(self, seed: int, startup: int):
        self.seed, self.startup = seed, startup
        self._sampler = self._seeded("")

    def _seeded(self, text: str) -> optuna.samplers.TPESampler:
        return optuna.samplers.TPESampler(
            seed=zlib.crc32(f"{self.seed} {text}".encode()),
            n_startup_trials=self.startup,
            multivariate=True,
            constant_liar=True,  # workers keep away from what others are trying
        )

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler = self._seeded(f"{study.study_name} {trial.user_attrs.get('slot')}")
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study, trial):
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study, trial, search_space):
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study, trial, state, values):
        self._sampler.after_trial(study, trial, state, values)


def is_open(study: optuna.Study, slots: Iterable[str]) -> bool:
    """Whether one of the slots is not settled yet."""
    trials = storages.trials_by_slot(study)
    return not all(any(map(storages.is_settled, trials.get(slot, []))) for slot in slots)


def best_settings(
    spec: StudySpec, folder: str | os.PathLike, storage: str | os.PathLike | None = None
) -> dict[Any, dict[str, Any]]:
    """The best searched settings for each scheme of a finished search with one objective."""
    opened = storages.open_storage(storage_of(spec, folder, storage))
    found = {}
    for (name, slots), cell in zip(slots_of(spec).items(), spec.cells, strict=True):
        study = open_study(opened, spec, name)
        if is_open(study, slots) or not study.get_trials(states=(TrialState.COMPLETE,)):
            raise InputError(
                f"`tuned_by` must be finished: run {spec.name!r} first. Received: {name!r} open"
            )
        found[cell.config.scheme] = dict(study.best_params)
    return found

"""What a study asks of its data before a trial holds on to it."""

# ruff: noqa: F401, F811 (fixtures of another file)

import pytest
from study_stand_in import FIXED, SEARCH, few_poses, spec_of, stand_in, study_of

from keras_wsgcn import InputError, load_splits
from keras_wsgcn.studies import trials as study_trials
from keras_wsgcn.studies.workers import run

pytestmark = pytest.mark.plain


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": {"source": "generated", "stride": 0}},
        {"data": {"source": "missing.npz", "validation": [1], "test": [2]}},
        {"config": {**FIXED["config"], "batch_size": 100_000}},
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_a_name_holds_on_to_it(
    wrong, tmp_path, stand_in, monkeypatch
):
    for table in (FIXED, SEARCH):
        if "config" in wrong and table is SEARCH:
            continue  # a search may put together what does not fit: it goes on
        with monkeypatch.context() as patch:
            if "data" in wrong:
                patch.setattr(study_trials, "load_splits", load_splits)
            with pytest.raises(InputError, match=r"must .*Received: "):
                run(spec_of(table, **wrong), tmp_path)
        assert run(spec_of(table), tmp_path, verbose=False)


def test_data_is_loaded_once(tmp_path, stand_in, few_poses, monkeypatch):
    loaded = []
    monkeypatch.setattr(study_trials, "load_splits", lambda *a, **k: loaded.append(a) or few_poses)
    assert run(spec_of(FIXED), tmp_path, verbose=False)
    assert run(spec_of(FIXED), tmp_path, verbose=False)
    assert len(loaded) == 1


def test_pruning_is_by_the_objective_or_not_at_all(tmp_path, stand_in):
    table = {**SEARCH["search"], "trials": 12, "objectives": ["params"]}
    assert run(spec_of(SEARCH, search=table), tmp_path, verbose=False)
    assert {trial.state.name for trial in study_of(tmp_path, "search").get_trials()} == {"COMPLETE"}

import itertools
import json
from pathlib import Path

import pytest

from keras_wsgcn import RECIPES, SCHEMES, InputError, count_flops, count_params, solve_channels
from keras_wsgcn.studies.planning import plan, slots_of, study_names
from keras_wsgcn.studies.spec import StudySpec, load_spec, merge_settings, solve, with_settings

pytestmark = pytest.mark.plain

SPECS = sorted((Path(__file__).parent.parent / "studies").glob("*.toml"))

FIXED = """
title = "Two schemes"
seeds = [0, 3]
[data]
source = "generated"
stride = 60
[config]
epochs = 2
channels = 8
[[grid]]
scheme = ["pre_agg", "no_sharing"]
budget = [2e5, 1e5]
[[grid]]
scheme = "post_agg"
"""

SEARCH = """
seeds = [4]
[data]
source = "generated"
[[grid]]
scheme = ["pre_agg", "no_sharing"]
[search]
trials = 5
objectives = ["val_mpjpe_mm", "params"]
[search.space]
channels = { low = 4, high = 32, log = true }
dropout = { low = 0.0, high = 0.5 }
batch_size = { choices = [32, 64] }
"""


def write(tmp_path, text, name="mine"):
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    return path


def test_cells_are_the_product_of_each_block(tmp_path):
    spec = load_spec(write(tmp_path, FIXED))
    assert (spec.name, spec.title, spec.seeds) == ("mine", "Two schemes", (0, 3))
    assert [cell.label for cell in spec.cells] == [
        "pre_agg budget=200000", "pre_agg budget=100000",
        "no_sharing budget=200000", "no_sharing budget=100000", "post_agg",
    ]  # fmt: skip
    budget, channels = spec.cells[0].config, spec.cells[-1].config
    assert (budget.budget, budget.channels, budget.epochs) == (2e5, None, 2)
    assert (channels.budget, channels.channels) == (None, 8)
    assert channels.learning_rate == RECIPES["cmu"].learning_rate


def test_every_seed_trains_every_cell_once_seed_by_seed(tmp_path):
    slots = slots_of(load_spec(write(tmp_path, FIXED)))["mine"]
    assert len(slots) == 10
    assert [seed for _, seed in slots.values()] == [0] * 5 + [3] * 5
    assert list(slots)[5] == "pre_agg budget=200000 seed=3"


def test_a_search_is_one_study_a_cell(tmp_path):
    spec = load_spec(write(tmp_path, SEARCH))
    assert study_names(spec) == ["mine: pre_agg", "mine: no_sharing"]
    slots = plan(spec, tmp_path)["mine: no_sharing"]
    assert list(slots) == ["1", "2", "3", "4", "5"]
    start = slots["3"]["attributes"]
    assert (start["config"]["scheme"], start["config"]["seed"]) == ("no_sharing", 4)
    assert slots["3"]["params"] == {}


def test_fixed_trials_show_their_settings_as_parameters(tmp_path):
    slots = plan(load_spec(write(tmp_path, FIXED)), tmp_path)["mine"]
    first, *_, last = slots.values()
    assert first["params"] == {"epochs": 2, "scheme": "pre_agg", "budget": 2e5, "seed": 0}
    assert last["params"] == {"epochs": 2, "scheme": "post_agg", "channels": 8, "seed": 3}


@pytest.mark.parametrize("text", [FIXED, SEARCH])
def test_round_trip(tmp_path, text):
    spec = load_spec(write(tmp_path, text))
    assert StudySpec.from_config(json.loads(json.dumps(spec.get_config()))) == spec


def test_all_stands_for_every_scheme(tmp_path):
    text = FIXED.replace('["pre_agg", "no_sharing"]\nbudget = [2e5, 1e5]', '"all"').split(
        '[[grid]]\nscheme = "post_agg"'
    )[0]
    assert [c.config.scheme for c in load_spec(write(tmp_path, text)).cells] == list(SCHEMES)
    text = SEARCH.replace('[[grid]]\nscheme = ["pre_agg", "no_sharing"]', "")
    text += 'scheme = { choices = "all" }'
    spec = load_spec(write(tmp_path, text))
    assert spec.search.space["scheme"].choices == tuple(SCHEMES)
    assert study_names(spec) == ["mine"]


def test_a_size_replaces_a_size():
    assert merge_settings({"budget": 1e6, "epochs": 3}, {"channels": 8}) == {
        "channels": 8, "epochs": 3,
    }  # fmt: skip
    config = with_settings(RECIPES["cmu"], {"scheme": "no_sharing", "forward_mflop": 2.0})
    assert config.channels == solve_channels("no_sharing", flops=2e6)
    assert with_settings(config, {"budget": 1e6}).channels is None
    assert with_settings(config, {"epochs": 1}).channels == config.channels
    with pytest.raises(InputError, match="`budget` must stand alone"):
        merge_settings({}, {"budget": 1e6, "channels": 3})


def test_solve_counts_what_the_model_has():
    config = with_settings(RECIPES["benchmark"], {"scheme": "conv_style", "budget": 1e6})
    size = solve(config)
    assert size["params"] == count_params("conv_style", size["channels"], non_local=True)
    flops = count_flops("conv_style", size["channels"], non_local=True)
    assert size["forward_mflop"] == pytest.approx(flops / 1e6, abs=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("title =", "titel =", r"`study` must have keys among .*title.*Received: \['titel'\]"),
        ("stride = 60", "strid = 60", r"`data` must have keys among .*'stride'.*\['strid'\]"),
        ("stride = 60", 'stride = "6"', r"`data.stride` must be int. Received: stride='6'"),
        ('source = "generated"', "", "`data` must name a `source`"),
        ("stride = 60", "mixed_trunks = true", "`mixed_trunks` must be left out for data 'gen"),
        ("stride = 60", "test = [1]", "`test` must be left out for data 'generated'"),
        ("epochs = 2", "epoch = 2", r"`config` must have keys among .*'epochs'.*\['epoch'\]"),
        ("epochs = 2", "epochs = 0", "`epochs` must be an integer of at least 1"),
        ("epochs = 2", "dropout = 1.5", "`dropout` must be a number of at least 0, below 1"),
        ("epochs = 2", "seed = 2", r"`config` must have keys"),
        ("channels = 8", "channels = 8\nbudget = 1e5", "must stand alone"),
        ('"post_agg"', '"post_ag"', "`scheme` must be one of .*Received: scheme='post_ag'"),
        ('"post_agg"', '"pre_agg"\nbudget = 2e5', "`grid` must hold each cell once"),
        ("budget = [2e5, 1e5]", "budget = [2.0]", "`budget` must be at least"),
        ("budget = [2e5, 1e5]", "size = 2", r"`grid` must have keys among .*forward_mflop"),
        ("seeds = [0, 3]", "seeds = 3", "`seeds` must be a list of integers. Received: seeds=3"),
        ("seeds = [0, 3]", "seeds = [-1]", "`seeds` must be an integer of at least 0"),
        ("seeds = [0, 3]", 'recipe = "x"', r"`recipe` must be one of \['ablation'"),
        ("[config]", "[config", "mine.toml: "),
        ('title = "Two schemes"', 'tuned_by = "other"', "other.toml"),
    ],
)  # fmt: skip
def test_bad_specs_name_the_file_and_the_key(tmp_path, old, new, words):
    assert old in FIXED
    with pytest.raises(InputError, match=words) as caught:
        load_spec(write(tmp_path, FIXED.replace(old, new)))
    assert "mine.toml" in str(caught.value) or "other.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("trials = 5", "", "`search.trials` must be given"),
        ("trials = 5", "trials = 0", "`trials` must be an integer of at least 1"),
        ("trials = 5", "trial = 5", "`search` must have keys among .*trials"),
        ('"params"]', '"test_mpjpe_mm"]', "`objectives` must be one of"),
        ('"params"]', '"val_mpjpe_mm"]', "`objectives` must be one or more of .*each once"),
        ("low = 4,", "lo = 4,", "`search.space.channels` must have keys among .*'low'"),
        ("low = 4,", "low = 40,", "space.channels`: `high` must be a number of at least 40"),
        ("low = 4,", "low = 4.5,", "`search.space.channels` must have whole numbers"),
        ("low = 4,", "low = 0,", "`low` must be a number above 0"),
        ("low = 4, high = 32", "low = 4", "`high` must be a number"),
        ("high = 0.5", "high = 1.5", "`dropout` must be a number of at least 0, below 1"),
        ("high = 0.5", "high = -0.1", "space.dropout`: `high` must be a number of at least 0"),
        ("choices = [32, 64]", "choices = [32, 64], low = 1", "`choices` must stand alone"),
        ("choices = [32, 64]", "choices = [32, 0]", "`batch_size` must be an integer of at least"),
        ("dropout", "drop_out", "`search.space` must have keys among .*dropout"),
        ("dropout", "seed", "`search.space` must have keys among"),
        ("batch_size", "scheme", "`search.space` must leave out what the grid sets"),
        ("batch_size = { choices = [32, 64] }", "budget = { low = 1e5, high = 1e6 }", "one size"),
        ("seeds = [4]", "seeds = []", "`seeds` must hold the seed of the search"),
    ],
)  # fmt: skip
def test_bad_searches(tmp_path, old, new, words):
    assert old in SEARCH
    with pytest.raises(InputError, match=words):
        load_spec(write(tmp_path, SEARCH.replace(old, new, 1)))


def test_a_search_of_schemes_leaves_operations_out(tmp_path):
    text = SEARCH.replace('scheme = ["pre_agg", "no_sharing"]', "forward_mflop = 2.0")
    text = text.replace("channels = { low = 4, high = 32, log = true }", "")
    for searched in ('scheme = { choices = "all" }', "blocks = { low = 1, high = 4 }"):
        with pytest.raises(InputError, match="`forward_mflop` must be left out"):
            load_spec(write(tmp_path, text + searched))


def test_tuning_must_be_a_search_of_the_same_schemes_with_one_objective(tmp_path):
    one = SEARCH.replace('objectives = ["val_mpjpe_mm", "params"]', "")
    sized = one
    one = one.replace("channels = { low = 4, high = 32, log = true }", "")
    write(tmp_path, one, "tuning")
    text = 'tuned_by = "tuning"\n' + FIXED
    with pytest.raises(InputError, match=r"must tune every scheme of the grid.*post_agg"):
        load_spec(write(tmp_path, text))
    fits = text.split('[[grid]]\nscheme = "post_agg"')[0]
    assert load_spec(write(tmp_path, fits)).tuned_by.name == "tuning"
    for tuning, words in (
        (SEARCH, "`tuned_by` must be a search with one objective"),
        (
            one.replace("trials = 5", 'trials = 5\nobjectives = ["params"]'),
            "one objective, 'val_mpjpe_mm'",
        ),
        (sized, "`tuned_by` must be left to set 'channels' alone"),
        (
            one.replace("batch_size = {", "epochs = {"),
            "`tuned_by` must be left to set 'epochs' alone",
        ),
        (one.replace("[[grid]]", "[[grid]]\nblocks = [2, 4]"), "must tune each scheme once"),
    ):
        write(tmp_path, tuning, "tuning")
        with pytest.raises(InputError, match=words):
            load_spec(write(tmp_path, fits))


@pytest.mark.parametrize("name", ["/tmp/index", "../x", "a/b", ".hidden", "", "x" * 101])
def test_a_name_that_could_leave_the_folder_is_refused(name, tmp_path):
    with pytest.raises(InputError, match="`name` must be a plain name"):
        load_spec(write(tmp_path, f'name = "{name}"\n' + FIXED))


def test_own_schemes_are_told_by_their_names(tmp_path):
    own = '{ name = "mine", split = "depth", per = "source" }'
    spec = load_spec(write(tmp_path, FIXED.replace('"post_agg"', own)))
    assert spec.cells[-1].label == "mine"
    assert spec.cells[-1].config.scheme.name == "mine"
    again = StudySpec.from_config(json.loads(json.dumps(spec.get_config())))
    assert [cell.label for cell in again.cells] == [cell.label for cell in spec.cells]
    assert again.cells == spec.cells


def test_the_mark_that_notepad_writes_first_says_nothing(tmp_path):
    path = write(tmp_path, FIXED)
    expected = load_spec(path)
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    assert load_spec(path) == expected


def test_a_missing_spec_names_those_that_are_there(tmp_path):
    write(tmp_path, FIXED)
    (tmp_path / "pyproject.toml").touch()
    with pytest.raises(InputError, match=r"TOML file, such as \[[^\[]*mine\.toml'(?!.*pyproject)"):
        load_spec(tmp_path / "other.toml")


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_specs_of_the_library(path):
    spec = load_spec(path)
    assert spec.title
    assert spec.note
    assert spec.name == path.stem
    assert StudySpec.from_config(spec.get_config()) == spec


def by_name(name):
    return load_spec(SPECS[0].with_name(f"{name}.toml"))


def test_the_papers_tables_have_the_papers_models():
    """Parameters in millions, as the paper's tables state them."""
    import pandas as pd

    from keras_wsgcn.studies.report import PAPER_RESULTS

    paper = pd.read_csv(PAPER_RESULTS)
    for table in (2, 3, 4):
        spec = by_name(f"table{table}")
        ours = [(c.config.scheme, solve(c.config)["params"] / 1e6) for c in spec.cells]
        wanted = paper[paper["table"] == table]
        assert len(ours) == len(wanted)
        for row in wanted.itertuples():
            near = [p for scheme, p in ours if scheme == row.scheme]
            # Where Tables 2 and 3 state channels, the paper's no-sharing has more kernels than the
            # skeleton has edges.
            if row.scheme == "no_sharing" and table != 4:
                continue
            assert any(abs(p / row.params_millions - 1) < 0.03 for p in near), row
    for scheme, size in itertools.product(
        ("pre_agg", "post_agg", "full_sharing"), (4.2, 2.1, 1.05)
    ):
        cells = [(c.config.scheme, c.config.budget) for c in by_name("table4_coupled").cells]
        assert (scheme, size * 1e6) in cells
    for table, joints in (("table5_6", "h36m_17"), ("table7", "h36m_16")):
        benchmark = by_name(table).cells[0].config
        assert (benchmark.scheme, benchmark.channels) == ("pre_agg_decoupled", 128)
        assert benchmark.non_local
        assert benchmark.dropout == 0.2
        assert benchmark.skeleton == joints


def test_the_trade_off_searches_what_the_card_promises():
    space = by_name("tradeoff").search.space
    bounds = {name: (r.low, r.high, r.log) for name, r in space.items()}
    assert bounds == {
        "channels": (16, 256, True),
        "dropout": (0.0, 0.5, False),
        "learning_rate": (1e-4, 1e-2, True),
    }
    assert len(by_name("tradeoff").cells) == 8


def test_no_clipping_reaches_a_worker():
    settings = {"clip_norm": None}
    for tables in ({"config": settings}, {"grid": ({**settings, "scheme": "pre_agg"},)}):
        spec = StudySpec("a", {"source": "generated"}, **tables)
        again = StudySpec.from_config(json.loads(json.dumps(spec.get_config())))
        assert again.cells[0].config.clip_norm is None
        assert again == spec

"""Files that strangers made: what `load_model` refuses, before Keras sees it."""

import io
import json
import os
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_wsgcn import (
    GraphConv,
    InputError,
    Skeleton,
    build_model,
    declared_size,
    load_model,
    save_model,
)
from keras_wsgcn.errors import Refused
from keras_wsgcn.screening import MEMBERS, check_config

CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "keras_wsgcn.json"


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """The members of a good file, as bytes."""
    path = tmp_path_factory.mktemp("good") / "good.keras"
    model = build_model("post_agg", channels=4, blocks=1, dropout=0.1)
    model.compile("adam", "mse")
    model.fit(np.zeros((2, 16, 2)), np.zeros((2, 16, 3)), verbose=0)
    save_model(model, path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def write(members, tmp_path):
    """Writes a file with some members changed; None leaves one out."""

    def write(changes=None, compression=zipfile.ZIP_STORED):
        path = tmp_path / "m.keras"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in {**members, **(changes or {})}.items():
                if content is not None:
                    archive.writestr(name, content)
        return path

    return write


@pytest.fixture
def config(members):
    return json.loads(members[CONFIG])


def layer(config, name):
    return next(one for one in config["config"]["layers"] if one["config"]["name"] == name)


def refused(path, message):
    with pytest.raises(InputError, match=rf"(?s)`path` must name.*{message}.*Received: path="):
        load_model(path)


def test_a_good_file_opens(write):
    assert load_model(write()).name == "post_agg_4"


# --- the archive ---------------------------------------------------------------------------------


@pytest.mark.plain
@pytest.mark.parametrize(
    "extra", ["../evil.py", "/etc/evil", "assets/vocabulary.txt", "code.py", "config.json.bak"]
)
def test_other_members_are_refused(extra, write, tmp_path):
    refused(write({extra: b"x"}), "its members are")
    assert sorted(os.listdir(tmp_path)) == ["m.keras"]


@pytest.mark.plain
@pytest.mark.parametrize("name", MEMBERS)
def test_missing_members_are_refused(name, write):
    refused(write({name: None}), "it lacks")


@pytest.mark.plain
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_twice_is_refused(write, members):
    path = write()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(CONFIG, members[CONFIG])
    refused(path, "each once")


@pytest.mark.plain
def test_bombs_are_refused_unopened(write, tmp_path):
    refused(write({WEIGHTS: bytes(64 << 20)}, zipfile.ZIP_DEFLATED), "is compressed")
    refused(write({METADATA: b" " * (2 << 20)}), "'keras_wsgcn.json' has 2097152 bytes")
    huge = tmp_path / "m.keras"
    content = bytearray(huge.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = b"\xff\xff\xff\x7f"  # the size it declares
    huge.write_bytes(content)
    refused(huge, "bytes, more than|cannot be read")


@pytest.mark.plain
def test_what_is_no_archive_is_refused(tmp_path):
    for content in (b"", b"PK", b"\x89HDF\r\n\x1a\n" + bytes(100), b"\x80\x04cos\nsystem\n."):
        (tmp_path / "m.keras").write_bytes(content)
        refused(tmp_path / "m.keras", "cannot be read")
    refused(tmp_path / "missing.keras", "No such file")
    (tmp_path / "folder.keras").mkdir()
    refused(tmp_path / "folder.keras", "")
    os.mkfifo(tmp_path / "pipe.keras")
    refused(tmp_path / "pipe.keras", "no regular file")


def test_truncated_and_flipped_files_open_right_or_are_refused(write, rng):
    path = write()
    content = path.read_bytes()
    opened = 0
    for number in range(150):
        if number % 3:
            damaged = bytearray(content)
            damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        else:
            damaged = content[: rng.integers(len(content))]
        path.write_bytes(damaged)
        try:
            model = load_model(path, compile=False)
        except InputError:
            continue
        assert model.output_shape == (None, 16, 3)
        opened += 1
    assert opened < 75  # a flip in a header that nobody reads; the archive has checksums


# --- the configuration ---------------------------------------------------------------------------


@pytest.mark.plain
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON"),
        (b"[]", "must hold a JSON object"),
        (b"[" * 100_000, "is no JSON|must hold"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested too deeply"),
        (b'{"compile_config":' + b"[" * 500 + b"]" * 500 + b"}", "nested too deeply"),
        (b"\xff\xfe", "is no JSON"),
        (b"{}", "the model is a None.None"),
    ],
)
def test_json_that_is_no_model_is_refused(content, message, write):
    refused(write({CONFIG: content}), message)


def lambda_layer(config):
    with_code = keras.layers.Lambda(lambda x: os.mkdir("/tmp/wsgcn_canary"), name="input_relu")
    record = keras.saving.serialize_keras_object(with_code)
    layer(config, "input_relu").update(record)


def swap(name, **changes):
    def change(config):
        layer(config, name).update(changes)

    return change


def set_in(name, **changes):
    def change(config):
        layer(config, name)["config"].update(changes)

    return change


def rename(name):
    def change(config):
        record = layer(config, "input_relu")
        record["name"] = record["config"]["name"] = name

    return change


def read_itself(config):
    layer(config, "input_conv")["inbound_nodes"] = layer(config, "input_norm")["inbound_nodes"]


FUNCTION = {"module": "os", "class_name": "function", "config": "system", "registered_name": None}
ATTACKS = {
    "lambda": (lambda_layer, "Lambda"),
    "foreign class": (swap("input_relu", module="os", class_name="system"), "a layer is os.system"),
    "layer of Keras not listed": (swap("input_relu", class_name="TFSMLayer"), "TFSMLayer"),
    "registered": (swap("input_conv", registered_name="evil>GraphConv"), "a layer is"),
    "other module": (swap("input_conv", module="evil"), "a layer is evil.GraphConv"),
    "no strings": (swap("input_relu", module=["os"]), "a layer is|cannot"),
    "function": (set_in("input_conv", activation=FUNCTION), "'activation' is os.function"),
    "activation by name": (set_in("input_conv", activation="evil>f"), "'activation' must be one"),
    "initializer by name": (set_in("input_conv", kernel_initializer="evil"), "must be a record"),
    "initializer": (
        set_in("input_conv", kernel_initializer={**FUNCTION, "class_name": "popen"}), "os.popen",
    ),
    "dtype": (set_in("input_conv", dtype="int8_from_float32"), "'dtype' must be one of"),
    "walking name": (rename("../../evil"), "names must be"),
    "dotted name": (rename("a..b"), "names must be"),
    "no name": (rename(None), "names must be"),
    "twice": (rename("input_conv"), "same name"),
    "model name": (lambda c: c["config"].update(name="a/b"), "names must be"),
    "nested": (swap("input_relu", module="keras", class_name="Sequential"), "a layer is"),
    "no layers": (lambda c: c["config"].update(layers=[]), "between 1 and"),
    "units": (set_in("input_conv", units=10**9), "parameters, but"),
    "negative": (set_in("input_conv", units=-1), "`units` must be"),
    "wide input": (set_in("pose2d", batch_shape=[None, 16, 10**9]), "parameters, but"),
    "wide batch": (set_in("pose2d", batch_shape=[10**9, 16, 2]), "at most 65536"),
    "more axes": (set_in("pose2d", batch_shape=[None, 9, 9, 16, 2]), "must be .batch, joints"),
    # Without `build_config` a normalisation takes its size from its input: 7 GiB of weights.
    "normalised joints": (set_in("input_norm", axis=0), "must work on the channels"),
    "normalised poses": (set_in("block1_layer1_norm", axis=[2]), "must work on the channels"),
    "axis is no number": (set_in("input_norm", axis="1"), "must work on the channels"),
    "other layout": (set_in("joints_first", target="jbc"), "must take the layout 'jbc'"),
    "layout is none": (set_in("joints_first", target="jjj"), "must give a layout"),
    "layout of no input": (set_in("joints_first", source="jcb"), "must take the layout 'bjc'"),
    "joints": (
        set_in("input_conv", skeleton={"name": "s", "joint_names": ["a"] * 10**5}),
        "at most 512 joints",
    ),
    "scheme": (set_in("input_conv", scheme="evil"), "cannot be built"),
    "loop": (
        read_itself,
        "has no input",
    ),
}  # fmt: skip


def lora(inputs):
    dense = keras.layers.Dense(3, lora_rank=2)
    return dense(inputs)


def broadcast(inputs):
    narrow, wide = keras.layers.Dense(1)(inputs), keras.layers.Dense(500)(inputs)
    return keras.layers.Dense(500)(keras.layers.Add()([narrow, wide]))


def called_twice(inputs):
    relu = keras.layers.ReLU()
    return [relu(inputs), keras.layers.Dense(500)(relu(keras.layers.Dense(500)(inputs)))]


def many_edges(inputs):
    joints = tuple(f"joint{number}" for number in range(512))
    star = Skeleton("star", joints, (-1, *[0] * 511))
    return GraphConv(1, "conv_style", star)(GraphConv(1, "conv_style", star)(inputs))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lora, "`lora_rank` must be None"),
        (broadcast, "parameters, but"),
        (called_twice, "parameters, but"),
        (many_edges, "weights of edges"),
    ],
)
def test_what_layers_make_beside_their_first_input_counts(outputs, message, monkeypatch):
    monkeypatch.setattr(declared_size, "MAX_MIXING", 10 * 512**2)
    inputs = keras.Input((512 if outputs is many_edges else 16, 2))
    model = keras.Model(inputs, outputs(inputs))
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    with pytest.raises(Refused, match=message):
        check_config(config, 100_000)


@pytest.mark.parametrize("attack", ATTACKS)
def test_configurations_that_ask_for_more_are_refused(attack, config, write, tmp_path):
    change, message = ATTACKS[attack]
    change(config)
    refused(write({CONFIG: json.dumps(config)}), message)
    assert not os.path.exists("/tmp/wsgcn_canary")


def test_shapes_of_builds_are_not_believed(config, write):
    for one in config["config"]["layers"]:
        one["build_config"] = {"input_shape": [16, None, 10**9]}
    assert load_model(write({CONFIG: json.dumps(config)})).count_params() < 10_000


@pytest.mark.parametrize("part", ["loss", "optimizer", "metrics"])
def test_a_foreign_compilation_is_refused_and_can_be_left_out(part, config, write):
    config["compile_config"][part] = FUNCTION
    path = write({CONFIG: json.dumps(config)})
    with pytest.raises(InputError, match=r"os.function.*compile=False"):
        load_model(path)
    assert load_model(path, compile=False).name == "post_agg_4"


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    inputs = keras.Input((16, 2))
    x = GraphConv(3, "pre_agg")(inputs)
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x, name="mine")(x))
    with pytest.raises(InputError, match=r"`model` must be one that `load_model` opens.*Lambda"):
        save_model(model, tmp_path / "m.keras")
    assert not list(tmp_path.iterdir())


# --- the weights ---------------------------------------------------------------------------------


def edited(members, edit):
    file = io.BytesIO(members[WEIGHTS])
    with h5py.File(file, "r+") as weights:
        edit(weights)
    return file.getvalue()


KERNEL = "layers/graph_conv/vars/0"


def replaced(**options):
    def edit(weights):
        shape = weights[KERNEL].shape
        del weights[KERNEL]
        weights.create_dataset(KERNEL, **{"shape": shape, "dtype": "float32", **options})

    return edit


def link(target):
    def edit(weights):
        del weights[KERNEL]
        weights[KERNEL] = target

    return edit


def virtual(weights):
    shape = weights[KERNEL].shape
    del weights[KERNEL]
    layout = h5py.VirtualLayout(shape, "float32")
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", shape)
    weights.create_virtual_dataset(KERNEL, layout)


def circle(weights):
    weights["layers/round"] = weights["layers"]


HDF5_ATTACKS = {
    "external link": (link(h5py.ExternalLink("/etc/passwd", "/x")), "has a link"),
    "soft link": (link(h5py.SoftLink("/layers/graph_conv_1/vars/0")), "has a link"),
    "virtual": (virtual, "other files"),
    "external storage": (
        replaced(external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]), "plain numbers",
    ),
    "compressed": (replaced(compression="gzip"), "filters"),
    "bomb": (replaced(shape=(1 << 40,), chunks=(1 << 20,), compression="gzip"), "filters"),
    "more than there is": (replaced(shape=(1 << 40,)), "claims"),
    "strings": (replaced(dtype=h5py.string_dtype()), "plain numbers"),
    "references": (replaced(dtype=h5py.ref_dtype), "plain numbers"),
    "circle": (circle, "has a circle"),
    "other shape": (replaced(shape=(1, 2, 3)), "do not fit"),
    "missing": (lambda weights: weights.__delitem__("layers/graph_conv/vars"), "do not fit"),
    "optimiser": (
        lambda weights: weights.__delitem__("optimizer/vars/3"), "variables of an optimiser",
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", HDF5_ATTACKS)
def test_weights_that_are_no_plain_arrays_are_refused(attack, members, write):
    edit, message = HDF5_ATTACKS[attack]
    refused(write({WEIGHTS: edited(members, edit)}), message)


def test_weights_of_another_model_are_refused(members, write, tmp_path):
    other = build_model("no_sharing", channels=4, blocks=1)
    other.compile("adam", "mse")
    save_model(other, tmp_path / "other.keras")
    with zipfile.ZipFile(tmp_path / "other.keras") as archive:
        refused(write({WEIGHTS: archive.read(WEIGHTS)}), "")


# --- what a good file brings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.01, 50)),
        keras.optimizers.SGD(0.01, momentum=0.9),
    ],
    ids=["adamw", "sgd"],
)
def test_training_goes_on_as_if_it_had_not_stopped(optimizer, rng, tmp_path):
    pose2d = rng.uniform(-1, 1, (8, 16, 2)).astype("float32")
    pose3d = rng.normal(size=(8, 16, 3)).astype("float32")
    model = build_model("pre_agg", channels=4, blocks=1)
    model.compile(optimizer.from_config(optimizer.get_config()), "mse")
    fit = dict(batch_size=4, shuffle=False, verbose=0)
    model.fit(pose2d, pose3d, epochs=2, **fit)
    save_model(model, tmp_path / "m.keras")
    model.fit(pose2d, pose3d, epochs=2, **fit)
    again = load_model(tmp_path / "m.keras")
    assert int(again.optimizer.iterations) == 4
    again.fit(pose2d, pose3d, epochs=2, **fit)
    for one, other in zip(
        [*model.variables, *model.optimizer.variables],
        [*again.variables, *again.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)
        )

import json
import zipfile

import keras
import numpy as np
import pytest
from testing import BACKENDS, start_python

from keras_wsgcn import InputError, Scheme, Skeleton, build_model, load_model, save_model
from keras_wsgcn.saving import dtype_policy, read_metadata, restore_model

# Each backend saves a trained model, with what it predicts and what its optimiser holds. Once all
# have, it reads those of all, by our door and by Keras's, and trains on: one of another that our
# door has read, or all.
SAVES_AND_READS = """
import sys, numpy as np, keras, keras_wsgcn
from keras import ops
folder, trained, *backends = sys.argv[1:]
backend = keras.backend.backend()
keras.utils.set_random_seed(0)
size = dict(budget=20_000, blocks=1, non_local=True, affinity="learned", dropout=0.1)
model = keras_wsgcn.build_model("conv_style", **size)
rng = np.random.default_rng(0)
for weight in model.trainable_weights:
    weight.assign(rng.normal(size=weight.shape) * 0.2)
model.compile(keras.optimizers.Adam(global_clipnorm=1.0), "mse", metrics=[keras_wsgcn.MPJPE()])
x = np.load(f"{folder}/x.npy")
model.fit(x, np.zeros((5, 16, 3)), epochs=2, verbose=0)
keras_wsgcn.save_model(model, f"{folder}/{backend}.keras")
state = map(ops.convert_to_numpy, model.optimizer.variables)
np.savez(f"{folder}/{backend}.npz", model.predict(x, verbose=0), *state)
print("saved", flush=True)
input()
for number, saver in enumerate(backends):
    with np.load(f"{folder}/{saver}.npz") as found:
        predicted, *state = found.values()
    assert predicted.std() > 0.01
    for load in (keras_wsgcn.load_model, keras.saving.load_model):
        model = load(f"{folder}/{saver}.keras")
        np.testing.assert_allclose(model.predict(x, verbose=0), predicted, atol=1e-5)
        for variable, value in zip(model.optimizer.variables, state, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
        another = number == (backends.index(backend) + 1) % len(backends)
        if trained == "all" or (another and load is keras_wsgcn.load_model):
            model.fit(x, np.zeros((5, 16, 3)), verbose=0)
            assert int(model.optimizer.iterations) == 3
print("read", number + 1)
"""


@pytest.fixture
def model(rng):
    model = build_model(
        "conv_style", budget=20_000, blocks=1, non_local=True, affinity="learned", dropout=0.1
    )
    for weight in model.weights:
        if "moving_variance" not in weight.path:
            weight.assign(rng.normal(size=weight.shape) * 0.2)
    return model


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="one process compares all pairs")
@pytest.mark.parametrize("trained", ["one", pytest.param("all", marks=pytest.mark.slow)])
def test_a_file_goes_on_the_same_on_every_backend(trained, rng, tmp_path):
    np.save(tmp_path / "x.npy", rng.uniform(-1, 1, (5, 16, 2)).astype("float32"))
    started = [
        start_python(SAVES_AND_READS, str(tmp_path), trained, *BACKENDS, backend=backend)
        for backend in BACKENDS
    ]
    for process in started:
        assert process.stdout.readline() == "saved\n", process.communicate()
    for process in started:
        printed, errors = process.communicate("all have\n", timeout=300)
        assert printed == "read 3\n", errors[-3000:]


def test_metadata_travels_inside(model, tmp_path):
    save_model(model, tmp_path / "m.keras", training={"epochs": 3})
    metadata = read_metadata(tmp_path / "m.keras")
    assert metadata["scheme"] == "conv_style"
    assert metadata["skeleton"] == "h36m_16"
    assert metadata["budget"] == 20_000
    assert metadata["channels"] == model.get_layer("input_conv").units
    assert metadata["training"] == {"epochs": 3}
    assert "width" in metadata["normalisation"]["pose2d"]
    assert load_model(tmp_path / "m.keras").metadata == metadata


def test_metadata_survives_a_second_save(model, tmp_path):
    save_model(model, tmp_path / "a.keras", training={"epochs": 3})
    save_model(load_model(tmp_path / "a.keras"), tmp_path / "b.keras")
    assert read_metadata(tmp_path / "b.keras") == read_metadata(tmp_path / "a.keras")


def test_own_scheme_and_skeleton_travel_as_records(tmp_path):
    skeleton = Skeleton("arm", ("shoulder", "elbow", "wrist"), (-1, 0, 1))
    scheme = Scheme("own", split="depth", per="target")
    save_model(build_model(scheme, channels=4, skeleton=skeleton), tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras")
    assert loaded.get_layer("input_conv").skeleton == skeleton
    assert loaded.get_layer("input_conv").scheme == scheme
    assert loaded.metadata["skeleton"]["joint_names"] == ["shoulder", "elbow", "wrist"]


def test_what_could_not_be_opened_again_is_not_written(model, tmp_path):
    with pytest.raises(InputError, match=r"at most \d+ bytes of 'keras_wsgcn.json'. Received: "):
        save_model(model, tmp_path / "m.keras", note="x" * (1 << 20))
    assert not list(tmp_path.iterdir())


def test_losses_that_are_functions_are_told_by_name_if_they_are_keras_s(rng, tmp_path):
    def huber(y_true, y_pred):
        return keras.ops.sum(keras.ops.abs(y_true - y_pred), axis=(1, 2))

    x, y = rng.uniform(-1, 1, (4, 16, 2)), rng.uniform(-1, 1, (4, 16, 3))
    model = build_model("pre_agg", channels=4, blocks=0)
    model.compile("adam", keras.losses.huber)
    expected = model.evaluate(x, y, verbose=0)
    save_model(model, tmp_path / "m.keras")
    for load in (load_model, keras.saving.load_model):
        assert load(tmp_path / "m.keras").evaluate(x, y, verbose=0) == pytest.approx(expected)
    model.compile("adam", huber)
    save_model(model, tmp_path / "own.keras")
    with pytest.raises(InputError, match=r"'loss' is builtins.function, .* with compile=False"):
        load_model(tmp_path / "own.keras")


def test_numbers_of_numpy_s_are_saved(tmp_path):
    budget, rate = np.int64(20_000), np.float32(0.125)
    model = build_model("pre_agg", budget=budget, blocks=0, dropout=rate, kernel_gain=rate)
    save_model(model, tmp_path / "m.keras", note=np.float64(0.5))
    metadata = load_model(tmp_path / "m.keras").metadata
    assert (metadata["budget"], metadata["dropout"], metadata["note"]) == (20_000, 0.125, 0.5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_a_compiled_model_of_any_policy_goes_on_or_is_not_saved(policy, rng, tmp_path):
    poses = rng.uniform(-1, 1, (4, 16, 2)).astype("float32")
    with dtype_policy(policy):
        model = build_model("pre_agg", channels=4, blocks=0)
        model.compile("adam", "mse")
        model.fit(poses, np.zeros((4, 16, 3)), verbose=0)
    path = tmp_path / "m.keras"
    if policy == "bfloat16":
        with pytest.raises(InputError, match=r"one that `load_model` opens.*plain numbers"):
            save_model(model, path)
        assert not list(tmp_path.iterdir())
        return
    save_model(model, path)
    again = load_model(path)
    assert len(again.optimizer.variables) == len(model.optimizer.variables)
    again.fit(poses, np.zeros((4, 16, 3)), verbose=0)
    save_model(again, path)
    assert int(load_model(path).optimizer.iterations) == 2
    assert load_model(path).metadata["dtype_policy"] == policy
    if policy == "mixed_float16":  # as versions before saved it, after a kill
        for _ in range(2):
            model.optimizer.build(model.trainable_variables)
            save_model(model, path)
            assert int(load_model(path).optimizer.iterations) == 1


def test_a_failed_save_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "m.keras"
    save_model(model, path)
    before = path.read_bytes()

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["m.h5", "m.zip", "m"])
def test_refuses_other_suffixes(model, tmp_path, name):
    for call in (lambda: save_model(model, tmp_path / name), lambda: load_model(tmp_path / name)):
        with pytest.raises(InputError, match=r"`path` must end in `.keras`.*Received: path="):
            call()
    assert not list(tmp_path.iterdir())


def test_refuses_files_of_others(tmp_path):
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    (tmp_path / "noise.keras").write_bytes(b"PK not a zip")
    with zipfile.ZipFile(tmp_path / "list.keras", "w") as archive:
        archive.writestr("keras_wsgcn.json", json.dumps([1, 2]))
    for name in ("other", "noise", "list", "missing"):
        with pytest.raises(InputError, match=r"`path` must .*Received: path="):
            load_model(tmp_path / f"{name}.keras")


def test_refuses_to_save_what_is_no_lifting_model(tmp_path):
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(InputError, match="`model` must hold"):
        save_model(other, tmp_path / "m.keras")
    assert not list(tmp_path.iterdir())


def small(seed=0, **arguments):
    keras.utils.set_random_seed(seed)
    return build_model("pre_agg", channels=4, blocks=0, **arguments)


def test_a_fine_tuned_model_with_frozen_blocks_goes_on(rng, tmp_path):
    model, poses = small(non_local=True), rng.uniform(-1, 1, (8, 16, 2)).astype("float32")
    for layer in model.layers[:-2]:
        layer.trainable = False
    model.compile("adam", "mse")
    model.fit(poses, np.zeros((8, 16, 3)), verbose=0)
    path = tmp_path / "m.keras"
    save_model(model, path)
    again = load_model(path)
    assert len(again.trainable_variables) == len(model.trainable_variables) == 2
    assert read_metadata(path)["params"] == small(non_local=True).metadata["params"]
    frozen = again.get_layer("input_non_local").get_weights()
    again.fit(poses, np.zeros((8, 16, 3)), verbose=0)
    for old, new in zip(frozen, again.get_layer("input_non_local").get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_file_is_of_its_own_policy_whatever_the_session_s(rng, tmp_path):
    model, path = small(), tmp_path / "m.keras"
    model.compile("adam", "mse")
    model.fit(rng.uniform(-1, 1, (4, 16, 2)), np.zeros((4, 16, 3)), verbose=0)
    save_model(model, path)
    with dtype_policy("mixed_float16"):
        again = load_model(path)
    assert again.dtype_policy.name == "float32"
    assert not hasattr(again.optimizer, "inner_optimizer")


def test_what_layers_say_is_what_is_written(tmp_path):
    model = small(dropout=0.1)
    model.get_layer("input_dropout").rate = 0.5
    save_model(model, tmp_path / "m.keras")
    assert read_metadata(tmp_path / "m.keras")["dropout"] == 0.5


def test_facts_do_not_gainsay_the_model(model, tmp_path):
    for name in ("scheme", "dtype_policy", "normalisation"):
        with pytest.raises(
            InputError, match=rf"`facts` must not be called \['{name}'\].*Received: "
        ):
            save_model(model, tmp_path / "m.keras", **{name: "other"})


def test_facts_that_are_no_json_are_refused(model, tmp_path):
    for fact in (np.zeros(3), {1, 2}, object()):
        with pytest.raises(InputError, match=r"`facts` must be what JSON can hold.*Received: "):
            save_model(model, tmp_path / "m.keras", note=fact)
    assert not list(tmp_path.iterdir())


def test_plain_gradient_descent_is_restored(rng, tmp_path):
    first, second, path = small(), small(seed=1), tmp_path / "m.keras"
    for model in (first, second):
        model.compile(keras.optimizers.SGD(0.1), "mse")
    first.fit(rng.uniform(-1, 1, (4, 16, 2)), np.zeros((4, 16, 3)), verbose=0)
    save_model(first, path)
    restore_model(second, path)
    assert int(second.optimizer.iterations) == 1
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)

"""One training on two virtual devices, and the precision of products."""

import dataclasses
import json
import platform

import keras
import numpy as np
import pytest
from testing import run_python

from keras_wsgcn import MPJPE, InputError, TrainConfig, load_model
from keras_wsgcn.devices import data_parallel, float32_products, replicas
from keras_wsgcn.training import train

BACKEND = keras.backend.backend()
TWO_DEVICES = """
import dataclasses, json, os, sys
if os.environ["KERAS_BACKEND"] == "jax":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
else:
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import numpy as np
from keras_wsgcn import InputError, TrainConfig, load_splits
from keras_wsgcn.data.poses import Splits
from keras_wsgcn.devices import data_parallel
from keras_wsgcn.prediction import predict
from keras_wsgcn.training import train
config = TrainConfig(**json.loads(sys.argv[1]))
data = load_splits("generated", stride=60)
odd = data.validation.subset(np.arange(len(data.validation) - 1 + len(data.validation) % 2))
data = Splits("odd", data.train, odd, data.test)
assert len(odd) % 2
for devices, name in ((1, "one"), (2, "two")):
    result = train(config, data, f"{sys.argv[2]}/{name}", devices=devices, verbose=False)
    np.save(f"{sys.argv[2]}/{name}.npy", predict(result.model, odd.pose2d))
# Killed after its first epoch, and called again.
class Killed(Exception): pass
import keras
class Kill(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise Killed
try:
    train(config, data, f"{sys.argv[2]}/killed", devices=2, callbacks=[Kill()], verbose=False)
except Killed:
    train(config, data, f"{sys.argv[2]}/killed", devices=2, verbose=False)
# Within a distribution that somebody has set.
with data_parallel(2, 64):
    try:
        train(dataclasses.replace(config, batch_size=63), data, f"{sys.argv[2]}/odd")
    except InputError as error:
        print(error)
"""


@pytest.mark.skipif(BACKEND == "torch", reason="Keras cannot spread a batch under torch")
def test_two_devices_train_as_one_does(tmp_path):
    config = {"channels": 6, "blocks": 0, "epochs": 2, "batch_size": 64, "clip_norm": None}
    said = run_python(TWO_DEVICES, json.dumps(config), str(tmp_path), backend=BACKEND)
    assert "`batch_size` must be a multiple of 2, the devices of the distribution" in said
    one, two, killed = (
        np.genfromtxt(tmp_path / name / "history.csv", delimiter=",", names=True)
        for name in ("one", "two", "killed")
    )
    for column in ("loss", "mpjpe_mm", "val_mpjpe_mm"):
        np.testing.assert_allclose(one[column], two[column], rtol=2e-3)
        np.testing.assert_array_equal(two[column], killed[column])
    predicted = [np.load(tmp_path / f"{name}.npy") for name in ("one", "two")]
    np.testing.assert_allclose(*predicted, atol=5e-3)


@pytest.mark.parametrize(
    ("devices", "batch", "message"),
    [
        (0, 64, "`devices` must be an integer of at least 1"),
        (2, 63, "`devices` must be 1 under torch|`devices` must divide the batch size 63"),
        (64, 64, "`devices` must be 1 under torch|`devices` must be at most"),
    ],
)
def test_refuses_before_any_work(devices, batch, message, generated, tmp_path):
    config = TrainConfig(channels=4, batch_size=batch)
    with pytest.raises(InputError, match=message):
        train(config, generated, tmp_path / "run", devices=devices)
    assert not (tmp_path / "run").exists()


def test_one_device_is_the_plain_way():
    with data_parallel(1, batch_size=7):
        assert replicas() == 1


def products_allow_tf32():
    if BACKEND == "jax":
        import jax

        return jax.config.jax_default_matmul_precision == "tensorfloat32"
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.config.experimental.tensor_float_32_execution_enabled()
    import torch

    return torch.get_float32_matmul_precision() == "high"


def test_products_are_exact_unless_asked_otherwise():
    before = products_allow_tf32()
    with float32_products():
        assert not products_allow_tf32()
    with float32_products(tf32=True):
        assert products_allow_tf32()
    assert products_allow_tf32() == before


@pytest.mark.skipif(BACKEND == "jax", reason="under JAX each thread has its own")
@pytest.mark.parametrize("first_to_leave", [0, 1])
def test_the_last_to_leave_puts_the_precision_back(first_to_leave):
    """As threads may: neither is within the other."""
    before = products_allow_tf32()
    ways = [float32_products(tf32=True), float32_products()]
    for way in ways:
        way.__enter__()
    assert not products_allow_tf32()
    ways.pop(first_to_leave).__exit__(None, None, None)
    assert products_allow_tf32() == (first_to_leave == 1)
    ways.pop().__exit__(None, None, None)
    assert products_allow_tf32() == before


@pytest.mark.skipif(BACKEND != "tensorflow", reason="its strategies")
def test_a_mirrored_strategy_of_one_device_trains(generated, tmp_path):
    import tensorflow as tf

    config = TrainConfig(channels=4, blocks=0, epochs=1, batch_size=64)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        assert len(train(config, generated, tmp_path / "a", verbose=False).history) == 1


NEWER = """
import numpy as np, torch
from keras_wsgcn import build_model
from keras_wsgcn.devices import float32_products
from keras_wsgcn.prediction import predict

fields = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
for field, value in zip(fields, ("tf32", "bf16")):
    field.fp32_precision = value
with float32_products():
    assert [field.fp32_precision for field in fields] == ["ieee", "ieee"]
predict(build_model("pre_agg", channels=4, blocks=0), np.zeros((3, 16, 2), "float32"))
print([field.fp32_precision for field in fields])
"""


@pytest.mark.skipif(BACKEND != "torch", reason="it is PyTorch that has two ways")
def test_a_precision_that_was_set_by_pytorchs_newer_fields_is_kept():
    import torch

    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this PyTorch has no such fields")
    assert run_python(NEWER, backend="torch").strip() == "['tf32', 'bf16']"


def test_metrics_take_float64_where_there_is_none(rng, monkeypatch):
    """As on Apple's GPUs."""
    poses = rng.normal(size=(2, 5, 16, 3))
    expected = float(MPJPE()(*poses.astype("float32")))
    original = keras.ops.convert_to_tensor

    def convert(values, dtype=None, **named):
        if dtype is None and getattr(values, "dtype", None) == np.float64:
            raise TypeError("no float64 here")
        return original(values, dtype, **named)

    monkeypatch.setattr(keras.ops, "convert_to_tensor", convert)
    assert float(MPJPE()(*poses)) == pytest.approx(expected, rel=1e-6)


FAULTS = """
import resource
from keras_wsgcn.devices import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(b"x") * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
keep_freed_memory()
faults()
print(first, faults())
"""


@pytest.mark.plain
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc to keep it")
def test_freed_memory_is_kept_whatever_its_size():
    printed = run_python(FAULTS, backend=BACKEND)
    given_back, kept = map(int, printed.splitlines()[-1].split())
    assert given_back > 100 > kept


EXACT = TrainConfig(channels=6, blocks=0, epochs=2, batch_size=64, dropout=0.1)


@pytest.fixture(scope="module")
def exact(generated, tmp_path_factory):
    return train(EXACT, generated, tmp_path_factory.mktemp("exact") / "run", verbose=False).history


def test_products_are_in_tf32_while_a_model_trains(exact, generated, tmp_path):
    found = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found.append(products_allow_tf32())

    before = products_allow_tf32()
    config = dataclasses.replace(EXACT, precision="tf32")
    history = train(config, generated, tmp_path / "run", callbacks=[Look()], verbose=False).history
    assert found == [True, True]
    assert products_allow_tf32() == before
    np.testing.assert_allclose(history["loss"], exact["loss"], rtol=0.05)


@pytest.mark.parametrize(
    "precision",
    # On a processor TF32 changes nothing.
    [pytest.param("tf32", marks=pytest.mark.slow), "mixed_bfloat16", "mixed_float16"],
)
def test_every_precision_trains_and_resumes(precision, exact, generated, tmp_path):
    config = dataclasses.replace(EXACT, precision=precision)
    whole = train(config, generated, tmp_path / "whole", verbose=False)
    np.testing.assert_allclose(whole.history["loss"], exact["loss"], rtol=0.05)
    assert keras.config.dtype_policy().name == "float32"

    class Killed(Exception):
        pass

    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise Killed

    for _ in range(config.epochs):
        with pytest.raises(Killed):
            train(config, generated, tmp_path / "killed", callbacks=[Kill()], verbose=False)
    again = train(config, generated, tmp_path / "killed", verbose=False)
    assert again.history["loss"].tolist() == whole.history["loss"].tolist()
    loaded = load_model(tmp_path / "killed" / "last.keras")
    assert int(loaded.optimizer.iterations) > 0
    assert hasattr(loaded.optimizer, "inner_optimizer") == (precision == "mixed_float16")

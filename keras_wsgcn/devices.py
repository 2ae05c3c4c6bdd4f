"""How the hardware is used: several devices at once, the precision of products, memory."""

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Iterator

import keras

from keras_wsgcn.errors import InputError, check_integer


@contextlib.contextmanager
def data_parallel(devices: int, batch_size: int) -> Iterator[None]:
    """Within, models are built for several devices, each of which takes its share of a batch.

    On JAX the numbers are those of one device but for rounding. On TensorFlow too, but for clipping
    and dropout: each device clips the gradient of its share, and all draw one mask for theirs.

    Args:
        devices: how many; 1 changes nothing: Keras's own distribution, if one is set, holds.
        batch_size: of all devices together.

    Raises:
        InputError: if the backend cannot, there are fewer devices, or they do not divide the batch.
    """
    check_integer("devices", devices, least=1)
    if devices == 1:
        if batch_size % replicas():
            raise InputError(
                f"`batch_size` must be a multiple of {replicas()}, the devices of the distribution "
                f"that is set. Received: batch_size={batch_size}"
            )
        yield
        return
    backend = keras.backend.backend()
    if backend == "torch":
        raise InputError(
            "`devices` must be 1 under torch, where Keras cannot spread a batch: use JAX or "
            f"TensorFlow. Received: devices={devices}"
        )
    if batch_size % devices:
        raise InputError(
            f"`devices` must divide the batch size {batch_size}. Received: devices={devices}"
        )
    names = _device_names(backend)
    if len(names) < devices:
        raise InputError(
            f"`devices` must be at most {len(names)}, which is what {backend} sees: {names}. "
            f"Received: devices={devices}"
        )
    if backend == "jax":
        scope = keras.distribution.DataParallel(devices=names[:devices]).scope()
    else:
        import tensorflow as tf

        scope = tf.distribute.MirroredStrategy(names[:devices]).scope()
    with scope:
        yield


def _device_names(backend: str) -> list[str]:
    if backend == "jax":
        return keras.distribution.list_devices()
    import tensorflow as tf

    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name for device in found]


def replicas() -> int:
    """Over how many devices `data_parallel` spreads a batch here."""
    if keras.backend.backend() == "jax":
        distribution = keras.distribution.distribution()
        return 1 if distribution is None else distribution.device_mesh.devices.size
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_strategy().num_replicas_in_sync
    return 1


def check_together(count: int) -> int:
    """Refuses to train several models at once where the backend cannot.

    Raises:
        InputError: if it cannot.
    """
    if check_integer("together", count, least=1) > 1 and keras.backend.backend() != "jax":
        raise InputError(
            "`together` must be 1 but under JAX, which alone can map a step over models. "
            f"Received: together={count} under {keras.backend.backend()}"
        )
    return count


@contextlib.contextmanager
def float32_products(tf32: bool = False) -> Iterator[None]:
    """Within, products of float32 matrices are as exact as float32 is.

    Accelerators round the factors to 10 bits (TF32) where they may, and TensorFlow and JAX let
    them by default. A processor always computes in float32.

    Args:
        tf32: let them round.
    """
    if keras.backend.backend() == "jax":
        import jax

        with jax.default_matmul_precision("tensorfloat32" if tf32 else "float32"):
            yield
        return
    own = object()
    _products.enter(own, tf32)
    try:
        yield
    finally:
        _products.leave(own)


class _Products:
    """The one setting of a process, which threads share: the latest within decides on it.

    The last to leave puts back what it was, whatever the order in which they came.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within: dict[object, bool] = {}

    def enter(self, own: object, tf32: bool) -> None:
        with self._lock:
            if not self._within:
                self._set, self._restore = _ways_to_set_tf32()
            self._within[own] = tf32
            self._set(tf32)

    def leave(self, own: object) -> None:
        with self._lock:
            del self._within[own]
            if self._within:
                self._set(list(self._within.values())[-1])
            else:
                self._restore()


_products = _Products()


def _ways_to_set_tf32() -> tuple[Callable[[bool], None], Callable[[], None]]:
    """How TF32 is set under TensorFlow or torch, and how all is put back as it is now."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        set_tf32 = tf.config.experimental.enable_tensor_float_32_execution
        now = tf.config.experimental.tensor_float_32_execution_enabled()
        return set_tf32, lambda: set_tf32(now)
    import torch

    ways = (torch.backends.cuda, torch.backends.mkldnn)
    try:
        before, fields = torch.get_float32_matmul_precision(), []
    except RuntimeError:  # it was set by PyTorch's newer fields, and can only be read there
        before, fields = "highest", [way.matmul.fp32_precision for way in ways]

    def restore() -> None:
        torch.set_float32_matmul_precision(before)
        for way, field in zip(ways, fields, strict=False):
            way.matmul.fp32_precision = field

    return lambda tf32: torch.set_float32_matmul_precision("high" if tf32 else "highest"), restore


def keep_freed_memory() -> None:
    """Has the C library keep what tensors give back, for the next ones.

    By default it returns blocks of megabytes to the system, which then maps and clears them page by
    page. Kept, a step at 4.2 M parameters on two cores takes 72 instead of 95 ms under torch and 84
    instead of 90 under TensorFlow (`pre_agg_decoupled`, batch 256). No size is left out: a bound of
    32 MB, the most that can be set, costs torch 3400 instead of 2300 ms (`full_sharing`, batch
    1024). Other systems than Linux with glibc are left as they are.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(mmap_max, 0)  # no block is the system's alone
        libc.mallopt(trim_threshold, 2**31 - 1)

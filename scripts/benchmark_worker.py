"""What each process of benchmark.py times: the library on one backend, or the peer.

Reads questions and prints answers, a JSON object a line. The first is the *case*: a scheme, its
channels and a batch size; those that follow name a *measure* to be timed.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from benchmark_exports import direct

from keras_wsgcn.data.poses import PoseDataset, Splits
from keras_wsgcn.devices import float32_products
from keras_wsgcn.environment import environment
from keras_wsgcn.epochs import Epochs, xla_options
from keras_wsgcn.recipes import TrainConfig, compile_model
from keras_wsgcn.schemes import SCHEMES, Scheme
from keras_wsgcn.skeletons import h36m_16
from keras_wsgcn.training import train


def seconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def random_poses(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    pose2d, pose3d = (rng.uniform(-1, 1, (count, 16, n)).astype("float32") for n in (2, 3))
    return pose2d, pose3d - pose3d[:, :1]  # relative to the root


class Ours:
    """The library on the backend of this process."""

    def __init__(self, steps: int, precision: str, jit_compile: bool):
        self.steps, self.precision, self.jit_compile = steps, precision, jit_compile

    def prepare(self, scheme: str, channels: int, batch: int) -> dict[str, Any]:
        forget_peak()
        self.batch = batch
        self.config = TrainConfig(
            scheme=scheme,
            channels=channels,
            batch_size=batch,
            precision=self.precision,
            jit_compile=self.jit_compile,
        )
        self.model = self.config.build_model()
        compile_model(self.model, self.config, steps_per_epoch=10_000)
        self.poses = random_poses(batch * self.steps)
        self.order = np.arange(batch * self.steps)
        began = time.perf_counter()
        self.epochs = Epochs([self.model], *self.poses, batch, jit_compile=self.jit_compile)
        self.step()
        compile_s = time.perf_counter() - began
        peak_mib = peak()
        self.scheme, self.channels = SCHEMES[scheme], channels
        self._forward: Callable[[np.ndarray], Any] | None = None
        self._products: Callable[[], Any] | None = None
        self._fitted = False
        return {"compile_s": compile_s, "peak_mib": peak_mib, **environment()}

    def step(self) -> None:
        self.epochs.run([self.order])

    def fit(self) -> None:
        """The same through Keras's own loop."""
        fit = {"batch_size": self.batch, "shuffle": False, "verbose": 0}
        if not self._fitted:
            self.model.fit(*self.poses, **fit)
            self._fitted = True
        self.model.fit(*self.poses, **fit)

    def forward(self) -> None:
        if self._forward is None:
            # Not the model in training, whose weights the next step gives away.
            self._forward = direct(self.config.build_model(), keras.backend.backend())
            self._forward(self.poses[0][: self.batch])
        for start in range(0, len(self.poses[0]), self.batch):
            self._forward(self.poses[0][start : start + self.batch])

    def products(self) -> None:
        if self._products is None:
            shapes = product_shapes(self.scheme, self.channels, self.batch)
            self._products = PRODUCTS[keras.backend.backend()](
                Products(shapes, self.model.dtype_policy.compute_dtype)
            )
            self._products()
        for _ in range(self.steps):
            self._products()

    def train(self, steps: int) -> dict[str, float]:
        """Milliseconds a step through `train()`: validation, saving, all that a user waits for."""
        ends: list[float] = []

        class Clock(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                ends.append(time.perf_counter())

        def poses(count: int, subject: int) -> PoseDataset:
            zeros, texts = np.zeros(count, dtype=int), np.full(count, "-")
            origin = (zeros + subject, texts, texts, zeros, zeros)
            return PoseDataset(*random_poses(count), *origin, h36m_16)

        count = steps * self.batch
        few = max(count // 8, 1)
        splits = Splits("random", poses(count, 0), poses(few, 1), poses(few, 2))
        with tempfile.TemporaryDirectory() as folder:
            config = dataclasses.replace(self.config, epochs=3)
            train(config, splits, Path(folder) / "run", callbacks=[Clock()], verbose=False)
        return {"train_ms": 1e3 * (ends[-1] - ends[0]) / (2 * steps)}


class Peer:
    """Any-GCN (PyTorch), from a checkout that the user has; its plain training step."""

    def __init__(self, path: str, steps: int):
        sys.path.insert(0, path)
        self.steps = steps

    def prepare(self, scheme: str, channels: int, batch: int) -> dict[str, Any]:
        import torch
        from models.any_gcn import GCN  # type: ignore[import-not-found]

        adjacency = torch.tensor(h36m_16.affinity > 0, dtype=torch.float32)
        adjacency = adjacency / adjacency.sum(1, keepdim=True)
        self.model = GCN(adjacency, channels, gcn_type=peer_name(SCHEMES[scheme]), num_experts=0)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(device).train()
        poses = [torch.tensor(array, device=device) for array in random_poses(batch * self.steps)]
        self.batches = list(zip(*(array.split(batch) for array in poses), strict=True))
        forget_peak()
        return {"compile_s": seconds(self.step), "peak_mib": peak(), "torch": torch.__version__}

    def step(self) -> None:
        import torch

        for pose2d, pose3d in self.batches:
            loss = torch.nn.functional.mse_loss(self.model(pose2d), pose3d)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=1)
            self.optimizer.step()
            loss.item()  # as its own loop does

    def forward(self) -> None:
        import torch

        self.model.eval()
        with torch.no_grad():
            for pose2d, _ in self.batches:
                self.model(pose2d).cpu()
        self.model.train()


def peer_name(scheme: Scheme) -> str:
    """What the peer calls a scheme."""
    if scheme.split == "depth":
        return "convst"
    name = {"graph": "vanilla", "source": "preagg", "target": "postagg", "edge": "nosharing"}
    return "dc_" * (scheme.split == "self_others") + name[scheme.per]


# --- the limit -----------------------------------------------------------------------------------


def product_shapes(
    scheme: Scheme, channels: int, batch: int
) -> list[list[tuple[int, int, int, int]]]:
    """For each layer the (kernels, rows, in, out) of its batched products in a forward pass."""
    layers = [(2, channels), *[(channels, channels)] * 8, (channels, 3)]
    shapes: list[list[tuple[int, int, int, int]]] = []
    for inputs, outputs in layers:
        shapes.append([])
        for part in scheme.contraction(h36m_16, inputs, outputs).parts:
            count = len(part.products)
            if scheme.per == "graph":  # one kernel for all the joints: one large product
                shapes[-1].append((1, count * batch, inputs, outputs))
            else:
                shapes[-1].append((count, batch, inputs, outputs))
    return shapes


class Products:
    """The matrix products of a training step, alone: forward, for the inputs, for the kernels.

    They wait for each other as those of a step do: a layer's take what the layer before gives,
    where that has their shape. As in a model the batch is last where each joint has a kernel.
    """

    def __init__(self, shapes: list[list[tuple[int, int, int, int]]], dtype: str):
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> Any:
            array = (rng.normal(size=shape) / shape[-2] ** 0.5).astype("float32")
            return keras.ops.convert_to_tensor(array, dtype)

        self.batch_last = shapes[0][0][0] > 1
        self.arrays = tuple(
            [[draw(*ends(*part)) for part in layer] for layer in shapes]
            for ends in (
                lambda n, rows, i, o: (n, i, rows) if self.batch_last else (n, rows, i),
                lambda n, rows, i, o: (n, i, o),
                lambda n, rows, i, o: (n, o, rows) if self.batch_last else (n, rows, o),
            )
        )

    def compute(self, multiply, turned, inputs, kernels, upstream):
        """The gradients of the kernels; `multiply` is a batched product, `turned` a transpose."""

        def passed_on(given, wanted):
            same = [tuple(a.shape) for a in given] == [tuple(a.shape) for a in wanted]
            return given if same else wanted

        def output(x, w):
            return multiply(turned(w), x) if self.batch_last else multiply(x, w)

        def by_kernel(x, g):
            return multiply(x, turned(g)) if self.batch_last else multiply(turned(x), g)

        def by_input(w, g):
            return multiply(w, g) if self.batch_last else multiply(g, turned(w))

        xs, given, gradients = [], inputs[0], []
        for number in range(len(kernels)):
            xs.append(passed_on(given, inputs[number]))
            given = [output(x, w) for x, w in zip(xs[-1], kernels[number], strict=True)]
        last, given = given, upstream[-1]
        for number in reversed(range(len(kernels))):
            gs = passed_on(given, upstream[number])
            gradients += [by_kernel(x, g) for x, g in zip(xs[number], gs, strict=True)]
            given = [by_input(w, g) for w, g in zip(kernels[number], gs, strict=True)]
        return gradients, given, last


def jax_products(products: Products) -> Callable[[], Any]:
    import jax

    def compute(*arrays):
        turned = lambda array: jax.numpy.swapaxes(array, 1, 2)  # noqa: E731
        return products.compute(jax.numpy.matmul, turned, *arrays)

    jitted = jax.jit(compute, compiler_options=xla_options())
    return lambda: jax.block_until_ready(jitted(*products.arrays))


def tensorflow_products(products: Products) -> Callable[[], Any]:
    import tensorflow as tf

    compute = tf.function(
        lambda *arrays: products.compute(tf.matmul, tf.linalg.matrix_transpose, *arrays)
    )
    return lambda: compute(*products.arrays)[1][0].numpy()


def torch_products(products: Products) -> Callable[[], Any]:
    import torch

    def compute() -> None:
        products.compute(torch.bmm, lambda a: a.mT, *products.arrays)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return compute


PRODUCTS = {"jax": jax_products, "tensorflow": tensorflow_products, "torch": torch_products}


# --- memory --------------------------------------------------------------------------------------


def forget_peak() -> None:
    """Lets the process's peak of memory begin anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> float | None:
    """MiB: the accelerator's peak where there is one, else the process's since `forget_peak`."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return sys.modules["torch"].cuda.max_memory_allocated() / 2**20
    if "tensorflow" in sys.modules:
        tf = sys.modules["tensorflow"]
        if tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    if "jax" in sys.modules:
        stats = sys.modules["jax"].devices()[0].memory_stats()
        if stats:
            return stats["peak_bytes_in_use"] / 2**20
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def main() -> None:
    _, name, steps, with_what = sys.argv
    worker: Ours | Peer
    if name == "peer":
        worker, precision = Peer(with_what, int(steps)), "float32"
    else:
        worker, precision = Ours(int(steps), with_what, name == "torch_compiled"), with_what
    with float32_products(precision == "tf32"):
        answer_all(worker)


def answer_all(worker: Any) -> None:
    for line in sys.stdin:
        question = json.loads(line)
        measure = question.pop("measure", None)
        try:
            if measure is None:
                answer = worker.prepare(**question)
            elif measure == "train":
                answer = worker.train(**question)
            else:
                answer = {f"{measure}_ms": 1e3 * seconds(getattr(worker, measure)) / worker.steps}
        except RuntimeError as error:  # the peer's coupled post-aggregation
            answer = {"error": (str(error).splitlines() or ["RuntimeError"])[0]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

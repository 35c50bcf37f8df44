"""Device code, on a pretended GPU (pretended_gpu.py) everywhere, and training on a real one too where there is one.

On the pretended one everything is equal to the CPU, bit for bit. In bf16 that holds where every map is larger than the kernel: for smaller
ones ``DevicePolicy`` computes convolutions in single precision on CPUs alone.
"""

import json
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from launching import on_ranks
from pretended_gpu import pretended_gpu
from quick import quick
from resuming import assert_same as assert_same_outcome
from resuming import outcome
from safetensors.torch import load_file
from torch import nn

from ddcnn.config.settings import RunSettings
from ddcnn.data.augmentation import Augmentation
from ddcnn.data.batches import Subimages
from ddcnn.data.partition import partition
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.sources import Source, Split
from ddcnn.data.stored import Place, Resident
from ddcnn.decomposition import Decomposition
from ddcnn.errors import Stopped
from ddcnn.io.checkpoints import CheckpointManager
from ddcnn.io.metrics_log import Recorded, Records
from ddcnn.method.aggregate import classify_by_dnn, train_dnn
from ddcnn.method.local import train_local
from ddcnn.networks.dense import DenseNetwork
from ddcnn.networks.registry import Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.devices import choose_device
from ddcnn.parallel.seeding import Seeds
from ddcnn.training import resume
from ddcnn.training.evaluation import classify
from ddcnn.training.loop import Callback, Trainer, WrappedCallback
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe

PRETENDED = str(Path(__file__).with_name("pretended_gpu.py"))
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
KINDS = ["pretended", pytest.param("real", marks=NO_GPU)]
CPU = torch.device("cpu")
SAMPLES, BATCH, EPOCHS, CLASSES = 64, 16, 2, 4
STEPS = SAMPLES // BATCH
AUGMENTATIONS = {
    "none": Augmentation(), "flip": Augmentation(flip=True), "shift": Augmentation(shift=1), "erase": Augmentation(erase=0.5),
    "mixup": Augmentation(mixup=0.4), "all": Augmentation(True, 1, (-1,), 0.5, 0.4),
}  # fmt: skip
EVERYTHING: dict[str, Any] = {
    "label_smoothing": 0.1, "class_weights": (0.5, 1.5, 1.0, 1.0), "clip_norm": 1.0, "ema": 0.9, "warmup": 0.5, "accumulate": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A training; ``everything``: that a recipe may have."""

    network: str = "vgg3"
    dimensions: int = 2
    optimizer: str = "adamw"
    augment: str = "none"
    everything: bool = False
    resident: Resident = "device"
    precision: str = "fp32"
    capture: bool = False

    @property
    def recipe(self) -> Recipe:
        schedule, more = ("cosine", EVERYTHING) if self.everything else ("one-cycle", {})
        return Recipe(EPOCHS, BATCH, self.optimizer, 0.01, 0.01, schedule, **more)


class Trained(NamedTuple):
    """What a training has come to: loss and accuracy of each epoch, parameters, probabilities of the test images."""

    epochs: list[tuple[float, float]]
    parameters: dict[str, torch.Tensor]
    probabilities: torch.Tensor


class Dropping(nn.Sequential):
    """Its training draws on the device."""

    def __init__(self, shape: Shape):
        inputs = shape.channels * int(np.prod(shape.spatial))
        super().__init__(nn.Flatten(), nn.Linear(inputs, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, shape.classes))


@dataclass(frozen=True)
class Strict(WrappedCallback):
    """Makes every wait for a GPU an error between the first and the last step of an epoch; notes the epochs."""

    device: torch.device
    epochs: list[tuple[float, float]]

    def allow(self, allowed: bool) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default" if allowed else "error")

    def after_step(self, state: Any) -> None:
        self.allow(True)
        self.inner.after_step(state)
        self.allow(state.step >= STEPS - 1)

    def after_epoch(self, state: Any, epoch: Any) -> None:
        self.epochs.append((epoch.loss, epoch.accuracy))
        self.inner.after_epoch(state, epoch)


@pytest.fixture(scope="module")
def stores(world, tmp_path_factory) -> dict[int, PartitionedSet]:
    """Sets of images and of volumes with random pixels, by their dimensions; two subdomains each."""

    def made(shape: tuple[int, ...], grid: tuple[int, ...]) -> PartitionedSet:
        random, splits = np.random.default_rng(0), {}
        for name, samples in (("train", SAMPLES), ("test", 20)):
            images = random.integers(0, 256, (samples, *shape), dtype=np.uint8)
            splits[name] = Split(images.shape, images.dtype, np.arange(samples) % CLASSES, images.__getitem__)
        source, chosen = Source("made up", splits, tuple("abcd"), ""), {name: np.arange(len(split)) for name, split in splits.items()}
        return partition(world, source, chosen, Decomposition(shape[:-1], grid, 0, 1), tmp_path_factory.mktemp("gpu") / "set.h5")

    return {2: made((16, 32, 3), (1, 2)), 3: made((8, 8, 16, 1), (1, 1, 2))}


@pytest.fixture(scope="module")
def trained(world, stores) -> Callable[..., Trained]:
    """Trains a local CNN."""

    def train(case: Case, device: torch.device, inner: Callback = Callback()) -> Trained:
        store, recipe = stores[case.dimensions], case.recipe
        shape = Shape(store.decomposition.subdomains[0].subimage.shape, store.shape[-1], CLASSES)
        policy = DevicePolicy(device, case.precision, case.capture and device.type == "cuda")
        epochs: list[tuple[float, float]] = []
        trainer = Trainer(recipe, policy, Seeds(0, "test"), Strict(inner, device, epochs))
        train, test = (
            Subimages.load(store, split, 0, Place(device, case.resident), augmentation)
            for split, augmentation in (("train", AUGMENTATIONS[case.augment]), ("test", Augmentation()))
        )
        made = (lambda: Dropping(shape)) if case.network == "dropping" else (lambda: make(Design(case.network, 8), shape))
        network = train_local(world.alone(), trainer, made, train, np.arange(SAMPLES))
        probabilities = classify(network, test, torch.arange(20), policy)
        return Trained(epochs, {name: values.cpu() for name, values in network.state_dict().items()}, probabilities)

    return train


@pytest.fixture(scope="module")
def expected(trained) -> Callable[[Case], Trained]:
    """The same on the CPU."""
    known: dict[Case, Trained] = {}

    def of(case: Case) -> Trained:
        if case not in known:
            known[case] = trained(case, CPU)
        return known[case]

    return of


@contextmanager
def on_gpu(world, kind: str) -> Iterator[torch.device]:
    with pretended_gpu() if kind == "pretended" else nullcontext():
        try:
            yield choose_device(world, "cuda")
        finally:
            torch.cuda.set_sync_debug_mode("default")


def assert_same(found: Trained, expected: Trained) -> None:
    assert found.epochs == expected.epochs, "losses differ"
    differing = [name for name, values in expected.parameters.items() if not torch.equal(found.parameters[name], values)]
    assert not differing, f"parameters differ: {differing}"
    assert torch.equal(found.probabilities, expected.probabilities), "probabilities differ"


def assert_close(found: Trained, expected: Trained, case: Case) -> None:
    """Other kernels round otherwise, and a training amplifies it."""
    tolerance = 0.02 if case.precision == "fp32" else 0.1
    for (loss, _), (other, _) in zip(found.epochs, expected.epochs, strict=True):
        assert loss == pytest.approx(other, rel=tolerance)
    assert (found.probabilities - expected.probabilities).abs().mean() < tolerance


NETWORKS = ("vgg3", "vgg9", "resnet20", "resnet18")
CASES = [
    *(Case(network, dimensions) for network in NETWORKS for dimensions in (2, 3)),
    *(Case(network, dimensions, "sgd", "all", True) for network in NETWORKS for dimensions in (2, 3)),
    *(Case(augment=name) for name in ("flip", "shift", "erase", "mixup")),
    *(Case(augment="all", resident=resident, everything=True) for resident in ("host", "stream")),
    Case("dropping"), Case("dropping", augment="all", everything=True), Case("dropping", capture=True), Case(precision="bf16"),
    Case("vgg9", augment="all", precision="bf16"), Case("resnet20", optimizer="sgd", precision="bf16"), Case(capture=True),
    Case("resnet20", 3, "sgd", "all", True, capture=True), Case(precision="bf16", augment="flip", capture=True),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(value) for value in vars(case).values()))
def test_a_gpu_trains_as_a_cpu_does_and_no_step_waits_for_it(world, trained, expected, case, kind):
    wanted = expected(case)
    with on_gpu(world, kind) as device:
        found = trained(case, device)
    if kind == "real":
        if case.network != "dropping":  # whose random numbers are others
            assert_close(found, wanted, case)
    else:
        assert_same(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interface", ["probabilities", "logits", "features"])
def test_so_does_the_dnn(world, interface, kind):
    random = np.random.default_rng(0)
    values, labels = random.random((SAMPLES, 2, 6), dtype=np.float32), np.arange(SAMPLES) % CLASSES

    def make_dnn() -> DenseNetwork:
        return DenseNetwork(interface, 2, 6, CLASSES if interface == "features" else 6)

    def run(device: torch.device) -> tuple[list, np.ndarray]:
        epochs: list[tuple[float, float]] = []
        policy = DevicePolicy(device, "fp32")
        dnn = train_dnn(Trainer(Case().recipe, policy, Seeds(0, "dnn"), Strict(Callback(), device, epochs)), make_dnn, values, labels)
        return epochs, np.concatenate([classify_by_dnn(dnn, values, policy), classify_by_dnn(dnn, values[:, :1], policy, [0])])

    wanted = run(CPU)
    with on_gpu(world, kind) as device:
        found = run(device)
    if kind == "real":
        np.testing.assert_allclose(found[1], wanted[1], atol=0.02)
    else:
        assert found[0] == wanted[0] and np.array_equal(found[1], wanted[1])


def test_in_half_precision_with_scaled_gradients_no_step_waits(world, trained, expected):
    case = Case(everything=True)
    wanted = expected(case)
    with on_gpu(world, "pretended") as device:
        found = trained(Case(everything=True, precision="fp16"), device)
    assert_close(found, wanted, Case(precision="fp16"))


RESUMED = Case("dropping", augment="shift", everything=True)


def stopped_and_resumed(world, trained, folder: Path, device: torch.device) -> Trained:
    """Stopped after the second step of the second epoch; its first epoch is not told."""
    alone = world.alone()

    def go_on(stop: int) -> Trained:
        calls, records = count(1), Records(Recorded(), "dnn", None, True, alone.timeline, lambda: None)
        checkpoints = CheckpointManager(alone, folder, {}, 2)
        inner = resume.Checkpointer(checkpoints, RESUMED.recipe, SAMPLES, records, RunSettings(), lambda: next(calls) == stop)
        return trained(RESUMED, device, inner)

    with pytest.raises(Stopped):
        go_on(STEPS + 2)
    return go_on(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(world, trained, expected, tmp_path, kind):
    with on_gpu(world, kind) as device:
        wanted = expected(RESUMED) if kind == "pretended" else trained(RESUMED, device)
        found = stopped_and_resumed(world, trained, tmp_path, device)
    wanted = wanted._replace(epochs=wanted.epochs[1:])
    if kind == "real":
        assert_close(found, wanted, RESUMED)
    else:
        assert_same(found, wanted)


def in_batches(change: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[pytest.MonkeyPatch], None]:
    """Plants something that is done to the images and the labels of every batch."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        batch = Subimages.batch
        patch.setattr(Subimages, "batch", lambda *args, **kwargs: change(*batch(*args, **kwargs)))

    return plant


def beside(work: Callable[[Any, Any], object]) -> Callable[[pytest.MonkeyPatch], None]:
    """Plants something that is done in every step."""
    return in_batches(lambda images, labels: (work(images, labels), (images, labels))[1])


def class_weights_on_the_host(patch: pytest.MonkeyPatch) -> None:
    cross_entropy = nn.functional.cross_entropy

    def planted(logits, labels, weight=None, **more):
        return cross_entropy(logits, labels, weight=weight.cpu(), **more)

    patch.setattr(nn.functional, "cross_entropy", planted)


def numpy_without_a_copy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resume, "_network_arrays", lambda module: {name: one.detach().numpy() for name, one in module.state_dict().items()})


def optimizer_on_the_host(patch: pytest.MonkeyPatch) -> None:
    restore = resume._restore_optimizer

    def planted(module, optimizer, arrays):
        restore(module, optimizer, arrays)
        for values in optimizer.state.values():
            values.update({name: value.cpu() for name, value in values.items()})

    patch.setattr(resume, "_restore_optimizer", planted)


def random_state_not_restored(patch: pytest.MonkeyPatch) -> None:
    restore = resume._restore_running

    def planted(state, arrays):
        restore(state, {name: array for name, array in arrays.items() if name != "random/cuda"})

    patch.setattr(resume, "_restore_running", planted)


MISTAKES = {  # what is planted, and what is said of it
    "images on the host": (in_batches(lambda images, labels: (images.cpu(), labels)), "on the same device"),
    "labels on the host": (in_batches(lambda images, labels: (images, labels.cpu())), "on the same device"),
    "class weights on the host": (class_weights_on_the_host, "on the same device"),
    "optimizer on the host after resume": (optimizer_on_the_host, "on the same device"),
    "random state lost on resume": (random_state_not_restored, "differ"),
    "numpy of a device tensor": (numpy_without_a_copy, "convert cuda:0 device type tensor to numpy"),
    "the host's generator": (
        beside(lambda images, labels: torch.rand(2, generator=torch.Generator(), device=images.device)), "'cuda' device type for generator"
    ),
    "pinning on the device": (beside(lambda images, labels: images.pin_memory()), "cannot pin"),
    "pickling": (beside(lambda images, labels: pickle.dumps(labels)), "pickled"),
    "item in a step": (beside(lambda images, labels: labels.sum().item()), "synchronizing CUDA operation: item"),
    "a value in a condition": (beside(lambda images, labels: bool((labels > 0).any())), "synchronizing CUDA operation: item"),
    "tolist in a step": (beside(lambda images, labels: labels.tolist()), "synchronizing CUDA operation: tolist"),
    "copy from pageable memory": (
        beside(lambda images, labels: torch.zeros(2).to(images.device, non_blocking=True)), "synchronizing CUDA operation: copy to the GPU"
    ),
    "copy to the host": (beside(lambda images, labels: labels.cpu()), "synchronizing CUDA operation: copy to the host"),
    "index by booleans": (beside(lambda images, labels: images[labels > 0]), "synchronizing CUDA operation: index by booleans"),
    "nonzero in a step": (beside(lambda images, labels: labels.nonzero()), "synchronizing CUDA operation: nonzero"),
    "equal in a step": (beside(lambda images, labels: torch.equal(labels, labels)), "synchronizing CUDA operation: equal"),
    "synchronize in a step": (beside(lambda images, labels: torch.cuda.synchronize()), "synchronizing CUDA operation: synchronize"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(world, trained, expected, tmp_path, monkeypatch, mistake):
    wanted, (plant, said) = expected(RESUMED), MISTAKES[mistake]
    with on_gpu(world, "pretended") as device, pytest.raises((RuntimeError, TypeError, AssertionError), match=said):
        plant(monkeypatch)
        found = stopped_and_resumed(world, trained, tmp_path, device)
        assert_same(found, wanted._replace(epochs=wanted.epochs[1:]))


def test_a_wait_is_counted_with_its_place_and_what_a_gpu_does_by_itself_is_none(world, trained):
    with pretended_gpu() as gpu:
        there = torch.arange(6.0, device="cuda:0").reshape(2, 3)
        pinned = torch.ones(2, 3).pin_memory()
        assert pinned.is_pinned() and torch.empty(2, pin_memory=True).is_pinned() and not torch.empty(2).is_pinned()
        for work in (
            lambda: there.add_(pinned.to("cuda:0", non_blocking=True)), lambda: there.copy_(pinned, non_blocking=True),
            lambda: pinned[:1].to("cuda:0", non_blocking=True), lambda: there[there[:, 0].long() * 0], lambda: there.sum(),
            lambda: torch.where(there > 0, there, 2), lambda: there * torch.tensor(2.0),
        ):  # fmt: skip
            work()
            assert not gpu.waits
        waiting: dict[str, Callable[[], object]] = {
            "item": lambda: float(there.sum()), "tolist": there.tolist, "nonzero": there.nonzero, "unique": there.unique,
            "equal": lambda: torch.equal(there, there), "copy to the host": there.cpu, "copy to the GPU": lambda: pinned.to("cuda:0"),
            "masked_select": lambda: there.masked_select(there > 0), "index by booleans": lambda: there[there > 0],
            "index on the host": lambda: there[torch.tensor([1])], "synchronize": torch.cuda.synchronize,
        }  # fmt: skip
        for what, wait in waiting.items():
            wait()
            assert gpu.waits.pop((what, "elsewhere")) == 1 and not gpu.waits, what
        trained(Case(), torch.device("cuda", 0))
        assert gpu.operations > 500
        at_the_end = sum(number for (what, place), number in gpu.waits.items() if what == "item" and place.startswith("training/state.py:"))
        assert at_the_end == 2 * EPOCHS  # loss and accuracy


def test_a_gpu_draws_by_itself():
    with pretended_gpu():
        torch.manual_seed(3)
        here, there = torch.rand(4), torch.rand(4, device="cuda:0")
        assert torch.equal(there.cpu(), here)  # of the same seed
        state = torch.cuda.get_rng_state()
        more = torch.rand(4, device="cuda:0").cpu()
        assert not torch.equal(more, here)
        torch.rand(9)
        torch.cuda.set_rng_state(state)
        assert torch.equal(torch.rand(4, device="cuda:0").cpu(), more)


def test_a_graph_computes_what_has_been_recorded_with_new_values():
    with pretended_gpu():
        images, total, running = (torch.full((4, 2), float(k), device="cuda:0") for k in (1, 0, 5))
        weights: Any = torch.ones(2, device="cuda:0", requires_grad=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = (images.expand(2, 4, 2).mean(0) * weights).sum()
            loss.backward()
            total.add_(images.t().t())
            running.copy_(images)
            with pytest.raises(RuntimeError, match="capturing"):
                loss.item()
        assert total.sum().item() == 0 and running.mean().item() == 5
        for value in (2, 3):
            images.fill_(value)
            graph.replay()
            assert (loss.item(), weights.grad.tolist(), running.mean().item()) == (8 * value, [4 * value] * 2, value)
        assert total.mean().item() == 5


def test_afterwards_there_is_no_gpu_any_more():
    before = torch.cuda.is_available, torch.tensor, torch.autocast, threading.Thread.run, torch.cuda.synchronize
    with pytest.raises(KeyError), pretended_gpu():
        assert torch.cuda.is_available() and torch.zeros(2, device="cuda:0").is_cuda
        raise KeyError
    assert (torch.cuda.is_available, torch.tensor, torch.autocast, threading.Thread.run, torch.cuda.synchronize) == before
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            torch.zeros(2, device="cuda:0")


# whole commands, each on the CPU and on the pretended GPU


class Sides:
    """The same run in two folders, on the CPU and on the pretended GPU."""

    def __init__(self, folder: Path, ranks: int, **options: object):
        self.folder, self.ranks = folder, ranks
        for side in ("cpu", "cuda"):
            (folder / side).mkdir()
        given = {"precision": "fp32", "width": 8, "partitions": "../sets", "output": "run", "test_samples": 60, "coherent_epochs": 1}
        self.options = quick(**given | options)

    def start(self, side: str, *arguments: str, code: int = 0, interrupted: tuple | None = None, **environment: str):
        script = PRETENDED if side == "cuda" else ""
        done = on_ranks(self.ranks, *arguments, cwd=self.folder / side, script=script, interrupted=interrupted, **environment)
        assert done.returncode == code, done.stderr
        return done

    def run(self, side: str, *more: str, **kwargs) -> None:
        self.start(side, "run", "--device", side, *self.options, *more, **kwargs)

    def go_on(self, **kwargs) -> None:
        self.start("cuda", "run", "--output", "run", "--resume", **kwargs)

    def assert_same(self) -> None:
        assert_same_outcome(outcome(self.folder / "cuda"), outcome(self.folder / "cpu"))

    def both(self, command: str, name: str, *arguments: str) -> list[Path]:
        """Files that a command makes of the two runs."""
        for side in ("cpu", "cuda"):
            self.start(side, command, "run", *arguments, "--output", name, *(("--device", side) if command == "predict" else ()))
        return [self.folder / side / name for side in ("cpu", "cuda")]

    def assert_same_predictions(self, source: str, method: str, *more: str) -> None:
        one, other = self.both("predict", f"{method}.csv", source, "--method", method, *more)
        assert one.read_bytes() == other.read_bytes()


def test_all_methods_with_a_stop_in_two_of_them_then_predict_and_export(tmp_path):
    sides = Sides(
        tmp_path, 1, methods="vote,average,dnn,coherent,transfer,global,spatial", interface="logits", share="all", auxiliary=0.3,
        augment="flip+shift+erase+mixup", shift=1, overlap=1, batch_size=32, clip_norm=1, ema=0.9,
        class_weights="balanced", keep="best", global_epochs=1,
    )  # fmt: skip
    sides.run("cpu")
    sides.run("cuda", interrupted=("local-0002", 5, 0, "SIGUSR1"), code=75)
    sides.go_on(interrupted=("transfer", 3, 0, "SIGUSR1"), code=75)
    sides.go_on()
    sides.assert_same()
    for method in ("vote", "transfer", "global"):
        sides.assert_same_predictions("digits", method, "--samples", "60")
    one, other = map(load_file, sides.both("export", "network.safetensors", "--method", "transfer"))
    assert one and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_maps_shared_parameters_and_streams_on_two_ranks(tmp_path):
    sides = Sides(
        tmp_path, 2, methods="vote,dnn,coherent,transfer,spatial", grid="1x2", image_size=16, interface="maps", share="all",
        auxiliary=0.3, augment="flip+shift", shift=1, resident="stream", recompute=True, accumulate=2, batch_size=32,
        epochs=1, global_epochs=1, train_samples=100,
    )  # fmt: skip
    sides.run("cpu")
    sides.run("cuda")
    sides.assert_same()
    sides.assert_same_predictions("digits", "transfer", "--samples", "60", "--divide", "subdomains")


def test_volumes_from_the_hosts_memory(tmp_path):
    sides = Sides(
        tmp_path, 1, data="synthetic:8x8x8x4x100", volumes=True, train_samples=None, grid="1x1x2", network="resnet20", optimizer="sgd",
        interface="features", methods="average,dnn,coherent,global", resident="host", batch_size=16, augment="flip+mixup",
        epochs=1, global_epochs=1, test_samples=None,
    )  # fmt: skip
    sides.run("cpu")
    sides.run("cuda")
    sides.assert_same()
    sides.assert_same_predictions("synthetic:8x8x8x4x100", "coherent")


def test_a_run_waits_for_its_epochs_and_not_for_its_steps(tmp_path):
    """Kernel by kernel, where the other runs record CUDA graphs; with classifications out of fold."""
    sides = Sides(tmp_path, 1, grid="1x2", methods="average,dnn,global", dnn_data="out-of-fold", folds=2, batch_size=8)
    sides.run("cpu")
    sides.run("cuda", "--no-capture", PRETENDED_GPU_WAITS=str(tmp_path / "waits"))
    sides.assert_same()
    told = json.loads((tmp_path / "waits.0").read_text("utf-8"))
    assert told["operations"] > 10000
    steps = 3 * (180 // 8)  # of global, which has the fewest
    per_tensor = ("training/resume.py", "io/parameters.py", "training/precision.py")  # where networks are saved, and come to the GPU
    often = {(what, place): number for what, place, number in told["waits"] if number >= steps and not place.startswith(per_tensor)}
    assert not often
    assert "pretended GPU" in str(sides.start("cuda", "info"))

"""What a GPU says of ddcnn: is it right, does anything wait, how fast is it, and what do several subdomains on one GPU cost?

    python benchmarks/gpu.py [--parts environment,loop] [--data-root data] [--device cpu] [--limit 240] [--output gpu.json]

Each part (see ``PARTS``) runs in a process of its own with a time limit, so that a failure does not hide the
others, and what a part has found until then is kept. Writes one JSON file after every part, and prints a table. The part ``cifar10`` needs
``--data-root``; ``mps`` starts NVIDIA's multi-process service as a daemon of its own, and ends it.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import torch
from engine import Bare, random_subimages, ratios, spread, timed_in_turn
from torch import distributed
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import ddcnn
from ddcnn.__main__ import STOPPED
from ddcnn.__main__ import main as ddcnn_main
from ddcnn.data import batches as data_batches
from ddcnn.data.augmentation import Augmentation
from ddcnn.errors import InputError
from ddcnn.networks.registry import NETWORKS, Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.devices import choose_device, compute_deterministically, exact
from ddcnn.parallel.environment import about_gpu
from ddcnn.parallel.process_group import process_group
from ddcnn.parallel.seeding import Seeds
from ddcnn.parallel.world import World
from ddcnn.training.data_parallel import all_reduce
from ddcnn.training.loop import Callback, Trainer, build
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe
from ddcnn.training.resume import Checkpointer
from ddcnn.training.state import Epoch, TrainState
from ddcnn.training.step import WARM_UP

BATCH, IMAGES = 128, 390 * 128  # as many steps an epoch as CIFAR-10 has
REPLAYS, CHECKED = 100, 1024  # of a graph in ``streams``; images of the parts that compare
EPOCHS = {"eager": 2, "captured": 6}  # of a training in ``loop``
PRECISIONS = ("bf16", "fp32")
RANKS = (1, 4, 16)  # that share the GPU, in ``ranks`` ...
SHARING = (2, 4)  # ... and in ``sums``
SUMMED = {"fp32": torch.float32, "bf16": torch.bfloat16}
METHODS = "vote,average,dnn,coherent,transfer,global,spatial"
APART = 5e-4  # what parameters may be from those in double precision, see ``methods``
GRACE, QUIT = 30.0, 10.0  # seconds that a part has to end after its limit, and in it the multi-process service
Found = Iterator[tuple[str, Any]]


def new(name: str, spatial: tuple[int, ...], divisor: float, policy: DevicePolicy, width: int = 32, number: int = 0) -> Any:
    return build(lambda: make(Design(name, width, divisor), Shape(spatial, 3, 10)), Seeds(0, "benchmark", number), policy)


def environment(device: torch.device) -> Found:
    """GPU, driver and libraries."""
    yield "ddcnn", ddcnn.__version__
    yield "python", platform.python_version()
    yield "torch", torch.__version__
    yield "cores", len(os.sched_getaffinity(0))
    if device.type == "cuda":
        yield from about_gpu(device).items()


def agreement(device: torch.device) -> Found:
    """Error of logits and of gradients, relative in the 2-norm, against float64 on the CPU: on the GPU, and on the CPU."""
    for name in NETWORKS:
        for spatial in ((32, 32), (16, 16, 16)):
            expected = gradients(name, spatial, DevicePolicy(torch.device("cpu"), "fp32"), torch.float64)
            for precision in PRECISIONS:
                for one in (device, torch.device("cpu")):
                    found = gradients(name, spatial, DevicePolicy(one, precision))
                    apart = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
                    yield f"{name} {'x'.join(map(str, spatial))} {precision} {one.type}", [f"{each:.1e}" for each in apart]


def gradients(name: str, spatial: tuple[int, ...], policy: DevicePolicy, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Logits, and the gradients of all parameters as one vector, on the CPU in double precision."""
    network, random = new(name, spatial, 1, policy, width=16).to(dtype), torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, *spatial, generator=random, dtype=torch.float64).to(policy.device, dtype)
    labels = torch.randint(0, 10, (32,), generator=random).to(policy.device)
    with policy.autocast():
        logits = network(images)
    functional.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels).backward()
    gradient = torch.cat([one.grad.flatten() for one in network.parameters() if one.grad is not None])
    return [logits.detach().cpu().double(), gradient.cpu().double()]


class Strict(Callback):
    """Makes PyTorch refuse whatever waits for the GPU between the first and the last step of an epoch, but for the recording."""

    def __init__(self, steps: int):
        self.steps = steps

    def after_step(self, state: TrainState) -> None:
        recording = state.epoch == 1 and state.step == WARM_UP  # the next step records, which begins with a wait
        torch.cuda.set_sync_debug_mode("error" if state.step < self.steps - 1 and not recording else "default")


def waits(device: torch.device) -> Found:
    """The first thing in a step that waits for the GPU, if something does."""
    for name, augmentation in {"plain": Augmentation(), "augmented": Augmentation(True, 2, erase=0.5, mixup=0.2)}.items():
        for optimizer in ("adamw", "sgd"):
            for capture in (False, True):
                policy = DevicePolicy(device, "bf16", capture)
                samples, chosen = random_subimages(CHECKED, (16, 16), device, augmentation), torch.arange(CHECKED)
                recipe = Recipe(2, 64, optimizer, 0.01, 0.01, "one-cycle", ema=0.99)
                said = "nothing"
                try:
                    Trainer(recipe, policy, Seeds(0, "benchmark"), Strict(CHECKED // 64)).train(
                        new("vgg9", (16, 16), 2, policy), samples, chosen
                    )
                except (RuntimeError, InputError) as error:
                    said = str(error).splitlines()[0]
                torch.cuda.set_sync_debug_mode("default")
                yield f"{name}, {optimizer}{', captured' if capture else ''}", said


def capture(device: torch.device) -> Found:
    """Whether training with captured steps ends with the parameters of eager ones, bit for bit, with deterministic kernels."""
    compute_deterministically()
    for name in ("vgg3", "vgg9", "resnet20"):
        for precision in PRECISIONS:
            ends = []
            for captured in (False, False, True):
                policy = DevicePolicy(device, precision, captured)
                network = new(name, (16, 16), 1, policy, width=16)
                samples, chosen = random_subimages(CHECKED, (16, 16), device, Augmentation(True, 2)), torch.arange(CHECKED)
                recipe = Recipe(2, 64, "adamw", 0.01, 0.01, "one-cycle", clip_norm=1.0)
                Trainer(recipe, policy, Seeds(0, "benchmark")).train(network, samples, chosen)
                ends.append(torch.cat([one.detach().flatten() for one in network.parameters()]))
            for side, one in (("eager again", ends[1]), ("captured", ends[2])):
                yield (
                    f"{name}, {precision}, {side}",
                    "the same" if torch.equal(one, ends[0]) else f"{(one - ends[0]).abs().max():.1e} apart",
                )


class Pace(Callback):
    """Notes when each epoch ends, with all that the GPU has to do in it."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def loop(device: torch.device) -> Found:
    """Images a second of ddcnn's loop and of bare ones, eager and captured: local CNNs, and the undecomposed CNN.

    Of ddcnn from the second epoch on; ``in all`` is a whole training, with the recording.
    """
    for precision in PRECISIONS:
        for title, spatial, divisor in (("16x16, half the width", (16, 16), 2), ("32x32", (32, 32), 1)):
            samples = random_subimages(IMAGES, spatial, device)
            batches = [(samples.batch(index)[0], samples.labels[index]) for index in torch.arange(IMAGES, device=device).split(BATCH)]
            sides: dict[str, Callable[[], object]] = {}
            paces: dict[str, list[float]] = {"ddcnn eager": [], "ddcnn captured": []}

            def train(kind: str, trainer: Trainer, network: Any) -> None:
                pace = Pace()
                Trainer(trainer.recipe, trainer.policy, trainer.seeds, pace).train(network, samples, torch.arange(IMAGES))  # noqa: B023
                paces[f"ddcnn {kind}"].append((len(pace.ends) - 1) * IMAGES / (pace.ends[-1] - pace.ends[0]))  # noqa: B023

            for kind in EPOCHS:
                policy = DevicePolicy(device, precision, kind == "captured")
                trainer = Trainer(Recipe(EPOCHS[kind], BATCH, "adamw", 0.005, 0.01, "one-cycle"), policy, Seeds(0, "benchmark"))
                sides[f"ddcnn {kind}"] = partial(train, kind, trainer, new("vgg9", spatial, divisor, policy))
                network = new("vgg9", spatial, divisor, policy)
                bare = BareCaptured(network, policy, *batches[0]) if policy.capture else Bare(network, policy)
                sides[f"bare {kind}"] = partial(waited, bare.train, batches * EPOCHS[kind])
            seconds = timed_in_turn(sides, 2)
            rates = {side: [EPOCHS[side.split()[1]] * IMAGES / one for one in times] for side, times in seconds.items()}
            found: dict[str, Any] = {f"{side}, in all": round(spread(values)["median"]) for side, values in rates.items()}
            steady = {side: values[1:] for side, values in paces.items()}
            found |= {side: round(spread(values)["median"]) for side, values in steady.items()}
            for kind in EPOCHS:
                found[f"ddcnn / bare, {kind}"] = ratios(steady[f"ddcnn {kind}"], rates[f"bare {kind}"])
            yield f"VGG9, {title}, {precision}", found


def waited(work: Callable[..., object], *arguments: Any) -> None:
    work(*arguments)
    torch.cuda.synchronize()


class BareCaptured(Bare):
    """The same with all of a step in one CUDA graph, the optimizer too."""

    def __init__(self, network: Any, policy: DevicePolicy, images: torch.Tensor, labels: torch.Tensor):
        super().__init__(network, policy)
        self.images, self.labels = images.clone(), labels.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(self.images, self.labels)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph, stream=stream):
            self.step(self.images, self.labels)

    def train(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for images, labels in batches:
            self.images.copy_(images)
            self.labels.copy_(labels)
            self.graph.replay()


def streams(device: torch.device) -> Found:
    """Steps a second of N small local CNNs (bare, captured): one after the other, and each on a stream of its own."""
    policy = DevicePolicy(device, "bf16", True)
    for number in (4, 16):
        images, labels = torch.randn(BATCH, 3, 8, 8, device=device), torch.randint(0, 10, (BATCH,), device=device)
        loops = [BareCaptured(new("vgg9", (8, 8), number**0.5, policy, number=k), policy, images, labels) for k in range(number)]
        own = [torch.cuda.Stream() for _ in loops]

        def in_turn() -> None:
            for one in loops:  # noqa: B023
                for _ in range(REPLAYS):
                    one.graph.replay()
            torch.cuda.synchronize()

        def together() -> None:
            for _ in range(REPLAYS):
                for one, stream in zip(loops, own, strict=True):  # noqa: B023
                    with torch.cuda.stream(stream):
                        one.graph.replay()
            torch.cuda.synchronize()

        seconds = timed_in_turn({"in turn": in_turn, "streams": together}, 3)
        yield (
            f"{number} local CNNs of 8x8",
            {side: round(REPLAYS * number / spread(values)["median"]) for side, values in seconds.items()}
            | {"streams / in turn": ratios(seconds["in turn"], seconds["streams"])},
        )


def ranks(device: torch.device, mps: bool = False) -> Found:
    """Seconds of the local phase of 16 subdomains of 8x8 pixels, captured, on so many ranks that share the GPU."""
    common = ["--data", "synthetic:32x32x3x10x8192", "--grid", "4x4", "--methods", "vote", "--precision", "bf16", "--evaluate-every", "0"]
    with multi_process_service() if mps else no_service() as service:
        for number in RANKS:
            local = run(device, number, [*common, "--epochs", "48"], service)["phases"]["local"]
            memory = local.get("max_rank_gpu_reserved_bytes") or 0
            yield f"{number} ranks", [round(local["seconds"], 2), f"{memory / 1e6:.0f} MB a rank"]


def no_service() -> AbstractContextManager[dict[str, str]]:
    return nullcontext({})


@contextmanager
def multi_process_service() -> Iterator[dict[str, str]]:
    """NVIDIA's multi-process service, by what its users need in their environment; it ends before this process does, at its limit too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        control = partial(subprocess.run, env=os.environ | own, text=True)
        try:
            control(["nvidia-cuda-mps-control", "-d"], check=True)
            yield own
        finally:
            with suppress(OSError, subprocess.TimeoutExpired):  # it waits for its users, of which some may be about to end
                control(["nvidia-cuda-mps-control"], input="quit\n", timeout=QUIT)
            with suppress(OSError, ValueError):  # no such file: it has ended
                os.kill(int(Path(own["CUDA_MPS_PIPE_DIRECTORY"], "nvidia-cuda-mps-control.pid").read_text("utf-8")), signal.SIGKILL)
            signal.signal(signal.SIGTERM, before)


def run(
    device: torch.device, number: int, options: list[str], environment: Mapping[str, str] = {}, way: str = ""
) -> dict[str, Any]:  # fmt: skip
    """The results of ``ddcnn run`` on so many ranks, in one of the ``WAYS``, with the parameters of its networks.

    A run that stops is resumed; ``stops``: how often.
    """
    with tempfile.TemporaryDirectory() as folder:
        threads, stops = max(1, min(4, len(os.sched_getaffinity(0)) // number)), 0
        arguments = ["--partitions", f"{folder}/sets", "--no-figures", "--progress", "none", "--device", device.type]
        program = [__file__, "ddcnn", way] if way else ["-m", "ddcnn"]
        begin = partial(start, number, program, environment=environment)
        done = begin(["run", "--output", f"{folder}/run", *options, *arguments, "--threads", str(threads)])
        while done.returncode == STOPPED:
            stops += 1
            done = begin(["run", "--output", f"{folder}/run", "--resume"])
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or done.stdout.strip())[-600:])
        results = json.loads(Path(folder, "run", "results.json").read_text("utf-8"))
        networks = {path.stem: parameters(path) for path in sorted(Path(folder, "run", "checkpoints").glob("*.h5"))}
        return results | {"networks": networks, "stops": stops}


def start(number: int, program: list[str], arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A program of this Python on so many ranks, when it has ended."""
    launch = ["mpirun", "-n", str(number)] if number > 1 else []
    command = [*launch, sys.executable, *program, *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def parameters(path: Path) -> dict[str, np.ndarray]:
    """Of a network that has been trained, with its running averages."""
    with h5py.File(path) as file:
        return {name: values[...] for name, values in file["parameters"].items()}


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs have the same networks."""
    known, found = (
        {(key, name): each.tobytes() for key, own in run["networks"].items() for name, each in own.items()} for run in (one, other)
    )
    if not known:
        raise RuntimeError("no parameters to compare")
    return known == found


@contextmanager
def in_double() -> Iterator[None]:
    """ddcnn computes in double precision, on CPUs: what single precision can be compared with."""
    place, normalisation = DevicePolicy.place, data_batches._normalisation

    def placed(policy: DevicePolicy, network: Any) -> Any:
        network = place(policy, network).double()
        network.register_forward_pre_hook(lambda _, inputs: tuple(one.double() if torch.is_tensor(one) else one for one in inputs))
        return network

    def normalised(store: Any, device: torch.device) -> Any:
        return tuple(values.double() for values in normalisation(store, device))

    with mock.patch.object(DevicePolicy, "place", placed), mock.patch.object(data_batches, "_normalisation", normalised):
        yield


@contextmanager
def stopping() -> Iterator[None]:
    """ddcnn is told to stop in the middle of the second epoch of every training that begins here, as SLURM would tell it."""
    after_step, restore = Checkpointer.after_step, Checkpointer.restore
    new: set[Checkpointer] = set()

    def restored(self: Checkpointer, state: TrainState) -> None:
        restore(self, state)
        new.update([self] if (state.epoch, state.step) == (1, 0) else [])

    def stepped(self: Checkpointer, state: TrainState) -> None:
        if self in new and (state.epoch, state.step) == (2, 2):
            os.kill(os.getpid(), signal.SIGUSR1)
        after_step(self, state)

    with mock.patch.object(Checkpointer, "restore", restored), mock.patch.object(Checkpointer, "after_step", stepped):
        yield


WAYS = {"double": in_double, "stopping": stopping}  # to run ddcnn
FEW_STEPS = ["--data", "digits", "--train-samples", "200", "--grid", "1x2", "--network", "vgg3", "--width", "8", "--batch-size", "32"]
FEW_STEPS += ["--epochs", "2", "--dnn-epochs", "2", "--transfer-epochs", "2", "--coherent-epochs", "2", "--global-epochs", "2"]
FEW_STEPS += ["--augment", "flip+shift", "--shift", "1", "--precision", "fp32"]  # 12 steps a training, 9 of them recorded


def methods(device: torch.device) -> Found:
    """How far parameters are from those of the CPU in double precision after a few steps of all methods, relative in the 2-norm.

    On the CPU, rounding to single precision makes that 5e-8 to 9e-5 (9 seeds), and to bfloat16 1e-3 to 4e-2. So the GPU is wrong above
    ``APART`` and ten times what the CPU has. Accuracies would not tell: after a whole training rounding alone changes them by points.
    """
    cpu, wrong = torch.device("cpu"), []
    groups: dict[str, tuple[int, list[str], dict[str, list[str]]]] = {
        "one rank": (1, [], {"": [], ", eager": ["--no-capture"]} if device.type == "cuda" else {"": []}),
        "two ranks, maps, shared, streamed": (2, ["--interface", "maps", "--share", "all", "--resident", "stream"], {"": []}),
    }
    for group, (number, more, sides) in groups.items():
        options = [*FEW_STEPS, "--methods", METHODS, *more]
        expected = run(cpu, number, options, way="double")["networks"]
        allowed = {name: max(APART, 10 * value) for name, value in apart(run(cpu, number, options)["networks"], expected).items()}
        yield f"{group}, CPU: at most", max(allowed.values()) / 10
        for side, own in sides.items():
            found = apart(run(device, number, [*options, *own])["networks"], expected)
            wrong += [f"{group}{side}: {name}" for name, value in found.items() if not value <= allowed[name]]
            yield f"{group}{side}", {name: f"{value:.1e}" for name, value in found.items()}
    if wrong:
        raise RuntimeError(f"too far from the CPU: {'; '.join(wrong)}")


def apart(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """The relative distance in the 2-norm, network by network."""
    if not expected or found.keys() != expected.keys():
        raise RuntimeError(f"networks {sorted(found)}, where there should be {sorted(expected)}")
    vectors = [{key: np.concatenate([own[name].ravel() for name in sorted(own)]) for key, own in one.items()} for one in (found, expected)]
    return {key: float(np.linalg.norm(vectors[0][key] - one) / np.linalg.norm(one)) for key, one in vectors[1].items()}


def bits(device: torch.device) -> Found:
    """Whether two equal runs end with the same parameters, bit for bit, with and without ``--deterministic``, and what it costs."""
    for more in ([], ["--deterministic"]):
        options = ["--data", "synthetic:32x32x3x10x8192", "--epochs", "3", "--methods", "dnn,global", "--evaluate-every", "0", *more]
        one, other = (run(device, 1, options) for _ in range(2))
        seconds = {phase: round(other["phases"][phase]["seconds"], 2) for phase in ("local", "global")}
        yield " ".join(more) or "as it is", seconds | {"the same bits": (same := same_bits(one, other))}
        if more and not same:
            raise RuntimeError("two equal runs with --deterministic differ")


def resume(device: torch.device) -> Found:
    """Whether a run that stops once in every training, and is resumed in a new process, ends with the bits of one that does not stop."""
    options = [*FEW_STEPS, "--methods", METHODS, "--augment", "flip+shift+erase+mixup", "--ema", "0.9", "--deterministic"]
    whole, stopped = run(device, 1, options), run(device, 1, options, way="stopping")
    yield "stops", stopped["stops"]
    yield "the same bits", (same := same_bits(whole, stopped))
    if not same or not stopped["stops"]:
        raise RuntimeError("resumed otherwise than without a stop" if stopped["stops"] else "it did not stop")


def sums(device: torch.device) -> Found:
    """Elements of a gradient that are wrong after ddcnn's all-reduce in DistributedDataParallel, while the GPU has other work to do, too.

    Over NCCL on as many ranks as there are GPUs, and over gloo on ranks that share one; against NumPy's sum, as far as rounding allows.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    one = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    sides: list[tuple[str, int, dict[str, str]]] = [("nccl", gpus, {})] if gpus > 1 else []
    if not sides:
        yield "nccl", f"skipped, since it needs a GPU for each rank, and here is {gpus or 'none'}"
    wrong = False
    for backend, number, own in [*sides, *(("gloo", number, one) for number in SHARING)]:
        done = start(number, [__file__, "summing"], [device.type], own)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or done.stdout.strip())[-600:])
        found = json.loads(done.stdout.splitlines()[-1])
        yield f"{backend}, {number} ranks", found
        wrong |= found["backend"] != backend or any(found[kind]["wrong"] or not found[kind]["elements"] for kind in SUMMED)
    if wrong:
        raise RuntimeError("sums of gradients are wrong, or not by what they should be")


def summing(kind: str) -> None:
    """A rank of ``sums``; prints what has been found on all of them."""
    world = World()
    device = choose_device(world, kind)
    with process_group(world, device):
        found = {"backend": distributed.get_backend()} | {name: summed(world, device, dtype) for name, dtype in SUMMED.items()}
    if world.rank == 0:
        print(json.dumps(found), flush=True)


def summed(world: World, device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    """How many elements of gradients have been compared on all ranks, and how many of them were wrong."""
    on_gpu = device.type == "cuda"
    network = new("vgg9", (32, 32), 1, DevicePolicy(device, "fp32"), width=64 if on_gpu else 8).to(dtype)
    parallel = DistributedDataParallel(network, [device] if on_gpu else None)
    own: list[tuple[torch.Tensor, torch.Tensor]] = []  # parameters, and what this rank gives to their sums

    def hook(world: World, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        for one, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            own.append((one, gradient.clone().as_strided(one.shape, one.stride())))  # a bucket's are in the order of the memory
        return all_reduce(world, bucket)

    parallel.register_comm_hook(world, hook)
    vars(parallel)["goes_last"] = distributed.group.WORLD  # as in ddcnn's own training
    random, elements, wrong = torch.Generator().manual_seed(world.rank), 0, 0
    load = torch.randn(4096, 4096, device=device) if on_gpu else torch.ones(8, 8)
    sides = (torch.cuda.current_stream(), torch.cuda.Stream()) if on_gpu else ()
    for _ in range(30 if on_gpu else 2):
        own.clear()
        network.zero_grad(set_to_none=True)
        images, labels = torch.randn(16, 3, 32, 32, generator=random).to(device, dtype), torch.randint(0, 10, (16,), generator=random)
        loss = functional.cross_entropy(parallel(images).float(), labels.to(device))
        for stream in sides:
            with torch.cuda.stream(stream):
                for _ in range(8):  # 20 ms of an H100
                    torch.mm(load, load)
        loss.backward()
        read = [one.grad.clone() for one, _ in own if one.grad is not None]  # queued at once, as an optimizer's step
        for found, (_, given) in zip(read, own, strict=True):
            each = world.all_gather(given.flatten().double().cpu().numpy())  # (ranks, elements)
            # as many roundings as ranks: a division and sums, in whatever order
            allowed = world.size * (torch.finfo(dtype).eps * np.abs(each).mean(0) + torch.finfo(dtype).tiny)
            wrong += int((~(np.abs(found.flatten().double().cpu().numpy() - each.mean(0)) <= allowed)).sum())
            elements += each.shape[1]
    return {name: int(world.all_gather(np.array([number])).sum()) for name, number in (("elements", elements), ("wrong", wrong))}


def cifar10(device: torch.device, root: str) -> Found:
    """CIFAR-10, four subdomains, 8 epochs of local training on all images: seconds of the phases, and accuracies."""
    options = ["--data", "cifar10", "--data-root", root, "--epochs", "8", "--methods", "vote,average,dnn", "--augment", "flip"]
    options += ["--evaluate-every", "0", "--overlap", "4"]
    for number, mps in ((1, False), (4, False), (4, True)):
        with multi_process_service() if mps else no_service() as service:
            about = run(device, number, options, service)
        seconds = {name: round(one["seconds"], 2) for name, one in about["phases"].items() if one["seconds"]}
        accuracies = {name: round(100 * one["test_accuracy"], 2) for name, one in about["methods"].items()}
        yield f"{number} ranks{', multi-process service' if mps else ''}", seconds | accuracies


PARTS: dict[str, Callable[..., Found]] = {
    "environment": environment, "waits": waits, "capture": capture, "loop": loop, "streams": streams, "agreement": agreement,
    "methods": methods, "bits": bits, "resume": resume, "sums": sums, "cifar10": cifar10, "ranks": ranks, "mps": partial(ranks, mps=True),
}  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["ddcnn"]:
        way, sys.argv[1:] = sys.argv[2], sys.argv[3:]
        with WAYS[way]():
            sys.exit(ddcnn_main())
    if sys.argv[1:2] == ["summing"]:
        return summing(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="all", help="comma-separated")
    parser.add_argument("--data-root", help="folder of CIFAR-10")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to try the control flow of those that do without")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--limit", type=float, default=240, help="seconds of a part at most")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    names = [name for name in PARTS if asked.data_root or name != "cifar10"] if asked.parts == "all" else asked.parts.split(",")
    if asked.part:
        exact()
        device = torch.device("cuda", 0) if asked.device == "cuda" else torch.device("cpu")
        for name, value in PARTS[asked.part](device, *([asked.data_root] if asked.part == "cifar10" else [])):
            print(json.dumps({name: value}), flush=True)
        return
    if asked.device == "cuda" and not torch.cuda.device_count():
        built = "" if torch.version.cuda or torch.version.hip else " (this PyTorch is built without)"
        parser.error(f"no GPU here{built}; --device cpu tries the parts that do without")
    report: dict[str, Any] = {"benchmark": "gpu", "date": time.strftime("%Y-%m-%d")}
    for name in names:
        begin = time.perf_counter()
        report[name] = one_part(
            name, asked.limit, [*(["--data-root", asked.data_root] if asked.data_root else []), "--device", asked.device]
        )
        report[name]["seconds of this part"] = round(time.perf_counter() - begin, 1)
        asked.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{name}\n" + "\n".join(f"  {what}: {value}" for what, value in report[name].items()), flush=True)
    sys.exit(any("failed" in report[name] for name in names))


def one_part(name: str, limit: float, options: list[str]) -> dict[str, Any]:
    """What a part finds, in a process of its own, which ends after ``limit`` seconds with all that it has started."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, __file__, "--part", name, *options], stdout=out, stderr=errors, start_new_session=True)
        failure = ""
        try:
            if process.wait(limit):
                errors.seek(0)
                failure = errors.read().strip()[-2000:] or f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            failure = f"took more than {limit:g} s"
            os.killpg(process.pid, signal.SIGTERM)
            end = time.monotonic() + GRACE
            # not reaped yet, so that the number stays the group's
            while time.monotonic() < end and not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        found: dict[str, Any] = {}
        for line in out.read().splitlines():
            found |= json.loads(line)
        return found | ({"failed": failure} if failure else {})


if __name__ == "__main__":
    main()

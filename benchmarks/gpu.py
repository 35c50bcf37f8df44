"""What a GPU says of ddcnn: is it right, does anything wait, how fast is it, and what do several subdomains on one GPU cost?

    python benchmarks/gpu.py [--parts environment,loop] [--data-root data] [--device cpu] [--limit 240] [--output gpu.json]

Each part (see ``PARTS``) runs in a process of its own with a time limit, so that a failure does not hide the
others, and what a part has found until then is kept. Writes one JSON file after every part, and prints a table. The part ``cifar10`` needs
``--data-root``; ``mps`` starts NVIDIA's multi-process service as a daemon of its own, and ends it.
"""

import argparse
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from engine import random_subimages, ratios, spread, timed_in_turn
from torch.nn import functional

import ddcnn
from ddcnn.data.augmentation import Augmentation
from ddcnn.errors import InputError
from ddcnn.networks.registry import NETWORKS, Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.devices import compute_deterministically, exact
from ddcnn.parallel.environment import about_gpu
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import Callback, Trainer, build
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe
from ddcnn.training.state import Epoch, TrainState
from ddcnn.training.step import WARM_UP

BATCH, IMAGES = 128, 390 * 128  # as many steps an epoch as CIFAR-10 has
REPLAYS, CHECKED = 100, 1024  # of a graph in ``streams``; images of the parts that compare
EPOCHS = {"eager": 2, "captured": 6}  # of a training in ``loop``
PRECISIONS = ("bf16", "fp32")
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
                bare = (BareCaptured if policy.capture else Bare)(new("vgg9", spatial, divisor, policy), policy, *batches[0])
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


class Bare:
    """A bare loop on batches that are on the GPU already: forward, backward, step."""

    def __init__(self, network: Any, policy: DevicePolicy, images: torch.Tensor, labels: torch.Tensor):
        self.network, self.policy = network.train(), policy
        self.images, self.labels = images.clone(), labels.clone()
        self.optimizer = torch.optim.AdamW(network.parameters(), 0.005, weight_decay=0.01, fused=True, capturable=policy.capture)

    def train(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for self.images, self.labels in batches:
            self.step()

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self.policy.autocast(not self.policy.capture):
            logits = self.network(self.images)
        functional.cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()


class BareCaptured(Bare):
    """The same with all of a step in one CUDA graph, the optimizer too."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph, stream=stream):
            self.step()

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
    with multi_process_service() if mps else nullcontext():
        for number in (1, 4, 16):
            local = run(device, number, [*common, "--epochs", "48"])["phases"]["local"]
            memory = local.get("max_rank_gpu_reserved_bytes") or 0
            yield f"{number} ranks", [round(local["seconds"], 2), f"{memory / 1e6:.0f} MB a rank"]


@contextmanager
def multi_process_service() -> Iterator[None]:
    """NVIDIA's multi-process service for this process and those that it starts."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # at the time limit
        subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True)
        try:
            yield
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, check=False, timeout=30)


def run(device: torch.device, number: int, options: list[str], digests: bool = False) -> dict[str, Any]:
    """The results of ``ddcnn run`` on so many ranks, with the digests of its checkpoints if they are wanted."""
    with tempfile.TemporaryDirectory() as folder:
        launch = ["mpirun", "-n", str(number)] if number > 1 else []
        threads = max(1, min(4, len(os.sched_getaffinity(0)) // number))
        arguments = ["--partitions", f"{folder}/sets", "--output", f"{folder}/run", "--no-figures", "--progress", "none"]
        command = [*launch, sys.executable, "-m", "ddcnn", "run", *options, *arguments, "--device", device.type, "--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or done.stdout.strip())[-600:])
        results = json.loads(Path(folder, "run", "results.json").read_text("utf-8"))
        checkpoints = sorted(Path(folder, "run", "checkpoints").glob("*.h5")) if digests else ()
        return results | {"digests": {path.stem: digest(path) for path in checkpoints}}


def digest(path: Path) -> str:
    """Of all arrays in a file."""
    found = hashlib.sha256()
    with h5py.File(path) as file:
        file.visititems(lambda _, one: found.update(np.asarray(one).tobytes()) if isinstance(one, h5py.Dataset) else None)
    return found.hexdigest()


def methods(device: torch.device) -> Found:
    """Accuracies of all methods, per cent: on the CPU, and on one and two ranks that share the GPU."""
    options = ["--data", "digits", "--grid", "1x2", "--epochs", "12", "--transfer-epochs", "6", "--width", "16", "--augment", "flip+shift"]
    options += ["--methods", "vote,average,dnn,coherent,transfer,global,spatial", "--precision", "fp32"]
    cpu = torch.device("cpu")
    sides: dict[str, tuple[torch.device, int, list[str]]] = {
        "one rank": (device, 1, []), "two ranks": (device, 2, []), "CPU": (cpu, 2, []),
        "maps, shared, streamed": (device, 2, ["--interface", "maps", "--share", "all", "--resident", "stream"]),
    }  # fmt: skip
    if device.type == "cuda":
        sides["one rank, eager"] = (device, 1, ["--no-capture"])
    for side, (where, number, more) in sides.items():
        found = run(where, number, [*options, *more])
        yield side, {name: round(100 * one["test_accuracy"], 1) for name, one in found["methods"].items()}
    yield "environment", found["environment"]


def bits(device: torch.device) -> Found:
    """Whether two equal runs end with the same parameters, bit for bit, with and without ``--deterministic``, and what it costs."""
    for more in ([], ["--deterministic"]):
        options = ["--data", "synthetic:32x32x3x10x8192", "--epochs", "3", "--methods", "dnn,global", "--evaluate-every", "0", *more]
        one, other = (run(device, 1, options, digests=True) for _ in range(2))
        seconds = {phase: round(other["phases"][phase]["seconds"], 2) for phase in ("local", "global")}
        yield " ".join(more) or "as it is", seconds | {"the same bits": one["digests"] == other["digests"]}


def cifar10(device: torch.device, root: str) -> Found:
    """CIFAR-10, four subdomains, 8 epochs of local training on all images: seconds of the phases, and accuracies."""
    options = ["--data", "cifar10", "--data-root", root, "--epochs", "8", "--methods", "vote,average,dnn", "--augment", "flip"]
    options += ["--evaluate-every", "0", "--overlap", "4"]
    for number, mps in ((1, False), (4, False), (4, True)):
        with multi_process_service() if mps else nullcontext():
            about = run(device, number, options)
        seconds = {name: round(one["seconds"], 2) for name, one in about["phases"].items() if one["seconds"]}
        accuracies = {name: round(100 * one["test_accuracy"], 2) for name, one in about["methods"].items()}
        yield f"{number} ranks{', multi-process service' if mps else ''}", seconds | accuracies


PARTS: dict[str, Callable[..., Found]] = {
    "environment": environment, "waits": waits, "capture": capture, "loop": loop, "streams": streams, "agreement": agreement,
    "methods": methods, "bits": bits, "cifar10": cifar10, "ranks": ranks, "mps": partial(ranks, mps=True),
}  # fmt: skip


def main() -> None:
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
    report: dict[str, Any] = {"benchmark": "gpu", "date": time.strftime("%Y-%m-%d")}
    for name in names:
        begin = time.perf_counter()
        report[name] = one_part(
            name, asked.limit, [*(["--data-root", asked.data_root] if asked.data_root else []), "--device", asked.device]
        )
        report[name]["seconds of this part"] = round(time.perf_counter() - begin, 1)
        asked.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{name}\n" + "\n".join(f"  {what}: {value}" for what, value in report[name].items()), flush=True)


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
            for number in (signal.SIGTERM, signal.SIGKILL):
                os.killpg(process.pid, number)
                time.sleep(2)
            process.wait()
        out.seek(0)
        found: dict[str, Any] = {}
        for line in out.read().splitlines():
            found |= json.loads(line)
        return found | ({"failed": failure} if failure else {})


if __name__ == "__main__":
    main()

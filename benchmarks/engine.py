"""The training loop of ddcnn against a bare loop: same network, same batches, nothing but forward, backward and step.

    python benchmarks/engine.py [--rounds 9] [--images 4096] [--sides 16,16] [--threads 1] [--precisions fp32,bf16]

All sides run in turn in one process, A B C D D C B A …; prints JSON with the medians, the spread and the median of the pairwise ratios:
of the loop to the bare one in every precision, and of the loop in each precision to that in the first. The bare loop has its batches
in memory, normalised and in channels_last order, before the clock starts.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ddcnn.data.augmentation import Augmentation
from ddcnn.data.batches import Subimages
from ddcnn.data.stored import InMemory
from ddcnn.networks.registry import Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.allocator import keep_freed
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import Trainer, build
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe

EPOCHS = 4  # of a training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--sides", default="16,16")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", default="vgg9")
    parser.add_argument("--divisor", type=float, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", default="fp32,bf16")
    asked = parser.parse_args()
    keep_freed()  # as ddcnn does; not with GLIBC_TUNABLES= in the environment
    torch.set_num_threads(asked.threads)
    device, spatial = torch.device(asked.device), tuple(map(int, asked.sides.split(",")))
    samples = random_subimages(asked.images, spatial, device)
    recipe = Recipe(EPOCHS, asked.batch_size, "adamw", 0.005, 0.01, "one-cycle")
    chosen = torch.arange(asked.images)
    full = [index.to(device) for index in chosen.split(asked.batch_size) if len(index) == asked.batch_size]
    batches = [(samples.batch(index)[0], samples.labels[index]) for index in full]
    sides = {}
    for precision in asked.precisions.split(","):
        policy = DevicePolicy.choose(device, precision)
        network = build(lambda: make(Design(asked.network, 32, asked.divisor), Shape(spatial, 3, 10)), Seeds(0, "benchmark"), policy)
        sides[precision, "ddcnn"] = partial(Trainer(recipe, policy, Seeds(0, "benchmark")).train, network, samples, chosen)
        sides[precision, "bare"] = partial(bare_epoch, network, batches * EPOCHS, policy)
    images = EPOCHS * len(batches) * asked.batch_size
    measured = {side: [images / seconds for seconds in all_seconds] for side, all_seconds in timed_in_turn(sides, asked.rounds).items()}
    first = asked.precisions.split(",")[0]
    print(json.dumps({
        "benchmark": "engine", **vars(asked), "torch": torch.__version__,
        "images_per_second": {f"{precision} {side}": spread(values) for (precision, side), values in measured.items()},
        "ddcnn_to_bare": {one: ratios(measured[one, "ddcnn"], measured[one, "bare"]) for one in asked.precisions.split(",")},
        f"to_{first}": {one: ratios(measured[one, "ddcnn"], measured[first, "ddcnn"]) for one in asked.precisions.split(",")[1:]},
    }, indent=1))  # fmt: skip


def timed_in_turn(sides: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of each side in every round, A B C C B A …, after a round to warm up."""
    measured: dict[Any, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side in list(sides)[:: (-1) ** turn]:
            begin = time.perf_counter()
            sides[side]()
            if turn:
                measured[side].append(time.perf_counter() - begin)
    return measured


def random_subimages(
    images: int, spatial: tuple[int, ...], device: torch.device, augmentation: Augmentation = Augmentation()
) -> Subimages:  # fmt: skip
    random = np.random.default_rng(0)
    stored = InMemory(torch.from_numpy(random.integers(0, 256, (images, *spatial, 3), dtype=np.uint8)).to(device), device)
    return Subimages(
        images=stored,
        labels=torch.from_numpy(random.integers(0, 10, images)).to(device),
        mean=torch.full((3,), 127.0, device=device),
        scale=torch.full((3,), 1 / 64, device=device),
        window=tuple(slice(0, side) for side in spatial),
        padding=((augmentation.shift,) * 2,) * len(spatial),
        augmentation=augmentation,
        mirrored=dict.fromkeys(augmentation.mirrors, stored),
    )


class Bare:
    """A bare loop on batches that are on the device already: forward, backward, step."""

    def __init__(self, network: Any, policy: DevicePolicy):
        self.network, self.policy = network.train(), policy
        self.optimizer = torch.optim.AdamW(network.parameters(), 0.005, weight_decay=0.01, fused=True, capturable=policy.capture)

    def train(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for images, labels in batches:
            self.step(images, labels)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self.policy.autocast(not self.policy.capture):
            loss = functional.cross_entropy(self.network(images).float(), labels)
        loss.backward()
        self.optimizer.step()


def bare_epoch(network: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], policy: DevicePolicy) -> None:
    Bare(network, policy).train(batches)
    if policy.device.type == "cuda":
        torch.cuda.synchronize()


def ratios(one: list[float], other: list[float]) -> dict[str, float]:
    return spread([a / b for a, b in zip(one, other, strict=True)])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


if __name__ == "__main__":
    main()

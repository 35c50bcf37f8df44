"""The training loop of ddcnn against a bare loop: same network, same batches, nothing but forward, backward and step.

    python benchmarks/engine.py [--rounds 9] [--images 4096] [--side 16] [--threads 1] [--precision fp32]

Both sides run in turn in one process, A B A B …; prints JSON with the medians, the spread and the median of the pairwise ratios. The
bare loop has its batches in memory, normalised and in channels_last order, before the clock starts.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from torch.nn import functional

from ddcnn.data.batches import Subimages
from ddcnn.networks.registry import make
from ddcnn.networks.shape import Shape
from ddcnn.seeding import Seeds
from ddcnn.training import Engine, Recipe, build, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", default="vgg9")
    parser.add_argument("--divisor", type=float, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    engine = Engine.choose(torch.device(asked.device), asked.precision)
    samples = random_subimages(asked.images, asked.side, engine.device)
    recipe = Recipe(1, asked.batch_size, "adamw", 0.005, 0.01, "one-cycle")
    network = build(lambda: make(asked.network, Shape((asked.side,) * 2, 3, 10), 32, asked.divisor), Seeds(0, "benchmark"), engine)
    chosen = torch.arange(asked.images)
    batches = [samples.batch(index.to(engine.device)) for index in chosen.split(asked.batch_size) if len(index) == asked.batch_size]
    measured: dict[str, list[float]] = {"ddcnn": [], "bare": []}
    for turn in range(asked.rounds + 1):
        for side, work in (("ddcnn", lambda: train(network, samples, chosen, recipe, engine, Seeds(0, "benchmark"))),
                           ("bare", lambda: bare_epoch(network, batches, engine))):  # fmt: skip
            begin = time.perf_counter()
            work()
            if turn:  # the first turn warms up
                measured[side].append(len(batches) * asked.batch_size / (time.perf_counter() - begin))
    ratios = [ours / bare for ours, bare in zip(measured["ddcnn"], measured["bare"], strict=True)]
    print(json.dumps({
        "benchmark": "engine", **vars(asked), "torch": torch.__version__,
        "images_per_second": {side: spread(values) for side, values in measured.items()}, "ratio": spread(ratios),
    }, indent=1))  # fmt: skip


def random_subimages(images: int, side: int, device: torch.device) -> Subimages:
    random = np.random.default_rng(0)
    return Subimages(
        images=torch.from_numpy(random.integers(0, 256, (images, side, side, 3), dtype=np.uint8)).to(device),
        labels=torch.from_numpy(random.integers(0, 10, images)).to(device),
        mean=torch.full((3,), 127.0, device=device),
        scale=torch.full((3,), 1 / 64, device=device),
        window=(slice(0, side),) * 2,
        padding=((0, 0),) * 2,
    )


def bare_epoch(network: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], engine: Engine) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), 0.005, weight_decay=0.01, fused=True)
    network.train()
    for images, labels in batches:
        with engine.autocast():
            loss = functional.cross_entropy(network(images).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if engine.device.type == "cuda":
        torch.cuda.synchronize()


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


if __name__ == "__main__":
    main()

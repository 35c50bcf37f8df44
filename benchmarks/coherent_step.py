"""What a step of coherent training costs, and where its DNN should lie.

    mpirun -n 2 python benchmarks/coherent_step.py [--grid 2x2] [--size 32] [--overlap 0] [--batch-size 256] [--rounds 7]
    mpirun -n 4 python benchmarks/coherent_step.py --interface maps --overlap 4 --share all

Interleaves, on random images, steps of: the coherent network with the DNN on every rank (one allgather); the same with the DNN on rank 0
(gather, and scatter of the gradient), or of maps with a DNN that is divided over the samples (two all-to-alls); the undecomposed CNN by
exact spatial parallelism, and under DistributedDataParallel. Prints JSON and a table: medians over the rounds, of the slowest rank.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from ddcnn.config.load import load
from ddcnn.config.settings import RunSettings
from ddcnn.decomposition import Decomposition
from ddcnn.experiment.fitting import check_ranks
from ddcnn.method.coarse_solve import CoarseSolve
from ddcnn.method.coherent import CoherentNetwork
from ddcnn.method.halo import Layout
from ddcnn.method.interface import values_per_subdomain
from ddcnn.method.shared import SharedParameters
from ddcnn.method.spatial import SpatialNetwork
from ddcnn.networks.coarse import ConvolutionalNetwork
from ddcnn.networks.dense import DenseNetwork
from ddcnn.networks.maps import map_interface
from ddcnn.networks.registry import Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.allocator import keep_freed
from ddcnn.parallel.environment import threads_per_rank
from ddcnn.parallel.groups import owned_subdomains
from ddcnn.parallel.process_group import process_group
from ddcnn.parallel.seeding import Seeds
from ddcnn.parallel.timeline import KINDS, seconds_of
from ddcnn.parallel.world import STEP_SLEEP, World
from ddcnn.training.data_parallel import all_reduce
from ddcnn.training.loop import build
from ddcnn.training.precision import DevicePolicy

CLASSES = 10


class OnRoot(torch.autograd.Function):
    """Forward: gather to rank 0, (n, B, C) -> (N, B, C), elsewhere nothing. Adjoint: scatter from rank 0."""

    @staticmethod
    def forward(ctx, part, world):
        ctx.world, ctx.shape = world, part.shape
        everyone = np.empty((world.size if world.rank == 0 else 0, *part.shape), np.float32)
        world._wait(world.communicator.Ibarrier(), longest=STEP_SLEEP)
        world._wait(world.communicator.Igather(part.detach().numpy(), everyone), "communicate")
        world.timeline.count(part.nbytes if world.rank else 0)
        return torch.from_numpy(everyone).flatten(0, 1)

    @staticmethod
    def backward(ctx, cotangent):
        own, world = np.empty(ctx.shape, np.float32), ctx.world
        world._wait(world.communicator.Ibarrier(), longest=STEP_SLEEP)
        world._wait(world.communicator.Iscatter(cotangent.contiguous().numpy(), own), "communicate")
        world.timeline.count(own.nbytes if world.rank else 0)
        return torch.from_numpy(own), None


class CoherentOnRoot(CoherentNetwork):
    """The coherent network with the DNN on rank 0 alone."""

    def forward(self, subimages):
        values = OnRoot.apply(self.interface_values(subimages), self.world)
        return self.dnn(values.movedim(0, 1).flatten(1)) if self.world.rank == 0 else values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="2x2")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--overlap", type=int, default=0)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--width-divisor", type=float)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--interface", default="probabilities", choices=("probabilities", "logits", "features", "maps"))
    parser.add_argument("--coarse-width", type=int)
    parser.add_argument("--coarse-stages", type=int, default=0)
    parser.add_argument("--share", default="none", choices=("none", "early", "all"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    keep_freed()
    world = World()
    torch.set_num_threads(threads_per_rank(world, None))
    policy = DevicePolicy(torch.device("cpu"), asked.precision)
    decomposition = Decomposition((asked.size, asked.size), tuple(map(int, asked.grid.split("x"))), asked.overlap)
    check_ranks(world.size, len(decomposition), f"{len(decomposition)} subdomains")
    with process_group(world, policy.device):
        steps = variants(world, policy, decomposition, asked)
        found: dict = {name: [] for name in steps}
        for turn in range(asked.rounds + 1):
            for name, step in steps.items():
                seconds = measure(world, step, asked.steps)
                if turn:  # the first one warms up
                    found[name].append(seconds)
    if world.rank == 0:
        rows = [
            {"variant": name, "step_ms": 1e3 * statistics.median(row[0] for row in rounds)}
            | {f"{kind}_share": statistics.median(row[1 + k] for row in rounds) for k, kind in enumerate(KINDS)}
            | {"bytes_per_step": round(statistics.median(row[-1] for row in rounds))}
            for name, rounds in found.items()
        ]
        print(json.dumps({"benchmark": "coherent_step", "ranks": world.size, "options": vars(asked), "results": rows}, indent=1))
        print("\n| variant | step ms | communicate | wait | bytes a step |\n| :-- | --: | --: | --: | --: |")
        for row in rows:
            shares = f"{row['communicate_share']:.1%} | {row['wait_share']:.1%}"
            print(f"| {row['variant']} | {row['step_ms']:.1f} | {shares} | {row['bytes_per_step']:,} |")


def variants(world, policy, decomposition, asked):
    divisor = asked.width_divisor or len(decomposition) ** 0.5
    options = {"interface": asked.interface, "width": asked.width, "coarse_width": asked.coarse_width, "coarse_stages": asked.coarse_stages}
    settings = load(RunSettings, options)
    stages = settings.convolutional
    owned, labels = owned_subdomains(world, len(decomposition)), torch.arange(asked.batch_size) % CLASSES
    shapes = [Shape(decomposition.subdomains[index].subimage.shape, 3, CLASSES) for index in owned]
    batch = [torch.randn(asked.batch_size, 3, *shape.spatial).to(memory_format=torch.channels_last) for shape in shapes]

    def coherent(kind=CoherentNetwork, divided=False):
        design = Design("vgg9", asked.width, divisor, coarse_stages=asked.coarse_stages)
        makes: list[Callable[[], nn.Module]] = [partial(make, design, shape) for shape in shapes]
        maps = map_interface(design, decomposition, 3, CLASSES, settings.coarse_image) if asked.interface == "maps" else None
        if maps:
            makes = [maps.hands_on(one, index) for one, index in zip(makes, owned, strict=True)]
        local = [build(one, Seeds(0, "b"), policy) for one in makes]
        shared = SharedParameters(world, local, asked.share) if asked.share != "none" else None
        if maps and stages:
            dnn = build(lambda: ConvolutionalNetwork(maps, stages), Seeds(0, "dnn"), policy)
            solve = CoarseSolve(world, dnn, len(decomposition), divided)
        else:
            dense = partial(DenseNetwork, asked.interface, len(decomposition), values_per_subdomain(asked.interface, local[0]), CLASSES)
            solve = CoarseSolve(world, build(dense, Seeds(0, "dnn"), policy))
        return kind(world, asked.interface, local, solve, shared)

    other = (
        {"coherent, DNN divided over the samples": coherent(divided=True)} if asked.interface == "maps"
        else {"coherent, DNN on rank 0": coherent(CoherentOnRoot)}
    )  # fmt: skip
    whole, parted = (
        build(lambda: make(Design("vgg9", asked.width), Shape(decomposition.shape, 3, CLASSES)), Seeds(0, "g"), policy) for _ in range(2)
    )
    layout = Layout.of(decomposition.shape, world.size)
    part = torch.randn(asked.batch_size, 3, *layout.boxes[world.rank].shape).to(memory_format=torch.channels_last)
    ddp = nn.parallel.DistributedDataParallel(whole)
    ddp.register_comm_hook(world, all_reduce)
    share = torch.randn(asked.batch_size // world.size, 3, *decomposition.shape).to(memory_format=torch.channels_last)

    def step_of(network, images, of_labels):
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)

        def step():
            with policy.autocast():
                logits = network(images)
            loss = nn.functional.cross_entropy(logits.float(), of_labels) if len(logits) == len(of_labels) else logits.sum()
            optimizer.zero_grad()
            loss.backward()
            if isinstance(network, (CoherentNetwork, SpatialNetwork)):
                network.finish_gradient()
            optimizer.step()

        return step

    coherents = {"coherent, DNN on every rank": coherent()} | other
    return {name: step_of(network, batch, labels) for name, network in coherents.items()} | {
        "global, spatial": step_of(SpatialNetwork(world, parted, layout), [part], labels),
        "global, DistributedDataParallel": step_of(ddp, share, labels[: len(share)]),
    }


def measure(world, step, steps: int) -> list[float]:
    """Seconds of a step of the slowest rank, the shares of the kinds, mean over the ranks, and bytes that all ranks together send."""
    world.barrier()
    world.timeline.begin()
    begin = time.perf_counter()
    for _ in range(steps):
        with world.timeline.span("compute"):
            step()
    seconds = (time.perf_counter() - begin) / steps
    kinds = [seconds_of([world.timeline.array()], ("start",), kind)[0] / steps / seconds for kind in KINDS]
    sent = world.size * world.mean([sum(world.timeline.sent.values()) / steps])[0]
    return [world.largest(int(1e9 * seconds)) / 1e9, *world.mean(kinds), sent]


if __name__ == "__main__":
    main()

"""Local CNNs of one rank, equal in shape: trained one after the other, as ddcnn does it, or together by torch.func.vmap?

    python benchmarks/together.py [--rounds 7] [--networks 4] [--side 16] [--device cpu]

Both sides take in turn as many steps on random images in memory, forward, backward and the optimiser, and come to the same loss to
rounding, which is checked; prints JSON: images per second of all networks, and the median and spread of the pairwise ratios. Batch
normalisation computes with the batch's own mean and deviation on both sides, since vmap cannot change running averages in place. In
float32, since vmap and autocast do not go together on CPUs (torch 2.13).
"""

import argparse
import json
import time

import torch
from engine import ratios, spread
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from ddcnn.networks.registry import Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import build
from ddcnn.training.precision import DevicePolicy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--network", default="vgg9")
    parser.add_argument("--divisor", type=float, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    policy = DevicePolicy.choose(torch.device(asked.device), "fp32")
    shape = Shape((asked.side,) * 2, 3, 10)
    networks = [
        build(lambda: make(Design(asked.network, 32, asked.divisor), shape), Seeds(0, "together", k), policy) for k in range(asked.networks)
    ]
    for network in networks:
        without_running_averages(network)
    torch.manual_seed(0)
    images = torch.randn(asked.networks, asked.batch_size, 3, *shape.spatial, device=policy.device)
    labels = torch.randint(0, 10, (asked.networks, asked.batch_size), device=policy.device)
    sides = {"in turn": in_turn(networks, images, labels, policy), "together": together(networks, images, labels, policy)}
    measured: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(asked.rounds + 1):
        losses = []
        for side, step in sides.items():
            begin = time.perf_counter()
            for _ in range(asked.steps):
                loss = step()
            losses.append(loss.cpu())  # waits for the device
            if turn:
                measured[side].append(asked.steps * labels.numel() / (time.perf_counter() - begin))
        if not turn:
            torch.testing.assert_close(*losses, rtol=0.02, atol=0.01)
    print(json.dumps({
        "benchmark": "together", **vars(asked), "torch": torch.__version__,
        "images_per_second": {side: spread(values) for side, values in measured.items()},
        "together_to_in_turn": ratios(measured["together"], measured["in turn"]),
    }, indent=1))  # fmt: skip


def without_running_averages(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = module.running_var = module.num_batches_tracked = None


def loss_of(network, parameters, images, labels, policy):
    with policy.autocast():
        logits = functional_call(network, parameters, (images,))
    return nn.functional.cross_entropy(logits.float(), labels)


def in_turn(networks, images, labels, policy):
    images = [part.contiguous(memory_format=torch.channels_last) for part in images]
    optimizers = [torch.optim.AdamW(network.parameters(), 0.005, fused=True) for network in networks]

    def step():
        losses = []
        for network, optimizer, part, own in zip(networks, optimizers, images, labels, strict=True):
            with policy.autocast():
                loss = nn.functional.cross_entropy(network(part).float(), own)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    return step


def together(networks, images, labels, policy):
    stacked = {name: value.detach().clone().requires_grad_() for name, value in stack_module_state(networks)[0].items()}
    optimizer = torch.optim.AdamW(stacked.values(), 0.005, fused=True)
    gradient = vmap(grad_and_value(lambda parameters, part, own: loss_of(networks[0], parameters, part, own, policy)))

    def step():
        gradients, losses = gradient({name: value.detach() for name, value in stacked.items()}, images, labels)
        for name, value in stacked.items():
            value.grad = gradients[name]
        optimizer.step()
        return losses.detach()

    return step


if __name__ == "__main__":
    main()

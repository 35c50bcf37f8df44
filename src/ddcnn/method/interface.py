"""What a local CNN hands to the DNN, and how it gets there: the operators of the interface, each beside its adjoint.

The papers' interface are the probabilities p_i = softmax of f_i(R_i x), K numbers (arXiv 2302.06564, section 3). The logits f_i(R_i x)
are K numbers as well; the features are the last hidden layer of f_i, F numbers.
"""

from typing import Any

import torch
from torch import nn

from ddcnn.parallel.world import World
from ddcnn.training.loop import at_least_single


def interface_values(interface: str, network: nn.Module, subimages: torch.Tensor) -> torch.Tensor:
    """Interface values of a local CNN: (B, channels, *subimage) -> (B, C), at least float32; C = K but for features."""
    values = network.features(subimages) if interface == "features" else network(subimages)  # type: ignore[operator]
    values = at_least_single(values)
    return values.softmax(1) if interface == "probabilities" else values


def values_per_subdomain(interface: str, network: nn.Module) -> int:
    """C of ``interface_values``: numbers per sample and subdomain."""
    classifier: Any = network.classifier
    return classifier.in_features if interface == "features" else classifier.out_features


class Collect(torch.autograd.Function):
    """E: the ranks' parts of a vector, put together on all ranks (one allgather); the coarse problem is then solved redundantly.

    Forward: (n, B, C) on every rank -> (N, B, C), the same on all ranks: one vector, that all of them hold.
    Adjoint: Eᵀ restricts it to the rank's own part, (N, B, C) -> (n, B, C). The cotangent is that of the one vector, the same on
    all ranks since they all solve the same coarse problem: nothing is communicated.
    """

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, world: World) -> torch.Tensor:
        ctx.own = slice(world.rank * len(part), (world.rank + 1) * len(part))
        everyone = world.all_gather(part.detach().cpu().numpy())
        return torch.from_numpy(everyone).flatten(0, 1).to(part.device)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, None]:
        return cotangents[0][ctx.own].contiguous(), None


def bytes_per_sample(subdomains: int, values: int, ranks: int) -> int:
    """Bytes that all ranks together send for one sample, in float32: everyone's N·C numbers reach the P - 1 ranks that lack them."""
    return 4 * subdomains * values * (ranks - 1)

"""The interface between local CNNs and DNN: what travels, and the operators that bring it there, each beside its adjoint.

In the papers these are the probabilities p_i = softmax of f_i(R_i x), K numbers (arXiv 2302.06564, section 3). The logits f_i(R_i x) are
K numbers as well; the features are the last hidden layer of f_i, F numbers. Of maps, a subdomain hands on its own cells, with the means of
their pixels if they are wanted, and its logits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ddcnn.data.batches import Samples
from ddcnn.io.rows import Room, Table, kept
from ddcnn.networks.dense import SMALLEST_PROBABILITY
from ddcnn.parallel.process_group import all_gather_on_device
from ddcnn.parallel.world import World
from ddcnn.training.data_parallel import divided
from ddcnn.training.evaluation import at_least_single, evaluate
from ddcnn.training.precision import DevicePolicy


def interface_values(interface: str, network: nn.Module, subimages: torch.Tensor, with_logits: bool = True) -> torch.Tensor:
    """Interface values of a local CNN: (B, channels, *subimage) -> (B, C), of maps as they were computed, else at least float32.

    C = K but for features and maps. Zeros may stand for the logits of maps, which then need not be computed.
    """
    cnn: Any = network
    if interface == "maps":
        if not with_logits:
            maps = cnn.maps(subimages)
            return cnn.pack(subimages, maps, maps.new_zeros(len(maps), cnn.classifier.out_features))
        maps, features = cnn.maps_and_features(subimages)
        return cnn.pack(subimages, maps, cnn.classifier(features))
    values = at_least_single(cnn.features(subimages) if interface == "features" else cnn(subimages))
    return values.softmax(1) if interface == "probabilities" else values


def values_per_subdomain(interface: str, network: nn.Module) -> int:
    """C: the number of interface values per sample and subdomain."""
    cnn: Any = network
    if interface == "maps":
        return cnn.map_interface.values
    return cnn.classifier.in_features if interface == "features" else cnn.classifier.out_features


def evaluate_interface(
    group: World, interface: str, network: nn.Module, samples: Samples, chosen: np.ndarray, policy: DevicePolicy
) -> Iterator[np.ndarray | None]:  # fmt: skip
    """Interface values (S, C) float32 of the samples ``chosen`` (S,) in blocks, on the group's first rank; None on its other ranks."""

    def values(images: torch.Tensor) -> torch.Tensor:
        return at_least_single(interface_values(interface, network, images))

    def work(share: np.ndarray) -> np.ndarray:
        return evaluate(network, values, samples, torch.from_numpy(share), policy).numpy()

    return divided(group, chosen, samples.pixels, work)


def local_probabilities(interface: str, network: Any, values: torch.Tensor) -> torch.Tensor:
    """p_i (B, K) from a local CNN's interface values (B, C), without another pass through the convolutions."""
    return values if interface == "probabilities" else local_logits(interface, network, values).softmax(1)


def local_logits(interface: str, network: Any, values: torch.Tensor) -> torch.Tensor:
    """The logits (B, K) of a local CNN, up to a constant, from its interface values (B, C)."""
    if interface == "probabilities":
        return values.clamp_min(SMALLEST_PROBABILITY).log()
    if interface == "maps":
        return network.map_interface.logits(values)
    return network.classifier(values) if interface == "features" else values


@torch.inference_mode()
def probabilities_of(interface: str, network: Any, values: np.ndarray, policy: DevicePolicy) -> np.ndarray:
    """p_i (S, K) float32 from interface values (S, C), both in host memory."""
    return local_probabilities(interface, network, torch.from_numpy(values).to(policy.device)).cpu().numpy()


def gather_interface(across: World, own: np.ndarray) -> np.ndarray | None:
    """The gather (arXiv 2302.06564, section 3): values (n, S, C) of a rank's local CNNs -> those of all, (S, N, C), on rank 0.

    Args:
        across: the ranks that together have every subdomain once, in order.
    """
    parts = across.gather(own)  # (P, n, S, C)
    return None if parts is None else np.concatenate(parts).swapaxes(0, 1)


def gather_tables(across: World, own: Sequence[Table], room: Room | None) -> Table | None:
    """``gather_interface`` of n tables (S, C), block by block -> (S, N, C) on rank 0, in memory or in a file."""
    blocks = zip(*(table.blocks(across.size * len(own)) for table in own), strict=True)
    return kept(len(own[0]), (gather_interface(across, np.stack(parts)) for parts in blocks), room)


class Collect(torch.autograd.Function):
    """E: assembles the ranks' parts of a vector on all ranks (one allgather); the coarse problem is then solved redundantly.

    Forward: (n, B, C) on every rank -> (N, B, C), the same vector on all ranks.
    Adjoint: Eᵀ restricts to the rank's own part, (N, B, C) -> (n, B, C). The cotangent is the same on all ranks, since all of them solve
    the same coarse problem: nothing is communicated.

    From GPU to GPU where there is a process group that can (``on_device``), else from host to host.
    """

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, world: World, on_device: bool = False) -> torch.Tensor:
        ctx.own = slice(world.rank * len(part), (world.rank + 1) * len(part))
        return (all_gather_on_device(world, part.detach()) if on_device else _moved(world.all_gather, part)).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, None, None]:
        return cotangents[0][ctx.own].contiguous(), None, None


class Exchange(torch.autograd.Function):
    """X: from own subdomains of all samples to own samples of all subdomains (one all-to-all); each rank then solves for its samples.

    Forward: (n, B, C) on every rank -> (N, B/P, C) of the rank's contiguous share of the samples; P divides B.
    Adjoint: Xᵀ = X⁻¹ brings the cotangents back, (N, B/P, C) -> (n, B, C), in one more all-to-all.
    """

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, world: World) -> torch.Tensor:
        ctx.world = world
        shares = part.detach().unflatten(1, (world.size, -1)).transpose(0, 1)  # (P, n, B/P, C)
        return _moved(world.all_to_all, shares).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, None]:
        parts = cotangents[0].unflatten(0, (ctx.world.size, -1))  # (P, n, B/P, C)
        return _moved(ctx.world.all_to_all, parts).transpose(0, 1).flatten(1, 2), None


def _moved(move: Callable[[np.ndarray], np.ndarray], values: torch.Tensor) -> torch.Tensor:
    """What a collective makes of values, in the type that they have: half precision travels as it is."""
    return from_numbers(move(to_numbers(values)), values)


def to_numbers(values: torch.Tensor) -> np.ndarray:
    """The values as a contiguous array on the host: half precision, which NumPy or MPI do not have, as int16."""
    here = values.detach().contiguous().cpu()
    return (here.view(torch.int16) if here.dtype in (torch.bfloat16, torch.float16) else here).numpy()


def from_numbers(numbers: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """The inverse of ``to_numbers``, where ``like`` is and in its type."""
    return torch.from_numpy(numbers).view(like.dtype).to(like.device)


def bytes_per_sample(subdomains: int, values: int, ranks: int) -> int:
    """Bytes that all ranks together send for one sample: N·C float32 values, each to the P - 1 ranks that do not have it."""
    return 4 * subdomains * values * (ranks - 1)

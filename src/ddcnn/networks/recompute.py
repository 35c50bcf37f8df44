"""Activations that are not kept for the backward pass but computed again in it (Chen et al., arXiv 1604.06174; PyTorch's checkpoints)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddcnn.errors import InputError
from ddcnn.networks.layers import CONVOLUTION


def recompute(network: Any, name: str) -> nn.Module:
    """The network, which from now on keeps while it trains only what its segments begin with: from a convolution, or a block, to the next.

    Raises:
        InputError: a network that is not built in has no sequence of blocks.
    """
    if hasattr(network, "recomputes"):
        network.recomputes = True
        return network
    found: list[Any] = []
    for module in network.modules():
        inside = any(module in one.modules() for one in found)
        if type(module).forward is nn.Sequential.forward and len(list(segments(module))) > 1 and not inside:
            found.append(module)
    if not found:
        raise InputError(f"--recompute: --network {name} has no nn.Sequential of convolutions or blocks; leave it out")
    for module in found:
        module.forward = partial(in_segments, module)
    return network


def in_segments(layers: nn.Sequential, images: torch.Tensor) -> torch.Tensor:
    """What the layers make of images; in training each segment is computed again in the backward pass."""
    if not (layers.training and torch.is_grad_enabled()):
        return nn.Sequential.forward(layers, images)
    for segment in segments(layers):
        images = again(segment, segment, images)
    return images


def again(segment: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """What a function that uses a segment's layers makes of images; it is computed again in the backward pass."""
    return checkpoint(function, images, use_reentrant=False, context_fn=partial(_contexts, segment))


def segments(layers: nn.Sequential) -> Iterator[nn.Sequential]:
    """Layers from one convolution, or block, to the next."""
    begins = [k for k, layer in enumerate(layers) if isinstance(layer, tuple(CONVOLUTION.values())) or any(True for _ in layer.children())]
    bounds = [0, *begins[1:], len(layers)] if begins else [0, len(layers)]
    for first, last in pairwise(bounds):
        yield nn.Sequential(*list(layers)[first:last])


def _contexts(segment: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first pass, and of the second, which must not count in running statistics again."""
    return nullcontext(), _keeping_statistics(segment)


@contextmanager
def _keeping_statistics(segment: nn.Module) -> Iterator[None]:
    layers: list[Any] = [module for module in segment.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    try:
        for layer in layers:
            layer.momentum, layer.num_batches_tracked = 0.0, None
        yield
    finally:
        for layer, (momentum, tracked) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, tracked

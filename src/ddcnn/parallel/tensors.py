"""Tensors over the ranks of a communicator."""

from collections.abc import Iterable

import torch

from ddcnn.parallel.world import World


@torch.no_grad()
def broadcast_(world: World, tensors: Iterable[torch.Tensor]) -> None:
    """All ranks: copies rank 0's tensors into those of the other ranks, in place."""
    for tensor in tensors:
        values = tensor.detach().cpu().numpy()
        world.broadcast_(values)
        tensor.copy_(torch.from_numpy(values))

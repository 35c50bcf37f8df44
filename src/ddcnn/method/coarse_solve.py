"""The coarse problem of a step: which rank solves it for which samples.

A small dense DNN is solved by all ranks for all samples, as domain decomposition codes do with a small coarse problem. A
convolutional one may cost more than all local CNNs: there the samples of a batch are divided into N chunks, and each rank solves its chunks
(``divided``), or, where that is cheaper than more exchanges, all of them. The gradient, and the statistics of batch normalisation, are
sums over the chunks in their order: the same, bit for bit, on any number of ranks and either way.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ddcnn.method.interface import Collect, Exchange
from ddcnn.method.shared import bytes_of_sum, sum_over_subdomains, total
from ddcnn.networks.coarse import Stages, statistics
from ddcnn.parallel.world import World


class CoarseSolve:
    """
    Args:
        world: the ranks that together have every subdomain once, in order.
        dnn: (B, N·C) -> logits (B, K), with the same parameters on all ranks.
        chunks: of a batch, N, of a ``ConvolutionalNetwork``; 1: not chunked.
        divided: whether a rank solves for its own chunks alone.

    Attributes:
        on_device: whether a process group of the ranks gathers from device to device.
    """

    on_device = False

    def __init__(self, world: World, dnn: Any, chunks: int = 1, divided: bool = False):
        self.world, self.dnn, self.chunks, self.divided = world, dnn, chunks, divided and world.size > 1
        self.watch: Callable[[np.ndarray], None] | None = None  # gets interface values (B, N, C) on rank 0; then nothing is divided
        self._copies: list[dict[str, torch.Tensor]] = []  # of the DNN's parameters, for each chunk, with gradients of their own

    def logits(self, own: torch.Tensor) -> torch.Tensor:
        """Interface values (n, B, C) of the rank's own subdomains -> logits (B, K), on all ranks."""
        batch = own.shape[1]
        divided, learning = self.divided and self.watch is None, self.chunks > 1 and self.dnn.training
        size = -(-batch // self.chunks)  # of a chunk; an evaluation leaves out empty ones, but all ranks have equally many
        multiple = self.chunks if learning else self.world.size if divided else 1
        own = nn.functional.pad(own, (0, 0, 0, -batch % (size * multiple)))
        values: Any = own
        if self.world.size > 1:
            values = (
                Exchange.apply(own, self.world) if divided else Collect.apply(own, self.world, self.on_device)
            )  # (N, B, C), or (N, B/P, C)
        if self.watch and self.world.rank == 0:
            self.watch(values[:, :batch].movedim(0, 1).float().cpu().numpy())
        chunks = values.movedim(0, 1).flatten(1).split(size)
        if learning:
            first = self.world.rank * len(chunks) if divided else 0
            logits = torch.cat(self._learning(chunks, [min(max(0, batch - (first + k) * size), size) for k in range(len(chunks))]))
        else:
            logits = torch.cat([self.dnn(chunk) for chunk in chunks])
        if divided:
            logits = Collect.apply(logits, self.world, self.on_device)  # type: ignore[no-untyped-call]
        return logits[:batch]

    def _learning(self, chunks: tuple[torch.Tensor, ...], real: list[int]) -> list[torch.Tensor]:
        """Logits of chunks, each with a copy of the parameters, of which the first ``real`` samples are of the batch."""
        self.finish_gradient()  # of an earlier part of the batch
        parameters = dict(self.dnn.named_parameters())
        self._copies = [{name: one.detach().requires_grad_(one.requires_grad) for name, one in parameters.items()} for _ in chunks]
        return self.dnn.in_chunks(chunks, self._copies, real, partial(total, world=self.world if self.divided else None))

    @torch.no_grad()
    def finish_gradient(self) -> None:
        """All ranks, after a backward pass: the sum of the chunks' gradients is added to that of the DNN."""
        learning = [name for name, one in self.dnn.named_parameters() if one.requires_grad]
        if not (self._copies and learning):
            return
        own = torch.stack([torch.cat([_gradient(copy[name]) for name in learning]) for copy in self._copies])
        found = sum_over_subdomains(own, self.world if self.divided else None)
        begin = 0
        for name in learning:
            one = self.dnn.get_parameter(name)
            of_part = found[begin : begin + one.numel()].view(one.shape)
            if one.grad is None:
                one.grad = torch.empty_like(one).copy_(of_part)  # with its strides, which fused optimizers take for granted
            else:
                one.grad += of_part
            begin += one.numel()
        self._copies = []


def bytes_of_divided_solve(
    batch: int, subdomains: int, values: int, classes: int, parameters: int, stages: Stages, ranks: int
) -> int:  # fmt: skip
    """Bytes that all ranks together send in a step of single precision whose samples the ranks divide.

    Interface values, and their cotangents back; the logits of each rank's samples; by chunks the gradient of so many parameters of a
    DNN of such ``stages``, and the statistics of its normalisation forward and backward.
    """
    batch += -batch % subdomains
    exchanges = 2 * 4 * subdomains * values * batch * (ranks - 1) // ranks
    sums = (parameters, *statistics(stages))
    return exchanges + 4 * classes * batch * (ranks - 1) + sum(bytes_of_sum(numbers, subdomains, ranks) for numbers in sums)


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()

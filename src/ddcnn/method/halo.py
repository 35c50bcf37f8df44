"""Maps that the ranks have divided, and the operators of exact spatial parallelism, each beside its adjoint.

Along each axis a map is cut into the ranks' parts. A layer with a window, a convolution or a pooling, gives a rank those pixels of its
result whose window begins, but for the padding, in the rank's part; what the windows see of other ranks' parts is the *halo* (Dryden,
Maruyama, Moon, Benson, Yoo, Snir, Van Essen, arXiv 1903.06681; Hewett, Grady, arXiv 2006.03108).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from typing import Any, Self

import torch

from ddcnn.decomposition import Box, common, cuts, grid_of_ranks
from ddcnn.method.interface import from_numbers, to_numbers
from ddcnn.parallel.world import World


@dataclass(frozen=True)
class Window:
    """What a layer sees for a pixel of its result: ``kernel``, ``stride`` and ``padding``, (d,) pixels each."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    def seen(self, box: Box) -> Box:
        """Pixels that are seen for those of ``box``; some of them lie in the padding."""
        axes = list(zip(box.start, box.stop, self.kernel, self.stride, self.padding, strict=True))
        return Box(tuple(a * s - p for a, _, _, s, p in axes), tuple((b - 1) * s - p + k for _, b, k, s, p in axes))


@dataclass(frozen=True)
class Layout:
    """Which part of a map each rank has: along each axis the bounds of the parts; the position along the last axis changes fastest."""

    bounds: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], ranks: int) -> Self:
        """Of images."""
        return cls(tuple(tuple(cuts(n, parts)) for n, parts in zip(shape, grid_of_ranks(ranks, shape), strict=True)))

    @property
    def shape(self) -> tuple[int, ...]:
        """(d,) pixels of the whole map."""
        return tuple(bounds[-1] for bounds in self.bounds)

    @property
    def boxes(self) -> list[Box]:
        """The part of each rank."""
        sides = product(*(pairwise(bounds) for bounds in self.bounds))
        return [Box(*zip(*one, strict=True)) for one in sides]

    @property
    def least(self) -> int:
        """Pixels of the shortest side of a part; 0: a rank has nothing."""
        return min(b - a for bounds in self.bounds for a, b in pairwise(bounds))

    def after(self, window: Window) -> "Layout":
        """That of the result of a layer."""
        axes = zip(self.bounds, window.kernel, window.stride, window.padding, strict=True)
        return Layout(tuple(tuple(min(-(-b // s), (bounds[-1] + 2 * p - k) // s + 1) for b in bounds) for bounds, k, s, p in axes))


@dataclass(frozen=True)
class Plan:
    """How a rank comes from its part of a map to the pixels that it needs.

    Attributes:
        shape: of what it needs.
        kept: the pixels that it has itself, in its part and in what it needs.
        receive: from other ranks, in what it needs.
        send: to other ranks, of its part.
        part: pixels of its part.
    """

    shape: tuple[int, ...]
    kept: tuple[tuple[slice, ...], tuple[slice, ...]]
    receive: dict[int, tuple[slice, ...]]
    send: dict[int, tuple[slice, ...]]

    part: tuple[int, ...]

    @property
    def is_cut(self) -> bool:
        """Whether the rank has all that it needs, and no other rank needs anything of it."""
        return not self.receive and not self.send and shape_of(self.kept[1]) == self.shape

    @property
    def keeps_all(self) -> bool:
        """Whether it needs all of its part."""
        return shape_of(self.kept[0]) == self.part


@lru_cache(1024)
def plan_of(layout: Layout, rank: int, window: Window | None = None) -> Plan:
    """Of a rank for the windows of a layer; without one for the whole map."""
    own = layout.boxes
    needed = [Box((0,) * len(layout.shape), layout.shape)] * len(own)
    if window:
        needed = [window.seen(box) for box in layout.after(window).boxes]
    others = [k for k in range(len(own)) if k != rank]
    both = common(own[rank], needed[rank])
    return Plan(
        needed[rank].shape,
        (both.within(own[rank]), both.within(needed[rank])),
        {k: box.within(needed[rank]) for k in others if (box := common(own[k], needed[rank])).pixels},
        {k: box.within(own[rank]) for k in others if (box := common(own[rank], needed[k])).pixels},
        own[rank].shape,
    )


class Halo(torch.autograd.Function):
    """H: a rank's part of a map and what its windows see around it, from its neighbours; ``border`` beyond the map.

    Forward: (B, C, *part) on every rank -> (B, C, *seen).
    Adjoint: Hᵀ sends the cotangents of the halo back to their owners, which add them to those of their parts in the order of the ranks.
    """

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, plan: Plan, world: World, border: float) -> torch.Tensor:
        ctx.plan, ctx.world, ctx.shape = plan, world, part.shape
        return _assembled(part, plan, world, border)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (seen,), plan = cotangents, ctx.plan
        found = torch.empty_like(seen[:, :, *plan.kept[1]])
        if found.shape == ctx.shape:
            found.copy_(seen[:, :, *plan.kept[1]])
        else:
            found = empty_like(seen, ctx.shape[2:]).zero_()
            found[:, :, *plan.kept[0]] = seen[:, :, *plan.kept[1]]
        arrived = _swapped(seen, plan.receive, plan.send, ctx.world)
        for rank in sorted(arrived):
            found[:, :, *plan.send[rank]] += arrived[rank]
        return found, None, None, None


class Assemble(torch.autograd.Function):
    """A: the whole map on all ranks, which all compute the rest of the network.

    Forward: (B, C, *part) on every rank -> (B, C, *map), the same on all ranks.
    Adjoint: Aᵀ restricts to the rank's part; the cotangent is the same on all ranks, and nothing is communicated.
    """

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, plan: Plan, world: World) -> torch.Tensor:
        ctx.own = plan.kept[1]
        return _assembled(part, plan, world, 0.0)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return cotangents[0][:, :, *ctx.own].clone(), None, None


def pixels_sent(layout: Layout, window: Window | None) -> int:
    """Pixels that all ranks together send for a channel of a sample; without a window for the whole map on all ranks."""
    if window is None:
        return (len(layout.boxes) - 1) * prod(layout.shape)
    whole = Box((0,) * len(layout.shape), layout.shape)
    needed = [common(window.seen(box), whole) for box in layout.after(window).boxes]
    return sum(box.pixels - common(box, own).pixels for box, own in zip(needed, layout.boxes, strict=True))


def _assembled(part: torch.Tensor, plan: Plan, world: World, border: float) -> torch.Tensor:
    values = empty_like(part, plan.shape)
    inside = sum(torch.Size(shape_of(box)).numel() for box in (plan.kept[1], *plan.receive.values()))
    if inside < torch.Size(plan.shape).numel():
        values.fill_(border)
    values[:, :, *plan.kept[1]] = part[:, :, *plan.kept[0]]
    for rank, arrived in _swapped(part, plan.send, plan.receive, world).items():
        values[:, :, *plan.receive[rank]] = arrived
    return values


def begin_swap(
    parts: dict[int, torch.Tensor], shapes: dict[int, tuple[int, ...]], like: torch.Tensor, world: World
) -> Callable[[], dict[int, torch.Tensor]]:
    """Sends to each rank its part (B, C, *box); what is returned waits for those of this rank, by rank, of these ``shapes`` of boxes.

    Args:
        like: (B, C, *spatial), of the type and on the device of all parts, which travel channels last.
    """
    numbers, channels = {rank: to_numbers(one.movedim(1, -1)) for rank, one in parts.items()}, like.shape[1]
    finish = world.swap(numbers, {rank: (len(like), *box, channels) for rank, box in shapes.items()}, to_numbers(like[:0]).dtype)
    return lambda: {rank: from_numbers(one, like).movedim(-1, 1) for rank, one in finish().items()}


def _swapped(
    values: torch.Tensor, send: dict[int, tuple[slice, ...]], receive: dict[int, tuple[slice, ...]], world: World
) -> dict[int, torch.Tensor]:
    """What other ranks have for this one, (B, C, *box) by rank, in exchange for boxes of ``values``."""
    shapes = {rank: shape_of(box) for rank, box in receive.items()}
    return begin_swap({rank: values[:, :, *box] for rank, box in send.items()}, shapes, values, world)()


def empty_like(like: torch.Tensor, spatial: tuple[int, ...]) -> torch.Tensor:
    """(B, C, *spatial), channels last where ``like`` is."""
    last = torch.channels_last if like.ndim == 4 else torch.channels_last_3d
    kept = last if like.stride(1) == 1 else torch.contiguous_format  # also of a slice
    return torch.empty((*like.shape[:2], *spatial), dtype=like.dtype, device=like.device, memory_format=kept)


def shape_of(box: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(side.stop - side.start for side in box)

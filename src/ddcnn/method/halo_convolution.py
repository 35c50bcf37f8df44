"""A convolution of a map that the ranks have divided, which computes while its halo travels.

For a 3x3 convolution that keeps the size of its map, H and then the convolution are the sum of two parts, since both are linear: the
convolution of the rank's own part, with zeros around it, and that of the halo's edges, which changes only the outermost pixels of the
result. So no map is copied to make room for a halo, and the messages of the edges travel during the convolution of the part, forward and
backward.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch

from ddcnn.decomposition import Box, common
from ddcnn.method.halo import Layout, Window, begin_swap, empty_like, shape_of
from ddcnn.parallel.world import World


@dataclass(frozen=True)
class Edge:
    """What a rank's windows see beyond one side of its part; corners belong to the first axis in which they lie outside.

    Attributes:
        axis: of the tensors (B, C, *spatial).
        last: whether the side is that of the larger indices.
        box: its pixels; some may lie beyond the map.
        padding: of its convolution.
        receive: where in it the pixels of other ranks lie.
    """

    axis: int
    last: bool
    box: Box
    padding: tuple[int, ...]
    receive: dict[int, tuple[slice, ...]]

    def outermost(self, values: torch.Tensor) -> torch.Tensor:
        """The pixels of a part that see the edge; the plane of a weight (C', C, *kernel) by which they see it."""
        return values.narrow(self.axis, values.shape[self.axis] - 1 if self.last else 0, 1)


@dataclass(frozen=True)
class Edges:
    """All edges of a rank's part, and which of its pixels lie in those of other ranks: for each neighbour one box."""

    edges: tuple[Edge, ...]
    send: dict[int, tuple[slice, ...]]


def keeps_size(layer: Any, window: Window) -> bool:
    """Whether a layer is a convolution as ``Convolution`` computes it."""
    ones = (1,) * len(window.kernel)
    plain = getattr(layer, "groups", 0) == 1 and tuple(layer.dilation) == ones and layer.padding_mode == "zeros"
    return plain and window == Window((3,) * len(ones), ones, ones)


@lru_cache(1024)
def edges_of(layout: Layout, rank: int) -> Edges:
    """Of a rank; an edge beyond the map is left out."""
    own = layout.boxes
    others = [k for k in range(len(own)) if k != rank]
    seen = [(k, common(box, own[rank])) for k in others for _, _, box, _ in _sides(layout, k)]
    found = []
    for axis, last, box, padding in _sides(layout, rank):
        pieces = {k: one.within(box) for k in others if (one := common(box, own[k])).pixels}
        found.append(Edge(axis, last, box, padding, pieces))
    return Edges(tuple(found), {k: box.within(own[rank]) for k, box in seen if box.pixels})


def _sides(layout: Layout, rank: int) -> list[tuple[int, bool, Box, tuple[int, ...]]]:
    """Axis, side, box and padding of the edges of a part."""
    part, found = layout.boxes[rank], []
    for axis, size in enumerate(layout.shape):
        for last in (False, True):
            at = part.stop[axis] if last else part.start[axis] - 1
            if 0 <= at < size:
                start = (*part.start[:axis], at, *(one - 1 for one in part.start[axis + 1 :]))
                stop = (*part.stop[:axis], at + 1, *(one + 1 for one in part.stop[axis + 1 :]))
                found.append((axis + 2, last, Box(start, stop), tuple(int(other < axis) for other in range(len(layout.shape)))))
    return found


class Convolution(torch.autograd.Function):
    """C H: the convolution of what a rank's windows see, zeros beyond the map.

    Forward: (B, C, *part) on every rank -> (B, C', *part).
    Adjoint: Hᵀ Cᵀ sends the cotangents of the edges back to their owners, which add them in the order of the ranks; the gradients of
    weight and bias are those of the rank's own pixels of the result.
    """

    @staticmethod
    def forward(
        ctx: Any, part: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, edges: Edges, world: World
    ) -> torch.Tensor:  # fmt: skip
        shapes = {rank: shape_of(box) for edge in edges.edges for rank, box in edge.receive.items()}
        finish = begin_swap({rank: part[:, :, *box] for rank, box in edges.send.items()}, shapes, part, world)
        found = _convolved(part, weight, bias, (1,) * (part.ndim - 2))
        arrived, strips = finish(), []
        for edge in edges.edges:
            strip = _exact(empty_like(part, edge.box.shape))
            if sum(prod(shapes[rank]) for rank in edge.receive) < edge.box.pixels:
                strip.zero_()
            for rank, box in edge.receive.items():
                strip[:, :, *box] = arrived[rank]
            edge.outermost(found).add_(_convolved(strip, _exact(edge.outermost(weight)), None, edge.padding))
            strips.append(strip)
        ctx.edges, ctx.world, ctx.has_bias = edges, world, bias is not None
        ctx.save_for_backward(part, weight, *strips)
        return found

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (cotangent,), edges = cotangents, ctx.edges
        part, weight, *strips = ctx.saved_tensors
        wants, padding = ctx.needs_input_grad[0], (1,) * (part.ndim - 2)
        back, of_taps = dict[int, torch.Tensor](), []
        for edge, strip in zip(edges.edges, strips, strict=True):
            seen, tap = (_exact(edge.outermost(values)) for values in (cotangent, weight))
            along, of_tap, _ = _gradients(seen, strip, tap, edge.padding, (wants, True, False))
            of_taps.append(of_tap)
            back |= {rank: along[:, :, *box].to(part.dtype) for rank, box in edge.receive.items() if wants}
        finish = begin_swap(back, {rank: shape_of(box) for rank, box in edges.send.items() if wants}, part, ctx.world)
        found, of_weight, of_bias = _gradients(cotangent, part, weight, padding, (wants, True, ctx.has_bias))
        for edge, of_tap in zip(edges.edges, of_taps, strict=True):
            edge.outermost(of_weight).add_(of_tap)
        arrived = finish()
        for rank in sorted(arrived):
            found[:, :, *edges.send[rank]] += arrived[rank]
        return found if wants else None, of_weight, of_bias if ctx.has_bias else None, None, None


def convolved_part(layer: Any, edges: Edges, world: World, part: torch.Tensor) -> torch.Tensor:
    """``Convolution`` of a layer, in the precision of autocast where that is on."""
    device = part.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else part.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    with torch.autocast(device, enabled=False):
        return Convolution.apply(part.to(dtype), layer.weight.to(dtype), bias, edges, world)  # type: ignore[no-untyped-call]


def _exact(values: torch.Tensor) -> torch.Tensor:
    """In single precision at least on CPUs, whose kernels of half precision fail for a row of pixels (see ``DevicePolicy.place``)."""
    return values.float() if values.device.type == "cpu" and values.itemsize < 4 else values


def _convolved(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, ...]) -> torch.Tensor:
    ones = (1,) * len(padding)
    return torch.convolution(values, weight, bias, ones, padding, ones, False, (0,) * len(padding), 1)


def _gradients(
    cotangent: torch.Tensor, values: torch.Tensor, weight: torch.Tensor, padding: tuple[int, ...], wanted: tuple[bool, bool, bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Of the values, the weight and the bias of ``_convolved``, those that are wanted."""
    ones, biases = (1,) * len(padding), [len(weight)] if wanted[2] else None
    return torch.ops.aten.convolution_backward(
        cotangent, values, weight, biases, ones, padding, ones, False, (0,) * len(padding), 1, wanted
    )

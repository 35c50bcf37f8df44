"""Maps of subimages, restricted to each subdomain's own cells and stitched to one map of the whole image: pure geometry, any dimension.

A map has a vector for every *cell* of an image, a box of c_k pixels along axis k. Where a subimage begins at a multiple of c_k, its
cells are cells of the whole image. A cell belongs to the subdomain in whose core its first pixel lies, and the last subdomain of an axis
has all that remains; so the subdomains' own cells tile the map of the whole image. What a subdomain computes in its overlap serves
its own cells only and is not handed on, as in a step of restricted additive Schwarz (Cai and Sarkis, SIAM J. Sci. Comput. 21, 1999).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ddcnn.decomposition import Box, Decomposition, times
from ddcnn.errors import InputError


@dataclass(frozen=True)
class Stitching:
    """The cells of a decomposition.

    Args:
        cell: (d,) pixels of a cell per axis.
        maps: (d,) cells of every subdomain's map, by subdomain.

    Raises:
        InputError: the cells of a subimage are not cells of the whole image, or a subimage lacks some of its own; names overlaps that do.
    """

    decomposition: Decomposition
    cell: tuple[int, ...]
    maps: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        for subdomain, box, cells in zip(self.decomposition.subdomains, self.own, self.maps, strict=True):
            first = [a // c for a, c in zip(subdomain.subimage.start, self.cell, strict=True)]
            aligned = not any(a % c for a, c in zip(subdomain.subimage.start, self.cell, strict=True))
            if not aligned or min(box.shape) < 1 or any(stop - a > n for stop, a, n in zip(box.stop, first, cells, strict=True)):
                raise InputError(
                    f"--interface maps with --overlap {self.decomposition.overlap}: a map has a cell for {times(self.cell)} pixels, and "
                    f"those of subdomain {subdomain.index}, whose subimage begins at pixel {times(subdomain.subimage.start)}, are not "
                    f"cells of the whole image: {self._way_out()}"
                )

    @cached_property
    def own(self) -> tuple[Box, ...]:
        """The own cells of every subdomain, as boxes of the map of the whole image."""
        boxes = []
        for subdomain, cells in zip(self.decomposition.subdomains, self.maps, strict=True):
            core, start, stop = subdomain.core, [], []
            for axis, c in enumerate(self.cell):
                last = core.stop[axis] == self.decomposition.shape[axis]
                start.append(-(-core.start[axis] // c))
                stop.append(subdomain.subimage.start[axis] // c + cells[axis] if last else -(-core.stop[axis] // c))
            boxes.append(Box(tuple(start), tuple(stop)))
        return tuple(boxes)

    @property
    def shape(self) -> tuple[int, ...]:
        """(d,) cells of the whole image."""
        return self.own[-1].stop

    def restrict(self, values: torch.Tensor, index: int) -> torch.Tensor:
        """A map (B, C, *map) of a subdomain -> that of its own cells (B, C, *own), a view."""
        return values[(slice(None), slice(None), *self._in_map(index))]

    def extend(self, values: torch.Tensor, index: int) -> torch.Tensor:
        """The adjoint of ``restrict``: (B, C, *own) -> (B, C, *map), zero in the cells of others."""
        extended = values.new_zeros(*values.shape[:2], *self.maps[index])
        extended[(slice(None), slice(None), *self._in_map(index))] = values
        return extended

    def stitch(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The own cells of all subdomains, (B, C, *own) each -> the map of the whole image, (B, C, *shape)."""
        batch, channels = parts[0].shape[:2]
        whole = parts[0].new_empty(batch, *self.shape, channels).movedim(-1, 1)
        for part, box in zip(parts, self.own, strict=True):
            whole[(slice(None), slice(None), *box.slices)] = part
        return whole

    def cut(self, whole: torch.Tensor, index: int) -> torch.Tensor:
        """A part of the adjoint of ``stitch``, which is its inverse: (B, C, *shape) -> (B, C, *own), a view."""
        return whole[(slice(None), slice(None), *self.own[index].slices)]

    def _in_map(self, index: int) -> tuple[slice, ...]:
        """The own cells of a subdomain in its map."""
        start = self.decomposition.subdomains[index].subimage.start
        return self.own[index].within(Box(tuple(a // c for a, c in zip(start, self.cell, strict=True)), ()))

    def _way_out(self) -> str:
        """Which overlaps would do, or that none does."""
        found = set()
        for axis, c in enumerate(self.cell):
            inner = {subdomain.core.start[axis] for subdomain in self.decomposition.subdomains} - {0}
            found |= {(a % c, c) for a in inner}
        residues, sizes = {a for a, _ in found}, {c for _, c in found}
        if len(residues) != 1 or len(sizes) != 1:
            return "choose another --grid or image size, whose parts are multiples of it, or another --interface"
        (rest,), (c,) = residues, sizes
        least = next(overlap for overlap in range(rest, rest + 2 * c, c) if overlap >= -rest % c)
        return f"an --overlap of {least}, {least + c} or {least + 2 * c} would do"

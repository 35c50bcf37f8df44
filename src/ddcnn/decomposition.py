"""The decomposition of an image into overlapping subimages: pure geometry, in any dimension.

An image with spatial shape (n_1, ..., n_d) is cut by a grid (g_1, ..., g_d) into N = g_1 ... g_d *cores*, which tile it. A
*subimage* is a core extended by the overlap δ into its neighbours and clipped at the image border (Klawonn, Lanser, Weber,
arXiv 2302.06564, section 2). The *stored* box is the subimage extended once more by a margin, from which shifted subimages are
cut. The restriction R_i cuts subimage i out of an image; its adjoint extends a subimage by zero.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from math import prod

from ddcnn.errors import InputError


def times(numbers: Iterable[int]) -> str:
    """Numbers per axis in messages and names, such as 32x32."""
    return "x".join(map(str, numbers))


@dataclass(frozen=True)
class Box:
    """The pixels start <= x < stop of an image, (d,) pixels each."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(d,) pixels per axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def pixels(self) -> int:
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Indices that cut the box out of an array (*spatial, ...)."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def within(self, outer: "Box") -> tuple[slice, ...]:
        """Indices that cut the box out of an array of the pixels of ``outer`` (*outer, ...)."""
        return tuple(slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, outer.start, strict=True))

    def extended(self, width: int, shape: Sequence[int]) -> "Box":
        """This box extended by ``width`` pixels on every side, clipped to an image of ``shape``."""
        return Box(
            tuple(max(a - width, 0) for a in self.start),
            tuple(min(b + width, n) for b, n in zip(self.stop, shape, strict=True)),
        )

    def mirrored(self, size: int, axis: int = -1) -> "Box":
        """This box after a flip of the image along an axis, which has ``size`` pixels."""
        start, stop = list(self.start), list(self.stop)
        start[axis], stop[axis] = size - stop[axis], size - start[axis]
        return Box(tuple(start), tuple(stop))


def common(one: Box, other: Box) -> Box:
    """The pixels of both boxes."""
    start = tuple(map(max, one.start, other.start))
    return Box(start, tuple(max(a, b) for a, b in zip(start, map(min, one.stop, other.stop), strict=True)))


@dataclass(frozen=True)
class Subdomain:
    """A subdomain of the image.

    Attributes:
        index: from 0 to N - 1.
        position: (d,) in the grid.
        core, subimage, stored: boxes of the whole image: the core, with the overlap, with overlap and margin.
    """

    index: int
    position: tuple[int, ...]
    core: Box
    subimage: Box
    stored: Box


def cuts(size: int, parts: int) -> list[int]:
    """The parts + 1 bounds of the parts of an axis of ``size`` pixels; part sizes differ by at most one pixel.

    The bounds are mirror-symmetric wherever that is possible, so that the flip of a subdomain is a subdomain.
    """

    def cut(k: int) -> int:  # k size / parts, rounded; halves are rounded away from the middle
        return (2 * k * size + parts - (2 * k <= parts)) // (2 * parts)

    return [cut(k) for k in range(parts + 1)]


def grid_of(number: int, sides: Sequence[int]) -> tuple[int, ...]:
    """The grid of so many subdomains whose longest and shortest sides differ least, for images of these sides."""

    def unevenness(grid: tuple[int, ...]) -> float:
        lengths = [side / parts for side, parts in zip(sides, grid, strict=True)]
        return max(lengths) / min(lengths)

    divisors = [k for k in range(1, number + 1) if number % k == 0]
    return min((grid for grid in product(divisors, repeat=len(sides)) if prod(grid) == number), key=unevenness)


def grid_of_ranks(ranks: int, sides: Sequence[int]) -> tuple[int, ...]:
    """As ``grid_of``, and rather of whole rows, which lie together in memory: for ranks that exchange their edges."""
    return grid_of(ranks, sides[::-1])[::-1]


@dataclass(frozen=True)
class Decomposition:
    """A grid of N subdomains over images of one spatial shape; ``len`` is N (arXiv 2302.06564, section 2).

    Args:
        shape: spatial shape of an image (rows, columns) or (depth, rows, columns), pixels.
        grid: subdomains per axis, as many axes as ``shape``.
        overlap: δ, pixels by which a subimage extends beyond its core.
        margin: pixels stored around every subimage for shifts.

    Raises:
        InputError: the grid does not have the images' dimension, or is finer than an image.
    """

    shape: tuple[int, ...]
    grid: tuple[int, ...]
    overlap: int = 0
    margin: int = 0

    def __post_init__(self):
        text, size = times(self.grid), times(self.shape)
        if len(self.grid) != len(self.shape):
            raise InputError(
                f"--grid {text} has {len(self.grid)} dimensions, but the images ({size}) have {len(self.shape)}: "
                f"give {len(self.shape)} numbers, such as --grid {'x'.join('2' * len(self.shape))}"
                f"{', or --volumes if the arrays are volumes' if len(self.grid) == 3 else ''}"
            )
        if any(parts < 1 for parts in self.grid) or self.overlap < 0 or self.margin < 0:
            raise InputError(f"--grid {text} --overlap {self.overlap}: parts must be at least 1, the overlap at least 0")
        if any(parts > n for parts, n in zip(self.grid, self.shape, strict=True)):
            raise InputError(f"--grid {text} is finer than the images, which have {size} pixels: choose a coarser grid")

    def __len__(self) -> int:
        return prod(self.grid)

    @cached_property
    def subdomains(self) -> tuple[Subdomain, ...]:
        """All N subdomains; the position along the last axis changes fastest."""
        axes = [list(pairwise(cuts(n, parts))) for n, parts in zip(self.shape, self.grid, strict=True)]
        positions = product(*map(range, self.grid))
        subdomains = []
        for index, (position, sides) in enumerate(zip(positions, product(*axes), strict=True)):
            start, stop = zip(*sides, strict=True)
            core = Box(start, stop)
            subimage = core.extended(self.overlap, self.shape)
            stored = subimage.extended(self.margin, self.shape)
            subdomains.append(Subdomain(index, position, core, subimage, stored))
        return tuple(subdomains)

    @property
    def box(self) -> Box:
        """The whole image."""
        return Box((0,) * len(self.shape), self.shape)

    def pieces(self, box: Box) -> list[tuple[Subdomain, Box]]:
        """Subdomains in whose stored boxes the pixels of ``box`` are, and which of them: all in one, or the cores of several."""
        for subdomain in self.subdomains:
            if common(subdomain.stored, box) == box:
                return [(subdomain, box)]
        cores = [(subdomain, common(subdomain.core, box)) for subdomain in self.subdomains]
        return [(subdomain, piece) for subdomain, piece in cores if piece.pixels]

    @property
    def most_pixels(self) -> int:
        """Pixels of the largest subimage."""
        return max(prod(subdomain.subimage.shape) for subdomain in self.subdomains)

    def restrict(self, images, index: int, first_axis: int = 1):
        """R_i: (S, *shape, ...) -> (S, *subimage, ...), a view; for NumPy arrays and tensors.

        Args:
            first_axis: the first spatial axis; 1 with channels last, 2 for (S, C, *shape).
        """
        return images[(slice(None),) * first_axis + self.subdomains[index].subimage.slices]

    def extend(self, subimages, index: int, images, first_axis: int = 1) -> None:
        """R_iᵀ, the adjoint of R_i: adds subimages (S, *subimage, ...) in place to their pixels of ``images`` (S, *shape, ...)."""
        images[(slice(None),) * first_axis + self.subdomains[index].subimage.slices] += subimages

    def mirror(self, index: int, axes: Sequence[int] = (-1,)) -> int:
        """The index of the subdomain that a flip of these axes, which count from the last, maps to subdomain ``index``.

        Raises:
            InputError: an axis cannot be cut symmetrically (an odd number of pixels in an even number of parts), or there is none.
        """
        for axis in axes:
            if -axis > len(self.shape):
                raise InputError("--flip-axes depth: images have only rows and columns; leave depth out, or give volumes")
            size, parts, ours = self.shape[axis], self.grid[axis], self.subdomains[index]
            stride = prod(self.grid[len(self.grid) + axis + 1 :])
            mirror = index + (parts - 1 - 2 * ours.position[axis]) * stride
            if self.subdomains[mirror].core != ours.core.mirrored(size, axis):
                direction, pixels = (("left to right", "columns"), ("top to bottom", "rows"), ("front to back", "slices"))[-axis - 1]
                raise InputError(
                    f"flips need a decomposition that is symmetric from {direction}: {size} {pixels} in {parts} parts are "
                    f"not; choose another --grid, or an --augment without flip{' or other --flip-axes' if axis < -1 else ''}"
                )
            index = mirror
        return index

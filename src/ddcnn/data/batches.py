"""Batches: samples stay on the device in the source's pixel type, and each batch is converted to network input."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch

from ddcnn.data.augmentation import Augmentation, Drawn, Labels, erase_, mix_
from ddcnn.data.partitioned_set import PartitionedSet


class Samples(Protocol):
    """A set of labelled samples on the device."""

    @property
    def pixels(self) -> int:
        """Pixels of the largest image that a network gets of a sample, the same on all ranks; 1 for rows."""

    def batch(self, index: torch.Tensor, generator: torch.Generator | None = None) -> tuple[Any, Labels]:
        """Network input and labels (B,) int64 of the samples ``index`` (B,); augmented if there is a ``generator`` to draw from."""


class Images(Samples, Protocol):
    """Samples that can return part of a batch with the whole batch's augmentation."""

    def batch(self, index: torch.Tensor, generator: torch.Generator | None = None, part: slice = slice(None)) -> tuple[Any, Labels]:
        """Network input and labels of ``index[part]``, augmented as in the batch ``index`` (B,)."""


@dataclass(frozen=True)
class Rows:
    """Samples that are network input as they are: ``inputs`` (S, features) float32, ``labels`` (S,) int64."""

    inputs: torch.Tensor
    labels: torch.Tensor
    pixels = 1

    def batch(self, index: torch.Tensor, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[index], self.labels[index]


@dataclass(frozen=True)
class Subimages:
    """The stored subimages of one subdomain, channels last, which is torch's channels_last memory format without a copy.

    A flip of the whole image moves a mirror subdomain's pixels here, so these are kept too and nothing is communicated. A shift
    needs pixels from around the subimage: the margin of the stored box, with zeros (the mean) beyond the image border.

    Attributes:
        images: (S, *stored, C) in the source's type.
        labels: (S,) int64.
        mean, scale: (C,) float32; a pixel becomes (pixel - mean) · scale.
        window: slices of the subimage in the stored box.
        padding: per axis, zeros before and after the stored box, where the image border has clipped the margin.
        mirrored: (S, *stored, C), images of the mirror subdomain for each set of axes that may be flipped at once.
        start: (d,) of the subimage in the whole image, which has ``shape`` (d,); empty if it is the whole image.
    """

    images: torch.Tensor
    labels: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    window: tuple[slice, ...]
    padding: tuple[tuple[int, int], ...]
    augmentation: Augmentation = Augmentation()
    mirrored: Mapping[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    start: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()

    @classmethod
    def load(
        cls, store: PartitionedSet, split: str, subdomain: int, device: torch.device, augmentation: Augmentation = Augmentation()
    ) -> "Subimages":
        """Reads one subdomain of one split onto the device; for flips also its mirror subdomain."""
        return RankSubimages.load(store, split, [subdomain], device, augmentation).parts[0]

    @classmethod
    def load_whole(
        cls, store: PartitionedSet, split: str, device: torch.device, augmentation: Augmentation = Augmentation()
    ) -> "Subimages":
        """Reads the whole images of one split onto the device: the undecomposed image as a single subdomain."""
        images, labels = to_tensor(store.whole(split)).to(device), torch.from_numpy(store.labels(split)).to(device)
        window = tuple(slice(0, n) for n in store.shape[:-1])
        padding = ((store.margin, store.margin),) * len(window)
        mirrored = dict.fromkeys(augmentation.mirrors, images)
        return cls(images, labels, *_normalisation(store, device), window, padding, augmentation, mirrored)

    @property
    def pixels(self) -> int:
        return math.prod(side.stop - side.start for side in self.window)

    @cached_property
    def _per_pixel(self) -> list[torch.Tensor]:
        """Mean and scale as (*stored, C), five times as fast as (C,): CPUs vectorise along the last axis, and C is small."""
        return [values.expand(self.images.shape[1:]).contiguous() for values in (self.mean, self.scale)]

    def batch(
        self, index: torch.Tensor, generator: torch.Generator | None = None, part: slice = slice(None)
    ) -> tuple[torch.Tensor, Labels]:
        """(B,) -> (B, C, *subimage) float32, labels (B,); of a part of them as ``Images.batch``."""
        drawn = self.draw(len(index), generator)
        return self.augmented(index, drawn, part), drawn.labels(self.labels[index], part)

    def draw(self, batch_size: int, generator: torch.Generator | None) -> Drawn:
        """Draws for a batch of whole images."""
        shape = self.shape or tuple(side.stop - side.start for side in self.window)
        return self.augmentation.draw(batch_size, shape, generator).to(self.images.device)

    def augmented(self, index: torch.Tensor, drawn: Drawn, part: slice) -> torch.Tensor:
        """(B,) -> (B, C, *subimage) float32, of a part of the batch."""
        images = self._unmixed(index[part], drawn[part])
        if drawn.partners is not None and drawn.weights is not None:
            partners = drawn.partners[part]
            mix_(images, self._unmixed(index[partners], drawn[partners]), drawn.weights[part])
        return images.movedim(-1, 1)

    def _unmixed(self, index: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        """(B,) -> (B, *subimage, C) float32, flipped, shifted and erased."""
        images = self.images.index_select(0, index)
        if drawn.flips is not None:
            flips = dict(zip(self.augmentation.flip_axes, drawn.flips, strict=True))
            for axes, mirrored in self.mirrored.items():
                flipped = torch.stack([flip if axis in axes else ~flip for axis, flip in flips.items()]).all(0)
                flipped, dims = flipped.reshape(-1, *[1] * (images.ndim - 1)), [axis - 1 for axis in axes]
                images = torch.where(flipped, mirrored.index_select(0, index).flip(dims), images)
        images = images.float().sub_(self._per_pixel[0]).mul_(self._per_pixel[1])
        if drawn.offsets is not None:
            images = self._shifted(images, drawn.offsets)
        elif any(side.stop - side.start < n for side, n in zip(self.window, images.shape[1:], strict=False)):
            images = images[(slice(None), *self.window)].contiguous()
        if drawn.boxes is not None:
            erase_(images, drawn.boxes, self.start or (0,) * len(self.window))
        return images

    def _shifted(self, images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """(B, *stored, C) -> (B, *subimage, C), image b shifted by offsets[:, b]."""
        zeros = [width for pair in reversed(self.padding) for width in pair]
        images = torch.nn.functional.pad(images, [0, 0, *zeros])
        axes, batch = len(self.window), len(images)
        indices = [torch.arange(batch, device=images.device).reshape(-1, *[1] * axes)]
        for axis, side in enumerate(self.window):
            size, margin = side.stop - side.start, self.padding[axis][0] + side.start
            pixels = margin + offsets[axis][:, None] + torch.arange(size, device=images.device)  # (B, size)
            indices.append(pixels.reshape(batch, *(size if axis == other else 1 for other in range(axes))))
        return images[tuple(indices)]


@dataclass(frozen=True)
class RankSubimages:
    """The subimages of all subdomains of a rank, with one augmentation for all, for networks that are trained jointly."""

    parts: Sequence[Subimages]
    pixels: int  # of the largest subimage, this rank's or another's: all ranks evaluate batches of one size

    @classmethod
    def load(
        cls, store: PartitionedSet, split: str, subdomains: Sequence[int], device: torch.device, augmentation: Augmentation = Augmentation()
    ) -> "RankSubimages":
        """Reads the subdomains, and for flips their mirror subdomains, each once."""
        decomposition, shape = store.decomposition, store.shape[:-1]
        mirrors = [{axes: decomposition.mirror(i, axes) for axes in augmentation.mirrors} for i in subdomains]
        needed = dict.fromkeys((*subdomains, *chain.from_iterable(found.values() for found in mirrors)))
        images = {i: to_tensor(store.read(split, i)).to(device) for i in needed}
        labels, normalisation = torch.from_numpy(store.labels(split)).to(device), _normalisation(store, device)
        parts = []
        for i, found in zip(subdomains, mirrors, strict=True):
            subimage, stored = decomposition.subdomains[i].subimage, decomposition.subdomains[i].stored
            window, mirrored = subimage.within(stored), {axes: images[mirror] for axes, mirror in found.items()}
            padding = tuple((store.margin - w.start, store.margin - (n - w.stop)) for w, n in zip(window, stored.shape, strict=True))
            parts.append(Subimages(images[i], labels, *normalisation, window, padding, augmentation, mirrored, subimage.start, shape))
        return cls(parts, decomposition.most_pixels)

    def batch(
        self, index: torch.Tensor, generator: torch.Generator | None = None, part: slice = slice(None)
    ) -> tuple[list[torch.Tensor], Labels]:
        """(B,) -> per subdomain (B, C, *subimage) float32, labels (B,); of a part of them as ``Images.batch``."""
        first = self.parts[0]
        drawn = first.draw(len(index), generator)
        return [subimages.augmented(index, drawn, part) for subimages in self.parts], drawn.labels(first.labels[index], part)


@dataclass(frozen=True)
class RankShare:
    """A rank's share of every batch: every ``ranks``-th sample, with the augmentation of the whole batch."""

    images: Images
    rank: int
    ranks: int

    @property
    def pixels(self) -> int:
        return self.images.pixels

    def batch(self, index: torch.Tensor, generator: torch.Generator | None = None) -> tuple[Any, Labels]:
        """(B,) -> (B / ranks, C, *spatial) float32, labels (B / ranks,)."""
        return self.images.batch(index, generator, slice(self.rank, None, self.ranks))


def _normalisation(store: PartitionedSet, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of the channels."""
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (store.mean, store.std))
    return mean, 1 / std


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """A tensor in the machine's byte order; unsigned types that torch cannot compute with become the next larger signed one."""
    native = images.dtype.newbyteorder("=")
    dtype = {"u2": np.int32, "u4": np.int64, "u8": np.int64}.get(native.str[1:], native)
    return torch.from_numpy(np.ascontiguousarray(images, dtype=dtype))

"""Batches: samples stay on the device in the source's pixel type, and each batch is converted to network input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from ddcnn.data.partitioned_set import PartitionedSet


class Samples(Protocol):
    """A set of labelled samples on the device."""

    @property
    def pixels(self) -> int:
        """Pixels of the largest image that a network gets of a sample, the same on all ranks; 1 for rows."""

    def batch(self, index: torch.Tensor, generator: torch.Generator | None = None) -> tuple[Any, torch.Tensor]:
        """Network input and labels (B,) int64 of the samples ``index`` (B,); augmented if there is a ``generator`` to draw from."""


class Images(Samples, Protocol):
    """Samples that can return part of a batch with the whole batch's augmentation."""

    def batch(self, index: torch.Tensor, generator: torch.Generator | None = None, part: slice = slice(None)) -> tuple[Any, torch.Tensor]:
        """Network input and labels of ``index[part]``, augmented as in the batch ``index`` (B,)."""


@dataclass(frozen=True)
class Rows:
    """Samples that are network input as they are: ``inputs`` (S, features) float32, ``labels`` (S,) int64."""

    inputs: torch.Tensor
    labels: torch.Tensor
    pixels = 1

    def batch(self, index: torch.Tensor, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[index], self.labels[index]


Drawn = tuple[torch.Tensor | None, torch.Tensor | None]  # flips (B,) bool; offsets (d, B) int64, pixels per axis; None for none


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images: a flip from left to right with probability 1/2, a shift by up to ``shift`` pixels per axis."""

    flip: bool = False
    shift: int = 0

    def draw(self, batch_size: int, axes: int, generator: torch.Generator | None, part: slice) -> Drawn:
        """Draws for the images of a batch, and returns those of a part of it.

        Drawn per image, not per subimage: all subimages of an image are flipped and shifted alike.
        """
        if generator is None:
            return None, None
        flips = (torch.rand(batch_size, generator=generator) < 0.5)[part] if self.flip else None
        offsets = torch.randint(-self.shift, self.shift + 1, (axes, batch_size), generator=generator)[:, part] if self.shift else None
        return flips, offsets


@dataclass(frozen=True)
class Subimages:
    """The stored subimages of one subdomain, channels last, which is torch's channels_last memory format without a copy.

    A flip of the whole image moves the mirror subdomain's pixels here, so these are kept too and nothing is communicated. A shift
    needs pixels from around the subimage: the margin of the stored box, with zeros (the mean) beyond the image border.

    Attributes:
        images: (S, *stored, C) in the source's type.
        labels: (S,) int64.
        mean, scale: (C,) float32; a pixel becomes (pixel - mean) · scale.
        window: slices of the subimage in the stored box.
        padding: per axis, zeros before and after the stored box, where the image border has clipped the margin.
        mirrored: (S, *stored, C), images of the mirror subdomain, for flips.
    """

    images: torch.Tensor
    labels: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    window: tuple[slice, ...]
    padding: tuple[tuple[int, int], ...]
    augmentation: Augmentation = Augmentation()
    mirrored: torch.Tensor | None = None

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
        mirrored = images if augmentation.flip else None
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
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) -> (B, C, *subimage) float32, labels (B,); of a part of them as ``Images.batch``."""
        drawn = self.augmentation.draw(len(index), len(self.window), generator, part)
        return self.augmented(index[part], *drawn), self.labels[index[part]]

    def augmented(self, index: torch.Tensor, flips: torch.Tensor | None, offsets: torch.Tensor | None) -> torch.Tensor:
        """(B,) -> (B, C, *subimage) float32, flipped and shifted."""
        images = self.images.index_select(0, index)
        if flips is not None and self.mirrored is not None:
            flips = flips.to(images.device).reshape(-1, *[1] * (images.ndim - 1))
            images = torch.where(flips, self.mirrored.index_select(0, index).flip(-2), images)
        images = images.float().sub_(self._per_pixel[0]).mul_(self._per_pixel[1])
        if offsets is not None:
            images = self._shifted(images, offsets.to(images.device))
        elif any(side.stop - side.start < n for side, n in zip(self.window, images.shape[1:], strict=False)):
            images = images[(slice(None), *self.window)].contiguous()
        return images.movedim(-1, 1)

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
        geometry = store.decomposition.subdomains
        mirrors = [store.decomposition.mirror(i) if augmentation.flip else i for i in subdomains]
        images = {i: to_tensor(store.read(split, i)).to(device) for i in dict.fromkeys((*subdomains, *mirrors))}
        labels, normalisation = torch.from_numpy(store.labels(split)).to(device), _normalisation(store, device)
        parts = []
        for i, mirror in zip(subdomains, mirrors, strict=True):
            window, stored = geometry[i].subimage.within(geometry[i].stored), geometry[i].stored.shape
            padding = tuple((store.margin - w.start, store.margin - (n - w.stop)) for w, n in zip(window, stored, strict=True))
            mirrored = images[mirror] if augmentation.flip else None
            parts.append(Subimages(images[i], labels, *normalisation, window, padding, augmentation, mirrored))
        return cls(parts, store.decomposition.most_pixels)

    def batch(
        self, index: torch.Tensor, generator: torch.Generator | None = None, part: slice = slice(None)
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(B,) -> per subdomain (B, C, *subimage) float32, labels (B,); of a part of them as ``Images.batch``."""
        first = self.parts[0]
        drawn = first.augmentation.draw(len(index), len(first.window), generator, part)
        return [subimages.augmented(index[part], *drawn) for subimages in self.parts], first.labels[index[part]]


@dataclass(frozen=True)
class RankShare:
    """A rank's share of every batch: every ``ranks``-th sample, with the augmentation of the whole batch."""

    images: Images
    rank: int
    ranks: int

    @property
    def pixels(self) -> int:
        return self.images.pixels

    def batch(self, index: torch.Tensor, generator: torch.Generator | None = None) -> tuple[Any, torch.Tensor]:
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

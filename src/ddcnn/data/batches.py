"""Batches: samples resident on the device in the source's own type, turned into network input when they are used."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from ddcnn.data.partitioned_set import PartitionedSet


class Samples(Protocol):
    """What the training loop needs of a set of samples."""

    def batch(self, index: torch.Tensor, draw: torch.Generator | None = None) -> tuple[Any, torch.Tensor]:
        """Network input and labels (B,) int64 of the samples ``index`` (B,), on the device; augmented if ``draw`` is given."""


class Images(Samples, Protocol):
    """Samples of which a part of a batch can be had, augmented as the whole batch would be."""

    def draws(self, images: int, draw: torch.Generator | None) -> "Draws":
        """The augmentation of a batch of so many images."""

    def drawn(self, index: torch.Tensor, draws: "Draws") -> tuple[Any, torch.Tensor]:
        """As ``batch``, with an augmentation that has been drawn."""


@dataclass(frozen=True)
class Rows:
    """Samples whose input is ready as it lies: ``inputs`` (S, features) float32, ``labels`` (S,) int64."""

    inputs: torch.Tensor
    labels: torch.Tensor

    def batch(self, index: torch.Tensor, draw: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[index], self.labels[index]


@dataclass(frozen=True)
class Draws:
    """The augmentation of one batch: ``flips`` (B,) bool, ``offsets`` (d, B) int64 pixels per axis; None for none."""

    flips: torch.Tensor | None
    offsets: torch.Tensor | None

    def part(self, chosen: slice) -> "Draws":
        """Of these images of the batch."""
        return Draws(
            None if self.flips is None else self.flips[chosen],
            None if self.offsets is None else self.offsets[:, chosen],
        )


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image: with probability 1/2 a flip from left to right; a shift by up to ``shift`` pixels per axis."""

    flip: bool = False
    shift: int = 0

    def draw(self, images: int, axes: int, draw: torch.Generator | None) -> Draws:
        """Drawn per image of a batch, not per subimage: the subimages of one image are all flipped and shifted alike."""
        if draw is None:
            return Draws(None, None)
        flips = torch.rand(images, generator=draw) < 0.5 if self.flip else None
        offsets = torch.randint(-self.shift, self.shift + 1, (axes, images), generator=draw) if self.shift else None
        return Draws(flips, offsets)


@dataclass(frozen=True)
class Subimages:
    """The stored subimages of one subdomain, channels last: as they lie they are torch's channels_last memory format.

    A flip of the whole image brings the mirror subdomain's pixels here, so these are resident too: no communication. A shift
    needs pixels from around the subimage: the margin of the stored box, with zeros (the mean) beyond the image border.

    Attributes:
        images: (S, *stored, C) in the source's type.
        labels: (S,) int64.
        mean, scale: (C,) float32, a pixel becomes (pixel - mean) · scale.
        window: slices of the subimage in the stored box.
        padding: zeros before and after, per axis, that complete the stored box to subimage and margin.
        mirrored: (S, *stored, C) of the mirror subdomain, for flips.
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
        return OwnedSubimages.load(store, split, [subdomain], device, augmentation).parts[0]

    @classmethod
    def load_whole(
        cls, store: PartitionedSet, split: str, device: torch.device, augmentation: Augmentation = Augmentation()
    ) -> "Subimages":
        """Reads the whole images of one split onto the device: the undecomposed image as a single subdomain."""
        images = to_tensor(store.whole(split)).to(device)
        window = tuple(slice(0, n) for n in store.shape[:-1])
        padding = ((store.margin, store.margin),) * len(window)
        mirrored = images if augmentation.flip else None
        return cls(images, _labels(store, split, device), *_normalisation(store, device), window, padding, augmentation, mirrored)

    @cached_property
    def _per_pixel(self) -> list[torch.Tensor]:
        """Mean and scale as (*stored, C): as (C,) they would take five times as long, since CPUs compute along the last axis."""
        return [values.expand(self.images.shape[1:]).contiguous() for values in (self.mean, self.scale)]

    def batch(self, index: torch.Tensor, draw: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) -> (B, C, *subimage) float32, labels (B,)."""
        return self.drawn(index, self.draws(len(index), draw))

    def draws(self, images: int, draw: torch.Generator | None) -> Draws:
        return self.augmentation.draw(images, len(self.window), draw)

    def drawn(self, index: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        return self.augmented(index, draws), self.labels[index]

    def augmented(self, index: torch.Tensor, draws: Draws) -> torch.Tensor:
        """(B,) -> (B, C, *subimage) float32, flipped and shifted as drawn."""
        images = self.images.index_select(0, index)
        if draws.flips is not None and self.mirrored is not None:
            flips = draws.flips.to(images.device).reshape(-1, *[1] * (images.ndim - 1))
            images = torch.where(flips, self.mirrored.index_select(0, index).flip(-2), images)
        images = images.float().sub_(self._per_pixel[0]).mul_(self._per_pixel[1])
        if draws.offsets is not None:
            images = self._shifted(images, draws.offsets.to(images.device))
        elif any(side.stop - side.start < n for side, n in zip(self.window, images.shape[1:], strict=False)):
            images = images[(slice(None), *self.window)].contiguous()
        return images.movedim(-1, 1)

    def _shifted(self, images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """(B, *stored, C) -> (B, *subimage, C), every image at an offset (d, B) of its own."""
        zeros = [width for pair in reversed(self.padding) for width in pair]
        images = torch.nn.functional.pad(images, [0, 0, *zeros])
        axes, batch = len(self.window), len(images)
        places = [torch.arange(batch, device=images.device).reshape(-1, *[1] * axes)]
        for axis, side in enumerate(self.window):
            size, margin = side.stop - side.start, self.padding[axis][0] + side.start
            pixels = margin + offsets[axis][:, None] + torch.arange(size, device=images.device)  # (B, size)
            places.append(pixels.reshape(batch, *(size if axis == other else 1 for other in range(axes))))
        return images[tuple(places)]


@dataclass(frozen=True)
class OwnedSubimages:
    """The subimages of all subdomains of a rank, for a network that needs them at once: one augmentation for all."""

    parts: Sequence[Subimages]

    @classmethod
    def load(
        cls, store: PartitionedSet, split: str, subdomains: Sequence[int], device: torch.device, augmentation: Augmentation = Augmentation()
    ) -> "OwnedSubimages":
        """Reads the subdomains, and for flips their mirror subdomains, each dataset once."""
        places = store.decomposition.subdomains
        mirrors = [store.decomposition.mirror(i) if augmentation.flip else i for i in subdomains]
        index = {places[i].dataset: i for i in (*subdomains, *mirrors)}
        images = {dataset: to_tensor(store.read(split, i)).to(device) for dataset, i in index.items()}
        labels, normalisation = _labels(store, split, device), _normalisation(store, device)
        parts = []
        for i, mirror in zip(subdomains, mirrors, strict=True):
            place = places[i]
            lower = [a - b for a, b in zip(place.subimage.start, place.stored.start, strict=True)]
            upper = [b - a for a, b in zip(place.subimage.stop, place.stored.stop, strict=True)]
            window = tuple(slice(a, a + n) for a, n in zip(lower, place.subimage.shape, strict=True))
            padding = tuple((store.margin - a, store.margin - b) for a, b in zip(lower, upper, strict=True))
            mirrored = images[places[mirror].dataset] if augmentation.flip else None
            parts.append(Subimages(images[place.dataset], labels, *normalisation, window, padding, augmentation, mirrored))
        return cls(parts)

    def batch(self, index: torch.Tensor, draw: torch.Generator | None = None) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(B,) -> per subdomain (B, C, *subimage) float32, labels (B,)."""
        return self.drawn(index, self.draws(len(index), draw))

    def draws(self, images: int, draw: torch.Generator | None) -> Draws:
        return self.parts[0].draws(images, draw)

    def drawn(self, index: torch.Tensor, draws: Draws) -> tuple[list[torch.Tensor], torch.Tensor]:
        return [part.augmented(index, draws) for part in self.parts], self.parts[0].labels[index]


@dataclass(frozen=True)
class Share:
    """A rank's share of every batch: each ``ranks``-th sample, augmented as one process would augment the whole batch."""

    images: Images
    rank: int
    ranks: int

    def batch(self, index: torch.Tensor, draw: torch.Generator | None = None) -> tuple[Any, torch.Tensor]:
        """(B,) -> (B / ranks, C, *spatial) float32, labels (B / ranks,)."""
        own = slice(self.rank, None, self.ranks)
        return self.images.drawn(index[own], self.images.draws(len(index), draw).part(own))


def _labels(store: PartitionedSet, split: str, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(store.labels(split)).to(device)


def _normalisation(store: PartitionedSet, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of the channels."""
    return (
        torch.tensor(store.mean, dtype=torch.float32, device=device),
        1 / torch.tensor(store.std, dtype=torch.float32, device=device),
    )


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """In the machine's byte order, and in the next larger type where torch has no arithmetic for the unsigned one."""
    kind = images.dtype.newbyteorder("=")
    wider = {"u2": np.int32, "u4": np.int64, "u8": np.int64}.get(kind.str[1:], kind)
    return torch.from_numpy(np.ascontiguousarray(images, dtype=wider))

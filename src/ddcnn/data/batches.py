"""Batches: samples stay in the source's pixel type where they are, and each batch is converted to network input on the device."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from typing import Any, Protocol, Self

import torch

from ddcnn.data.augmentation import Augmentation, Drawn, Labels, erase_, mix_
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.stored import InMemory, Place, Stored, to_device
from ddcnn.decomposition import Box

NOTHING = Drawn()  # for images that are not augmented


class Samples(Protocol):
    """A set of labelled samples, for networks on the device.

    Indices of samples are on the CPU; where all that batches are made of is ``on_device`` they may be there, too.
    """

    @property
    def on_device(self) -> bool:
        """Whether batches are made of what is in the device's memory already."""

    @property
    def pixels(self) -> int:
        """Pixels of the largest image that a network gets of a sample, the same on all ranks; 1 for rows."""

    def ahead(self, batches: Sequence[torch.Tensor], augmented: bool = False) -> None:
        """The batches that will be asked for next, in this order; reading may begin."""

    def draw(self, batches: Sequence[torch.Tensor], generator: torch.Generator) -> list[Drawn]:
        """What is drawn for the augmentation of whole batches, in this order; on the device, to where it is copied at once."""

    def batch(self, index: torch.Tensor, drawn: Drawn = NOTHING) -> tuple[Any, Labels]:
        """Network input and labels (B,) int64 of the samples ``index`` (B,), augmented by what has been ``drawn`` for them."""


class Images(Samples, Protocol):
    """Samples that can return part of a batch with the whole batch's augmentation."""

    def ahead(self, batches: Sequence[torch.Tensor], augmented: bool = False, part: slice = slice(None)) -> None:
        """As of ``Samples``, of the same part of every batch."""

    def batch(self, index: torch.Tensor, drawn: Drawn = NOTHING, part: slice = slice(None)) -> tuple[Any, Labels]:
        """Network input and labels of ``index[part]``, augmented as in the batch ``index`` (B,)."""


@dataclass(frozen=True)
class Rows:
    """Samples that are network input as they are: ``inputs`` (S, ...) float32; and ``labels`` (S,) int64 on the device."""

    inputs: Stored
    labels: torch.Tensor
    pixels = 1

    @classmethod
    def of(cls, inputs: torch.Tensor, labels: torch.Tensor) -> Self:
        """Samples on the device."""
        return cls(InMemory(inputs, labels.device), labels)

    def ahead(self, batches: Sequence[torch.Tensor], augmented: bool = False) -> None:
        self.inputs.ahead(batches)

    @property
    def on_device(self) -> bool:
        return self.inputs.on_device

    def draw(self, batches: Sequence[torch.Tensor], generator: torch.Generator) -> list[Drawn]:
        return [NOTHING] * len(batches)

    def batch(self, index: torch.Tensor, drawn: Drawn = NOTHING) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs.take(index), self.labels[to_device(index, self.labels.device)]


@dataclass(frozen=True)
class Subimages:
    """The stored subimages of one subdomain, channels last, which is torch's channels_last memory format without a copy.

    A flip of the whole image moves a mirror subdomain's pixels here, so these are kept too and nothing is communicated. A shift
    needs pixels from around the subimage: the margin of the stored box, with zeros (the mean) beyond the image border.

    Attributes:
        images: (S, *stored, C) in the source's type.
        labels: (S,) int64, on the device.
        mean, scale: (C,) float32; a pixel becomes (pixel - mean) · scale.
        window: slices of the subimage in the stored box.
        padding: per axis, zeros before and after the stored box, where the image border has clipped the margin.
        mirrored: (S, *stored, C), images of the mirror subdomain for each set of axes that may be flipped at once.
        start: (d,) of the subimage in the whole image, which has ``shape`` (d,); empty if it is the whole image.
    """

    images: Stored
    labels: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    window: tuple[slice, ...]
    padding: tuple[tuple[int, int], ...]
    augmentation: Augmentation = Augmentation()
    mirrored: Mapping[tuple[int, ...], Stored] = field(default_factory=dict)
    start: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()

    @classmethod
    def load(
        cls, store: PartitionedSet, split: str, subdomain: int, place: Place, augmentation: Augmentation = Augmentation()
    ) -> "Subimages":
        """One subdomain of one split; for flips also its mirror subdomain."""
        return RankSubimages.load(store, split, [subdomain], place, augmentation).parts[0]

    @classmethod
    def load_box(
        cls, store: PartitionedSet, split: str, box: Box, place: Place, augmentation: Augmentation = Augmentation(),
        checked: Container[int] | None = None,
    ) -> "Subimages":  # fmt: skip
        """The pixels of a box of the images of one split, as if it were a subdomain: all pixels, or a rank's part of them.

        Args:
            checked: as of ``PartitionedSet.box_rows``.
        """
        shape = store.shape[:-1]
        stored = stored_boxes(store, box, augmentation)
        images = {
            one: place.stored(partial(store.whole, split, box=one), partial(store.box_rows, split, one, checked))
            for one in dict.fromkeys(stored.values())
        }
        return cls(
            images[stored[()]], torch.from_numpy(store.labels(split)).to(place.device), *_normalisation(store, place.device),
            box.within(stored[()]), _padding(store.margin, box, stored[()]), augmentation,
            {axes: images[stored[axes]] for axes in augmentation.mirrors}, box.start, shape,
        )  # fmt: skip

    @property
    def pixels(self) -> int:
        return math.prod(side.stop - side.start for side in self.window)

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @cached_property
    def _per_pixel(self) -> list[torch.Tensor]:
        """Mean and scale as (*stored, C), five times as fast as (C,): CPUs vectorise along the last axis, and C is small."""
        return [values.expand(self.images.shape).contiguous() for values in (self.mean, self.scale)]

    def ahead(self, batches: Sequence[torch.Tensor], augmented: bool = False, part: slice = slice(None)) -> None:
        for stored in self.read_of(augmented):
            stored.ahead(self.needed(batches, augmented, part))

    def read_of(self, augmented: bool) -> list[Stored]:
        """All that batches are made of."""
        return [self.images, *(self.mirrored.values() if augmented else ())]

    def needed(self, batches: Sequence[torch.Tensor], augmented: bool, part: slice) -> Sequence[torch.Tensor]:
        """The samples that a part of each batch is made of: others are mixed in."""
        return batches if augmented and self.augmentation.mixup else [index[part] for index in batches]

    @property
    def on_device(self) -> bool:
        return all(stored.on_device for stored in self.read_of(True))

    def draw(self, batches: Sequence[torch.Tensor], generator: torch.Generator) -> list[Drawn]:
        shape = self.shape or tuple(side.stop - side.start for side in self.window)
        return self.augmentation.draw_all(list(map(len, batches)), shape, generator, self.device)

    def batch(self, index: torch.Tensor, drawn: Drawn = NOTHING, part: slice = slice(None)) -> tuple[torch.Tensor, Labels]:
        """(B,) -> (B, C, *subimage) float32, labels (B,); of a part of them as ``Images.batch``."""
        return self.augmented(index, drawn, part), drawn.labels(self.labels[to_device(index, self.device)], part)

    def augmented(self, index: torch.Tensor, drawn: Drawn, part: slice) -> torch.Tensor:
        """(B,) -> (B, C, *subimage) float32, of a part of the batch."""
        (needed,) = self.needed([index], drawn.partners is not None, part)
        rows = [stored.take(needed) for stored in self.read_of(drawn.flips is not None)]
        if drawn.partners is None or drawn.weights is None:
            return self._unmixed(rows, drawn[part]).movedim(-1, 1)
        partners = drawn.partners[part]
        images, others = (self._unmixed([one[chosen] for one in rows], drawn[chosen]) for chosen in (part, partners))
        return mix_(images, others, drawn.weights[part]).movedim(-1, 1)

    def _unmixed(self, rows: list[torch.Tensor], drawn: Drawn) -> torch.Tensor:
        """Pixels (B, *stored, C) of ``read_of`` -> (B, *subimage, C) float32, flipped, shifted and erased."""
        images = rows[0]
        if drawn.flips is not None:
            flips = dict(zip(self.augmentation.flip_axes, drawn.flips, strict=True))
            for axes, mirrored in zip(self.mirrored, rows[1:], strict=True):
                flipped = torch.stack([flip if axis in axes else ~flip for axis, flip in flips.items()]).all(0)
                flipped, dims = flipped.reshape(-1, *[1] * (images.ndim - 1)), [axis - 1 for axis in axes]
                images = torch.where(flipped, mirrored.flip(dims), images)
        images = images.float() if images.dtype == torch.float64 else images
        images = torch.sub(images, self._per_pixel[0]).mul_(self._per_pixel[1])  # other types become float32 on the way
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
        cls, store: PartitionedSet, split: str, subdomains: Sequence[int], place: Place, augmentation: Augmentation = Augmentation()
    ) -> "RankSubimages":
        """The subdomains, and for flips their mirror subdomains, each once."""
        decomposition, shape = store.decomposition, store.shape[:-1]
        mirrors = [{axes: decomposition.mirror(i, axes) for axes in augmentation.mirrors} for i in subdomains]
        needed = dict.fromkeys((*subdomains, *chain.from_iterable(found.values() for found in mirrors)))
        images = {i: place.stored(partial(store.read, split, i), partial(store.rows, split, i)) for i in needed}
        labels, normalisation = torch.from_numpy(store.labels(split)).to(place.device), _normalisation(store, place.device)
        parts = []
        for i, found in zip(subdomains, mirrors, strict=True):
            subimage, stored = decomposition.subdomains[i].subimage, decomposition.subdomains[i].stored
            window, mirrored = subimage.within(stored), {axes: images[mirror] for axes, mirror in found.items()}
            padding = _padding(store.margin, subimage, stored)
            parts.append(Subimages(images[i], labels, *normalisation, window, padding, augmentation, mirrored, subimage.start, shape))
        return cls(parts, decomposition.most_pixels)

    def ahead(self, batches: Sequence[torch.Tensor], augmented: bool = False, part: slice = slice(None)) -> None:
        needed = self.parts[0].needed(batches, augmented, part)
        for stored in dict.fromkeys(chain.from_iterable(subimages.read_of(augmented) for subimages in self.parts)):
            stored.ahead(needed)

    @property
    def on_device(self) -> bool:
        return all(subimages.on_device for subimages in self.parts)

    def draw(self, batches: Sequence[torch.Tensor], generator: torch.Generator) -> list[Drawn]:
        return self.parts[0].draw(batches, generator)

    def batch(
        self, index: torch.Tensor, drawn: Drawn = NOTHING, part: slice = slice(None)
    ) -> tuple[list[torch.Tensor], Labels]:  # fmt: skip
        """(B,) -> per subdomain (B, C, *subimage) float32, labels (B,); of a part of them as ``Images.batch``."""
        first = self.parts[0]
        labels = first.labels[to_device(index, first.device)]
        return [subimages.augmented(index, drawn, part) for subimages in self.parts], drawn.labels(labels, part)


def stored_boxes(store: PartitionedSet, box: Box, augmentation: Augmentation) -> dict[tuple[int, ...], Box]:
    """What is read for a box: its own pixels with the margin, and for each set of axes that may be flipped at once its mirror's."""
    shape, boxes = store.shape[:-1], {}
    for axes in ((), *augmentation.mirrors):
        mirrored = box
        for axis in axes:
            mirrored = mirrored.mirrored(shape[axis], axis)
        boxes[axes] = mirrored.extended(store.margin, shape)
    return boxes


def _padding(margin: int, box: Box, stored: Box) -> tuple[tuple[int, int], ...]:
    """Per axis, pixels by which the image border has clipped the margin around ``box``, before and after."""
    clipped = [(margin - (a - c), margin - (d - b)) for a, b, c, d in zip(box.start, box.stop, stored.start, stored.stop, strict=True)]
    return tuple(clipped)


def _normalisation(store: PartitionedSet, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of the channels."""
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (store.mean, store.std))
    return mean, 1 / std

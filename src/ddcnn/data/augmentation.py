"""Random augmentation of training images, drawn once for a batch of whole images: all subimages of an image are augmented alike.

Nothing is communicated: all ranks draw the same from the same seed, and each applies it to the part of the image that it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, combinations

import numpy as np
import torch


@dataclass(frozen=True)
class MixedLabels:
    """Labels of mixed images: classes ``main`` and ``other`` (B,) int64, ``weight`` (B,) float32 of the main one, at least 1/2."""

    main: torch.Tensor
    other: torch.Tensor
    weight: torch.Tensor

    def __getitem__(self, part: slice) -> "MixedLabels":
        return MixedLabels(self.main[part], self.other[part], self.weight[part])

    def __len__(self) -> int:
        return len(self.main)


Labels = torch.Tensor | MixedLabels


@dataclass(frozen=True)
class Drawn:
    """What has been drawn for the B images of a batch, the last axis of all tensors; None for what is not augmented.

    Attributes:
        flips: (axes, B) bool, for each axis of ``Augmentation.flip_axes``.
        offsets: (d, B) int64, pixels per axis.
        boxes: (2, d, B) int64, first pixel and end of what is erased, per axis of the whole image.
        partners: (B,) int64, the place in the batch of the image that is mixed in.
        weights: (B,) float32, of the image itself where it is mixed.
    """

    flips: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    partners: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def __getitem__(self, part: slice | torch.Tensor) -> "Drawn":
        """What has been drawn for a part of the batch."""
        return replace(self, **{name: values[..., part] for name, values in self.tensors.items()})

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """By name, without those of what is not augmented."""
        return {field.name: values for field in fields(self) if (values := getattr(self, field.name)) is not None}

    def labels(self, labels: torch.Tensor, part: slice) -> Labels:
        """Labels of a part of the batch, from those of the whole batch (B,)."""
        if self.partners is None or self.weights is None:
            return labels[part]
        return MixedLabels(labels[part], labels[self.partners[part]], self.weights[part])


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each training image.

    Attributes:
        flip: whether it is flipped, with probability 1/2 along each of the ``flip_axes``, which count from the last: -1 are the columns.
        shift: largest shift per axis, pixels; zeros (the mean) come in.
        erase: largest side of a box of zeros, as a fraction of the image's sides; it lies anywhere within the image.
        mixup: parameter of the beta distribution of the weight with which another image of the batch is mixed in (Zhang et al., 2018).
    """

    flip: bool = False
    shift: int = 0
    flip_axes: tuple[int, ...] = (-1,)
    erase: float = 0.0
    mixup: float = 0.0

    @property
    def mirrors(self) -> list[tuple[int, ...]]:
        """The sets of axes along which an image may be flipped at once; for each, the pixels of a mirror subdomain are needed."""
        axes = self.flip_axes if self.flip else ()
        return list(chain.from_iterable(combinations(axes, number) for number in range(1, len(axes) + 1)))

    def draw_all(
        self, batch_sizes: Sequence[int], shape: tuple[int, ...], generator: torch.Generator, device: torch.device
    ) -> list[Drawn]:  # fmt: skip
        """Draws for batches of images of ``shape`` (d,) pixels, one after the other; all are copied to the device at once."""
        each = [self.draw(size, shape, generator) for size in batch_sizes]
        found = [dict[str, torch.Tensor]() for _ in each]
        for name in each[0].tensors if each else ():
            values = torch.cat([drawn.tensors[name] for drawn in each], -1).to(device)
            for one, part in zip(found, values.split(list(batch_sizes), -1), strict=True):
                one[name] = part
        return [Drawn(**one) for one in found]

    def draw(self, batch_size: int, shape: tuple[int, ...], generator: torch.Generator) -> Drawn:
        """Draws for the images of a batch, of ``shape`` (d,) pixels each."""
        drawn: dict[str, torch.Tensor] = {}
        if self.flip:
            drawn["flips"] = torch.rand(len(self.flip_axes), batch_size, generator=generator) < 0.5
        if self.shift:
            drawn["offsets"] = torch.randint(-self.shift, self.shift + 1, (len(shape), batch_size), generator=generator)
        if self.erase:
            random, sides = torch.rand(2, len(shape), batch_size, generator=generator), torch.tensor(shape)[:, None]
            sizes = (random[0] * ((self.erase * sides).round() + 1)).long()
            starts = (random[1] * (sides - sizes + 1)).long()
            drawn["boxes"] = torch.stack([starts, starts + sizes])
        if self.mixup:
            drawn["partners"] = torch.randperm(batch_size, generator=generator)
            seed = int(torch.randint(1 << 62, (), generator=generator))
            weights = np.random.default_rng(seed).beta(self.mixup, self.mixup, batch_size)  # torch's takes no generator
            drawn["weights"] = torch.from_numpy(np.maximum(weights, 1 - weights)).float()
        return Drawn(**drawn)


def erase_(images: torch.Tensor, boxes: torch.Tensor, start: tuple[int, ...]) -> None:
    """Sets the part of the boxes (2, d, B) to zero, in place, that lies in subimages (B, *subimage, C) at ``start`` of the whole image."""
    batch, *sides, _ = images.shape
    inside = torch.ones(batch, *[1] * (images.ndim - 1), dtype=torch.bool, device=images.device)
    for axis, (first, side) in enumerate(zip(start, sides, strict=True)):
        pixels = torch.arange(first, first + side, device=images.device)
        within = (pixels >= boxes[0, axis][:, None]) & (pixels < boxes[1, axis][:, None])  # (B, side)
        inside = inside & within.reshape(batch, *(side if axis == other else 1 for other in range(len(sides))), 1)
    images.masked_fill_(inside, 0)


def mix_(images: torch.Tensor, others: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Images (B, ...) times ``weights`` (B,) plus others (B, ...) times the rest, in place of both."""
    weights = weights.reshape(-1, *[1] * (images.ndim - 1))
    return images.mul_(weights).add_(others.mul_(1 - weights))

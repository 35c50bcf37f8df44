"""Batches: samples resident on the device in the source's own type, turned into network input when they are used."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ddcnn.data.store import PartitionedSet


class Samples(Protocol):
    """What the training loop needs of a set of samples."""

    @property
    def labels(self) -> torch.Tensor:
        """(S,) int64, on the device."""

    def batch(self, index: torch.Tensor, draw: torch.Generator | None = None) -> torch.Tensor:
        """Network input of the samples ``index`` (B,), on the device; augmented if ``draw`` is given."""


@dataclass(frozen=True)
class Rows:
    """Samples whose input is ready as it lies: ``inputs`` (S, features) float32."""

    inputs: torch.Tensor
    labels: torch.Tensor

    def batch(self, index: torch.Tensor, draw: torch.Generator | None = None) -> torch.Tensor:
        return self.inputs[index]


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image: with probability 1/2 a flip from left to right; a shift by up to ``shift`` pixels per axis."""

    flip: bool = False
    shift: int = 0


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
        place = store.decomposition.subdomains[subdomain]
        lower = [a - b for a, b in zip(place.subimage.start, place.stored.start, strict=True)]
        upper = [b - a for a, b in zip(place.subimage.stop, place.stored.stop, strict=True)]
        mirrored = None
        if augmentation.flip:
            mirrored = _tensor(store.read(split, store.decomposition.mirror(subdomain))).to(device)
        return cls(
            images=_tensor(store.read(split, subdomain)).to(device),
            labels=torch.from_numpy(store.labels(split)).to(device),
            mean=torch.tensor(store.mean, dtype=torch.float32, device=device),
            scale=1 / torch.tensor(store.std, dtype=torch.float32, device=device),
            window=tuple(slice(a, a + n) for a, n in zip(lower, place.subimage.shape, strict=True)),
            padding=tuple((store.margin - a, store.margin - b) for a, b in zip(lower, upper, strict=True)),
            augmentation=augmentation,
            mirrored=mirrored,
        )

    def batch(self, index: torch.Tensor, draw: torch.Generator | None = None) -> torch.Tensor:
        """(B,) -> (B, C, *subimage) float32."""
        images = self.images[index]
        if draw is not None and self.mirrored is not None:
            flips = (torch.rand(len(index), generator=draw) < 0.5).to(images.device)
            flips = flips.reshape(-1, *[1] * (images.ndim - 1))
            images = torch.where(flips, self.mirrored[index].flip(-2), images)
        images = (images.float() - self.mean) * self.scale
        if draw is not None and self.augmentation.shift:
            images = self._shifted(images, draw)
        elif any(side.stop - side.start < n for side, n in zip(self.window, images.shape[1:], strict=False)):
            images = images[(slice(None), *self.window)].contiguous()
        return images.movedim(-1, 1)

    def _shifted(self, images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """(B, *stored, C) -> (B, *subimage, C), every image at an offset of its own."""
        zeros = [width for pair in reversed(self.padding) for width in pair]
        images = torch.nn.functional.pad(images, [0, 0, *zeros])
        axes, batch, shift = len(self.window), len(images), self.augmentation.shift
        margin = self.padding[0][0] + self.window[0].start
        offsets = torch.randint(margin - shift, margin + shift + 1, (axes, batch), generator=draw).to(images.device)
        places = [torch.arange(batch, device=images.device).reshape(-1, *[1] * axes)]
        for axis, side in enumerate(self.window):
            size = side.stop - side.start
            pixels = offsets[axis][:, None] + torch.arange(size, device=images.device)  # (B, size)
            places.append(pixels.reshape(batch, *(size if axis == other else 1 for other in range(axes))))
        return images[tuple(places)]


def _tensor(images: np.ndarray) -> torch.Tensor:
    """In the machine's byte order, and in the next larger type where torch has no arithmetic for the unsigned one."""
    kind = images.dtype.newbyteorder("=")
    wider = {"u2": np.int32, "u4": np.int64, "u8": np.int64}.get(kind.str[1:], kind)
    return torch.from_numpy(np.ascontiguousarray(images, dtype=wider))

"""A stand-in for a partitioned set: a few random images of its shape and type, for trying out what a run would take."""

import math
from collections.abc import Container
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.decomposition import Box
from ddcnn.io.rows import ArrayRows, RowReader

UNIFORM = 255  # pixels that are integers lie below this, and below the largest of their type


@dataclass(frozen=True)
class StandIn(PartitionedSet):
    """A set without a file, whose images are random."""

    @classmethod
    def of(cls, store: PartitionedSet, most: int) -> Self:
        """A stand-in with so many bytes of samples at most, but one at least, in every split that ``store`` has."""
        random = np.random.default_rng(0)
        few = max(1, most // (math.prod(store.shape) * np.dtype(store.dtype).itemsize))
        counts = {split: min(samples, few) for split, samples in store.samples.items()}
        labels = {f"{split}/labels": random.integers(0, len(store.class_names), count) for split, count in counts.items()}
        values = {field.name: getattr(store, field.name) for field in fields(PartitionedSet)}
        mean, std = ((value,) * store.shape[-1] for value in ((0.0, 1.0) if np.dtype(store.dtype).kind == "f" else (64.0, 36.0)))
        stand_in = cls(**values | {f"{split}_samples": count for split, count in counts.items()})
        return replace(stand_in, tables=labels, mean=mean, std=std)

    def read(self, split: str, index: int, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        return self._images(split, self.decomposition.subdomains[index].stored.shape, rows)

    def whole(self, split: str, rows: slice | np.ndarray = slice(None), box: Box | None = None) -> np.ndarray:
        return self._images(split, (box or self.decomposition.box).shape, rows)

    def rows(self, split: str, index: int, checked: bool = True) -> RowReader:
        return ArrayRows(self.read(split, index))

    def box_rows(self, split: str, box: Box, checked: Container[int] | None = None) -> RowReader:
        return ArrayRows(self.whole(split, box=box))

    def _images(self, split: str, spatial: tuple[int, ...], rows: slice | np.ndarray) -> np.ndarray:
        random, dtype = np.random.default_rng(0), np.dtype(self.dtype)
        shape = (len(np.arange(self.samples[split])[rows]), *spatial, self.shape[-1])
        if dtype.kind == "f":
            return random.standard_normal(shape, np.float32).astype(dtype, copy=False)
        return random.integers(0, min(UNIFORM, np.iinfo(dtype).max), shape, np.uint8).astype(dtype, copy=False)


def described(
    source: str, shape: tuple[int, ...], dtype: str, class_names: tuple[str, ...], labels: dict[str, np.ndarray],
    grid: tuple[int, ...], overlap: int, margin: int, preprocessing: str,
) -> PartitionedSet:  # fmt: skip
    """What a partitioned set would say of itself that is not there, as far as that is known without reading its images.

    Args:
        labels: (S,) int64 per split.
    """
    channels = shape[-1]
    counts: dict[str, Any] = {f"{split}_samples": len(numbers) for split, numbers in labels.items()}
    return PartitionedSet(
        path="", source=source, source_sha256="", shape=shape, dtype=dtype, grid=grid, overlap=overlap, margin=margin,
        class_names=class_names, preprocessing=preprocessing, mean=(0.0,) * channels, std=(1.0,) * channels,
        tables={f"{split}/labels": numbers for split, numbers in labels.items()}, **counts,
    )  # fmt: skip


def stored_bytes(store: PartitionedSet, split: str, subdomain: int) -> int:
    """Bytes of a subdomain's stored subimages of a split."""
    pixels = int(np.prod(store.decomposition.subdomains[subdomain].stored.shape))
    return pixels * store.shape[-1] * np.dtype(store.dtype).itemsize * store.samples[split]

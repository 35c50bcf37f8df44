"""What every source is made of: its options, its splits, and the rules that all of them keep."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ddcnn.data.sources.decoding import PixelFormat
from ddcnn.errors import InputError
from ddcnn.parallel.seeding import numpy_generator

PIXEL_KINDS = "uif"  # unsigned and signed integers, floats
SPLITS = ("train", "test")
PLACE = ("name", "data_root", "download", "pixels")  # of SourceOptions: where images are, and what they are alike in
READ_BYTES = 1 << 24  # of samples that are in memory at a time before they are fitted, which may be much larger than afterwards


class DamagedSample(InputError):
    """One sample that cannot be read; all others can."""

    @classmethod
    def of(cls, what: object, reason: object) -> "DamagedSample":
        """``what`` names the file or the sample."""
        return cls(f"{what}: cannot be read ({reason}); mend or remove it, or add --skip-damaged")


@dataclass(frozen=True)
class SourceOptions:
    """What a source needs to know: its name or path, where sets lie, how to read ambiguous arrays, what the images become.

    Attributes:
        name: what ``--data`` says.
        data_root: where torchvision's sets lie or are downloaded to.
        volumes: arrays hold volumes, (S, depth, rows, columns[, C]).
        image_size: rows, columns that images get; None leaves them.
        image_transform: "resize+center-crop", "resize" or "center-crop".
        interpolation: "nearest", "bilinear" or "bicubic".
        volume_size: depth, rows, columns that volumes get; None leaves them.
        window: lowest and highest intensity; others are clipped to it, before the size is changed.
        test_fraction: share of the samples that are tested on where a source has no test split.
        seed: of that choice.
        pixels: what image files are converted to; None for what they share.
    """

    name: str
    data_root: Path
    download: bool = False
    volumes: bool = False
    image_size: tuple[int, int] | None = None
    image_transform: str = "resize+center-crop"
    interpolation: str = "bilinear"
    volume_size: tuple[int, int, int] | None = None
    window: tuple[float, float] | None = None
    test_fraction: float = 0.2
    seed: int = 0
    pixels: PixelFormat | None = None

    @property
    def preprocessing(self) -> str:
        """What decides which images there are and what becomes of them, as JSON: for those that come later."""
        return json.dumps({name: value for name, value in asdict(self).items() if name not in PLACE})

    def as_before(self, preprocessing: str) -> "SourceOptions":
        """With the ``preprocessing`` of other options."""
        found = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(preprocessing).items()}
        return SourceOptions(**{name: getattr(self, name) for name in PLACE} | found)


@dataclass(frozen=True)
class Split:
    """Labelled images of one split.

    Attributes:
        shape: (S, *spatial, C), channels last.
        dtype: the source's own pixel type.
        labels: (S,) int64, in 0 ... K-1; of images to be classified -1 where nobody knows.
        read: takes ascending indices (n,) int64, returns those images (n, *spatial, C) in ``dtype``; cheapest when the calls ascend, too.
            It raises DamagedSample for a sample that cannot be read, InputError for a whole file of arrays.
        name: what sample i is called.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    labels: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]
    name: Callable[[int], object] = str

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class Source:
    """A data set: its splits, its class names and a fingerprint that changes when its content does.

    ``in_memory`` sets are loaded whole by their library, so one rank loads and partitions them; the others would load them again.
    ``fitted`` sources have clipped and resized their images themselves; for all others ``open_source`` does it, and says with which
    ``preprocessing``.
    """

    name: str
    splits: dict[str, Split]  # "train" and "test"
    class_names: tuple[str, ...]
    fingerprint: str
    in_memory: bool = False
    fitted: bool = False
    preprocessing: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """(*spatial, C) of every image."""
        return self.splits["train"].shape[1:]


def balanced_subset(labels: np.ndarray, samples: int | None, seed: int, split: str) -> np.ndarray:
    """Ascending indices of a seeded subset with as equal numbers per class as the classes allow; all indices for None.

    Raises:
        InputError: more samples are asked for than there are.
    """
    if samples is None:
        return np.arange(len(labels))
    if samples > len(labels):
        raise InputError(f"--{split}-samples {samples}: the {split} split has only {len(labels)} samples")
    order = numpy_generator(seed, f"subset {split}").permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, shuffled within
    rank_in_class = np.concatenate([np.arange(count) for count in np.unique(labels, return_counts=True)[1]])
    return np.sort(order[np.argsort(rank_in_class, kind="stable")[:samples]])  # one of each class, then the next of each


def split_by_fraction(options: SourceOptions, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Ascending indices of a training and a test split of (S,) labels; a seeded choice with the same share of every class.

    A class of two samples or more has at least one in either split; a class of one sample is trained on only.

    Raises:
        InputError: a fraction that is none, or no class with two samples.
    """
    fraction = options.test_fraction
    if not 0 < fraction < 1:
        raise InputError(f"--test-fraction {fraction}: must lie between 0 and 1")
    order = numpy_generator(options.seed, "test fraction").permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, shuffled within
    ends = np.cumsum(np.unique(labels, return_counts=True)[1])
    parts = np.split(order, ends[:-1])
    test = np.sort(np.concatenate([part[: min(len(part) - 1, max(1, round(fraction * len(part))))] for part in parts]))
    if not test.size:
        raise InputError(f"{options.name}: no class has a sample to spare for a test split; give every class two or more")
    return {"train": np.setdiff1d(np.arange(len(labels)), test), "test": test}


def in_memory(name: str, arrays: dict[str, tuple[np.ndarray, np.ndarray]], class_names) -> Source:
    """A set that its library loads whole: {"train": (images (S, rows, columns[, C]), labels (S,)), "test": ...}."""
    splits, digest = {}, hashlib.sha256()
    for split, (images, labels) in arrays.items():
        images = np.ascontiguousarray(images)
        images = images.reshape(*images.shape[:3], math.prod(images.shape[3:]))
        splits[split] = Split(images.shape, images.dtype, np.asarray(labels, np.int64), images.__getitem__)
        digest.update(images.data)
        digest.update(splits[split].labels.data)
    return Source(name, splits, tuple(map(str, class_names)), digest.hexdigest(), in_memory=True)


def check(source: Source) -> None:
    """Refuses what cannot be trained on.

    Raises:
        InputError: splits whose images differ, no pixels or none that are numbers, labels out of range, a single class.
    """
    train, test = source.splits["train"], source.splits["test"]
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise InputError(
            f"{source.name}: training images are {train.shape[1:]} {train.dtype}, test images {test.shape[1:]} {test.dtype}; "
            "they must be alike"
        )
    if train.dtype.kind not in PIXEL_KINDS or train.dtype.itemsize > 8:
        raise InputError(f"{source.name}: pixels of type {train.dtype}; expected integers or floats of up to 64 bits")
    if 0 in train.shape[1:]:
        raise InputError(f"{source.name}: images of shape {train.shape[1:]} have no pixels")
    if math.prod(train.shape[1:]) * train.dtype.itemsize > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4:
        raise InputError(f"{source.name}: one image of shape {train.shape[1:]} {train.dtype} takes over a quarter of this machine's memory")
    for name, split in source.splits.items():
        if len(split) == 0 or len(split) != len(split.labels):
            raise InputError(f"{source.name}: {name} has {len(split)} images and {len(split.labels)} labels")
        wrong = np.flatnonzero((split.labels < 0) | (split.labels >= len(source.class_names)))
        if wrong.size:
            raise InputError(
                f"{source.name}: label {split.labels[wrong[0]]} of {name} sample {wrong[0]} is out of range: "
                f"the training split has classes 0 … {len(source.class_names) - 1}"
            )
    if len(source.class_names) < 2:
        raise InputError(f"{source.name}: only one class; a classifier needs two")

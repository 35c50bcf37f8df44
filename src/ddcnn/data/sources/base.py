"""Options, splits and sources, and the checks that every source must pass. Module ``splits`` draws the splits that a source lacks."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from ddcnn.data.sources.decoding import MOST_BYTES, PixelFormat
from ddcnn.errors import InputError

PIXEL_KINDS = "uif"  # NumPy's kinds: unsigned and signed integers, floats
SPLIT_NAMES = {
    "train": ("train", "training"), "validation": ("validation", "val", "valid", "dev"), "test": ("test", "testing"),
}  # what folders and cells of tables are called, in lower case  # fmt: skip
SPLITS = tuple(SPLIT_NAMES)
NOT_STORED = ("name", "data_root", "download", "follow_links", "pixels", "known")  # of SourceOptions: not part of ``preprocessing``
UNLESS_DEFAULT = {
    "mode": "auto",
    "nan": "refuse",
    "validation_fraction": 0,
}  # stored only if they differ, so that digests of sets are what they were
READ_BYTES = 1 << 24  # of samples in memory at a time before they are resized; they may be much larger than afterwards


class DamagedSample(InputError):
    """A single sample that cannot be read, or has values that are not finite."""

    @classmethod
    def of(cls, what: object, reason: object) -> "DamagedSample":
        """``what`` names the file or the sample."""
        return cls(f"{what}: cannot be read ({reason}); mend or remove it, or add --skip-damaged")

    @classmethod
    def not_finite(cls, what: object, sample: np.ndarray) -> "DamagedSample":
        """``what`` names a sample that has a pixel which is NaN or infinite; ``--nan`` replaces those of a sample that has others."""
        pixels = "only pixels that are NaN or infinite"
        if np.isfinite(sample).any():
            pixels = "a pixel that is NaN or infinite, which --nan zero would replace"
        if isinstance(what, Path):
            return cls.of(what, f"it has {pixels}")
        return cls(f"{what} has {pixels}; mend or remove it, or add --skip-damaged")


@dataclass(frozen=True)
class SourceOptions:
    """Options of a source: name or path, data root, how to read ambiguous arrays, preprocessing of the images.

    Attributes:
        name: the value of ``--data``.
        data_root: folder of torchvision's sets.
        volumes: arrays hold volumes, (S, depth, rows, columns[, C]).
        image_size: rows, columns after resizing; None: no resizing.
        image_transform: "resize+center-crop", "resize" or "center-crop".
        interpolation: "nearest", "bilinear" or "bicubic".
        volume_size: depth, rows, columns after resampling; None: no resampling.
        window: lowest and highest intensity, to which values are clipped before the resizing.
        test_fraction: share of test samples, for sources without a test split.
        validation_fraction: share of the training samples, for sources without a validation split; 0: no validation split at all.
        seed: of the choice of test and validation samples.
        pixels: format that image files are converted to; None: the one that they share.
        known: gives (*spatial, C) and the type of all images of files with a fingerprint and a number of spatial axes, if they are known,
            so that headers need not be read.
        mode: of image files, "auto", "grey" or "rgb".
        nan: what becomes of values that are NaN or infinite: "refuse", "zero" or "lowest"; "" as in ``as_before``.
        follow_links: whether links in folders may lead out of them.
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
    known: Callable[[str, int], tuple[tuple[int, ...], np.dtype] | None] = field(default=lambda *_: None, repr=False, compare=False)
    mode: str = "auto"
    nan: str = "refuse"
    follow_links: bool = False
    validation_fraction: float = 0.0

    @property
    def preprocessing(self) -> str:
        """The options that determine the choice and the preprocessing of images, as JSON, to be stored with them."""
        values = {name: value for name, value in asdict(self).items() if name not in NOT_STORED}
        return json.dumps({name: value for name, value in values.items() if (name, value) not in UNLESS_DEFAULT.items()})

    def as_before(self, preprocessing: str) -> "SourceOptions":
        """These options with a stored ``preprocessing``."""
        stored = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(preprocessing).items()}
        return SourceOptions(**{name: getattr(self, name) for name in NOT_STORED} | stored)


@dataclass(frozen=True)
class Split:
    """The labelled images of a split.

    Attributes:
        shape: (S, *spatial, C), channels last.
        dtype: the source's own pixel type.
        labels: (S,) int64, in 0 ... K-1; -1 for unknown labels of images to be classified.
        read: returns the images (n, *spatial, C) in ``dtype`` of ascending indices (n,) int64; fastest if successive calls ascend, too.
            Raises DamagedSample for a sample that cannot be read, InputError for a file of arrays.
        name: of sample i, for messages: its file, or its number in the source.
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
    """A data set.

    Attributes:
        splits: "train", "test" and, if there are such images, "validation"; an opener gives those that the source itself has, and
            ``open_source`` the others.
        class_names: K names; of those that occur twice, as in ImageNet, the later ones get their number.
        fingerprint: changes when the content does.
        in_memory: whether the set's library loads it whole; then one rank loads and partitions it alone.
        fitted: whether images are clipped and resized already; if not, ``open_source`` adds that.
        preprocessing: see ``SourceOptions``.
        drawn: the splits that were drawn from the training images.
    """

    name: str
    splits: dict[str, Split]
    class_names: tuple[str, ...]
    fingerprint: str
    in_memory: bool = False
    fitted: bool = False
    preprocessing: str = ""
    drawn: frozenset[str] = frozenset()

    def __post_init__(self):
        first = {name: k for k, name in reversed(list(enumerate(self.class_names)))}
        names = (name if first[name] == k else f"{name} ({k})" for k, name in enumerate(self.class_names))
        object.__setattr__(self, "class_names", tuple(names))

    @property
    def shape(self) -> tuple[int, ...]:
        """(*spatial, C) of every image."""
        return self.splits["train"].shape[1:]


def in_memory(name: str, arrays: dict[str, tuple[np.ndarray, np.ndarray]], class_names) -> Source:
    """A source of loaded arrays by split, {"train": (images (S, rows, columns[, C]), labels (S,)), …}."""
    splits, digest = {}, hashlib.sha256()
    for split, (images, labels) in arrays.items():
        images = np.ascontiguousarray(images)
        images = images.reshape(*images.shape[:3], math.prod(images.shape[3:]))
        splits[split] = Split(images.shape, images.dtype, np.asarray(labels, np.int64), images.__getitem__)
        digest.update(images.data)
        digest.update(splits[split].labels.data)
    return Source(name, splits, tuple(map(str, class_names)), digest.hexdigest(), in_memory=True)


def same_type(one: np.dtype, other: np.dtype) -> bool:
    """Whether two types are equal but for the order of their bytes."""
    return one.newbyteorder("=") == other.newbyteorder("=")


def in_byte_order(split: Split, dtype: np.dtype) -> Split:
    """A split whose images are read in ``dtype``, from which its own type differs at most in the order of bytes."""
    if split.dtype == dtype:
        return split
    return replace(split, dtype=dtype, read=lambda indices: split.read(indices).astype(dtype))


def check(source: Source) -> None:
    """Refuses sources that cannot be trained on.

    Raises:
        InputError: splits of different images, no pixels or pixels that are not numbers, labels out of range, a single class.
    """
    train = source.splits["train"]
    for name, split in source.splits.items():
        if train.shape[1:] != split.shape[1:] or not same_type(train.dtype, split.dtype):
            raise InputError(
                f"{source.name}: training images are {train.shape[1:]} {train.dtype}, {name} images {split.shape[1:]} {split.dtype}; "
                "they must be alike: convert them to one size and type"
            )
    if train.dtype.kind not in PIXEL_KINDS or train.dtype.itemsize > 8:
        ways_out = {"c": "; give the magnitude (numpy.abs), or real and imaginary parts as two channels", "b": ": convert them to uint8"}
        way_out = ways_out.get(train.dtype.kind, "")
        raise InputError(f"{source.name}: pixels of type {train.dtype}; expected integers or floats of up to 64 bits{way_out}")
    if 0 in train.shape[1:]:
        raise InputError(f"{source.name}: images of shape {train.shape[1:]} have no pixels")
    if math.prod(train.shape[1:]) * train.dtype.itemsize > MOST_BYTES:
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

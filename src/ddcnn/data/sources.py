"""Sources: named sets and files of arrays, all seen as two splits of labelled images that are read block by block.

To add a source: write a function ``(SourceOptions) -> Source`` and give it a name in ``NAMED`` or a file ending in ``FILES``.
"""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

from ddcnn.data.arrays import Array, open_h5, open_npz
from ddcnn.errors import InputError
from ddcnn.seeding import numpy_generator

PIXEL_KINDS = "uif"  # unsigned and signed integers, floats


@dataclass(frozen=True)
class SourceOptions:
    """What a source needs to know: its name or path, where sets lie, and how to read ambiguous arrays."""

    name: str
    data_root: Path
    download: bool = False
    volumes: bool = False


@dataclass(frozen=True)
class Split:
    """Labelled images of one split.

    Attributes:
        shape: (S, *spatial, C), channels last.
        dtype: the source's own pixel type.
        labels: (S,) int64, in 0 ... K-1.
        read: images start ... stop-1 as an array (stop - start, *spatial, C); cheapest in ascending order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    labels: np.ndarray
    read: Callable[[int, int], np.ndarray]

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class Source:
    """A data set: its splits, its class names and a fingerprint that changes when its content does.

    ``in_memory`` sets are loaded whole by their library, so one rank loads and partitions them; the others would load them again.
    """

    name: str
    splits: dict[str, Split]  # "train" and "test"
    class_names: tuple[str, ...]
    fingerprint: str
    in_memory: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(*spatial, C) of every image."""
        return self.splits["train"].shape[1:]


def open_source(options: SourceOptions) -> Source:
    """Opens what ``--data`` names.

    Raises:
        InputError: unknown name, missing or malformed file, labels out of range, splits whose images differ.
    """
    if options.name in NAMED:
        source = NAMED[options.name](options)
    else:
        path = Path(options.name)
        opener = FILES.get(path.suffix)
        if opener is None:
            raise InputError(
                f"--data {options.name}: neither a known set ({', '.join(NAMED)}) nor a file ending in {' or '.join(FILES)}; "
                "folders and single images are not read, save them as one .npz"
            )
        if not path.is_file():
            raise InputError(f"--data {options.name}: no such file")
        source = _from_arrays(options, *opener(path))
    _check(source)
    return source


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


# Named sets


def _in_memory(name: str, arrays: dict[str, tuple[np.ndarray, np.ndarray]], class_names) -> Source:
    """Sets that their library loads whole: {"train": (images, labels), "test": ...}."""
    splits, digest = {}, hashlib.sha256()
    for split, (images, labels) in arrays.items():
        images = np.ascontiguousarray(images).reshape(*images.shape[:3], -1)
        splits[split] = Split(images.shape, images.dtype, np.asarray(labels, np.int64), partial(_rows, images))
        digest.update(images.data)
        digest.update(splits[split].labels.data)
    return Source(name, splits, tuple(map(str, class_names)), digest.hexdigest(), in_memory=True)


def _rows(images: np.ndarray, start: int, stop: int) -> np.ndarray:
    return images[start:stop]


def _digits(options: SourceOptions) -> Source:
    """scikit-learn's digits: 1 797 images of 8x8 pixels in 0 ... 16; every fifth of a seeded order is a test image."""
    # the file that sklearn.datasets.load_digits reads, without the second that importing scikit-learn takes
    table = np.loadtxt(str(distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")), delimiter=",")
    images, labels = table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1].astype(np.int64)
    order = numpy_generator(0, "digits").permutation(len(labels))
    test, train = np.sort(order[::5]), np.sort(np.delete(order, np.s_[::5]))
    arrays = {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
    return _in_memory("digits", arrays, range(10))


def _torchvision(class_name: str) -> Callable[[SourceOptions], Source]:
    def open_set(options: SourceOptions) -> Source:
        constructor = getattr(_torchvision_datasets(), class_name)
        arrays = {}
        for split in ("train", "test"):
            try:
                loaded = constructor(str(options.data_root), train=split == "train", download=options.download)
            except (RuntimeError, OSError) as error:
                raise InputError(
                    f"--data {options.name}: {options.data_root} does not hold {class_name} as torchvision stores it ({error}); "
                    "name the folder with --data-root, or fetch it with --download"
                ) from None
            arrays[split] = np.asarray(loaded.data), np.asarray(loaded.targets)
        return _in_memory(options.name, arrays, loaded.classes)

    return open_set


@cache
def _torchvision_datasets():
    """torchvision.datasets, also where torchvision was built for CUDA and torch was not.

    Then torchvision's own operators are missing, and its import fails on their fake implementations unless their schemas exist.
    """
    import torch

    try:
        from torchvision import datasets
    except RuntimeError:  # only then: a second definition of an operator that is there ends the process
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                       "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):  # fmt: skip
            library.define(schema)
        from torchvision import datasets

    return datasets


# Files of arrays


def _from_arrays(options: SourceOptions, arrays: dict[str, Array], fingerprint: str) -> Source:
    """Splits out of named arrays: x_train, y_train, x_test, y_test or train_images, train_labels, test_images, test_labels."""
    splits = {}
    for split in ("train", "test"):
        names = [(f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels")]
        pair = next(((x, y) for x, y in names if x in arrays and y in arrays), None)
        if pair is None:
            raise InputError(
                f"{options.name}: no {' and '.join(names[0])} (or {' and '.join(names[1])}) among its arrays: {', '.join(arrays)}"
            )
        images, labels = arrays[pair[0]], arrays[pair[1]]
        shape = _with_channels(f"{options.name}: {pair[0]}", images.shape, options.volumes)
        splits[split] = Split(
            shape, images.dtype, _labels(f"{options.name}: {pair[1]}", labels),
            partial(_read_rows, images, shape[1:]),
        )  # fmt: skip
    known = splits["train"].labels
    if known.size and known.min() > 0:
        raise InputError(f"{options.name}: the training labels begin with {known.min()}; classes are 0, 1, 2 …: subtract {known.min()}")
    classes = int(known.max(initial=0)) + 1
    if classes > max(len(known), 2):
        raise InputError(
            f"{options.name}: label {classes - 1} of train sample {known.argmax()} is out of range: "
            f"{len(known)} samples cannot have {classes} classes"
        )
    return Source(options.name, splits, tuple(map(str, range(classes))), fingerprint)


def _read_rows(images: Array, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
    return images.read(start, stop).reshape(-1, *shape)


def _with_channels(what: str, shape: tuple[int, ...], volumes: bool) -> tuple[int, ...]:
    spatial = 3 if volumes else 2
    if len(shape) == spatial + 1:
        return (*shape, 1)
    if len(shape) == spatial + 2:
        if shape[1] <= 4 < shape[-1]:
            raise InputError(f"{what} has shape {shape}, which looks channels-first; channels come last: (n, rows, columns, channels)")
        return shape
    wanted = "(n, depth, rows, columns[, channels])" if volumes else "(n, rows, columns[, channels]); volumes need --volumes"
    raise InputError(f"{what} has shape {shape}, expected {wanted}")


def _labels(what: str, labels: Array) -> np.ndarray:
    if labels.shape[1:] not in ((), (1,)) or not labels.shape:
        raise InputError(f"{what} has shape {labels.shape}: expected one class number per sample, (n,) or (n, 1)")
    values = labels.read(0, labels.shape[0]).reshape(-1)
    if values.dtype.kind not in "ui":
        raise InputError(f"{what} has type {values.dtype}: expected whole class numbers 0, 1, 2 … (labels.astype(int))")
    return values.astype(np.int64)


def _check(source: Source) -> None:
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


NAMED = {"digits": _digits, "cifar10": _torchvision("CIFAR10"), "fashion-mnist": _torchvision("FashionMNIST")}
FILES = {".npz": open_npz, ".h5": open_h5}

"""Files of arrays: ``.npz`` and ``.h5`` with x_train, y_train, x_test, y_test or train_images, train_labels, test_images, test_labels."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from ddcnn.data.arrays import Array
from ddcnn.data.sources.base import READ_BYTES, SPLITS, Source, SourceOptions, Split
from ddcnn.errors import InputError


def array_file(open_file: Callable[[Path], tuple[dict[str, Array], str]]) -> Callable[[SourceOptions], Source]:
    """A source out of what opens a file: arrays by name, and a fingerprint."""

    def open_arrays(options: SourceOptions) -> Source:
        arrays, fingerprint = open_file(Path(options.name))
        splits = {split: _split(options, arrays, split) for split in SPLITS}
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

    return open_arrays


def _split(options: SourceOptions, arrays: dict[str, Array], split: str) -> Split:
    names = [(f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels")]
    pair = next(((x, y) for x, y in names if x in arrays and y in arrays), None)
    if pair is None:
        raise InputError(f"{options.name}: no {' and '.join(names[0])} (or {' and '.join(names[1])}) among its arrays: {', '.join(arrays)}")
    images, labels = arrays[pair[0]], arrays[pair[1]]
    shape = with_channels(f"{options.name}: {pair[0]}", images.shape, options.volumes)
    return Split(shape, images.dtype, read_labels(f"{options.name}: {pair[1]}", labels), partial(read_array, images, shape[1:]))


def read_array(images: Array, shape: tuple[int, ...], indices: np.ndarray) -> np.ndarray:
    """Reads stretches of the file that hold the indices, in order, as streams and chunks like it, and each of bounded size."""
    found = np.empty((len(indices), *shape), images.dtype)
    span = max(1, READ_BYTES // max(1, found[:1].nbytes))  # samples
    for begin, end in pairwise(np.searchsorted(indices, np.arange(indices[0], indices[-1] + span + 1, span)) if len(indices) else ()):
        if end > begin:
            first = int(indices[begin])
            found[begin:end] = images.read(first, int(indices[end - 1]) + 1).reshape(-1, *shape)[indices[begin:end] - first]
    return found


def with_channels(what: str, shape: tuple[int, ...], volumes: bool) -> tuple[int, ...]:
    spatial = 3 if volumes else 2
    if volumes and len(shape) == 4 and shape[-1] == 3 and min(shape[1:3]) >= 8:
        raise InputError(f"{what} has shape {shape}, which looks like images with channels, not volumes: leave --volumes out")
    if len(shape) == spatial + 1:
        return (*shape, 1)
    if len(shape) == spatial + 2:
        if shape[1] <= 4 < shape[-1]:
            raise InputError(f"{what} has shape {shape}, which looks channels-first; channels come last: (n, rows, columns, channels)")
        return shape
    wanted = "(n, depth, rows, columns[, channels])" if volumes else "(n, rows, columns[, channels]); volumes need --volumes"
    raise InputError(f"{what} has shape {shape}, expected {wanted}")


def read_labels(what: str, labels: Array) -> np.ndarray:
    if labels.shape[1:] not in ((), (1,)) or not labels.shape:
        raise InputError(f"{what} has shape {labels.shape}: expected one class number per sample, (n,) or (n, 1)")
    values = labels.read(0, labels.shape[0]).reshape(-1)
    if values.dtype.kind not in "ui":
        raise InputError(f"{what} has type {values.dtype}: expected whole class numbers 0, 1, 2 … (labels.astype(int))")
    return values.astype(np.int64)

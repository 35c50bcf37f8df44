"""What the images of a run were, as its checkpoints say, so that new images can be prepared in the same way."""

import json
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.sources import SourceOptions
from ddcnn.data.sources.resizing import in_type
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError
from ddcnn.io import parameters
from ddcnn.io.hdf5 import DAMAGED, Damaged, parsing, reading

MOST_NUMBERS = 1 << 40  # of an image, far more than any memory holds


def window_of(dtype: str, preprocessing: str) -> tuple[float, float] | None:
    """The lowest and the highest value of ``--window`` in this type."""
    window = SourceOptions("", Path()).as_before(preprocessing).window
    return window and in_type(window, np.dtype(dtype))


def value_range(dtype: str, preprocessing: str) -> tuple[float, float] | None:
    """What black and white are in images of this type: the bounds of ``--window``, or of an unsigned type; None where nobody knows."""
    kind = np.dtype(dtype)
    return window_of(dtype, preprocessing) or ((0.0, float(np.iinfo(kind).max)) if kind.kind == "u" else None)


def imagenet(shape: tuple[int, ...], dtype: str, preprocessing: str, network: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation (C,) of ``--normalise imagenet``, in the units of images of ``shape`` (*spatial, C).

    Raises:
        InputError: the images are not such as torchvision's networks have been trained on.
    """
    from ddcnn.networks.torchvision_models import normalisation

    *spatial, channels = shape
    option, way_out = "--normalise imagenet (the default with --weights)", "take --normalise set"
    if len(spatial) != 2 or channels not in (1, 3):
        what = "volumes" if len(spatial) != 2 else f"images of {channels} channels"
        raise InputError(f"{option} is for colour and grey images, not for {what}: {way_out}")
    known = value_range(dtype, preprocessing)
    if known is None:
        raise InputError(f"{option}: the range of {np.dtype(dtype)} pixels is not known: tell it by --window LOW HIGH, or {way_out}")
    low, high = known
    mean, std = (values if channels == 3 else (sum(values) / len(values),) for values in normalisation(network))
    return tuple(low + (high - low) * value for value in mean), tuple((high - low) * value for value in std)


@dataclass(frozen=True)
class TrainedOn:
    """The images that a network was trained on; every checkpoint says it, so that the partitioned set may be deleted.

    Attributes:
        source_sha256: of the run's images and labels.
        shape: (*spatial, C) of a whole image.
        dtype: its pixel type.
        grid, overlap: of the decomposition of the image.
        mean, std: (C,) by which pixels have been normalised.
        preprocessing: how the source's images were prepared (see ``SourceOptions``), as JSON.
    """

    source_sha256: str
    shape: tuple[int, ...]
    dtype: str
    grid: tuple[int, ...]
    overlap: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocessing: str

    @classmethod
    def of(cls, store: "PartitionedSet | TrainedOn") -> "TrainedOn":
        return cls(**{name: getattr(store, name) for name in cls.__annotations__})

    @cached_property
    def decomposition(self) -> Decomposition:
        return Decomposition(self.shape[:-1], self.grid, self.overlap)

    def attributes(self) -> dict[str, Any]:
        """Attributes of a checkpoint."""
        values = {name: getattr(self, name) for name in self.__annotations__}
        return values | {"class_names": json.dumps(self.class_names)}

    @classmethod
    def read(cls, path: Path) -> "TrainedOn":
        """Reads the attributes of a checkpoint.

        Raises:
            InputError: some are missing or invalid.
        """
        stored = parameters.attributes_of(path)
        missing = next((name for name in cls.__annotations__ if name not in stored), None)
        if missing:
            raise InputError(f"{path} does not say what {missing} the images had: it is of an older version of ddcnn; run again")
        with reading(path, *DAMAGED), parsing():
            values = {name: stored[name] for name in cls.__annotations__} | {"class_names": json.loads(stored["class_names"])}
            images = TypeAdapter(cls).validate_python(values)
            np.dtype(images.dtype)
            SourceOptions("", Path()).as_before(images.preprocessing)
            if len(set(images.class_names)) < len(images.class_names):
                raise Damaged("duplicate class names")
            if min(*images.shape, *images.grid) < 1 or prod(images.shape) > MOST_NUMBERS:
                raise Damaged("invalid shape or grid")
            fits = len(images.mean) == len(images.std) == images.shape[-1]
            if not fits or not all(map(isfinite, images.mean + images.std)) or min(images.std) <= 0:
                raise Damaged("mean and standard deviation that do not fit the images")
        return images

"""Clipping and resizing of every image or volume before it is partitioned, and splits that are read sample by sample.

Images are resized and cropped exactly as by torchvision's ``Resize`` and ``CenterCrop`` on Pillow images.
"""

import hashlib
import math
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ddcnn.data.sources.base import READ_BYTES, DamagedSample, Source, SourceOptions, Split
from ddcnn.errors import InputError
from ddcnn.parallel.heartbeat import beat

INTERPOLATIONS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def in_type(window: tuple[float, float], dtype: np.dtype) -> tuple[float, float]:
    """The lowest and the highest number of a pixel type in a window; the first is the larger one if there is none."""
    low, high = window
    if dtype.kind not in "ui":
        return low, high
    return max(math.ceil(low), np.iinfo(dtype).min), min(math.floor(high), np.iinfo(dtype).max)


@dataclass(frozen=True)
class Fit:
    """Clips a sample (*spatial, C) to ``--window`` and resizes it, keeping its type.

    Raises:
        InputError: options that do not apply to images (dimension 2) or volumes (dimension 3).
    """

    options: SourceOptions
    dimension: int

    def __post_init__(self) -> None:
        options = self.options
        if self.dimension == 3 and options.mode != "auto":
            raise InputError(f"--mode {options.mode} applies to image files, and {options.name} holds volumes: leave it out")
        if self.dimension == 3 and options.image_size:
            raise InputError(f"--image-size: {options.name} holds volumes; give --volume-size DEPTHxROWSxCOLUMNS")
        if self.dimension == 2 and options.volume_size:
            raise InputError(f"--volume-size: {options.name} holds images (volumes in arrays need --volumes); give --image-size")
        if options.image_transform != "resize+center-crop" and not options.image_size:
            raise InputError(f"--image-transform {options.image_transform}: needs a size: give --image-size too")
        if options.interpolation != "bilinear" and not options.image_size:
            raise InputError(f"--interpolation {options.interpolation} applies to --image-size only; volumes are resampled linearly")

    @property
    def option(self) -> str:
        return "--image-size ROWSxCOLUMNS" if self.dimension == 2 else "--volume-size DEPTHxROWSxCOLUMNS"

    @property
    def size(self) -> tuple[int, ...] | None:
        return self.options.image_size if self.dimension == 2 else self.options.volume_size

    def bounds(self, dtype: np.dtype) -> tuple[np.generic, np.generic]:
        """The window in a pixel type; InputError if no number of that type lies in it."""
        assert self.options.window
        low, high = in_type(self.options.window, dtype)
        if low > high:
            raise InputError(
                f"--window {self.options.window}: {self.options.name} has pixels of type {dtype}, and none of their values lies in it"
            )
        return dtype.type(low), dtype.type(high)

    def __call__(self, sample: np.ndarray) -> np.ndarray:
        """(*spatial, C) -> (*size, C)."""
        if self.options.window:
            sample = np.clip(sample, *self.bounds(sample.dtype)).astype(sample.dtype, copy=False)
        size = self.size
        if size is None or sample.shape[:-1] == size:
            return sample
        if self.dimension == 3:
            return _by_channel(sample, lambda channel: resample(channel, size))
        if sample.dtype == np.uint8 and sample.shape[-1] in (1, 3):
            image = Image.fromarray(sample if sample.shape[-1] == 3 else sample[..., 0])
            return np.asarray(self.image(image)).reshape(*size, -1)
        return _by_channel(sample, lambda channel: np.asarray(self.image(Image.fromarray(channel))))

    def image(self, image: Image.Image) -> Image.Image:
        """A Pillow image in the size of ``--image-size``; ``resize+center-crop`` resizes as little as leaves no border."""
        assert self.options.image_size
        rows, columns = self.options.image_size
        method = self.options.image_transform
        if method == "resize":
            size = (columns, rows)
        elif method == "resize+center-crop":
            width, height = image.size
            short, long = min(width, height), max(width, height)
            wanted_short, wanted_long = (columns, rows) if width <= height else (rows, columns)
            shorter = max(wanted_short, -(-wanted_long * short // long))
            longer = int(shorter * long / short)
            size = (shorter, longer) if width <= height else (longer, shorter)
        if method != "center-crop" and size != image.size:
            image = image.resize(size, INTERPOLATIONS[self.options.interpolation])
        return image if method == "resize" else center_crop(image, rows, columns)


def center_crop(image: Image.Image, rows: int, columns: int) -> Image.Image:
    """The centre of an image, padded with zeros where it is too small; rounds as torchvision does."""
    width, height = image.size
    left = -((columns - width) // 2) if columns > width else round((width - columns) / 2)
    top = -((rows - height) // 2) if rows > height else round((height - rows) / 2)
    return image.crop((left, top, left + columns, top + rows))


def resample(volume: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Linear resampling of (depth, rows, columns) float32, smoothed along axes that shrink, as by scikit-image's ``resize``."""
    from scipy import ndimage  # type: ignore[import-untyped]

    factors = [old / new for old, new in zip(volume.shape, size, strict=True)]
    smooth = ndimage.gaussian_filter(volume, [max(0.0, (factor - 1) / 2) for factor in factors], mode="mirror")
    return ndimage.zoom(smooth, [1 / factor for factor in factors], order=1, mode="mirror", grid_mode=True)


def _by_channel(sample: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Applies ``change`` to every channel as float32; integers are rounded and clipped to the range of their type."""
    changed = np.stack([change(np.ascontiguousarray(sample[..., c], np.float32)) for c in range(sample.shape[-1])], axis=-1)
    if sample.dtype.kind in "ui":
        limits = np.iinfo(sample.dtype)
        changed = np.clip(np.rint(changed.astype(np.float64)), limits.min, limits.max)
    return changed.astype(sample.dtype)


def without_nan(sample: np.ndarray, how: str) -> np.ndarray:
    """A sample in which values that are NaN or infinite are replaced as ``--nan`` says; as it is if it has no others."""
    if how == "refuse" or sample.dtype.kind != "f" or (good := np.isfinite(sample)).all() or not good.any():
        return sample
    return np.where(good, sample, sample.dtype.type(0) if how == "zero" else sample[good].min()).astype(sample.dtype, copy=False)


def fit_split(split: Split, options: SourceOptions) -> Split:
    """A split that clips and resizes its samples, all of one shape, as they are read."""
    *spatial, channels = split.shape[1:]
    fit = Fit(options, len(spatial))
    if options.window:
        fit.bounds(split.dtype)
    if not options.window and fit.size in (None, tuple(spatial)) and (options.nan == "refuse" or split.dtype.kind != "f"):
        return split
    shape = (*(fit.size or spatial), channels)
    step = max(1, READ_BYTES // (math.prod(split.shape[1:]) * split.dtype.itemsize))

    def read(indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *shape), split.dtype)
        for begin in range(0, len(indices), step):
            for row, image in enumerate(split.read(indices[begin : begin + step]), begin):
                images[row] = fit(without_nan(image, options.nan))
        return images

    return replace(split, shape=(len(split), *shape), read=read)


def sample_by_sample(
    labels: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, fit: Fit, load: Callable[[int], np.ndarray], name: Callable[[int], object]
) -> Split:
    """A split whose samples are loaded one by one, and clipped and resized; before, they may be of any size.

    Args:
        labels: (S,) int64.
        shape: (*spatial, C) after resizing.
        load: returns sample i (*spatial, C); any exception means that the sample is damaged.
        name: of sample i in messages.

    Raises:
        InputError: no pixel value lies in the window.
    """

    def read(indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *shape), dtype)
        for row, i in enumerate(map(int, indices)):
            beat()
            try:
                sample = load(i)
            except (MemoryError, InputError):
                raise
            except Exception as error:  # third-party decoders raise anything
                raise DamagedSample.of(name(i), str(error) or type(error).__name__) from None
            sample = without_nan(sample, fit.options.nan)
            if sample.dtype.kind == "f" and not np.isfinite(sample).all():
                raise DamagedSample.not_finite(name(i), sample)
            sample = fit(sample)
            if sample.shape != shape:  # only some headers were compared before
                raise InputError(f"{name(i)} has shape {sample.shape}, others have {shape}: give one size for all with {fit.option}")
            images[row] = sample
        return images

    if fit.options.window:
        fit.bounds(dtype)
    return Split((len(labels), *shape), dtype, labels, read, name)


@dataclass(frozen=True)
class LabelledFiles:
    """Files below ``root``, or folders of slices, a sample each, before any is decoded.

    Attributes:
        labels: (S,) int64.
        splits: indices of each split's files.
        label_names: of the K classes, for the fingerprint.
    """

    root: Path
    paths: list[Path]
    labels: np.ndarray
    splits: dict[str, np.ndarray]
    label_names: Sequence[object]

    @cached_property
    def fingerprint(self) -> str:
        """Changes with names, labels, sizes and times of change of the files."""
        digest = hashlib.sha256()
        for split, indices in self.splits.items():
            for i in indices:
                label = self.label_names[self.labels[i]]
                for file, status in _parts(self.paths[i]):
                    path = file.relative_to(self.root)
                    digest.update(f"{split}\0{path}\0{label}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="replace"))
        return digest.hexdigest()

    def source(
        self, class_names: Sequence[str], shape: tuple[int, ...], dtype: np.dtype, fit: Fit, load: Callable[[Path], np.ndarray]
    ) -> Source:
        """A source whose samples ``load`` reads; for shape and type see ``sample_by_sample``."""

        def split_of(indices: np.ndarray) -> Split:
            paths = [self.paths[i] for i in indices]
            return sample_by_sample(self.labels[indices], shape, dtype, fit, lambda i: load(paths[i]), paths.__getitem__)

        splits = {split: split_of(indices) for split, indices in self.splits.items()}
        return Source(fit.options.name, splits, tuple(class_names), self.fingerprint, fitted=True)


def _parts(path: Path) -> list[tuple[Path, os.stat_result]]:
    """The file of a sample, or the files in the folder that is one, with what the file system says of them."""
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        return [(path, status)]
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    return [(file, status) for file in files for status in [file.stat()] if stat.S_ISREG(status.st_mode)]

"""Stacks of images as volumes: the pages of a TIFF file, or the image files of a folder, one behind the other."""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ddcnn.data.sources.decoding import DEEP, MOST_BYTES, SAMPLE_FORMAT, SIGNED, SUFFIXES, PixelFormat, bits_of, format_of, opened, to_array
from ddcnn.data.sources.image_headers import header_of
from ddcnn.decomposition import times
from ddcnn.errors import InputError
from ddcnn.parallel.heartbeat import beat

TIFF = (".tif", ".tiff")
T = TypeVar("T")
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF tag and its value; Pillow turns such values of up to 8 bits only
DESCRIPTION = 270  # TIFF tag, in which ImageJ and OME-TIFF say what the pages are


def pages_of(path: Path) -> int:
    """The number of pages of a TIFF file; 0 if it cannot be read."""
    try:
        with opened(path) as image:
            return getattr(image, "n_frames", 1)
    except Exception:  # Pillow raises anything; the damage is told when the volume is read
        return 0


def shape_of(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """(depth, rows, columns, C) and type of a TIFF file or a folder of slices, by the header of its first page; raises as ``load``."""
    count, pages = _pages(path)
    pixels, dtype, size = _format(path, next(pages))
    return (count, *size, pixels.channels), dtype


def load(path: Path) -> np.ndarray:
    """A stack (depth, rows, columns, C) in the type of its pixels.

    Raises any exception if it is damaged, is a single page, or has pages of different sizes, and InputError for what Pillow does not read.
    """
    count, pages = _pages(path)
    for k, page in enumerate(pages):
        beat()
        if k == 0:
            pixels, dtype, size = _format(path, page)
            shape = count, *size, pixels.channels
            if math.prod(shape) * dtype.itemsize > MOST_BYTES:
                raise ValueError(f"{times(shape)} voxels take over a quarter of this machine's memory")
            volume = np.empty(shape, dtype)
        if _type(page) != dtype or format_of(page.mode) != pixels:
            raise ValueError(f"its slices 1 and {k + 1} have pixels of different types")
        slice_ = to_array(page, pixels, path)
        if slice_.shape[:2] != size:
            raise ValueError(f"its slices 1 and {k + 1} have {times(size)} and {times(slice_.shape[:2])} pixels")
        volume[k] = slice_
    return volume


def _pages(path: Path) -> tuple[int, Iterator[Image.Image]]:
    """The number of the slices of a stack, and the slices."""
    if path.is_dir():
        files = slices_in(path)
        if len(files) < 2:
            raise ValueError(f"it has {'one slice' if files else 'no slices'}, and is no volume")
        _check_numbers(files)
        return len(files), _of_files(files)
    with opened(path) as image:
        count = _on_page(2, partial(getattr, image, "n_frames", 1))
        _check_description(path, str(getattr(image, "tag_v2", {}).get(DESCRIPTION, "")), count)
    if count < 2:
        raise ValueError("it has a single page, and is no volume (a folder of slices is one); photos go without --volumes and labels.csv")
    return count, _of_pages(path, count)


def _of_files(files: list[Path]) -> Iterator[Image.Image]:
    for file in files:
        with opened(file) as image:
            if (count := _on_page(2, partial(getattr, image, "n_frames", 1))) > 1:
                raise ValueError(f"its slice {file.name} has {count} pages: keep stacks in a folder without slices")
            yield image


def _of_pages(path: Path, count: int) -> Iterator[Image.Image]:
    with opened(path) as image:
        for page in range(count):
            _on_page(page + 1, partial(image.seek, page))
            yield image


def _on_page(page: int, action: Callable[[], T]) -> T:
    """Does what may fail on a page behind the first: that is damage, though Pillow may say that it does not know such an image."""
    try:
        return action()
    except Exception as error:  # it raises anything
        raise EOFError(f"from page {page} on: {error}") from None


def slices_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by the numbers in their names: slice 2 comes before slice 10.

    Raises:
        ValueError: files of different kinds.
    """
    files = [path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()]
    if len(kinds := sorted({path.suffix.lower() for path in files})) > 1:
        raise ValueError(f"it has slices that end in {' and '.join(kinds)}: keep those of one kind")
    return sorted(files, key=lambda path: (natural(path.name), path.name))


def natural(name: str) -> list[tuple[str, int]]:
    """A key by which names are sorted as people count: texts, each with the number behind it."""
    parts = [*re.split("([0-9]+)", name.casefold()), "0"]
    return [(text, int(number)) for text, number in zip(parts[::2], parts[1::2], strict=False)]


def _check_numbers(files: list[Path]) -> None:
    """Refuses slices of which some are missing by their names, where these differ in one number only, most by the same step."""
    texts, numbers = zip(*(zip(*natural(file.name), strict=True) for file in files), strict=True)
    differing = [column for column in zip(*numbers, strict=False) if len(set(column)) > 1]
    if len(set(texts)) > 1 or len(differing) != 1:
        return
    gaps = [after - before for before, after in pairwise(differing[0])]
    step = min(gaps)
    if step == sorted(gaps)[(len(gaps) - 1) // 2] < max(gaps) and not any(step and gap % step for gap in gaps):
        k = gaps.index(max(gaps))
        raise ValueError(f"slices are missing between {files[k].name} and {files[k + 1].name}; if not, number them one after the other")


def _format(path: Path, page: Image.Image) -> tuple[PixelFormat, np.dtype, tuple[int, int]]:
    """Format, type, and rows and columns of the first page."""
    header = header_of(page)
    if {"transparency", "channels"} & set(header.beyond):
        raise InputError(f"{path} has transparency or channels beyond colour, which are not read in volumes: save it in grey or RGB")
    return header.pixels, _type(page), header.size


def _type(page: Image.Image) -> np.dtype:
    """The type of the pixels: what the file has, of integers with more than 16 bits float32."""
    if format_of(page.mode) != DEEP:
        return np.dtype(np.uint8)
    if getattr(page, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        raise ValueError("its low values are white (WhiteIsZero), with more than 8 bits: convert all to BlackIsZero, to mean the same")
    if 8 < bits_of(page) <= 16:
        signed = getattr(page, "tag_v2", {}).get(SAMPLE_FORMAT, (1,))[0] == SIGNED
        return np.dtype(np.int16 if signed else np.uint16)
    return np.dtype(np.float32)


def _check_description(path: Path, description: str, pages: int) -> None:
    """Refuses files whose pages are not slices of one volume, or are not all pages that Pillow sees."""
    if description.startswith("ImageJ="):
        found = dict(re.findall(r"^(\w+)=(\d+)\s*$", description, re.MULTILINE))
        sizes = [int(found.get(name, 1)) for name in ("slices", "channels", "frames")]
        if int(found.get("images", 1)) > pages:
            raise InputError(
                f"{path} is of ImageJ, with {found['images']} slices in one block, of which Pillow reads {pages}: save it as an image "
                "sequence, a folder of slices, or with tifffile.imwrite"
            )
    else:
        found = dict(re.findall(r'\bSize([ZCT])="(\d+)"', description)) if "<OME" in description else {}
        sizes = [int(found.get(name, 1)) for name in "ZCT"]
    if sum(size > 1 for size in sizes) > 1 and pages == math.prod(sizes):
        depth, channels, times_ = sizes
        raise InputError(
            f"{path} has {depth} slices, {channels} channels and {times_} times, one behind the other: save one channel and time a file"
        )

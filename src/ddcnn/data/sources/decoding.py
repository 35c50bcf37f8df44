"""Image files through Pillow: what their headers say, and their pixels as arrays."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ddcnn.errors import InputError

# as torchvision's ImageFolder
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
GREY_MODES = ("1", "L")
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # grey of 16 or 32 bits
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn the image by a quarter
SWAPPED = (5, 6, 7, 8)


@dataclass(frozen=True)
class PixelFormat:
    """A Pillow mode that images are converted to, its channels and type."""

    mode: str
    channels: int
    dtype: np.dtype


GREY = PixelFormat("L", 1, np.dtype(np.uint8))
DEEP = PixelFormat("F", 1, np.dtype(np.float32))
COLOUR = PixelFormat("RGB", 3, np.dtype(np.uint8))


def format_of(mode: str) -> PixelFormat:
    """What images of a Pillow mode are converted to if all of the set are alike."""
    return GREY if mode in GREY_MODES else DEEP if mode in DEEP_MODES else COLOUR


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file without Pillow's warnings, which are about metadata and the size of images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            yield image


def header(path: Path) -> tuple[PixelFormat, tuple[int, int]]:
    """Pixel format, and rows and columns once the image is upright, of a file that is not decoded; raises anything if it is damaged."""
    with _opened(path) as image:
        width, height = image.size
        # Pillow decodes a PNG without EXIF in its header to look for it at the end
        has_exif = image.format != "PNG" or "exif" in image.info
        turned = has_exif and image.getexif().get(ORIENTATION) in SWAPPED
        return format_of(image.mode), (width, height) if turned else (height, width)


def decode(path: Path, pixels: PixelFormat) -> np.ndarray:
    """The upright image of a file, (rows, columns, C); raises anything if it is damaged.

    Raises:
        InputError: in this format, the image would lose colour or depth.
    """
    with _opened(path) as image:
        own = format_of(image.mode)
        if own != pixels and not (own == GREY and pixels == COLOUR):
            others = {GREY: "in grey", COLOUR: "in colour", DEEP: "in grey of more than 8 bits"}
            raise InputError(f"{path} is {others[own]}, other images of the set are {others[pixels]}: convert all to one mode")
        return to_array(image, pixels)


def to_array(image: Image.Image, pixels: PixelFormat) -> np.ndarray:
    """A Pillow image, turned upright and converted, (rows, columns, C)."""
    upright = ImageOps.exif_transpose(image)
    converted = upright if upright.mode == pixels.mode else upright.convert(pixels.mode)
    return np.asarray(converted, pixels.dtype).reshape(converted.height, converted.width, pixels.channels)

"""Image files through Pillow: what their headers say, and their pixels as arrays."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ddcnn.errors import InputError

# as torchvision's ImageFolder
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
Image.MAX_IMAGE_PIXELS = None  # the files are the user's own, and large images are what decomposition is for
GREY_MODES = ("1", "L")
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # grey of 16 or 32 bits
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # others, such as EPS, would start other programs
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn the image by a quarter
SWAPPED = (5, 6, 7, 8)
PROBES = 256  # images of a set that are looked at before it is read


@dataclass(frozen=True)
class PixelFormat:
    """A Pillow mode that images are converted to, its channels and type."""

    mode: str
    channels: int
    dtype: np.dtype


GREY = PixelFormat("L", 1, np.dtype(np.uint8))
DEEP = PixelFormat("F", 1, np.dtype(np.float32))
COLOUR = PixelFormat("RGB", 3, np.dtype(np.uint8))


def format_like(channels: int, dtype: np.dtype) -> PixelFormat | None:
    """The format of image files that have become images of C channels and a type, if there is one."""
    return next((pixels for pixels in (GREY, DEEP, COLOUR) if (pixels.channels, pixels.dtype) == (channels, dtype)), None)


def format_of(mode: str) -> PixelFormat:
    """What images of a Pillow mode are converted to if all of the set are alike."""
    return GREY if mode in GREY_MODES else DEEP if mode in DEEP_MODES else COLOUR


@dataclass(frozen=True)
class Headers:
    """What some images of a set say before it is read: formats and (rows, columns), each with the name of the first one that has it."""

    formats: dict[PixelFormat, object] = field(default_factory=dict)
    sizes: dict[tuple[int, ...], object] = field(default_factory=dict)

    def add(self, name: object, pixels: PixelFormat, size: tuple[int, int]) -> None:
        self.formats.setdefault(pixels, name)
        self.sizes.setdefault(size, name)

    @property
    def pixels(self) -> PixelFormat:
        """What all images are converted to: their own format if they share it, otherwise colour.

        Raises:
            InputError: grey images of more than 8 bits among others, whose values would be cut off.
        """
        if len(self.formats) > 1 and DEEP in self.formats:
            other = next(name for pixels, name in self.formats.items() if pixels != DEEP)
            raise InputError(f"{self.formats[DEEP]} has more than 8 bits a pixel and {other} has 8: convert all to one depth")
        return next(iter(self.formats)) if len(self.formats) == 1 else COLOUR

    def common_size(self, option: str) -> tuple[int, ...]:
        """Raises InputError if sizes differ, and names the option that makes them alike."""
        if len(self.sizes) > 1:
            (first, one), (second, other) = ((name, "x".join(map(str, size))) for size, name in list(self.sizes.items())[:2])
            raise InputError(f"{first} is {one} and {second} is {other}: give one size for all with {option}")
        return next(iter(self.sizes))


def probes(images: int) -> list[int]:
    """Those of a set that are looked at before it is read, spread over it: a look at each would take long."""
    return np.unique(np.linspace(0, images - 1, min(PROBES, images)).astype(int)).tolist()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file without Pillow's warnings, which are about metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=FORMATS) as image:
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
    """The upright image of a file, (rows, columns, C); raises anything if it is damaged, InputError as ``to_array``."""
    with _opened(path) as image:
        return to_array(image, pixels, path)


def to_array(image: Image.Image, pixels: PixelFormat, name: object) -> np.ndarray:
    """A Pillow image, turned upright and converted, (rows, columns, C).

    Raises:
        InputError: in this format, the image would lose colour or depth.
    """
    own = format_of(image.mode)
    if own != pixels and not (own == GREY and pixels == COLOUR):
        what = {GREY: "in grey", COLOUR: "in colour", DEEP: "in grey of more than 8 bits"}
        raise InputError(f"{name} is {what[own]}, other images of the set are {what[pixels]}: convert all to one mode")
    upright = ImageOps.exif_transpose(image)
    converted = upright if upright.mode == pixels.mode else upright.convert(pixels.mode)
    return np.asarray(converted, pixels.dtype).reshape(converted.height, converted.width, pixels.channels)

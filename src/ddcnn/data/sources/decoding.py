"""Image files, read with Pillow: their headers, and their pixels as arrays."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ddcnn.decomposition import times
from ddcnn.errors import InputError

# those of torchvision's ImageFolder
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
Image.MAX_IMAGE_PIXELS = None  # large images are what decomposition is for, and the files are the user's own
GREY_MODES = ("1", "L")
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # grey of 16 or 32 bits
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # Pillow starts other programs for some formats, such as EPS
ORIENTATION = 0x0112  # EXIF tag
SWAPPED = (5, 6, 7, 8)  # orientations that turn the image by a quarter
PROBES = 256  # images of a set whose headers are read before the set is; reading all would take long


@dataclass(frozen=True)
class PixelFormat:
    """A Pillow mode that images are converted to, its channels and type."""

    mode: str
    channels: int
    dtype: np.dtype


GREY = PixelFormat("L", 1, np.dtype(np.uint8))
DEEP = PixelFormat("F", 1, np.dtype(np.float32))
COLOUR = PixelFormat("RGB", 3, np.dtype(np.uint8))
Header = tuple[PixelFormat, tuple[int, int]]  # format; rows and columns


def format_like(channels: int, dtype: np.dtype) -> PixelFormat | None:
    """The format that image files are converted to for images of C channels and a type; None if there is none."""
    return next((pixels for pixels in (GREY, DEEP, COLOUR) if (pixels.channels, pixels.dtype) == (channels, dtype)), None)


def format_of(mode: str) -> PixelFormat:
    """What a set of images of one Pillow mode is converted to."""
    return GREY if mode in GREY_MODES else DEEP if mode in DEEP_MODES else COLOUR


@dataclass
class Headers:
    """Headers of some images of a set: formats and (rows, columns), each with the name of the first image that has it."""

    formats: dict[PixelFormat, object] = field(default_factory=dict)
    sizes: dict[tuple[int, ...], object] = field(default_factory=dict)
    problem: str = ""

    def read(self, indices: Sequence[int] | np.ndarray, name: Callable[[int], object], header: Callable[[int], Header]) -> None:
        """Reads the headers of at most ``PROBES`` images, spread over ``indices``.

        An unreadable one is skipped here: it is refused as a damaged sample, or skipped, when the image is read.
        """
        for k in np.unique(np.linspace(0, len(indices) - 1, min(PROBES, len(indices))).astype(int)).tolist():
            i = int(indices[k])
            try:
                pixels, size = header(i)
            except InputError:
                raise
            except Exception as error:  # third-party decoders raise anything
                self.problem = self.problem or f"{name(i)}: {error}"
                continue
            self.formats.setdefault(pixels, name(i))
            self.sizes.setdefault(size, name(i))

    def common(self, pixels: PixelFormat | None, size: tuple[int, ...] | None, option: str) -> tuple[PixelFormat, tuple[int, ...]]:
        """The format and the shape (rows, columns, C) of all images: as given, else the one that they share; colour if modes differ.

        Raises:
            InputError: no readable header; different sizes, without the ``option`` that makes them equal; grey images of more than 8
                bits among others, whose values would be cut off.
        """
        if not self.sizes:
            raise InputError(f"no image can be read, the first because of {self.problem}")
        if pixels is None and len(self.formats) > 1 and DEEP in self.formats:
            other = next(name for pixels, name in self.formats.items() if pixels != DEEP)
            raise InputError(f"{self.formats[DEEP]} has more than 8 bits a pixel and {other} has 8: convert all to one depth")
        pixels = pixels or (next(iter(self.formats)) if len(self.formats) == 1 else COLOUR)
        if size is None and len(self.sizes) > 1:
            (first, one), (second, other) = ((name, times(size)) for size, name in list(self.sizes.items())[:2])
            raise InputError(f"{first} is {one} and {second} is {other}: give one size for all with {option}")
        return pixels, (*(size or next(iter(self.sizes))), pixels.channels)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Opens an image file without Pillow's warnings about metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=FORMATS) as image:
            yield image


def header(path: Path) -> Header:
    """Pixel format, and rows and columns of the upright image, without decoding it; raises any exception if the file is damaged."""
    with _opened(path) as image:
        width, height = image.size
        # for a PNG without EXIF in its header, Pillow would decode the image to look for EXIF at the end
        has_exif = image.format != "PNG" or "exif" in image.info
        turned = has_exif and image.getexif().get(ORIENTATION) in SWAPPED
        return format_of(image.mode), (width, height) if turned else (height, width)


def decode(path: Path, pixels: PixelFormat) -> np.ndarray:
    """The upright image of a file, (rows, columns, C); raises any exception if it is damaged, InputError as ``to_array``."""
    with _opened(path) as image:
        return to_array(image, pixels, path)


def to_array(image: Image.Image, pixels: PixelFormat, name: object) -> np.ndarray:
    """A Pillow image, turned upright and converted to a format: (rows, columns, C).

    Raises:
        InputError: the conversion would lose colour or depth.
    """
    original = format_of(image.mode)
    if original != pixels and not (original == GREY and pixels == COLOUR):
        what = {GREY: "in grey", COLOUR: "in colour", DEEP: "in grey of more than 8 bits"}
        raise InputError(f"{name} is {what[original]}, other images of the set are {what[pixels]}: convert all to one mode")
    upright = ImageOps.exif_transpose(image)
    converted = upright if upright.mode == pixels.mode else upright.convert(pixels.mode)
    return np.asarray(converted, pixels.dtype).reshape(converted.height, converted.width, pixels.channels)

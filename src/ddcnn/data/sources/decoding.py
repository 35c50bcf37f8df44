"""Image files, read with Pillow: their pixels as arrays.

A set has one format, whatever its files have: grey of 8 bits, grey of more (as float32), or colour of 8 bits.
"""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ddcnn.decomposition import times
from ddcnn.errors import InputError

# those of torchvision's ImageFolder
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
Image.MAX_IMAGE_PIXELS = None  # large images are what decomposition is for, and the files are the user's own
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # Pillow starts other programs for some formats, such as EPS
GREY_MODES = ("1", "L")
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # grey of 16 or 32 bits
MOST_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4  # of an image
ORIENTATION = 0x0112  # tag of EXIF and TIFF
SWAPPED = (5, 6, 7, 8)  # orientations that turn the image by a quarter
BITS, SAMPLE_FORMAT = 258, 339  # TIFF tags
SIGNED = 2  # a sample format
UNSUPPORTED = re.compile(
    "unknown (pixel|raw) mode|samples per pixel|unsupported|not (yet )?supported|cannot handle 1[26]-bit|not available",
    re.I,
)
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it reports what it raises, too


@dataclass(frozen=True)
class PixelFormat:
    """A Pillow mode that images are converted to, its channels and type."""

    mode: str
    channels: int
    dtype: np.dtype
    words: str  # of an image in this format


GREY = PixelFormat("L", 1, np.dtype(np.uint8), "in grey")
DEEP = PixelFormat("F", 1, np.dtype(np.float32), "in grey of more than 8 bits")
DEEP_COLOUR = "16 bits a channel in colour, of which Pillow reads 8"
COLOUR = PixelFormat("RGB", 3, np.dtype(np.uint8), "in colour")


def format_like(channels: int, dtype: np.dtype) -> PixelFormat | None:
    """The format that image files are converted to for images of C channels and a type; None if there is none."""
    wanted = channels, dtype.newbyteorder("=")
    return next((pixels for pixels in (GREY, DEEP, COLOUR) if (pixels.channels, pixels.dtype) == wanted), None)


def format_of(mode: str) -> PixelFormat:
    """What a set of images of one Pillow mode is converted to."""
    return GREY if mode in GREY_MODES else DEEP if mode in DEEP_MODES else COLOUR


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Opens an image file without Pillow's warnings about metadata; InputError if Pillow knows, but does not support what is in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=FORMATS) as image:
                if getattr(image, "tag_v2", {}).get(ORIENTATION) in SWAPPED:
                    image.filename = ""  # else Pillow maps the file into memory, in the size that the image is only turned to afterwards
                yield image
        except (OSError, SyntaxError, ValueError, NotImplementedError) as error:
            unidentified = isinstance(error, UnidentifiedImageError)
            reason = _reason(path) or error if unidentified else error
            if UNSUPPORTED.search(str(reason)):
                raise InputError(f"{path}: Pillow does not read such an image ({reason}); convert it, to PNG for example") from None
            if unidentified and (kind := _kind(path)):
                raise ValueError(f"it is in the format {kind}, whatever its name says; convert it to PNG, for example") from None
            raise


def _reason(path: Path) -> Exception | None:
    """Why Pillow does not identify a file whose first bytes it knows: ``Image.open`` does not say it."""
    with path.open("rb") as file:
        prefix = file.read(16)
        for factory, accept in (Image.OPEN[name] for name in FORMATS if name in Image.OPEN):
            if accept and accept(prefix) is True:
                file.seek(0)
                try:
                    factory(file, str(path))
                except Exception as error:  # it raises anything
                    return error
    return None


def _kind(path: Path) -> str | None:
    """The format of a file that has one of Pillow's others, None if it is no image."""
    try:
        with Image.open(path) as image:
            return image.format
    except Exception:  # it raises anything
        return None


def bits_of(image: Image.Image) -> int:
    """Bits a channel in the file."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        return max(tags.get(BITS, (1,)))
    arguments = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in getattr(image, "tile", ())]
    if image.format == "PPM":
        return 16 if any(isinstance(value, int) and value > 255 for values in arguments for value in values[1:]) else 8
    return 16 if any(";16" in str(values[0]) for values in arguments if values) and image.format == "PNG" else 8


def decode(path: Path, pixels: PixelFormat, mode: str = "auto") -> np.ndarray:
    """The upright image of a file, (rows, columns, C); raises any exception if it is damaged, InputError as ``to_array``."""
    with opened(path) as image:
        return to_array(image, pixels, path, mode)


def to_array(
    image: Image.Image, pixels: PixelFormat, name: object, mode: str = "auto", way_out: str = "convert all to one mode"
) -> np.ndarray:  # fmt: skip
    """A Pillow image, turned upright and converted to a format: (rows, columns, C); raises any exception if it is damaged.

    Args:
        mode: with "grey", colour becomes grey; with "grey" or "rgb", 16 bits a channel in colour become 8.

    Raises:
        InputError: the conversion would lose colour or depth, or numbers would become others.
    """
    if 4 * image.width * image.height > MOST_BYTES:
        raise ValueError(f"{times((image.height, image.width))} pixels take over a quarter of this machine's memory")
    original = format_of(image.mode)
    if not (original == pixels or (original, pixels) == (GREY, COLOUR) or (original, pixels, mode) == (COLOUR, GREY, "grey")):
        raise InputError(f"{name} is {original.words}, other images of the set are {pixels.words}: {way_out}")
    if original == COLOUR and mode == "auto" and bits_of(image) > 8:
        raise InputError(f"{name} has {DEEP_COLOUR}: convert it to 8 bits")
    if image.mode == "LAB":
        raise InputError(f"{name} is in CIELAB colours, which are not read: convert it to RGB")
    tags = getattr(image, "tag_v2", {})
    bits, kind = max(tags.get(BITS, (1,))), max(tags.get(SAMPLE_FORMAT, (1,)))
    if bits == 8 and kind == SIGNED:
        raise InputError(f"{name} has signed pixels of 8 bits, which Pillow reads as unsigned: save it with 16 bits or as float")
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "I" and bits == 32 and kind != SIGNED:  # Pillow reads unsigned numbers as signed
        values = np.asarray(upright).view(np.uint32)
    else:
        upright = upright.convert("RGB") if original == COLOUR and upright.mode != "RGB" else upright
        values = np.asarray(upright if upright.mode == pixels.mode else upright.convert(pixels.mode))
    return np.asarray(values, pixels.dtype).reshape(upright.height, upright.width, pixels.channels)

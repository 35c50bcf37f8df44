"""Headers of image files: what mode and size a set has, before any image is decoded.

What a file has beyond that (more pages, transparency) is told once per set; what would become wrong without a word is refused.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ddcnn.data.sources.decoding import COLOUR, DEEP, DEEP_COLOUR, GREY, ORIENTATION, SWAPPED, PixelFormat, bits_of, format_of, opened
from ddcnn.decomposition import times
from ddcnn.errors import InputError
from ddcnn.parallel.heartbeat import beat

WIDTH, LENGTH, EXTRA_SAMPLES = 256, 257, 338  # TIFF tags
LATE = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks of a PNG that may hold its orientation; behind the pixels Pillow has not seen them
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
        size: rows and columns of the upright image.
        beyond: what the file has that is not read, keys of ``BEYOND``.
    """

    pixels: PixelFormat
    size: tuple[int, int]
    beyond: tuple[str, ...] = ()


DEPTH = "16 bits"
BEYOND = {
    "pages": "more than one page or frame, of which only the first is read; save one a file to read all, or read stacks with --volumes",
    "transparency": "transparency, which is left out",
    "channels": "channels beyond colour, which are left out",
    DEPTH: DEEP_COLOUR,
}


@dataclass
class Headers:
    """Headers of a set of images: formats, (rows, columns) and what is beyond, each with the first image that has it, and their number."""

    formats: dict[PixelFormat, list] = field(default_factory=dict)
    sizes: dict[tuple[int, ...], list] = field(default_factory=dict)
    beyond: dict[str, list] = field(default_factory=dict)
    problem: str = ""

    def read(self, images: Iterable, header: Callable[..., Header], name: Callable[..., object] = str) -> None:
        """Reads the headers of images that ``header`` and ``name`` know.

        An unreadable one is skipped here: it is refused as a damaged sample, or skipped, when the image is read.
        """
        for image in images:
            beat("reading headers")
            try:
                found = header(image)
            except InputError:
                raise
            except Exception as error:  # third-party decoders raise anything
                self.problem = self.problem or f"{name(image)}: {error}"
                continue
            for kinds, kind in ((self.formats, found.pixels), (self.sizes, found.size), *((self.beyond, kind) for kind in found.beyond)):
                kinds.setdefault(kind, [name(image), 0])[1] += 1  # type: ignore[attr-defined]

    def common(
        self, pixels: PixelFormat | None, mode: str, size: tuple[int, ...] | None, option: str
    ) -> tuple[PixelFormat, tuple[int, ...]]:  # fmt: skip
        """The format and the shape (rows, columns, C) of all images, and a note on what is lost.

        The format is ``pixels`` if given, else that of ``--mode``, which for "auto" is the one that all share, and colour if some are grey.

        Raises:
            InputError: no readable header; different sizes, without the ``option`` that makes them equal; more than 8 bits a pixel in
                colour, or in some images only, of which the lower ones, or the higher, would be cut off.
        """
        if not self.sizes:
            raise InputError(f"no image can be read, the first because of {self.problem}")
        pixels = pixels or self._format(mode)
        if size is None and len(self.sizes) > 1:
            (first, one), (second, other) = ((name, times(size)) for size, (name, _) in list(self.sizes.items())[:2])
            raise InputError(f"{first} is {one} and {second} is {other}: give one size for all with {option}")
        self.tell()
        return pixels, (*(size or next(iter(self.sizes))), pixels.channels)

    def _format(self, mode: str) -> PixelFormat:
        if DEEP in self.formats and (len(self.formats) > 1 or mode == "rgb"):
            deep, other = self.formats[DEEP][0], next((name for pixels, (name, _) in self.formats.items() if pixels != DEEP), None)
            if mode == "rgb":
                raise InputError(f"{deep} is {DEEP.words}, which --mode rgb would cut off: convert it to 8 bits")
            raise InputError(f"{deep} has more than 8 bits a pixel and {other} has 8: convert all to one depth")
        if DEPTH in self.beyond and mode == "auto":
            name, count = self.beyond[DEPTH]
            raise InputError(
                f"{name}{more(count)} has {DEEP_COLOUR}: accept that with --mode rgb or grey, or give all bits as arrays in an .npz or .h5"
            )
        if mode == "auto" and len(self.formats) > 1:
            (grey, n), (colour, m) = self.formats[GREY], self.formats[COLOUR]
            logger.info("note: %d image%s grey (%s) and %d in colour (%s): all are read as colour; --mode grey reads all as grey",
                        n, " is" if n == 1 else "s are", grey, m, colour)  # fmt: skip
        if mode == "auto":
            return next(iter(self.formats)) if len(self.formats) == 1 else COLOUR
        return COLOUR if mode == "rgb" else DEEP if DEEP in self.formats else GREY

    def meet(self, image: Image.Image, name: object) -> None:
        """Notes what is not read of an image, for each kind once in a process: for images whose headers were not read before."""
        for kind in header_of(image).beyond:
            if kind not in self.beyond:
                self.beyond[kind] = [name, 1]
                logger.warning("%s has %s", name, BEYOND[kind], extra={"kind": "note"})

    def tell(self) -> None:
        """Notes, once for each kind, what is not read."""
        for kind, (name, count) in self.beyond.items():
            logger.info("note: %s%s has %s", name, more(count), BEYOND[kind])


def more(count: int) -> str:
    """Behind the name of the first of so many."""
    return f" (and {count - 1} more)" if count > 1 else ""


def header(path: Path) -> Header:
    """The header of an image file, without decoding it; raises any exception if the file is damaged, InputError if it is not supported."""
    with opened(path) as image:
        return header_of(image)


def header_of(image: Image.Image) -> Header:
    """The header of an open image."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    width, height = (tags[WIDTH], tags[LENGTH]) if tags else image.size  # Pillow turns the size of a TIFF, and not that of others
    beyond = []
    if _frames(image) > 1:
        beyond.append("pages")
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        beyond.append("transparency")
    if 0 in tags.get(EXTRA_SAMPLES, ()):
        beyond.append("channels")
    if format_of(image.mode) == COLOUR and bits_of(image) > 8:
        beyond.append(DEPTH)
    if _orientation(image) in SWAPPED:
        width, height = height, width
    return Header(format_of(image.mode), (height, width), tuple(beyond))


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, as ``exif_transpose`` finds it after decoding."""
    if image.format == "PNG" and "exif" not in image.info and _has_late_text(image):
        image.load()
    return Image.Image.getexif(image).get(ORIENTATION)  # that of a PNG would always decode it, to look behind the pixels


def _has_late_text(image: Image.Image) -> bool:
    """Whether a PNG has EXIF or text behind the pixels."""
    file = getattr(image, "fp")  # noqa: B009  # of an image that has been opened, not of any
    place, position, behind = file.tell(), 8, False
    try:
        while True:
            file.seek(position)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if len(kind) < 4 or kind == b"IEND" or (behind and kind in LATE):
                return kind in LATE
            behind = behind or kind == b"IDAT"
            position += 12 + length
    finally:
        file.seek(place)


def _frames(image: Image.Image) -> int:
    """Pages of a TIFF, frames of an animation; 1 if they cannot be counted."""
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # damage behind the first
        return 1

"""Finding volumes: which files and folders are volumes, of which kind, and whether class folders hold them."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path

import ddcnn.data.sources.dicom_files as dicom
import ddcnn.data.sources.nifti as nifti
import ddcnn.data.sources.stacks as stacks
from ddcnn.data.sources.base import SourceOptions
from ddcnn.data.sources.decoding import SUFFIXES as IMAGES
from ddcnn.data.sources.folders import Walk, counted
from ddcnn.errors import InputError
from ddcnn.parallel.heartbeat import beat

SCANS = (*nifti.SUFFIXES, *dicom.SUFFIXES)
SUFFIXES = (*SCANS, *stacks.TIFF)
PACKAGES = {"NIfTI volumes": ("nibabel", "nibabel"), "DICOM series": ("pydicom", 'pydicom, or "ddcnn[scans]"')}  # and how to install them
SOUGHT = "volume in it (NIfTI or TIFF files, folders of DICOM slices or of images)"
MOST_LOOKED_AT = 10_000  # files by which it is decided whether class folders hold volumes
logger = logging.getLogger(__name__)


def hold_volumes(options: SourceOptions) -> bool:
    """Whether class folders hold volumes: no fewer scans (NIfTI, DICOM) than files that may be photos, or ``--volumes`` says so.

    What is not read is told. Files that have the suffix of photos are not opened.
    """
    if options.volumes:
        return True
    root, scans, photos = Path(options.name), [], []
    try:
        for path in islice(Walk(root, ("",), options.follow_links).files(root), MOST_LOOKED_AT):
            if path.name.lower().endswith(IMAGES):
                photos.append(path)
            elif _is_scan(path):
                scans.append(path)
    except InputError:  # of a link, which is told when the files are read
        if not (scans or photos):
            raise
    held = len(scans) >= max(1, len(photos))
    if scans and photos:
        kind, other, way = ("volumes", photos[0], "move the scans out of it") if held else ("photos", scans[0], "add --volumes")
        logger.info(
            "note: %s has %d files of scans and %d of photos, and is read as %s; to read those such as %s, %s",
            root, len(scans), len(photos), kind, other, way,
        )  # fmt: skip
    return held


@dataclass(frozen=True)
class VolumeWalk(Walk):
    """Finds volumes instead of images."""

    suffixes: tuple[str, ...] = SUFFIXES
    sought: str = SOUGHT
    folders: bool = True

    @classmethod
    def of(cls, options: SourceOptions) -> "VolumeWalk":
        return cls(Path(options.name), follow_links=options.follow_links)

    def files(self, folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
        """Volumes in a folder and its subfolders, files and folders; the folder itself if it holds slices. Images beside scans are none."""
        everything = sorted(Walk(self.root, ("",), self.follow_links).files(folder, above))
        stacks_too = not any(map(_is_scan, everything))
        for place, files in groupby(sorted(everything, key=attrgetter("parent")), attrgetter("parent")):
            yield from self._volumes(place, list(files), stacks_too)

    def holds(self, folder: Path) -> bool:
        """Whether volumes, or slices of one, lie directly in a folder."""
        files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        return any(path.name.lower().endswith((*nifti.SUFFIXES, *stacks.TIFF)) or dicom.is_dicom(path) for path in files)

    def may_hold(self, folder: Path) -> bool:
        """Whether the first file in a folder, or in one below it, may be a volume or a slice; what cannot be read is none."""
        with suppress(InputError, OSError):
            first = next(Walk(self.root, ("",), self.follow_links).files(folder), None)
            return first is not None and (first.name.lower().endswith(IMAGES) or _is_scan(first))
        return False

    def takes(self, path: Path) -> bool:
        return super().takes(path) or path.is_dir() or (path.is_file() and dicom.is_dicom(path))

    def sample(self, path: Path, where: str) -> Path:
        if not path.is_dir():
            return super().sample(path, where)
        found = list(self.files(path))
        if len(found) != 1:
            which = f"{len(found)} volumes, such as {found[0]}: name one of them" if found else f"no {self.sought}"
            raise InputError(f"{where}: {path} holds {which}")
        return found[0]

    def _volumes(self, folder: Path, files: list[Path], stacks_too: bool) -> list[Path]:
        """The volumes among the files of a folder, or the folder as one, of one kind; others are told, and not read."""
        beat("looking for volumes")
        images = [path for path in files if path.name.lower().endswith(IMAGES)]
        found = [path for path in files if path.name.lower().endswith(nifti.SUFFIXES)]
        others = [path for path in files if path not in found]
        if not found and (scans := [path for path in files if dicom.is_dicom(path)]):
            check_package("DICOM series", scans[0])
            found = scans if _are_volumes(scans, dicom.frames_of) else [folder]
            others = images
        elif not found and images and stacks_too:
            stack = [path for path in images if path.name.lower().endswith(stacks.TIFF)]
            found = stack if stack and _are_volumes(stack, stacks.pages_of) else [folder]
            others = [path for path in images if path not in stack] if found == stack else []
        for path in others:
            self.leave_out(path)
        return found

    def tell(self) -> None:
        if self.left_out:
            logger.info("note: %s: beside the volumes there are files that are not read: %s", self.root, counted(self.left_out))


def _is_scan(path: Path) -> bool:
    return path.name.lower().endswith(nifti.SUFFIXES) or dicom.is_dicom(path)


def _are_volumes(files: list[Path], count: Callable[[Path], int]) -> bool:
    """Whether files of a folder are volumes, not slices of one: any has several pages, by ``count``, which is 0 for those not readable.

    Of readable files of about one size a single one is asked, since a folder may have thousands of slices.
    """
    pages: dict[int, int] = {}
    for path in files:
        size = round(4 * math.log2(path.stat().st_size + 1))  # equal up to a fifth
        if not pages.get(size):
            pages[size] = count(path)
        if pages[size] > 1:
            return True
    return len(files) == 1 and not any(pages.values())  # a damaged file by itself is named as it is


def kind_of(path: Path) -> str:
    """ "NIfTI volumes", "DICOM series" or "stacks"; InputError if the package is missing that reads it."""
    name = path.name.lower()
    if path.is_dir():
        kind = "DICOM series" if any(file.is_file() and dicom.is_dicom(file) for file in path.iterdir()) else "stacks"
    else:
        kind = "NIfTI volumes" if name.endswith(nifti.SUFFIXES) else "stacks" if name.endswith(stacks.TIFF) else "DICOM series"
    if kind in PACKAGES:
        check_package(kind, path)
    return kind


def check_package(kind: str, path: Path) -> None:
    """Checks that the package is installed that reads a kind of volume, such as ``path``."""
    package, install = PACKAGES[kind]
    try:
        import_module(package)
    except ImportError as error:
        raise InputError(f"{path}: {kind} need {package} ({error}); pip install {install}") from None

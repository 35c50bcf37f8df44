"""DICOM files: which there are, and reading one with pydicom."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ddcnn.data.sources.decoding import SUFFIXES as IMAGES

SUFFIXES = (".dcm", ".dicom", ".ima")  # of files that are DICOM whatever their first bytes are; most others have no suffix
DIRECTORY = "DICOMDIR"  # an index of a disk, itself a DICOM file
ENCODINGS = {
    (True, True): "1.2.840.10008.1.2", (False, True): "1.2.840.10008.1.2.1", (False, False): "1.2.840.10008.1.2.2",
}  # implicit?, little-endian?, and the transfer syntax of pixels that are not compressed, for files that lack it  # fmt: skip


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its name or its first bytes."""
    if path.name.upper() == DIRECTORY or path.name.lower().endswith(IMAGES):
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def frames_of(path: Path) -> int:
    """The number of frames of a file; 0 if it cannot be read, or is no image."""
    try:
        with quiet():
            dataset = dataset_of(path, stop_before_pixels=True, specific_tags=["Rows", "NumberOfFrames"])
            return int(dataset.get("NumberOfFrames") or 1) if dataset.get("Rows") else 0
    except Exception:  # pydicom raises anything; the damage is told when the volume is read
        return 0


def files_in(folder: Path) -> list[Path]:
    """The files of a folder that are DICOM, or called like those that are, with a number: such a one is damaged, and must not be missed."""
    with os.scandir(folder) as entries:
        files = sorted(Path(entry.path) for entry in entries if entry.is_file() and not entry.name.startswith("."))
    scans = {path for path in files if is_dicom(path)}
    kinds = {_kind(path) for path in scans}
    return [path for path in files if path in scans or (_kind(path) in kinds and re.search("[0-9]", path.name))]


def _kind(path: Path) -> str:
    """The suffix of a file, empty if it is only a part of a number, as in 1.2.840.10008."""
    return path.suffix.lower() if path.suffix[1:].isalpha() else ""


@contextmanager
def quiet() -> Iterator[None]:
    """Without pydicom's warnings about values that are not as the standard says, of which real files are full."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def dataset_of(path: Path, **options):
    """Reads a file with pydicom, also one that lacks the first bytes that DICOM files have today."""
    import pydicom

    dataset = pydicom.dcmread(path, force=True, **options)
    if "TransferSyntaxUID" not in dataset.file_meta and dataset.original_encoding in ENCODINGS:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(ENCODINGS[dataset.original_encoding])
    return dataset


def pixels_of(path: Path) -> np.ndarray:
    """The stored values (frames, rows, columns) of a file."""
    with quiet():
        try:
            dataset = dataset_of(path)
            return dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
        except Exception as error:  # pydicom raises anything
            raise ValueError(f"{path.name}: {' '.join(str(error).split()) or type(error).__name__}") from None


def missing_decoder(dataset) -> str:
    """What is missing to decompress a file, empty if nothing is."""
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_compressed:
        return ""
    what = f"is compressed ({syntax.name}), which"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return f"{what} pydicom does not read: decompress it, for example with gdcmconv"
    if decoder.is_available:
        return ""
    packages = next((re.findall(r"[\w-]+(?=>=)", line) for line in decoder.missing_dependencies if line.startswith("pylibjpeg")), [])
    return f"{what} needs a package that is missing: pip install {' '.join(packages)}"

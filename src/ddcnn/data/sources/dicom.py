"""DICOM series, a folder of slices each, and files of many frames, as volumes in the orientation of NIfTI's.

DICOM's axes point to the left, the back and the head of a patient, NIfTI's to the right, the front and the head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np

from ddcnn.data.sources.decoding import MOST_BYTES
from ddcnn.data.sources.dicom_files import dataset_of, files_in, missing_decoder, pixels_of, quiet
from ddcnn.data.sources.nifti import canonical, canonical_shape
from ddcnn.decomposition import times
from ddcnn.errors import InputError
from ddcnn.parallel.heartbeat import beat

TAGS = [
    "SeriesInstanceUID", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "InstanceNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
UNEVEN = 0.25  # of the usual gap, by which others may differ: positions are rounded, a missing slice doubles a gap
UNORDERED = "no {}: its slices stand in the order of their numbers, and are not turned"


@dataclass(frozen=True)
class Slice:
    """A slice of a series by its header.

    Attributes:
        frame: its number in the file.
        shape: rows and columns.
        orientation: directions along the rows and along the columns, (6,); None if unknown.
        position: of its first pixel, (3,), in mm; None if unknown.
        spacing: of rows and of columns.
        number: InstanceNumber, or the number of the frame.
        scale: slope and intercept of its values.
    """

    path: Path
    frame: int
    series: str
    shape: tuple[int, int]
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    spacing: tuple[float, ...]
    number: int | None
    scale: tuple[float, float]


def shape_of(path: Path) -> tuple[tuple[int, ...], str]:
    """(depth, rows, columns, 1) of a folder of slices or a file of frames by the headers, and a remark on it; raises as ``load``."""
    slices, affine = _series(path)
    shape = len(slices), *slices[0].shape
    if affine is None:
        missing = "positions (ImagePositionPatient)" if slices[0].position is None else "orientation (ImageOrientationPatient)"
        return (*shape, 1), UNORDERED.format(missing)
    return (*canonical_shape(shape[::-1], affine), 1), ""


def load(path: Path) -> np.ndarray:
    """A series (depth, rows, columns, 1) float32, rescaled, in the closest canonical orientation.

    Raises any exception if slices are damaged, missing, not of one series or of kinds that are not read, and InputError if a package is
    missing that decompresses them.
    """
    slices, affine = _series(path)
    _check_size(len(slices), *slices[0].shape)
    volume = np.empty((len(slices), *slices[0].shape), np.float32)
    order = {one: k for k, one in enumerate(slices)}
    for file, members in groupby(sorted(slices, key=attrgetter("path", "frame")), attrgetter("path")):
        beat()
        frames = pixels_of(file)
        for one in members:
            slope, intercept = one.scale
            volume[order[one]] = frames[one.frame] if one.scale == (1, 0) else frames[one.frame] * slope + intercept
    return volume[..., None] if affine is None else canonical(volume.transpose(2, 1, 0), affine)


def _series(path: Path) -> tuple[list[Slice], np.ndarray | None]:
    """The slices of a volume in their order, and a matrix (4, 4) as of NIfTI for (columns, rows, slices); None without positions."""
    slices = [one for file in (files_in(path) if path.is_dir() else [path]) for one in _slices(file)]
    if len(slices) < 2:
        raise ValueError(f"it has {'one slice' if slices else 'no image'}, and is no volume (a folder of slices is one)")
    first = slices[0]
    others = {one.series: one for one in slices}
    if len(others) > 1:
        names = " and ".join(one.path.name for one in list(others.values())[:2])
        raise ValueError(f"it holds slices of {len(others)} series, such as {names}: give every series a folder of its own")
    for what, alike in ALIKE.items():
        if other := next((one for one in slices if not alike(first, one)), None):
            raise ValueError(f"{_name(first)} and {_name(other)} differ in {what}: are they of one scan? Give each a folder of its own")
    if first.position is None or first.orientation is None:
        numbers = [one.number for one in slices]
        if None in numbers:
            raise ValueError(f"{_name(slices[numbers.index(None)])} has neither a position nor a number")
        return _sorted(slices, np.array(numbers, float), "numbers"), None
    along, down = np.reshape(first.orientation, (2, 3))
    normal = np.cross(along, down)
    if not 0.9 < np.linalg.norm(normal) < 1.1:
        raise ValueError(f"the ImageOrientationPatient of {_name(first)} is no orientation")
    ordered = _sorted(slices, np.array([one.position for one in slices]) @ normal, "mm")
    positions = np.array([one.position for one in ordered])
    _check_line(ordered, positions, positions @ normal)
    start, end = positions[0], positions[-1]
    affine = np.eye(4)
    affine[:3] = np.stack([along * first.spacing[1], down * first.spacing[0], (end - start) / (len(slices) - 1), start], axis=1)
    affine[:2] *= -1  # left and back become right and front
    return ordered, affine


def _alike(name: str, relative: float, absolute: float) -> Callable[[Slice, Slice], bool]:
    """Whether two slices have the same attribute, up to rounding; both may have none."""

    def alike(one: Slice, other: Slice) -> bool:
        first, second = getattr(one, name), getattr(other, name)
        return first == second or (first is not None and second is not None and np.allclose(first, second, relative, absolute))

    return alike


ALIKE = {
    "rows and columns": lambda one, other: one.shape == other.shape,
    "orientation": _alike("orientation", 0, 0.01),
    "pixel spacing": _alike("spacing", 0.01, 0),
    "whether they have a position": lambda one, other: (one.position is None) == (other.position is None),
}


def _sorted(slices: list[Slice], places: np.ndarray, unit: str) -> list[Slice]:
    """The slices in the order of their ``places`` (n,), which must be apart by the same, up to rounding."""
    order = np.argsort(places, kind="stable")
    gaps, ordered = np.diff(places[order]), [slices[k] for k in order]
    usual = np.median(gaps[gaps > 1e-6]) if gaps.max() > 1e-6 else np.inf
    for k, gap in enumerate(gaps):
        pair = f"{_name(ordered[k])} and {_name(ordered[k + 1])}"
        if gap <= 1e-6 or gap < 0.01 * usual:
            raise ValueError(f"{pair} lie at the same place: copies, phases or echoes of a slice? Keep one of each in the folder")
        if abs(gap - usual) > UNEVEN * usual:
            raise ValueError(f"{pair} are {gap:.4g} {unit} apart, and others {usual:.4g}: slices are missing, or of another scan")
    return ordered


def _check_line(slices: list[Slice], positions: np.ndarray, places: np.ndarray) -> None:
    """Refuses slices at ``positions`` (n, 3) that lie beside the line from the first to the last, on which they are at ``places`` (n,)."""
    shares = (places - places[0]) / (places[-1] - places[0])
    beside = np.linalg.norm(positions - positions[0] - shares[:, None] * (positions[-1] - positions[0]), axis=1)
    if beside.max() > UNEVEN * (gap := abs(places[-1] - places[0]) / (len(slices) - 1)):
        other = _name(slices[int(beside.argmax())])
        raise ValueError(
            f"{other} lies {beside.max():.4g} mm beside the line from {_name(slices[0])} to {_name(slices[-1])}, on which slices are "
            f"{gap:.4g} mm apart: are they of one scan? Give each a folder of its own"
        )


def _name(one: Slice) -> str:
    return one.path.name + (f" frame {one.frame + 1}" if one.frame else "")


def _slices(path: Path) -> list[Slice]:
    """The slices of a file by its header, none if it is no image (a report, a plan)."""
    with quiet():
        try:
            dataset = dataset_of(path, stop_before_pixels=True, specific_tags=TAGS)
            if dataset.get("Rows") is None:
                if dataset.preamble is None:
                    raise ValueError("it is no DICOM image")
                return []
            _check(path, dataset)
            frames = int(dataset.get("NumberOfFrames") or 1)
            _check_size(frames, dataset.Rows, dataset.Columns)
            return [_slice(path, dataset, frame, frames) for frame in range(frames)]
        except InputError:
            raise
        except Exception as error:  # pydicom raises anything
            raise ValueError(f"{path.name}: {error or type(error).__name__}") from None


def _slice(path: Path, dataset, frame: int, frames: int) -> Slice:
    own, shared = (dataset.get(f"{name}FunctionalGroupsSequence") or [] for name in ("PerFrame", "Shared"))
    groups = (*own[frame : frame + 1], *shared[:1])  # of an enhanced file

    def value(sequence: str, name: str):
        """An attribute of the slice; None if it is missing or empty."""
        found = next((group.get(sequence)[0] for group in groups if group.get(sequence)), dataset).get(name)
        return None if found is None or found == "" else found

    def numbers(sequence: str, name: str, count: int) -> tuple[float, ...] | None:
        values = value(sequence, name)
        if values is not None and (len(values) != count or not np.isfinite(np.array(values, float)).all()):
            raise ValueError(f"its {name} is {values}")
        return None if values is None else tuple(map(float, values))

    position = numbers("PlanePositionSequence", "ImagePositionPatient", 3)
    number = frame + 1 if frames > 1 else value("", "InstanceNumber")
    slope, intercept = (value("PixelValueTransformationSequence", f"Rescale{name}") for name in ("Slope", "Intercept"))
    if slope == 0:
        raise ValueError("its RescaleSlope is 0")
    return Slice(
        path, frame, str(dataset.get("SeriesInstanceUID") or ""), (int(dataset.Rows), int(dataset.Columns)),
        numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6), None if frames > 1 and not groups else position,
        numbers("PixelMeasuresSequence", "PixelSpacing", 2) or (1.0, 1.0), None if number is None else int(number),
        (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)),
    )  # fmt: skip


def _check_size(*shape: int) -> None:
    """Refuses volumes that a header alone, which may be damaged, makes too large."""
    if math.prod(shape) * 4 > MOST_BYTES:
        raise ValueError(f"{times(shape)} voxels take over a quarter of this machine's memory")


def _check(path: Path, dataset) -> None:
    """Refuses, as damage, kinds of images that are not read: a screenshot may lie beside scans. InputError if a package is missing."""
    kind, samples = dataset.get("PhotometricInterpretation"), dataset.get("SamplesPerPixel") or 1
    if samples != 1 or kind not in ("MONOCHROME1", "MONOCHROME2", None):
        raise ValueError(f"is in colour ({kind}), which is not read as a volume: convert it to grey, MONOCHROME2")
    if kind == "MONOCHROME1":
        raise ValueError("is MONOCHROME1, with low values for white: convert all to MONOCHROME2, so that values mean the same")
    if dataset.get("ModalityLUTSequence"):
        raise ValueError("has a look-up table of values (ModalityLUTSequence), which is not read: save it with the values themselves")
    if advice := missing_decoder(dataset):
        raise InputError(f"{path} {advice}")

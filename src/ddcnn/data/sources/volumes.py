"""Volumes: NIfTI files, DICOM series and stacks of images, in class folders or with a ``labels.csv``.

A volume is a file (NIfTI, TIFF, a DICOM file of many frames) or a folder of slices. In class folders, NIfTI and DICOM are known by their
files; stacks of images, which may be photos, are volumes with ``--volumes``.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import ddcnn.data.sources.dicom as dicom
import ddcnn.data.sources.nifti as nifti
import ddcnn.data.sources.stacks as stacks
from ddcnn.data.sources.base import SPLITS, DamagedSample, Source, SourceOptions
from ddcnn.data.sources.folders import labelled_folders
from ddcnn.data.sources.image_headers import more
from ddcnn.data.sources.resizing import Fit, LabelledFiles
from ddcnn.data.sources.tables import TABLE, Row, class_names_of, read_table
from ddcnn.data.sources.volume_walk import SUFFIXES, VolumeWalk, kind_of
from ddcnn.errors import InputError, file_name
from ddcnn.parallel.heartbeat import beat

logger = logging.getLogger(__name__)


def labelled_volumes(options: SourceOptions) -> Source:
    """Opens a folder of volumes with a table.

    Raises:
        InputError: a package is not installed, a malformed table, missing files, different shapes without ``--volume-size``.
    """
    root = Path(options.name)
    fit = Fit(options, 3)
    walk = VolumeWalk.of(options)
    rows = read_table(walk)
    _tell_of_unlisted(walk, rows)
    class_names = class_names_of(rows)
    number = {name: k for k, name in enumerate(class_names)}
    labels = np.array([number[row.label] for row in rows], np.int64)
    splits = {"train": np.arange(len(rows))}
    if rows[0].split is not None:
        splits = {split: indices for split in SPLITS if (indices := np.flatnonzero([row.split == split for row in rows])).size}
        if missing := "train" if "train" not in splits else "test" if len(splits) == 1 else "":
            raise InputError(f"{rows[0].table}: no line has the split {missing}; leave the column out to split by --test-fraction")
        trained = set(labels[splits["train"]].tolist())
        for row in rows:
            if number[row.label] not in trained:
                raise InputError(f"{row.where}: no training sample has the class {row.label}")
    return _source(LabelledFiles(root, [row.path for row in rows], labels, splits, class_names), class_names, fit)


def _tell_of_unlisted(walk: VolumeWalk, rows: list[Row]) -> None:
    """Notes volumes that the table does not name, by names in its folder and beside those that it names: files, or folders, like these."""
    listed = [row.named for row in rows]
    known = {place for path in listed for place in (path, *path.parents)}
    suffixes = tuple(end for end in SUFFIXES if any(path.name.lower().endswith(end) for path in listed))
    folders = any(path.is_dir() for path in listed)
    found: list[Path] = []
    for place in sorted({walk.root, *(path.parent for path in listed)}):
        beat("looking for volumes")
        for path in sorted(set(place.iterdir()) - known):
            like = path.name.lower().endswith(suffixes) if path.is_file() else folders and walk.may_hold(path)
            if like and not path.name.startswith("."):
                found.append(path.relative_to(walk.root))
    if found:
        count = "1 volume of the folder is" if len(found) == 1 else f"{len(found)} volumes of the folder are"
        logger.info("note: %s not in %s: %s%s", count, rows[0].table, found[0], more(len(found)))


def folders_of_volumes(options: SourceOptions) -> Source:
    """Opens a folder of class folders of volumes. Raises as ``class_folders``, and InputError if a package is not installed."""
    fit = Fit(options, 3)
    files, class_names = labelled_folders(VolumeWalk.of(options), options)
    if "test" not in files.splits or ("validation" not in files.splits and options.validation_fraction):
        _tell_of_patients(files, class_names)
    return _source(files, class_names, fit)


def _tell_of_patients(files: LabelledFiles, class_names: list[str]) -> None:
    """Notes folders in class folders that hold several training volumes, of which some will be drawn for another split."""
    parts = [files.paths[i].relative_to(files.root).parts for i in files.splits["train"]]
    depth = 2 if {file_name(first) for first, *_ in parts} <= set(class_names) else 3  # CLASS/PATIENT or train/CLASS/PATIENT
    counts = Counter(files.root.joinpath(*names[:depth]) for names in parts if len(names) > depth)
    several = [folder for folder, count in counts.items() if count > 1]
    if several:
        logger.info(
            "note: %s%s has several volumes; if they are of one patient, keep patients apart by folders train, validation, test, or by the "
            "column split of a %s: what is missing of these is drawn from the training volumes one by one",
            several[0], more(len(several)), TABLE,
        )  # fmt: skip


@dataclass(frozen=True)
class Described:
    """A volume by its headers: shape (depth, rows, columns, C), type, and a remark on it or nothing."""

    shape: tuple[int, ...]
    dtype: np.dtype
    remark: str = ""


def describe(path: Path) -> Described:
    """The headers of a volume; raises any exception if they are damaged, and InputError as ``load_volume``."""
    match kind_of(path):
        case "NIfTI volumes":
            return Described(nifti.shape_of(path), np.dtype(np.float32))
        case "DICOM series":
            shape, remark = dicom.shape_of(path)
            return Described(shape, np.dtype(np.float32), remark)
        case _:
            return Described(*stacks.shape_of(path))


def load_volume(path: Path, dtype: np.dtype | None = None, others: str = "the others") -> np.ndarray:
    """A volume (depth, rows, columns, C), NIfTI and DICOM as float32 in the closest canonical orientation, stacks as they are.

    Raises any exception if it is damaged, and InputError if it cannot be read at all, a package is missing, or it has another ``dtype``
    than ``others``.
    """
    loaders = {"NIfTI volumes": nifti.load, "DICOM series": dicom.load, "stacks": stacks.load}
    volume = loaders[kind_of(path)](path)
    if dtype is not None and volume.dtype != dtype:
        raise InputError(f"{path} has voxels of type {volume.dtype}, and {others} {np.dtype(dtype)}: convert all to one type")
    return volume


def _source(files: LabelledFiles, class_names: list[str], fit: Fit) -> Source:
    known = fit.options.known(files.fingerprint, 3)
    shape, dtype = known or _shape(files.paths, fit)
    return files.source(class_names, shape, np.dtype(dtype), fit, lambda path: load_volume(path, dtype))


def _shape(paths: list[Path], fit: Fit) -> tuple[tuple[int, ...], np.dtype]:
    """(*spatial, C) of all volumes after resizing, and their type; one with unreadable headers is refused or skipped when it is read."""
    shapes: dict[tuple[int, ...], Path] = {}
    types: dict[np.dtype, Path] = {}
    remarks: dict[str, list[Path]] = {}
    problem = ""
    for path in paths:
        beat("reading headers")
        try:
            found = describe(path)
        except InputError:
            raise
        except Exception as error:  # nibabel and pydicom raise anything
            problem = problem or str(DamagedSample.of(path, error))
            continue
        shapes.setdefault((*(fit.size or found.shape[:-1]), found.shape[-1]), path)
        types.setdefault(found.dtype, path)
        if found.remark:
            remarks.setdefault(found.remark, []).append(path)
    if not shapes:
        raise InputError(f"no volume can be read; the first: {problem}")
    if len(shapes) > 1:
        (first, one), (second, other) = list(shapes.items())[:2]
        advice = (
            "all need the same number of channels" if fit.size else f"give one size for all with {fit.option}, unless slices are missing"
        )
        raise InputError(f"{one} has shape {first} and {other} has {second} (depth, rows, columns, channels): {advice}")
    if len(types) > 1:
        (kind, one), (second_kind, other) = list(types.items())[:2]
        raise InputError(f"{one} has voxels of type {kind} and {other} of {second_kind}: convert all to one")
    for remark, those in remarks.items():
        logger.info("note: %s%s has %s", those[0], more(len(those)), remark)
    return next(iter(shapes)), next(iter(types))

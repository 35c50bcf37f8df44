"""A folder of NIfTI volumes with a ``labels.csv``: columns file, label and, optionally, split."""

import csv
import gzip
import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ddcnn.data.sources.base import SPLITS, DamagedSample, Source, SourceOptions, split_by_fraction
from ddcnn.data.sources.resizing import Fit, LabelledFiles
from ddcnn.errors import InputError

TABLE = "labels.csv"
SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Row:
    """A line of the table; ``where`` names it in messages."""

    where: str
    path: Path
    label: str
    split: str | None


def labelled_volumes(options: SourceOptions) -> Source:
    """Opens a folder of NIfTI volumes.

    Raises:
        InputError: nibabel is not installed, a malformed table, missing files, different shapes without ``--volume-size``.
    """
    root = Path(options.name)
    fit = Fit(options, 3)
    _nibabel(root)
    rows = _table(root)
    class_names = _class_names(rows)
    number = {name: k for k, name in enumerate(class_names)}
    labels = np.array([number[row.label] for row in rows], np.int64)
    if rows[0].split is None:
        splits = split_by_fraction(options, labels)
    else:
        splits = {split: np.flatnonzero([row.split == split for row in rows]) for split in SPLITS}
        for split, indices in splits.items():
            if not indices.size:
                raise InputError(f"{root / TABLE}: no line has the split {split}; leave the column out to split by --test-fraction")
        trained = set(labels[splits["train"]].tolist())
        for row in rows:
            if number[row.label] not in trained:
                raise InputError(f"{row.where}: no training sample has the class {row.label}")
    files = LabelledFiles(root, [row.path for row in rows], labels, splits, class_names)
    return files.source(class_names, _shape(files.paths, fit), np.dtype(np.float32), fit, load_volume)


def load_volume(path: Path) -> np.ndarray:
    """A volume (depth, rows, columns, C) float32, scaled, in the closest canonical orientation; raises any exception if it is damaged."""
    import nibabel

    kind = type(_header(path))  # NIfTI-1 or -2
    content = path.read_bytes()
    if path.name.endswith(".gz"):
        content = gzip.decompress(content)  # all of it, since nibabel does not read as far as the checksum
    image = kind.from_bytes(content)
    volume = nibabel.orientations.apply_orientation(image.get_fdata(dtype=np.float32), _orientation(image.affine))
    volume = volume[..., None] if volume.ndim == 3 else volume
    return np.ascontiguousarray(volume.transpose(2, 1, 0, 3))  # x, y, z are columns, rows, depth


def shape_of(path: Path) -> tuple[int, ...]:
    """(depth, rows, columns, C) of a volume by its header; raises any exception if that is damaged."""
    image = _header(path)
    if len(image.shape) not in (3, 4):
        raise ValueError(f"its shape is {image.shape}; expected (x, y, z) or (x, y, z, channels)")
    turned = [0, 0, 0]
    for axis, canonical in enumerate(_orientation(image.affine)[:, 0].astype(int)):
        turned[canonical] = image.shape[axis]
    return (*turned[::-1], *(image.shape[3:] or (1,)))


def _header(path: Path):
    import nibabel

    nibabel.imageglobals.logger.setLevel(logging.CRITICAL)  # it reports headers that it repairs
    image = nibabel.load(path)
    if not isinstance(image, nibabel.nifti1.Nifti1Pair):
        raise ValueError("not a NIfTI file")
    return image


def _orientation(affine: np.ndarray) -> np.ndarray:
    import nibabel

    orientation = nibabel.orientations.io_orientation(affine)
    if not np.isfinite(orientation).all():
        raise ValueError("its affine matrix is singular")
    return orientation


def _nibabel(root: Path) -> None:
    """Checks that nibabel is installed."""
    try:
        import nibabel  # noqa: F401
    except ImportError:
        raise InputError(f"--data {root}: NIfTI volumes need nibabel; pip install nibabel") from None


def _shape(paths: list[Path], fit: Fit) -> tuple[int, ...]:
    """(*spatial, C) of all volumes after resizing; a volume with an unreadable header is refused or skipped when it is read."""
    shapes: dict[tuple[int, ...], Path] = {}
    problem = ""
    for path in paths:
        try:
            shape = shape_of(path)
        except Exception as error:  # nibabel raises anything
            problem = problem or str(DamagedSample.of(path, error))
            continue
        shapes.setdefault((*(fit.size or shape[:-1]), shape[-1]), path)
    if not shapes:
        raise InputError(f"no volume can be read; the first: {problem}")
    if len(shapes) > 1:
        (first, one), (second, other) = list(shapes.items())[:2]
        advice = "all need the same number of channels" if fit.size else f"give one size for all with {fit.option}"
        raise InputError(f"{one} has shape {first} and {other} has {second} (depth, rows, columns, channels): {advice}")
    return next(iter(shapes))


def _table(root: Path) -> list[Row]:
    """The lines of the table, checked."""
    table = root / TABLE
    rows: list[Row] = []
    seen: dict[Path, str] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            reader.fieldnames = [name.strip().casefold() for name in reader.fieldnames or ()]
            if not {"file", "label"} <= set(reader.fieldnames):
                raise InputError(f"{table}: its first line must name the columns file,label or file,label,split")
            for values in reader:
                row = _row(root, f"{table} line {reader.line_num}", values)
                if row.path in seen:
                    raise InputError(f"{row.where}: {row.path.name} is listed in {seen[row.path]} already")
                seen[row.path] = row.where.removeprefix(f"{table} ")
                rows.append(row)
    except (OSError, ValueError, csv.Error) as error:  # not UTF-8, or a zero byte in a name
        raise InputError(f"{table}: not a readable table in UTF-8 ({error})") from None
    if not rows:
        raise InputError(f"{table}: no lines below the column names")
    return rows


def _row(root: Path, where: str, values: dict) -> Row:
    name, label, split = ((values.get(column) or "").strip() for column in ("file", "label", "split"))
    if not name or not label:
        raise InputError(f"{where}: no {'label' if name else 'file'}")
    if not name.endswith(SUFFIXES):
        raise InputError(
            f"{where}: {name} does not end in {' or '.join(SUFFIXES)}; if these are class folders of images, move {TABLE} out of the folder"
        )
    path = root / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{where}: {name} lies outside of {root}, and is not read")
    if not path.is_file():
        raise InputError(f"{where}: {path} does not exist")
    if "split" in values and split.casefold() not in SPLITS:
        raise InputError(f"{where}: split {split!r}; expected train or test")
    return Row(where, path, label, split.casefold() if "split" in values else None)


def _class_names(rows: list[Row]) -> list[str]:
    """Class names in the order of the class numbers: sorted as numbers if all are whole numbers, else as text."""
    names = {row.label for row in rows}
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)

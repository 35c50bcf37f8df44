"""A folder of NIfTI volumes with a ``labels.csv``: columns file, label and, optionally, split."""

import gzip
import logging
from pathlib import Path

import numpy as np

from ddcnn.data.sources.base import SPLITS, DamagedSample, Source, SourceOptions, split_by_fraction
from ddcnn.data.sources.resizing import Fit, LabelledFiles
from ddcnn.data.sources.tables import class_names_of, read_table
from ddcnn.errors import InputError

SUFFIXES = (".nii", ".nii.gz")
HEADER_BYTES = 540  # of NIfTI-2, the longer one


def labelled_volumes(options: SourceOptions) -> Source:
    """Opens a folder of NIfTI volumes.

    Raises:
        InputError: nibabel is not installed, a malformed table, missing files, different shapes without ``--volume-size``.
    """
    root = Path(options.name)
    fit = Fit(options, 3)
    check_nibabel(root)
    rows = read_table(root, SUFFIXES, options.follow_links)
    class_names = class_names_of(rows)
    number = {name: k for k, name in enumerate(class_names)}
    labels = np.array([number[row.label] for row in rows], np.int64)
    if rows[0].split is None:
        splits = split_by_fraction(options, labels)
    else:
        splits = {split: np.flatnonzero([row.split == split for row in rows]) for split in SPLITS}
        for split, indices in splits.items():
            if not indices.size:
                raise InputError(f"{rows[0].table}: no line has the split {split}; leave the column out to split by --test-fraction")
        trained = set(labels[splits["train"]].tolist())
        for row in rows:
            if number[row.label] not in trained:
                raise InputError(f"{row.where}: no training sample has the class {row.label}")
    files = LabelledFiles(root, [row.path for row in rows], labels, splits, class_names)
    known = options.known(files.fingerprint, 3)
    return files.source(class_names, known[0] if known else _shape(files.paths, fit), np.dtype(np.float32), fit, load_volume)


def load_volume(path: Path) -> np.ndarray:
    """A volume (depth, rows, columns, C) float32, scaled, in the closest canonical orientation; of colours, C are their components.

    Raises any exception if it is damaged, and InputError if its voxels are no numbers that float32 can hold.
    """
    import nibabel

    kind, _ = _header(path)
    content = path.read_bytes()
    if _is_packed(path):
        content = gzip.decompress(content)  # all of it, since nibabel does not read as far as the checksum
    image = kind.from_bytes(content)
    if image.get_data_dtype().names:
        colours = np.asanyarray(image.dataobj)
        voxels = np.stack([colours[name] for name in colours.dtype.names], axis=-1).astype(np.float32)
    else:
        with np.errstate(over="ignore"):
            voxels = image.get_fdata(dtype=np.float32)
        if (infinite := np.isinf(voxels)).any() and (large := np.abs(image.get_fdata(dtype=np.float64)[infinite])).min() < np.inf:
            raise InputError(f"{path} has a voxel of magnitude {large.min():.3g}, which float32 cannot hold: scale the values")
    volume = nibabel.orientations.apply_orientation(voxels, _orientation(image.affine))
    volume = volume[..., None] if volume.ndim == 3 else volume
    return np.ascontiguousarray(volume.transpose(2, 1, 0, 3))  # x, y, z are columns, rows, depth


def shape_of(path: Path) -> tuple[int, ...]:
    """(depth, rows, columns, C) of a volume by its header; raises any exception if that is damaged."""
    _, header = _header(path)
    shape, colours = header.get_data_shape(), len(header.get_data_dtype().names or ())
    if len(shape) not in ((3,) if colours else (3, 4)):
        raise ValueError(f"its shape is {shape}; expected (x, y, z) or (x, y, z, channels)")
    turned = [0, 0, 0]
    for axis, canonical in enumerate(_orientation(header.get_best_affine())[:, 0].astype(int)):
        turned[canonical] = shape[axis]
    return (*turned[::-1], *(shape[3:] or (colours or 1,)))


def _is_packed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _header(path: Path):
    """Class and header of a file: NIfTI-1 or -2, which ``nibabel.load`` tells apart only with suffixes that it knows."""
    import nibabel

    nibabel.imageglobals.logger.setLevel(logging.CRITICAL)  # it reports headers that it repairs
    with gzip.open(path) if _is_packed(path) else path.open("rb") as stream:
        start = stream.read(HEADER_BYTES)
    kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image)
    kind = next((kind for kind in kinds if kind.header_class.may_contain_header(start)), None)
    if kind is None:
        raise ValueError("not a NIfTI file")
    header = kind.header_class(start[: kind.header_class.template_dtype.itemsize])
    if header.get_data_dtype().kind == "c":
        parts = "real and imaginary part as two channels"
        raise InputError(f"{path} has complex voxels, which are not read: save their magnitude (numpy.abs), or {parts}")
    return kind, header


def _orientation(affine: np.ndarray) -> np.ndarray:
    import nibabel

    orientation = nibabel.orientations.io_orientation(affine)
    if not np.isfinite(orientation).all():
        raise ValueError("its affine matrix is singular")
    return orientation


def check_nibabel(path: Path) -> None:
    """Checks that nibabel is installed, which reads ``path``."""
    try:
        import nibabel  # noqa: F401
    except ImportError as error:
        raise InputError(f"--data {path}: NIfTI volumes need nibabel ({error}); pip install nibabel") from None


def _shape(paths: list[Path], fit: Fit) -> tuple[int, ...]:
    """(*spatial, C) of all volumes after resizing; a volume with an unreadable header is refused or skipped when it is read."""
    shapes: dict[tuple[int, ...], Path] = {}
    problem = ""
    for path in paths:
        try:
            shape = shape_of(path)
        except InputError:
            raise
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

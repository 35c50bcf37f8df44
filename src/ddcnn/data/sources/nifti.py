"""NIfTI volumes, scaled and in the closest canonical orientation.

Depth goes from foot to head, rows from back to front, columns from left to right.
"""

import gzip
import logging
from pathlib import Path

import numpy as np

from ddcnn.errors import InputError

SUFFIXES = (".nii", ".nii.gz")
HEADER_BYTES = 540  # of NIfTI-2, the longer one


def load(path: Path) -> np.ndarray:
    """A volume (depth, rows, columns, C) float32, scaled, in the closest canonical orientation; of colours, C are their components.

    Raises any exception if it is damaged, and InputError if its voxels are no numbers that float32 can hold.
    """
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
    return canonical(voxels, image.affine)


def shape_of(path: Path) -> tuple[int, ...]:
    """(depth, rows, columns, C) of a volume by its header; raises any exception if that is damaged."""
    _, header = _header(path)
    shape, colours = header.get_data_shape(), len(header.get_data_dtype().names or ())
    if len(shape) not in ((3,) if colours else (3, 4)):
        raise ValueError(f"its shape is {shape}; expected (x, y, z) or (x, y, z, channels)")
    return (*canonical_shape(shape[:3], header.get_best_affine()), *(shape[3:] or (colours or 1,)))


def canonical(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(depth, rows, columns, C) of voxels (x, y, z[, C]) with the directions of a matrix (4, 4): to the right, the front and the head."""
    import nibabel

    volume = nibabel.orientations.apply_orientation(voxels, _orientation(affine))
    volume = volume[..., None] if volume.ndim == 3 else volume
    return np.ascontiguousarray(volume.transpose(2, 1, 0, 3))  # x, y, z are columns, rows, depth


def canonical_shape(shape: tuple[int, ...], affine: np.ndarray) -> tuple[int, ...]:
    """(depth, rows, columns) of what ``canonical`` makes of (x, y, z)."""
    turned = [0, 0, 0]
    for axis, place in enumerate(_orientation(affine)[:, 0].astype(int)):
        turned[place] = shape[axis]
    return tuple(turned[::-1])


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

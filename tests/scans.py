"""DICOM series that tests write, the same voxels as NIfTI, and TIFF stacks."""

from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

SPACING = (0.5, 0.75, 2.0)  # of rows, columns and slices


def hounsfield(seed=0, shape=(4, 6, 5)) -> np.ndarray:
    """(slices, rows, columns) int16."""
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def turned(angle: float) -> tuple[float, ...]:
    """An axial orientation, turned about the axis to the head."""
    c, s = np.cos(angle), np.sin(angle)
    return (c, s, 0, -s, c, 0)


ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0), "sagittal": (0, 1, 0, 0, 0, -1), "coronal": (1, 0, 0, 0, 0, -1), "oblique": turned(0.3),
    "prone": (-1, 0, 0, 0, -1, 0), "quarter": turned(np.pi / 2),
}  # fmt: skip


def write_slice(path: Path, values: np.ndarray, **elements) -> Path:
    """Writes one file; an element that is None is left out."""
    values = np.ascontiguousarray(values)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    given = {
        "Rows": values.shape[-2], "Columns": values.shape[-1], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 * values.itemsize, "BitsStored": 8 * values.itemsize, "HighBit": 8 * values.itemsize - 1,
        "PixelRepresentation": int(values.dtype.kind == "i"), "SeriesInstanceUID": "1.2.3", "PixelSpacing": list(SPACING[:2]),
    }  # fmt: skip
    for name, value in (given | elements).items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, volume: np.ndarray, orientation="axial", names=None, **elements) -> Path:
    """Writes (slices, rows, columns) as a series whose files' names and numbers tell nothing of their order.

    ``elements`` are of all slices, or functions of the number of the slice.
    """
    directions = np.reshape(ORIENTATIONS[orientation], (2, 3)).astype(float)
    normal = np.cross(*directions)
    order = sorted(range(len(volume)), key=lambda k: (7 * k + 3) % 11)
    names = names or [f"IM{k:04}" for k in range(len(volume))]
    for k, place in enumerate(order):
        given = {
            "ImageOrientationPatient": directions.ravel().tolist(),
            "ImagePositionPatient": (np.array([-10.0, 20, 30]) + SPACING[2] * place * normal).tolist(),
            "InstanceNumber": k + 1,
        }
        given |= {name: value(place) if callable(value) else value for name, value in elements.items()}
        write_slice(folder / names[k], volume[place], **given)
    return folder


def write_nifti(path: Path, volume: np.ndarray, orientation="axial") -> Path:
    """The same scan as a converter would write it: columns, rows and slices as x, y and z."""
    along, down = np.reshape(ORIENTATIONS[orientation], (2, 3)).astype(float)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = along * SPACING[1], down * SPACING[0], np.cross(along, down) * SPACING[2]
    affine[:3, 3] = -10, 20, 30
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]) @ affine), path)
    return path


def write_stack(path: Path, pages, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = map(Image.fromarray, pages)
    first.save(path, save_all=True, append_images=others, **options)
    return path

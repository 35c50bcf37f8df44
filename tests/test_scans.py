"""DICOM series: order, orientation, scaling, what is refused; and volumes of all kinds in class folders or with a labels.csv."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from scans import ORIENTATIONS, hounsfield, write_nifti, write_series, write_slice
from test_folders import everything, opened, picture, save
from test_tables import partitioned, to_classify
from test_volumes import check_damage

from ddcnn.data.sources import SourceOptions, volume_walk, volumes
from ddcnn.data.sources.volumes import describe, load_volume
from ddcnn.errors import InputError


def as_read(volume: np.ndarray) -> np.ndarray:
    """What an axial series is read as: from foot to head, back to front, left to right."""
    return volume[:, ::-1, ::-1, None].astype(np.float32)


def fill(root: Path, classes=("healthy", "ill"), scans=4, **elements) -> Path:
    """Scan k of class c has the seed 10 c + k."""
    for c, name in enumerate(classes):
        for k in range(scans):
            write_series(root / name / f"patient {k}" / "ct", hounsfield(10 * c + k), **elements)
    return root


def notes(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


# One series


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_series_is_read_as_the_nifti_file_of_the_same_scan(tmp_path, orientation):
    series = write_series(tmp_path / "series", hounsfield(), orientation)
    expected = load_volume(write_nifti(tmp_path / "scan.nii.gz", hounsfield(), orientation))
    assert np.array_equal(load_volume(series), expected)
    assert describe(series).shape == expected.shape


def test_the_axes_go_to_the_head_the_front_and_the_right(tmp_path):
    voxels = np.zeros((4, 6, 5), np.int16)
    voxels[3, 5, 4] = 7  # DICOM's axes go to the head, the back and the left
    assert np.argwhere(load_volume(write_series(tmp_path / "a", voxels))).tolist() == [[3, 0, 0, 0]]


def test_each_slice_has_its_own_scale(tmp_path):
    slopes, stored = np.array([0.5, 2, 1, 3]), hounsfield().astype(np.uint16) % 4096
    series = write_series(tmp_path / "pet", stored, RescaleSlope=lambda k: slopes[k], RescaleIntercept=-1024)
    assert np.array_equal(load_volume(series), as_read(stored * slopes[:, None, None] - 1024))
    half = write_series(tmp_path / "half", stored, RescaleSlope="", RescaleIntercept=lambda k: k)  # an empty one says nothing
    assert np.array_equal(load_volume(half), as_read(stored + np.arange(4)[:, None, None]))


def test_what_is_no_slice_is_left_out(tmp_path):
    series = write_series(tmp_path, hounsfield())
    for name in ("DICOMDIR", "LICENSE", "IM_notes.txt", ".DS_Store", "preview.jpg"):
        (series / name).write_bytes(b"1" * 200)
    write_slice(series / "SR001", hounsfield()[0], Rows=None, SeriesInstanceUID="1.9")  # a report
    (series / "below").mkdir()
    assert np.array_equal(load_volume(series), as_read(hounsfield()))


@pytest.mark.parametrize("names", [[f"{k}.dcm" for k in range(4)], [f"1.2.840.{k}" for k in range(4)], [f"{k}.IMA" for k in range(4)]])
def test_names_do_not_matter(tmp_path, names):
    assert np.array_equal(load_volume(write_series(tmp_path, hounsfield(), names=names)), as_read(hounsfield()))


def test_positions_and_spacings_may_be_rounded(tmp_path):
    tilted = write_series(
        tmp_path, hounsfield(), ImageOrientationPatient=lambda k: [1, 1e-4 * k, 0, 0, 1, 0],
        ImagePositionPatient=lambda k: [0, 0, (0, 0.6, 1.3, 1.9)[k]], PixelSpacing=lambda k: [0.5 + 1e-4 * k, 0.75],
    )  # fmt: skip
    assert np.array_equal(load_volume(tilted), as_read(hounsfield()))


def test_slices_without_positions_stand_in_the_order_of_their_numbers(tmp_path, caplog):
    caplog.set_level("INFO")
    elements = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "InstanceNumber": lambda k: 10 - k}
    root = fill(tmp_path, **elements)
    assert np.array_equal(load_volume(root / "healthy/patient 0/ct"), hounsfield()[::-1, ..., None])
    opened(root)
    assert "ct (and 7 more) has no positions" in notes(caplog)
    placed = write_series(tmp_path / "placed", hounsfield(), **elements | {"ImagePositionPatient": lambda k: [0, 0, k]})
    assert describe(placed).remark.startswith("no orientation (ImageOrientationPatient): its slices stand in the order of their numbers")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_series_without_the_first_bytes_that_dicom_has_today_is_read(tmp_path, syntax):
    series = write_series(tmp_path / "a", hounsfield(), names=[f"{k}.dcm" for k in range(4)])
    for path in series.iterdir():
        dataset = dcmread(path)
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        bare = Dataset({element.tag: element for element in dataset})
        bare.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
        assert path.read_bytes()[128:132] != b"DICM"
        assert not dcmread(path, force=True).file_meta
    assert np.array_equal(load_volume(series), as_read(hounsfield()))
    assert describe(series).shape == (4, 6, 5, 1)


def test_slices_of_a_slanted_scan_lie_on_a_line_from_which_none_may_be_shifted(tmp_path):
    slanted = write_series(tmp_path / "a", hounsfield(), ImagePositionPatient=lambda k: [0, 1.5 * k, 2 * k + 0.02 * (k % 2)])
    assert np.array_equal(load_volume(slanted), as_read(hounsfield()))


def enhanced(path: Path, volume: np.ndarray, phases: int = 1) -> Path:
    """One file with a frame for every slice, the highest first, and so for every phase."""
    frames = np.concatenate([volume[::-1]] * phases)
    own = []
    for k in range(len(frames)):
        place = Dataset()
        place.ImagePositionPatient = [0, 0, -2.0 * (k % len(volume))]
        group = Dataset()
        group.PlanePositionSequence = [place]
        own.append(group)
    plane, scale, shared = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    scale.RescaleSlope, scale.RescaleIntercept = 2, 5
    shared.PlaneOrientationSequence, shared.PixelValueTransformationSequence = [plane], [scale]
    groups = {"PerFrameFunctionalGroupsSequence": own, "SharedFunctionalGroupsSequence": [shared]}
    return write_slice(path, frames, NumberOfFrames=len(frames), PixelSpacing=None, **groups)


def test_a_file_of_many_frames_is_a_volume(tmp_path):
    assert np.array_equal(load_volume(enhanced(tmp_path / "IM1", hounsfield())), as_read(2 * hounsfield().astype(int) + 5))
    with pytest.raises(ValueError, match="lie at the same place"):
        load_volume(enhanced(tmp_path / "phases.dcm", hounsfield(), phases=2))
    for c, name in enumerate(("healthy", "ill")):
        for k in range(3):
            enhanced(tmp_path / "set" / name / f"{k}.dcm", hounsfield(3 * c + k))
    assert sum(map(len, opened(tmp_path / "set").splits.values())) == 6
    plain = write_slice(
        tmp_path / "cine.dcm",
        hounsfield(),
        NumberOfFrames=4,
        ImagePositionPatient=[0, 0, 0],
        ImageOrientationPatient=list(ORIENTATIONS["axial"]),
    )
    assert np.array_equal(load_volume(plain), hounsfield()[..., None])
    assert "no positions" in describe(plain).remark
    with pytest.raises(ValueError, match="take over a quarter of this machine's memory"):
        describe(write_slice(tmp_path / "bomb.dcm", hounsfield(), NumberOfFrames=2_000_000_000))


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"SeriesInstanceUID": lambda k: f"1.2.{k % 2}"}, "holds slices of 2 series, such as IM000. and IM000."),
        ({"PixelSpacing": lambda k: [0.5, 0.75 + k // 3]}, "differ in pixel spacing"),
        ({"ImageOrientationPatient": lambda k: [1, 0, 0, 0, *((1, 0) if k else (0, 1))]}, "differ in orientation"),
        ({"ImagePositionPatient": lambda k: [0, 0, 2 * k + (k == 3)]}, "IM000. and IM000. are 3 mm apart, and others 2"),
        ({"ImagePositionPatient": lambda k: [5 * (k == 1), 0, 2 * k]}, "IM000. lies 5 mm beside the line from IM000. to IM000.,"),
        ({"ImagePositionPatient": lambda k: [0, 0, k // 2]}, "lie at the same place"),
        ({"ImagePositionPatient": [0, 0, 5]}, "lie at the same place"),
        ({"ImagePositionPatient": lambda k: [0, 0, k] if k else None}, "differ in whether they have a position"),
        ({"ImagePositionPatient": None, "InstanceNumber": lambda k: k + (k == 3)}, "are 2 numbers apart"),
        ({"ImagePositionPatient": None, "InstanceNumber": None}, "neither a position nor a number"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "is no orientation"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "its ImageOrientationPatient is"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"Rows": 60}, "pixel data"),
    ],
)
def test_a_series_that_is_no_volume_is_a_damaged_sample(tmp_path, elements, words):
    root = fill(tmp_path)
    bad = root / "ill" / "patient 2" / "ct"
    shutil.rmtree(bad)
    write_series(bad, hounsfield(), **elements)
    if words == "pixel data":  # its headers tell of another shape
        with pytest.raises(InputError, match="--volume-size"):
            opened(root)
    check_damage(opened(root, volume_size=(4, 6, 5)), bad)
    with pytest.raises(ValueError, match=words):
        load_volume(bad)


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b"half"])
def test_a_slice_that_is_damaged_is_not_missed(tmp_path, content):
    series = write_series(tmp_path / "a", hounsfield())
    (first, *_, last) = sorted(series.iterdir(), key=lambda path: dcmread(path).ImagePositionPatient[2])
    last.write_bytes(last.read_bytes()[:-30] if content == b"half" else content)  # at the end, no gap would tell
    with pytest.raises(ValueError, match=last.name):
        load_volume(series)
    for path in set(series.iterdir()) - {first}:
        path.unlink()
    with pytest.raises(ValueError, match="one slice"):
        load_volume(series)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        (
            {"PhotometricInterpretation": "MONOCHROME1"},
            "no volume can be read; the first: .*healthy/patient 0/ct.*IM000.: is MONOCHROME1.*MONOCHROME2",
        ),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, r"is in colour \(RGB\)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is in colour"),
        ({"ModalityLUTSequence": [Dataset()]}, "look-up table"),
    ],
)
def test_kinds_of_images_that_are_not_read_are_refused(tmp_path, elements, words):
    with pytest.raises(InputError, match=words):
        opened(fill(tmp_path, **elements))


def test_compressed_slices_are_read_or_the_package_is_named(tmp_path):
    series = write_series(tmp_path / "a", hounsfield())
    for path in series.iterdir():
        dataset = dcmread(path)
        dataset.compress(RLELossless)
        dataset.save_as(path)
    assert np.array_equal(load_volume(series), as_read(hounsfield()))
    for syntax, words in (
        (JPEGLSLossless, "JPEG-LS.*pip install pylibjpeg pylibjpeg-libjpeg"),
        ("1.2.840.10008.1.2.4.100", "MPEG2.*pydicom does not read"),
    ):
        dataset = dcmread(path)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)
        with pytest.raises(InputError, match=words):
            load_volume(series)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless  # Pillow reads it, but there is none
    dataset.save_as(path)
    with pytest.raises(ValueError, match=path.name):
        load_volume(series)


def test_without_pydicom_the_way_out_is_named(tmp_path, monkeypatch):
    root = fill(tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"DICOM series need pydicom.*pip install pydicom, or \"ddcnn\[scans\]\""):
        opened(root)


# Class folders and tables


def test_class_folders_hold_volumes(tmp_path, caplog):
    caplog.set_level("INFO")
    root = fill(tmp_path)
    source = opened(root)
    assert source.class_names == ("healthy", "ill")
    assert (source.shape, source.splits["train"].dtype) == ((4, 6, 5, 1), np.float32)
    found = {
        volume.tobytes(): int(label)
        for split in source.splits.values()
        for label, volume in zip(split.labels, everything(split), strict=True)
    }
    assert found == {as_read(hounsfield(10 * c + k)).tobytes(): c for c in range(2) for k in range(4)}
    assert np.bincount(source.splits["test"].labels).tolist() == [1, 1]
    for k in range(4):  # beside them, the same scan as NIfTI, and what is no volume
        write_nifti(root / "ill" / f"patient {k}" / "nifti" / "ct.nii.gz", hounsfield(50 + k))
    (root / "ill" / "patient 0" / "ct" / "preview.png").write_bytes(b"")
    assert "several volumes" not in notes(caplog)
    assert sum(map(len, opened(root, volumes=True).splits.values())) == 12
    assert "not read: 1 that end in .png" in notes(caplog)
    assert "ill/patient 0 (and 3 more) has several volumes; if they are of one patient" in notes(caplog)
    caplog.clear()
    (root / "train").mkdir()
    for name in source.class_names:
        (root / name).rename(root / "train" / name)
    opened(root, volumes=True)
    assert "ill/patient 0 (and 3 more) has several volumes" in notes(caplog)
    shutil.copytree(root / "train", root / "test")
    caplog.clear()
    opened(root, volumes=True)
    assert "several volumes" not in notes(caplog)
    opened(root, volumes=True, validation_fraction=0.2)
    assert "ill/patient 0 (and 3 more) has several volumes" in notes(caplog)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII"])
def test_class_folders_of_nifti_files_with_splits(tmp_path, suffix):
    for split, name, k in [("train", "a", 0), ("train", "a", 1), ("train", "b", 2), ("test", "a", 3), ("test", "b", 4)]:
        write_nifti(tmp_path / split / name / f"{k}{suffix.lower()}", hounsfield(k)).rename(tmp_path / split / name / f"{k}{suffix}")
    source = opened(tmp_path)
    assert [source.splits[split].labels.tolist() for split in ("train", "test")] == [[0, 0, 1], [0, 1]]
    assert np.array_equal(everything(source.splits["test"]), [as_read(hounsfield(3)), as_read(hounsfield(4))])
    assert opened(tmp_path, volume_size=(2, 3, 5)).shape == (2, 3, 5, 1)
    with pytest.raises(InputError, match=r"--image-size.*--volume-size"):
        opened(tmp_path, image_size=(4, 4))


def test_class_folders_are_checked_as_those_of_photos_are(tmp_path):
    root = fill(tmp_path / "set")
    (root / "empty").mkdir()
    with pytest.raises(InputError, match="empty: the class has no volume in it"):
        opened(root)
    (root / "empty" / "1.nrrd").touch()
    with pytest.raises(InputError, match=r"empty: the class has no volume.*convert its 1 that end in \.nrrd"):
        opened(root)
    shutil.rmtree(root / "empty")
    outside = write_slice(tmp_path / "outside", hounsfield()[0])
    (root / "ill" / "patient 0" / "ct" / "IM9").symlink_to(outside)
    for said in (False, True):
        with pytest.raises(InputError, match="IM9 is a link to a file outside"):
            opened(root, volumes=said)
    (root / "ill" / "patient 0" / "ct" / "IM9").unlink()
    write_series(root / "flat", hounsfield())
    with pytest.raises(InputError, match=r"flat: holds slices itself.*CLASS/VOLUME"):
        opened(root)


def test_photos_beside_as_many_volumes_or_more_are_left_out_and_told(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    root = fill(tmp_path / "set", scans=2)
    for k in range(2):
        save(picture(), root / "healthy" / f"shot{k}.png")
    assert opened(root).shape == (4, 6, 5, 1)
    assert "16 files of scans and 2 of photos, and is read as volumes; to read those such as" in notes(caplog)
    assert "healthy/shot0.png, move the scans out of it" in notes(caplog)
    for k in range(20):
        for name in ("healthy", "ill"):
            save(picture(), root / name / "photos" / f"{k}.png")
    assert opened(root).shape == (6, 8, 3)
    assert "ill/patient 0" not in notes(caplog)
    assert "read as photos; to read those such as" in notes(caplog)
    assert "add --volumes" in notes(caplog)
    shutil.rmtree(root / "ill" / "photos")
    with pytest.raises(InputError, match=r"ill: the class has no image.*DICOM files: read volumes with --volumes"):
        opened(root)
    monkeypatch.setattr(volume_walk, "MOST_LOOKED_AT", 16)  # half of which are the scans of healthy
    assert opened(root).shape == (4, 6, 5, 1)
    assert "has 8 files of scans and 8 of photos, and is read as volumes" in notes(caplog)


def test_photos_alone_are_not_opened_to_see_whether_they_are_scans(tmp_path, monkeypatch):
    for name in ("a", "b"):
        save(picture(), tmp_path / name / "0.png")
        (tmp_path / name / "notes.txt").write_text("x", "utf-8")
    asked = []
    monkeypatch.setattr(volume_walk.dicom, "is_dicom", lambda path: asked.append(path.name))
    assert not volume_walk.hold_volumes(SourceOptions(str(tmp_path), tmp_path))
    assert asked == ["notes.txt"] * 2


def test_more_photos_than_volumes_are_photos_unless_it_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("a", "b"):
        for k in range(2):
            write_nifti(tmp_path / name / f"{k}.nii.gz", hounsfield(k))
    assert opened(tmp_path).shape == (4, 6, 5, 1)
    for k in range(5):
        (tmp_path / "a" / f"{k}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"b: the class has no image.*convert its 2 that end in \.nii\.gz.*--volumes"):
        opened(tmp_path)
    assert opened(tmp_path, volumes=True).shape == (4, 6, 5, 1)


def test_a_table_names_folders_of_slices(tmp_path, caplog):
    caplog.set_level("INFO")
    root = fill(tmp_path / "set")
    lines = [f"{c}/patient {k}{'/ct' * (k % 2)},{c}" for c in ("healthy", "ill") for k in range(4)]
    (root / "labels.csv").write_text("\n".join(["file,label", *lines]), "utf-8")
    source = opened(root)
    assert source.class_names == ("healthy", "ill")
    found = {volume.tobytes() for split in source.splits.values() for volume in everything(split)}
    assert found == {as_read(hounsfield(10 * c + k)).tobytes() for c in range(2) for k in range(4)}
    assert "not in" not in notes(caplog)
    enhanced(root / "ill" / "patient 9" / "IM1", hounsfield(19))
    (root / "masks").mkdir()
    write_nifti(root / "masks.nii", hounsfield())  # the table names no files
    opened(root)
    assert f"1 volume of the folder is not in {root / 'labels.csv'}: ill/patient 9" in notes(caplog)
    caplog.clear()
    with (root / "labels.csv").open("a", encoding="utf-8") as file:
        file.write("\nill/patient 9/IM1,ill")
    found = {volume.tobytes() for split in opened(root).splits.values() for volume in everything(split)}
    assert (len(found), as_read(2 * hounsfield(19).astype(int) + 5).tobytes() in found) == (9, True)
    assert "not in" not in notes(caplog)
    shutil.rmtree(root / "ill" / "patient 9")
    (tmp_path / "link").mkdir()
    for line, words in (
        ("ill,ill", "line 2: .*ill holds 4 volumes, such as"),
        ("ill/patient 0,ill\nill/patient 0/ct,ill", "line 3: ct is listed in line 2 already"),
        ("../set/ill/patient 9,ill", "is no folder"),
        ("../link,ill", "lies outside"),
    ):
        (root / "labels.csv").write_text(f"file,label\n{line}\n", "utf-8")
        with pytest.raises(InputError, match=words):
            opened(root)


def test_the_fingerprint_changes_with_every_slice(tmp_path):
    root = fill(tmp_path)
    found = [opened(root).fingerprint]
    assert opened(root).fingerprint == found[0]
    os.utime(root / "ill" / "patient 0" / "ct" / "IM0002", ns=(1, 1))
    found.append(opened(root).fingerprint)
    (root / "ill" / "patient 0" / "ct" / "notes.txt").write_text("x", "utf-8")
    found.append(opened(root).fingerprint)
    assert len(set(found)) == 3


def test_files_of_many_frames_are_told_by_any_of_them_and_one_that_is_damaged_by_its_name(tmp_path):
    root = tmp_path / "set"
    for c, name in enumerate(("healthy", "ill")):
        for k in range(1, 4):
            enhanced(root / name / f"{k}.dcm", hounsfield(3 * c + k))
    broken = root / "ill" / "0.dcm"
    for content in (b"", b"\0" * 500, (root / "ill" / "1.dcm").read_bytes()[:-30]):
        broken.write_bytes(content)
        check_damage(opened(root), broken)
    write_slice(broken, hounsfield()[0])  # a single frame
    check_damage(opened(root), broken)


def test_a_set_that_is_known_reads_no_headers(tmp_path, monkeypatch):
    root = fill(tmp_path)
    monkeypatch.setattr(volumes, "describe", None)
    known = (4, 6, 5, 1), np.dtype(np.float32)
    assert opened(root, known=lambda *_: known).shape == known[0]


def test_a_run_on_scans_classifies_a_series_and_folders_of_them(tmp_path, world):
    root = fill(tmp_path / "set")
    store = partitioned(world, opened(root), tmp_path)
    shutil.copytree(root / "ill" / "patient 1" / "ct", tmp_path / "new" / "1")
    shutil.copytree(root / "ill" / "patient 2" / "ct", tmp_path / "new" / "2")
    write_series(tmp_path / "called" / "ill", hounsfield(11))
    enhanced(tmp_path / "IM7", hounsfield()[::-1])
    for name, seeds, labels in (
        ("set/ill/patient 1", [11], [-1]), ("set/ill/patient 1/ct", [11], [-1]), ("new", [11, 12], [-1, -1]), ("called", [11], [1]),
        ("set", [*range(4), *range(10, 14)], [0] * 4 + [1] * 4),
    ):  # fmt: skip
        found = to_classify(tmp_path / name, store)
        assert np.array_equal(everything(found), [as_read(hounsfield(seed)) for seed in seeds]), name
        assert found.labels.tolist() == labels
    assert everything(to_classify(tmp_path / "IM7", store)).shape == (1, *store.shape)  # a file of frames, without a suffix
    with pytest.raises(InputError, match=r"no class patient 0.*--unlabelled"):
        to_classify(root / "ill", store)

"""NIfTI volumes with a labels.csv: the table, orientation, scaling, sizes, damage; and the size of volumes in arrays."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from test_folders import damage, everything, opened

from ddcnn.data.sources.resizing import resample
from ddcnn.data.sources.volumes import load_volume  # noqa: F401  # in a process of its own
from ddcnn.errors import InputError

LABELS = ["1", "0", "1", "0", "1", "0", "1", "0"]


def voxels(seed=0, shape=(3, 4, 5)) -> np.ndarray:
    """(x, y, z[, channels]) int16."""
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def as_read(data: np.ndarray) -> np.ndarray:
    """What a volume in canonical orientation is read as: (z, y, x, C) float32."""
    return (data if data.ndim == 4 else data[..., None]).transpose(2, 1, 0, 3).astype(np.float32)


def save(path: Path, data: np.ndarray, orientation="RAS", slope: float | None = None, intercept=0.0, kind=nibabel.Nifti1Image) -> Path:
    """Writes data that is in canonical orientation so that it is stored in another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = kind(data, np.diag([2.0, 1.5, 3.0, 1.0]))
    image = image.as_reoriented(nibabel.io_orientation(np.linalg.inv(_turn(orientation))))
    if slope is not None:
        image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, path)
    return path


def _turn(orientation: str) -> np.ndarray:
    """The affine matrix of voxels stored along these directions."""
    affine = np.zeros((4, 4))
    for axis, letter in enumerate(orientation):
        pair = next(k for k, letters in enumerate(("LR", "PA", "IS")) if letter in letters)
        affine[pair, axis] = 1 if letter in "RAS" else -1
    affine[3, 3] = 1
    return affine


def fill(root: Path, labels=LABELS, header="file,label", lines=None, suffix=".nii", make=voxels) -> Path:
    for k in range(len(labels)):
        save(root / f"{k}{suffix}", make(k))
    lines = lines if lines is not None else [f"{k}{suffix},{label}" for k, label in enumerate(labels)]
    (root / "labels.csv").write_text("\n".join([header, *lines]) + "\n", "utf-8")
    return root


def all_samples(source) -> dict[bytes, int]:
    return {
        volume.tobytes(): int(label)
        for split in source.splits.values()
        for label, volume in zip(split.labels, everything(split), strict=True)
    }


# The table


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_volumes_are_split_by_fraction_with_their_labels(tmp_path, suffix):
    source = opened(fill(tmp_path, suffix=suffix))
    assert source.class_names == ("0", "1")
    assert source.shape == (5, 4, 3, 1)
    assert source.splits["train"].dtype == np.float32
    assert {split: np.bincount(found.labels).tolist() for split, found in source.splits.items()} == {"train": [3, 3], "test": [1, 1]}
    assert all_samples(source) == {as_read(voxels(k)).tobytes(): int(label) for k, label in enumerate(LABELS)}


def test_the_split_column_is_followed(tmp_path):
    lines = [f"{k}.nii, {'cat' if k % 3 else 'ant'} ,{split}" for k, split in enumerate(["train", "Test", "train", "test", "TRAIN"])]
    source = opened(fill(tmp_path, LABELS[:5], " File,LABEL , Split", lines))
    assert source.class_names == ("ant", "cat")
    assert source.splits["train"].labels.tolist() == [0, 1, 1]
    assert source.splits["test"].labels.tolist() == [1, 0]
    assert np.array_equal(everything(source.splits["test"]), [as_read(voxels(1)), as_read(voxels(3))])
    assert np.array_equal(source.splits["train"].read(np.array([0, 2])), [as_read(voxels(0)), as_read(voxels(4))])


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["2", "0", "1", "0", "1", "2"], ("0", "1", "2")),
        (["10", "9", "10", "9"], ("9", "10")),
        (["b", "a", "10", "b", "a", "10"], ("10", "a", "b")),
    ],
)
def test_class_names_are_sorted_numbers_by_number(tmp_path, labels, names):
    source = opened(fill(tmp_path, labels))
    assert source.class_names == names
    expected = {as_read(voxels(k)).tobytes(): names.index(label) for k, label in enumerate(labels)}
    assert all_samples(source) == expected


def test_files_may_lie_in_folders_below_and_the_table_may_come_from_a_spreadsheet(tmp_path):
    for k in range(4):
        save(tmp_path / f"patient {k}" / "ct.nii", voxels(k))
    lines = ["file,label,age", *(f'"patient {k}/ct.nii",{k % 2},{40 + k}' for k in range(4))]
    (tmp_path / "labels.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert len(all_samples(opened(tmp_path))) == 4


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["0.nii,0", "1.nii,1", "nowhere.nii,1"], r"labels\.csv line 4: .*nowhere\.nii does not exist"),
        (["0.nii,0", "../1.nii,1"], r"line 3: \.\./1\.nii lies outside"),
        (["sub/../../x/1.nii,1"], r"line 2: .* lies outside"),
        (["/etc/1.nii,1"], r"line 2: /etc/1\.nii lies outside"),
        (["0.nii,0", "link.nii,1"], r"line 3: link\.nii lies outside"),
        (["0.nii,"], "line 2: no label"),
        ([",1"], "line 2: no file"),
        (["0.nii"], "line 2: no label"),
        (["labels.csv,1"], r"does not end in \.nii"),
        (["0.nii,0", "1.nii,1", "0.nii,1"], r"line 4: 0\.nii is listed in line 2 already"),
        (["0.nii,0", "1\0.nii,1"], "not a readable table"),
        ([], "no lines"),
        (["0.nii,0", "1.nii,0"], "only one class"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path, lines, words):
    save(tmp_path / "x" / "1.nii", voxels())
    root = fill(tmp_path / "root", LABELS[:2], lines=lines)
    (root / "link.nii").symlink_to(tmp_path / "x" / "1.nii")
    save(tmp_path / "1.nii", voxels())
    with pytest.raises(InputError, match=words):
        opened(root)


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (["train", "train", "train", "train"], "no line has the split test"),
        (["test", "test", "test", "test"], "no line has the split train"),
        (["train", "test", "train", "vall"], "line 5: split 'vall'; expected train, validation or test"),
        (["train", "test", "train", ""], "line 5: split ''"),
        (["train", "test", "train", "test"], "line 3: no training sample has the class 1"),
    ],
)
def test_bad_splits_are_refused(tmp_path, splits, words):
    lines = [f"{k}.nii,{k % 2},{split}" for k, split in enumerate(splits)]
    with pytest.raises(InputError, match=words):
        opened(fill(tmp_path, LABELS[:4], "file,label,split", lines))


@pytest.mark.parametrize("content", [b"", b"name,label\n0.nii,1\n", b"\xff\xfe\x00", b"0.nii;1\n"])
def test_a_table_without_its_columns_is_refused(tmp_path, content):
    root = fill(tmp_path)
    (root / "labels.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"labels\.csv"):
        opened(root)


def test_without_nibabel_the_way_out_is_named(tmp_path, monkeypatch):
    root = fill(tmp_path)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(InputError, match="pip install nibabel"):
        opened(root)


def test_the_fingerprint_changes_with_files_labels_and_splits(tmp_path):
    root = fill(tmp_path)
    found = [opened(root).fingerprint]
    assert opened(root).fingerprint == found[0]
    assert opened(root, seed=3).fingerprint == found[0]  # by which the splits are drawn
    os.utime(root / "3.nii", ns=(1, 1))
    found.append(opened(root).fingerprint)
    fill(root, ["0", "1", *LABELS[2:]])
    found.append(opened(root).fingerprint)
    assert len(set(found)) == 3


# Voxels


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "PSR", "SAL", "AIL", "IRP"])
@pytest.mark.parametrize("channels", [(), (2,)])
def test_every_orientation_is_read_alike(tmp_path, orientation, channels):
    root = fill(tmp_path, make=lambda seed: voxels(seed, (3, 4, 5, *channels)))
    path = save(root / "2.nii", voxels(2, (3, 4, 5, *channels)), orientation)
    assert "".join(nibabel.aff2axcodes(nibabel.load(path).affine)) == orientation
    source = opened(root)
    assert source.shape == (5, 4, 3, *(channels or (1,)))
    assert as_read(voxels(2, (3, 4, 5, *channels))).tobytes() in all_samples(source)


def test_values_are_scaled_and_nifti_2_is_read(tmp_path):
    root = fill(tmp_path)
    save(root / "0.nii", voxels(0), slope=0.5, intercept=-1024)
    save(root / "1.nii", voxels(1).astype(np.float64), kind=nibabel.Nifti2Image)
    found = all_samples(opened(root))
    raw = nibabel.load(root / "0.nii").dataobj
    assert (raw.slope, raw.inter) == (0.5, -1024)
    assert as_read(voxels(0) * 0.5 - 1024).tobytes() in found
    assert as_read(voxels(1)).tobytes() in found


def test_headers_that_nibabel_mends_are_read_in_silence(tmp_path):
    root = fill(tmp_path)
    content = bytearray((root / "0.nii").read_bytes())
    content[76:92] = np.array([7, 0, 0, 0], "<f4").tobytes()  # pixdim: a factor that is not 1 or -1, no sizes
    (root / "0.nii").write_bytes(content)
    assert as_read(voxels(0)).tobytes() in all_samples(opened(root))
    whole, single = f"t.all_samples(t.opened({str(root)!r}))", f"t.load_volume(t.Path({str(root / '0.nii')!r}))"
    for code in (whole, single):  # pytest comes after the stream that nibabel writes to
        command = [sys.executable, "-c", f"import test_volumes as t; {code}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent)
        assert (done.returncode, done.stderr) == (0, "")


def test_different_shapes_are_refused_with_two_files_and_the_option(tmp_path):
    root = fill(tmp_path)
    save(root / "3.nii", voxels(3, (3, 6, 5)))
    with pytest.raises(InputError, match=r"0\.nii has shape \(5, 4, 3, 1\) and .*3\.nii has \(5, 6, 3, 1\).*--volume-size.*missing"):
        opened(root)
    source = opened(root, volume_size=(2, 4, 6))
    assert source.shape == (2, 4, 6, 1)
    assert len(all_samples(source)) == 8
    save(root / "3.nii", voxels(3, (3, 4, 5, 2)))
    with pytest.raises(InputError, match="same number of channels"):
        opened(root, volume_size=(2, 4, 6))


def test_shapes_are_compared_in_canonical_orientation(tmp_path):
    root = fill(tmp_path)
    save(root / "3.nii", voxels(3), "SPR")
    assert nibabel.load(root / "3.nii").shape == (5, 4, 3)
    assert opened(root).shape == (5, 4, 3, 1)


def test_the_window_clips_before_resampling(tmp_path):
    data = np.zeros((4, 4, 4), np.int16)
    data[..., 2:] = 3000
    root = fill(tmp_path, make=lambda seed: data)
    found = everything(opened(root, window=(-100, 400), volume_size=(2, 4, 4)).splits["test"])
    assert found.min() >= 0
    assert found.max() <= 400
    middle = everything(opened(root, window=(-100, 400), volume_size=(1, 4, 4)).splits["test"])
    assert np.allclose(middle, 200, atol=1)


def test_image_size_is_refused_for_volumes(tmp_path):
    with pytest.raises(InputError, match=r"--image-size.*--volume-size"):
        opened(fill(tmp_path), image_size=(4, 4))


def test_resampling_keeps_constants_and_planes_and_does_not_alias():
    assert np.allclose(resample(np.full((5, 6, 7), 3, np.float32), (9, 2, 7)), 3)
    plane = np.broadcast_to((np.arange(16, dtype=np.float32) + 0.5)[:, None, None], (16, 3, 3))
    doubled = resample(plane, (32, 3, 3))[:, 1, 1]
    assert np.allclose(doubled[2:-2], (np.arange(32)[2:-2] + 0.5) / 2)
    halved = resample(plane, (8, 3, 3))[:, 1, 1]
    assert np.allclose(halved[1:-1], (np.arange(8)[1:-1] + 0.5) * 2, atol=0.05)
    # of a pattern that changes faster than the coarse voxels nothing remains
    stripes = np.broadcast_to(np.where(np.arange(60) % 4 < 2, 1, -1).astype(np.float32)[:, None, None], (60, 4, 4))
    assert np.abs(resample(stripes, (12, 4, 4))).max() < 0.15  # 1 without smoothing


# Damage


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.9, 0.99])
def test_a_truncated_volume_is_a_damaged_sample(tmp_path, suffix, part):
    root = fill(tmp_path, suffix=suffix, make=lambda seed: voxels(seed, (8, 8, 8)))
    broken = root / f"5{suffix}"
    broken.write_bytes(broken.read_bytes()[: int(part * broken.stat().st_size)])
    check_damage(opened(root), broken)


def test_a_flipped_bit_in_a_compressed_volume_is_a_damaged_sample(tmp_path):
    root = fill(tmp_path, suffix=".nii.gz")
    broken = root / "5.nii.gz"
    content = bytearray(gzip.compress(gzip.decompress(broken.read_bytes()), compresslevel=0))
    content[-20] ^= 1  # stored, not packed: only the checksum tells
    broken.write_bytes(content)
    check_damage(opened(root), broken)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_voxel_that_is_no_number_makes_a_damaged_sample(tmp_path, bad):
    root = fill(tmp_path)
    data = voxels(5).astype(np.float32)
    data[1, 2, 3] = bad
    check_damage(opened(root), save(root / "5.nii", data))


@pytest.mark.parametrize("content", [b"", b"no volume", b"\x00" * 352, b"\x1f\x8b" + b"\x00" * 500])
def test_a_file_of_something_else_is_a_damaged_sample(tmp_path, content):
    root = fill(tmp_path)
    (root / "5.nii").write_bytes(content)
    check_damage(opened(root), root / "5.nii")


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5, 1, 2)])
def test_volumes_of_another_dimension_are_damaged_samples(tmp_path, shape):
    root = fill(tmp_path)
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), root / "5.nii")
    check_damage(opened(root), root / "5.nii")


def check_damage(source, broken: Path) -> None:
    """One sample cannot be read, by the broken file's name, and all others can."""
    (message,) = damage(source)
    assert message.startswith(f"{broken}: cannot be read")
    assert message.endswith("mend or remove it, or add --skip-damaged")


def test_volumes_none_of_which_can_be_read_are_refused(tmp_path):
    root = fill(tmp_path)
    for k in range(8):
        (root / f"{k}.nii").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"no volume can be read.*0\.nii"):
        opened(root)


# Volumes in arrays


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_volumes_in_arrays_are_clipped_and_resampled(write_arrays, random_arrays, tmp_path, suffix):
    arrays = random_arrays((6, 8, 10, 2), "int16")
    path = write_arrays(tmp_path / f"set{suffix}", **arrays)
    source = opened(path, volumes=True, volume_size=(3, 8, 5), window=(-500.5, 500.5))
    read = source.splits["test"].read(np.array([1, 3]))
    assert source.splits["test"].shape == (5, 3, 8, 5, 2)
    assert read.dtype == np.int16
    for row, i in enumerate((1, 3)):
        clipped = np.clip(arrays["x_test"][i], -500, 500).astype(np.float32)
        expected = np.stack([resample(clipped[..., c], (3, 8, 5)) for c in range(2)], axis=-1)
        assert np.array_equal(read[row], np.rint(expected))
    with pytest.raises(InputError, match="--image-size"):
        opened(path, volumes=True, image_size=(4, 4))

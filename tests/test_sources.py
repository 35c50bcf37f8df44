"""Where images come from: files of arrays, named sets, subsets; and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from ddcnn.data.sources import DamagedSample, SourceOptions, balanced_subset, open_source
from ddcnn.errors import InputError
from ddcnn.networks.torchvision_compat import import_torchvision

DATA_ROOT = os.environ.get("DDCNN_DATA_ROOT")
needs_data = pytest.mark.skipif(not DATA_ROOT, reason="DDCNN_DATA_ROOT names no folder of data sets")
both_formats = pytest.mark.parametrize("suffix", [".npz", ".h5"])
OTHER_NAMES = {"x_train": "train_images", "y_train": "train_labels", "x_test": "test_images", "y_test": "test_labels"}


def opened(path, **options):
    return open_source(SourceOptions(str(path), Path(DATA_ROOT or "data"), **options))


def everything(split):
    return split.read(np.arange(len(split)))


@pytest.fixture
def refusal(write_arrays, random_arrays, tmp_path):
    """The message with which arrays that differ from a good set in ``changes`` are refused; None leaves an array out."""

    def refuse(suffix: str, volumes: bool = False, **changes) -> str:
        arrays = {name: values for name, values in (random_arrays((4, 4)) | changes).items() if values is not None}
        path = write_arrays(tmp_path / f"bad{suffix}", **arrays)
        with pytest.raises(InputError) as error:
            opened(path, volumes=volumes)
        assert path.name in str(error.value)
        return str(error.value)

    return refuse


def check(source, arrays, shape):
    for split in ("train", "test"):
        found, images, labels = source.splits[split], arrays[f"x_{split}"], arrays[f"y_{split}"]
        assert found.shape == (len(images), *shape)
        assert found.dtype == images.dtype
        assert found.labels.dtype == np.int64
        assert found.labels.tolist() == labels.reshape(-1).tolist()
        for indices in ([0, 1], range(2, len(images)), [1, 2], [0, 3, 4], [], range(len(images))):  # ahead, back again, with gaps
            rows = np.array(indices, np.int64)
            read = found.read(rows)
            assert read.dtype == images.dtype
            assert np.array_equal(read, images[rows].reshape(len(rows), *shape))
    assert source.shape == shape


# Files of arrays


@both_formats
@pytest.mark.parametrize("names", [{}, OTHER_NAMES])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(
    ("shape", "volumes", "seen"),
    [((4, 5), False, (4, 5, 1)), ((4, 5, 3), False, (4, 5, 3)), ((4, 5, 6), True, (4, 5, 6, 1)), ((4, 5, 3, 2), True, (4, 5, 3, 2))],
)
def test_arrays_are_read_under_both_namings_in_every_shape(
    write_arrays, random_arrays, tmp_path, suffix, names, column, shape, volumes, seen
):
    arrays = random_arrays(shape, "uint16", classes=3)
    if column:
        arrays |= {name: arrays[name][:, None].astype(np.uint8) for name in ("y_train", "y_test")}
    path = write_arrays(tmp_path / f"set{suffix}", **{names.get(name, name): values for name, values in arrays.items()})
    source = opened(path, volumes=volumes)
    check(source, arrays, seen)
    assert source.class_names == ("0", "1", "2")


def test_colour_images_are_not_taken_for_volumes(write_arrays, random_arrays, tmp_path):
    path = write_arrays(tmp_path / "set.npz", **random_arrays((8, 9, 3)))
    with pytest.raises(InputError, match="leave --volumes out"):
        opened(path, volumes=True)


@both_formats
def test_arrays_beside_the_wanted_ones_do_not_matter(write_arrays, random_arrays, tmp_path, suffix):
    arrays = random_arrays((4, 4))
    path = write_arrays(tmp_path / f"set{suffix}", val_images=np.zeros(3), anything=np.float64(1), **arrays)
    check(opened(path), arrays, (4, 4, 1))


def test_compressed_archives_are_read(write_arrays, random_arrays, tmp_path):
    arrays = random_arrays((4, 4), "float32")
    check(opened(write_arrays(tmp_path / "set.npz", compressed=True, **arrays)), arrays, (4, 4, 1))


@both_formats
def test_the_fingerprint_changes_with_the_content(write_arrays, random_arrays, tmp_path, suffix):
    arrays = random_arrays((4, 4))
    path = write_arrays(tmp_path / f"set{suffix}", **arrays)
    first = opened(path).fingerprint
    assert opened(path).fingerprint == first
    arrays["x_test"][0, 0, 0] += 1
    write_arrays(path, **arrays)
    assert opened(path).fingerprint != first


@both_formats
@pytest.mark.parametrize("missing", OTHER_NAMES)
def test_a_missing_array_is_refused_with_both_names(refusal, suffix, missing):
    message = refusal(suffix, **{missing: None})
    assert missing in message
    assert OTHER_NAMES[missing] in message


@both_formats
@pytest.mark.parametrize("split", ["train", "test"])
def test_negative_labels_are_refused_with_sample_and_range(refusal, suffix, split):
    labels = np.array([0, 1] * 5 if split == "train" else [0, 1, 0, 1, 1])
    labels[3] = -1
    message = refusal(suffix, **{f"y_{split}": labels})
    assert f"label -1 of {split} sample 3" in message
    assert "0 … 1" in message


@both_formats
def test_a_class_that_the_training_split_lacks_is_refused(refusal, suffix):
    assert "label 7 of test sample 4" in refusal(suffix, y_test=np.array([0, 1, 0, 1, 7]))


@both_formats
@pytest.mark.parametrize("labels", [np.linspace(0, 1, 10), np.array([True, False] * 5)])
def test_labels_that_are_no_whole_numbers_are_refused(refusal, suffix, labels):
    assert f"type {labels.dtype}" in refusal(suffix, y_train=labels)


@both_formats
@pytest.mark.parametrize("labels", [np.zeros((10, 2), int), np.zeros((10, 1, 1), int), np.int64(1)])
def test_labels_of_another_shape_are_refused(refusal, suffix, labels):
    assert "y_train" in refusal(suffix, y_train=labels)


@both_formats
def test_one_class_is_refused(refusal, suffix):
    assert "only one class" in refusal(suffix, y_train=np.zeros(10, int), y_test=np.zeros(5, int))


@both_formats
@pytest.mark.parametrize("samples", [0, 4, 11])
def test_as_many_labels_as_images_are_wanted_and_some(refusal, suffix, samples):
    assert f"x_train has 10 images and y_train {samples} labels" in refusal(suffix, y_train=np.arange(samples) % 2)


@both_formats
def test_a_split_without_images_is_refused(refusal, suffix):
    assert "test has 0 images" in refusal(suffix, x_test=np.zeros((0, 4, 4), np.uint8), y_test=np.zeros(0, int))


@both_formats
@pytest.mark.parametrize("images", [np.zeros((5, 4, 5), np.uint8), np.zeros((5, 4, 4, 3), np.uint8), np.zeros((5, 4, 4), np.float32)])
def test_splits_that_differ_in_shape_or_type_are_refused(refusal, suffix, images):
    assert "must be alike" in refusal(suffix, x_test=images)


@both_formats
@pytest.mark.parametrize(("shape", "volumes"), [((4,), False), ((4, 4, 4, 4), False), ((4, 4), True), ((4, 4, 4, 4, 4), True), ((), False)])
def test_images_of_another_dimension_are_refused_with_what_is_expected(refusal, suffix, shape, volumes):
    message = refusal(suffix, volumes, x_train=np.zeros((10, *shape), np.uint8))
    assert "rows, columns[, channels]" in message
    assert ("depth" in message) == volumes


@both_formats
def test_pixels_of_another_type_are_refused(refusal, suffix):
    images = np.zeros((10, 4, 4), complex)
    assert "complex128" in refusal(suffix, x_train=images, x_test=images[:5])


def test_arrays_of_python_objects_are_refused_and_never_loaded(refusal):
    images = np.empty(10, dtype=object)
    images[:] = [np.zeros((4, 4 + k)) for k in range(10)]
    assert "Python objects" in refusal(".npz", x_train=images)


def test_arrays_in_fortran_order_are_refused(refusal):
    assert "Fortran order" in refusal(".npz", x_train=np.asfortranarray(np.zeros((10, 4, 4), np.uint8)))


@both_formats
@pytest.mark.parametrize("content", [b"", b"these are not arrays", b"PK\x03\x04" + bytes(100), b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_file_of_something_else_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable"):
        opened(path)


@both_formats
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(write_arrays, random_arrays, tmp_path, suffix, part):
    path = write_arrays(tmp_path / f"set{suffix}", **random_arrays((16, 16)))
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(InputError, match=path.name):
        opened(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_archive_is_refused_wherever_the_damage_lies(write_arrays, random_arrays, tmp_path, compressed):
    arrays = random_arrays((8, 8), train=12)
    path = write_arrays(tmp_path / "set.npz", compressed=compressed, **arrays)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            source = opened(path)
            found = {split: everything(source.splits[split]) for split in ("train", "test")}
        except InputError:
            refused += 1
            continue
        for split, images in found.items():
            assert np.array_equal(images[..., 0], arrays[f"x_{split}"])
    assert 0 < refused < -(-len(whole) // 7)


def test_a_damaged_hdf5_file_is_refused_by_its_name(random_arrays, tmp_path):
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as file:
        for name, values in random_arrays((16, 16)).items():
            file.create_dataset(name, data=values, chunks=values.shape, fletcher32=True)
        place = file["x_train"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[place + 100] ^= 0x55
    path.write_bytes(data)
    source = opened(path)
    with pytest.raises(InputError, match=path.name):
        everything(source.splits["train"])


def test_a_damaged_hdf5_file_is_refused_wherever_the_damage_lies(write_arrays, random_arrays, tmp_path):
    path = write_arrays(tmp_path / "set.h5", **random_arrays((8, 8), train=12))
    whole, messages = path.read_bytes(), []
    for place in range(0, len(whole), 5):
        path.with_name("damaged.h5").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            everything(opened(path.with_name("damaged.h5")).splits["train"])  # plain HDF5 has no checksums: numbers may be others
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all("damaged.h5" in message for message in messages)


@pytest.mark.parametrize("name", ["x_train", "y_test"])
def test_an_hdf5_array_without_a_shape_is_refused(write_arrays, random_arrays, tmp_path, name):
    path = write_arrays(tmp_path / "set.h5", **random_arrays((8, 8)))
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = h5py.Empty("u1")
    with pytest.raises(InputError, match=f"{name} is empty"):
        opened(path)


def test_hdf5_links_to_other_files_are_not_followed(write_arrays, random_arrays, tmp_path):
    write_arrays(tmp_path / "other.h5", **random_arrays((4, 4)))
    arrays = random_arrays((4, 4))
    images = arrays.pop("x_train")
    path = write_arrays(tmp_path / "set.h5", **arrays)
    with h5py.File(path, "a") as file:
        file["x_train"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x_train")
    with pytest.raises(InputError, match="x_train"):
        opened(path)
    with h5py.File(path, "a") as file:
        del file["x_train"]
        layout = h5py.VirtualLayout(images.shape, images.dtype)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x_train", images.shape)
        file.create_virtual_dataset("x_train", layout)
    with pytest.raises(InputError, match="other files"):
        opened(path)


@both_formats
def test_a_file_that_is_not_there_is_refused(tmp_path, suffix):
    with pytest.raises(InputError, match=r"nowhere\.\w+: no such file"):
        opened(tmp_path / f"nowhere{suffix}")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError) as error:
        opened("digit")
    assert all(word in str(error.value) for word in ("--data digit", "digits", "cifar10", "fashion-mnist", ".npz", ".h5"))


# Named sets


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_a_set_that_is_not_in_the_data_root_is_refused_with_what_to_do(tmp_path, name):
    with pytest.raises(InputError) as error:
        open_source(SourceOptions(name, tmp_path / "empty"))
    assert all(word in str(error.value) for word in (name, str(tmp_path), "--data-root", "--download"))


def write_idx(path, values):
    """The file format of MNIST."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes())


def test_a_torchvision_set_is_opened_by_its_class_name(tmp_path):
    random, arrays = np.random.default_rng(0), {}
    for split, name in (("train", "train"), ("test", "t10k")):
        arrays[split] = random.integers(0, 256, (20, 28, 28), np.uint8)
        write_idx(tmp_path / "KMNIST" / "raw" / f"{name}-images-idx3-ubyte", arrays[split])
        write_idx(tmp_path / "KMNIST" / "raw" / f"{name}-labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 10)
    source = open_source(SourceOptions("KMNIST", tmp_path))
    assert source.in_memory
    assert source.class_names[:2] == ("o", "ki")
    for split, images in arrays.items():
        assert np.array_equal(everything(source.splits[split]), images[..., None])
        assert source.splits[split].labels.tolist() == list(range(10)) * 2
    small = open_source(SourceOptions("KMNIST", tmp_path, image_size=(14, 14))).splits["test"]
    expected = [np.asarray(Image.fromarray(image).resize((14, 14), Image.Resampling.BILINEAR)) for image in arrays["test"]]
    assert np.array_equal(everything(small)[..., 0], expected)


def test_channels_first_and_splits_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(import_torchvision().datasets.SVHN, "_check_integrity", lambda self: True)
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 12), np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": 1 + np.arange(12, dtype=np.uint8)[:, None] % 10})
    source = open_source(SourceOptions("SVHN", tmp_path))
    assert source.splits["test"].shape == (12, 32, 32, 3)
    assert np.array_equal(everything(source.splits["test"]), images.transpose(3, 0, 1, 2))
    assert source.splits["test"].labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert source.class_names == tuple("0123456789")


def test_a_torchvision_set_of_files_without_splits(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (10, 40, 30, 3), np.uint8)
    for k in range(10):
        path = tmp_path / "eurosat" / "2750" / ("Forest", "River")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[k]).save(path)
    source = open_source(SourceOptions("EuroSAT", tmp_path))
    assert not source.in_memory
    assert source.class_names == ("Forest", "River")
    assert {split: np.bincount(found.labels).tolist() for split, found in source.splits.items()} == {"train": [4, 4], "test": [1, 1]}
    read = {
        pixels.tobytes(): label for found in source.splits.values() for pixels, label in zip(everything(found), found.labels, strict=True)
    }
    assert read == {image[k].tobytes(): k % 2 for k in range(10)}
    other = open_source(SourceOptions("EuroSAT", tmp_path, seed=1))
    assert everything(other.splits["test"]).tobytes() != everything(source.splits["test"]).tobytes()
    assert open_source(SourceOptions("EuroSAT", tmp_path)).fingerprint == source.fingerprint
    resized = open_source(SourceOptions("EuroSAT", tmp_path, image_size=(20, 15))).splits["test"]
    half = Image.fromarray(everything(source.splits["test"])[0]).resize((15, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(everything(resized)[0], np.asarray(half))
    Image.fromarray(image[0][:30]).save(tmp_path / "eurosat" / "2750" / "Forest" / "0.png")
    with pytest.raises(InputError, match=r"30x30.*--image-size"):
        open_source(SourceOptions("EuroSAT", tmp_path))
    path = tmp_path / "eurosat" / "2750" / "Forest" / "0.png"
    Image.fromarray(image[0]).save(path)
    source = open_source(SourceOptions("EuroSAT", tmp_path))
    for path in (tmp_path / "eurosat").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DamagedSample, match=r"EuroSAT sample \d+: cannot be read .* add --skip-damaged$"):
        everything(source.splits["train"])


def test_validation_stands_in_for_a_test_split_without_labels(tmp_path):
    base = tmp_path / "clevr" / "CLEVR_v1.0"
    (base / "scenes").mkdir(parents=True)
    for split, offset in (("train", 0), ("val", 100), ("test", 200)):
        (base / "images" / split).mkdir(parents=True)
        for k in range(4):
            Image.fromarray(np.full((6, 6, 3), offset + k, np.uint8)).save(base / "images" / split / f"{k}.png")
        scenes = [{"image_filename": f"{k}.png", "objects": [0] * (k % 2)} for k in range(4)]
        (base / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"scenes": scenes}), "utf-8")
    test = open_source(SourceOptions("CLEVRClassification", tmp_path)).splits["test"]
    assert test.labels.tolist() == [0, 1, 0, 1]
    assert everything(test)[:, 0, 0, 0].tolist() == [100, 101, 102, 103]


def test_a_set_that_is_neither_stored_nor_split(tmp_path):
    source = open_source(SourceOptions("FakeData", tmp_path, image_size=(8, 12)))
    assert source.shape == (8, 12, 3)
    assert len(source.class_names) == 10
    assert sum(map(len, source.splits.values())) == 1000
    pixels = source.splits["test"].read(np.array([0, 5]))
    assert pixels.std() > 1
    assert np.array_equal(source.splits["test"].read(np.array([5])), pixels[1:])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("EMNIST", "Valid values"),
        ("VOCDetection", "no class per image"),
        ("MovingMNIST", "no class per image"),
        ("FlyingChairs", "no class per image"),
        ("LSUNClass", "no class per image"),
        ("ImageFolder", "name the folder itself"),
        ("LFWPairs", "--data-root"),
        ("QMNIST", "--download"),  # which it passes on to its base
        ("Food101", "--download"),
    ],
)
def test_torchvision_sets_that_cannot_be_made_are_refused_with_the_reason(tmp_path, name, words):
    with pytest.raises(InputError, match=words) as error:
        open_source(SourceOptions(name, tmp_path))
    assert f"--data {name}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "guess"),
    [("digit", "digits"), ("cifar-10", "cifar10"), ("KMINST", "KMNIST"), ("eurosat", "EuroSAT"), ("fashionmnist", "FashionMNIST")],
)
def test_near_misses_are_guessed(name, guess):
    with pytest.raises(InputError, match=rf"did you mean .*{guess}"):
        opened(name)


@pytest.mark.parametrize(
    ("name", "there"),
    [("photoz", "photos"), ("mine/trian.npz", "mine/train.npz"), ("mine/scan", "mine/scans"), ("./digts", "./digits")],
)
def test_what_lies_near_is_guessed(tmp_path, monkeypatch, name, there):
    for folder in ("photos", "mine/scans", "mine/other", "digits"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mine" / "train.npz").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"no such file.*did you mean {there}( or PhotoTour)?\?"):
        opened(name)
    for path in (tmp_path / "mine" / "unlike.npz", "unlike\0/unlike.npz"):
        with pytest.raises(InputError, match=r"no such file or folder$"):
            opened(path)


@pytest.mark.parametrize("name", ["photo.jpg", "brain.nii.gz", "table.csv"])
def test_a_file_of_another_kind_is_refused_with_what_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"not a file ending in \.npz or \.h5; images lie in class folders, volumes in .* labels\.csv"):
        opened(tmp_path / name)


def test_refusals_need_no_torch():
    code = """if True:
        import sys
        from pathlib import Path
        from ddcnn.data.sources import SourceOptions, open_source
        from ddcnn.errors import InputError
        for name in ("KMNISTT", "synthetic:3x3", "nowhere.npz"):
            try:
                open_source(SourceOptions(name, Path("data")))
            except InputError:
                continue
            sys.exit("opened " + name)
        slow = {"torch", "torchvision", "scipy", "nibabel", "sklearn"} & set(sys.modules)
        sys.exit(f"imported {slow}" if slow else 0)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_digits_are_split_once_and_for_all():
    source, again = opened("digits"), opened("digits")
    train, test = source.splits["train"], source.splits["test"]
    assert (train.shape, test.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert train.dtype == np.uint8
    assert source.class_names == tuple("0123456789")
    assert everything(train).max() == 16
    assert again.fingerprint == source.fingerprint
    from sklearn.datasets import load_digits

    digits = load_digits()
    both = np.concatenate([everything(train), everything(test)]).reshape(1797, -1)
    labelled = np.column_stack([both, np.concatenate([train.labels, test.labels])])
    expected = np.column_stack([digits.data, digits.target])
    assert sorted(map(tuple, labelled.astype(int).tolist())) == sorted(map(tuple, expected.astype(int).tolist()))


@needs_data
@pytest.mark.parametrize(
    ("name", "train", "test", "first_train", "first_test", "class_name"),
    [
        ("cifar10", (50000, 32, 32, 3), (10000, 32, 32, 3), [6, 9, 9, 4, 1], [3, 8, 8, 0, 6], "airplane"),
        ("fashion-mnist", (60000, 28, 28, 1), (10000, 28, 28, 1), [9, 0, 0, 3, 0], [9, 2, 1, 1, 6], "T-shirt/top"),
    ],
)
def test_torchvision_sets(name, train, test, first_train, first_test, class_name):
    source = opened(name)
    found = source.splits
    assert (found["train"].shape, found["test"].shape) == (train, test)
    assert found["train"].dtype == np.uint8
    assert found["train"].labels[:5].tolist() == first_train
    assert found["test"].labels[:5].tolist() == first_test
    assert len(source.class_names) == 10
    assert source.class_names[0] == class_name
    subset = balanced_subset(found["train"].labels, 1000, 0, "train")
    assert np.bincount(found["train"].labels[subset]).tolist() == [100] * 10


# Sizes and intensities of arrays


@both_formats
@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("method", ["resize", "center-crop", "resize+center-crop"])
def test_images_of_bytes_are_resized_as_pillow_images(write_arrays, random_arrays, tmp_path, suffix, channels, method):
    arrays = random_arrays((12, 20, *channels))
    path = write_arrays(tmp_path / f"set{suffix}", **arrays)
    split = opened(path, image_size=(6, 6), image_transform=method, interpolation="bicubic").splits["test"]
    assert split.shape == (5, 6, 6, *(channels or (1,)))
    read = split.read(np.array([0, 4]))
    for row, i in enumerate((0, 4)):
        image = Image.fromarray(arrays["x_test"][i])
        expected = {
            "resize": lambda image: image.resize((6, 6), Image.Resampling.BICUBIC),
            "center-crop": lambda image: image.crop((7, 3, 13, 9)),
            "resize+center-crop": lambda image: image.resize((10, 6), Image.Resampling.BICUBIC).crop((2, 0, 8, 6)),
        }[method](image)
        assert np.array_equal(read[row], np.asarray(expected).reshape(6, 6, -1))


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">u2", "int32", "float32", "float64"])
def test_pixels_of_any_type_keep_it_when_they_are_resized(write_arrays, random_arrays, tmp_path, dtype):
    arrays = random_arrays((9, 7, 2), dtype)
    if np.dtype(dtype).itemsize > 2 and np.dtype(dtype).kind == "i":
        arrays |= {name: arrays[name] // 1000 for name in ("x_train", "x_test")}
    path = write_arrays(tmp_path / "set.h5", **arrays)
    split = opened(path, image_size=(18, 14), interpolation="bicubic").splits["train"]
    read = everything(split)
    assert read.dtype == split.dtype == np.dtype(dtype)
    assert read.shape == (10, 18, 14, 2)
    channel = arrays["x_train"][3][..., 1].astype(np.float32)
    expected = np.asarray(Image.fromarray(channel).resize((14, 18), Image.Resampling.BICUBIC)).astype(np.float64)
    if np.dtype(dtype).kind in "ui":
        limits = np.iinfo(dtype)
        expected = np.rint(expected).clip(limits.min, limits.max)
    assert np.allclose(read[3, ..., 1], expected, rtol=1e-6)
    same = opened(path, image_size=(9, 7)).splits["train"]
    assert np.array_equal(everything(same), arrays["x_train"])


@pytest.mark.parametrize(("dtype", "low", "high"), [("uint8", 51, 100), ("int16", 51, 100), ("float32", 50.5, 100.5)])
def test_intensities_are_clipped_to_the_window(write_arrays, random_arrays, tmp_path, dtype, low, high):
    arrays = random_arrays((4, 4), dtype)
    read = everything(opened(write_arrays(tmp_path / "set.npz", **arrays), window=(50.5, 100.5)).splits["train"])
    assert read.dtype == dtype
    assert np.array_equal(read[..., 0], np.clip(arrays["x_train"], low, high))


def test_a_size_of_the_other_dimension_is_refused(write_arrays, random_arrays, tmp_path):
    path = write_arrays(tmp_path / "set.npz", **random_arrays((4, 4, 4)))
    with pytest.raises(InputError, match=r"--volume-size.*--volumes"):
        opened(path, volume_size=(4, 4, 4))
    with pytest.raises(InputError, match=r"--image-size.*--volume-size"):
        opened(path, volumes=True, image_size=(4, 4))
    with pytest.raises(InputError, match="--volume-size"):
        opened("digits", volume_size=(4, 4, 4))


# Subsets


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 2**31), data=st.data())
def test_a_subset_has_equal_classes_or_all_that_there_are(labels, seed, data):
    labels = np.array(labels)
    samples = data.draw(st.integers(1, len(labels)))
    chosen = balanced_subset(labels, samples, seed, "train")
    assert len(chosen) == samples
    assert (np.diff(chosen) > 0).all()
    assert set(chosen.tolist()) <= set(range(len(labels)))
    assert np.array_equal(chosen, balanced_subset(labels, samples, seed, "train"))
    present = np.unique(labels)
    taken = np.array([(labels[chosen] == k).sum() for k in present])
    all_of_them = np.array([(labels == k).sum() for k in present])
    short = taken < all_of_them  # these could have given more, so no class has more than one beyond them
    assert not short.any() or taken.max() - taken[short].min() <= 1


def test_a_subset_depends_on_seed_and_split():
    labels = np.arange(1000) % 10
    subsets = {tuple(balanced_subset(labels, 50, seed, split)) for seed in (0, 1) for split in ("train", "test")}
    assert len(subsets) == 4


def test_without_a_number_all_samples_are_taken():
    assert balanced_subset(np.array([1, 0, 1]), None, 0, "test").tolist() == [0, 1, 2]


def test_more_samples_than_there_are_is_refused():
    with pytest.raises(InputError, match="--test-samples 4: the test split has only 3"):
        balanced_subset(np.array([1, 0, 1]), 4, 0, "test")

"""Tables, suffixes and byte orders are read alike in all sources; numbers that cannot be computed with are refused or replaced."""

import logging
import sys
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest
from launching import on_ranks
from PIL import Image
from quick import quick
from test_folders import damage, everything, opened, picture, save
from test_folders import fill as fill_images
from test_volumes import as_read, voxels
from test_volumes import fill as fill_volumes
from test_volumes import save as save_volume

from ddcnn.data.image_spec import TrainedOn
from ddcnn.data.partition import PartitionOptions, partition
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.prediction_source import Wanted, open_images
from ddcnn.data.sources import DamagedSample, SourceOptions, Split
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError

SPLITS = ("train", "train", "test", "test")


def table(root: Path, lines, name="labels.csv", encoding="utf-8", end="\n") -> Path:
    (root / name).write_bytes((end.join(lines) + end).encode(encoding))
    return root


def four(root: Path, suffix=".nii.gz") -> Path:
    for k in range(4):
        save_volume(root / f"{k}.nii.gz", voxels(k)).rename(root / f"{k}{suffix}")
    return root


def rows(names, separator=",", more="") -> list[str]:
    head = separator.join(("file", "label", "split")) + more
    return [head, *(separator.join((str(name), str(k % 2), SPLITS[k])) + more for k, name in enumerate(names))]


def partitioned(world, source, folder: Path, **options) -> PartitionedSet:
    selections = {name: np.arange(len(split)) for name, split in source.splits.items()}
    spatial = source.shape[:-1]
    return partition(
        world, source, selections, Decomposition(spatial, (2,) * len(spatial), 0), folder / "set.h5", PartitionOptions(**options)
    )


def to_classify(path: Path, store: PartitionedSet, **options) -> Split:
    """All images of a path, for a run on ``store``."""
    wanted = Wanted("all", None, False, lambda split, samples: False)
    return open_images(SourceOptions(str(path), Path(), **{"nan": ""} | options), TrainedOn.of(store), wanted).images


def everything_of(root: Path, **options) -> list[np.ndarray]:
    return [everything(split) for split in opened(root, **options).splits.values()]


# Tables


def test_volumes_that_a_table_does_not_name_are_told(tmp_path, caplog):
    caplog.set_level("INFO")
    root = table(four(tmp_path), rows(["0.nii.gz", "1.nii.gz", "2.nii.gz", "below/3.nii.gz"]))
    (root / "below").mkdir()
    (root / "3.nii.gz").rename(root / "below" / "3.nii.gz")
    opened(root)
    assert "not in" not in caplog.text
    for name in ("below/4.nii.gz", "5.nii.gz", ".6.nii.gz", "notes.txt", "deep/7.nii.gz"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    opened(root)
    assert f"2 volumes of the folder are not in {root / 'labels.csv'}: 5.nii.gz (and 1 more)" in caplog.text


def test_a_table_is_read_as_spreadsheets_and_scripts_write_it(tmp_path):
    root = four(tmp_path / "set")
    (tmp_path / "link").symlink_to(root)
    names = [f"{k}.nii.gz" for k in range(4)]
    expected = everything_of(table(root, rows(names)))
    assert np.array_equal(expected[0][1], as_read(voxels(1)))
    for lines in (
        rows([root / name for name in names]),
        rows([tmp_path / "link" / name for name in names]),  # the folder by another name
        rows([f"../set/{name}" for name in names]),
        rows([f"./{name}" for name in names]),
        [*rows(names), ",,", " , ,", "", ",,,,,"],
        rows(names, more=",,"),
        [line.replace("file", " File ").replace("label", "LABEL") for line in rows(names)],
        [",".join(f'"{cell}"' for cell in line.split(",")) for line in rows(names)],
    ):
        for encoding, end in (("utf-8", "\n"), ("utf-8-sig", "\r\n")):
            found = everything_of(table(root, lines, encoding=encoding, end=end))
            assert all(map(np.array_equal, expected, found)), lines
    (root / "labels.csv").rename(root / "Labels.CSV")
    assert all(map(np.array_equal, expected, everything_of(root)))
    images = fill_images(tmp_path / "images")
    (images / "Labels.csv").write_text("image,class\n0.png,ant\n", "utf-8")  # of something else: class folders are read as ever
    assert opened(images).class_names == ("ant", "bee")


@pytest.mark.parametrize("suffix", [".NII.GZ", ".Nii.Gz"])
def test_volumes_and_arrays_may_have_suffixes_in_any_case(tmp_path, random_arrays, suffix):
    root = table(four(tmp_path, suffix), rows([f"{k}{suffix}" for k in range(4)]))
    assert np.array_equal(everything_of(root)[0][1], as_read(voxels(1)))
    arrays = random_arrays((4, 4))
    with (tmp_path / "set.NPZ").open("wb") as file:
        np.savez(file, **arrays)
    with h5py.File(tmp_path / "set.H5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    for name in ("set.NPZ", "set.H5"):
        assert np.array_equal(everything_of(tmp_path / name)[0][..., 0], arrays["x_train"])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (rows("abcd", ";"), r"first line must name the columns file,label.*semicolons.*commas"),
        (rows("abcd", "\t"), "tabs"),
        (rows("abcd", "|"), "bars"),
        (["path,label", "0.nii.gz,1"], "must name the columns file,label or file,label,split; it names path,label$"),
        (["file,label", "scan99,1"], r"line 2: there is no scan99, which does not end in \.nii or .*, and is no folder;"),
        (["file,label,label", "0.nii.gz,1,2"], "the column label twice"),
        (["file,label", "0.nii.gz,1", "{root}/0.nii.gz,1"], r"line 3: 0\.nii\.gz is listed in line 2 already"),
        (["file,label", "../other/0.nii.gz,1"], r"line 2: \.\./other/0\.nii\.gz lies outside"),
        (["file,label", "away.nii.gz,1"], r"away\.nii\.gz lies outside of .*a link leads.*--follow-links"),
        (["file,label", ",,", ",,"], "no lines below"),
        (["", ",", "file,label", "0.nii.gz;1"], r"line 4: no label; it has semicolons.*commas"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path, lines, words):
    root = four(tmp_path / "set")
    save_volume(tmp_path / "other" / "0.nii.gz", voxels())
    (root / "away.nii.gz").symlink_to(tmp_path / "other" / "0.nii.gz")
    table(root, [line.replace("{root}", str(root)) for line in lines])
    with pytest.raises(InputError, match=words):
        opened(root)


def test_a_table_in_utf_16_is_named_and_links_are_followed_if_asked_for(tmp_path):
    root = four(tmp_path / "set")
    with pytest.raises(InputError, match=r"UTF-16.*CSV in UTF-8"):
        opened(table(root, rows(["0.nii.gz"]), encoding="utf-16"))
    save_volume(tmp_path / "other" / "0.nii.gz", voxels(9))
    (root / "away.nii.gz").symlink_to(tmp_path / "other" / "0.nii.gz")
    table(root, rows(["away.nii.gz", "1.nii.gz", "2.nii.gz", "3.nii.gz"]))
    assert np.array_equal(everything_of(root, follow_links=True)[0][0], as_read(voxels(9)))


# Types of numbers


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("dtype", ["u2", "i4", "f4", "f8"])
def test_byte_orders_do_not_matter(world, write_arrays, random_arrays, tmp_path, suffix, dtype):
    arrays = random_arrays((4, 6), f"<{dtype}")
    stores = {}
    for train, test in ("<<", ">>", "<>", "><"):
        mixed = arrays | {"x_train": arrays["x_train"].astype(f"{train}{dtype}"), "x_test": arrays["x_test"].astype(f"{test}{dtype}")}
        source = opened(write_arrays(tmp_path / f"{ord(train)}{ord(test)}{suffix}", **mixed))
        stores[train + test] = store = partitioned(world, source, tmp_path / f"{ord(train)}{ord(test)}")
        assert np.dtype(store.dtype) == np.dtype(f"{train}{dtype}")
        for split in ("train", "test"):
            assert np.array_equal(store.whole(split)[..., 0], arrays[f"x_{split}"])
    assert len({(store.mean, store.std) for store in stores.values()}) == 1
    for store in stores.values():  # a run on one reads images in any order
        assert np.array_equal(everything(to_classify(tmp_path / f"{ord('>')}{ord('<')}{suffix}", store))[:10, ..., 0], arrays["x_train"])


def test_images_in_files_are_like_arrays_in_the_other_byte_order(world, write_arrays, random_arrays, tmp_path):
    store = partitioned(world, opened(write_arrays(tmp_path / "set.npz", **random_arrays((6, 8), ">f4"))), tmp_path)
    path = save(Image.fromarray(np.full((6, 8), 3000, np.uint16)), tmp_path / "images" / "deep.PNG", format="png")
    assert everything(to_classify(path.parent, store)).max() == 3000


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float64", 1e200), ("float32", 1e30), ("float32", -3e38), ("int64", 2**62), ("int64", -(2**63)), ("uint64", 2**63)],
)
def test_numbers_whose_squares_overflow_are_refused_by_name(world, write_arrays, random_arrays, tmp_path, dtype, value):
    arrays = random_arrays((4, 4))
    arrays |= {name: arrays[name].astype(dtype) for name in ("x_train", "x_test")}
    store = partitioned(world, opened(write_arrays(tmp_path / "good.npz", **arrays)), tmp_path)
    (tmp_path / "set.h5").unlink()
    arrays["x_train"][3, 1, 1] = value
    source = opened(write_arrays(tmp_path / "large.npz", **arrays))
    for skip in (False, True):
        with pytest.raises(InputError, match=r"large\.npz: train sample 3 has a pixel of magnitude .*scale") as error:
            partitioned(world, source, tmp_path, skip_damaged=skip)
        assert not isinstance(error.value, DamagedSample)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.npz", "large.npz"]
    assert store.std[0] > 0


def test_a_partitioned_set_of_such_numbers_and_numbers_too_small_are_refused(world, write_arrays, random_arrays, tmp_path, monkeypatch):
    arrays = random_arrays((4, 4), "float32")
    path = write_arrays(tmp_path / "set.npz", **{name: values * 1e20 if name[0] == "x" else values for name, values in arrays.items()})
    monkeypatch.setattr("ddcnn.data.partition.LARGEST", 1e300)
    with pytest.raises(InputError, match=r"set\.h5: holds values above 1e\+18"):
        partitioned(world, opened(path), tmp_path)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"set\.h5: holds values above 1e\+18"):
        PartitionedSet.open(tmp_path / "set.h5")
    small = {name: values.astype(np.float64) * 1e-40 if name[0] == "x" else values for name, values in arrays.items()}
    with pytest.raises(InputError, match=r"differ by .* only"):
        partitioned(world, opened(write_arrays(tmp_path / "small.npz", **small)), tmp_path)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_complex_arrays_are_refused_with_the_way_out(write_arrays, random_arrays, tmp_path, suffix):
    arrays = random_arrays((4, 4))
    arrays |= {name: arrays[name] + 1j for name in ("x_train", "x_test")}
    with pytest.raises(InputError, match=r"complex128.*numpy\.abs"):
        opened(write_arrays(tmp_path / f"set{suffix}", **arrays))


def test_voxels_of_colours_are_channels_and_complex_ones_are_refused(tmp_path):
    colours = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    data = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    root = fill_volumes(tmp_path / "rgb", make=lambda seed: data.view(colours)[..., 0])
    source = opened(root)
    assert source.shape == (5, 4, 3, 3)
    assert np.array_equal(everything(source.splits["train"])[0], as_read(data))
    root = fill_volumes(tmp_path / "complex", make=lambda seed: (voxels(seed) + 1j).astype(np.complex64))
    with pytest.raises(InputError, match=r"0\.nii has complex voxels.*numpy\.abs") as error:
        opened(root)
    assert not isinstance(error.value, DamagedSample)
    root = fill_volumes(tmp_path / "large", make=lambda seed: np.full((3, 4, 5), 1e200))
    with pytest.raises(InputError, match=r"nii has a voxel of magnitude 1e\+200"):
        everything(opened(root, nan="zero").splits["train"])


# Values that are no numbers


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_replaced_if_that_is_asked_for(world, write_arrays, random_arrays, tmp_path, bad):
    data = np.arange(-20, 40, dtype=np.float32).reshape(3, 4, 5)
    holes = data.copy()
    holes[0] = bad
    fill_volumes(tmp_path / "volumes", make=lambda seed: holes)
    arrays = random_arrays((3, 4), "float32")
    arrays["x_train"][4, 0] = bad
    write_arrays(tmp_path / "set.npz", **arrays)
    for name in ("a", "b"):
        for k in range(3):
            save(Image.fromarray(holes[:, :, 0]), tmp_path / "images" / name / f"{k}.tif")
    for name, sample in (("volumes", r"\d\.nii"), ("set.npz", r"train sample 4"), ("images", r"\d\.tif")):
        with pytest.raises(InputError, match=f"{sample}.*(--nan)"):
            partitioned(world, opened(tmp_path / name), tmp_path)
        for how in ("zero", "lowest"):
            source = opened(tmp_path / name, nan=how)
            assert f'"nan": "{how}"' in source.preprocessing
            assert np.isfinite(partitioned(world, source, tmp_path).mean).all()
    for how, value in (("zero", 0), ("lowest", data[1:].min())):
        expected = data.copy()
        expected[0] = value
        assert np.array_equal(everything(opened(tmp_path / "volumes", nan=how).splits["train"])[0], as_read(expected))
        read = everything(opened(tmp_path / "set.npz", nan=how).splits["train"])
        assert read[4, 0].tolist() == [[0 if how == "zero" else arrays["x_train"][4, 1:].min()]] * 4
        assert np.array_equal(read[5, ..., 0], arrays["x_train"][5])


def test_a_sample_without_any_number_stays_damaged(tmp_path):
    root = fill_volumes(tmp_path, make=lambda seed: np.full((3, 4, 5), np.nan if seed == 2 else seed, np.float32))
    (message,) = damage(opened(root, nan="zero"))
    assert "2.nii" in message
    assert "--nan" not in message  # which is in use, and does not help


# What is left after damage


def test_a_class_or_a_split_that_is_lost_to_damage_is_refused_by_name(world, tmp_path, caplog):
    for name in ("ant", "bee", "cat"):
        for split, samples in (("train", 3), ("test", 2)):
            for k in range(samples):
                save(picture(seed=k), tmp_path / "set" / split / name / f"{k}.png")

    def broken(pattern: str):
        for path in (tmp_path / "set").glob(pattern):
            path.write_bytes(path.read_bytes()[:60])
        return lambda: partitioned(world, opened(tmp_path / "set"), tmp_path, skip_damaged=True)

    assert broken("train/bee/[01].png")().train_samples == 7
    assert broken("test/*/1.png")().skipped == 5
    broken("test/bee/0.png")()
    assert "all 2 test samples of the class bee are damaged: accuracies say nothing of it" in caplog.text
    with pytest.raises(InputError, match="all 3 training samples of the class bee are damaged"):
        broken("train/bee/*.png")()
    with pytest.raises(InputError, match="all 3 training samples of the class ant are damaged, and so it is with 1 other:"):
        broken("train/ant/*.png")()
    with pytest.raises(InputError, match="all of its 9 train samples are damaged"):
        broken("train/*/*.png")()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.h5"]


def test_a_run_checks_again_what_is_left(tmp_path):
    for split, name in product(("train", "test"), "ab"):
        for k in range(3):
            path = save(picture(8, 8, k), tmp_path / "set" / split / name / f"{k}.png")
            if k and split == "train":
                path.write_bytes(path.read_bytes()[:60])
    options = quick(
        data="set", train_samples=None, skip_damaged=True, methods="vote,dnn", dnn_data="holdout", folds=3, validation_fraction=0
    )
    done = on_ranks(2, "run", *options, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("ddcnn: error: 2 training samples are fewer than --folds 3: give more")


# What is not installed


def test_a_filter_that_is_missing_is_named_with_its_package(tmp_path, random_arrays, monkeypatch):
    arrays = random_arrays((16, 16), train=40)
    with h5py.File(tmp_path / "set.h5", "w") as file:
        for name in ("y_train", "x_test", "y_test"):
            file[name] = arrays[name]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((40, 16, 16))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple((40, 16, 16))
        h5py.h5d.create(file.id, b"x_train", h5py.h5t.NATIVE_UINT8, space, properties).write_direct_chunk(
            (0, 0, 0), arrays["x_train"].tobytes(), 0
        )
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(
        InputError, match=r"set\.h5: x_train has passed through filter 32015 \(Zstandard\).*pip install hdf5plugin"
    ) as error:
        everything(opened(tmp_path / "set.h5").splits["train"])
    assert "damaged" not in str(error.value)


def test_without_nibabel_predict_names_it_and_calls_nothing_damaged(world, tmp_path, monkeypatch):
    store = partitioned(world, opened(fill_volumes(tmp_path / "set")), tmp_path)
    save_volume(tmp_path / "new" / "1.nii.gz", voxels()).rename(tmp_path / "new" / "1.Nii.Gz")
    assert np.array_equal(everything(to_classify(tmp_path / "new", store))[0], as_read(voxels()))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    for name in ("new", "new/1.Nii.Gz"):
        with pytest.raises(InputError, match="pip install nibabel") as error:
            to_classify(tmp_path / name, store)
        assert not isinstance(error.value, DamagedSample)


def test_images_to_classify_follow_the_mode_and_the_links_of_the_run(world, tmp_path, caplog):
    caplog.set_level(logging.INFO, "ddcnn")
    for name in ("a", "b"):
        for k in range(3):
            save(picture(seed=k), tmp_path / "set" / name / f"{k}.png")
    store = partitioned(world, opened(tmp_path / "set", mode="grey"), tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "x.PNG").symlink_to(tmp_path / "set" / "a" / "1.png")

    def images(on: PartitionedSet, **options):
        return everything(to_classify(tmp_path / "new", on, **options))

    assert np.array_equal(images(store, follow_links=True)[0, ..., 0], np.asarray(picture(seed=1).convert("L")))
    with pytest.raises(InputError, match="--follow-links"):
        images(store)
    (tmp_path / "new" / "x.PNG").unlink()
    save(picture(mode="L"), tmp_path / "new" / "x.png")
    assert images(store).shape == (1, 6, 8, 1)


def test_what_is_not_read_of_images_to_classify_is_told_once(world, tmp_path, caplog):
    for name in ("a", "b"):
        for k in range(3):
            save(picture(seed=k), tmp_path / "set" / name / f"{k}.png")
    store = partitioned(world, opened(tmp_path / "set"), tmp_path)
    for k in range(3):
        save(picture(seed=k), tmp_path / "new" / f"{k}.tif", save_all=True, append_images=[picture(seed=9)])
    assert np.array_equal(everything(to_classify(tmp_path / "new", store)), [np.asarray(picture(seed=k)) for k in range(3)])
    (record,) = caplog.records
    assert "0.tif has more than one page" in record.getMessage()

"""From a source to the partitioned set and back."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import on_ranks

from ddcnn.data import partition as partitioning
from ddcnn.data.partition import partition
from ddcnn.data.partitioned_set import SCHEMA_VERSION, PartitionedSet, is_partitioned
from ddcnn.data.set_parts import images_name
from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError

TYPES = ["uint8", "uint16", "int16", "float32", "float64", ">u2", ">i2", ">f4"]
in_parts = pytest.mark.skipif(h5py.get_config().mpi, reason="parallel h5py writes one file, without parts")


@pytest.fixture(scope="module")
def make(world, write_arrays):
    """Partitions arrays, through a source file, and returns the set."""

    def make(folder, arrays, grid, overlap=0, margin=0, selections=None, suffix=".npz", name="set.h5", **how) -> PartitionedSet:
        path = write_arrays(Path(folder) / f"source{suffix}", **how, **arrays)
        source = open_source(
            SourceOptions(str(path), Path(), volumes=len(grid) == 3, validation_fraction=0.1 if "x_validation" in arrays else 0)
        )
        selections = selections or {split: np.arange(len(images)) for split, images in source.splits.items()}
        decomposition = Decomposition(source.shape[:-1], grid, overlap, margin)
        return partition(world, source, selections, decomposition, Path(folder) / name)

    return make


def with_channels(images: np.ndarray, axes: int) -> np.ndarray:
    return images.reshape(*images.shape[: axes + 1], -1)


@settings(max_examples=40)
@given(data=st.data())
def test_every_subdomain_holds_exactly_the_pixels_of_the_source(make, random_arrays, data):
    spatial = tuple(data.draw(st.lists(st.integers(2, 7), min_size=2, max_size=3), label="shape"))
    grid = tuple(data.draw(st.integers(1, min(n, 3))) for n in spatial)
    channels = data.draw(st.sampled_from([(), (1,), (3,)]), label="channels")
    dtype, suffix = data.draw(st.sampled_from(TYPES)), data.draw(st.sampled_from([".npz", ".h5"]))
    counts = {"train": data.draw(st.integers(2, 7)), "test": data.draw(st.integers(1, 4)), "validation": data.draw(st.integers(0, 3))}
    arrays = random_arrays((*spatial, *channels), dtype, **counts)
    overlap, margin = data.draw(st.integers(0, 3), label="overlap"), data.draw(st.integers(0, 2), label="margin")
    block_bytes = data.draw(st.sampled_from([1, 300, 1 << 24]), label="block bytes")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitioning, "BLOCK_BYTES", block_bytes)
        store = make(folder, arrays, grid, overlap, margin, suffix=suffix, compressed=data.draw(st.booleans()))
        assert store.samples == {split: count for split, count in counts.items() if count}
        for split in store.samples:
            images = with_channels(arrays[f"x_{split}"], len(grid))
            for subdomain in store.decomposition.subdomains:
                found = store.read(split, subdomain.index)
                assert found.dtype == images.dtype
                assert np.array_equal(found, images[(slice(None), *subdomain.stored.slices)])
            whole = store.whole(split)
            assert whole.dtype == images.dtype
            assert np.array_equal(whole, images)
            assert store.labels(split).dtype == np.int64
            assert np.array_equal(store.labels(split), arrays[f"y_{split}"])


def test_attributes_describe_the_set(make, random_arrays, tmp_path):
    arrays = random_arrays((6, 7, 3), "uint16", train=9, test=4, classes=3)
    store = make(tmp_path, arrays, (2, 3), overlap=1, margin=2)
    assert is_partitioned(tmp_path / "set.h5")
    assert not is_partitioned(tmp_path / "source.npz")
    assert store == PartitionedSet.open(tmp_path / "set.h5")
    assert store.source == str(tmp_path / "source.npz")
    assert (store.shape, store.dtype, store.class_names) == ((6, 7, 3), "<u2", ("0", "1", "2"))
    assert (store.grid, store.overlap, store.margin) == ((2, 3), 1, 2)
    assert (store.train_samples, store.test_samples) == (9, 4)
    assert store.decomposition == Decomposition((6, 7), (2, 3), 1, 2)
    with h5py.File(tmp_path / "set.h5") as file:
        assert file.attrs["schema_version"] == SCHEMA_VERSION
        for subdomain in store.decomposition.subdomains:
            for box in ("core", "subimage", "stored"):
                expected = [getattr(subdomain, box).start, getattr(subdomain, box).stop]
                assert file[images_name("test", subdomain.index)].attrs[box].tolist() == list(map(list, expected))


def test_reading_a_range_of_samples_gives_those(make, random_arrays, tmp_path):
    arrays = random_arrays((4, 4))
    store = make(tmp_path, arrays, (1, 2))
    assert np.array_equal(store.read("train", 1, slice(3, 6))[..., 0], arrays["x_train"][3:6, :, 2:])
    assert np.array_equal(store.whole("train", np.array([0, 2]))[..., 0], arrays["x_train"][[0, 2]])


@pytest.mark.parametrize("dtype", TYPES)
def test_mean_and_standard_deviation_are_those_of_the_training_images(make, random_arrays, tmp_path, dtype):
    arrays = random_arrays((5, 6, 3), dtype)
    store = make(tmp_path, arrays, (2, 2), overlap=2)
    pixels = arrays["x_train"].astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(store.mean, pixels.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(store.std, pixels.std(axis=0), rtol=1e-9)


def test_standard_deviation_survives_an_offset_that_is_large_beside_it(make, random_arrays, tmp_path):
    arrays = random_arrays((5, 6), "float64")
    arrays["x_train"] += 1e8
    arrays["x_test"] += 1e8
    store = make(tmp_path, arrays, (1, 1))
    np.testing.assert_allclose(store.std, [arrays["x_train"].std()], rtol=1e-4)


@pytest.mark.parametrize("value", [0, 0.1, 1e6 / 3])
def test_a_constant_channel_has_standard_deviation_one(make, random_arrays, tmp_path, value):
    arrays = random_arrays((5, 6, 2), "float32", train=31)
    arrays["x_train"][..., 1] = value
    assert make(tmp_path, arrays, (1, 1)).std[1] == 1


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_digest_and_statistics_do_not_depend_on_the_block_size(make, random_arrays, tmp_path, monkeypatch, dtype):
    arrays = random_arrays((5, 6, 2), dtype, train=23, test=7)
    selections = {"train": np.array([0, 3, 4, 9, 10, 11, 22]), "test": np.array([1, 6])}
    found = []
    for number, block_bytes in enumerate([1, 500, 1 << 24]):
        monkeypatch.setattr(partitioning, "BLOCK_BYTES", block_bytes)
        found.append(make(tmp_path, arrays, (2, 2), selections=selections, name=f"{number}.h5"))
    for store in found[1:]:
        np.testing.assert_allclose(store.mean, found[0].mean, rtol=1e-12)
        np.testing.assert_allclose(store.std, found[0].std, rtol=1e-12)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3)])
def test_digest_depends_on_the_pixels_and_not_on_the_decomposition(make, random_arrays, tmp_path, grid):
    arrays = random_arrays((5, 6))
    digest = make(tmp_path, arrays, grid, overlap=1, name="a.h5").source_sha256
    assert digest == make(tmp_path, arrays, (2, 2), name="b.h5").source_sha256
    assert len(digest) == len(hashlib.sha256().hexdigest())
    arrays["x_test"][-1, -1, -1] += 1
    assert digest != make(tmp_path, arrays, grid, name="c.h5").source_sha256


@settings(max_examples=15)
@given(data=st.data())
def test_a_subset_holds_the_selected_samples_in_their_order(make, random_arrays, data):
    counts = {"train": 17, "validation": 4, "test": 6}
    arrays = random_arrays((4, 5), "float32", **counts)
    indices = {split: st.sets(st.integers(0, count - 1), min_size=1) for split, count in counts.items()}
    selections = {split: np.array(sorted(data.draw(indices[split], label=split))) for split in counts}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitioning, "BLOCK_BYTES", data.draw(st.sampled_from([1, 200, 1 << 24]), label="block bytes"))
        store = make(folder, arrays, (2, 1), selections=selections)
        for split, chosen in selections.items():
            assert np.array_equal(store.whole(split)[..., 0], arrays[f"x_{split}"][chosen])
            assert np.array_equal(store.labels(split), arrays[f"y_{split}"][chosen])
            with h5py.File(store.path) as file:
                assert np.array_equal(file[f"{split}/indices"], chosen)
        pixels = arrays["x_train"][selections["train"]].astype(np.float64)
        np.testing.assert_allclose(store.mean, [pixels.mean()], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("split", "sample"), [("train", 0), ("train", 8), ("test", 4)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_no_number_is_refused_and_nothing_is_left_behind(make, random_arrays, tmp_path, monkeypatch, split, sample, value):
    monkeypatch.setattr(partitioning, "BLOCK_BYTES", 400)  # three samples
    arrays = random_arrays((4, 4, 2), "float32")
    arrays[f"x_{split}"][sample, 3, 3, 1] = value
    selections = {"train": np.array([0, 3, 5, 8, 9]), "test": np.array([1, 4])}
    with pytest.raises(InputError, match=f"{split} sample {sample} "):
        make(tmp_path, arrays, (2, 2), selections=selections)
    assert [path.name for path in tmp_path.iterdir()] == ["source.npz"]


def test_a_sample_with_nan_that_is_not_selected_does_not_matter(make, random_arrays, tmp_path):
    arrays = random_arrays((4, 4), "float32")
    arrays["x_train"][3] = np.nan
    selections = {"train": np.array([0, 1, 2, 4]), "test": np.arange(5)}
    assert np.isfinite(make(tmp_path, arrays, (2, 2), selections=selections).mean).all()


def test_a_refused_source_leaves_the_older_set_as_it_was(make, random_arrays, tmp_path):
    arrays = random_arrays((4, 4), "float32")
    before = make(tmp_path, arrays, (2, 2))
    arrays["x_train"][9] = np.nan
    with pytest.raises(InputError):
        make(tmp_path, arrays, (1, 1))
    assert PartitionedSet.open(tmp_path / "set.h5") == before


def test_partitioning_again_replaces_the_older_set(make, random_arrays, tmp_path):
    make(tmp_path, random_arrays((4, 4), "float32"), (2, 2))
    assert make(tmp_path, random_arrays((6, 6)), (1, 2)) == PartitionedSet.open(tmp_path / "set.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.h5", "source.npz"]


@pytest.fixture(scope="module")
def of_two_ranks(write_arrays, random_arrays, tmp_path_factory):
    """A folder with the set F.h5 written by two ranks, of which every one has written a part, and its arrays."""
    folder = tmp_path_factory.mktemp("two_ranks")
    arrays = random_arrays((512, 512), train=80, test=6, validation=4)  # train is more than one block
    source = write_arrays(folder / "source.npz", **arrays)
    done = on_ranks(2, "partition", source, "--grid", "2x2", "--output", "F.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    yield folder, arrays
    shutil.rmtree(folder)


@pytest.fixture
def copied(of_two_ranks, tmp_path):
    """The set of two ranks, to be damaged: the file and its parts."""
    folder, _ = of_two_ranks
    shutil.copytree(folder, tmp_path / "set")
    yield tmp_path / "set" / "F.h5", sorted((tmp_path / "set").glob("*.parts/*"))
    shutil.rmtree(tmp_path / "set")


def test_rows_that_are_read_one_by_one_are_compared_with_their_checksums_before(make, random_arrays, tmp_path):
    store = make(tmp_path, random_arrays((6, 6)), (2, 2))
    with h5py.File(store.path, "a") as file:
        file[images_name("train", 2)][1, 0] += 1
    rows = np.array([1, 0])
    assert np.array_equal(store.rows("train", 1).read(rows), store.read("train", 1)[rows])
    whole = store.decomposition.box
    assert store.box_rows("train", whole, [0, 1]).read(rows).shape == (2, 6, 6, 1)  # another rank compares those of 2 and 3
    for read in (lambda: store.rows("train", 2), lambda: store.box_rows("train", whole, [2]), lambda: store.box_rows("train", whole)):
        with pytest.raises(InputError, match=r"subdomains/0002/images is damaged in rows"):
            read()


@pytest.mark.parametrize("read_bytes", [1, 1000])
def test_rows_are_read_and_compared_some_at_a_time(make, random_arrays, tmp_path, monkeypatch, read_bytes):
    monkeypatch.setattr(partitioning, "BLOCK_BYTES", 80)  # several runs
    monkeypatch.setattr("ddcnn.data.set_parts.READ_BYTES", read_bytes)
    arrays = random_arrays((6, 6))
    store = make(tmp_path, arrays, (2, 2))
    assert len(store.tables["train/checks"]) > 2
    assert np.array_equal(store.whole("train")[..., 0], arrays["x_train"])
    with h5py.File(store.path, "a") as file:
        file[images_name("train", 2)][-1, 0] += 1
    store.rows("train", 1)
    for read in (store.rows, store.read):
        with pytest.raises(InputError, match="is damaged in rows"):
            read("train", 2)


def open_files(folder: Path) -> list[str]:
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [link.name for link in links if folder in link.parents]


@in_parts
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads what is open from /proc")
def test_readers_of_a_set_open_each_of_its_files_once(of_two_ranks, tmp_path):
    path = shutil.copytree(of_two_ranks[0], tmp_path / "set") / "F.h5"
    store, rows = PartitionedSet.open(path), np.array([79, 0, 40])
    readers = [store.rows("train", index) for index in range(4) for _ in range(2)]
    expected = [reader.read(rows) for reader in readers]
    assert sorted(open_files(path.parent)) == ["00000.h5", "00001.h5"]
    for part in path.parent.glob("*.parts/*"):  # another file of the same name
        part.write_bytes(part.rename(part.with_suffix(".old")).read_bytes())
    assert np.array_equal(store.rows("train", 3).read(rows), expected[-1])
    del readers
    assert not open_files(path.parent)
    shutil.rmtree(path.parent)


@in_parts
def test_the_parts_of_two_ranks_read_as_one_set(of_two_ranks):
    folder, arrays = of_two_ranks
    assert len(list(folder.glob("*.parts/*"))) == 2
    store = PartitionedSet.open(folder / "F.h5")
    for split in store.samples:
        assert np.array_equal(store.whole(split)[..., 0], arrays[f"x_{split}"])


@in_parts
def test_a_moved_set_is_read_where_it_is(copied):
    path, _ = copied
    moved = path.parent.parent / "elsewhere"
    path.parent.rename(moved)
    store = PartitionedSet.open(moved / "F.h5")
    assert all(store.read("train", index).any() for index in range(4))
    moved.rename(path.parent)


@in_parts
def test_the_parts_of_a_set_go_when_it_is_replaced(make, random_arrays, copied):
    path, parts = copied
    make(path.parent, random_arrays((4, 4)), (1, 2), name=path.name)
    assert not parts[0].parent.exists()
    assert PartitionedSet.open(path).grid == (1, 2)


@in_parts
@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_part_is_refused_by_name(copied, which):
    path, parts = copied
    parts[which].unlink()
    with pytest.raises(InputError, match=f"{parts[which].name} is missing"):
        PartitionedSet.open(path)


@in_parts
@pytest.mark.parametrize("length", [0, 0.5, 0.99])
def test_a_truncated_part_is_refused(copied, length):
    path, parts = copied
    data = parts[1].read_bytes()
    parts[1].write_bytes(data[: int(length * len(data))])
    with pytest.raises(InputError, match=parts[1].name):
        PartitionedSet.open(path)


@in_parts
def test_a_part_that_links_out_of_the_folder_is_refused(copied, tmp_path):
    path, parts = copied
    outside = tmp_path / "outside.h5"
    shutil.move(parts[0], outside)
    parts[0].symlink_to(outside)
    with pytest.raises(InputError, match=f"{parts[0].name} lies outside"):
        PartitionedSet.open(path)


@pytest.mark.parametrize("name", ["../other/x.parts/p.h5", "../p.h5", "{0}/other/x.parts/p.h5", "{0}/set/x.parts/p.h5"])
def test_a_virtual_dataset_is_not_followed(make, random_arrays, tmp_path, name):
    (tmp_path / "set").mkdir()
    store = make(tmp_path / "set", random_arrays((4, 4)), (2, 2))
    for part in ("p.h5", "other/x.parts/p.h5", "set/x.parts/p.h5"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(store.path, tmp_path / part)
    with h5py.File(store.path, "a") as file:
        images = images_name("test", 2)
        shape, dtype = file[images].shape, file[images].dtype
        del file[images]
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource(name.format(tmp_path), images, shape)
        file.create_virtual_dataset(images, layout)
    with pytest.raises(InputError, match="another file"):
        PartitionedSet.open(Path(store.path))


def test_a_link_to_another_file_is_refused(make, random_arrays, tmp_path):
    store = make(tmp_path, random_arrays((4, 4)), (2, 2))
    other = shutil.copy(store.path, tmp_path / "other.h5")
    with h5py.File(store.path, "a") as file:
        del file[images_name("test", 2)]
        file[images_name("test", 2)] = h5py.ExternalLink(other, images_name("test", 2))
    with pytest.raises(InputError):
        PartitionedSet.open(Path(store.path))


def test_data_kept_in_a_raw_file_is_refused(make, random_arrays, tmp_path):
    store = make(tmp_path, random_arrays((4, 4)), (2, 2))
    (tmp_path / "raw").write_bytes(bytes(1000))
    with h5py.File(store.path, "a") as file:
        images = images_name("test", 2)
        shape = file[images].shape
        del file[images]
        file.create_dataset(images, shape, "uint8", external=[(str(tmp_path / "raw"), 0, 1000)])
    with pytest.raises(InputError):
        PartitionedSet.open(Path(store.path))


@pytest.mark.parametrize("source", ["p.h5", "precious/p.h5", "../precious/p.h5"])
@pytest.mark.parametrize("attributes", [{}, {"schema_version": SCHEMA_VERSION}])
def test_writing_over_a_foreign_file_removes_nothing_else(make, random_arrays, tmp_path, source, attributes):
    folder = tmp_path / "work"
    (tmp_path / "precious").mkdir()
    (folder / "precious").mkdir(parents=True)
    with h5py.File(folder / "set.h5", "w") as file:
        layout = h5py.VirtualLayout((1,), "u1")
        layout[:] = h5py.VirtualSource(source, "x", (1,))
        file.create_virtual_dataset(images_name("train", 0), layout)
        file.attrs.update(attributes)
    make(folder, random_arrays((4, 4)), (2, 2))
    assert sorted(path.name for path in folder.iterdir()) == ["precious", "set.h5", "source.npz"]


@pytest.mark.parametrize("length", [0, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(make, random_arrays, tmp_path, length):
    path = Path(make(tmp_path, random_arrays((8, 8), train=50), (2, 2)).path)
    data = path.read_bytes()
    path.write_bytes(data[: length if isinstance(length, int) else int(length * len(data))])
    with pytest.raises(InputError, match=str(path)):
        PartitionedSet.open(path)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None])
def test_another_schema_version_is_refused(make, random_arrays, tmp_path, version):
    path = Path(make(tmp_path, random_arrays((4, 4)), (2, 2)).path)
    with h5py.File(path, "a") as file:
        del file.attrs["schema_version"]
        if version is not None:
            file.attrs["schema_version"] = version
    with pytest.raises(InputError, match=f"schema version {version}, this program reads {SCHEMA_VERSION}"):
        PartitionedSet.open(path)


@pytest.mark.parametrize("name", ["train/labels", "test/labels", images_name("train", 3), images_name("test", 0), "test"])
def test_a_set_that_lacks_a_dataset_is_refused(make, random_arrays, tmp_path, name):
    path = Path(make(tmp_path, random_arrays((4, 4)), (2, 2)).path)
    with h5py.File(path, "a") as file:
        del file[name]
    with pytest.raises(InputError, match="partition the source again"):
        PartitionedSet.open(path)


@pytest.mark.parametrize("name", ["test/labels", images_name("train", 1)])
def test_a_dataset_of_another_number_of_samples_is_refused(make, random_arrays, tmp_path, name):
    path = Path(make(tmp_path, random_arrays((4, 4)), (2, 2)).path)
    with h5py.File(path, "a") as file:
        values = file[name][:-1]
        del file[name]
        file[name] = values
    with pytest.raises(InputError, match=name):
        PartitionedSet.open(path)


def test_a_set_that_lacks_an_attribute_is_refused(make, random_arrays, tmp_path):
    path = Path(make(tmp_path, random_arrays((4, 4)), (2, 2)).path)
    with h5py.File(path) as file:
        names = list(file.attrs)
    for name in names:
        broken = Path(shutil.copy(path, tmp_path / f"without_{name}.h5"))
        with h5py.File(broken, "a") as file:
            del file.attrs[name]
        with pytest.raises(InputError):
            PartitionedSet.open(broken)


MEASURE = """
import sys
from pathlib import Path
import numpy as np
from ddcnn.data.partition import partition
from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.decomposition import Decomposition
from ddcnn.parallel.world import World

def peak():  # of this program alone; getrusage would start with the peak of the process that started it
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))

def run(path):
    source = open_source(SourceOptions(str(path), Path()))
    everything = {name: np.arange(len(split)) for name, split in source.splits.items()}
    partition(world, source, everything, Decomposition(source.shape[:-1], (2, 2)), path.with_suffix(".h5"))

world = World()
run(Path(sys.argv[1]))
before = peak()
run(Path(sys.argv[2]))
print((peak() - before) >> 10)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of its memory from /proc")
def test_a_source_of_400_megabytes_takes_far_less_memory(write_arrays, random_arrays, tmp_path):
    small = write_arrays(tmp_path / "small.npz", **random_arrays((64, 64)))
    side = 512
    samples = 400_000_000 // side**2
    large = tmp_path / "large.npz"
    with zipfile.ZipFile(large, "w") as archive:  # sample by sample, uncompressed
        for split, count in (("train", samples - 8), ("test", 8)):
            with archive.open(f"x_{split}.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side)}
                np.lib.format.write_array_header_1_0(member, header)
                for _ in range(count):
                    member.write(bytes(side**2))
            with archive.open(f"y_{split}.npy", "w") as member:
                np.lib.format.write_array(member, np.arange(count) % 2)
    assert large.stat().st_size > 390_000_000
    try:
        done = subprocess.run([sys.executable, "-c", MEASURE, small, large], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 150  # MiB
    finally:
        for path in tmp_path.iterdir():
            path.unlink()

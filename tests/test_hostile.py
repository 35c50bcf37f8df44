"""Partitioned sets that are damaged or made to harm: one clear line, no other file opened, little memory, no hang."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import mutations
import numpy as np
import pytest
from launching import MPIRUN, on_ranks, refusal
from quick import full

from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.set_parts import images_name, written_parts
from ddcnn.data.sources import SPLITS
from ddcnn.errors import InputError
from ddcnn.io.hdf5 import HDF5_FORMAT

BATCH = 250
IMAGES = images_name("train", 1)
NAMES = [f"{split}/{name}" for split in SPLITS for name in ("labels", "indices", "runs", "parts", "checks")]


def make(folder: Path, *launcher: str) -> Path:
    subprocess.run([*launcher, sys.executable, mutations.__file__, "make", folder], check=True, timeout=60)
    return folder / "F.h5"


@pytest.fixture(scope="module")
def made_in_one_file(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def made_in_parts(tmp_path_factory):
    """By two ranks."""
    path = make(tmp_path_factory.mktemp("made"), *MPIRUN, "-n", "2")
    assert len(parts_of(path)) == 2
    return path


@pytest.fixture(params=["made_in_one_file", "made_in_parts"])
def made(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def in_one_file(made_in_one_file, tmp_path):
    """A copy of the set, to be changed."""
    return shutil.copytree(made_in_one_file.parent, tmp_path / "set") / "F.h5"


@pytest.fixture
def in_parts(made_in_parts, tmp_path):
    return shutil.copytree(made_in_parts.parent, tmp_path / "set") / "F.h5"


@pytest.fixture(params=["in_one_file", "in_parts"])
def path(request):
    return request.getfixturevalue(request.param)


def parts_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.parts/*.h5"))


@pytest.fixture(autouse=True)
def frugal():
    """No test here needs much time or memory; a trap, a pipe that nobody writes to, holds who opens it."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("hangs"))
    signal.alarm(300)
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    signal.alarm(0)
    assert peak < 50e6


def refused(path: Path, match: str = ".") -> None:
    """The set, or the first of its datasets that is read, is refused in one line, and soon."""
    signal.alarm(30)
    begin = time.process_time()
    with pytest.raises(InputError, match=match) as caught:
        mutations.content(path)
    assert time.process_time() - begin < 3
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 1000


def changed(path: Path, arrays: dict[str, np.ndarray] | None = None, **values) -> None:
    """Writes other arrays and attributes, with the digest that belongs to them: the digest keeps no secret."""
    described = replace(PartitionedSet.open(path), **values)
    with h5py.File(path, "a", libver=HDF5_FORMAT) as file:
        for name, array in (arrays or {}).items():
            del file[name]
            file[name] = array
        described = replace(described, tables={name: file[name][...] for name in described.tables})
        for name, value in described.attributes().items():
            file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value


def trap(folder: Path) -> Path:
    """A file that nobody may open."""
    os.mkfifo(folder / "trap.h5")
    return folder / "trap.h5"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.write_bytes(data)


def test_the_untouched_set_is_read(path):
    store = PartitionedSet.open(path)
    assert store.source == "made up"
    assert np.array_equal(store.whole("train", np.array([2, 9])), store.whole("train")[[2, 9]])
    assert store.read("train", 0, slice(0, 0)).shape == (0, 4, 3, 3)


TYPE, RANGE, ELSEWHERE = "has another type", "contradict each other", "shape|labels|has type|understood"  # where it does not fit the arrays


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (RANGE, {"grid": (100_000, 100_000), "shape": (100_000, 100_000, 3)}), (RANGE, {"grid": (2**62, 2)}), (RANGE, {"grid": (2, 2, 2)}),
        (RANGE, {"grid": (0, 2)}), (RANGE, {"grid": (-1, 2)}), (ELSEWHERE, {"grid": (3, 2)}), (RANGE, {"grid": (2,)}),
        (RANGE, {"grid": (7, 2)}), (TYPE, {"grid": 4}), (TYPE, {"grid": (2.0, 2.0)}), (TYPE, {"grid": "2x2"}),
        (ELSEWHERE, {"shape": (2**62, 2**62, 3)}), (RANGE, {"shape": (6, 3), "grid": (2,)}),
        ("is empty", {"shape": (6, 5, 0), "mean": (), "std": ()}), (RANGE, {"shape": (0, 0, 3)}),
        (RANGE, {"shape": (6, 5, 4)}), (RANGE, {"shape": (6, 5, -3)}), (RANGE, {"overlap": -1}), (RANGE, {"overlap": 2**62}),
        (ELSEWHERE, {"overlap": 2}), (TYPE, {"overlap": 0.5}), (RANGE, {"margin": -1}), (RANGE, {"margin": 2**40}), (TYPE, {"margin": "1"}),
        (RANGE, {"dtype": "O"}), (RANGE, {"dtype": "i4,i4"}), (RANGE, {"dtype": "V3"}), (RANGE, {"dtype": "M8[s]"}),
        (ELSEWHERE, {"dtype": "<f4"}), (ELSEWHERE, {"dtype": "nonsense"}), (TYPE, {"dtype": 3}), (RANGE, {"mean": (1.0, 2.0)}),
        (RANGE, {"std": (1.0, 2.0)}), (RANGE, {"mean": (1.0, 2.0, np.nan)}), (RANGE, {"std": (1.0, 1.0, np.inf)}),
        (RANGE, {"std": (1.0, 0.0, 1.0)}), (RANGE, {"std": (1.0, -1.0, 1.0)}), (TYPE, {"std": (1, 1, 1)}),
        (RANGE, {"mean": (0.0,) * 100_000}), (RANGE, {"train_samples": 0}), (RANGE, {"train_samples": -1}),
        (ELSEWHERE, {"train_samples": 2**62}), (ELSEWHERE, {"train_samples": 13}), (TYPE, {"test_samples": 1.5}),
        (RANGE, {"class_names": ()}), (ELSEWHERE, {"class_names": ("a",)}), (TYPE, {"class_names": 3}),
        (TYPE, {"class_names": ("a", 3, "c")}),
    ],
    ids=lambda values: str(values)[:50],
)  # fmt: skip
def test_attributes_that_cannot_be_are_refused(in_one_file, words, values):
    changed(in_one_file, **values)
    refused(in_one_file, words)


def test_a_grid_of_more_subdomains_than_a_file_can_hold_is_refused(in_one_file):
    """Even if the checksums are as many: a million subdomains would take a gigabyte before the first is found to be missing."""
    arrays = {f"{split}/checks": np.zeros((1, 1_000_000), "u4") for split in SPLITS}
    arrays |= {"train/runs": np.array([0, 14]), "validation/runs": np.array([0, 4]), "test/runs": np.array([0, 8])}
    changed(in_one_file, arrays, grid=(1000, 1000), shape=(1000, 1000, 3))
    refused(in_one_file, "out of range")


@pytest.mark.parametrize("names", ["[" * 100_000, "3", "{}", "", "\\ud800[", "9" * 10_000])
def test_class_names_that_are_no_list_are_refused(in_one_file, names):
    with h5py.File(in_one_file, "a") as file:
        file.attrs["class_names"] = names
    refused(in_one_file)


@pytest.mark.parametrize("name", ["schema_version", "digest", "shape", "source", "overlap", "mean"])
@pytest.mark.parametrize(
    "value", ["reference", h5py.Empty("f4"), ["a", "b"], np.zeros(2, "i4,f4"), np.zeros((2, 2, 2)), np.zeros(0), b"\xff", 1j]
)
def test_attributes_of_other_types_are_refused(in_one_file, name, value):
    with h5py.File(in_one_file, "a") as file:
        file.attrs[name] = file["train"].ref if isinstance(value, str) else value
    refused(in_one_file)


@pytest.mark.parametrize("name", ["source", "source_sha256", "mean", "margin", "class_names", "digest", "skipped"])
def test_an_attribute_that_was_changed_is_noticed(in_one_file, name):
    with h5py.File(in_one_file, "a") as file:
        value = file.attrs[name]
        file.attrs[name] = value + 1 if isinstance(value, np.ndarray | np.integer) else np.bytes_(value.replace(b"a", b"b") + b" ")
    refused(in_one_file, "not those that were written|contradict")


@pytest.mark.parametrize("name", NAMES)
def test_a_label_an_index_or_a_checksum_that_was_changed_is_noticed(in_one_file, name):
    with h5py.File(in_one_file, "a") as file:
        values = file[name][...]
        values[values.argmax() if values.ndim == 1 else (0, 0)] ^= 1
        file[name][...] = values
    refused(in_one_file, "not those that were written")


@pytest.mark.parametrize("change", [lambda labels: labels - 1, lambda labels: labels + 1, lambda labels: labels + 2**62])
def test_labels_that_are_no_classes_are_refused(in_one_file, change):
    with h5py.File(in_one_file) as file:
        labels = file["test/labels"][...]
    changed(in_one_file, {"test/labels": change(labels)})
    refused(in_one_file, "labels, runs or parts of test are out of range")


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([0, 3, 3, 8], "runs without rows"), ([1, 3, 6, 8], "out of range"), ([0, 6, 3, 8], "out of range"), ([0, 3, 6, 9], "out of range"),
        ([0, 2**62, -(2**62), 8], "out of range"), ([0, 8], "shape"), ([[0, 3, 6, 8]], "out of range"), ([0], "shape"), ([], "shape"),
    ],
)  # fmt: skip
def test_runs_that_do_not_cover_the_rows_are_refused(in_one_file, runs, words):
    changed(in_one_file, {"test/runs": np.array(runs, dtype=np.int64)})
    refused(in_one_file, words)


def array(file: h5py.File, name: str) -> np.ndarray:
    return np.zeros(file[name].shape, file[name].dtype)


def kept_elsewhere(file: h5py.File, name: str, outside: Path) -> None:
    """As a raw file."""
    values = array(file, name)
    del file[name]
    file.create_dataset(name, values.shape, values.dtype, external=[(str(outside), 0, values.nbytes)])


def virtual(file: h5py.File, name: str, source: str, **how) -> None:
    values = array(file, name)
    del file[name]
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource(source, name, values.shape)
    file.create_virtual_dataset(name, layout)


def endless(file: h5py.File, name: str, outside: Path) -> None:
    """A mapping without end: to know the dataset's shape, HDF5 opens the sources."""
    values = array(file, name)
    del file[name]
    rest = values.shape[1:]
    layout = h5py.VirtualLayout(values.shape, values.dtype, maxshape=(None, *rest))
    source = h5py.VirtualSource(str(outside), name, values.shape, maxshape=(None, *rest))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file.create_virtual_dataset(name, layout)


def instead(make: Callable[[h5py.File, str, np.ndarray], object]) -> Callable[[h5py.File, str, Path], None]:
    def change(file: h5py.File, name: str, outside: Path) -> None:
        values = array(file, name)
        del file[name]
        made = make(file, name, values)
        if made is not None and not isinstance(made, h5py.Dataset):
            file[name] = made

    return change


CHANGES: dict[str, Callable[[h5py.File, str, Path], object]] = {
    "missing": instead(lambda file, name, values: None),
    "group": lambda file, name, outside: instead(lambda *_: None)(file, name, outside) or file.create_group(name),
    "cycle of groups": instead(lambda file, name, values: file["/"]),
    "soft link": instead(lambda file, name, values: h5py.SoftLink("/test/labels")),
    "soft link to itself": instead(lambda file, name, values: h5py.SoftLink(f"/{name}")),
    "external link": lambda file, name, outside: instead(lambda *_: h5py.ExternalLink(str(outside), name))(file, name, outside),
    "external data": kept_elsewhere,
    "virtual": lambda file, name, outside: virtual(file, name, str(outside)),
    "virtual, of itself": lambda file, name, outside: virtual(file, name, "."),
    "virtual, of its own file": lambda file, name, outside: virtual(file, name, Path(file.filename).name),
    "virtual, without end": endless,
    "compressed": instead(lambda file, name, values: file.create_dataset(name, data=values, compression="gzip")),
    "huge": instead(lambda file, name, values: file.create_dataset(name, (1 << 50, *values.shape[1:]), values.dtype)),
    "no data": instead(lambda file, name, values: file.create_dataset(name, values.shape, values.dtype)),
    "no chunks": instead(lambda file, name, values: file.create_dataset(name, values.shape, values.dtype, chunks=True)),
    "another shape": instead(lambda file, name, values: values[:-1]),
    "another type": instead(lambda file, name, values: values.astype("f4")),
    "another order": instead(lambda file, name, values: values.astype(">i8")),
    "compound": instead(lambda file, name, values: np.zeros(values.shape, "i4,f4")),
    "text": instead(lambda file, name, values: np.full(values.shape, "a", object)),
    "references": instead(lambda file, name, values: np.full(values.shape, file["test"].ref, h5py.ref_dtype)),
    "nothing": instead(lambda file, name, values: h5py.Empty("u1")),
    "a type": instead(lambda file, name, values: np.dtype("u1")),
}


@pytest.mark.parametrize("name", ["train/labels", "train/indices", "test/runs", "test/parts", "test/checks", IMAGES])
@pytest.mark.parametrize("how", CHANGES)
def test_a_dataset_that_is_not_plain_is_refused(in_one_file, tmp_path, name, how):
    with h5py.File(in_one_file, "a", libver=HDF5_FORMAT) as file:
        CHANGES[how](file, name, trap(tmp_path))
    refused(in_one_file)


@pytest.mark.parametrize("how", CHANGES)
def test_a_part_that_is_not_plain_is_refused(in_parts, tmp_path, how):
    part = parts_of(in_parts)[1]
    with h5py.File(part, "a", libver=HDF5_FORMAT) as file:
        if how in ("soft link", "references"):
            file["test/labels"] = np.zeros(8, "i8")
        CHANGES[how](file, IMAGES, trap(tmp_path))
    refused(in_parts)


def test_a_filter_that_this_program_does_not_use_is_never_loaded(in_one_file):
    with h5py.File(in_one_file, "a", libver=HDF5_FORMAT) as file:
        values = array(file, IMAGES)
        del file[IMAGES]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk(values.shape)
        settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple(values.shape)
        h5py.h5d.create(file[IMAGES.rpartition("/")[0]].id, b"images", h5py.h5t.STD_U8LE, space, settings)
    refused(in_one_file, "filtered")
    assert h5py.h5pl.size() == 0


@pytest.mark.parametrize("bounds", [[0], [0, 13], [0, 7, 7], [0, 15, 14], [7, 14], [0, 7, 14, 15], [0, -1, 14], [[0, 14]], [], [0, 5, 14]])
def test_parts_that_do_not_cover_the_rows_are_refused(in_parts, bounds):
    changed(in_parts, {"train/parts": np.array(bounds, dtype=np.int64)})
    refused(in_parts, "shape" if bounds == [0, 5, 14] else "out of range")


def test_parts_that_are_more_than_there_are_files_are_refused(in_parts):
    changed(in_parts, {"train/parts": np.minimum(np.arange(1_000_000), 14)})
    refused(in_parts)


def test_parts_in_another_order_are_noticed(in_parts):
    first, second = parts_of(in_parts)
    first.rename(first.parent / "kept")
    second.rename(first)
    (first.parent / "kept").rename(second)
    refused(in_parts)


@pytest.mark.parametrize("folder", ["..", ".", "/", "../elsewhere", "a/b", "{}/elsewhere", "x\0y", "x" * 5000, "elsewhere\n", " "])
def test_a_folder_of_parts_that_is_elsewhere_is_refused(in_parts, tmp_path, folder):
    shutil.copytree(parts_of(in_parts)[0].parent, tmp_path / "elsewhere")
    for part in parts_of(in_parts):
        shutil.copy(part, part.parent.parent)
        shutil.copy(part, tmp_path)
    changed(in_parts, parts=folder.format(tmp_path))
    refused(in_parts)


def test_the_virtual_dataset_is_for_other_programs_and_never_opened(in_parts, tmp_path):
    wanted = mutations.content(in_parts)
    with h5py.File(in_parts, "a", libver=HDF5_FORMAT) as file:
        assert np.array_equal(file[IMAGES][...], PartitionedSet.open(in_parts).read("train", 1))
        endless(file, IMAGES, trap(tmp_path))
    assert mutations.content(in_parts) == wanted


def test_a_part_that_is_a_pipe_a_folder_or_a_link_out_of_the_folder_is_not_opened(in_parts, tmp_path):
    part = parts_of(in_parts)[1]
    kept = part.read_bytes()
    part.unlink()
    os.mkfifo(part)
    refused(in_parts, "missing")
    part.unlink()
    part.mkdir()
    refused(in_parts, "missing")
    part.rmdir()
    (tmp_path / "outside.h5").write_bytes(kept)
    part.symlink_to(tmp_path / "outside.h5")
    refused(in_parts, "outside")
    part.unlink()
    part.symlink_to(part)
    refused(in_parts)
    part.unlink()
    part.write_bytes(kept)
    part.parent.rename(tmp_path / "elsewhere")
    part.parent.symlink_to(tmp_path / "elsewhere")
    refused(in_parts, "outside")
    assert written_parts(in_parts) == set()  # so that nothing there is removed when the set is replaced


def test_parts_are_looked_for_beside_the_set_alone(in_parts, tmp_path, monkeypatch):
    (part,) = in_parts.parent.glob("*.parts")
    part.rename(tmp_path / part.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HDF5_VDS_PREFIX", str(tmp_path))
    refused(in_parts, "missing")


def test_a_part_of_another_set_is_noticed(in_parts):
    part = parts_of(in_parts)[0]
    with h5py.File(part, "a") as file:
        file[IMAGES][...] = file[IMAGES][...] + 1
    refused(in_parts, f"{IMAGES} is damaged in rows 0 to")


def test_a_bit_of_a_pixel_is_noticed_where_it_is_read_and_nowhere_else(path):
    whole = PartitionedSet.open(path)
    file_of_images = [path, *parts_of(path)][-1]
    with h5py.File(file_of_images) as file:
        images = file[IMAGES]
        place = images.id.get_chunk_info(images.id.get_num_chunks() - 1).byte_offset
    flip(file_of_images, place)
    store = PartitionedSet.open(path)
    assert store == whole
    with pytest.raises(InputError, match=rf"{IMAGES} is damaged in rows \d+ to"):
        store.read("train", 1)
    with h5py.File(path) as file:
        runs = file["train/runs"][...]
    first = 0 if file_of_images == path else 6  # of the rows in the damaged file
    damaged = [row for row in range(14) if _is_refused(store, row)]
    assert damaged and damaged[0] in runs and set(damaged) == set(range(damaged[0], damaged[-1] + 1)) and damaged[0] >= first
    for split, index in (("train", 0), ("train", 2), ("train", 3), ("test", 0), ("test", 1)):
        store.read(split, index)


def _is_refused(store: PartitionedSet, row: int) -> bool:
    try:
        store.read("train", 1, np.array([row]))
    except InputError:
        return True
    return False


def test_a_set_that_was_replaced_after_it_was_opened_is_noticed(path):
    store = PartitionedSet.open(path)
    changed(path, source="another")
    with pytest.raises(InputError, match="replaced"):
        store.read("train", 0)


def test_a_set_of_an_older_version_is_refused_by_its_version(path):
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = 1
    refused(path, "schema version 1, this program reads 4")


def test_the_program_says_so_in_one_line(path):
    with h5py.File(path, "a") as file:
        file.attrs["mean"] = json.dumps([0.0])
    line = refusal(on_ranks(None, "run", "--data", str(path), "--epochs", "1", cwd=path.parent))
    assert "partition the source again" in line
    assert {found.name.split(".")[0] for found in path.parent.iterdir()} == {"F"}


@pytest.mark.parametrize("last", [100, full(2000)])
def test_random_damage_is_refused_or_does_not_matter(made, last):
    """So many changes of every set: HDF5 neither crashes nor hangs, and what is read is what was written."""
    signal.alarm(0)
    folder, case, wrong, ended = made.parent, 0, [], []
    while case < last:
        command = [sys.executable, mutations.__file__, "read", folder, str(case), str(min(case + BATCH, last))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        lines = done.stdout.splitlines()
        wrong += [line for line in lines if line.startswith("WRONG")]
        ended += [line.split()[1:] for line in lines if line.startswith("end")]
        if done.returncode == 0:
            case = min(case + BATCH, last)
            continue
        cases = [int(line.split()[1]) for line in lines if line.startswith("case ")]
        assert cases, done.stderr
        wrong.append(f"WRONG {cases[-1]}: exit code {done.returncode} {done.stderr[-300:]}")
        case = cases[-1] + 1
    assert not wrong, "\n".join(wrong)
    refused, identical = np.array(ended, dtype=int).sum(axis=0).tolist()
    assert refused + identical == last
    assert refused > last / 2  # most damage matters
    print(f"{refused} refused, {identical} read as they were")

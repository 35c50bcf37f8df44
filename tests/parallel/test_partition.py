"""Partitioning by several ranks gives what one rank gives."""

import time
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from ddcnn.data import partition as partition_module
from ddcnn.data.partition import PartitionOptions, partition
from ddcnn.data.sources import DamagedSample, Source, Split
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError
from ddcnn.parallel.world import World

SHAPE = (11, 9, 2)


def source_of(images: dict[str, np.ndarray]) -> Source:
    splits = {
        name: Split(values.shape, values.dtype, np.arange(len(values)) % 3, partial(read, name, values)) for name, values in images.items()
    }
    return Source("made up", splits, ("a", "b", "c"), "")


def read(name: str, images: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """In a blank image, the file is damaged."""
    assert (np.diff(samples) > 0).all()
    blank = samples[~images[samples].reshape(len(samples), -1).any(axis=1)]
    if blank.size:
        raise DamagedSample(f"{name} file {blank[0]} is damaged")
    return images[samples]


@pytest.fixture(params=["uint8", "float32"])
def images(request):
    random = np.random.default_rng(1)
    return {name: random.integers(0, 255, (n, *SHAPE)).astype(request.param) for name, n in (("train", 53), ("test", 7))}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(partition_module, "BLOCK_BYTES", 2000)  # several blocks a rank


def test_any_number_of_ranks_writes_the_source_s_pixels_and_the_same_statistics(world, shared_path, images):
    selections = {"train": np.flatnonzero(np.arange(53) % 4), "test": np.arange(7)}
    store = partition(world, source_of(images), selections, Decomposition(SHAPE[:2], (2, 3), 2, 1), shared_path / "set.h5")
    for name, selection in selections.items():
        for subdomain in store.decomposition.subdomains:
            wanted = images[name][selection][(slice(None), *subdomain.stored.slices)]
            np.testing.assert_array_equal(store.read(name, subdomain.index), wanted)
        np.testing.assert_array_equal(store.labels(name), selection % 3)
    pixels = images["train"][selections["train"]].reshape(-1, 2).astype(float)
    np.testing.assert_allclose(store.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(store.std, pixels.std(axis=0), rtol=1e-9)
    alone = World(MPI.COMM_SELF)
    path = shared_path / f"alone-{world.rank}.h5"
    again = partition(alone, source_of(images), selections, Decomposition(SHAPE[:2], (2, 3), 2, 1), path)
    assert (again.mean, again.std, again.source_sha256) == (store.mean, store.std, store.source_sha256)


def test_a_set_that_another_job_has_made_meanwhile_stays(world, shared_path, images):
    path, everything = shared_path / "set.h5", {"train": np.arange(53), "test": np.arange(7)}
    theirs = partition(world, source_of(images), everything, Decomposition(SHAPE[:2], (1, 2)), path)
    before = sorted(shared_path.rglob("*"))
    store = partition(world, source_of(images), everything, Decomposition(SHAPE[:2], (1, 2)), path, PartitionOptions(reuse=True))
    world.barrier()
    assert sorted(shared_path.rglob("*")) == before
    np.testing.assert_array_equal(theirs.read("train", 1), store.read("train", 1))


def test_writing_again_replaces_the_set_and_its_parts(world, shared_path, images):
    path, everything = shared_path / "set.h5", {"train": np.arange(53), "test": np.arange(7)}
    for grid in ((1, 1), (2, 2)):
        store = partition(world, source_of(images), everything, Decomposition(SHAPE[:2], grid), path)
    assert store.grid == (2, 2)
    world.barrier()
    left = {path.name.partition(".")[2] for path in shared_path.iterdir()}
    assert len(left) == len(list(shared_path.iterdir())) <= 2  # the set, and its parts where h5py is not parallel


def test_a_pixel_that_is_no_number_on_one_rank_is_refused_by_all_and_nothing_is_left(world, shared_path, images):
    images["train"] = images["train"].astype("float32")
    images["test"] = images["test"].astype("float32")
    images["train"][50, 3, 3, 1] = np.nan
    with pytest.raises(InputError, match="train sample 50 has a pixel that is NaN"):
        everything = {"train": np.arange(53), "test": np.arange(7)}
        partition(world, source_of(images), everything, Decomposition(SHAPE[:2], (2, 2)), shared_path / "set.h5")
    world.barrier()
    assert list(shared_path.iterdir()) == []


def test_damaged_samples_are_refused_by_name_or_left_out_and_counted(world, shared_path, images):
    damaged = {"train": [0, 7, 8, 30, 52], "test": [*range(6)]}
    selections = {"train": np.flatnonzero(np.arange(53) % 4 != 1), "test": np.arange(7)}
    for name, samples in damaged.items():
        images[name][samples] = 0
    decomposition, path = Decomposition(SHAPE[:2], (2, 3), 2, 1), shared_path / "set.h5"
    with pytest.raises(InputError, match=r"(train|test) file \d+ is damaged"):  # that of the rank that comes first
        partition(world, source_of(images), selections, decomposition, path)
    store = partition(world, source_of(images), selections, decomposition, path, PartitionOptions(skip_damaged=True))
    left = {name: np.setdiff1d(selection, damaged[name]) for name, selection in selections.items()}
    assert store.skipped == 5 + 6
    assert (store.train_samples, store.test_samples) == (len(left["train"]), 1)
    for name, samples in left.items():
        np.testing.assert_array_equal(store.labels(name), samples % 3)
        for subdomain in decomposition.subdomains:
            np.testing.assert_array_equal(store.read(name, subdomain.index), images[name][samples][(slice(None), *subdomain.stored.slices)])
    clean = partition(world, source_of(images), left, decomposition, shared_path / "clean.h5")
    np.testing.assert_allclose((store.mean, store.std), (clean.mean, clean.std), rtol=1e-12)


def test_ranks_stop_soon_after_one_has_met_a_damaged_sample(world, shared_path, images, monkeypatch):
    monkeypatch.setattr(partition_module, "BLOCK_BYTES", 1)
    images["train"][0] = 0  # of rank 0's first block
    source, blocks = source_of(images), []

    def slowly(samples: np.ndarray) -> np.ndarray:
        blocks.append(len(samples))
        if world.rank:
            time.sleep(0.05)
        return read("train", images["train"], samples)

    source.splits["train"] = replace(source.splits["train"], read=slowly)
    with pytest.raises(InputError, match="train file 0 is damaged"):
        everything = {"train": np.arange(53), "test": np.arange(7)}
        partition(world, source, everything, Decomposition(SHAPE[:2], (1, 1)), shared_path / "set.h5")
    if not h5py.get_config().mpi:  # one file of all ranks is closed by all of them together, at their end
        assert len(blocks) < 53 / world.size / 2
    world.barrier()
    assert list(shared_path.iterdir()) == []


def test_a_split_of_damaged_samples_alone_is_refused(world, shared_path, images):
    images["test"][:] = 0
    selections = {"train": np.arange(53), "test": np.arange(7)}
    with pytest.raises(InputError, match="all of its 7 test samples are damaged"):
        partition(
            world,
            source_of(images),
            selections,
            Decomposition(SHAPE[:2], (1, 1)),
            shared_path / "set.h5",
            PartitionOptions(skip_damaged=True),
        )
    world.barrier()
    assert list(shared_path.iterdir()) == []

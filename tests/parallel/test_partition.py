"""Partitioning by several ranks gives what one rank gives."""

import numpy as np
import pytest
from mpi4py import MPI

from ddcnn import partition as partition_module
from ddcnn.data.sources import Source, Split
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError
from ddcnn.parallel import World
from ddcnn.partition import partition

SHAPE = (11, 9, 2)


def source_of(images: dict[str, np.ndarray]) -> Source:
    splits = {
        name: Split(values.shape, values.dtype, np.arange(len(values)) % 3, lambda start, stop, values=values: values[start:stop])
        for name, values in images.items()
    }
    return Source("made up", splits, ("a", "b", "c"), "")


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

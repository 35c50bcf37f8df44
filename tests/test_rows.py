"""Rows that are read in any order, from memory and from files."""

import os

import numpy as np
import pytest

from ddcnn.errors import InputError
from ddcnn.io import rows
from ddcnn.io.hdf5 import Damaged
from ddcnn.io.rows import Table, fill, kept

RANDOM = np.random.default_rng(0)


@pytest.fixture(params=["in memory", "in a file"])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "IN_MEMORY", 0 if request.param == "in a file" else 1 << 20)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 100)
    return tmp_path


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_a_table_gives_what_was_written(folder, shape, dtype):
    expected = RANDOM.normal(0, 1000, (37, *shape)).astype(dtype)
    table = Table(37, shape, np.dtype(dtype), folder)
    parts = np.split(RANDOM.permutation(37), [5, 6, 20])
    for part in map(np.sort, parts):
        table.write(part, expected[part])
    assert np.array_equal(table.array, expected)
    assert (len(table), table.shape, table.nbytes) == (37, shape, expected.nbytes)
    order = RANDOM.integers(0, 37, 50)
    assert np.array_equal(table.read(order), expected[order])
    blocks = list(table.blocks(2))
    assert np.array_equal(np.concatenate(blocks), expected)
    assert max(block.nbytes for block in blocks) <= max(50, expected[0].nbytes)
    assert np.array_equal(table.flat.read(order), expected.reshape(37, -1)[order])
    assert not list(folder.iterdir())  # its file has no name


def test_columns_come_a_few_at_a_time(folder):
    expected = RANDOM.normal(size=(9, 12)).astype(np.float32)
    table = kept(9, iter([expected[:4], expected[4:5], expected[5:]]), folder)
    found = dict(table.columns([7, 0, 11]))
    assert list(found) == [7, 0, 11]
    assert all(np.array_equal(column, expected[:, k]) for k, column in found.items())


def test_a_table_may_be_empty(folder):
    table = kept(0, [np.empty((0, 4), np.float32)], folder)
    assert (len(table), [block.shape for block in table.blocks()]) == (0, [(0, 4)])
    assert table.read(np.empty(0, np.int64)).shape == (0, 4)
    assert kept(5, [None, None], folder) is None


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    with pytest.raises(InputError, match="gone: cannot be written"):
        Table(3, (2,), np.dtype(np.float32), tmp_path / "gone")
    table = Table(3, (2,), np.dtype(np.float32), tmp_path)

    def full(*arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputError, match=r"cannot be written .*No space left"):
        table.write(np.arange(3), np.zeros((3, 2), np.float32))


def test_a_file_that_has_become_shorter_is_told(tmp_path):
    (tmp_path / "numbers").write_bytes(np.arange(10, dtype=np.int64).tobytes())
    with (tmp_path / "numbers").open("rb") as file:
        found = np.empty((3, 2), np.int64)
        fill(file.fileno(), found, np.array([48, 0, 16]))
        assert found.tolist() == [[6, 7], [0, 1], [2, 3]]
        with pytest.raises(Damaged, match="shorter"):
            fill(file.fileno(), found, np.array([0, 8, 72]))

"""Rows that are read in any order, from memory and from files."""

import os

import numpy as np
import pytest

from ddcnn.errors import InputError
from ddcnn.io import rows
from ddcnn.io.hdf5 import Damaged
from ddcnn.io.rows import Room, Table, fill, kept

RANDOM = np.random.default_rng(0)


@pytest.fixture(params=["in memory", "in a file"])
def room(request, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "IN_MEMORY", 0 if request.param == "in a file" else 1 << 20)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 100)
    return Room(tmp_path)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_a_table_gives_what_was_written(room, shape, dtype):
    expected = RANDOM.normal(0, 1000, (37, *shape)).astype(dtype)
    table = Table(37, shape, np.dtype(dtype), room)
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
    assert not list(room.folder.iterdir())  # its file has no name


@pytest.mark.parametrize("samples", [1, 9, 30])
def test_a_table_gives_its_columns(room, samples):
    expected = RANDOM.normal(size=(samples, 12)).astype(np.float32)
    table = kept(samples, iter([expected[:4], expected[4:5], expected[5:]]), room)
    found = dict(table.columns([7, 0, 11]))
    assert list(found) == [7, 0, 11]
    assert all(np.array_equal(column, expected[:, k]) for k, column in found.items())


def test_a_table_may_be_empty(room):
    table = kept(0, [np.empty((0, 4), np.float32)], room)
    assert (len(table), [block.shape for block in table.blocks()]) == (0, [(0, 4)])
    assert table.read(np.empty(0, np.int64)).shape == (0, 4)
    assert kept(5, [None, None], room) is None


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    with pytest.raises(InputError, match="gone: cannot be written"):
        Table(3, (2,), np.dtype(np.float32), Room(tmp_path / "gone"))
    table = Table(3, (2,), np.dtype(np.float32), Room(tmp_path))

    def full(*arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputError, match=r"cannot be written .*No space left"):
        table.write(np.arange(3), np.zeros((3, 2), np.float32))


def test_tables_that_lie_side_by_side_share_the_memory(tmp_path):
    sizes = [Table(1, (rows.IN_MEMORY // parts,), np.dtype(np.uint8), Room(tmp_path, tables)) for parts, tables in ((2, 2), (2, 3), (3, 3))]
    assert [table.in_memory for table in sizes] == [True, False, True]


def test_a_file_that_has_become_shorter_is_told(tmp_path):
    (tmp_path / "numbers").write_bytes(np.arange(10, dtype=np.int64).tobytes())
    with (tmp_path / "numbers").open("rb") as file:
        found = np.empty((3, 2), np.int64)
        fill(file.fileno(), found, np.array([48, 0, 16]))
        assert found.tolist() == [[6, 7], [0, 1], [2, 3]]
        with pytest.raises(Damaged, match="shorter"):
            fill(file.fileno(), found, np.array([0, 8, 72]))

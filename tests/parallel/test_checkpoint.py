"""Steps on disk: what is not whole is not believed, and nothing that is whole is lost."""

import errno
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from mutations import damaged

from ddcnn.errors import InputError
from ddcnn.io import checkpoints as checkpoint
from ddcnn.io.checkpoints import Checkpoint, CheckpointManager

IDENTITY = {"seed": 1, "grid": "2x2"}


def step(world, value: int) -> Checkpoint:
    parts = {f"local-{world.rank:04}": {"parameters/weight": np.full((2, 3), value + world.rank, np.float32)}}
    if world.rank == 0:
        parts["dnn"] = {"parameters/weight": np.arange(value), "parameters/scalar": np.float64(value)}
    return Checkpoint({"value": value, "third": 1 / 3}, parts, {"random/state": np.array([world.rank, value], np.uint8)})


def saved(world, shared_path, values, keep=9) -> CheckpointManager:
    sequence = CheckpointManager(world, shared_path, IDENTITY, keep)
    for value in values:
        sequence.save(step(world, value))
    return sequence


def load(world, shared_path) -> Checkpoint | None:
    return CheckpointManager(world, shared_path, IDENTITY, 9).load([f"local-{world.rank:04}", "dnn"])


def value_of(found: Checkpoint | None) -> int | None:
    return found.about["value"] if found else None


def test_a_step_comes_back_as_it_was(world, shared_path):
    saved(world, shared_path, [5])
    found = load(world, shared_path)
    assert found and found.about == {"value": 5, "third": 1 / 3}
    own = found.parts[f"local-{world.rank:04}"]["parameters/weight"]
    assert own.dtype == np.float32 and np.array_equal(own, np.full((2, 3), 5 + world.rank))
    assert np.array_equal(found.parts["dnn"]["parameters/weight"], np.arange(5))
    assert found.parts["dnn"]["parameters/scalar"] == 5.0
    assert np.array_equal(found.of_rank["random/state"], [world.rank, 5])


def test_only_the_newest_steps_stay(world, shared_path):
    saved(world, shared_path, [1, 2, 3], keep=2)
    world.barrier()
    assert sorted(path.name for path in shared_path.iterdir()) == ["0000002", "0000003"]


def test_nothing_is_there_before_the_first_step(world, shared_path):
    assert load(world, shared_path / "nothing") is None


def test_any_number_of_ranks_reads_what_it_needs(world, shared_path):
    saved(world, shared_path, [5])
    parts = [f"local-{rank:04}" for rank in range(world.size)]
    found = CheckpointManager(world.alone(), shared_path, IDENTITY, 9).load(parts)
    assert found and [found.parts[part]["parameters/weight"][0, 0] for part in parts] == [5 + rank for rank in range(world.size)]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"0")


def link(path: Path) -> None:
    """The right content, but outside of the run's shared_path."""
    there = path.parent.parent.parent / f"elsewhere-{path.name}"
    shutil.copy(path, there)
    path.unlink()
    path.symlink_to(there)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [flip, truncate, lengthen, Path.unlink, link, pipe])
@pytest.mark.parametrize("which", ["first", "last", "manifest.json"])
def test_a_damaged_file_is_named_and_the_step_before_is_taken(world, shared_path, caplog, damage, which):
    sequence = saved(world, shared_path, [1, 2])
    name = {"first": "rank-0000.h5", "last": f"rank-{world.size - 1:04}.h5"}.get(which, which)
    world.on_root(lambda: damage(shared_path / "0000002" / name))
    assert value_of(load(world, shared_path)) == 1
    if world.rank == 0:
        assert f"0000002/{name}" in caplog.text
    sequence.save(step(world, 3))
    assert value_of(load(world, shared_path)) == 3


def test_a_damaged_step_does_not_count_among_those_that_stay(world, shared_path):
    saved(world, shared_path, [1, 2, 3])
    world.on_root(lambda: flip(shared_path / "0000003" / "manifest.json"))
    sequence = CheckpointManager(world, shared_path, IDENTITY, 2)
    assert value_of(sequence.load(["dnn"])) == 2
    sequence.save(step(world, 4))
    world.barrier()
    assert sorted(path.name for path in shared_path.glob("[0-9]*")) == ["0000002", "0000004"]


def test_where_no_step_is_whole_there_is_none(world, shared_path):
    saved(world, shared_path, [1, 2])
    world.on_root(lambda: [flip(shared_path / number / "manifest.json") for number in ("0000001", "0000002")] and None)
    assert load(world, shared_path) is None
    sequence = CheckpointManager(world, shared_path, IDENTITY, 9)
    sequence.load(["dnn"])
    sequence.save(step(world, 7))  # not in the place of a damaged one
    assert value_of(load(world, shared_path)) == 7


def test_a_step_of_another_run_is_refused_with_the_difference(world, shared_path):
    saved(world, shared_path, [1])
    with pytest.raises(InputError, match="is of a run with seed 1, where this one has 2"):
        CheckpointManager(world, shared_path, IDENTITY | {"seed": 2}, 9).load(["dnn"])


@pytest.mark.parametrize("rank", [0, -1])
def test_a_disk_that_refuses_leaves_the_step_before(world, shared_path, monkeypatch, rank):
    sequence = saved(world, shared_path, [1])
    written = checkpoint._write

    def full(path: Path, data: bytes) -> None:
        written(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if world.rank == rank % world.size:
        monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(InputError, match="No space left on device"):
        sequence.save(step(world, 2))
    monkeypatch.undo()
    world.barrier()
    assert [path.name for path in shared_path.iterdir()] == ["0000001"]
    assert value_of(load(world, shared_path)) == 1


@pytest.mark.parametrize("cases", [60, pytest.param(1000, marks=pytest.mark.full)])
def test_random_damage_is_never_believed(world, shared_path, cases):
    saved(world, shared_path, [1, 2])
    path = shared_path / str(world.rank)  # everyone for himself
    shutil.copytree(shared_path, path, ignore=shutil.ignore_patterns("[0-9]", "[0-9][0-9]"))
    names, random = ["manifest.json", "rank-0000.h5"], np.random.default_rng(world.rank)
    whole = {name: (path / "0000002" / name).read_bytes() for name in names}
    outcomes = set()
    for _ in range(cases):
        shutil.rmtree(path / "0000002", ignore_errors=True)
        shutil.copytree(shared_path / "0000002", path / "0000002")
        name = random.choice(names)
        changed = damaged(whole[name], random)
        (path / "0000002" / name).write_bytes(changed)
        found = CheckpointManager(world.alone(), path, IDENTITY, 9).load(["local-0000", "dnn"])
        assert value_of(found) == (2 if changed == whole[name] else 1)
        outcomes.add(value_of(found))
    assert 1 in outcomes


@pytest.mark.parametrize("bad", ["link", "external", "virtual", "compressed", "nested", "cycle"])
def test_what_a_hostile_file_with_the_right_checksum_holds_is_not_followed(world, shared_path, monkeypatch, bad):
    """Someone may well write files and the manifest that suits them."""

    def packed(step: Checkpoint) -> bytes:
        path = shared_path / f"hostile-{world.rank}.h5"
        with h5py.File(path, "w") as file:
            for part, arrays in {**step.parts, "own": step.of_rank}.items():
                for name, array in arrays.items():
                    file[f"{part}/{name}"] = array
            group = file["own"].create_group("other")
            group["y"] = 1
            if bad == "link":
                group["x"] = h5py.ExternalLink("/etc/hostname", "/")
            elif bad == "external":
                group.create_dataset("x", (4,), np.uint8, external=[("/etc/hostname", 0, 4)])
            elif bad == "virtual":
                layout = h5py.VirtualLayout((4,), np.uint8)
                layout[:] = h5py.VirtualSource(str(shared_path / "other.h5"), "x", (4,))
                group.create_virtual_dataset("x", layout)
            elif bad == "compressed":
                group.create_dataset("x", data=np.zeros(1 << 20), compression="gzip")
            elif bad == "nested":
                group["x/y"] = 1
            else:
                file["own/cycle"] = file["own"]
        return path.read_bytes()

    sequence = saved(world, shared_path, [1])
    monkeypatch.setattr(checkpoint, "_packed", packed)
    sequence.save(step(world, 2))
    assert value_of(load(world, shared_path)) == 1

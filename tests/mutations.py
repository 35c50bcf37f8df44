"""Reads a partitioned set many times, damaged at random: ``python mutations.py make|read FOLDER ...``, for test_hostile.py.

As a program of its own, since HDF5 may crash, hang or take all memory on damaged bytes.
"""

import os
import resource
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.errors import InputError

MEMORY, SECONDS = 1 << 30, 30  # that reading a set of a few kilobytes may take, Python and its libraries included


def make(folder: Path) -> None:
    """``folder``/F.h5, in parts if there are several ranks."""
    from ddcnn.data import partition as partitioning
    from ddcnn.data.sources import Source, Split
    from ddcnn.decomposition import Decomposition
    from ddcnn.parallel.world import World

    images = np.random.default_rng(5).integers(0, 255, (26, 6, 5, 3), dtype=np.uint8)
    splits = {}
    for name, pixels in (("train", images[:14]), ("validation", images[14:18]), ("test", images[18:])):
        splits[name] = Split(pixels.shape, pixels.dtype, np.arange(len(pixels)) % 3, lambda samples, pixels=pixels: pixels[samples])
    partitioning.BLOCK_BYTES = 300  # three samples, so that every rank has some
    selections = {name: np.arange(len(split)) for name, split in splits.items()}
    source = Source("made up", splits, ("a", "b", "c"), "")
    options = partitioning.PartitionOptions(skip_damaged=True)
    partitioning.partition(World(), source, selections, Decomposition((6, 5), (2, 2), 1), folder / "F.h5", options)


def content(path: Path) -> list[object]:
    """All that a run may read of a set."""
    store = PartitionedSet.open(path)
    labels = [store.labels(split).tolist() for split in store.samples]
    images = [store.read(split, place.index).tobytes() for split in store.samples for place in store.decomposition.subdomains]
    return [repr(replace(store, path="")), *labels, *images]


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """One to three random changes."""
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        size = max(len(changed), 1)
        at, other = sorted(random.integers(0, size, 2).tolist())
        length = int(min(2 ** random.integers(0, 12), size - at))
        kind = random.choice(["bit", "bit", "byte", "truncate", "zero", "noise", "copy", "insert", "remove", "append"])
        if kind == "bit" and changed:
            changed[at] ^= 1 << int(random.integers(8))
        elif kind == "byte" and changed:
            changed[at] = int(random.choice([0, 1, 127, 128, 255, random.integers(256)]))
        elif kind == "truncate":
            del changed[at:]
        elif kind == "zero":
            changed[at : at + length] = bytes(length)
        elif kind == "noise":
            changed[at : at + length] = random.bytes(length)
        elif kind == "copy":
            changed[at : at + length] = changed[other : other + length]
        elif kind == "insert":
            changed[at:at] = random.bytes(min(length, 64))
        elif kind == "remove":
            del changed[at : at + min(length, 64)]
        elif kind == "append":
            changed += random.bytes(length)
    return bytes(changed)


def read(folder: Path, first: int, last: int) -> None:
    """Cases first ... last-1; says on stdout which it begins, and what is wrong with it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    wanted = content(folder / "F.h5")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.h5"))
    copy = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.copytree(folder, copy)
    counts = {"refused": 0, "identical": 0}
    for case in range(first, last):
        print("case", case, flush=True)
        random = np.random.default_rng([7, case])
        name = files[random.integers(len(files))]
        (copy / name).write_bytes(damaged((folder / name).read_bytes(), random))
        signal.alarm(SECONDS)
        try:
            found = content(copy / "F.h5")
            counts["identical"] += 1
            if found != wanted:
                print("WRONG", case, name, "other data", flush=True)
        except InputError as error:
            counts["refused"] += 1
            if str(copy / "F.h5") not in str(error) or "\n" in str(error):
                print("WRONG", case, name, f"refused with the words: {error}", flush=True)
        except BaseException as error:
            print("WRONG", case, name, f"{type(error).__name__}: {error}", flush=True)
        signal.alarm(0)
        shutil.copyfile(folder / name, copy / name)
    shutil.rmtree(copy)
    print("end", counts["refused"], counts["identical"], flush=True)


if __name__ == "__main__":
    command, folder, *numbers = sys.argv[1:]
    make(Path(folder)) if command == "make" else read(Path(folder), *map(int, numbers))

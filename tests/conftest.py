"""What the tests share: one rank, small data sets on disk, and the program as a user starts it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import settings
from launching import MPIRUN

from ddcnn.parallel import World

settings.register_profile("ddcnn", deadline=None)
settings.load_profile("ddcnn")


@pytest.fixture(scope="session")
def world() -> World:
    """This process as the only rank."""
    return World()


@pytest.fixture(scope="session")
def write_arrays() -> Callable[..., Path]:
    """Writes named arrays to an .npz or .h5 file."""

    def write(path: Path, compressed: bool = False, **arrays) -> Path:
        if path.suffix == ".npz":
            (np.savez_compressed if compressed else np.savez)(path, **arrays)
        else:
            with h5py.File(path, "w") as file:
                for name, values in arrays.items():
                    file[name] = values
        return path

    return write


@pytest.fixture(scope="session")
def random_arrays() -> Callable[..., dict[str, np.ndarray]]:
    """x_train, y_train, x_test, y_test with random pixels and classes that go round."""

    def make(shape: tuple[int, ...], dtype="uint8", train: int = 10, test: int = 5, classes: int = 2, seed: int = 0):
        random, dtype = np.random.default_rng(seed), np.dtype(dtype)

        def images(samples: int) -> np.ndarray:
            if dtype.kind == "f":
                return random.normal(3, 10, (samples, *shape)).astype(dtype)
            bounds = np.iinfo(dtype)
            return random.integers(bounds.min, bounds.max, (samples, *shape), dtype.newbyteorder("="), endpoint=True).astype(dtype)

        return {
            "x_train": images(train), "y_train": np.arange(train) % classes,
            "x_test": images(test), "y_test": np.arange(test) % classes,
        }  # fmt: skip

    return make


@pytest.fixture(scope="session")
def ddcnn() -> Callable[..., subprocess.CompletedProcess]:
    """Starts the program: ``ddcnn("run", "--help")``, on some ranks with ``ranks=2``."""

    def start(*arguments: object, ranks: int | None = None, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        launcher = [*MPIRUN, "-n", str(ranks)] if ranks else []
        command = [*launcher, sys.executable, *python, "-m", "ddcnn", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    return start

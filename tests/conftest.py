"""What the tests share: one rank, small data sets on disk, and the program as a user starts it."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import settings
from launching import on_ranks

from ddcnn.parallel.world import World

settings.register_profile("ddcnn", deadline=None)
settings.load_profile("ddcnn")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored, and programs would inherit that


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


SHORT = {
    "epochs": 2, "dnn-epochs": 3, "transfer-epochs": 1, "network": "vgg3", "threads": 1,
    "progress": "none", "no-figures": True, "output": "run",
    "precision": "fp32",  # in which ddcnn.load and exported networks compute
}  # fmt: skip


def short_run(folder: Path, **options: object) -> Path:
    """A finished run on two ranks, whose partitioned set is gone."""
    given = [f"--{name}" if value is True else f"--{name}={value}" for name, value in (SHORT | options).items()]
    finished = on_ranks(2, "run", *given, "--partitions=sets", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    shutil.rmtree(folder / "sets", ignore_errors=True)
    return folder / "run"


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """Of all methods; no test changes it."""
    options = {"train-samples": 400, "overlap": 1, "augment": "flip+shift", "shift": 1}
    return short_run(tmp_path_factory.mktemp("digits"), **options)


@pytest.fixture(scope="session")
def volumes_run(tmp_path_factory) -> Path:
    """On volumes, with other values at the interface; no test changes it."""
    options = {"data": "synthetic:8x8x8x4x100", "grid": "2x2x1", "interface": "features", "width": 8}
    return short_run(tmp_path_factory.mktemp("volumes"), volumes=True, **options)

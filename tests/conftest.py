"""What the tests share: one rank, small data sets on disk, and the program as a user starts it."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import settings
from launching import on_ranks
from quick import quick

from ddcnn.parallel.world import World

# The same examples every time, so that a suite that passed passes again. DDCNN_SEARCH=1 looks for others: for who develops, and at leisure.
searching = bool(os.environ.get("DDCNN_SEARCH"))
settings.register_profile(
    "ddcnn", deadline=None, max_examples=int(os.environ.get("DDCNN_EXAMPLES", "40")), derandomize=not searching, print_blob=searching
)
settings.load_profile("ddcnn")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored, and programs would inherit that


@pytest.fixture(scope="session")
def world() -> World:
    """This process as the only rank."""
    return World()


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, for all modules."""

    class Clock:
        now = 0.0

    monkeypatch.setattr("time.perf_counter", lambda: Clock.now)
    return Clock


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
    """x_train, y_train, x_test, y_test, and those for validation, with random pixels and classes that go round."""

    def make(shape: tuple[int, ...], dtype="uint8", train: int = 10, test: int = 5, validation: int = 0, classes: int = 2, seed: int = 0):
        random, dtype = np.random.default_rng(seed), np.dtype(dtype)

        def images(samples: int) -> np.ndarray:
            if dtype.kind == "f":
                return random.normal(3, 10, (samples, *shape)).astype(dtype)
            bounds = np.iinfo(dtype)
            return random.integers(bounds.min, bounds.max, (samples, *shape), dtype.newbyteorder("="), endpoint=True).astype(dtype)

        arrays = {}
        for split, samples in (("train", train), ("test", test), ("validation", validation)):
            if samples:
                arrays |= {f"x_{split}": images(samples), f"y_{split}": np.arange(samples) % classes}
        return arrays

    return make


def short_run(folder: Path, **options: object) -> Path:
    """A finished run on two ranks, whose partitioned set is gone."""
    given = {"output": "run", "partitions": "sets", "dnn_epochs": 3, "precision": "fp32"}  # of ddcnn.load and of exported networks
    finished = on_ranks(2, "run", *quick(**given | options), cwd=folder)
    assert finished.returncode == 0, finished.stderr
    shutil.rmtree(folder / "sets", ignore_errors=True)
    return folder / "run"


def best_method(run: Path, *methods: str) -> str:
    """The method of a run, or of some of its methods, with the best validation accuracy; of equal ones that with the smallest loss."""
    found = json.loads((run / "results.json").read_text("utf-8"))["methods"]
    order = [name for name in ("transfer", "coherent", "dnn", "average", "vote", "global", "spatial") if name in (methods or found)]
    losses = {name: math.inf if found[name]["validation_loss"] is None else found[name]["validation_loss"] for name in order}
    return max(order, key=lambda name: (found[name]["validation_accuracy"], -losses[name]))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """Of all methods; no test changes it."""
    options = {"train_samples": 400, "overlap": 1, "augment": "flip+shift", "shift": 1}
    return short_run(tmp_path_factory.mktemp("digits"), **options)


@pytest.fixture(scope="session")
def volumes_run(tmp_path_factory) -> Path:
    """On volumes, with other values at the interface; no test changes it."""
    options = {"data": "synthetic:8x8x8x4x100", "train_samples": None, "grid": "2x2x1", "interface": "features", "width": 8}
    return short_run(tmp_path_factory.mktemp("volumes"), volumes=True, **options)

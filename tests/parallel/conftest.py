"""Tests that run under mpirun: every rank runs all of them; a rank that fails ends the job, since the others would wait for it."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from ddcnn.parallel.world import World


@pytest.fixture(scope="session")
def world():
    return World()


@pytest.fixture
def shared_path(world):
    """A folder that all ranks see, gone after the test."""
    folder = Path(world.on_root(tempfile.mkdtemp))
    yield folder
    world.barrier()
    if world.rank == 0:
        shutil.rmtree(folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    world = item.funcargs.get("world")
    if report.failed and world is not None and world.size > 1:
        print(f"rank {world.rank}: {item.nodeid}\n{report.longreprtext}", file=sys.stderr, flush=True)
        world.abort(1)
    return report

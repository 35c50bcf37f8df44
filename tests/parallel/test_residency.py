"""Where images are by themselves: as near as there is room for them, on all ranks."""

import resource

import numpy as np
import pytest
import torch

from ddcnn.config.settings import RunSettings
from ddcnn.data.stand_in import described
from ddcnn.experiment.problem import prepare
from ddcnn.experiment.residency import bytes_of_subimages, bytes_of_two, bytes_of_whole, choose
from ddcnn.parallel.memory import left

CPU, SAMPLE = torch.device("cpu"), 32 * 32 * 3  # bytes of a whole image


@pytest.fixture
def room(world):
    """An address space in which the last rank may take 400 MB more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    if world.rank == world.size - 1:
        with open("/proc/self/status", encoding="utf-8") as status:
            used = next(1024 * int(line.split()[1]) for line in status if line.startswith("VmSize:"))
        resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, before[1]))
        assert 300_000_000 < left(1) <= 400_000_000
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def stored(samples: int):
    labels = {"train": np.zeros(samples, np.int64), "test": np.zeros(1, np.int64)}
    return described("none", (32, 32, 3), "|u1", ("a", "b"), labels, (2, 2), 0, 0, "")


@pytest.mark.parametrize(
    ("samples", "places"),
    [
        (20_000, ("device", "device", "device")),  # 61 MB
        (100_000, ("device", "stream", "stream")),  # 307 MB: two subdomains have room, all four not
        (1_000_000, ("stream", "stream", "stream")),
    ],
)
def test_images_are_as_near_as_the_rank_with_the_least_room_allows(world, room, samples, places):
    store = stored(samples)
    needed = bytes_of_two(store, (), range(4)), bytes_of_subimages(store, (), range(4)), bytes_of_whole(store)
    found = choose(world, "auto", needed, CPU)
    expected = places if world.size == 1 else (*places[:2], "stream")  # a rank's share of whole images
    assert (found.local, found.joint, found.whole) == expected
    assert bool(found.why) == (places[1] == "stream")
    assert choose(world, "host", needed, CPU).joint == "host"


@pytest.mark.parametrize("methods", ["spatial", "global,spatial"])
def test_parts_of_whole_images_are_as_near_as_there_is_room_for(world, room, methods):
    settings = RunSettings(methods=methods, device="cpu")
    few, many = (prepare(world, settings, stored(samples)).residency for samples in (20_000, 3_000_000))
    assert (few.joint, many.joint) == ("device", "stream") and many.why

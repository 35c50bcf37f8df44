"""Which device each rank takes, with GPUs that are pretended: what a rank sees is patched, and that it takes one recorded."""

from types import SimpleNamespace

import pytest
import torch

from ddcnn.errors import InputError
from ddcnn.parallel.devices import choose_device
from ddcnn.parallel.world import World


@pytest.fixture
def see(world, monkeypatch):
    """Makes this rank see the GPUs with these names."""

    def see(*uuids: str) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuids[torch.device("cuda", device).index])
        )
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(World, "spins", 0.0)
        monkeypatch.setattr("ddcnn.parallel.devices.exact", lambda: None)

    return see


def index(world, name="auto") -> int:
    device = choose_device(world, name)
    assert device.type == "cuda"
    return device.index


def test_ranks_that_see_the_same_gpus_take_them_in_turn(world, see):
    see("a", "b")
    assert index(world) == world.rank % 2


def test_a_rank_that_is_bound_to_a_gpu_takes_that(world, see):
    see(f"of rank {world.rank}")
    assert index(world) == 0


def test_ranks_with_the_same_gpus_need_not_be_neighbours(world, see):
    pair = "cd" if world.rank % 2 else "ab"
    see(*pair)
    assert index(world) == world.rank // 2 % 2


def test_more_ranks_than_gpus_share_them(world, see):
    see("a")
    assert index(world, "cuda") == 0


def test_on_the_cpu_it_does_not_matter_who_sees_a_gpu(world, see):
    see(*(["a"] if world.rank else []))
    assert choose_device(world, "cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_some_ranks_with_and_some_without_a_gpu_are_refused_on_all(world, see, name):
    last = world.size - 1
    see(*(["a"] if world.rank != last else []))
    if world.size == 1 and name == "auto":
        assert choose_device(world, name) == torch.device("cpu")
        return
    with pytest.raises(InputError, match=f"rank {last} of {world.size}, on .*, sees no GPU.*--device cpu") as refusal:
        choose_device(world, name)
    assert refusal.value.agreed

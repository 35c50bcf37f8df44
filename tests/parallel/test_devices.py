"""Which device each rank takes, and how ranks with GPUs meet: what a rank sees is pretended, and that it takes a GPU recorded.

The sums of NCCL are pretended, too; those in the hosts' memory are not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pretended_gpu import pretended_gpu
from torch import distributed

from ddcnn.config.settings import RunSettings
from ddcnn.errors import InputError
from ddcnn.experiment.api import decompose
from ddcnn.parallel.devices import choose_device, each_has_its_own, ranks_on
from ddcnn.parallel.process_group import process_group
from ddcnn.parallel.world import World
from ddcnn.training.data_parallel import all_reduce

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def tf32() -> Iterator[tuple[Any, ...]]:
    """What may compute in TF32, and does."""
    parts: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [part.allow_tf32 for part in parts]
    for part in parts:
        part.allow_tf32 = True
    yield parts
    for part, allowed in zip(parts, before, strict=True):
        part.allow_tf32 = allowed


@pytest.fixture
def see(world, monkeypatch, tf32):
    """Makes this rank see the GPUs with these names."""

    def see(*uuids: str) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuids[getattr(device, "index", device)])
        )
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(World, "spins", World.spins)  # which is put back

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


@pytest.mark.parametrize(
    "seen",
    [
        lambda rank: ("a", "b"), lambda rank: ("a",), lambda rank: (f"of rank {rank}",), lambda rank: ("a", f"of rank {rank}")[rank % 2 :],
        lambda rank: (("a", "b"), ("b", "c"), ("b", "a"))[rank % 3], lambda rank: (f"of rank {rank}", f"of rank {rank + 1}"),
    ],
    ids=["the same", "one", "different", "some the same", "overlapping", "overlapping neighbours"],
)  # fmt: skip
def test_ranks_on_the_same_gpu_are_known_whatever_number_it_has_there(world, see, seen):
    see(*seen(world.rank))
    device = choose_device(world, "cuda")
    taken = world.broadcast(world.gather_values(seen(world.rank)[device.index]))
    assert ranks_on(world, device) == taken.count(taken[world.rank])
    assert each_has_its_own(world, device) == (len(set(taken)) == world.size)


def test_gpus_of_two_nodes_are_two(world, see, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: f"node{world.rank}")
    see("a", "b")
    assert index(world) == 0
    assert ranks_on(world, GPU) == 1 and each_has_its_own(world, GPU)


def test_single_precision_is_not_tf32(world, see, tf32):
    see("a")
    choose_device(world, "cpu")
    assert [part.allow_tf32 for part in tf32] == [True, True]
    choose_device(world, "cuda")
    assert [part.allow_tf32 for part in tf32] == [False, False]


class Arriving:
    """A message that is there after so many seconds; notes when the process that waits for it sleeps."""

    def __init__(self, clock, monkeypatch, seconds: float):
        self.clock, self.arrival, self.sleeps = clock, clock.now + seconds, []
        monkeypatch.setattr("time.sleep", self.sleep)

    def Test(self) -> bool:
        self.clock.now += 1e-6  # which a poll takes
        return self.clock.now >= self.arrival

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(self.clock.now)
        self.clock.now += seconds + 8e-5  # what a sleep takes at least


def test_a_host_whose_gpu_computes_polls_at_first_and_then_sleeps(world, see, clock, monkeypatch):
    alone = world.alone()
    see("a")
    choose_device(world, "cuda")
    quick = Arriving(clock, monkeypatch, 5e-5)
    alone._wait(quick)
    assert not quick.sleeps
    slow = Arriving(clock, monkeypatch, 0.1)
    begin = clock.now
    alone._wait(slow)
    assert 5e-5 < slow.sleeps[0] - begin < 1e-3  # it does not take a core for long
    assert len(slow.sleeps) < 200 and np.diff(slow.sleeps)[-1] > 10 * np.diff(slow.sleeps)[0]
    assert clock.now < slow.arrival + 0.02


def test_a_rank_that_computes_on_the_cpu_leaves_it_to_the_others_at_once(world, see, clock, monkeypatch):
    alone = world.alone()
    see("a")
    choose_device(world, "cpu")
    message = Arriving(clock, monkeypatch, 5e-5)
    alone._wait(message)
    assert len(message.sleeps) == 1 and message.sleeps[0] < 1e-5


@contextmanager
def own_gpus(world) -> Iterator[pytest.MonkeyPatch]:
    """In here each rank has a pretended GPU of its own."""
    with pretended_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"of rank {world.rank}"))
        yield patch


@contextmanager
def pretended_nccl(world, fails: str) -> Iterator[list[tuple[str, float]]]:
    """In here NCCL works, but on the last rank as ``fails`` says. Yields the backends that are joined, and their patience in seconds."""
    joined: list[tuple[str, float]] = []
    join = distributed.init_process_group
    error = distributed.DistBackendError("NCCL error: duplicate GPU\nand what else it says")
    fails = fails if world.rank == world.size - 1 else ""

    def pretended_join(backend: str, timeout: timedelta, **more: Any) -> None:
        if backend == "nccl" and fails == "join":
            raise error
        join("gloo", store=distributed.HashStore(), rank=0, world_size=1)  # so that nobody waits for a rank that joins another
        joined.append((backend, timeout.total_seconds()))

    def pretended_sum(tensor: torch.Tensor) -> None:
        if fails == "sum":
            raise error
        tensor.mul_(0 if fails else world.size)

    with own_gpus(world) as patch:
        patch.setattr(distributed, "init_process_group", pretended_join)
        patch.setattr(distributed, "all_reduce", pretended_sum)
        patch.setattr(distributed, "get_backend", lambda group=None: joined[-1][0])
        yield joined


@pytest.mark.parametrize("fails", ["join", "sum", "a wrong sum", ""])
def test_nccl_that_fails_on_one_rank_is_taken_by_none(world, fails, caplog):
    with pretended_nccl(world, fails), process_group(world, GPU):
        pass
    assert not distributed.is_initialized()
    backends = world.broadcast(world.gather_values(world.timeline.backend))
    assert backends == [("gloo" if fails else "nccl")] * world.size
    assert ("NCCL does not work" in caplog.text) == bool(fails)
    if fails in ("join", "sum") and world.rank == world.size - 1:
        assert "(NCCL error: duplicate GPU)" in caplog.text


def test_a_process_group_waits_longer_than_the_watchdog_that_names_the_rank_it_waits_for(world):
    watchdog = RunSettings().stall_timeout
    with pretended_nccl(world, "") as joined, process_group(world, GPU):
        assert joined[-1][0] == "nccl" and joined[-1][1] > 2 * watchdog
    with process_group(world, CPU):
        group: Any = distributed.group.WORLD
        assert group._get_backend(CPU).options._timeout.total_seconds() > 2 * watchdog


class Future(torch.futures.Future):
    """One that knows no GPU, as PyTorch without CUDA has them."""

    __class_getitem__ = classmethod(lambda cls, kind: cls)

    def __new__(cls, *, devices=None):
        return super().__new__(cls)

    def __init__(self, *, devices=None):
        super().__init__()


@pytest.mark.parametrize("last", [False, True])
def test_ranks_that_share_a_gpu_sum_gradients_in_the_hosts_memory(world, last):
    """gloo's own copies from and to a GPU may be read too early: pytorch/pytorch#155714."""
    summed: list[torch.Tensor] = []
    with pretended_gpu(), pytest.MonkeyPatch.context() as patch, process_group(world, GPU):
        gradient = torch.arange(6.0, device=GPU).reshape(2, 3) + world.rank
        real = distributed.all_reduce
        patch.setattr(distributed, "all_reduce", lambda tensor, *args, **more: (summed.append(tensor), real(tensor, *args, **more))[1])
        patch.setattr(torch.futures, "Future", Future)
        bucket: Any = SimpleNamespace(buffer=lambda: gradient, is_last=lambda: last)
        found = all_reduce(world, bucket).wait()
        assert distributed.get_backend() == "gloo"
        assert found.is_cuda and not any(tensor.is_cuda for tensor in summed)
        assert (found.cpu() - torch.arange(6.0).reshape(2, 3) - (world.size - 1) / 2).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("asked", "of_the_last", "precision"), [("auto", (7, 0), "fp32"), ("auto", (9, 0), "bf16"), ("bf16", (7, 0), "bf16")]
)
def test_all_ranks_compute_in_the_same_precision(world, shared_path, asked, of_the_last, precision):
    with own_gpus(world) as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device: of_the_last if world.rank == world.size - 1 else (9, 0))
        problem = decompose(
            world, data="synthetic:8x16x2x20", grid=f"1x{world.size}", network="vgg3", width=4, device="cuda", precision=asked, threads=1,
            partitions=shared_path,
        )._problem  # fmt: skip
    assert problem.policy.device == GPU
    assert world.broadcast(world.gather_values(problem.policy.precision)) == [precision] * world.size
    assert problem.settings.precision == precision  # which the folder of a run keeps: it goes on in it on whatever device

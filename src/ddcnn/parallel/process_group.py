"""The process group of torch.distributed, for DistributedDataParallel; the ranks find each other through MPI, without torchrun."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from ddcnn.errors import InputError, Stopped
from ddcnn.parallel.devices import each_has_its_own
from ddcnn.parallel.heartbeat import waiting
from ddcnn.parallel.world import World

logger = logging.getLogger(__name__)
PATIENCE = timedelta(days=7)  # the stall watchdog is faster, and says which rank it waits for


@contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Context of a process group of all ranks: NCCL if each has a GPU of its own and it works there, else gloo."""
    host = "127.0.0.1" if world.local_size == world.size else socket.gethostname()
    store = distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False) if world.rank == 0 else None
    host, port = world.broadcast([host, store.port if store else 0])
    store = store or distributed.TCPStore(host, port, is_master=False)
    waiting()  # until the first step
    if not (device.type == "cuda" and each_has_its_own(world, device) and _nccl_works(world, device, store)):
        _join("gloo", world, store)
    world.timeline.backend = distributed.get_backend()
    ending = None
    try:
        with world.ending_job():
            yield
    except (InputError, Stopped) as error:
        if isinstance(error, InputError) and not error.agreed:
            raise
        ending = error  # on all ranks
    world.barrier()  # rank 0's store must not go before the others are done with it
    distributed.destroy_process_group()
    if ending:
        raise ending


def all_gather_on_device(world: World, part: torch.Tensor) -> torch.Tensor:
    """``World.all_gather`` of tensors, (...) -> (size, ...), by the process group that there is; the GPU's time in it is not recorded."""
    gathered = part.new_empty((world.size, *part.shape))
    with world.timeline.span("communicate"):
        distributed.all_gather_into_tensor(gathered.flatten(0, 1), part.contiguous())
    world.timeline.count((world.size - 1) * part.nbytes)
    return gathered


def _join(backend: str, world: World, store: distributed.Store) -> None:
    own = distributed.PrefixStore(backend, store)
    distributed.init_process_group(backend, store=own, rank=world.rank, world_size=world.size, timeout=PATIENCE)


def _nccl_works(world: World, device: torch.device, store: distributed.Store) -> bool:
    """Joins a process group of NCCL, unless a small sum fails on a rank: parts of one GPU (MIG), for instance, it takes for the same."""
    why = ""
    try:
        _join("nccl", world, store)
        distributed.all_reduce(ones := torch.ones(1, device=device))
        why = "" if ones.item() == world.size else "a sum was wrong"
    except Exception as error:  # whatever it is, the other ranks wait for the answer
        why = (str(error) or type(error).__name__).splitlines()[0]
    if not world.largest(bool(why)):
        return True
    logger.warning("NCCL does not work among these GPUs%s: gradients are summed in the host's memory", f" ({why})" if why else "")
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return False

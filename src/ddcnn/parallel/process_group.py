"""The process group of torch.distributed, for DistributedDataParallel; the ranks find each other through MPI, without torchrun."""

import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import distributed

from ddcnn.errors import InputError, Stopped
from ddcnn.parallel.heartbeat import waiting
from ddcnn.parallel.world import World


@contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Context of a process group of all ranks: NCCL if each has a GPU of its own, else gloo."""
    host = "127.0.0.1" if world.local_size == world.size else socket.gethostname()
    store = distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False) if world.rank == 0 else None
    host, port = world.broadcast([host, store.port if store else 0])
    store = store or distributed.TCPStore(host, port, is_master=False)
    backend = "nccl" if device.type == "cuda" and _own_devices(world, device) else "gloo"
    waiting()  # until the first step
    distributed.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
    ending = None
    try:
        yield
    except (InputError, Stopped) as error:
        if isinstance(error, InputError) and not error.agreed:
            raise
        ending = error  # on all ranks
    world.barrier()  # rank 0's store must not go before the others are done with it
    distributed.destroy_process_group()
    if ending:
        raise ending


def _own_devices(world: World, device: torch.device) -> bool:
    """Whether no two ranks share a GPU, which NCCL does not support."""
    gpu = zlib.crc32(f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}".encode())
    return len(np.unique(world.all_gather(np.array([gpu])))) == world.size

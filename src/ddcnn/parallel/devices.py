"""Which device each rank computes on."""

import os
import socket
import warnings
import zlib

import numpy as np
import torch

from ddcnn.errors import InputError
from ddcnn.parallel.world import World

SPIN = 1e-4  # seconds


def choose_device(world: World, name: str, deterministic: bool = False) -> torch.device:
    """The device of this rank; all ranks together.

    Ranks of a node that see the same GPUs take them in turn; where each task is bound to a GPU of its own, that is its first.

    Args:
        name: "auto", "cpu" or "cuda".
        deterministic: whether PyTorch takes deterministic kernels from now on.

    Raises:
        InputError: ``cuda`` was requested and a rank sees no GPU; or some see one and others do not.
    """
    if deterministic:
        compute_deterministically()
    number = 0 if name == "cpu" else torch.cuda.device_count()
    if name == "cuda" or world.largest(number):
        without = world.largest(world.size - world.rank if not number else 0)  # of the first such rank
        if without:
            first, host = world.size - without, world.broadcast(socket.gethostname(), world.size - without)
            where = f"rank {first} of {world.size}, on {host}, sees no GPU"
            if name == "cuda":
                built = "" if torch.backends.cuda.is_built() or torch.version.hip else " (this PyTorch is built without CUDA)"
                raise InputError(f"--device cuda: {where}{built}; take --device cpu or auto", agreed=True)
            raise InputError(f"{where}, but others do: give every rank a GPU, or take --device cpu", agreed=True)
    if not number:
        return torch.device("cpu")
    seen = [str(torch.cuda.get_device_properties(k).uuid) for k in range(number)]
    key = zlib.crc32(f"{socket.gethostname()} {seen}".encode())
    place = int((world.all_gather(np.array([key]))[: world.rank] == key).sum())
    device = torch.device("cuda", place % number)
    torch.cuda.set_device(device)
    exact()
    World.spins = SPIN  # the host has little else to do
    return device


def ranks_on(world: World, device: torch.device) -> int:
    """How many ranks compute on this rank's GPU; all ranks together."""
    return int((world.all_gather(np.array([_key(device)])) == _key(device)).sum())


def each_has_its_own(world: World, device: torch.device) -> bool:
    """Whether no two ranks share a GPU; all ranks together."""
    return len(np.unique(world.all_gather(np.array([_key(device)])))) == world.size


def _key(device: torch.device) -> int:
    """Of a GPU, the same for all ranks that see it."""
    return zlib.crc32(f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}".encode())


def exact() -> None:
    """Single precision is IEEE's on GPUs, too: not TF32, which PyTorch takes for convolutions.

    By the names that all versions of PyTorch have: newer ones may not be read as these once the others are set.
    """
    with warnings.catch_warnings(action="ignore"):
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def compute_deterministically() -> None:
    """The same bits in every run on the same GPU; a warning where PyTorch has no such kernel. Before the first use of CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads such memory

"""Versions and hardware of this machine, as a run would use them."""

import os
import platform
import socket
import zlib
from pathlib import Path

import h5py
import numpy as np
import torch

from ddcnn import __version__
from ddcnn.errors import InputError
from ddcnn.parallel.devices import choose_device, ranks_on
from ddcnn.parallel.launcher import given_threads
from ddcnn.parallel.world import World


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {"hdf5": h5py.version.hdf5_version, "torch": torch.__version__, "ddcnn": __version__}


def threads_per_rank(world: World, requested: int | None) -> int:
    """Threads of each rank: as requested, else OMP_NUM_THREADS, else the cores that it may use divided by the ranks on them; all ranks."""
    cores = sorted(os.sched_getaffinity(0))
    mask = zlib.crc32(f"{socket.gethostname()} {cores}".encode())
    sharing = int((world.all_gather(np.array([mask], dtype=np.int64)) == mask).sum())
    return requested or given_threads() or max(1, len(cores) // sharing)


def platform_of(rocm: str | None, cuda: str | None) -> str:
    """What PyTorch has been built for."""
    return f"ROCm {rocm}" if rocm else f"CUDA {cuda or 'not built in'}"


def about_gpu(device: torch.device) -> dict[str, str]:
    """Name and driver of a GPU, and the versions of its libraries."""
    loaded = Path("/sys/module/nvidia/version")
    nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else ()
    return {
        "name": torch.cuda.get_device_name(device),
        "driver": loaded.read_text("utf-8").strip() if loaded.is_file() else "unknown",
        "platform": platform_of(torch.version.hip, torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "nccl": ".".join(map(str, nccl)) or "not built in",
    }


def describe() -> dict[str, str]:
    """Versions and libraries of this process, by name, but for MPI's."""
    installed = versions()
    gpus = [about_gpu(torch.device("cuda", k)) for k in range(torch.cuda.device_count())]
    libraries = ", ".join(f"{name} {value}" for name, value in gpus[0].items() if name not in ("name", "platform")) if gpus else ""
    hdf5 = "parallel" if h5py.get_config().mpi else "serial: parts and virtual datasets"
    return {
        "ddcnn": installed["ddcnn"],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": f"{installed['torch']}, {platform_of(torch.version.hip, torch.version.cuda)}",
        "HDF5": f"{installed['hdf5']}, h5py {h5py.__version__}, {hdf5}",
        "CPU": f"{platform.machine()}, PyTorch computes with {torch.backends.cpu.get_cpu_capability()}",
        "GPUs": f"{', '.join(one['name'] for one in gpus)}; {libraries}" if gpus else "none that rank 0 sees",
    }


def describe_ranks(world: World) -> tuple[list[list[str]], str]:
    """What every rank has got: node, cores that it may use, threads, device; all ranks together.

    Returns:
        on rank 0 a row for each rank, its number first, of ranks that follow each other and have the same only one; and why a run
        would be refused the devices, or nothing.
    """
    refusal, device = "", None
    try:
        device = choose_device(world, "auto")
    except InputError as error:  # on all ranks
        refusal = str(error)
    cores, threads = sorted(os.sched_getaffinity(0)), threads_per_rank(world, None)
    if device is None:
        place = f"{torch.cuda.device_count()} GPUs seen"
    elif device.type == "cuda":
        sharing = ranks_on(world, device)
        place = f"GPU {device.index}, {torch.cuda.get_device_name(device)}{f', shared by {sharing} ranks' if sharing > 1 else ''}"
    else:
        place = "CPU"
    rows: list[list[str]] = []
    own = [socket.gethostname(), f"{len(cores)} ({ranges(cores)})", str(threads), place]
    for rank, its in enumerate(world.gather_values(own) or []):
        if rows and rows[-1][1:] == its:
            rows[-1][0] = f"{rows[-1][0].partition('-')[0]}-{rank}"
        else:
            rows.append([str(rank), *its])
    return rows, refusal


def ranges(numbers: list[int]) -> str:
    """Ascending numbers such as 0-3,8."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)

"""Measures communication and reading on this machine, as a program: ``mpirun -n 2 python -m ddcnn.scaling.machine_benchmark [FILE.h5]``.

It measures what the performance model takes as known, and prints it as JSON, in seconds per count: α and 1/β out of messages between the
first rank and the last, there and back; α' and 1/β' out of PyTorch's all-reduce; o out of ddcnn's own allgather of a few bytes; 1/ρ out
of reading a subdomain of a partitioned set (the second time: it is in the memory of its node).
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ddcnn.parallel.world import World
from ddcnn.scaling.performance_model import non_negative

SIZES = tuple(2**k for k in range(3, 23))  # bytes
REPEATS = 20


def main(arguments: Sequence[str]) -> None:
    world = World()
    if world.size < 2:
        raise SystemExit("this program measures messages between ranks: start it on two or more, and with the launcher of this MPI")
    speed = messages(world) | all_reduce(world)
    latency = float(np.median([_seconds(lambda: world.all_gather(np.zeros(1))) for _ in range(REPEATS)]))
    steps = 2 * np.ceil(np.log2(world.size)) * speed["messages"]
    speed["collectives"] = max(0.0, latency - steps) / 2  # a barrier and an allgather
    if world.rank == 0:
        if arguments:
            speed["bytes_read"] = read(Path(arguments[0]))
        sys.stdout.write(json.dumps(speed) + "\n")
    world.barrier()


def messages(world: World) -> dict[str, float]:
    """α and 1/β: half of a ping-pong."""
    communicator, last = world.communicator, world.size - 1

    def ping_pong(buffer: np.ndarray) -> None:
        if world.rank == 0:
            communicator.Send(buffer, last)
            communicator.Recv(buffer, last)
        elif world.rank == last:
            communicator.Recv(buffer, 0)
            communicator.Send(buffer, 0)

    seconds = []
    for size in SIZES:
        buffer = np.zeros(size, np.uint8)
        world.barrier()
        seconds.append(min(_seconds(lambda buffer=buffer: ping_pong(buffer)) for _ in range(REPEATS)) / 2)  # type: ignore[misc]
    alpha, beta = alpha_beta(SIZES, seconds)
    return {"messages": alpha, "bytes_sent": beta}


def all_reduce(world: World) -> dict[str, float]:
    """α' and 1/β' of a ring: 2 (P-1) messages, 2 (P-1)/P of the bytes."""
    import torch
    from torch import distributed

    from ddcnn.parallel.devices import choose_device
    from ddcnn.parallel.process_group import process_group

    device = choose_device(world, "auto")
    seconds = []
    with process_group(world, device):
        for size in SIZES:
            tensor = torch.zeros(size // 4, device=device)

            def reduce(tensor: torch.Tensor = tensor) -> None:
                distributed.all_reduce(tensor)
                if tensor.is_cuda:
                    torch.cuda.synchronize(tensor.device)

            reduce()
            seconds.append(float(np.median([_seconds(reduce) for _ in range(REPEATS)])))
    more = 2 * (world.size - 1)
    alpha, beta = alpha_beta([size / world.size for size in SIZES], np.array(seconds) / more)
    return {"reduce_messages": alpha, "reduce_bytes": beta}


def read(path: Path) -> float:
    """1/ρ."""
    from ddcnn.data.partitioned_set import PartitionedSet

    store = PartitionedSet.open(path)
    for _ in range(2):
        begin = time.perf_counter()
        images = store.read("train", 0)
        seconds = time.perf_counter() - begin
    return seconds / images.nbytes


def alpha_beta(sizes: Sequence[float], seconds: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """α and 1/β of α + m/β by least squares, relative to the measured seconds."""
    matrix = np.array([[1.0, size] for size in sizes]) / np.array(seconds)[:, None]
    alpha, beta = non_negative(matrix, np.ones(len(matrix))).tolist()
    return alpha, beta


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main(sys.argv[1:])

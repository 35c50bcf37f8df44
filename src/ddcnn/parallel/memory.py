"""Memory of this process and its node: the peak of the resident set and, on a GPU, of what PyTorch has there; what is left."""

import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

KINDS = ("resident", "allocated", "reserved")  # the last two on a GPU: of tensors, and of PyTorch's allocator for them
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CGROUPS = Path("/sys/fs/cgroup")
V2 = "memory.max", "memory.current", "inactive_file"  # limit, use, and what of it the kernel would give back: files that nobody reads
V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def take_peaks() -> np.ndarray:
    """The peaks since the last call, (3,) bytes by ``KINDS``, 0 where there is none; the next ones begin at what is in use now.

    Where the kernel does not forget the peak of a resident set (not Linux, or not allowed), it is that of the process so far.
    """
    peaks = [_take_resident(), 0, 0]
    cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None  # never imported for this
    if cuda and cuda.is_initialized():
        peaks[1:] = cuda.max_memory_allocated(), cuda.max_memory_reserved()
        cuda.reset_peak_memory_stats()
    return np.array(peaks, dtype=np.float64)


def _take_resident() -> int:
    try:
        peak = int(_kilobytes(STATUS, "VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with suppress(OSError):
        CLEAR.write_text("5", "utf-8")  # the kernel's word for it: man 5 proc_pid_clear_refs
    return peak


def left(ranks: int) -> float:
    """Bytes that one of so many ranks of this node may still take: of its memory, of its cgroups, of its own address space."""
    node = [float("inf"), *_left_in_cgroups()]
    with suppress(OSError, StopIteration):
        node.append(_kilobytes(Path("/proc/meminfo"), "MemAvailable:"))
    limit, own = resource.getrlimit(resource.RLIMIT_AS)[0], float("inf")
    with suppress(OSError, StopIteration):
        own = limit - _kilobytes(STATUS, "VmSize:") if limit != resource.RLIM_INFINITY else own
    return max(0.0, min(min(node) / ranks, own))


def _left_in_cgroups() -> Iterator[float]:
    """Of the cgroup of this process and of those around it (version 2, or the memory controller of version 1)."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            version_1 = "memory" in controllers.split(",")
            if not version_1 and controllers:
                continue
            base, names = (CGROUPS / "memory", V1) if version_1 else (CGROUPS, V2)
            folder = base / path.lstrip("/")
            for place in (folder, *folder.parents):
                if place == CGROUPS.parent:
                    break
                with suppress(OSError, ValueError):  # "max" is no number, and no limit
                    limit, used = (int((place / name).read_text("utf-8")) for name in names[:2])
                    cache = dict(line.split() for line in (place / "memory.stat").read_text("utf-8").splitlines())
                    yield limit - used + int(cache.get(names[2], 0))


def _kilobytes(path: Path, name: str) -> float:
    """A number of a file of /proc, in bytes."""
    return 1024.0 * int(next(line for line in path.read_text("utf-8").splitlines() if line.startswith(name)).split()[1])

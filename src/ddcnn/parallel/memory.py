"""Peak memory of this process: its resident set and, on a GPU, what PyTorch has there."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

KINDS = ("resident", "allocated", "reserved")  # the last two on a GPU: of tensors, and of PyTorch's allocator for them
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
        line = next(line for line in STATUS.read_text("utf-8").splitlines() if line.startswith("VmHWM:"))
        peak = 1024 * int(line.split()[1])
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with suppress(OSError):
        CLEAR.write_text("5", "utf-8")  # the kernel's word for it: man 5 proc_pid_clear_refs
    return peak

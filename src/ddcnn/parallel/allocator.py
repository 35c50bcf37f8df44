"""glibc's memory allocator, as this process uses it."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # parameters of mallopt(3)
USER_SETTINGS = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"}  # if any is set, it prevails
LARGE = 1 << 25  # bytes; such blocks, of images, would leave holes
ARENAS = 2  # each takes 64 MiB of the address space; the threads that read and write allocate little


def keep_freed() -> None:
    """Keeps freed blocks for PyTorch's next allocations, unless they are large: the kernel zeroes every page that it hands out anew.

    How much time that saves depends on where in the heap the tensors of a step lie: from nothing to a tenth (docs/benchmarks/speed.md). The
    threads share few arenas, so that a limit of the address space (``ulimit -v``) leaves room for images. A C library without ``mallopt``
    stays as it is.
    """
    if USER_SETTINGS & os.environ.keys():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(TRIM_THRESHOLD, -1)  # never
        mallopt(MMAP_THRESHOLD, LARGE)
        mallopt(ARENA_MAX, ARENAS)

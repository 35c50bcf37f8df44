"""How this process asks for memory."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
OWN_CHOICE = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}  # if any is set, be it empty, glibc stays as it is
LARGE = 1 << 25  # bytes; such blocks, images, would leave holes


def keep_freed() -> None:
    """Keeps blocks that PyTorch frees, and soon wants again, unless they are large: the kernel clears every page that it gives anew.

    By where in the heap the tensors of a step happen to lie, that takes nothing or a tenth of the time (benchmarks/README.md). A C
    library without ``mallopt`` stays as it is.
    """
    if OWN_CHOICE & os.environ.keys():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(TRIM_THRESHOLD, -1)  # never
        mallopt(MMAP_THRESHOLD, LARGE)

"""How this process asks for memory."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
OWN_CHOICE = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}


def keep_freed() -> None:
    """Keeps memory that PyTorch frees, and soon wants again, instead of giving it back: the kernel clears every page it gives.

    By where in the heap the tensors of a step happen to lie, that takes up to a fifth of the step. What a user has chosen in the
    environment stays as it is, and so does a C library or an allocator without ``mallopt``.
    """
    if OWN_CHOICE & os.environ.keys():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(TRIM_THRESHOLD, -1)  # never
        mallopt(MMAP_THRESHOLD, 1 << 25)  # bytes, of what is given back at once all the same: images, which would leave holes

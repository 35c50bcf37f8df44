"""Messages of ``World``: their tags, their pieces, and several of them at once."""

from enum import IntEnum
from typing import Any

import numpy as np

CHUNK_BYTES = 1 << 28  # most bytes that one gather message brings to rank 0; MPI counts end at 2^31


class Tag(IntEnum):
    """Tags of the point-to-point messages: which work another rank should stop, through the communicator of the job; halos."""

    LOCAL = 1
    FOLDS = 2
    DNN = 3
    PARTITION = 4
    HALO = 5


class Several:
    """Requests that are complete when all of them are."""

    def __init__(self, kind: Any, requests: list[Any]):
        self.kind, self.requests = kind, requests

    def Test(self) -> bool:
        return self.kind.Testall(self.requests)


def pieces_of(array: np.ndarray) -> list[np.ndarray]:
    """A contiguous array in messages whose counts stay below 2³¹."""
    flat, step = array.reshape(-1), max(1, CHUNK_BYTES // array.itemsize)
    return [flat[begin : begin + step] for begin in range(0, flat.size, step)]

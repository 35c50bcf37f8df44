"""Rows of samples for a device: in its memory, in the host's, or read as they are needed, by a thread that stays ahead."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from ddcnn.io.rows import RowReader

Resident = Literal["device", "host", "stream"]
AHEAD, AHEAD_BYTES = 4, 1 << 28  # batches that are read before they are needed; bytes of them, if that is more than one


class Stored(Protocol):
    """Rows (S, ...) of samples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row."""

    @property
    def on_device(self) -> bool:
        """Whether they are in the device's memory."""

    def ahead(self, batches: Sequence[torch.Tensor]) -> None:
        """What ``take`` will be asked for next, in this order: reading begins. Only a hint."""

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """Rows (B, ...) on the device of the samples ``index`` (B,) int64, on the CPU or where the rows are; not to be changed in place."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Rows in the memory of the device or of the host, ``rows`` (S, ...); a GPU copies batches of the host's from pinned memory."""

    rows: torch.Tensor
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.rows.shape[1:])

    @property
    def on_device(self) -> bool:
        return self.rows.device == self.device

    def ahead(self, batches: Sequence[torch.Tensor]) -> None:
        pass

    def take(self, index: torch.Tensor) -> torch.Tensor:
        if self.on_device:
            return self.rows.index_select(0, to_device(index, self.device))
        rows = torch.empty((len(index), *self.shape), dtype=self.rows.dtype, pin_memory=self.device.type == "cuda")
        return to_device(torch.index_select(self.rows, 0, index, out=rows), self.device)


class Streamed:
    """Rows that are read as they are needed.

    A batch that was not announced, or not as the next one, is read at once.
    """

    on_device = False

    def __init__(self, reader: RowReader, device: torch.device):
        self.reader, self.device = reader, device
        self._thread = ThreadPoolExecutor(1, "reader")
        self._coming: Iterator[torch.Tensor] = iter(())
        self._read: deque[tuple[torch.Tensor, Future[torch.Tensor]]] = deque()
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        self._most = 1  # batches ahead, until it is known how large one is

    @property
    def shape(self) -> tuple[int, ...]:
        return self.reader.shape

    def ahead(self, batches: Sequence[torch.Tensor]) -> None:
        for _, future in self._read:
            future.cancel()
        self._read.clear()
        self._coming = iter(batches)
        self._go_on()

    def _go_on(self) -> None:
        while len(self._read) < self._most and (index := next(self._coming, None)) is not None:
            self._read.append((index, self._thread.submit(self._rows, index)))

    def take(self, index: torch.Tensor) -> torch.Tensor:
        if self._last is None or not torch.equal(self._last[0], index):
            if self._read and torch.equal(self._read[0][0], index):
                rows = self._read.popleft()[1].result()
                self._go_on()
            else:
                rows = self._thread.submit(self._rows, index).result()  # which alone reads: readers keep files open
            self._last = index, to_device(rows, self.device)
        return self._last[1]

    def _rows(self, index: torch.Tensor) -> torch.Tensor:
        rows = to_tensor(self.reader.read(index.numpy()))
        self._most = max(1, min(AHEAD, AHEAD_BYTES // max(1, rows.nbytes)))
        return rows.pin_memory() if self.device.type == "cuda" else rows


@dataclass(frozen=True)
class Place:
    """The device that computes, and where the images of its networks are."""

    device: torch.device
    resident: Resident = "device"

    def stored(self, read: Callable[[], np.ndarray], rows: Callable[[], RowReader]) -> Stored:
        """Images that ``read`` reads at once, or ``rows`` as they are needed."""
        if self.resident == "stream":
            return Streamed(rows(), self.device)
        images = to_tensor(read())
        return InMemory(images.to(self.device) if self.resident == "device" else images, self.device)


def on_host(index: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers of samples (S,) on the CPU, from where a GPU can copy them without a wait."""
    return index.pin_memory() if device.type == "cuda" else index


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies while the device computes, where the tensor lies in pinned memory."""
    return tensor.to(device, non_blocking=True)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """A tensor in the machine's byte order; unsigned types that torch cannot compute with become the next larger signed one."""
    native = images.dtype.newbyteorder("=")
    dtype = {"u2": np.int32, "u4": np.int64, "u8": np.int64}.get(native.str[1:], native)
    return torch.from_numpy(np.ascontiguousarray(images, dtype=dtype))

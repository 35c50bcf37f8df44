"""The communicator: collectives on buffers, agreement on errors, abort. Only this module imports mpi4py.

Every collective is a nonblocking MPI operation that is polled with growing sleeps: an idle rank does not spin and takes no core from a
rank that computes. Data travel as buffers, never as pickles.
"""

import json
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ddcnn.errors import InputError, Stopped
from ddcnn.parallel.heartbeat import beat, waiting
from ddcnn.parallel.launcher import launched_size
from ddcnn.parallel.tags import Tag
from ddcnn.parallel.timeline import Timeline

CHUNK_BYTES = 1 << 28  # most bytes that one gather message brings to rank 0; MPI counts end at 2^31
LONGEST_SLEEP = {"wait": 0.005, "communicate": 1e-4}  # seconds between two looks at a pending operation
STEP_SLEEP = 2e-4  # the same where all ranks arrive in every step of training


class World:
    """The ranks of a communicator, by default of ``MPI.COMM_WORLD``.

    Attributes:
        rank, size: this rank's number, and the number of ranks.
        local_rank, local_size: the same among the ranks on this node.
        communicator: the mpi4py communicator, for parallel HDF5 and point-to-point messages.
        timeline: where collectives record the time that they wait and communicate.

    Raises:
        InputError: there is no MPI library, or the launcher started several processes that MPI sees as separate jobs.
    """

    def __init__(self, communicator=None, timeline: Timeline | None = None):
        try:
            with warnings.catch_warnings():  # of a launcher of another MPI, which is refused below
                warnings.simplefilter("ignore", RuntimeWarning)
                from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # mpi4py raises RuntimeError where it finds no MPI library
            raise InputError(
                "no MPI library can be loaded: on a cluster load its MPI module, elsewhere install one with "
                f"pip install 'ddcnn[mpich]' ({error})",
                agreed=True,
            ) from None
        self._mpi = MPI
        self.communicator = communicator or MPI.COMM_WORLD
        self.rank, self.size = self.communicator.Get_rank(), self.communicator.Get_size()
        if communicator is None and self.size == 1 and launched_size() > 1:
            raise InputError(
                f"the launcher started {launched_size()} processes, but MPI sees {launched_size()} jobs of one rank each: "
                f"use the launcher that belongs to this MPI ({self.library()}); with srun, try --mpi=pmi2 or --mpi=pmix",
                agreed=True,
            )
        self.timeline = timeline or Timeline()
        node = self.communicator.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = node.Get_rank(), node.Get_size()
        node.Free()

    def alone(self) -> "World":
        """This rank as a world of its own, with a timeline of its own."""
        return World(self._mpi.COMM_SELF)

    def split(self, color: int) -> "World":
        """The ranks that give the same color, in their order; they record in the same timeline."""
        return World(self.communicator.Split(color, self.rank), self.timeline)

    # Collectives

    def _wait(self, request, kind: str = "wait", longest: float = 0.0, meanwhile: Callable[[], None] = lambda: None) -> None:
        longest = longest or LONGEST_SLEEP[kind]
        with self.timeline.span(kind):
            waiting()
            begin = time.perf_counter()
            while not request.Test():  # an operation moves on only here, so who has just come looks often
                time.sleep(min(1e-5 + (time.perf_counter() - begin) / 8, longest))
                meanwhile()
            beat()

    def barrier(self) -> None:
        self._wait(self.communicator.Ibarrier())

    def gather(self, part: np.ndarray, chunk_bytes: int = CHUNK_BYTES) -> np.ndarray | None:
        """``MPI_Gather`` to rank 0 in chunks: ``part`` (...) of equal shape and type on all ranks -> (size, ...) on rank 0.

        No message has more than ``chunk_bytes`` bytes in all, so that counts stay below 2³¹ and the memory bounded, however
        large the parts are.
        """
        self.barrier()
        part = np.ascontiguousarray(part)
        flat = part.reshape(-1)
        everyone = np.empty((self.size, *part.shape), dtype=part.dtype) if self.rank == 0 else None
        step = max(1, chunk_bytes // (self.size * part.itemsize))
        for begin in range(0, flat.size, step):
            piece = flat[begin : begin + step]
            arriving = np.empty((self.size, piece.size), dtype=part.dtype) if self.rank == 0 else None
            self._wait(self.communicator.Igather(piece, arriving, root=0), "communicate")
            self.timeline.count(piece.nbytes if self.rank else 0)
            if everyone is not None:
                everyone.reshape(self.size, -1)[:, begin : begin + piece.size] = arriving
        return everyone

    def all_gather(self, part: np.ndarray) -> np.ndarray:
        """``MPI_Allgather`` within a step of training: ``part`` (...) of equal shape and type on all ranks -> (size, ...) on all."""
        everyone = np.empty((self.size, *part.shape), dtype=part.dtype)
        self._wait(self.communicator.Ibarrier(), longest=STEP_SLEEP)  # tells waiting for a slower rank from communicating
        self._wait(self.communicator.Iallgather(np.ascontiguousarray(part), everyone), "communicate")
        self.timeline.count((self.size - 1) * part.nbytes)
        return everyone

    def broadcast_(self, array: np.ndarray) -> None:
        """``MPI_Bcast`` of rank 0's ``array`` (...) into the others' in place, in chunks."""
        self.barrier()
        flat = array.reshape(-1)
        step = max(1, CHUNK_BYTES // array.itemsize)
        for begin in range(0, flat.size, step):
            self._wait(self.communicator.Ibcast(flat[begin : begin + step], root=0), "communicate")
        self.timeline.count(0 if self.rank else (self.size - 1) * array.nbytes)

    def mean(self, numbers: Sequence[float]) -> list[float]:
        """The ranks' mean of each number, on all ranks."""
        result = np.empty(len(numbers))
        self._wait(self.communicator.Iallreduce(np.array(numbers, dtype=np.float64), result))
        return (result / self.size).tolist()

    def gather_rows(self, rows: np.ndarray) -> list[np.ndarray] | None:
        """Gathers float64 arrays (rows, columns) whose number of rows differs from rank to rank: a list over ranks on rank 0."""
        longest = self.largest(len(rows))
        padded = np.full((longest, rows.shape[1]), np.nan)
        padded[: len(rows)] = rows
        everyone = self.gather(padded)
        return None if everyone is None else [part[~np.isnan(part).all(axis=1)] for part in everyone]

    def gather_values(self, value) -> list | None:
        """JSON-serialisable values of all ranks: a list on rank 0."""
        text = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
        padded = np.full(self.largest(text.size), ord(" "), dtype=np.uint8)
        padded[: text.size] = text
        everyone = self.gather(padded)
        return None if everyone is None else [json.loads(row.tobytes()) for row in everyone]

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers, on all ranks."""
        return self.largest_of([number])[0]

    def largest_of(self, numbers: Sequence[int]) -> list[int]:
        """The largest of the ranks' numbers at each place, on all ranks."""
        result = np.empty(len(numbers), dtype=np.int64)
        self._wait(self.communicator.Iallreduce(np.array(numbers, dtype=np.int64), result, op=self._mpi.MAX))
        return result.tolist()

    def all_equal(self, data: bytes) -> bool:
        """Whether all ranks have the same data."""
        checksum = zlib.crc32(data)
        return self.largest(checksum) == -self.largest(-checksum)

    def broadcast(self, value, root: int = 0):
        """A JSON-serialisable value from ``root`` to all ranks."""
        data = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8) if self.rank == root else np.empty(0, dtype=np.uint8)
        size = np.array([data.size], dtype=np.int64)
        self._wait(self.communicator.Ibcast(size, root=root))
        buffer = data.copy() if self.rank == root else np.empty(int(size[0]), dtype=np.uint8)
        for begin in range(0, buffer.size, CHUNK_BYTES):
            self._wait(self.communicator.Ibcast(buffer[begin : begin + CHUNK_BYTES], root=root))
        return json.loads(buffer.tobytes())

    # Agreeing on errors

    @contextmanager
    def cancel_together(self, work: Tag, asked: Callable[[], bool] = lambda: False) -> Iterator[Callable[[], bool]]:
        """Around long work without communication, on all ranks: yields whether another rank refuses or stops, so that this one may stop.

        Args:
            work: the tag of its messages, all of which are received before the ranks leave.
            asked: whether this rank has been asked to stop; if it has nothing left to do, it tells the others.

        Raises:
            InputError: on the ranks that refuse.
            Stopped: on all ranks, if one of them has stopped.
        """
        error: InputError | Stopped | None = None
        told: list[Any] = []

        def tell() -> None:
            if not told:
                others = set(range(self.size)) - {self.rank}
                told.extend(self.communicator.Isend(np.empty(0, dtype=np.uint8), rank, work) for rank in others)

        try:
            yield lambda: self.communicator.Iprobe(tag=work)
        except (InputError, Stopped) as refusal:
            error = refusal
            tell()
        self._wait(self.communicator.Ibarrier(), meanwhile=lambda: tell() if asked() else None)
        shares = self.mean([bool(told), isinstance(error, InputError), isinstance(error, Stopped)])
        telling, refusing, stopping = (round(self.size * share) for share in shares)
        for _ in range(telling - bool(told)):
            self.communicator.Recv(np.empty(0, dtype=np.uint8), tag=work)
        self._mpi.Request.Waitall(told)
        if isinstance(error, InputError):
            raise error
        if stopping and not refusing:  # else those that stopped did so since another one refuses
            raise error or Stopped

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Around work without communication that may refuse its input: if one rank refuses, all ranks do, with its words.

        Raises:
            InputError: of the lowest rank that raised one.
        """
        error = None
        try:
            yield
        except InputError as refusal:
            error = refusal
        first = self.size - self.largest(self.size - self.rank if error else 0)
        if first < self.size:
            raise InputError(self.broadcast(str(error), root=first), agreed=True)

    def on_root(self, work: Callable):
        """Rank 0 does ``work``; all ranks have its JSON-serialisable result, or its InputError."""
        result = None
        with self.raise_on_all_ranks():
            if self.rank == 0:
                with self.timeline.span("compute"):
                    result = work()
        return self.broadcast(result)

    # Library and abort

    def library(self) -> str:
        return " ".join(self._mpi.Get_library_version().split("\n")[0].rstrip("\0").split())

    def abort(self, code: int) -> None:
        """Ends all ranks at once."""
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.5)  # for the launcher to pass on what was said: it drops what it has not read when the job ends
        self.communicator.Abort(code)

"""The communicator: collectives on buffers, agreement on errors, abort. Only this module imports mpi4py.

Every collective is a nonblocking MPI operation that is polled with growing sleeps: an idle rank does not spin and takes no core from a
rank that computes. Data travel as buffers, never as pickles.
"""

import json
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ddcnn.errors import InputError, Stopped
from ddcnn.parallel.heartbeat import beat, waiting
from ddcnn.parallel.launcher import launched_size, size_variable
from ddcnn.parallel.messages import CHUNK_BYTES, Several, Tag, pieces_of
from ddcnn.parallel.timeline import Timeline

LONGEST_SLEEP = {"wait": 0.005, "communicate": 1e-4}  # seconds between two polls of a pending operation
STEP_SLEEP = 2e-4  # the same in a training step, where all ranks arrive at about the same time


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

    spins = 0.0  # seconds of a wait before this process first sleeps, for which 10 µs take 90

    def __init__(self, communicator=None, timeline: Timeline | None = None):
        try:
            with warnings.catch_warnings():  # mpi4py warns of a launcher of another MPI; below it is an error
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
                f"use the launcher that belongs to this MPI ({self.library()}); with srun, try --mpi=pmi2 or --mpi=pmix; without a "
                f"launcher, unset {size_variable()}",
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
        """Polls a nonblocking operation until it is complete; records the time as ``kind``."""
        longest = longest or LONGEST_SLEEP[kind]
        with self.timeline.span(kind):
            waiting()
            begin = time.perf_counter()
            while not request.Test():  # MPI makes progress only in here: poll often at first
                if (passed := time.perf_counter() - begin) >= self.spins:
                    time.sleep(min(1e-5 + passed / 8, longest))
                    meanwhile()
            beat()

    def barrier(self) -> None:
        """``MPI_Barrier``."""
        self._wait(self.communicator.Ibarrier())

    def gather(self, part: np.ndarray, chunk_bytes: int = CHUNK_BYTES) -> np.ndarray | None:
        """``MPI_Gather`` to rank 0 in chunks: ``part`` (...) of equal shape and type on all ranks -> (size, ...) on rank 0.

        The chunks of all ranks have at most ``chunk_bytes`` bytes together: counts stay below 2³¹, and the extra memory is bounded.
        """
        self.barrier()
        part = np.ascontiguousarray(part)
        flat = part.reshape(-1)
        gathered = np.empty((self.size, *part.shape), dtype=part.dtype) if self.rank == 0 else None
        step = max(1, chunk_bytes // (self.size * part.itemsize))
        for begin in range(0, flat.size, step):
            piece = flat[begin : begin + step]
            arriving = np.empty((self.size, piece.size), dtype=part.dtype) if self.rank == 0 else None
            self._wait(self.communicator.Igather(piece, arriving, root=0), "communicate")
            self.timeline.count(piece.nbytes if self.rank else 0)
            if gathered is not None:
                gathered.reshape(self.size, -1)[:, begin : begin + piece.size] = arriving
        return gathered

    def all_gather(self, part: np.ndarray) -> np.ndarray:
        """``MPI_Allgather`` within a step of training: ``part`` (...) of equal shape and type on all ranks -> (size, ...) on all."""
        gathered = np.empty((self.size, *part.shape), dtype=part.dtype)
        self._wait(self.communicator.Ibarrier(), longest=STEP_SLEEP)  # so that waiting for slower ranks is not counted as communicating
        self._wait(self.communicator.Iallgather(np.ascontiguousarray(part), gathered), "communicate")
        self.timeline.count((self.size - 1) * part.nbytes)
        return gathered

    def all_to_all(self, parts: np.ndarray) -> np.ndarray:
        """``MPI_Alltoall`` within a step of training: ``parts`` (size, ...), one for each rank -> those that all ranks have for it."""
        parts = np.ascontiguousarray(parts)
        arrived = np.empty_like(parts)
        self._wait(self.communicator.Ibarrier(), longest=STEP_SLEEP)
        self._wait(self.communicator.Ialltoall(parts, arrived), "communicate")
        self.timeline.count(parts.nbytes - parts.nbytes // self.size)
        return arrived

    def swap(
        self, parts: Mapping[int, np.ndarray], shapes: Mapping[int, tuple[int, ...]], dtype: np.dtype
    ) -> Callable[[], dict[int, np.ndarray]]:
        """Begins messages between neighbours in a step: to each rank its part, from each one of this shape. What is returned waits.

        Waiting for a slower neighbour cannot be told from communicating here; it counts as communicating.
        """
        arrived = {rank: np.empty(shape, dtype) for rank, shape in shapes.items()}
        requests = [self.communicator.Irecv(piece, rank, Tag.HALO) for rank, one in arrived.items() for piece in pieces_of(one)]
        requests += [self.communicator.Isend(piece, rank, Tag.HALO) for rank, one in parts.items() for piece in pieces_of(one)]
        self.timeline.count(sum(one.nbytes for one in parts.values()))

        def finish() -> dict[int, np.ndarray]:
            if requests:
                self._wait(Several(self._mpi.Request, requests), "communicate")
            return arrived

        return finish

    def broadcast_(self, array: np.ndarray) -> None:
        """``MPI_Bcast`` of rank 0's ``array`` (...) into those of the other ranks, in place and in chunks."""
        if not array.flags.c_contiguous:
            raise ValueError("only a contiguous array can be filled in place")
        self.barrier()
        for piece in pieces_of(array):
            self._wait(self.communicator.Ibcast(piece, root=0), "communicate")
        self.timeline.count(0 if self.rank else (self.size - 1) * array.nbytes)

    def mean(self, numbers: Sequence[float]) -> list[float]:
        """Mean over the ranks of each number, on all ranks."""
        result = np.empty(len(numbers))
        self._wait(self.communicator.Iallreduce(np.array(numbers, dtype=np.float64), result))
        return (result / self.size).tolist()

    def gather_rows(self, rows: np.ndarray) -> list[np.ndarray] | None:
        """Gathers float64 arrays (rows, columns) with different numbers of rows: a list over the ranks on rank 0."""
        longest = self.largest(len(rows))
        padded = np.full((longest, rows.shape[1]), np.nan)
        padded[: len(rows)] = rows
        gathered = self.gather(padded)
        return None if gathered is None else [part[~np.isnan(part).all(axis=1)] for part in gathered]

    def gather_values(self, value) -> list | None:
        """Gathers JSON-serialisable values: a list over the ranks on rank 0."""
        text = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
        padded = np.full(self.largest(text.size), ord(" "), dtype=np.uint8)
        padded[: text.size] = text
        gathered = self.gather(padded)
        return None if gathered is None else [json.loads(row.tobytes()) for row in gathered]

    def largest(self, number: int) -> int:
        """Maximum over the ranks, on all ranks."""
        return self.largest_of([number])[0]

    def largest_of(self, numbers: Sequence[int]) -> list[int]:
        """Maximum over the ranks of each number, on all ranks."""
        result = np.empty(len(numbers), dtype=np.int64)
        self._wait(self.communicator.Iallreduce(np.array(numbers, dtype=np.int64), result, op=self._mpi.MAX))
        return result.tolist()

    def all_equal(self, data: bytes) -> bool:
        """Whether the data are the same on all ranks."""
        checksum = zlib.crc32(data)
        return self.largest(checksum) == -self.largest(-checksum)

    def broadcast(self, value, root: int = 0):
        """A JSON-serialisable value from ``root`` to all ranks."""
        data = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8) if self.rank == root else np.empty(0, dtype=np.uint8)
        size = np.array([data.size], dtype=np.int64)
        self._wait(self.communicator.Ibcast(size, root=root))
        buffer = data.copy() if self.rank == root else np.empty(int(size[0]), dtype=np.uint8)
        for piece in pieces_of(buffer):
            self._wait(self.communicator.Ibcast(piece, root=root))
        return json.loads(buffer.tobytes())

    # Agreeing on errors

    @contextmanager
    def cancel_together(self, work: Tag, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Callable[[], bool]]:
        """Context of long work without communication, on all ranks: if one rank fails or stops, the others may stop early.

        Args:
            work: the tag of its messages; all of them are received before the context ends.
            should_stop: whether this rank has been asked to stop; asked while it waits for the others, to tell them.

        Yields:
            whether another rank has failed or stopped.

        Raises:
            InputError: on the ranks that raised one; at once if it ends the job.
            Stopped: on all ranks, if one of them has stopped.
        """
        error: InputError | Stopped | None = None
        sent: list[Any] = []

        def tell() -> None:
            if not sent:
                others = set(range(self.size)) - {self.rank}
                sent.extend(self.communicator.Isend(np.empty(0, dtype=np.uint8), rank, work) for rank in others)

        try:
            yield lambda: self.communicator.Iprobe(tag=work)
        except (InputError, Stopped) as refusal:
            if getattr(refusal, "ends_job", False):
                raise
            error = refusal
            tell()
        self._wait(self.communicator.Ibarrier(), meanwhile=lambda: tell() if should_stop() else None)
        shares = self.mean([bool(sent), isinstance(error, InputError), isinstance(error, Stopped)])
        telling, refusing, stopping = (round(self.size * share) for share in shares)
        for _ in range(telling - bool(sent)):
            self.communicator.Recv(np.empty(0, dtype=np.uint8), tag=work)
        self._mpi.Request.Waitall(sent)
        if isinstance(error, InputError):
            raise error
        if stopping and not refusing:  # after an InputError, the others have stopped because of it
            raise error or Stopped

    @contextmanager
    def ending_job(self) -> Iterator[None]:
        """Context of work with communication: an InputError of this rank alone ends the job, since the others wait for it."""
        try:
            yield
        except InputError as error:
            error.ends_job = self.size > 1 and not error.agreed
            raise

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Context of work without communication: the InputError of the lowest rank that raised one is raised on all ranks."""
        error = None
        try:
            yield
        except InputError as refusal:
            if refusal.ends_job:
                raise
            error = refusal
        first = self.size - self.largest(self.size - self.rank if error else 0)
        if first < self.size:
            raise InputError(self.broadcast(str(error), root=first), agreed=True)

    def on_root(self, work: Callable):
        """Runs ``work`` on rank 0; all ranks get its JSON-serialisable result, or its InputError."""
        result = None
        with self.raise_on_all_ranks():
            if self.rank == 0:
                with self.timeline.span("compute"):
                    result = work()
        return self.broadcast(result)

    # Library and abort

    def library(self) -> str:
        """Name and version of the MPI library."""
        return " ".join(self._mpi.Get_library_version().split("\n")[0].rstrip("\0").split())

    def abort(self, code: int) -> None:
        """Ends all ranks at once."""
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.5)  # the launcher drops output that it has not read when the job ends
        self.communicator.Abort(code)

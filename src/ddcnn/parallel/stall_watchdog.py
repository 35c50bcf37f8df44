"""Aborts the job if a rank has stalled, whatever the others wait in: MPI, DistributedDataParallel, a file.

The main thread only counts its steps (``heartbeat.beat``). A second thread of every rank writes that count to a file, in a folder that
all ranks see, and reads the file of the next rank: if it does not change, that process has stopped. A rank may wait as long as it likes
while others go on. Each rank measures time by its own clock, so clocks of different hosts are never compared, and a job that is suspended
and resumed as a whole goes on.
"""

import faulthandler
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ddcnn.parallel.heartbeat import HEARTBEAT, WAITING, WORKING
from ddcnn.parallel.world import World

LONGEST_PERIOD = 30.0  # seconds between two looks at most: a longer period would be late, a shorter one a burden for a file server
LOOKS = 10  # within the limit after which a rank counts as stalled
LENGTH = 256  # bytes of a rank's file, which is overwritten in place
LEFT_BEHIND = 3600.0  # seconds without a change after which a folder counts as left behind by a killed job
MOST_NAMED = 8
PREFIX = ".ddcnn-ranks-"
logger = logging.getLogger(__name__)


@contextmanager
def watched(world: World, folders: Sequence[Path], limit: float) -> Iterator[None]:
    """Within: the job is aborted if a rank shows no heartbeat for ``limit`` seconds (0: never); all ranks together.

    Args:
        folders: seen by all ranks; the first one is used that, or whose nearest existing parent, can be written into.
    """
    made = (name for folder in folders if limit for name in [_make_shared_folder(folder)] if name)
    shared = world.broadcast(next(made, "") if world.rank == 0 else None)
    if not shared:
        yield
        return
    watchdog = _Watchdog(world, Path(shared), limit)
    watchdog.write(quiet=0.0)
    world.barrier()  # from here on, a rank without a file could not write one, or has ended
    watchdog.start()
    try:
        yield
        world.barrier()
    finally:
        watchdog.stopping.set()
        watchdog.join(timeout=5)  # it may hang in the file system
        shutil.rmtree(shared, ignore_errors=True)  # by every rank after its last writing, so that nothing is left


class _Watchdog(threading.Thread):
    """The thread of one rank, which writes its file and reads the next rank's."""

    def __init__(self, world: World, folder: Path, limit: float):
        super().__init__(name="stall watchdog", daemon=True)
        self.world, self.folder, self.limit = world, folder, limit
        self.period = min(limit / LOOKS, LONGEST_PERIOD)
        self.looks, self.stopping = 0, threading.Event()

    def run(self) -> None:
        next_rank = (self.world.rank + 1) % self.world.size
        beats, content = _beats(), self._read(next_rank)
        own_quiet = next_quiet = suspected = 0.0
        last = time.monotonic()
        while not self.stopping.wait(self.period):
            now = time.monotonic()
            passed, last = min(now - last, 2 * self.period), now  # without the hours in which this process itself was suspended
            own_quiet = own_quiet + passed if _beats() == beats else 0.0
            beats = _beats()
            self.write(own_quiet)
            previous, content = content, self._read(next_rank)
            next_quiet = next_quiet + passed if content and content == previous and next_rank != self.world.rank else 0.0
            must_beat = HEARTBEAT.state == WORKING or (HEARTBEAT.state == WAITING and self.world.rank == 0)
            suspected = suspected + passed if next_quiet or (own_quiet and must_beat) else 0.0
            if suspected >= self.limit and (next_quiet >= self.limit or own_quiet >= self.limit):
                self._confirm(own_quiet)
                suspected = 0.0  # they go on, or wait for one that works: look again after the same time
                last = time.monotonic()

    def _confirm(self, quiet: float) -> None:
        """Looks at all ranks twice, and aborts if some have stopped, or do not go on, or wait for each other."""
        ranks = range(self.world.size)
        first, beats = [self._read(rank) for rank in ranks], _beats()
        for _ in range(3):
            if self.stopping.wait(self.period):
                return
            self.write(quiet if _beats() == beats else 0.0)
        second = [self._read(rank) for rank in ranks]
        states = {rank: _parse(content) for rank, content in enumerate(second) if content}
        stopped = [rank for rank in ranks if second[rank] and second[rank] == first[rank] and rank != self.world.rank]
        stuck, waiting = (
            [rank for rank, (quiet, state, _) in states.items() if state == kind and quiet >= self.limit] for kind in (WORKING, WAITING)
        )
        if stopped or stuck:  # a rank that has stopped is the cause why others are stuck
            names = [f"rank {rank} of {len(ranks)}{states[rank][2]}" for rank in stopped or stuck]
            self._abort(f"no sign of life for {self.limit:g} s from {_listed(names)}")
        elif len(waiting) == len(ranks) > 1:
            names = [f"rank {rank}{states[rank][2]}" for rank in waiting]
            self._abort(f"all {len(ranks)} ranks have waited for each other for {self.limit:g} s: {_listed(names)}")

    def _abort(self, what: str) -> None:
        """Ends all ranks; the first one to come here says why."""
        with open(os.devnull, "wb") as nowhere:
            faulthandler.dump_traceback_later(20, exit=True, file=nowhere)  # if anything below hangs
            try:
                os.close(os.open(self.folder / "ended", os.O_CREAT | os.O_EXCL))
            except (FileExistsError, FileNotFoundError):
                time.sleep(60)  # the rank that says why ends this one too
            except OSError:
                pass
            logger.critical("%s; ending all ranks. --stall-timeout sets the limit", what)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.world.abort(1)

    def write(self, quiet: float) -> None:
        """Writes the rank's file: what it does, and for how many seconds it has not shown a heartbeat."""
        self.looks += 1
        text = HEARTBEAT.text().encode("ascii", "replace").decode()[:120]
        content = json.dumps([self.looks, quiet, HEARTBEAT.state, text]).ljust(LENGTH).encode()
        path = self._path(self.world.rank)
        try:  # closing it sends the content to the file server
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, content, 0)
            finally:
                os.close(descriptor)
        except OSError:
            with suppress(OSError):
                path.unlink()  # a rank without a file is not judged: a full disk is no stall

    def _read(self, rank: int) -> bytes:
        """Content of a rank's file, empty without one."""
        try:
            return self._path(rank).read_bytes()
        except OSError:
            return b""

    def _path(self, rank: int) -> Path:
        return self.folder / f"{rank:05d}"


def _beats() -> tuple[int, int]:
    """Heartbeats of this rank, and its imported modules: importing torch may take long."""
    return HEARTBEAT.steps, len(sys.modules)


def _make_shared_folder(folder: Path) -> str:
    """Makes a new folder in the nearest existing parent ("" if that cannot be), and removes those that killed jobs have left there."""
    nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    try:
        shared = Path(tempfile.mkdtemp(prefix=PREFIX, dir=nearest))
        now = shared.stat().st_mtime  # by the file server's clock
    except OSError:
        return ""
    for left in nearest.glob(f"{PREFIX}*"):
        with suppress(OSError):  # of another user, or just being removed
            newest = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if not left.is_symlink() and now - newest > LEFT_BEHIND:
                shutil.rmtree(left, ignore_errors=True)
    return str(shared)


def _parse(content: bytes) -> tuple[float, str, str]:
    """For how many seconds a rank has been quiet, its state, and what it has done last, in parentheses."""
    try:
        _, quiet, state, text = json.loads(content)
        return float(quiet), state, f" (last: {text})" if text else ""
    except (ValueError, TypeError):  # while it is being written
        return 0.0, "", ""


def _listed(names: list[str]) -> str:
    more = [f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    return ", ".join([*names[:MOST_NAMED], *more])

"""No rank waits forever for one that has stopped, whatever it waits in.

The main thread only counts its steps (``beat``). A thread of every rank keeps a file of that in a folder that all ranks see, and looks
at the file of the next rank: one that stays as it is belongs to a process that has stopped. As the watching is not done by who waits, it
does not matter what a rank waits in (MPI, DistributedDataParallel, a file), nor for how long, as long as the others go on. Time is what
the watching rank counts: clocks of different hosts are never compared, and a job that is suspended and resumed as a whole goes on.
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
from typing import Any

from ddcnn.parallel.heartbeat import HEARTBEAT, WAITING, WORKING
from ddcnn.parallel.world import World

LONGEST_PERIOD = 30.0  # seconds between two looks at most; more would be late, fewer a burden for a file server
LOOKS = 10  # in the time after which a rank counts as stalled
LENGTH = 256  # of a rank's file, which is overwritten in place
LEFT_BEHIND = 3600.0  # seconds after which a folder in which nobody writes is one of a killed job
MOST_NAMED = 8
PREFIX = ".ddcnn-ranks-"
logger = logging.getLogger(__name__)


@contextmanager
def watched(world: World, folders: Sequence[Path], limit: float) -> Iterator[None]:
    """All ranks: while they are in here, a rank that has shown no sign of life for ``limit`` seconds ends the job; 0 for never.

    Args:
        folders: all ranks see them; the first one that can be written into is taken, or the one that it will be in.
    """
    places = (place for folder in folders if limit for place in [_meeting_place(folder)] if place)
    meeting = world.broadcast(next(places, "") if world.rank == 0 else None)
    if not meeting:
        yield
        return
    watch = _Watch(world, Path(meeting), limit)
    watch.write(0.0)
    world.barrier()  # from here on, who has no file could not write one, or has ended
    watch.start()
    try:
        yield
        world.barrier()
    finally:
        watch.stop()
        shutil.rmtree(meeting, ignore_errors=True)  # by every rank, once it writes no more: the last one leaves nothing


class _Watch(threading.Thread):
    """Of one rank: writes its own file, and looks at the next rank's."""

    def __init__(self, world: World, folder: Path, limit: float):
        super().__init__(name="watch", daemon=True)
        self.world, self.folder, self.limit = world, folder, limit
        self.period = min(limit / LOOKS, LONGEST_PERIOD)
        self.looks, self.stopping = 0, threading.Event()

    def stop(self) -> None:
        self.stopping.set()
        self.join(timeout=5)  # it may hang in a file system that does

    def run(self) -> None:
        next_rank = (self.world.rank + 1) % self.world.size
        signs, content = _signs(), self._read(next_rank)
        own_quiet = next_quiet = suspected = 0.0
        last = time.monotonic()
        while not self.stopping.wait(self.period):
            now = time.monotonic()
            passed, last = min(now - last, 2 * self.period), now  # not the hours in which this process itself was stopped
            own_quiet = own_quiet + passed if _signs() == signs else 0.0
            signs = _signs()
            self.write(own_quiet)
            found = self._read(next_rank)
            next_quiet = next_quiet + passed if found and found == content and next_rank != self.world.rank else 0.0
            content = found
            mute = HEARTBEAT.state == WORKING or (HEARTBEAT.state == WAITING and self.world.rank == 0)
            suspected = suspected + passed if next_quiet or (own_quiet and mute) else 0.0
            if suspected >= self.limit and (next_quiet >= self.limit or own_quiet >= self.limit):
                self._confirm(own_quiet)
                suspected = 0.0  # they have come back, or wait for one that works: look again when as much time has passed
                last = time.monotonic()

    def _confirm(self, quiet: float) -> None:
        """Looks at all ranks twice: ends the job if some have stopped, or are stuck, or wait for each other."""
        ranks = range(self.world.size)
        first, signs = [self._read(rank) for rank in ranks], _signs()
        for _ in range(3):
            if self.stopping.wait(self.period):
                return
            self.write(quiet if _signs() == signs else 0.0)
        second = [self._read(rank) for rank in ranks]
        told = {rank: _parse(content) for rank, content in enumerate(second) if content}
        own = self.world.rank
        stopped = [rank for rank in ranks if second[rank] and second[rank] == first[rank] and rank != own]
        stuck = [rank for rank, (_, quiet, state, _) in told.items() if state == WORKING and quiet >= self.limit]
        waiting = [rank for rank, (_, quiet, state, _) in told.items() if state == WAITING and quiet >= self.limit]
        if stopped or stuck:  # who has stopped is the cause why others are stuck
            names = [f"rank {rank} of {len(ranks)}{_last(told[rank][3])}" for rank in stopped or stuck]
            self._end(f"no sign of life for {self.limit:g} s from {_listed(names)}")
        elif len(waiting) == len(ranks) > 1:
            names = [f"rank {rank}{_last(told[rank][3])}" for rank in waiting]
            self._end(f"all {len(ranks)} ranks have waited for each other for {self.limit:g} s: {_listed(names)}")

    def _end(self, what: str) -> None:
        """Ends all ranks; the first one that comes here says why."""
        with open(os.devnull, "w") as nowhere:
            faulthandler.dump_traceback_later(20, exit=True, file=nowhere)  # whatever hangs in what follows
            try:
                os.close(os.open(self.folder / "ended", os.O_CREAT | os.O_EXCL))
            except (FileExistsError, FileNotFoundError):
                time.sleep(60)  # for the one that speaks to end this one too
            except OSError:
                pass
            logger.critical("%s; ending all ranks. --stall-timeout sets the limit", what)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.world.abort(1)

    def write(self, quiet: float) -> None:
        """The rank's file: what it does, and for how many seconds it has shown no sign of life."""
        self.looks += 1
        text = HEARTBEAT.text().encode("ascii", "replace").decode()[:120]
        content = json.dumps([self.looks, quiet, HEARTBEAT.state, text]).ljust(LENGTH).encode()
        path = self._path(self.world.rank)
        try:  # opened anew each time: closing sends it to the file server
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, content, 0)
            finally:
                os.close(descriptor)
        except OSError:
            with suppress(OSError):
                path.unlink()  # who has no file is not judged: a full disk is no stall

    def _read(self, rank: int) -> bytes:
        """A rank's file, empty if there is none."""
        try:
            return self._path(rank).read_bytes()
        except OSError:
            return b""

    def _path(self, rank: int) -> Path:
        return self.folder / f"{rank:05d}"


def _signs() -> tuple[int, int]:
    """Of this rank's life; importing torch is one, too, and may take its time."""
    return HEARTBEAT.steps, len(sys.modules)


def _meeting_place(folder: Path) -> str:
    """A new folder in the nearest folder that there is, "" if nobody may write there; what killed jobs have left goes."""
    nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    try:
        meeting = Path(tempfile.mkdtemp(prefix=PREFIX, dir=nearest))
        now = meeting.stat().st_mtime  # by the file server's clock
    except OSError:
        return ""
    for left in nearest.glob(f"{PREFIX}*"):
        with suppress(OSError):  # of others', or just being removed
            newest = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if not left.is_symlink() and now - newest > LEFT_BEHIND:
                shutil.rmtree(left, ignore_errors=True)
    return str(meeting)


def _parse(content: bytes) -> tuple[int, float, str, str]:
    found: Any = None
    with suppress(ValueError):
        found = json.loads(content)
    looks, quiet, state, text = found if isinstance(found, list) and len(found) == 4 else (0, 0.0, "", "")
    return int(looks), float(quiet), str(state), str(text)


def _last(text: str) -> str:
    return f" (last: {text})" if text else ""


def _listed(names: list[str]) -> str:
    more = [f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    return ", ".join([*names[:MOST_NAMED], *more])

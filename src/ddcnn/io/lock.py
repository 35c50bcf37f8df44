"""One job at a time in a folder: a second one is refused and learns who holds it; the lock of a job that has ended is taken over.

FOLDER/.lock names its holder: host, process and SLURM job. While it is read and written, a folder beside it keeps others out: nothing else
gets the name of a folder that is not empty. The holder also keeps the kernel's flock, which tells of a live process that cannot be seen
from here, as in another container. The package filelock is no substitute: it cannot name the holder of its flock, which some parallel
file systems do not have or keep within one host, and its soft lock cannot tell that a holder on another host has ended; SLURM can.
"""

import errno
import fcntl
import os
import re
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

from ddcnn.errors import InputError
from ddcnn.io.atomic import disk_errors

NAME = ".lock"
MOST_BYTES = 4096  # read of the file, whoever wrote it
HIDDEN = -1  # start of a process of another user where /proc shows only one's own
PATIENCE = 5.0  # seconds for what another process does in an instant
BEAT = 3.0  # seconds between two signs of life of a holder
ABANDONED = 60.0  # seconds after which that process has been killed


class Holder(BaseModel):
    """A process that holds a folder."""

    model_config = ConfigDict(strict=True, frozen=True)

    host: str
    pid: int = Field(gt=0, lt=2**31)
    started: int  # in clock ticks since the boot, which tell it from a later process of the same number
    job: str  # of SLURM, empty without it; a requeued job keeps its number and counts ``restarts``
    restarts: int

    @classmethod
    def this_process(cls) -> "Holder":
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            host=socket.gethostname(), pid=os.getpid(), started=_started(os.getpid()) or 0,
            job=os.environ.get("SLURM_JOB_ID", ""), restarts=int(restarts) if restarts.isdigit() else 0,
        )  # fmt: skip

    def is_running(self) -> bool | None:
        """Whether the process exists; None if that cannot be known from here."""
        this = Holder.this_process()
        if self.host == this.host:
            return _started(self.pid) in (self.started, HIDDEN)
        if self.job and self.job == this.job and self.restarts < this.restarts:
            return False  # this very job, before it was requeued
        return _job_is_running(self.job)

    def __str__(self) -> str:
        host = "".join(letter for letter in self.host if letter.isprintable())[:100]
        job = f", SLURM job {self.job}" if re.fullmatch(r"[\w-]{1,40}", self.job) else ""
        return f"process {self.pid} on {host}{job}"


@contextmanager
def locked(folder: Path, named: Path | None = None) -> Iterator[None]:
    """Holds an existing folder for this process, on rank 0; InputError if another job holds or may hold it, or .lock is no plain file.

    ``named`` is what cannot be written if .lock cannot.
    """
    path = folder / NAME
    file = None
    while file is None:  # another job may come and go meanwhile
        with disk_errors(named or path):
            holder = _holder(path)
            running = holder.is_running() if holder else False  # SLURM takes its time to answer, so nobody is kept out meanwhile
            with alone(folder):
                file = _take(path, holder, running)
    try:
        with file, _living(file):
            yield
    finally:
        with suppress(OSError, InputError), alone(folder):  # the folder may be gone
            if _holder(path) == Holder.this_process():
                path.unlink()


@contextmanager
def _living(file: IO) -> Iterator[None]:
    """Renews the time of the file as a sign of life, for those who look from other hosts or containers."""
    ended = threading.Event()

    def live() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not ended.wait(BEAT):
            with suppress(OSError):
                os.utime(file.fileno())

    thread = threading.Thread(target=live, name="sign of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(PATIENCE)  # it may hang in the file system


def look(folder: Path) -> tuple[Holder | None, float]:
    """For programs that only look: who holds the folder, and when it last showed a sign of life (0 if nobody does)."""
    try:
        return _holder(folder / NAME), (folder / NAME).stat().st_mtime
    except (OSError, InputError):
        return None, 0.0


def _take(path: Path, expected: Holder | None, running: bool | None) -> IO[str] | None:
    """The new lock, open; None if its holder is no longer the ``expected`` one, of which it is known whether it is ``running``."""
    if _holder(path) != expected:
        return None
    if os.path.lexists(path):
        _refuse(path, expected, running)
        path.unlink()
    file = path.open("x", encoding="utf-8")
    try:
        file.write(Holder.this_process().model_dump_json())
        file.flush()
    except OSError:
        path.unlink()
        with suppress(OSError):
            file.close()
        raise
    _flock(file)
    return file


def _refuse(path: Path, holder: Holder | None, running: bool | None) -> None:
    """Raises InputError unless the job of a lock has ended."""
    with path.open("rb") as old:
        running = running if _flock(old) else True
    if running is not False:
        remedy = "wait until it has ended" if running else f"if that has ended, delete {path}"
        raise InputError(f"{path.parent} is in use by {holder or 'another process'}: {remedy}, or name another folder")


def check_free(folder: Path) -> None:
    """Refuses as ``locked`` a folder that another job holds or may hold, but takes and writes nothing."""
    path = folder / NAME
    with disk_errors(path), suppress(FileNotFoundError):  # there is none, or its job has just ended
        holder = _holder(path)
        _refuse(path, holder, holder.is_running() if holder else False)


def _flock(file: IO) -> bool:
    """Takes the kernel's lock, if the file system has one; False if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _holder(path: Path) -> Holder | None:
    """Who has written the file; None if there is none, or its content is not that of a lock."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise InputError(f"{path} is a link or no file: delete it, or name another folder")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return Holder.model_validate_json(file.read(MOST_BYTES))
    except (ValueError, FileNotFoundError):
        return None


@contextmanager
def alone(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """One process at a time, on all hosts, for what takes an instant; InputError if another one takes longer than ``patience`` seconds."""
    guard, until = folder / f"{NAME}.taking", time.monotonic() + patience
    thread = threading.get_native_id()  # the kernel lists a thread as it does a process
    this = f"{socket.gethostname()}.{thread}.{_started(thread)}"
    own = guard.with_name(f"{guard.name}.{this}")  # becomes the guard with the mark in it, so that nobody is killed between the two
    try:
        own.mkdir(exist_ok=True)
        (own / this).touch()
        while True:
            os.utime(own)
            try:
                own.rename(guard)  # also in place of an empty one, which is nobody's
                break
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
            _clear(folder)
            if time.monotonic() > until:
                raise InputError(f"{guard} is in the way: if no job is just starting in that folder, delete it")
            time.sleep(0.02)
        yield
    finally:
        for place in (own, guard):
            with suppress(OSError):  # it is not there, or by now another one's
                (place / this).unlink()
            with suppress(OSError):
                place.rmdir()


def _clear(folder: Path) -> None:
    """Removes what killed processes have left: those of this host that are no more, and any that has been the guard for long."""
    for guard in folder.glob(f"{NAME}.taking*"):
        with suppress(OSError, ValueError):
            old = guard.name == f"{NAME}.taking" and time.time() - guard.stat().st_mtime > ABANDONED
            for mark in guard.iterdir():
                host, pid, started = mark.name.rsplit(".", 2)
                if old or (host == socket.gethostname() and _started(int(pid)) not in (int(started), HIDDEN)):
                    mark.unlink()  # of several processes that find it, one succeeds
                    guard.rmdir()


def _started(pid: int) -> int | None:
    """When a process of this host has started, None if there is none."""
    try:
        os.kill(pid, 0)
        hidden = None
    except OSError as error:
        hidden = HIDDEN if error.errno == errno.EPERM else None
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state[0] in (b"Z", b"X") else int(state[19])  # Z: dead, but its parent has not asked for its exit code
    except (OSError, ValueError, IndexError):
        return hidden


def _job_is_running(job: str) -> bool | None:
    """Whether a SLURM job is waiting or running; None if SLURM does not answer."""
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
        return None
    try:
        answer = subprocess.run(
            ["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, encoding="utf-8", errors="replace", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode == 0:
        return bool(answer.stdout.strip())
    return False if "Invalid job id" in answer.stderr else None

"""One job at a time in a folder: a second one is refused, and what a dead one has left is taken over.

The kernel's lock on FOLDER/.lock is released with its process, but may be known on one host only, or not at all; so the file also says
who holds it.
"""

import errno
import fcntl
import json
import os
import re
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ddcnn.errors import InputError
from ddcnn.io.atomic import disk_errors

NAME = ".lock"
UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
LONGEST = 4096  # bytes that are read of the file, whoever wrote it
PATIENCE = 5.0  # seconds for what another process does in an instant


@dataclass(frozen=True)
class Holder:
    """A process that has taken a folder.

    Attributes:
        started: clock ticks since the boot, by which a process is told from a later one of the same number.
        job: of SLURM, empty without it; a job that is requeued keeps its number, ``restarts`` tells it from itself.
    """

    host: str
    pid: int
    started: int
    job: str
    restarts: int

    @classmethod
    def own(cls) -> "Holder":
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")
        job = os.environ.get("SLURM_JOB_ID", "")
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()) or 0, job, int(restarts) if restarts.isdigit() else 0)

    @classmethod
    def read(cls, descriptor: int) -> "Holder | None":
        """What the file says, or None if it says nothing that a job has written."""
        with suppress(ValueError, RecursionError):
            found = json.loads(os.pread(descriptor, LONGEST, 0))
            if isinstance(found, dict) and all(type(found.get(field.name)) is field.type for field in fields(cls)):
                return cls(**{field.name: found[field.name] for field in fields(cls)})
        return None

    def write(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(self)).encode(), 0)

    @property
    def runs(self) -> bool | None:
        """Whether it is still there; None if that cannot be told from here."""
        own = Holder.own()
        if self.host == own.host:
            return _started(self.pid) == self.started
        if self.job and self.job == own.job and self.restarts < own.restarts:
            return False  # this very job, before it was requeued
        return _job_runs(self.job)

    def __str__(self) -> str:
        host = "".join(letter for letter in self.host if letter.isprintable())[:100]
        job = f", SLURM job {self.job}" if re.fullmatch(r"[\w-]{1,40}", self.job) else ""
        return f"process {self.pid} on {host}{job}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds ``folder``, which must be there, for this process; for rank 0 alone.

    Raises:
        InputError: another job holds it, or may hold it, or its file is not one that can be a lock.
    """
    path = folder / NAME
    with disk_errors(path):
        descriptor = _take(path)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            _release(path, descriptor)
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a job holds ``folder``, for those that only look; one on another host does as long as its file is there."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        holder = Holder.read(descriptor)
    finally:
        os.close(descriptor)
    return holder is None or holder.host != Holder.own().host or bool(holder.runs)


def _take(path: Path) -> int:
    while True:
        descriptor = _open(path)
        try:
            if _taken(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another job has ended and removed this file meanwhile


def _taken(path: Path, descriptor: int) -> bool:
    """Whether the file is this process's now; not if it has been removed before that.

    Raises:
        InputError: it is another's.
    """
    alone = _flock(path, descriptor)
    if alone is not None:
        return _written(path, descriptor, alone)
    with _guard(path):
        return _written(path, descriptor, False)


def _written(path: Path, descriptor: int, alone: bool) -> bool:
    if not _same(path, descriptor):
        return False
    holder, own = Holder.read(descriptor), Holder.own()
    if holder and not (alone and holder.host == own.host) and holder.runs is not False:  # on one host the kernel's lock tells
        raise _refused(path, holder, certain=bool(holder.runs))
    own.write(descriptor)
    return True


def _release(path: Path, descriptor: int) -> None:
    """Removes the file before the kernel's lock goes: whoever has opened it by then finds it gone, and begins anew."""
    if _flock(path, descriptor) is not None:
        if _same(path, descriptor):
            path.unlink()
        return
    with _guard(path):
        if _same(path, descriptor) and Holder.read(descriptor) == Holder.own():
            path.unlink()


def _open(path: Path) -> int:
    """The file, made if need be.

    Raises:
        InputError: something else has its name, or the file has another name too.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        raise _no_lock(path) from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise _no_lock(path)
    return descriptor


def _no_lock(path: Path) -> InputError:
    return InputError(f"{path} is a link or no file: delete it, or name another folder")


def _flock(path: Path, descriptor: int) -> bool | None:
    """Takes the kernel's lock: True, or None where the file system has none.

    Raises:
        InputError: another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        until = time.monotonic() + 0.5
        while (holder := Holder.read(descriptor)) is None and time.monotonic() < until:  # it is about to say who it is
            time.sleep(0.02)
        raise _refused(path, holder, certain=True) from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return None


def _refused(path: Path, holder: Holder | None, certain: bool) -> InputError:
    way_out = "wait until it has ended" if certain else f"if that has ended, delete {path}"
    return InputError(f"{path.parent} is in use by {holder or 'another process'}: {way_out}, or name another folder")


def _same(path: Path, descriptor: int) -> bool:
    """Whether the open file still is the one of that name."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    """Without the kernel's lock: one process at a time reads the file and writes it. A folder is made by one process only, anywhere."""
    guard, until = path.with_name(f"{NAME}.taking"), time.monotonic() + PATIENCE
    while True:
        try:
            guard.mkdir()
            break
        except FileExistsError:
            if time.monotonic() > until:
                raise InputError(f"{guard} is in the way: if no job is just starting in that folder, delete it") from None
            time.sleep(0.02)
    try:
        yield
    finally:
        guard.rmdir()


def _started(pid: int) -> int | None:
    """When a process of this host has started, None if there is none."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state[0] in (b"Z", b"X") else int(state[19])  # Z: dead, but not yet fetched by its parent
    except (OSError, ValueError, IndexError):
        return None


def _job_runs(job: str) -> bool | None:
    """Whether a SLURM job is waiting or running; None if SLURM cannot be asked."""
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
        return None
    try:
        asked = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode == 0:
        return bool(asked.stdout.strip())
    return False if "Invalid job id" in asked.stderr else None

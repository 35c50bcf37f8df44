"""Atomic writing: a file is written under a temporary name, synced and renamed, so it is complete or absent."""

import errno
import io
import json
import os
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ddcnn.errors import InputError

WAYS_OUT: dict[int | None, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), ": make room there (an unfinished run then goes on with --resume)"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), ": make its folder writable, or name another place"),
    **dict.fromkeys((errno.ENOTDIR, errno.ENOENT), ": name another place"),
}  # of errors of the file system
NAME_LETTERS = 50  # of a file's name in that of its temporary file, which may have 255 bytes


class Output(io.RawIOBase):
    """A file that is being written; who opens it also closes its descriptor.

    Attributes:
        path: what it is called in messages.
        error: the first error of writing, None if there was none; the file is then worthless.
        silent: go on after an error as if all were written, for a library that cannot cope with it; else it is raised as by ``check``.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path, self.descriptor, self.silent = path, descriptor, False
        self.error: BaseException | None = None
        self._position = 0

    def check(self) -> None:
        """Raises what has kept the file from being written, an InputError if it is an error of the file system."""
        if isinstance(self.error, OSError):
            raise not_written(self.path, self.error) from None
        if self.error:
            raise self.error

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # KeyboardInterrupt too
            self.error = self.error or error
            if not self.silent:
                self.check()

    def readable(self) -> bool:
        return True

    writable = seekable = readable

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = (0, self._position, os.fstat(self.descriptor).st_size)[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view, got = memoryview(buffer).cast("B"), 0
        with self._kept():
            while got < len(view) and (more := os.preadv(self.descriptor, [view[got:]], self._position + got)):
                got += more
        view[got:] = bytes(len(view) - got)  # HDF5 reads zeros behind the end
        self._position += got
        return got

    def write(self, data: Any, /) -> int:
        view, written = memoryview(data).cast("B"), 0
        with self._kept():
            while written < len(view) and not (self.silent and self.error):
                written += os.pwrite(self.descriptor, view[written:], self._position + written)
        self._position += len(view)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        size = self._position if size is None else size
        with self._kept():
            if not (self.silent and self.error):
                os.ftruncate(self.descriptor, size)
        return size


@contextmanager
def output(path: Path, named: Path | None = None, exists: bool = False) -> Iterator[Output]:
    """A new file, or one that ``exists``, open for writing, then synced; it is removed if anything is raised.

    Args:
        named: the file to name in messages instead.

    Raises:
        InputError: the file cannot be written; if the body raised something else because of that, in place of it.
    """
    named = named or path
    with disk_errors(named):
        if not exists:
            path.unlink(missing_ok=True)  # of a process that was killed
        file = Output(named, os.open(path, os.O_RDWR | os.O_CLOEXEC | (0 if exists else os.O_CREAT | os.O_EXCL), 0o666))
    try:
        try:
            yield file
        except InputError:  # of ``check``, perhaps agreed on by all ranks
            raise
        except Exception:
            file.check()
            raise
        file.check()
        with disk_errors(named):
            os.fsync(file.descriptor)
            descriptor, file.descriptor = file.descriptor, -1
            os.close(descriptor)  # network file systems tell of a quota here
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    finally:
        if file.descriptor >= 0:
            with suppress(OSError):
                os.close(file.descriptor)


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk, where the file system knows how to."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def put_in_place(temporary: Path, path: Path) -> None:
    """Gives a finished file its name."""
    os.replace(temporary, path)
    sync_folder(path.parent)


def temporary_name(path: Path, process: int | None = None) -> Path:
    """What a file is called while a process of this host, this one by default, writes it."""
    host = zlib.crc32(socket.gethostname().encode())
    return path.with_name(f".{path.name[:NAME_LETTERS]}.{host:010}{process or os.getpid():07}")


def _remove_abandoned(path: Path) -> None:
    """Removes the temporary files that killed processes of this host have left of a file."""
    start = temporary_name(path).name[:-7]
    with suppress(OSError):
        for entry in os.scandir(path.parent):
            process = entry.name.removeprefix(start)
            if process != entry.name and process.isdecimal() and len(process) == 7:
                try:
                    os.kill(int(process), 0)
                except ProcessLookupError:
                    os.unlink(entry.path)


@contextmanager
def replacing(path: Path) -> Iterator[Output]:
    """Yields a temporary file, which replaces ``path`` if nothing is raised; raises as ``output``."""
    _remove_abandoned(path)
    temporary = temporary_name(path)
    with output(temporary, named=path) as file:
        yield file
    try:
        with disk_errors(path):
            put_in_place(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8; what no UTF-8 can show, of a name in another encoding, is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def not_written(path: Path, error: Exception) -> InputError:
    number = error.errno if isinstance(error, OSError) else None  # h5py says more in strerror, of its own functions
    return InputError(f"{path}: cannot be written ({os.strerror(number) if number else error}){WAYS_OUT.get(number, '')}")


def nearest(path: Path) -> Path:
    """The path itself, or the closest folder above it that exists (or whatever is in its place)."""
    return next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))


def check_place(path: Path) -> None:
    """Raises InputError if no file or folder can be made there, as far as that is known without writing."""
    place = nearest(path)
    with disk_errors(path):
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "")
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, "")
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns errors of the file system into an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from None

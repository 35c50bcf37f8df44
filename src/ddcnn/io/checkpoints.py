"""Checkpoints of a training: a new folder for each, never overwritten; damaged or incomplete ones are ignored.

    FOLDER/0000012/
        rank-0000.h5 ...     the arrays that each rank has written
        manifest.json        size, SHA-256 and parts of each of these files; JSON values of the checkpoint

Every rank writes and syncs its file in a folder with a temporary name. Rank 0 writes and syncs the manifest, renames the folder and
syncs its parent: a folder with a number is complete. Each file is read once, and its SHA-256 is compared before it is parsed, as HDF5
or JSON: nothing is unpickled.
"""

import hashlib
import io
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import BaseModel, Field

from ddcnn.errors import InputError
from ddcnn.io.atomic import disk_errors, sync_folder
from ddcnn.io.hdf5 import Damaged, checked_array, names_in, parsing
from ddcnn.parallel.heartbeat import beat
from ddcnn.parallel.world import World

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 26  # bytes
PIECE = 1 << 26  # bytes written between two heartbeats
Arrays = dict[str, np.ndarray]

logger = logging.getLogger(__name__)


class Stored(dict[str, Any]):
    """Content of a checkpoint by name; a missing name raises ``Damaged``."""

    def __missing__(self, name: str) -> Any:
        raise Damaged(f"{name} is missing")


class _File(BaseModel):
    bytes: int
    sha256: str
    parts: list[str]


class _Manifest(BaseModel):
    identity: dict[str, Any]
    about: dict[str, Any]
    files: dict[str, _File] = Field(min_length=1)


@dataclass
class Checkpoint:
    """The share of a checkpoint that one rank saves or loads."""

    about: dict[str, Any]  # JSON values, the same on all ranks
    parts: dict[str, Arrays] = field(default_factory=dict)  # of the network: those that this rank saves, or that it has loaded
    of_rank: Arrays = field(default_factory=dict)  # of this rank alone; after a change of the number of ranks, of another one


class CheckpointManager:
    """Saves and loads the checkpoints of one training; all ranks of ``world`` together.

    Checkpoints of a run with another ``identity``, of JSON values, are refused. The ``keep`` newest ones are kept. A rank that ``leads``
    saves the local CNNs that it has in common with other ranks.
    """

    def __init__(self, world: World, folder: Path, identity: dict[str, Any], keep: int, leads: bool = True):
        self.world, self.folder, self.identity, self.keep, self.leads = world, folder, identity, keep, leads
        self._number = 0

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint; InputError if that fails, and then earlier checkpoints are untouched."""
        self._number += 1
        temporary, final = self.folder / f".{self._number:07}", self.folder / f"{self._number:07}"

        def prepare() -> None:
            self._refuse_links()
            with disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                sync_folder(self.folder.parent)
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()

        self.world.on_root(prepare)
        try:
            with self.world.raise_on_all_ranks(), disk_errors(final):
                data = _packed(checkpoint)
                _write(temporary / _name(self.world.rank), data)
            files = self.world.gather_values([_name(self.world.rank), len(data), _sha256(data), sorted(checkpoint.parts)])
            with self.world.raise_on_all_ranks(), disk_errors(final):
                if files is not None:
                    manifest = {"schema_version": SCHEMA_VERSION, "identity": self.identity, "about": checkpoint.about}
                    written = {name: {"bytes": size, "sha256": digest, "parts": parts} for name, size, digest, parts in files}
                    line = json.dumps(manifest | {"files": written}).encode()
                    _write(temporary / MANIFEST, b"%s\n%s\n" % (line, _sha256(line).encode()))
                    sync_folder(temporary)
                    os.rename(temporary, final)
                    sync_folder(self.folder)
        except InputError:
            if self.world.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if self.world.rank == 0:
            for number in _numbers(self.folder)[: -self.keep]:
                shutil.rmtree(self.folder / f"{number:07}", ignore_errors=True)

    def load(self, parts: Collection[str]) -> Checkpoint | None:
        """The newest complete checkpoint, or None, with the parts that this rank needs; a warning names each damaged one.

        Raises:
            InputError: a checkpoint of another run.
        """
        self.world.on_root(self._refuse_links)
        numbers = self.world.broadcast(_numbers(self.folder) if self.world.rank == 0 else None)
        self._number = max(numbers, default=0)
        for number in reversed(numbers):
            problem = ""
            with self.world.raise_on_all_ranks():
                try:
                    checkpoint = self._read(self.folder / f"{number:07}", parts)
                except Damaged as damage:
                    problem = str(damage)
            problems = self.world.gather_values(problem) or []
            remedy = "taking the checkpoint before it" if number != numbers[0] else "no checkpoint is left: this training starts anew"
            for problem in sorted(set(problems) - {""}):
                logger.warning("%s; %s", problem, remedy)
            if self.world.broadcast(not any(problems)):
                return checkpoint
            with self.world.raise_on_all_ranks(), disk_errors(self.folder):
                if self.world.rank == 0:  # renamed, it does not count among those that are kept
                    os.rename(self.folder / f"{number:07}", self.folder / f".damaged-{number:07}-{time.time_ns()}")
        return None

    def _refuse_links(self) -> None:
        for path in (self.folder, *list(self.folder.parents)[:2]):
            if path.is_symlink():
                raise InputError(f"{path} is a link, which is not followed: a run keeps its checkpoints in its own folder")

    def _read(self, folder: Path, parts: Collection[str]) -> Checkpoint:
        manifest = _read_manifest(folder / MANIFEST)
        for name, value in self.identity.items():
            other = manifest.identity.get(name, value)  # an older version had not all of today's options, and did as their defaults do
            if other != value and name == "data":
                raise InputError(f"{folder} is of a run with data that have changed since: bring its images back, or name them with --data")
            if other != value:
                raise InputError(f"{folder} is of a run with {name.replace('_', '-')} {other}, where this one has {value}: not resumed")
        names = list(map(_name, range(len(manifest.files))))
        name_of_rank = names[self.world.rank % len(names)]
        files = Stored(manifest.files)
        with _naming(folder / MANIFEST):
            file_of = Stored({part: name for name in names for part in files[name].parts})
            needed = {name_of_rank, *(file_of[part] for part in parts)}
        read = {name: _unpacked(folder / name, files[name].bytes, files[name].sha256) for name in needed}
        of_rank = read[name_of_rank].get("own", Stored())
        return Checkpoint(Stored(manifest.about), {part: read[file_of[part]][part] for part in parts}, of_rank)


def saved(folder: Path) -> dict[str, Any]:
    """The JSON values of the newest checkpoint of a training whose manifest can be read; none without one."""
    for number in reversed(_numbers(folder)):
        with suppress(Damaged, InputError):
            return _read_manifest(folder / f"{number:07}" / MANIFEST).about
    return {}


def _numbers(folder: Path) -> list[int]:
    """Numbers of the checkpoints in a folder, ascending."""
    if not folder.is_dir():
        return []
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    return sorted(int(name) for name in names if re.fullmatch(r"\d{7}", name))


def _name(rank: int) -> str:
    return f"rank-{rank:04}.h5"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _packed(checkpoint: Checkpoint) -> bytes:
    """An HDF5 file, /PART/KIND/NAME, made in memory: a full disk is reported by ``write``, not by HDF5, which may crash."""
    with h5py.File("checkpoint", "w", driver="core", backing_store=False, block_size=1 << 22) as file:
        for part, arrays in {**checkpoint.parts, "own": checkpoint.of_rank}.items():
            for name, array in arrays.items():
                file[f"{part}/{name}"] = array
        file.flush()
        return file.id.get_file_image()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the name of the file before what is damaged in it."""
    try:
        yield
    except Damaged as damage:
        raise Damaged(f"{path} is damaged ({damage})") from None


def _unpacked(path: Path, size: int, digest: str) -> dict[str, Arrays]:
    """Arrays of each part; Damaged unless it is the file that the manifest describes."""
    with _naming(path):
        data = _read_file(path, size)
        if len(data) != size or _sha256(data) != digest:
            raise Damaged("other content than was written")
        with parsing():
            file = h5py.File(io.BytesIO(data), "r")
            parts = list(file)
        with file:
            return Stored({part: _arrays(file, part) for part in parts})


def _arrays(file: h5py.File, part: str) -> Arrays:
    """The arrays of a part, which lie two levels below it and no deeper."""
    kinds = {kind: names_in(file, f"{part}/{kind}") for kind in names_in(file, part)}
    return Stored({f"{kind}/{name}": checked_array(file, f"{part}/{kind}/{name}") for kind, names in kinds.items() for name in names})


def _read_manifest(path: Path) -> _Manifest:
    """A line of JSON, with its SHA-256 as a second line."""
    with _naming(path):
        line, *rest = _read_file(path, LARGEST_MANIFEST).split(b"\n")
        if rest != [_sha256(line).encode(), b""]:
            raise Damaged("other content than was written")
        with parsing():
            values = json.loads(line)
        if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
            raise InputError(f"{path}: not of this version of ddcnn, which reads version {SCHEMA_VERSION}")
        with parsing():
            return _Manifest.model_validate(values)


def _read_file(path: Path, most: int) -> bytes:
    """Bytes of a regular file, at most ``most``; links are not followed."""
    with parsing(), open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise Damaged("not a file, or too large")
        beat(f"reading {path.name}")
        return file.read()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        for begin in range(0, len(data), PIECE):  # on a slow disk the rank is not taken for a stalled one
            beat(f"saving {path.name}")
            file.write(memoryview(data)[begin : begin + PIECE])
        file.flush()
        os.fsync(file.fileno())

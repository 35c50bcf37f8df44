"""``origin.json``: where a run began, and on which images, by which it goes on elsewhere.

The settings of a run hold paths as they were given. Relative ones are meant from the folder where the run began; what lay beside the
run's folder, and was moved or copied with it, is found from there.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ddcnn.config.settings import RunSettings
from ddcnn.decomposition import times
from ddcnn.networks.user_code import Place

PATHS = ("data", "data_root", "partitions", "start_from", "weights")  # settings that are, or may be, paths


class Images(BaseModel):
    """The images of a run: of what a partitioned set says of them, that by which others differ."""

    model_config = ConfigDict(frozen=True)

    source_sha256: str
    shape: tuple[int, ...]
    dtype: str
    class_names: tuple[str, ...]
    train_samples: int
    test_samples: int
    validation_samples: int = 0

    @property
    def samples(self) -> str:
        return " + ".join(str(samples) for samples in (self.train_samples, self.validation_samples, self.test_samples) if samples)

    def difference(self, now: "Images") -> str:
        """What is different ``now``; empty if the images are the same."""
        classes, now_classes = set(self.class_names), set(now.class_names)
        if self.class_names != now.class_names:
            new, gone = (", ".join(sorted(names)[:5]) for names in (now_classes - classes, classes - now_classes))
            words = [new and f"new classes {new}", gone and f"no classes {gone}"] if new or gone else ["its classes in another order"]
            return " and ".join(filter(None, words))
        if (self.shape, self.dtype) != (now.shape, now.dtype):
            return f"images of {times(now.shape)} {np.dtype(now.dtype)}, before {times(self.shape)} {np.dtype(self.dtype)}"
        if self.samples != now.samples:
            return f"{now.samples} images to train, validate and test, before {self.samples}"
        return "" if self.source_sha256 == now.source_sha256 else "as many images of the same classes, but other pixels or labels"


class Origin(BaseModel):
    """Where and from what a run began, or was last resumed.

    Attributes:
        folder: the current folder then.
        output: the run's folder then, without links.
        data_is_path: whether ``--data`` is a path, not the name of a set.
        partitioned: absolute path of the partitioned set.
        network: where the module of the user's network lay.
        start: SHA-256 of the results of the run that it started from; empty without one.
        weights: SHA-256 of the file of trained weights; empty without one.
    """

    folder: str
    output: str
    data_is_path: bool
    images: Images
    partitioned: str
    network: Place | None = None
    start: str = ""
    weights: str = ""

    def module_places(self, stored: RunSettings, run: Path) -> list[Place]:
        """Where the module of the user's network may lie: where it was, or where it was moved to together with the run's folder."""
        if not self.network:
            return []
        moved = moved_with(Path(self.network.folder), stored.output, run, self)
        return [self.network, *([Place(str(moved), self.network.inode)] if moved else [])]

    @classmethod
    def read(cls, path: Path) -> "Origin | None":
        """None for a run of an older version, and where the file is damaged: it is only a help."""
        with suppress(OSError, ValueError):
            return cls.model_validate_json(path.read_bytes())
        return None


def digest_of_file(path: Path | None) -> str:
    """SHA-256 of a file; empty if there is none."""
    if not path or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def relocated(stored: RunSettings, run: Path, origin: Origin | None) -> RunSettings:
    """The settings that are stored in a run's folder, with paths that lead from the current folder to where they led before."""
    updates: dict[str, Any] = {}
    for name in PATHS:
        value = getattr(stored, name)
        if value is not None and (name != "data" or origin is None or origin.data_is_path):
            updates[name] = type(value)(_found(Path(value), stored.output, run, origin))
    default = RunSettings.model_fields["data_root"].default
    if not updates["data_root"].exists() and default.exists():  # another machine
        updates["data_root"] = default
    return stored.model_copy(update=updates)


def moved_with(path: Path, output: Path | None, run: Path, origin: Origin | None) -> Path | None:
    """Where a path lies if it was moved together with the run's folder, which was ``output``; None if that cannot be known."""
    if origin:
        way = os.path.relpath(os.path.join(origin.folder, path), origin.output)
    elif output is not None and path.is_absolute() == output.is_absolute():
        way = os.path.relpath(path, output)
    else:
        return None
    return Path(os.path.normpath(run.resolve() / way))


def _found(path: Path, output: Path | None, run: Path, origin: Origin | None) -> Path:
    """The first of the places where a path may lead that exists; the path itself if none does."""

    def places() -> Iterator[Path | None]:
        began = Path(origin.folder) / path if origin else None
        moved = moved_with(path, output, run, origin)
        yield from (path, moved) if path.is_absolute() else (moved, began, path)

    found = next((place for place in places() if place and place.exists()), path)
    here = Path.cwd()
    return found.relative_to(here) if not path.is_absolute() and found.is_absolute() and found.is_relative_to(here) else found

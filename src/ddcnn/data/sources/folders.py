"""Folders of class folders: ROOT/train/CLASS/… with ROOT/test/CLASS/…, or ROOT/CLASS/… split by a fraction."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ddcnn.data.sources.base import Source, SourceOptions, split_by_fraction
from ddcnn.data.sources.decoding import COLOUR, DEEP, SUFFIXES, PixelFormat, decode, header
from ddcnn.data.sources.fitting import Fit, sample_by_sample
from ddcnn.errors import InputError

TRAIN = ("train", "training")
PROBES = 256  # files, spread over the set, whose headers are looked at before the set is read: a look at each would take long
TEST = ("test", "testing", "val", "validation", "valid")  # the first that is there is the test split


@dataclass(frozen=True)
class ImageFile:
    """A file of a class, and what changes when its content does."""

    path: Path
    label: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Headers:
    """What the headers of some files say, those that are readable: formats and (rows, columns), each with its first file."""

    formats: dict[PixelFormat, Path]
    sizes: dict[tuple[int, ...], Path]

    @cached_property
    def pixels(self) -> PixelFormat:
        """What all images are converted to: their own format if they share it, otherwise colour.

        Raises:
            InputError: grey images of more than 8 bits among others, whose values would be cut off.
        """
        if len(self.formats) > 1 and DEEP in self.formats:
            other = next(path for pixels, path in self.formats.items() if pixels != DEEP)
            raise InputError(f"{self.formats[DEEP]} has more than 8 bits a pixel and {other} has 8: convert all to one depth")
        return next(iter(self.formats)) if len(self.formats) == 1 else COLOUR

    def common_size(self, option: str) -> tuple[int, ...]:
        """Raises InputError if sizes differ, and names the option that makes them alike."""
        if len(self.sizes) > 1:
            (first, one), (second, other) = list(self.sizes.items())[:2]
            raise InputError(f"{one} is {_times(first)} and {other} is {_times(second)}: give one size for all with {option}")
        return next(iter(self.sizes))


def class_folders(options: SourceOptions) -> Source:
    """Opens a folder of class folders.

    Raises:
        InputError: no classes, an empty class, classes that only the test split has, links that leave the folder, different sizes
            without ``--image-size``.
    """
    root = Path(options.name)
    fit = Fit(options, 2)
    if options.volumes:
        raise InputError(f"--volumes: {root} holds class folders of images; volumes lie in .npz, .h5 or a folder with labels.csv")
    split_folders = _split_folders(root)
    class_names = [name for name, _ in _subfolders(split_folders["train"])]
    if not class_names:
        raise InputError(
            f"--data {root}: no class folders in it; wanted are {root}/CLASS/…, {root}/train/CLASS/… with {root}/test/CLASS/…, "
            "or NIfTI volumes with a labels.csv"
        )
    found = {split: list(_files(root, folder, class_names)) for split, folder in split_folders.items()}
    if "test" not in found:
        every = found["train"]
        chosen = split_by_fraction(options, np.array([file.label for file in every]))
        found = {split: [every[i] for i in indices] for split, indices in chosen.items()}
    headers = _scan([file.path for files in found.values() for file in files])
    pixels = headers.pixels
    shape = (*(fit.size or headers.common_size(fit.option)), pixels.channels)
    digest = hashlib.sha256()
    for split, files in found.items():
        for file in files:
            digest.update(f"{split}\0{file.path.relative_to(root)}\0{file.label}\0{file.size}\0{file.mtime_ns}\n".encode(errors="replace"))
    splits = {split: _image_split(files, shape, pixels, fit) for split, files in found.items()}
    return Source(options.name, splits, tuple(class_names), digest.hexdigest(), fitted=True)


def _image_split(files: list[ImageFile], shape: tuple[int, ...], pixels: PixelFormat, fit: Fit):
    labels = np.array([file.label for file in files], np.int64)
    return sample_by_sample(labels, shape, pixels.dtype, fit, lambda i: decode(files[i].path, pixels), lambda i: files[i].path)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits; only "train" where the test split is to be a fraction of it."""
    folders = dict(_subfolders(root))
    by_name = {name.casefold(): path for name, path in folders.items()}
    train = next((by_name[name] for name in TRAIN if name in by_name), None)
    test = next((by_name[name] for name in TEST if name in by_name), None)
    if train and test:
        return {"train": train, "test": test}
    return {"train": train if train and len(folders) == 1 else root}


def _subfolders(folder: Path) -> list[tuple[str, Path]]:
    """Names and paths of the folders in a folder, sorted by name; hidden ones are left out.

    Raises:
        InputError: a link to a folder, which is not followed and would be missed.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            if entry.is_symlink():
                raise InputError(f"{entry.path} is a link to a folder, and links are not followed; put the folder itself there")
            found.append((entry.name, Path(entry.path)))
    return sorted(found)


def _files(root: Path, folder: Path, class_names: list[str]) -> Iterator[ImageFile]:
    """The image files of all classes, class by class, sorted by path."""
    for name, class_folder in _subfolders(folder):
        if name not in class_names:
            raise InputError(f"{class_folder}: the training split has no class of that name")
        entries = sorted(_walk(class_folder), key=lambda entry: entry.path)
        if not entries:
            raise InputError(f"{class_folder}: the class has no image in it (files that end in {', '.join(SUFFIXES)})")
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                raise InputError(f"{path} is a link to a file outside of {root}, which is not read; put the file itself there")
            status = entry.stat()
            yield ImageFile(path, class_names.index(name), status.st_size, status.st_mtime_ns)


def _walk(folder: Path) -> Iterator[os.DirEntry]:
    """Image files in a folder and those below it, without following links to folders; hidden ones are left out."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            elif entry.is_file() and entry.name.lower().endswith(SUFFIXES):
                yield entry


def _scan(paths: list[Path]) -> Headers:
    """The headers of some of the files; one that cannot be read is a damaged sample when its turn comes, one that differs refused.

    Raises:
        InputError: no file has a readable header.
    """
    headers, problem = Headers({}, {}), ""
    for path in (paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(PROBES, len(paths))).astype(int))):
        try:
            pixels, size = header(path)
        except Exception as error:  # the decoders of third parties raise anything
            problem = problem or f"{path}: {error}"
            continue
        headers.formats.setdefault(pixels, path)
        headers.sizes.setdefault(size, path)
    if not headers.sizes:
        raise InputError(f"no image can be read, the first because of {problem}")
    return headers


def _times(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))

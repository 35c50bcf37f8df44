"""Folders of class folders: ROOT/train/CLASS/… with ROOT/test/CLASS/…, or ROOT/CLASS/… split by a fraction."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddcnn.data.sources.base import Source, SourceOptions, split_by_fraction
from ddcnn.data.sources.decoding import SUFFIXES, Headers, PixelFormat, decode, header, probes
from ddcnn.data.sources.fitting import Fit, sample_by_sample
from ddcnn.errors import InputError
from ddcnn.parallel.heartbeat import beat

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "validation", "valid")  # the first that is there is the test split


@dataclass(frozen=True)
class ImageFile:
    """A file of a class, and what changes when its content does."""

    path: Path
    label: int
    size: int
    mtime_ns: int


def class_folders(options: SourceOptions) -> Source:
    """Opens a folder of class folders.

    Raises:
        InputError: no classes, an empty class, classes that only the test split has, links that leave the folder, different sizes
            without ``--image-size``.
    """
    root = Path(options.name)
    if options.volumes or options.volume_size:
        raise InputError(f"--data {root}: has no labels.csv, which a folder of volumes needs; without volumes, leave --volume-size out")
    fit = Fit(options, 2)
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
    pixels = options.pixels or headers.pixels
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
    split = train or test
    if split and len(folders) > 1:
        raise InputError(f"{split} looks like a split, but {root} has no other: give train and test, or class folders alone")
    return {"train": split or root}


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
            _refuse_link(entry)
            found.append((entry.name, Path(entry.path)))
    return sorted(found)


def _refuse_link(folder: os.DirEntry) -> None:
    """A link to a folder is not followed, and would be missed."""
    if folder.is_symlink():
        raise InputError(f"{folder.path} is a link to a folder, and links are not followed; put the folder itself there")


def _files(root: Path, folder: Path, class_names: list[str]) -> Iterator[ImageFile]:
    """The image files of all classes, class by class, sorted by path."""
    number = {name: k for k, name in enumerate(class_names)}
    for name, class_folder in _subfolders(folder):
        if name not in number:
            raise InputError(f"{class_folder}: the training split has no class of that name")
        entries = sorted(walk(class_folder), key=lambda entry: entry.path)
        if not entries:
            raise InputError(f"{class_folder}: the class has no image in it (files that end in {', '.join(SUFFIXES)})")
        for entry in entries:
            path, status = inside(root, entry), entry.stat()
            yield ImageFile(path, number[name], status.st_size, status.st_mtime_ns)


def inside(root: Path, entry: os.DirEntry) -> Path:
    """The path of a file; InputError if it is a link that leaves the folder."""
    path = Path(entry.path)
    if entry.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{path} is a link to a file outside of {root}, which is not read; put the file itself there")
    return path


def walk(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[os.DirEntry]:
    """Image files in a folder and those below it; hidden ones are left out."""
    with os.scandir(folder) as entries:
        for entry in entries:
            beat("looking for images")
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                _refuse_link(entry)
                yield from walk(Path(entry.path), suffixes)
            elif entry.is_file() and entry.name.lower().endswith(suffixes):
                yield entry


def _scan(paths: list[Path]) -> Headers:
    """The headers of some of the files; one that cannot be read is a damaged sample when its turn comes, one that differs refused.

    Raises:
        InputError: no file has a readable header.
    """
    headers, problem = Headers(), ""
    for path in (paths[i] for i in probes(len(paths))):
        try:
            pixels, size = header(path)
        except Exception as error:  # the decoders of third parties raise anything
            problem = problem or f"{path}: {error}"
            continue
        headers.add(path, pixels, size)
    if not headers.sizes:
        raise InputError(f"no image can be read, the first because of {problem}")
    return headers

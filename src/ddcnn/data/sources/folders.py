"""Folders of class folders: ROOT/train/CLASS/… with ROOT/test/CLASS/…, or ROOT/CLASS/… split by a fraction."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddcnn.data.sources.base import Source, SourceOptions, split_by_fraction
from ddcnn.data.sources.decoding import SUFFIXES, Headers, decode, header
from ddcnn.data.sources.resizing import Fit, LabelledFiles
from ddcnn.errors import InputError
from ddcnn.parallel.heartbeat import beat

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "validation", "valid")  # the first that exists is the test split


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
            f"--data {root}: no class folders in it; expected are {root}/CLASS/…, {root}/train/CLASS/… with {root}/test/CLASS/…, "
            "or NIfTI volumes with a labels.csv"
        )
    by_split = {split: list(_class_files(root, folder, class_names)) for split, folder in split_folders.items()}
    paths = [path for files in by_split.values() for path, _ in files]
    labels = np.array([label for files in by_split.values() for _, label in files], np.int64)
    border = len(by_split["train"])
    splits = {"train": np.arange(border), "test": np.arange(border, len(paths))}
    splits = splits if "test" in by_split else split_by_fraction(options, labels)
    headers = Headers()
    headers.read(np.concatenate(list(splits.values())), paths.__getitem__, lambda i: header(paths[i]))
    pixels, shape = headers.common(options.pixels, fit.size, fit.option)
    files = LabelledFiles(root, paths, labels, splits, range(len(class_names)))
    return files.source(class_names, shape, pixels.dtype, fit, lambda path: decode(path, pixels))


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits; only "train" if the test split is to be a fraction of it."""
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
        InputError: a link to a folder.
    """
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            _refuse_link(entry)
            folders.append((entry.name, Path(entry.path)))
    return sorted(folders)


def _refuse_link(folder: os.DirEntry) -> None:
    """Refuses a link to a folder: it is not followed, and its images would be missed silently."""
    if folder.is_symlink():
        raise InputError(f"{folder.path} is a link to a folder, and links are not followed; put the folder itself in its place")


def _class_files(root: Path, folder: Path, class_names: list[str]) -> Iterator[tuple[Path, int]]:
    """The image files and labels of all classes, class by class, sorted by path."""
    number = {name: k for k, name in enumerate(class_names)}
    for name, class_folder in _subfolders(folder):
        if name not in number:
            raise InputError(f"{class_folder}: the training split has no class of that name")
        paths = sorted(image_files(root, class_folder), key=str)
        if not paths:
            raise InputError(f"{class_folder}: the class has no image in it (files that end in {', '.join(SUFFIXES)})")
        yield from ((path, number[name]) for path in paths)


def image_files(root: Path, folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[Path]:
    """Image files in a folder and its subfolders; hidden ones are left out.

    Raises:
        InputError: a link to a folder, or to a file outside of ``root``.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            beat("looking for images")
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                _refuse_link(entry)
                yield from image_files(root, Path(entry.path), suffixes)
            elif entry.is_file() and entry.name.lower().endswith(suffixes):
                path = Path(entry.path)
                if entry.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                    raise InputError(f"{path} is a link to a file outside of {root}, which is not read; put the file itself in its place")
                yield path

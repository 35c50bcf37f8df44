"""Sources: named sets, files and folders, each opened as splits of labelled images that are read block by block.

To add a source, write a module with a function ``(SourceOptions) -> Source`` and enter it in one of the three tables below.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from ddcnn.data.sources.array_files import array_file
from ddcnn.data.sources.base import SPLITS, DamagedSample, Source, SourceOptions, Split, check, in_byte_order
from ddcnn.data.sources.decoding import format_like
from ddcnn.data.sources.digits import digits
from ddcnn.data.sources.folders import class_folders
from ddcnn.data.sources.resizing import fit_split
from ddcnn.data.sources.scattered_digits import PREFIX as SCATTERED
from ddcnn.data.sources.scattered_digits import scattered_digits
from ddcnn.data.sources.splits import balanced_subset, complete
from ddcnn.data.sources.synthetic import PREFIX as SYNTHETIC
from ddcnn.data.sources.synthetic import synthetic
from ddcnn.data.sources.tables import TABLE, table_in
from ddcnn.data.sources.torchvision_sets import class_names, torchvision_set
from ddcnn.data.sources.volume_walk import SCANS, hold_volumes
from ddcnn.data.sources.volume_walk import SUFFIXES as VOLUMES
from ddcnn.data.sources.volumes import folders_of_volumes, labelled_volumes
from ddcnn.errors import InputError, did_you_mean

__all__ = [
    "SPLITS", "DamagedSample", "Source", "SourceOptions", "Split", "balanced_subset", "named_without_option", "open_like", "open_source",
]  # fmt: skip

MOST_GUESSES = 5000  # entries of a folder that an unknown name is compared with
Opener = Callable[[SourceOptions], Source]

NAMED: dict[str, Opener] = {
    "digits": digits,
    "cifar10": partial(torchvision_set, class_name="CIFAR10"),
    "fashion-mnist": partial(torchvision_set, class_name="FashionMNIST"),
}
PREFIXES: dict[str, Opener] = {SYNTHETIC: synthetic, SCATTERED: scattered_digits}
FILES: dict[str, Opener] = {".npz": array_file, ".h5": array_file}


@contextmanager
def named_without_option() -> Iterator[None]:
    """Around opening what a command names by its place on the command line: messages leave out ``--data``, which that has not."""
    try:
        yield
    except (InputError, OSError) as error:
        raise InputError(str(error).removeprefix("--data ")) from None


def open_source(options: SourceOptions) -> Source:
    """Opens the source that ``--data`` names; images are clipped and resized as the options say.

    Raises:
        InputError: unknown name, missing or malformed files, labels out of range, splits of different images, unsuitable options.
    """
    try:
        source = _opener(options)(options)
    except OSError as error:  # no permission to read a folder, a file that is removed meanwhile
        raise InputError(f"--data {options.name}: {error}") from None
    check(source)
    if options.mode != "auto" and not source.fitted:
        raise InputError(f"--mode {options.mode} applies to image files, and {options.name} holds arrays: leave it out")
    splits = source.splits if source.fitted else {name: fit_split(split, options) for name, split in source.splits.items()}
    splits = {name: in_byte_order(split, splits["train"].dtype) for name, split in splits.items()}
    return complete(replace(source, splits=splits, fitted=True, preprocessing=options.preprocessing), options)


def is_path(name: str) -> bool:
    """Whether a name is that of a file or folder, not of a set that is known by its name."""
    return not (name in NAMED or name.startswith(tuple(PREFIXES)) or name in class_names())


def open_like(options: SourceOptions, shape: tuple[int, ...], dtype: np.dtype) -> Source:
    """Opens a source whose images are known to have a shape (*spatial, C) and a type: no headers are read. Raises as ``open_source``."""
    return open_source(replace(options, download=False, known=lambda *_: (shape, dtype), pixels=format_like(shape[-1], dtype)))


def _opener(options: SourceOptions) -> Opener:
    """The function that opens a source. Known names come first; a folder of the same name is given as ./NAME."""
    name = options.name
    if name in NAMED:
        return NAMED[name]
    for prefix, opener in PREFIXES.items():
        if name.startswith(prefix):
            return opener
    if name in class_names():
        return partial(torchvision_set, class_name=name)
    path = Path(name)
    if name and path.is_dir():
        if table_in(path, VOLUMES if options.volumes else SCANS):
            return labelled_volumes
        return folders_of_volumes if hold_volumes(options) else class_folders
    if path.suffix.lower() in FILES and path.is_file():
        return FILES[path.suffix.lower()]
    raise InputError(_unknown(name))


def _unknown(name: str) -> str:
    path = Path(name)
    if path.is_file():
        return (
            f"--data {name}: not a file ending in {' or '.join(FILES)}; images lie in class folders, volumes in such, or in a folder with "
            f"a {TABLE}"
        )
    if path.is_symlink():
        return f"--data {name}: a link to what does not exist, or cannot be reached: bring it back"
    guess = _guess(name)
    if path.suffix or "/" in name:
        return f"--data {name}: no such file or folder{guess}"
    return (
        f"--data {name}: no such file or folder, and no known set{guess}. Known are {', '.join(NAMED)}, {SYNTHETIC}SHAPExCLASSESxSAMPLES, "
        f"{SCATTERED}ROWSxCOLUMNSxSAMPLES, torchvision's classification sets by class name (KMNIST, SVHN, EuroSAT …), "
        f"files ending in {' or '.join(FILES)}, "
        f"folders of class folders, folders of volumes (NIfTI, DICOM, TIFF) with a {TABLE}"
    )


def _guess(name: str) -> str:
    """A remark on similar names in the same folder, and on known names unless ``name`` is a path."""
    folder, last = os.path.split(name.rstrip("/"))
    known = [] if folder else [*NAMED, *(known for known in class_names() if not known.endswith("Folder"))]
    with suppress(OSError, ValueError):  # an unreadable folder, an impossible name
        entries = [entry for entry in islice(os.scandir(folder or "."), MOST_GUESSES) if not entry.name.startswith(".")]
        known += [entry.name for entry in entries if entry.is_dir() or entry.name.endswith((*FILES,))]
    return did_you_mean(last, known, most=3, folder=folder)

"""Files to classify: which there are in a folder, and which classes their folders, or a table, say they have."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ddcnn.data.sources.folders import Walk, named_splits
from ddcnn.data.sources.tables import read_table, table_in
from ddcnn.errors import InputError, file_name

Files = list[tuple[Path, str]]  # and the name of the class, empty where it is unknown


def files_in(walk: Walk, known: Sequence[str], unlabelled: bool) -> Iterator[tuple[str, Files]]:
    """The splits of a folder, or "all", and their files, class by class and sorted by path.

    A folder has labels if a table gives them, or if there are folders and no images directly in it.

    Args:
        known: names of the run's classes, which are no names of splits.
        unlabelled: ignore all labels.

    Raises:
        InputError: no files, a malformed table, links that are not followed.
    """
    root = walk.root
    table = None if unlabelled else table_in(root, walk.suffixes)
    found = _in_table(walk) if table else _in_folders(walk, known, unlabelled)
    walk.tell()
    found = {split: files for split, files in found.items() if files}
    if not found:
        raise InputError(f"{root}: nothing to classify in it; there is no {walk.sought}")
    yield from found.items()


def _in_table(walk: Walk) -> dict[str, Files]:
    found: dict[str, Files] = {}
    for row in read_table(walk, every_label=False):
        found.setdefault(row.split or "all", []).append((row.path, row.label))
    return found


def _in_folders(walk: Walk, known: Sequence[str], unlabelled: bool) -> dict[str, Files]:
    root = walk.root
    folders = walk.subfolders(root)
    if unlabelled or walk.holds(root) or not folders:
        return {"all": [(path, "") for path in sorted(walk.files(root))]}
    return {split: _in_classes(walk, folder, known) for split, folder in _splits(walk, known).items()}


def _in_classes(walk: Walk, folder: Path, known: Sequence[str]) -> Files:
    """The files of all class folders in a folder; without such, those in it, which have no class.

    Nor has a folder that is a volume itself, unless it is called like a class.
    """
    classes = walk.subfolders(folder)
    if not classes:
        return [(path, "") for path in sorted(walk.files(folder))]
    found = [(path, class_folder, file_name(name)) for name, class_folder in classes for path in sorted(walk.files(class_folder), key=str)]
    return [(path, "" if path == class_folder and name not in known else name) for path, class_folder, name in found]


def _splits(walk: Walk, known: Sequence[str]) -> dict[str, Path]:
    """The folders of the splits; "all" is the folder itself, or the only one in it, unless that has test images."""
    folders = {file_name(name): path for name, path in walk.subfolders(walk.root)}
    by_name = {} if set(folders) <= set(known) else folders
    found = named_splits(by_name)
    if "train" in found and len(found) > 1:
        return found
    if len(folders) > 1 or not found:
        return {"all": walk.root}
    return {split if split == "test" else "all": folder for split, folder in found.items()}

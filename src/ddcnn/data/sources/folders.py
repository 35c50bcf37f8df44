"""Folders of class folders: ROOT/train/CLASS/… with ROOT/validation/CLASS/… and ROOT/test/CLASS/…, or ROOT/CLASS/… alone."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddcnn.data.sources.base import SPLIT_NAMES, SPLITS, Source, SourceOptions
from ddcnn.data.sources.decoding import SUFFIXES, PixelFormat, decode, format_like
from ddcnn.data.sources.dicom_files import is_dicom
from ddcnn.data.sources.image_headers import Headers, header
from ddcnn.data.sources.resizing import Fit, LabelledFiles
from ddcnn.errors import InputError, file_name
from ddcnn.parallel.heartbeat import beat

# of images and volumes that are not looked at, which is told
OTHER_SUFFIXES = (
    ".avif", ".dcm", ".dng", ".exr", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jxl", ".mgz", ".mha", ".mhd",
    ".nii", ".nii.gz", ".nrrd", ".pbm", ".pnm", ".svg", ".tga",
)  # fmt: skip
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "System Volume Information", "$RECYCLE.BIN")  # of unpackers and disks
logger = logging.getLogger(__name__)


def class_folders(options: SourceOptions) -> Source:
    """Opens a folder of class folders.

    Raises:
        InputError: no classes, an empty class, classes that only the test split has, links that leave the folder, different sizes
            without ``--image-size``.
    """
    root = Path(options.name)
    if options.volume_size:
        raise InputError(
            f"--data {root}: holds images, and has no labels.csv of volumes: if stacks of TIFF pages or folders of slices are volumes, add "
            "--volumes; without volumes, leave --volume-size out"
        )
    fit = Fit(options, 2)
    files, class_names = labelled_folders(Walk(root, follow_links=options.follow_links), options)
    pixels, shape = _format_and_shape(files, fit)
    return files.source(class_names, shape, pixels.dtype, fit, lambda path: decode(path, pixels, options.mode))


def labelled_folders(walk: "Walk", options: SourceOptions) -> tuple[LabelledFiles, list[str]]:
    """The samples of all splits in class folders, and the names of the classes. Raises as ``class_folders``."""
    root = walk.root
    split_folders = _split_folders(walk)
    if "test" in split_folders and not options.validation_fraction:
        split_folders.pop("validation", None)
    class_names = [name for name, _ in walk.subfolders(split_folders["train"])]
    if not class_names:
        raise InputError(
            f"--data {root}: no class folders in {split_folders['train'] if split_folders['train'] != root else 'it'}; expected are "
            f"{root}/CLASS/…, {root}/train/CLASS/… with {root}/test/CLASS/…, or volumes with a labels.csv; classes that are called "
            "train and test go into a folder train of their own"
        )
    by_split = {split: list(_class_files(walk, folder, class_names)) for split, folder in split_folders.items()}
    paths = [path for files in by_split.values() for path, _ in files]
    labels = np.array([label for files in by_split.values() for _, label in files], np.int64)
    borders = np.cumsum([0, *map(len, by_split.values())])
    splits = {split: np.arange(a, b) for split, a, b in zip(by_split, borders, borders[1:], strict=False)}
    walk.tell()
    return LabelledFiles(root, paths, labels, splits, range(len(class_names))), list(map(file_name, class_names))


def _format_and_shape(files: LabelledFiles, fit: Fit) -> tuple[PixelFormat, tuple[int, ...]]:
    """As ``Headers.common``; headers are read if they are not known."""
    if (known := fit.options.known(files.fingerprint, 2)) and (pixels := format_like(known[0][-1], known[1])):
        return pixels, known[0]
    headers = Headers()
    headers.read(files.paths, header)
    return headers.common(None, fit.options.mode, fit.size, fit.option)


def _split_folders(walk: "Walk") -> dict[str, Path]:
    """The folders of the splits that there are; of a folder without splits, and of the only folder in it, "train"."""
    root = walk.root
    folders = dict(walk.subfolders(root))
    found = named_splits(folders)
    if "train" in found and len(found) > 1:
        return found
    for split in found.values() if len(folders) > 1 else ():
        if not walk.subfolders(split):
            return {"train": root}  # a class that happens to be called so: it holds images, as the others beside it do
        raise InputError(
            f"{split} looks like a split, but {root} has no {'other' if len(found) == 1 else 'train'}: give train and test, or class "
            f"folders alone; if it is a class, put all class folders into {root / 'train'}"
        )
    return {"train": next(iter(found.values()), root)}


def named_splits(folders: dict[str, Path]) -> dict[str, Path]:
    """Those of the folders, by name, that are called like splits, by split."""
    by_name = {name.casefold(): path for name, path in folders.items()}
    called = {split: [name for name in names if name in by_name] for split, names in SPLIT_NAMES.items()}
    for split, names in called.items():
        if len(names) > 1:
            both = " and ".join(str(by_name[name]) for name in names)
            raise InputError(f"{both} are both called like a split of {split} images: leave out one of them, or put both into one folder")
    return {split: by_name[called[split][0]] for split in SPLITS if called[split]}


def _class_files(walk: "Walk", folder: Path, class_names: list[str]) -> Iterator[tuple[Path, int]]:
    """The image files and labels of all classes, class by class, sorted by path."""
    number = {name: k for k, name in enumerate(class_names)}
    for name, class_folder in walk.subfolders(folder):
        if name not in number:
            raise InputError(f"{class_folder}: the training split has no class of that name")
        before = walk.left_out.copy()
        paths = sorted(walk.files(class_folder), key=str)
        if not paths:
            if others := counted(walk.left_out - before):
                way_out = f"convert its {others}{_volumes(walk)}"
            elif any(map(is_dicom, Walk(walk.root, ("",), walk.follow_links).files(class_folder))):
                way_out = "it holds DICOM files: read volumes with --volumes"
            else:
                way_out = "add some, or remove the folder"
            raise InputError(f"{class_folder}: the class has no {walk.sought}; {way_out}")
        if class_folder in paths:
            raise InputError(
                f"{class_folder}: holds slices itself, as if it were one volume, but is read as a class; give every volume a folder of its "
                "own, CLASS/VOLUME/…; if these are photos, leave --volumes and --volume-size out where they were given, and convert DICOM "
                "to PNG"
            )
        yield from ((path, number[name]) for path in paths)


@dataclass(frozen=True)
class Walk:
    """Finds folders and image files in ``root`` and below it; hidden ones and ``SYSTEM_FOLDERS`` are left out.

    Attributes:
        suffixes: of the files, in lower case.
        follow_links: whether links to folders, and to files outside of ``root``, are followed. They are refused otherwise: what is
            outside is not what the user has named.
        left_out: images of other kinds in the folders that have been searched, by suffix.
        sought: words for what is sought.
        folders: whether a folder can be a sample.
    """

    root: Path
    suffixes: tuple[str, ...] = SUFFIXES
    follow_links: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    sought: str = f"image in it (files that end in {', '.join(SUFFIXES)})"
    folders: bool = False

    def subfolders(self, folder: Path) -> list[tuple[str, Path]]:
        """Names and paths of the folders in a folder, sorted by name.

        Raises:
            InputError: a link to a folder that is not followed, or one that leads nowhere.
        """
        with os.scandir(folder) as entries:
            return [(entry.name, Path(entry.path)) for entry in sorted(entries, key=lambda entry: entry.name) if self._is_folder(entry)]

    def files(self, folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
        """Image files in a folder and its subfolders.

        Args:
            above: where the links lie that have led here, without links.

        Raises:
            InputError: as ``subfolders``; a link to a file outside of ``root`` that is not followed, or one in a circle.
        """
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                beat("looking for images")
                path = Path(entry.path)
                if self._is_folder(entry):
                    passed = above
                    if entry.is_symlink():
                        passed, target = (*above, folder.resolve()), path.resolve()
                        if any(target in (place, *place.parents) for place in passed):
                            raise InputError(f"{path} is a link to a folder that it lies in: remove the link")
                    yield from self.files(path, passed)
                elif entry.name.startswith(".") or not entry.is_file():
                    continue
                elif not entry.name.lower().endswith(self.suffixes):
                    self.leave_out(path)
                else:
                    if not self.follow_links and entry.is_symlink() and not path.resolve().is_relative_to(self.root.resolve()):
                        raise InputError(
                            f"{path} is a link to a file outside of {self.root}, which is not read; put the file itself in its place, "
                            "or add --follow-links"
                        )
                    yield path

    def holds(self, folder: Path) -> bool:
        """Whether images lie directly in a folder."""
        return any(entry.is_file() and entry.name.lower().endswith(self.suffixes) for entry in folder.iterdir())

    def takes(self, path: Path) -> bool:
        """Whether what a line of a table names can be a sample."""
        return path.name.lower().endswith(self.suffixes)

    def sample(self, path: Path, where: str) -> Path:
        """The sample that a line of a table names; InputError, which says ``where``, if there is none."""
        if not path.is_file():
            raise InputError(f"{where}: {path} does not exist{'; write paths with /' if chr(92) in str(path) else ''}")
        return path

    def leave_out(self, path: Path) -> None:
        """Counts a file that is not read, if it is of a kind that holds images."""
        suffix = next((end for end in (*OTHER_SUFFIXES, *SUFFIXES) if path.name.lower().endswith(end)), None)
        self.left_out.update([suffix] if suffix else [])

    def _is_folder(self, entry: os.DirEntry) -> bool:
        """Whether an entry is a folder to search; InputError for links as ``subfolders``."""
        if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
            return False
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise InputError(f"{entry.path} is a link to what does not exist, or cannot be reached: bring it back, or remove the link")
        if entry.is_dir() and entry.is_symlink() and not self.follow_links:
            raise InputError(
                f"{entry.path} is a link to a folder, and links are not followed; put the folder itself in its place, or add --follow-links"
            )
        return entry.is_dir()

    def tell(self) -> None:
        """Notes what has been left out."""
        if self.left_out:
            kinds = counted(self.left_out)
            advice = f"convert them to PNG, for example{_volumes(self)}"
            logger.info("note: %s: images of other kinds are not looked at: %s; %s", self.root, kinds, advice)


def counted(suffixes: Counter[str]) -> str:
    return ", ".join(f"{count} that end in {suffix}" for suffix, count in sorted(suffixes.items()))


def _volumes(walk: Walk) -> str:
    """Advice on volumes that have been left out."""
    return ", or read volumes with --volumes" if {".dcm", ".nii", ".nii.gz"} & set(walk.left_out) else ""

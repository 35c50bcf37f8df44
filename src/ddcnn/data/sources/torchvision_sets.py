"""torchvision's classification sets, by their class name."""

import ast
import hashlib
import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ddcnn.data.sources.base import SPLITS, Source, SourceOptions, Split, in_memory
from ddcnn.data.sources.decoding import format_of, to_array
from ddcnn.data.sources.image_headers import Header, Headers
from ddcnn.data.sources.resizing import Fit, sample_by_sample
from ddcnn.errors import InputError
from ddcnn.networks.torchvision_compat import import_torchvision
from ddcnn.parallel.heartbeat import beat, unjudged

NAMES = {
    "train": ("train", "trainval"),
    "validation": ("val", "valid"),
    "test": ("test",),
}  # of splits; the first that the set has is taken
PROBES = 256  # samples whose mode and size are looked at: torchvision decodes them; another mode is refused when it is read
LABELS = ("targets", "labels", "_labels", "y")
PAIRS = ("_samples", "samples", "imgs")  # lists of (file, label)
# modules of torchvision.datasets whose sets do not have one class per image
OTHER_TASKS = (
    "_optical_flow", "_stereo_matching", "celeba", "cityscapes", "coco", "flickr", "hmdb51", "kinetics", "kitti", "lsun", "moving_mnist",
    "phototour", "sbd", "sbu", "ucf101", "vision", "voc", "widerface",
)  # fmt: skip


class NoLabels(InputError):
    """A split without a class number per sample."""


class NoSplit(InputError):
    """A set without a split."""


@cache
def class_names() -> tuple[str, ...]:
    """The classes of ``torchvision.datasets``, parsed from its source: an import takes seconds, which an error message should not."""
    spec = find_spec("torchvision")
    text = (Path(spec.origin).parent / "datasets" / "__init__.py").read_text("utf-8") if spec and spec.origin else ""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(name for name in ast.literal_eval(node.value) if name[0].isupper())
    return ()


def _parameters(constructor: type) -> dict[str, inspect.Parameter]:
    """Parameters of a constructor, with those of its base class if it passes keywords on."""
    parameters: dict[str, inspect.Parameter] = {}
    for kind in inspect.getmro(constructor):
        signature = inspect.signature(kind).parameters
        parameters = {**signature, **parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in signature.values()):
            break
    return parameters


def torchvision_set(options: SourceOptions, class_name: str) -> Source:
    """Opens the set ``class_name``.

    Raises:
        InputError: the set is not in the data root, has no class per image, or needs arguments that no option gives.
    """
    try:
        constructor = getattr(import_torchvision().datasets, class_name)
    except ImportError as error:
        raise InputError(f"--data {options.name}: needs torchvision, which cannot be imported ({error})") from None
    parameters = _parameters(constructor)
    if class_name in ("ImageFolder", "DatasetFolder"):
        raise InputError(f"--data {options.name}: name the folder itself, {options.data_root}")
    if constructor.__module__.rpartition(".")[2] in OTHER_TASKS:
        raise InputError(f"--data {options.name}: torchvision's {class_name} has no class per image")
    wanted = [name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    unknown = sorted(set(wanted) - {"root", "split", "train"})
    if unknown:
        raise InputError(f"--data {options.name}: torchvision's {class_name} needs {', '.join(unknown)}, which no option gives")

    def make(**split):
        arguments = {"root": str(options.data_root), "download": options.download} | split
        (unjudged if options.download else beat)(f"opening {class_name}")
        try:
            return constructor(**{name: value for name, value in arguments.items() if name in parameters or name in split})
        except ImportError as error:
            raise InputError(f"--data {options.name}: torchvision's {class_name} needs a package that is missing ({error})") from None
        except Exception as error:  # torchvision raises any exception for a damaged folder
            if isinstance(error, ValueError) and split:  # the set has no such split
                raise
            if options.download:
                raise InputError(f"--data {options.name}: {class_name} cannot be fetched into {options.data_root} ({error})") from None
            fetch = ", or fetch it with --download" if "download" in parameters else ""
            raise InputError(
                f"--data {options.name}: {options.data_root} does not hold {class_name} as torchvision stores it ({error}); "
                f"name the folder with --data-root{fetch}"
            ) from None

    if "train" in parameters and "split" not in wanted:
        sets = {"train": make(train=True), "test": make(train=False)}
        labels = {split: _labels(options, split, dataset) for split, dataset in sets.items()}
    elif "split" in parameters:
        found = {"train": _first_usable(options, "train", make)}
        try:
            found["test"] = _first_usable(options, "test", make)
        except NoSplit as none:
            with suppress(NoSplit):
                found["validation"] = _first_usable(options, "validation", make)
            if len(found) == 1:
                raise none from None
        if options.validation_fraction and "test" in found:
            with suppress(NoSplit):
                found["validation"] = _first_usable(options, "validation", make)
        sets, labels = ({split: found[split][k] for split in SPLITS if split in found} for k in (0, 1))
    else:
        sets = {"train": make()}
        labels = {"train": _labels(options, "all", sets["train"])}
    return _source(options, sets, labels)


def _first_usable(options: SourceOptions, split: str, make: Callable):
    """The set and the labels of the first of a split's names that exists and has labels; NoSplit if there is none."""
    problem: Exception | None = None
    for name in NAMES[split]:
        try:
            dataset = make(split=name)
            return dataset, _labels(options, name, dataset)
        except (ValueError, NoLabels) as error:  # torchvision raises ValueError for a split that the set does not have
            problem = problem or error
    raise NoSplit(f"--data {options.name}: no usable {split} split ({problem})")


def _labels(options: SourceOptions, split: str, dataset) -> np.ndarray:
    """Labels (S,) int64 from a list of the set, otherwise sample by sample."""
    for name in LABELS:
        values = getattr(dataset, name, None)
        if values is not None and np.shape(values) == (len(dataset),):
            break
    else:
        pairs = next((pairs for name in PAIRS if (pairs := getattr(dataset, name, None)) and np.shape(pairs[0])[:1] == (2,)), None)
        values = [pair[1] for pair in (pairs if pairs else (dataset[i] for i in range(len(dataset))))]
    values = np.asarray(values)
    if values.dtype.kind not in "ui" or values.shape != (len(dataset),):
        raise NoLabels(f"--data {options.name}: the samples of its split {split} have no whole class number")
    return values.astype(np.int64)


def _source(options: SourceOptions, sets: dict, labels: dict[str, np.ndarray]) -> Source:
    """A source out of torchvision's sets, by split."""
    first = sets["train"]
    known = max(int(values.max(initial=0)) for values in labels.values()) + 1
    names = getattr(first, "classes", None) or ()
    names = tuple(map(str, names if len(names) >= known else range(known)))
    arrays = {split: images for split, dataset in sets.items() if (images := _array(dataset)) is not None}
    if len(arrays) == len(sets):
        return in_memory(options.name, {split: (images, labels[split]) for split, images in arrays.items()}, names)
    headers, fit = Headers(), Fit(options, 2)
    for dataset in sets.values():
        probes = np.unique(np.linspace(0, len(dataset) - 1, min(PROBES, len(dataset))).astype(int)).tolist()
        headers.read(probes, partial(_header, options, dataset), lambda i: f"{options.name} sample {i}")
    pixels, shape = headers.common(options.pixels, options.mode, fit.size, fit.option)
    digest = hashlib.sha256(repr((type(first).__name__, names, _files(options.data_root))).encode())
    for numbers in labels.values():
        digest.update(numbers.data)

    def split_of(split: str) -> Split:
        def name(i: int) -> str:
            return f"{options.name} {f'{split} ' if len(sets) > 1 else ''}sample {i}"

        def load(i: int) -> np.ndarray:
            return to_array(sets[split][i][0], pixels, name(i), options.mode, "give --mode grey or rgb")

        return sample_by_sample(labels[split], shape, pixels.dtype, fit, load, name)

    return Source(options.name, {split: split_of(split) for split in sets}, names, digest.hexdigest(), fitted=True)


def _header(options: SourceOptions, dataset, i: int) -> Header:
    """Pixel format, and rows and columns of the upright image, of a sample; InputError if the sample is not an image and a class."""
    sample = dataset[i]
    image = sample[0] if isinstance(sample, tuple) and len(sample) == 2 else None
    if not isinstance(image, Image.Image):
        raise InputError(f"--data {options.name}: its samples are not pairs of an image and a class")
    upright = ImageOps.exif_transpose(image)
    return Header(format_of(image.mode), (upright.height, upright.width))


def _files(root: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of all files below the data root, since it is not known which of them the set reads."""
    files = sorted(Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return [(str(path.relative_to(root)), status.st_size, status.st_mtime_ns) for path in files for status in [path.lstat()]]


def _array(dataset) -> np.ndarray | None:
    """All images (S, rows, columns[, C]), if the set holds them in one array."""
    data = getattr(dataset, "data", None)
    if data is None or isinstance(data, list) or len(np.shape(data)) not in (3, 4) or len(data) != len(dataset):
        return None
    images = np.asarray(data)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[-1] not in (1, 3):
        images = np.moveaxis(images, 1, -1)  # SVHN and STL10 store channels first
    return images

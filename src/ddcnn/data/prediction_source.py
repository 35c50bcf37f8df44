"""Images that a finished run classifies: any source, with or without labels, brought to what the run's own images were."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ddcnn.data.arrays import open_h5, open_npz
from ddcnn.data.partitioned_set import PartitionedSet, is_partitioned
from ddcnn.data.sources import SourceOptions, balanced_subset, open_source
from ddcnn.data.sources.array_files import read_array, read_labels, with_channels
from ddcnn.data.sources.base import SPLITS, Split
from ddcnn.data.sources.decoding import SUFFIXES, decode, format_like
from ddcnn.data.sources.fitting import Fit, fit_split, sample_by_sample
from ddcnn.data.sources.folders import inside, walk
from ddcnn.data.sources.volumes import SUFFIXES as VOLUMES
from ddcnn.data.sources.volumes import TABLE
from ddcnn.data.sources.volumes import load as load_volume
from ddcnn.errors import InputError, did_you_mean
from ddcnn.inference.trained_run import TrainedOn
from ddcnn.io.hdf5 import parsing, reading

ARRAYS = {".npz": open_npz, ".h5": open_h5}
OF_PIXELS = ("window", "image_size", "image_transform", "interpolation", "volume_size")  # options that decide on pixels
UNSPLIT = (("x", "y"), ("images", "labels"))


@dataclass(frozen=True)
class Wanted:
    """What is asked for: a split ("train", "test", "all"), a subset of it, and whether folders are taken without labels."""

    split: str = "test"
    samples: int | None = None
    unlabelled: bool = False


def open_images(options: SourceOptions, trained_on: TrainedOn, wanted: Wanted) -> tuple[Split, np.ndarray]:
    """Images alike to those of a run, and which of them are wanted, ascending (S,).

    Args:
        options: name, data root and download of the source; the rest is that of the run.

    Raises:
        InputError: nothing that can be read, or images that are not alike.
    """
    *spatial, channels = trained_on.shape
    pixels = format_like(channels, np.dtype(trained_on.dtype))
    options = replace(options.as_before(trained_on.preprocessing), volumes=len(spatial) == 3, pixels=pixels)
    try:
        split = _open(options, trained_on, wanted)
    except (OSError, InputError) as error:
        raise InputError(str(error).removeprefix("--data ")) from None
    if split.shape[1:] != trained_on.shape or split.dtype != np.dtype(trained_on.dtype):
        raise InputError(
            f"{options.name}: images of {_text(split.shape[1:])} {split.dtype}, but the run was trained on {_text(trained_on.shape)} "
            f"{np.dtype(trained_on.dtype)} ({'depth x ' if len(spatial) == 3 else ''}rows x columns x channels): bring them to the same"
        )
    wrong = split.labels[(split.labels < -1) | (split.labels >= len(trained_on.class_names))]
    if wrong.size:
        known = f"0 to {len(trained_on.class_names) - 1} (-1: nobody knows)"
        raise InputError(f"{options.name}: label {wrong[0]}, but the run has classes {known}")
    if not len(split):
        raise InputError(f"{options.name}: there are no images in it")
    if wanted.samples is not None and wanted.samples > len(split):
        raise InputError(f"--samples {wanted.samples}: {options.name} has only {len(split)} images")
    if wanted.samples is not None and wanted.split == "all":
        raise InputError("--samples is of one split: take --split test or train")
    return split, balanced_subset(split.labels, wanted.samples, options.seed, wanted.split)


def _open(options: SourceOptions, trained_on: TrainedOn, wanted: Wanted) -> Split:
    path = Path(options.name)
    kind, suffixes = ("volume", VOLUMES) if options.volumes else ("image", SUFFIXES)
    if path.is_file() and path.suffix == ".h5" and is_partitioned(path):
        return _partitioned(PartitionedSet.open(path), options, trained_on, wanted.split)
    if path.is_file() and path.suffix in ARRAYS:
        return _arrays(options, wanted.split)
    if path.is_file():
        if not path.name.lower().endswith(suffixes):
            raise InputError(
                f"{path} is no {kind}, which the run was trained on: give a file that ends in {', '.join((*suffixes, *ARRAYS))}"
            )
        return _files(options, trained_on, [path])
    if path.is_dir() and (loose := _loose(path, suffixes, wanted.unlabelled)):
        return _files(options, trained_on, loose)
    source = open_source(options)
    return _chosen(source.splits, _renumbering(source.name, source.class_names, trained_on.class_names, path.is_dir()), wanted.split)


def _loose(folder: Path, suffixes: tuple[str, ...], everything: bool) -> list[Path]:
    """The images of a folder without labels; none if its folders are classes, or a table has labels."""
    if not everything and (folder / TABLE).exists():
        return []
    direct = any(entry.is_file() and entry.name.lower().endswith(suffixes) for entry in folder.iterdir())
    subfolders = any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())
    if not direct and subfolders and not everything:
        return []
    found = sorted(inside(folder, entry) for entry in walk(folder, suffixes))
    if not found:
        raise InputError(f"{folder}: nothing to classify in it (files that end in {', '.join(suffixes)})")
    return found


def _files(options: SourceOptions, trained_on: TrainedOn, paths: list[Path]) -> Split:
    """Image files, or volumes, without labels."""
    fit, load = Fit(options, len(trained_on.shape) - 1), _loader(options, trained_on)

    def sample(i: int) -> np.ndarray:
        found = load(paths[i])
        if (fit.size is None and found.shape != trained_on.shape) or found.shape[-1] != trained_on.shape[-1]:
            raise InputError(
                f"{paths[i]} is {_text(found.shape)}, but the run was trained on {_text(trained_on.shape)}: bring it to that size"
            )
        return found

    unknown = np.full(len(paths), -1, np.int64)
    return sample_by_sample(unknown, trained_on.shape, np.dtype(trained_on.dtype), fit, sample, lambda i: paths[i])


def _loader(options: SourceOptions, trained_on: TrainedOn) -> Callable[[Path], np.ndarray]:
    if options.volumes:
        return load_volume
    if options.pixels is None:
        kind = f"{trained_on.shape[-1]} channels of {np.dtype(trained_on.dtype)}"
        raise InputError(f"{options.name}: no image file is read as what the run was trained on, {kind}; give an .npz or .h5 of arrays")
    return partial(decode, pixels=options.pixels)


def _arrays(options: SourceOptions, wanted: str) -> Split:
    """Arrays in a file, with the labels that lie beside them; without names of splits all images are taken."""
    arrays, _ = ARRAYS[Path(options.name).suffix](Path(options.name))
    names = {split: [(f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels")] for split in SPLITS}
    pairs = {split: pair for split in SPLITS if (pair := next((pair for pair in names[split] if pair[0] in arrays), None))}
    alone = next((pair for pair in UNSPLIT if pair[0] in arrays), (next(iter(arrays)), "") if len(arrays) == 1 else None)

    def split(pair: tuple[str, str]) -> Split:
        images = arrays[pair[0]]
        shape = with_channels(f"{options.name}: {pair[0]}", images.shape, options.volumes)
        labels = np.full(shape[0], -1, np.int64)
        if pair[1] in arrays:
            labels = read_labels(f"{options.name}: {pair[1]}", arrays[pair[1]])
        if len(labels) != shape[0]:
            raise InputError(f"{options.name}: {pair[0]} has {shape[0]} images and {pair[1]} {len(labels)} labels")
        return fit_split(Split(shape, images.dtype, labels, partial(read_array, images, shape[1:])), options)

    if alone and not pairs:
        return split(alone)
    if not pairs or (wanted != "all" and wanted not in pairs):
        known = " or ".join(x for x, _ in names["test" if wanted == "all" else wanted])
        raise InputError(f"{options.name}: no {known} among its arrays ({', '.join(arrays) or 'none'}); see --split")
    return _chosen({name: split(pair) for name, pair in pairs.items()}, lambda labels: labels, wanted)


def _partitioned(store: PartitionedSet, options: SourceOptions, trained_on: TrainedOn, wanted: str) -> Split:
    """Whole images, put together again; what has become of their pixels is what ``options`` say."""
    with reading(Path(store.path), "not a readable partitioned set"), parsing():
        theirs = options.as_before(store.preprocessing)
    for name in OF_PIXELS:
        if getattr(theirs, name) != getattr(options, name):
            there, wanted_there = (_setting(getattr(one, name)) for one in (theirs, options))
            raise InputError(
                f"{store.path}: partitioned with --{name.replace('_', '-')} {there}, but the run's images with {wanted_there}: partition "
                "their source with the same options, or name the source itself"
            )
    splits = {
        name: Split((store.samples[name], *store.shape), np.dtype(store.dtype), store.labels(name), partial(store.whole, name))
        for name in SPLITS
    }
    return _chosen(splits, _renumbering(store.path, store.class_names, trained_on.class_names), wanted)


def _renumbering(name: str, own: tuple[str, ...], class_names: tuple[str, ...], folder: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """How labels of a source become those of the run, in which a class may have another number."""
    hint = "; --unlabelled takes the images without labels" if folder else ""
    for one in own:
        if one not in class_names:
            guess = did_you_mean(one, class_names)
            raise InputError(f"{name}: the run knows no class {one}{guess}; it has {_few(class_names)}{hint}")
    number = np.array([class_names.index(one) for one in own])
    return lambda labels: number[labels]


def _chosen(splits: dict[str, Split], renumber: Callable[[np.ndarray], np.ndarray], wanted: str) -> Split:
    """One of the splits, or all of them one after the other."""
    parts = [splits[name] for name in SPLITS if name in splits and wanted in (name, "all")]
    labels = np.concatenate([renumber(part.labels) for part in parts])
    if len(parts) == 1:
        return replace(parts[0], labels=labels)
    first, second = parts
    border = len(first)

    def read(indices: np.ndarray) -> np.ndarray:
        before = indices < border
        halves = ((first, indices[before]), (second, indices[~before] - border))
        return np.concatenate([part.read(chosen) for part, chosen in halves if len(chosen)])

    def name(i: int) -> object:
        return first.name(i) if i < border else second.name(i - border)

    if first.shape[1:] != second.shape[1:] or first.dtype != second.dtype:
        raise InputError("--split all: training and test images are of another size or type: name one of them with --split")
    return Split((len(labels), *first.shape[1:]), first.dtype, labels, read, name)


def _setting(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)


def _text(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")

"""Images to be classified by a finished run: any source, with or without labels, preprocessed as the run's own images were."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ddcnn.data.image_spec import TrainedOn
from ddcnn.data.partitioned_set import PartitionedSet, is_partitioned
from ddcnn.data.sources import SourceOptions, balanced_subset, open_source
from ddcnn.data.sources.array_files import NAMES, OPENERS, array_split
from ddcnn.data.sources.base import SPLITS, Split, same_type
from ddcnn.data.sources.decoding import SUFFIXES, decode, format_like
from ddcnn.data.sources.folders import Walk
from ddcnn.data.sources.image_headers import Headers, header
from ddcnn.data.sources.resizing import Fit, fit_split, sample_by_sample
from ddcnn.data.sources.tables import table_in
from ddcnn.data.sources.volumes import SUFFIXES as VOLUMES
from ddcnn.data.sources.volumes import check_nibabel, load_volume
from ddcnn.decomposition import times
from ddcnn.errors import InputError, did_you_mean
from ddcnn.io.hdf5 import parsing, reading

OF_PIXELS = ("window", "image_size", "image_transform", "interpolation", "volume_size")  # options that change pixels
UNSPLIT = (("x", "y"), ("images", "labels"))  # names of arrays


def open_images(
    options: SourceOptions, trained_on: TrainedOn, wanted: str, samples: int | None, unlabelled: bool
) -> tuple[Split, np.ndarray]:  # fmt: skip
    """Images like those that a run was trained on, and the ascending indices (S,) of those selected.

    Args:
        options: name, data root and download of the source; the run's options replace all others.
        wanted: split, "train", "test" or "all".
        samples: of a balanced subset; None for all.
        unlabelled: ignore the labels of folders.

    Raises:
        InputError: nothing that can be read, or images of another shape or type.
    """
    *spatial, channels = trained_on.shape
    pixels = format_like(channels, np.dtype(trained_on.dtype))
    before = options.as_before(trained_on.preprocessing)
    options = replace(before, volumes=len(spatial) == 3, pixels=pixels, nan=options.nan or before.nan)
    try:
        split = _open(options, trained_on, wanted, unlabelled)
    except (OSError, InputError) as error:
        raise InputError(str(error).removeprefix("--data ")) from None
    if split.shape[1:] != trained_on.shape or not same_type(split.dtype, np.dtype(trained_on.dtype)):
        raise InputError(
            f"{options.name}: images of {times(split.shape[1:])} {split.dtype}, but the run was trained on {times(trained_on.shape)} "
            f"{np.dtype(trained_on.dtype)} ({'depth x ' if len(spatial) == 3 else ''}rows x columns x channels): convert them"
        )
    wrong = split.labels[(split.labels < -1) | (split.labels >= len(trained_on.class_names))]
    if wrong.size:
        known = f"0 to {len(trained_on.class_names) - 1} (-1: unknown)"
        raise InputError(f"{options.name}: label {wrong[0]}, but the run has classes {known}")
    if not len(split):
        raise InputError(f"{options.name}: there are no images in it")
    if samples is not None and samples > len(split):
        raise InputError(f"--samples {samples}: {options.name} has only {len(split)} images")
    if samples is not None and wanted == "all":
        raise InputError("--samples is of one split: give --split test or train")
    return split, balanced_subset(split.labels, samples, options.seed, wanted)


def _open(options: SourceOptions, trained_on: TrainedOn, wanted: str, unlabelled: bool) -> Split:
    path = Path(options.name)
    kind, suffixes = ("volume", VOLUMES) if options.volumes else ("image", SUFFIXES)
    if path.suffix.lower() == ".h5" and is_partitioned(path):
        return _partitioned(PartitionedSet.open(path), options, trained_on, wanted)
    if path.is_file() and path.suffix.lower() in OPENERS:
        return _arrays(options, wanted)
    if path.is_file():
        if not path.name.lower().endswith(suffixes):
            raise InputError(
                f"{path} is no {kind} file, and the run was trained on {kind}s: give one that ends in {', '.join((*suffixes, *OPENERS))}"
            )
        return _files(options, trained_on, [path])
    if path.is_dir() and (files := _unlabelled_files(Walk(path, suffixes, options.follow_links), unlabelled)):
        return _files(options, trained_on, files)
    source = open_source(options)
    return _select(_renumbered(source.name, source.splits, source.class_names, trained_on.class_names), wanted)


def _unlabelled_files(walk: Walk, ignore_labels: bool) -> list[Path]:
    """The images of a folder without labels; none if it has class folders or a table of labels, unless these are to be ignored."""
    folder, suffixes = walk.root, walk.suffixes
    if not ignore_labels and table_in(folder):
        return []
    direct = any(entry.is_file() and entry.name.lower().endswith(suffixes) for entry in folder.iterdir())
    subfolders = any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())
    if not direct and subfolders and not ignore_labels:
        return []
    files = sorted(walk.files(folder))
    if not files:
        raise InputError(f"{folder}: nothing to classify in it (files that end in {', '.join(suffixes)})")
    walk.tell()
    return files


def _files(options: SourceOptions, trained_on: TrainedOn, paths: list[Path]) -> Split:
    """Image files, or volumes, without labels."""
    fit, shape, dtype = Fit(options, len(trained_on.shape) - 1), trained_on.shape, np.dtype(trained_on.dtype)
    pixels = options.pixels
    if not options.volumes and pixels is None:
        what = f"{shape[-1]} channels of {dtype}"
        raise InputError(f"{options.name}: the run was trained on {what}, which image files cannot give; name an .npz or .h5 of arrays")

    if options.volumes:
        check_nibabel(Path(options.name))
    else:
        headers = Headers()
        headers.read(paths, header)
        headers.tell()

    def load(i: int) -> np.ndarray:
        image = load_volume(paths[i]) if options.volumes or pixels is None else decode(paths[i], pixels, options.mode)
        if (fit.size is None and image.shape != shape) or image.shape[-1] != shape[-1]:
            raise InputError(f"{paths[i]} is {times(image.shape)}, but the run was trained on {times(shape)}: resize it")
        return image

    return sample_by_sample(np.full(len(paths), -1, np.int64), shape, dtype, fit, load, paths.__getitem__)


def _arrays(options: SourceOptions, wanted: str) -> Split:
    """Arrays in a file, with their labels if it has some; all images if the arrays are not named after splits."""
    arrays, _ = OPENERS[Path(options.name).suffix.lower()](Path(options.name))
    pairs = {split: pair for split, names in NAMES.items() if (pair := next((pair for pair in names if pair[0] in arrays), None))}
    single = next((pair for pair in UNSPLIT if pair[0] in arrays), (next(iter(arrays)), "") if len(arrays) == 1 else None)
    if single and not pairs:
        return fit_split(array_split(options, arrays, *single), options)
    if not pairs or (wanted != "all" and wanted not in pairs):
        known = " or ".join(x for x, _ in NAMES["test" if wanted == "all" else wanted])
        raise InputError(f"{options.name}: no {known} among its arrays ({', '.join(arrays) or 'none'}); see --split")
    return _select({split: fit_split(array_split(options, arrays, *pair), options) for split, pair in pairs.items()}, wanted)


def _partitioned(store: PartitionedSet, options: SourceOptions, trained_on: TrainedOn, wanted: str) -> Split:
    """Whole images, put together from the subdomains; they must have been preprocessed as ``options`` say."""
    with reading(Path(store.path), "not a readable partitioned set"), parsing():
        stored = options.as_before(store.preprocessing)
    for name in OF_PIXELS:
        if getattr(stored, name) != getattr(options, name):
            setting, expected = (_setting(getattr(one, name)) for one in (stored, options))
            raise InputError(
                f"{store.path}: partitioned with --{name.replace('_', '-')} {setting}, but the run's images with {expected}: partition "
                "their source with the same options, or name the source itself"
            )
    splits = {
        name: Split((store.samples[name], *store.shape), np.dtype(store.dtype), store.labels(name), partial(store.whole, name))
        for name in SPLITS
    }
    return _select(_renumbered(store.path, splits, store.class_names, trained_on.class_names), wanted)


def _renumbered(name: str, splits: dict[str, Split], class_names: tuple[str, ...], known: tuple[str, ...]) -> dict[str, Split]:
    """Splits with class numbers of the run, which has the ``known`` classes, instead of the source's."""
    for class_name in class_names:
        if class_name not in known:
            names = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
            hint = "; --unlabelled takes the images without labels" if Path(name).is_dir() else ""
            raise InputError(f"{name}: the run has no class {class_name}{did_you_mean(class_name, known)}; its classes are {names}{hint}")
    number = np.array([known.index(class_name) for class_name in class_names])
    return {split: replace(images, labels=number[images.labels]) for split, images in splits.items()}


def _select(splits: dict[str, Split], wanted: str) -> Split:
    """One of the splits, or all of them, one after the other."""
    if wanted in splits:
        return splits[wanted]
    if len(splits) == 1:
        return next(iter(splits.values()))
    first, second = (splits[name] for name in SPLITS)
    if first.shape[1:] != second.shape[1:] or not same_type(first.dtype, second.dtype):
        raise InputError("--split all: training and test images differ in size or type: name one split with --split")
    border = len(first)

    def read(indices: np.ndarray) -> np.ndarray:
        before = indices < border
        halves = ((first, indices[before]), (second, indices[~before] - border))
        return np.concatenate([split.read(chosen) for split, chosen in halves if len(chosen)])

    def name(i: int) -> object:
        return first.name(i) if i < border else second.name(i - border)

    labels = np.concatenate([first.labels, second.labels])
    return Split((len(labels), *first.shape[1:]), first.dtype, labels, read, name)


def _setting(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)

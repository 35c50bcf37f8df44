"""Images to be classified by a finished run: any source, with or without labels, preprocessed as the run's own images were."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ddcnn.data.files_to_classify import files_in
from ddcnn.data.image_spec import TrainedOn
from ddcnn.data.partitioned_set import PartitionedSet, is_partitioned
from ddcnn.data.sources import SourceOptions, balanced_subset, is_path, named_without_option, open_source
from ddcnn.data.sources.array_files import NAMES, OPENERS, Array, array_split
from ddcnn.data.sources.base import Split, same_type
from ddcnn.data.sources.decoding import SUFFIXES, format_like, opened, to_array
from ddcnn.data.sources.dicom_files import is_dicom
from ddcnn.data.sources.folders import Walk
from ddcnn.data.sources.image_headers import Headers
from ddcnn.data.sources.resizing import Fit, fit_split, sample_by_sample
from ddcnn.data.sources.splits import completed, joined
from ddcnn.data.sources.volume_walk import SUFFIXES as VOLUMES
from ddcnn.data.sources.volume_walk import VolumeWalk, kind_of
from ddcnn.data.sources.volumes import load_volume
from ddcnn.decomposition import times
from ddcnn.errors import InputError, did_you_mean
from ddcnn.io.hdf5 import parsing, reading

OF_PIXELS = ("window", "image_size", "image_transform", "interpolation", "volume_size")  # options that change pixels
UNSPLIT = (("x", "y"), ("images", "labels"))  # names of arrays
WITHOUT_LABELS = "--unlabelled takes the images without labels"


@dataclass(frozen=True)
class Wanted:
    """Which images of a source are to be classified.

    Attributes:
        split: "train", "validation", "test" or "all"; None: of a source with test images, or of the run's own, the test images, of
            one with validation images those, else all.
        samples: of a balanced subset; None for all.
        unlabelled: ignore all labels.
        is_own: whether images are those that the run was tested on, by these and the number of all images of their source.
    """

    split: str | None
    samples: int | None
    unlabelled: bool
    is_own: Callable[[Split, int], bool]


@dataclass(frozen=True)
class Selection:
    """Images to classify.

    Attributes:
        images: of a split, or of all.
        chosen: (S,) ascending indices of those selected.
        split: "train", "validation", "test" or "all".
        others: number of the source's images that are not of the split.
    """

    images: Split
    chosen: np.ndarray
    split: str
    others: int


def open_images(options: SourceOptions, trained_on: TrainedOn, wanted: Wanted) -> Selection:
    """Images like those that a run was trained on; the rules for sets to train on do not apply to them.

    Args:
        options: name, data root and download of the source; the run's options replace all others.

    Raises:
        InputError: nothing that can be read, images of another shape or type, or of classes that the run has not.
    """
    *spatial, channels = trained_on.shape
    pixels = format_like(channels, np.dtype(trained_on.dtype))
    before = options.as_before(trained_on.preprocessing)
    options = replace(before, volumes=len(spatial) == 3, pixels=pixels, nan=options.nan or before.nan)
    with named_without_option():
        name, split, others = _select(options.name, _open(options, trained_on, wanted), wanted)
    if split.shape[1:] != trained_on.shape or not same_type(split.dtype, np.dtype(trained_on.dtype)):
        raise InputError(
            f"{options.name}: images of {times(split.shape[1:])} {split.dtype}, but the run was trained on {times(trained_on.shape)} "
            f"{np.dtype(trained_on.dtype)} ({'depth x ' if len(spatial) == 3 else ''}rows x columns x channels): convert them"
        )
    wrong = split.labels[(split.labels < -1) | (split.labels >= len(trained_on.class_names))]
    if wrong.size:
        known = f"0 to {len(trained_on.class_names) - 1} (-1: unknown)"
        raise InputError(f"{options.name}: label {wrong[0]}, but the run has classes {known}; {WITHOUT_LABELS}")
    if not len(split):
        raise InputError(f"{options.name}: there are no images in it")
    samples = wanted.samples
    if samples is not None and samples > len(split):
        raise InputError(f"--samples {samples}: {options.name} has only {len(split)} images")
    if samples is not None and wanted.split == "all":
        raise InputError("--samples is of one split: give --split test, validation or train")
    return Selection(split, balanced_subset(split.labels, samples, options.seed, "test" if name == "all" else name), name, others)


def _open(options: SourceOptions, trained_on: TrainedOn, wanted: Wanted) -> dict[str, Split]:
    """The splits of a source, or "all"."""
    path = Path(options.name)
    kind, suffixes = ("volume", VOLUMES) if options.volumes else ("image", SUFFIXES)
    if path.suffix.lower() == ".h5" and is_partitioned(path):
        return _partitioned(PartitionedSet.open(path), options, trained_on, wanted)
    if path.is_file() and path.suffix.lower() in OPENERS:
        return _arrays(options, trained_on, wanted)
    if path.is_file():
        if not (path.name.lower().endswith(suffixes) or (options.volumes and is_dicom(path))):
            raise InputError(
                f"{path} is no {kind} file, and the run was trained on {kind}s: give one that ends in {', '.join((*suffixes, *OPENERS))}"
            )
        return {"all": _files(options, trained_on, [(path, "")])}
    if path.is_dir() and is_path(options.name):
        walk = VolumeWalk.of(options) if options.volumes else Walk(path, follow_links=options.follow_links)
        found = {split: _files(options, trained_on, files) for split, files in files_in(walk, trained_on.class_names, wanted.unlabelled)}
        return _completed(options, found, wanted)
    source = open_source(options)
    splits = _renumbered(source.name, source.splits, source.class_names, trained_on, wanted)
    if "test" in source.drawn and wanted.split is None and not wanted.is_own(splits["test"], sum(map(len, splits.values()))):
        return {"all": joined(list(splits.values()))}
    return splits


def _completed(options: SourceOptions, found: dict[str, Split], wanted: Wanted) -> dict[str, Split]:
    """The splits of files, with those that the run would draw from training images, as it has drawn its own.

    They are drawn if the files are the run's, or if one of them is asked for; without two files of a class all are test images.
    """
    if wanted.unlabelled or (wanted.split in ("all", "test", "validation") and wanted.split in (*found, "all")):
        return found
    whole = found.get("all", found.get("train") if len(found) > 1 else None)
    if whole is not None and np.bincount(whole.labels + 1)[1:].max(initial=0) > 1:
        own = {name: split for name, split in found.items() if name != "all"}
        parts, _ = completed(own | {"train": whole}, options)
        is_own = "test" not in found and wanted.split is None and wanted.is_own(parts["test"], sum(map(len, found.values())))
        if is_own or wanted.split in parts:
            return parts
    return found


def _select(name: str, splits: dict[str, Split], wanted: Wanted) -> tuple[str, Split, int]:
    """Name and images of one of the splits of a source, or of all of them, one after the other; and the number of other images."""
    if wanted.unlabelled:
        splits = {split: replace(images, labels=np.full(len(images), -1, np.int64)) for split, images in splits.items()}
    judged = next((split for split in ("test", "validation") if split in splits), "all")
    chosen = wanted.split or (next(iter(splits)) if len(splits) == 1 else judged)
    if len(splits) == 1 and (wanted.unlabelled or chosen in splits or chosen == "all" or ("all" in splits and chosen == "test")):
        return chosen, next(iter(splits.values())), 0
    if chosen == "all":
        return chosen, joined(list(splits.values())), 0
    if chosen not in splits:
        none = "validation images" if chosen == "validation" else f"images to {chosen} on"
        others = "its test images" if "test" in splits else "all of them"
        raise InputError(f"--split {chosen}: {name} has no {none}; leave --split out, which takes {others}")
    return chosen, splits[chosen], sum(map(len, splits.values())) - len(splits[chosen])


def _files(options: SourceOptions, trained_on: TrainedOn, files: Sequence[tuple[Path, str]]) -> Split:
    """Image files, or volumes, and the names of their classes, which are empty where they are unknown."""
    numbers = _numbers(options.name, {label for _, label in files}, trained_on.class_names)
    paths, labels = [path for path, _ in files], np.array([numbers[label] for _, label in files], np.int64)
    fit, shape, dtype = Fit(options, len(trained_on.shape) - 1), trained_on.shape, np.dtype(trained_on.dtype)
    pixels = options.pixels
    if not options.volumes and pixels is None:
        what = f"{shape[-1]} channels of {dtype}"
        raise InputError(f"{options.name}: the run was trained on {what}, which image files cannot give; name an .npz or .h5 of arrays")

    for path in paths if options.volumes else ():
        kind_of(path)  # a package that is missing is no damage
    headers = Headers()

    def load(i: int) -> np.ndarray:
        if options.volumes or pixels is None:
            image = load_volume(paths[i], dtype, "the run's images")
        else:
            with opened(paths[i]) as file:
                headers.meet(file, paths[i])
                image = to_array(file, pixels, paths[i], options.mode)
        if image.shape[-1] != shape[-1]:
            raise InputError(f"{paths[i]} has {image.shape[-1]} channels, but the run was trained on {shape[-1]}: convert it")
        if fit.size is None and image.shape != shape:
            option = "--volume-size" if len(shape) == 4 else "--image-size"
            raise InputError(
                f"{paths[i]} is {times(image.shape)}, but the run was trained on {times(shape)}: resize it; a run that was trained with "
                f"{option} does so itself"
            )
        return image

    return sample_by_sample(labels, shape, dtype, fit, load, paths.__getitem__)


def _arrays(options: SourceOptions, trained_on: TrainedOn, wanted: Wanted) -> dict[str, Split]:
    """Arrays in a file, with their labels if it has some; "all" if the arrays are not named after splits."""
    arrays, _ = OPENERS[Path(options.name).suffix.lower()](Path(options.name))

    def split_of(x: str, y: str) -> Split:
        images = fit_split(array_split(options, arrays, x, ""), options)
        if y not in arrays or wanted.unlabelled:
            return images
        labels = _labels(f"{options.name}: {y}", arrays[y], options.name, trained_on.class_names)
        if len(labels) != len(images):
            raise InputError(f"{options.name}: {x} has {len(images)} images and {y} {len(labels)} labels")
        return replace(images, labels=labels)

    pairs = {split: pair for split, names in NAMES.items() if (pair := next((pair for pair in names if pair[0] in arrays), None))}
    single = next((pair for pair in UNSPLIT if pair[0] in arrays), (next(iter(arrays)), "") if len(arrays) == 1 else None)
    if single and not pairs:
        return {"all": split_of(*single)}
    drawn = "train" in pairs and ("validation" in pairs or wanted.split == "validation")
    if not pairs or (wanted.split != "all" and (wanted.split or "test") not in pairs and not drawn):
        known = " or ".join(x for x, _ in NAMES["train" if wanted.split == "train" else "test"][:2])
        other = " or ".join(f"--split {split} takes {x}" for split, (x, _) in pairs.items()) or "arrays of one split may be called x and y"
        raise InputError(f"{options.name}: no {known} among its arrays ({', '.join(arrays) or 'none'}); {other}")
    if wanted.split in ("test", "validation") and wanted.split in pairs:
        return {wanted.split: split_of(*pairs[wanted.split])}
    return _completed(options, {split: split_of(*pair) for split, pair in pairs.items()}, wanted)


def _labels(what: str, array: Array, source: str, known: tuple[str, ...]) -> np.ndarray:
    """Class numbers (S,) from an array of them, or of names of classes; -1 for names that are empty."""
    if array.shape[1:] not in ((), (1,)) or not array.shape:
        raise InputError(f"{what} has shape {array.shape}: expected one class per sample, (n,) or (n, 1)")
    values = array.read(0, array.shape[0]).reshape(-1)
    if values.dtype.kind in "SUO":
        names = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in values.tolist()]
        numbers = _numbers(source, set(names), known)
        return np.array([numbers[name] for name in names], np.int64)
    if values.dtype.kind not in "uibf" or not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        raise InputError(f"{what} has type {values.dtype}: expected class numbers 0, 1, 2 … (-1: unknown), or names; {WITHOUT_LABELS}")
    return values.astype(np.int64)


def _partitioned(store: PartitionedSet, options: SourceOptions, trained_on: TrainedOn, wanted: Wanted) -> dict[str, Split]:
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
        for name in store.samples
    }
    return _renumbered(store.path, splits, store.class_names, trained_on, wanted)


def _renumbered(
    name: str, splits: dict[str, Split], class_names: tuple[str, ...], trained_on: TrainedOn, wanted: Wanted
) -> dict[str, Split]:  # fmt: skip
    """Splits with class numbers of the run instead of the source's."""
    if wanted.unlabelled:
        return splits
    occurring = {class_names[k] for split in splits.values() for k in np.unique(split.labels)}
    numbers = _numbers(name, occurring, trained_on.class_names)
    number = np.array([numbers.get(class_name, -1) for class_name in class_names])
    return {split: replace(images, labels=number[images.labels]) for split, images in splits.items()}


def _numbers(source: str, names: set[str], known: tuple[str, ...]) -> dict[str, int]:
    """The run's numbers of classes by their names; -1 for the empty name."""
    unknown = [name for name in names if name and name not in known]
    if unknown:
        name = min(unknown)
        shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        hint = did_you_mean(name, known)
        raise InputError(f"{source}: the run has no class {name}{hint}; its classes are {shown}; {WITHOUT_LABELS}")
    return {"": -1} | {name: known.index(name) for name in names if name}


def _setting(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)

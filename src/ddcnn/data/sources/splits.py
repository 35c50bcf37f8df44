"""The splits of a source: those that it has itself, others drawn from its training images, and balanced subsets of them."""

import logging
from dataclasses import replace

import numpy as np

from ddcnn.data.sources.base import SPLITS, Source, SourceOptions, Split, same_type
from ddcnn.errors import InputError
from ddcnn.parallel.seeding import numpy_generator

logger = logging.getLogger(__name__)


def complete(source: Source, options: SourceOptions) -> Source:
    """The source with all splits that are wanted; raises as ``completed``."""
    splits, drawn = completed(source.splits, options)
    if "test" in drawn and "validation" in source.splits:
        share = f"{len(splits['test'])} of its {len(source.splits['train'])} training images"
        logger.info("note: %s has no test images: %s are drawn for testing (--test-fraction)", source.name, share)
    if options.validation_fraction and "validation" not in splits:
        logger.info("note: %s: no class has an image to spare for validation", source.name)
    return replace(source, splits=splits, drawn=frozenset(drawn))


def completed(found: dict[str, Split], options: SourceOptions) -> tuple[dict[str, Split], set[str]]:
    """A test split, and a validation split unless ``validation_fraction`` is 0, beside the training images that remain.

    A split that is not there is drawn from the training images. Where no validation set is wanted, validation images are the test images
    if there are no others, and else left out.

    Returns:
        the splits, and which of them have been drawn.

    Raises:
        InputError: no class has two samples.
    """
    if not 0 < options.test_fraction < 1:
        raise InputError(f"--test-fraction {options.test_fraction}: must lie between 0 and 1")
    if not 0 <= options.validation_fraction < 1:
        raise InputError(f"--validation-fraction {options.validation_fraction}: must lie between 0 and 1")
    splits, drawn = dict(found), set()
    if not options.validation_fraction and "validation" in splits:
        validation = splits.pop("validation")
        splits.setdefault("test", validation)
    if "test" not in splits:
        chosen = balanced_fraction(splits["train"].labels, options.test_fraction, options.seed, "test fraction")
        if not chosen.size:
            raise InputError(f"{options.name}: no class has two samples, one to train and one to test on; give every class two or more")
        splits["train"], splits["test"] = divided(splits["train"], chosen)
        drawn.add("test")
    if options.validation_fraction and "validation" not in splits:
        chosen = balanced_fraction(splits["train"].labels, options.validation_fraction, options.seed, "validation fraction")
        if chosen.size:
            splits["train"], splits["validation"] = divided(splits["train"], chosen)
            drawn.add("validation")
    return {name: splits[name] for name in SPLITS if name in splits}, drawn


def balanced_fraction(labels: np.ndarray, fraction: float, seed: int, purpose: str) -> np.ndarray:
    """Ascending indices of a seeded fraction of every class of (S,) labels.

    Of a class of two or more samples at least one is chosen, and one is not; the sample of a class of one is not.
    """
    classes = _shuffled_classes(labels, seed, purpose)
    chosen = [indices[: min(len(indices) - 1, max(1, round(fraction * len(indices))))] for indices in classes]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def balanced_subset(labels: np.ndarray, samples: int | None, seed: int, split: str) -> np.ndarray:
    """Ascending indices of a seeded subset with numbers per class as equal as possible; all indices for None.

    Raises:
        InputError: the split has fewer samples.
    """
    if samples is None:
        return np.arange(len(labels))
    if samples > len(labels):
        raise InputError(f"--{split}-samples {samples}: the {split} split has only {len(labels)} samples")
    classes = _shuffled_classes(labels, seed, f"subset {split}")
    rank_in_class = np.concatenate([np.arange(len(indices)) for indices in classes])
    return np.sort(np.concatenate(classes)[np.argsort(rank_in_class, kind="stable")[:samples]])  # the first of each class, the second …


def divided(split: Split, chosen: np.ndarray) -> tuple[Split, Split]:
    """The samples of a split that are not chosen, and those that are, by ascending indices."""
    return part(split, np.setdiff1d(np.arange(len(split)), chosen)), part(split, chosen)


def part(split: Split, indices: np.ndarray) -> Split:
    """The samples of a split with ascending ``indices``; they keep their names."""
    shape, labels = (len(indices), *split.shape[1:]), split.labels[indices]
    return Split(shape, split.dtype, labels, lambda rows: split.read(indices[rows]), lambda i: split.name(int(indices[i])))


def joined(parts: list[Split]) -> Split:
    """The samples of several splits, one after the other.

    Raises:
        InputError: their images differ in size or type.
    """
    first, *others = parts
    if any(first.shape[1:] != other.shape[1:] or not same_type(first.dtype, other.dtype) for other in others):
        raise InputError("--split all: training and test images differ in size or type: name one split with --split")
    borders = np.cumsum([0, *map(len, parts)])

    def read(indices: np.ndarray) -> np.ndarray:
        bounds = np.searchsorted(indices, borders)
        pieces = [one.read(indices[a:b] - start) for one, a, b, start in zip(parts, bounds, bounds[1:], borders, strict=False) if b > a]
        return np.concatenate([np.empty((0, *first.shape[1:]), first.dtype), *pieces])

    def name(i: int) -> object:
        k = int(np.searchsorted(borders, i, "right")) - 1
        return parts[k].name(i - int(borders[k]))

    labels = np.concatenate([one.labels for one in parts])
    return Split((len(labels), *first.shape[1:]), first.dtype, labels, read, name)


def _shuffled_classes(labels: np.ndarray, seed: int, purpose: str) -> list[np.ndarray]:
    """The indices of each class that occurs, shuffled."""
    order = numpy_generator(seed, purpose).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.split(order, np.cumsum(np.unique(labels, return_counts=True)[1])[:-1])

"""scikit-learn's digits, a set that needs no download."""

from importlib.metadata import distribution

import numpy as np

from ddcnn.data.sources.base import Source, SourceOptions, in_memory
from ddcnn.parallel.seeding import numpy_generator


def digits(options: SourceOptions) -> Source:
    """1 797 images of 8x8 pixels in 0 ... 16; every fifth of a seeded order is a test image."""
    # reads the file of sklearn.datasets.load_digits: importing scikit-learn would take a second
    table = np.loadtxt(str(distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")), delimiter=",")
    images, labels = table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1].astype(np.int64)
    order = numpy_generator(0, "digits").permutation(len(labels))
    test, train = np.sort(order[::5]), np.sort(np.delete(order, np.s_[::5]))
    return in_memory("digits", {"train": (images[train], labels[train]), "test": (images[test], labels[test])}, range(10))

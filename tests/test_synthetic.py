"""Synthetic images: deterministic, balanced, and with classes that only all subdomains together can tell."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.data.sources.synthetic import plane_waves, wave_vectors
from ddcnn.errors import InputError


def opened(name, **options):
    return open_source(SourceOptions(f"synthetic:{name}", Path("data"), **options))


def everything(split):
    return split.read(np.arange(len(split)))


@pytest.mark.parametrize(
    ("name", "volumes", "shape", "classes", "train", "test"),
    [
        ("32x32x10x50", False, (32, 32, 1), 10, 50, 10),
        ("9x12x3x4x77", False, (9, 12, 3), 4, 77, 16),
        ("8x9x10x8x20", True, (8, 9, 10, 1), 8, 20, 8),
        ("8x9x10x2x3x31", True, (8, 9, 10, 2), 3, 31, 7),
    ],
)
def test_the_name_tells_shape_classes_and_samples(name, volumes, shape, classes, train, test):
    source = opened(name, volumes=volumes)
    assert source.class_names == tuple(map(str, range(classes)))
    for split, samples in (("train", train), ("test", test)):
        found = source.splits[split]
        assert found.shape == (samples, *shape)
        counts = np.bincount(found.labels, minlength=classes)
        assert counts.max() - counts.min() <= 1
        assert not np.array_equal(found.labels, np.arange(samples) % classes)
        images = everything(found)
        assert images.shape == found.shape
        assert images.dtype == np.uint8
        assert images.min() >= 8
        assert images.max() <= 248
    assert not source.in_memory


@pytest.mark.parametrize(("name", "volumes"), [("12x11x3x5x400", False), ("8x8x8x2x60", True), ("300x300x3x2x60", False)])
def test_a_sample_does_not_depend_on_what_else_is_read(name, volumes):
    split = opened(name, volumes=volumes).splits["train"]
    images = everything(split)
    assert len({image.tobytes() for image in images}) == len(split)
    assert np.array_equal(split.read(np.arange(7, 31)), images[7:31])
    assert np.array_equal(split.read(np.array([3, 17, 39])), images[[3, 17, 39]])
    assert split.read(np.array([], np.int64)).shape == (0, *split.shape[1:])
    again = opened(name, volumes=volumes)
    assert np.array_equal(again.splits["train"].read(np.array([5])), images[5:6])
    test = again.splits["test"]
    alike = np.flatnonzero(test.labels == split.labels[: len(test)])  # same index, same class, other split
    assert alike.size
    assert not any(np.array_equal(image, images[i]) for i, image in zip(alike, test.read(alike), strict=True))


def test_the_fingerprint_is_of_the_name():
    names = ["8x8x4x5x40", "8x8x4x5x41"]
    found = {opened(name, volumes=volumes).fingerprint for name in names for volumes in (False, True)}
    assert len(found) == 4
    assert opened(names[0]).fingerprint in found


def classify(images: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The digit of each image (n, *spatial, 1) whose wave it holds most of."""
    pixels = images.reshape(len(images), -1) - images.mean()
    places = np.stack(np.meshgrid(*map(np.arange, images.shape[1:-1]), indexing="ij"), axis=-1).reshape(-1, vectors.shape[1])
    return np.abs(pixels @ np.exp(2j * np.pi * places @ vectors.T)).argmax(axis=1)


@pytest.mark.parametrize(("sides", "classes"), [((16, 16), 10), ((17, 20), 36), ((16, 16, 16), 8), ((64, 64), 100)])
def test_orthants_show_one_digit_each_and_together_the_class(sides, classes):
    name = "x".join(map(str, (*sides, classes, 400)))
    split = opened(name, volumes=len(sides) == 3).splits["train"]
    images, digits = everything(split), int(np.ceil(np.sqrt(classes)))
    vectors = wave_vectors(digits, len(sides))
    assert vectors.shape == (digits, len(sides))
    for place in itertools.product((0, 1), repeat=len(sides)):
        part = images[(slice(None), *(slice(half * (n // 2), n // 2 if half == 0 else n) for half, n in zip(place, sides, strict=True)))]
        found = classify(part, vectors)
        digit = (split.labels // digits, split.labels % digits)
        assert (found == digit[sum(place) % 2]).mean() > 0.97


def test_no_orthant_tells_more_than_its_digit():
    """Two classes that share a digit look alike in the orthants that show it."""
    split = opened("16x16x9x3000").splits["train"]
    corner = everything(split)[:, :8, :8, 0].reshape(3000, -1).astype(float)
    spectra = np.abs(np.fft.fft2(corner.reshape(-1, 8, 8))).reshape(3000, -1)
    means = np.array([[spectra[split.labels == 3 * d0 + d1].mean(axis=0) for d1 in range(3)] for d0 in range(3)])  # (d0, d1, frequencies)
    within = np.abs(means - means.mean(axis=1, keepdims=True))[..., 1:].max()
    between = np.abs(means.mean(axis=1) - means.mean(axis=(0, 1)))[..., 1:].max()
    assert within < between / 10


def test_plane_waves_are_cosines():
    random = np.random.default_rng(0)
    for dimension in (2, 3):
        vectors, phases = random.normal(0, 0.3, (3, dimension)), random.random((5, 2)).astype(np.float32)
        digits = np.array([2, 0, 1, 1, 2])
        bounds = [(3, 9), (0, 5), (2, 4)][:dimension]
        places = np.stack(np.meshgrid(*(np.arange(*bound) for bound in bounds), indexing="ij"), axis=-1)  # (*spatial, d)
        expected = np.cos(
            2 * np.pi * (np.einsum("...d,nd->n...", places, vectors[digits])[..., None] + phases.reshape(5, *[1] * dimension, 2))
        )
        assert np.allclose(plane_waves(vectors, digits, phases, bounds), expected, atol=1e-5)


@pytest.mark.parametrize("digits", [2, 3, 4, 6, 7, 10, 12, 32])
@pytest.mark.parametrize("dimension", [2, 3])
def test_wave_vectors_of_digits_differ_also_in_sign(digits, dimension):
    vectors = wave_vectors(digits, dimension)
    assert len(vectors) == digits
    both = np.concatenate([vectors, -vectors])
    distances = np.linalg.norm(both[:, None] - both, axis=-1) + np.eye(len(both))
    assert distances.min() > 0.04
    assert np.linalg.norm(vectors, axis=1).max() < 0.5


def test_noise_differs_from_image_to_image_and_sizes_are_changed_as_for_any_source():
    split = opened("16x16x4x40", image_size=(8, 8)).splits["train"]
    assert split.shape == (40, 8, 8, 1)
    assert everything(split).std() > 5


@pytest.mark.parametrize(
    ("name", "volumes"),
    [
        ("", False), ("32", False), ("32x32x10", False), ("32x32x32x3x10x50", False), ("32x32xx10x50", False), ("32x32x10x-5", False),
        ("32x32x10x5.5", False), ("32×32×10×50", False), ("3x32x10x50", False), ("32x32x0x10x50", False), ("32x32x1x50", False),
        ("32x32x10x9", False), ("32x32x10x50", True), ("8x8x8x1x1x4x50", True), ("8x8x3x4x50", True),
    ],
)  # fmt: skip
def test_malformed_names_are_refused_with_the_pattern(name, volumes):
    with pytest.raises(InputError) as error:
        opened(name, volumes=volumes)
    assert f"synthetic:{name}" in str(error.value)
    assert "ROWSxCOLUMNS[xCHANNELS]xCLASSESxSAMPLES" in str(error.value)
    assert ("DEPTH" in str(error.value)) == volumes


def test_hundreds_of_terabytes_are_opened_and_read_in_part():
    split = opened("40000x40000x10x20000").splits["train"]
    assert split.shape == (20000, 40000, 40000, 1)

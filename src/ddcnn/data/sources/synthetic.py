"""Synthetic images of any size, computed when they are read; no single orthant of an image determines its class.

With b the smallest integer whose square is at least K, class y = d0·b + d1. The image is halved along every axis, and each orthant
shows one digit as a plane wave with that digit's wave vector, plus noise: d0 if the sum of the orthant's indices is even, d1 if it is
odd. With four classes or more, a subdomain of an even grid determines one digit at best; all together determine the class.
"""

import itertools
import math
import re
from dataclasses import dataclass

import numpy as np

from ddcnn.data.sources.base import Source, SourceOptions, Split
from ddcnn.errors import InputError
from ddcnn.parallel.seeding import numpy_generator, seed_for

PREFIX = "synthetic:"
VERSION = 1  # of the images; part of the fingerprint
SMALLEST_SIDE = 4
MOST_SAMPLES = 10**9  # so that the labels fit into memory
CHUNK_PIXELS = 1 << 18  # pixels computed at a time
GREY_LEVEL, AMPLITUDE, NOISE = 128, 40, 80  # the sum of wave and uniform noise lies in 8 ... 248
LOWEST, MIDDLE, HIGHEST = 1 / 8, 1 / 4, 3 / 8  # frequencies in cycles per pixel
DIRECTIONS = 6  # distinguishable with 8 pixels at one frequency


def synthetic(options: SourceOptions) -> Source:
    """Opens ``synthetic:SHAPExCLASSESxSAMPLES``; SAMPLES training samples and a fifth as many test samples.

    Raises:
        InputError: a malformed name, fewer than two classes, fewer samples than classes, a side below 4.
    """
    dimension = 3 if options.volumes else 2
    axes = "DEPTHxROWSxCOLUMNS" if options.volumes else "ROWSxCOLUMNS"
    pattern = f"{PREFIX}{axes}[xCHANNELS]xCLASSESxSAMPLES"
    hint = "" if options.volumes else "; volumes need --volumes"
    text = options.name.removeprefix(PREFIX)
    numbers = [int(number) for number in text.split("x")] if re.fullmatch(r"\d{1,12}(x\d{1,12})*", text, re.ASCII) else []
    if len(numbers) not in (dimension + 2, dimension + 3):
        raise InputError(f"--data {options.name}: expected {pattern}, such as {PREFIX}{'32x' * dimension}10x5000{hint}")
    *shape, classes, samples = numbers
    shape = shape if len(shape) > dimension else [*shape, 1]
    if min(shape[:-1]) < SMALLEST_SIDE or shape[-1] < 1:
        raise InputError(f"--data {options.name}: sides are {SMALLEST_SIDE} pixels or more, channels 1 or more ({pattern}{hint})")
    if samples > MOST_SAMPLES:
        raise InputError(f"--data {options.name}: {samples} samples are more than {MOST_SAMPLES}")
    if not 2 <= classes <= samples:
        raise InputError(f"--data {options.name}: two classes or more, and a sample or more of each ({pattern}{hint})")
    counts = {"train": samples, "test": max(classes, math.ceil(samples / 5))}
    splits = {}
    for split, count in counts.items():
        labels = numpy_generator(0, f"synthetic labels {split}").permutation(np.arange(count, dtype=np.int64) % classes)
        images = Images(tuple(shape), labels, math.isqrt(classes - 1) + 1, seed_for(0, f"synthetic {split}"))
        splits[split] = Split((count, *shape), np.dtype(np.uint8), labels, images.read)
    return Source(options.name, splits, tuple(map(str, range(classes))), f"{options.name} version {VERSION} volumes {options.volumes}")


@dataclass(frozen=True)
class Images:
    """Images as a function of their index.

    Attributes:
        shape: (*spatial, C).
        labels: (S,) int64.
        digits: b.
        key: of the split's random generator.
    """

    shape: tuple[int, ...]
    labels: np.ndarray
    digits: int
    key: int

    def read(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *self.shape), np.uint8)
        step = max(1, CHUNK_PIXELS // math.prod(self.shape))
        for begin in range(0, len(indices), step):
            self._fill(images[begin : begin + step], indices[begin : begin + step])
        return images

    def _fill(self, images: np.ndarray, indices: np.ndarray) -> None:
        """Computes the images (n, *spatial, C) of a few indices."""
        spatial, channels = self.shape[:-1], self.shape[-1]
        phases = np.empty((len(indices), 2 ** len(spatial), channels), np.float32)
        for row, index in enumerate(indices):
            # the counter separates the images' streams; a seed per image would have to be hashed, which is slow
            random = np.random.Generator(np.random.Philox(key=self.key, counter=[0, 0, 0, int(index)]))
            phases[row] = random.random(phases.shape[1:], np.float32)
            images[row] = random.integers(0, 256, self.shape, np.uint8)
        both_digits = np.divmod(self.labels[indices], self.digits)  # d0, d1
        vectors = wave_vectors(self.digits, len(spatial))
        for orthant, place in enumerate(itertools.product((0, 1), repeat=len(spatial))):
            bounds = [(0, side // 2) if half == 0 else (side // 2, side) for half, side in zip(place, spatial, strict=True)]
            wave = plane_waves(vectors, both_digits[sum(place) % 2], phases[:, orthant], bounds)
            wave *= AMPLITUDE
            wave += GREY_LEVEL - NOISE
            region = images[(slice(None), *(slice(*bound) for bound in bounds))]
            wave += np.multiply(region, np.float32(2 * NOISE / 255), dtype=np.float32)
            region[...] = wave  # truncated to integers; the noise hides the rounding


def plane_waves(vectors: np.ndarray, digits: np.ndarray, phases: np.ndarray, bounds: list[tuple[int, int]]) -> np.ndarray:
    """cos 2π(k·x + φ) as (n, *spatial, C) float32, for the wave vectors k (b, d) of digits (n,) and phases φ (n, C) on a box of pixels.

    Computed as the real part of a product of one complex exponential per axis, without a cosine per pixel.
    """
    axes = [
        np.exp(2j * np.pi * vectors[:, axis, None] * np.arange(start, stop)).astype(np.complex64)[digits]  # (n, side)
        for axis, (start, stop) in enumerate(bounds)
    ]
    first = axes[0]
    for axis in axes[1:-1]:
        first = (first[:, :, None] * axis[:, None, :]).reshape(len(digits), -1)
    last = (axes[-1][:, :, None] * np.exp(np.complex64(2j * np.pi) * phases)[:, None, :]).reshape(len(digits), -1)
    waves = np.stack([first.real, -first.imag], axis=2) @ np.stack([last.real, last.imag], axis=1)
    return waves.reshape(len(digits), *(stop - start for start, stop in bounds), phases.shape[1])


def wave_vectors(digits: int, dimension: int) -> np.ndarray:
    """A wave vector for every digit, (b, d) in cycles per pixel: directions over half a turn, and more frequencies for more digits."""
    levels = -(-digits // DIRECTIONS)
    directions = -(-digits // levels)
    frequency = np.full(1, MIDDLE) if levels == 1 else np.linspace(LOWEST, HIGHEST, levels)
    turn = np.arange(directions) / directions
    if dimension == 2:
        unit = np.stack([np.sin(np.pi * turn), np.cos(np.pi * turn)], axis=1)
    else:  # a spiral over the half sphere
        height = (np.arange(directions) + 0.5) / directions
        angle = np.arange(directions) * np.pi * (3 - math.sqrt(5))
        unit = np.stack([height, np.sqrt(1 - height**2) * np.sin(angle), np.sqrt(1 - height**2) * np.cos(angle)], axis=1)
    return (frequency[:, None, None] * unit).reshape(-1, dimension)[:digits]

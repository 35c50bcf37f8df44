"""Digits scattered over a large image, whose class is their sum: no part of the image knows it (in the manner of UltraMNIST).

An image shows three of scikit-learn's digits 0 to 3, each 1/16 to 1/3 of the shorter side large (log-uniformly) and somewhere; they do not
overlap. Its class is the sum of the three, 0 to 9. Training images show training digits, test images test digits.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ddcnn.data.sources.base import Source, SourceOptions, Split
from ddcnn.data.sources.digits import digits
from ddcnn.errors import InputError
from ddcnn.parallel.seeding import numpy_generator, seed_for

PREFIX = "scattered-digits:"
VERSION = 1  # of the images; part of the fingerprint
SHOWN, LARGEST = 3, 3  # digits an image; the largest one
SMALLEST_SIDE = 48  # so that the smallest digit has three pixels
MOST_SAMPLES = 10**7
BRIGHT = 15  # times 16, the largest value of a pixel of scikit-learn's


def scattered_digits(options: SourceOptions) -> Source:
    """Opens ``scattered-digits:ROWSxCOLUMNSxSAMPLES``; SAMPLES training images and a fifth as many test images.

    Raises:
        InputError: a malformed name, a side below 48, volumes.
    """
    text = options.name.removeprefix(PREFIX)
    numbers = [int(number) for number in text.split("x")] if re.fullmatch(r"\d{1,8}x\d{1,8}x\d{1,8}", text, re.ASCII) else []
    if not numbers or options.volumes:
        hint = "; there are no volumes of it" if options.volumes else ""
        raise InputError(f"--data {options.name}: expected {PREFIX}ROWSxCOLUMNSxSAMPLES, such as {PREFIX}128x128x6000{hint}")
    rows, columns, samples = numbers
    if min(rows, columns) < SMALLEST_SIDE or not 2 * (SHOWN * LARGEST + 1) <= samples <= MOST_SAMPLES:
        raise InputError(f"--data {options.name}: sides are {SMALLEST_SIDE} pixels or more, samples 20 to {MOST_SAMPLES}")
    counts, splits = {"train": samples, "test": math.ceil(samples / 5)}, {}
    for split, images in digits(options).splits.items():
        known = images.labels <= LARGEST
        glyphs, values = images.read(np.flatnonzero(known))[..., 0] * BRIGHT, images.labels[known]
        shown = numpy_generator(0, f"scattered digits shown {split}").integers(0, LARGEST + 1, (counts[split], SHOWN))
        scattered = Images((rows, columns), shown, glyphs, values, seed_for(0, f"scattered digits {split}"))
        splits[split] = Split((counts[split], rows, columns, 1), np.dtype(np.uint8), shown.sum(1), scattered.read)
    names = tuple(map(str, range(SHOWN * LARGEST + 1)))
    return Source(options.name, splits, names, f"{options.name} version {VERSION}")


@dataclass(frozen=True)
class Images:
    """Images as a function of their index.

    Attributes:
        shape: rows and columns.
        shown: (S, 3), the digits of each image.
        glyphs: (G, 8, 8) uint8.
        values: (G,), which digit each is.
        key: of the split's random generator.
    """

    shape: tuple[int, int]
    shown: np.ndarray
    glyphs: np.ndarray
    values: np.ndarray
    key: int

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self._image(int(index)) for index in indices])[..., None]

    def _image(self, index: int) -> np.ndarray:
        random = np.random.Generator(np.random.Philox(key=self.key, counter=[0, 0, 0, index]))
        image, boxes = np.zeros(self.shape, np.uint8), list[tuple[int, int, int]]()
        smallest, largest = math.log(min(self.shape) / 16), math.log(min(self.shape) / 3)
        while len(boxes) < SHOWN:
            side = int(math.exp(random.uniform(smallest, largest)))
            row, column = (int(random.integers(0, pixels - side + 1)) for pixels in self.shape)
            if any(row < r + s and r < row + side and column < c + s and c < column + side for r, c, s in boxes):
                continue
            glyph = random.choice(np.flatnonzero(self.values == self.shown[index, len(boxes)]))
            boxes.append((row, column, side))
            drawn = Image.fromarray(self.glyphs[glyph]).resize((side, side), Image.Resampling.BILINEAR)
            image[row : row + side, column : column + side] = np.asarray(drawn)
        return image

"""Mean, standard deviation and digest of images that all ranks read block by block."""

import hashlib

import numpy as np

from ddcnn.data.sources import SPLITS
from ddcnn.parallel.world import World

PIECE = 1 << 16  # pixels per summation


class BlockStatistics:
    """Statistics of each block, which combine to the same numbers on any number of ranks."""

    def __init__(self, channels: int):
        self.channels = channels
        self.rows: list[np.ndarray] = []  # (split, row, pixels, C means, C sums of squared deviations, 32 bytes of SHA-256)

    def add(self, name: str, row: int, images: np.ndarray) -> None:
        """Adds a block of the split ``name``: images (n, *spatial, C), which go to the rows from ``row`` on."""
        pixels = images.reshape(-1, self.channels)
        origin = pixels[0].astype(np.float64)  # summing differences to one pixel avoids cancellation
        total, squares = np.zeros(self.channels), np.zeros(self.channels)
        for begin in range(0, len(pixels), PIECE):
            piece = np.subtract(pixels[begin : begin + PIECE].T, origin[:, None], order="C")  # (C, P): summed along the memory
            total += piece.sum(axis=1)
            squares += np.einsum("cp,cp->c", piece, piece)
        digest = np.frombuffer(hashlib.sha256(np.ascontiguousarray(images).data).digest(), dtype=np.uint8)
        values = [[SPLITS.index(name), row, len(pixels)], origin + total / len(pixels), squares - total**2 / len(pixels), digest]
        self.rows.append(np.concatenate(values))

    def combine(self, world: World) -> tuple[tuple[float, ...], tuple[float, ...], str]:
        """On rank 0: mean and standard deviation per channel over the training images, SHA-256 over the blocks' SHA-256."""
        gathered = world.gather_rows(np.array(self.rows).reshape(-1, 3 + 2 * self.channels + 32))
        if gathered is None:
            return (), (), ""
        rows = np.concatenate(gathered)
        rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
        pixels, means, deviations = np.split(rows[rows[:, 0] == 0, 2:-32], [1, 1 + self.channels], axis=1)
        mean = means[0] + (pixels * (means - means[0])).sum(axis=0) / pixels.sum()
        std = np.sqrt(np.maximum(deviations + pixels * (means - mean) ** 2, 0).sum(axis=0) / pixels.sum())
        std[std == 0] = 1  # a constant channel
        digest = hashlib.sha256(rows[:, -32:].astype(np.uint8).tobytes()).hexdigest()
        return tuple(mean.tolist()), tuple(std.tolist()), digest

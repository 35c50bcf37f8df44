"""The shape of a network's input and output, and the width rule."""

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Shape:
    """Shape of a network's input, images (B, channels, *spatial), and its number of classes.

    Attributes:
        spatial: pixels per axis, (rows, columns) in 2-D or (depth, rows, columns) in 3-D: of the subimage for a local CNN, of the
            whole image for the global one.
        channels: 3 for colour images, 1 for grey ones.
        classes: K.
    """

    spatial: tuple[int, ...]
    channels: int
    classes: int

    @property
    def size(self) -> str:
        """``spatial`` in messages, such as 32x32."""
        return "x".join(map(str, self.spatial))


def scaled_width(width: int, divisor: float) -> int:
    """The width rule: a local CNN has the global channels and dense neurons divided by √N (or D), rounded up to a multiple of 4."""
    return ceil(width / divisor / 4 - 1e-9) * 4

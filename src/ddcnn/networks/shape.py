"""What every network is told, and the width rule."""

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Shape:
    """What a network sees: images (B, channels, *spatial), to be sorted into classes.

    Attributes:
        spatial: pixels per axis, (rows, columns) in 2-D or (depth, rows, columns) in 3-D: of the subimage for a local CNN, of the
            whole image for the global one.
        channels: per pixel: 3 for colours, 1 for grey values.
        classes: K.
    """

    spatial: tuple[int, ...]
    channels: int
    classes: int

    @property
    def size(self) -> str:
        """``spatial`` as it stands in messages: rows x columns."""
        return "x".join(map(str, self.spatial))


def scaled_width(width: int, divisor: float) -> int:
    """The width rule: a local CNN has the global channels and dense neurons divided by √N (or D), rounded up to a multiple of 4."""
    return ceil(width / divisor / 4 - 1e-9) * 4

"""What every network is told, and the width rule."""

from dataclasses import dataclass
from math import ceil

from ddcnn.errors import InputError

SMALLEST_SIDE = 4  # pixels


@dataclass(frozen=True)
class Shape:
    """What a network sees: ``channels`` images of ``spatial`` pixels in 2-D or 3-D, sorted into ``classes`` (K)."""

    spatial: tuple[int, ...]
    channels: int
    classes: int

    def check(self, network: str) -> None:
        """Refuses images too small for a network.

        Raises:
            InputError: naming the network and the subimage.
        """
        if min(self.spatial) < SMALLEST_SIDE:
            size = "x".join(map(str, self.spatial))
            raise InputError(
                f"--network {network} needs subimages of at least {SMALLEST_SIDE} pixels a side, but a subimage has {size}: "
                "choose a coarser --grid or a larger --overlap"
            )


def scaled_width(width: int, divisor: float) -> int:
    """The width rule: a local CNN has the global channels and dense neurons divided by √N (or D), rounded up to a multiple of 4."""
    return ceil(width / divisor / 4 - 1e-9) * 4

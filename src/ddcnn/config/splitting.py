"""What is split over the subdomains: the image (the papers' method), or the network in width. All that differs between them is here.

Decomposition in width: N thin networks see the whole image, are trained on their own, and side by side are the global CNN, which
``transfer`` trains on (Gu, Zhang, Liu, Cai, ETNA 56, 2022; compared with the decomposition of the image in arXiv 2410.23359). The
algebra of the composition is in ``ddcnn.method.width``.
"""

from math import prod

from ddcnn.config.methods import Method
from ddcnn.decomposition import times


class ImageSplitting:
    """Subdomain i has subimage i and a local CNN of its own."""

    cuts_images = True
    parts = "subdomains"
    cell = "a subdomain at its place in the image"  # of a map of one number per subdomain
    caption = (
        "Test images with the lines along which they are cut into cores, and below them the subimages (cores extended by the overlap) "
        "that the local CNNs see, each alone"
    )

    def headline(self, grid: tuple[int, ...], overlap: int) -> str:
        return f"{times(grid)} subdomains, overlap {overlap}"

    def map_shape(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a map of one number per subdomain."""
        return grid

    def networks_per_subimage(self, grid: tuple[int, ...]) -> int:
        return 1

    def image_grid(self, grid: tuple[int, ...], axes: int) -> tuple[int, ...]:
        """The grid by which images with this number of spatial axes are cut."""
        return grid

    def divisor(self, subdomains: int) -> float:
        """Default divisor of the width rule: 1/N of the parameters per local CNN."""
        return subdomains**0.5

    def composes(self, method: str) -> bool:
        """Whether the method trains the global CNN, composed from thin networks."""
        return False


class WidthSplitting(ImageSplitting):
    """All subdomains see the whole image; the grid only says how many networks there are."""

    cuts_images = False
    parts = "thin networks"
    cell = "a thin network"
    caption = "Test images, which all thin networks see whole"

    def headline(self, grid: tuple[int, ...], overlap: int) -> str:
        return f"{prod(grid)} thin networks"

    def map_shape(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        return (1, prod(grid))

    def networks_per_subimage(self, grid: tuple[int, ...]) -> int:
        return prod(grid)

    def image_grid(self, grid: tuple[int, ...], axes: int) -> tuple[int, ...]:
        return (1,) * axes

    def divisor(self, subdomains: int) -> float:
        return subdomains

    def composes(self, method: str) -> bool:
        return method == Method.TRANSFER


SPLITTINGS: dict[str, ImageSplitting] = {"image": ImageSplitting(), "width": WidthSplitting()}

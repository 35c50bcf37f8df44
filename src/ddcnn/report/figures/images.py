"""The decomposition, drawn on test images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ddcnn.report.figures import ORANGE, SKY

GAP = to_rgb("#FBE3B5")  # between subimages: no shade of grey, so that it is not taken for a part of them
MANY_CUTS = 64  # cores with bold lines between them
MANY_PIXELS = 700  # of an image along an axis
NUMBERED: dict[str, Any] = {"color": "white", "path_effects": [withStroke(linewidth=2, foreground="black")]}  # readable on any image
OUTLINED = {"lw": 1.8, "path_effects": [withStroke(linewidth=3.5, foreground="black")]}  # a line that stands out from any image
CUT: dict[str, Any] = {"color": ORANGE, **OUTLINED}
FRAME: dict[str, Any] = {"color": SKY, "ls": "--", **OUTLINED}


def decomposition(images: np.ndarray, titles: Sequence[str], cores: np.ndarray, subimages: np.ndarray) -> Figure:
    """Images cut into cores with the numbers of the subdomains, and below them their subimages drawn apart.

    Args:
        images: (n, rows, columns, C), or (n, depth, rows, columns, C), of which the first is shown in its three middle slices.
        titles: one for each image.
        cores, subimages: (N, 2, d) start and stop of the boxes.
    """
    if images.ndim == 5:
        panels = [_middle_slice(images[0], cores, subimages, axis) for axis in range(3)]
        titles = [f"{name} {images.shape[1 + axis] // 2}" for axis, name in enumerate(("depth", "row", "column"))]
    else:
        panels = [(image, cores, subimages, np.arange(len(cores))) for image in images]
    panels = [_thinned(*panel) for panel in panels]
    shades = scaled([image for image, *_ in panels])
    aspect = max(shade.shape[0] / shade.shape[1] for shade in shades)
    parts = 1 if len(cores) == 1 else 2
    figure = Figure((max(2.4 * len(panels), 5), 0.9 + parts * 2.35 * min(aspect, 2)), layout="constrained")
    axes = figure.subplots(parts, len(panels), squeeze=False)
    overlap = bool((cores != subimages).any())
    for column, (shade, (_, core, subimage, numbers)) in enumerate(zip(shades, panels, strict=True)):
        chosen = _middle_of_grid(core)
        _show_image(axes[0, column], shade, titles[column])
        height, width = shade.shape[:2]
        cut = CUT if len(core) <= MANY_CUTS else CUT | {"lw": 0.6, "path_effects": None}
        axes[0, column].hlines(np.unique(core[:, :, 0]), 0, width, **cut, clip_on=False)
        axes[0, column].vlines(np.unique(core[:, :, 1]), 0, height, **cut, clip_on=False)
        if overlap:
            _frame(axes[0, column], subimage[chosen])
        if len(cores) > 1 and len(core) <= MANY_CUTS:
            _write_numbers(axes[0, column], core, numbers)
        if parts == 2:
            apart, moved = _drawn_apart(shade, core, subimage)
            _show_image(axes[1, column], apart, "")
            if overlap:
                _frame(axes[1, column], moved[chosen])
    for first, text in zip(axes[:, 0], ("image and cores", "subimages"), strict=False):
        first.set_ylabel(text)
    lines = [Line2D([], [], **CUT, label="cores"), Line2D([], [], **FRAME, label="one subimage: its core and overlap")][: 1 + overlap]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False)
    return figure


def disagreement(pictures: dict[str, tuple[np.ndarray, list[str]]]) -> Figure:
    """A row of pictures (n, h, w, C) per title, with a text each; one that has none is left out."""
    rows = {title: shown for title, shown in pictures.items() if len(shown[0])}
    across = max(len(images) for images, _ in rows.values())
    images = np.concatenate([images for images, _ in rows.values()])
    shades = iter(scaled(list(images)))
    aspect = min(max(images.shape[1] / images.shape[2], 0.5), 2)
    figure = Figure((max(1.75 * across, 5), len(rows) * (1.7 * aspect + 1.05)), layout="constrained")
    for part, (title, (_, texts)) in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
        part.suptitle(title, x=0.01, ha="left")
        panels = part.subplots(1, across, squeeze=False)[0]
        for axes in panels[len(texts) :]:
            axes.set_axis_off()
        for axes, text in zip(panels, texts, strict=False):
            _show_image(axes, next(shades), "")
            axes.set_xlabel(text, fontsize=8)
            axes.set_anchor("N")
    return figure


def _write_numbers(axes: Any, cores: np.ndarray, numbers: np.ndarray) -> None:
    """The numbers of subdomains in the upper left corners of their cores (N, 2, 2), as far as there is room."""
    size = 9 if len(cores) <= 16 else 6
    for (row, column), number in zip(cores[:, 0], numbers, strict=True):
        axes.annotate(f"{number}", (column, row), (3, -3), textcoords="offset points", ha="left", va="top", fontsize=size, **NUMBERED)


Slice = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _middle_slice(volume: np.ndarray, cores: np.ndarray, subimages: np.ndarray, axis: int) -> Slice:
    """The middle slice of a volume across an axis, (h, w, C); of the cores that it meets the boxes (M, 2, 2), and the numbers (M,)."""
    middle = volume.shape[axis] // 2
    met = (cores[:, 0, axis] <= middle) & (middle < cores[:, 1, axis])
    return volume.take(middle, axis), np.delete(cores[met], axis, 2), np.delete(subimages[met], axis, 2), np.flatnonzero(met)


def _thinned(image: np.ndarray, cores: np.ndarray, subimages: np.ndarray, numbers: np.ndarray) -> Slice:
    """Every k-th pixel of an image that has more than a picture can show, and the boxes in what is left."""
    k = step_of(image)
    return image[::k, ::k], -(-cores // k), -(-subimages // k), numbers


def step_of(image: np.ndarray) -> int:
    """Of the pixels along an axis, every how many-th a picture can show."""
    return -(-max(image.shape[:2]) // MANY_PIXELS)


def scaled(images: list[np.ndarray]) -> list[np.ndarray]:
    """(h, w, 3) in [0, 1] out of pixels in any unit; few outliers do not darken the rest. Of 2 or over 3 channels, the first is shown."""
    shown = [np.nan_to_num(image.astype(np.float64), posinf=0, neginf=0) for image in images]
    shown = [image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, -1) for image in shown]
    pixels = np.concatenate([image.ravel() for image in shown])
    low, high = np.percentile(pixels, (0.5, 99.5))
    if low == high:
        low, high = pixels.min(), max(pixels.max(), pixels.min() + 1)
    return [np.clip((image - low) / (high - low), 0, 1) for image in shown]


def _drawn_apart(image: np.ndarray, cores: np.ndarray, subimages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The subimages laid side by side with a gap between them: the picture (h', w', 3), the boxes (N, 2, 2) in it."""
    gap = int(np.ceil(0.1 * (cores[:, 1] - cores[:, 0]).max()))
    position = np.stack([np.searchsorted(np.unique(cores[:, 0, axis]), cores[:, 0, axis]) for axis in (0, 1)], 1)  # (N, 2)
    reach = np.abs(cores - subimages).max()  # the overlap: neighbours share 2δ pixels
    moved = subimages + (position * (2 * reach + gap))[:, None]
    picture = np.full((*moved[:, 1].max(0), 3), GAP)
    for old, new in zip(subimages, moved, strict=True):
        picture[new[0, 0] : new[1, 0], new[0, 1] : new[1, 1]] = image[old[0, 0] : old[1, 0], old[0, 1] : old[1, 1]]
    return picture, moved


def _middle_of_grid(cores: np.ndarray) -> int:
    """The core whose centre lies nearest to the image's, so that it has neighbours on as many sides as can be."""
    centre = (cores.sum(1) - cores[:, 1].max(0)) / 2  # (N, 2), from the image's centre
    return int(np.argmin((centre**2).sum(1)))


def _show_image(axes: Any, image: np.ndarray, title: str) -> None:
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


def _frame(axes: Any, box: np.ndarray) -> None:
    """A dashed frame around a box (2, 2): start and stop."""
    (top, left), (bottom, right) = box
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **FRAME, zorder=3, clip_on=False))

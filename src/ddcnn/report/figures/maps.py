"""Values on the grid of the subdomains, and confusions: maps whose cells are coloured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ddcnn.report.figures import BLUE, GREY
from ddcnn.report.figures.images import scaled, step_of
from ddcnn.report.intervals import decimals, of_share

MANY_CELLS = 144  # cells of a map with their numbers written in
MANY_COLUMNS = 5  # the same of maps that stand side by side
FEW_CELLS = 16  # cells of a map with intervals, too
ROOT = "percent of the true class\n(colours on a square-root scale)"
MANY_CLASSES = 20  # classes with names at the axes and numbers in the cells
LEAST_RANGE = 5.0  # points that the colours of a map of losses span at least: smaller differences are small


@dataclass(frozen=True)
class Behind:
    """What a map is laid over: an image (rows, columns, C) or (depth, rows, columns, C), and the cores (N, 2, d) of its subdomains."""

    image: np.ndarray
    cores: np.ndarray

    def edges(self, axis: int) -> np.ndarray:
        """Where the cells of the grid begin along the image's rows (-2) or columns (-1), and where the last one ends."""
        return np.unique(self.cores[..., axis])

    def layers(self) -> list[np.ndarray]:
        """The image, (h, w) in [0, 1], in the middle of each of the grid's layers; of many pixels every k-th."""
        edges = self.edges(0)
        slices = [self.image[middle] for middle in (edges[1:] + edges[:-1]) // 2] if self.image.ndim == 4 else [self.image]
        k = step_of(slices[0])
        return [shade.mean(-1) for shade in scaled([image[::k, ::k] for image in slices])]


@dataclass(frozen=True)
class _Style:
    """What the maps of a figure share.

    Attributes:
        norm: the range of the colours.
        written: whether the values are written into the cells, with so many ``decimals``.
        behind, images: what the maps are laid over, if over anything, and its layers.
    """

    norm: Normalize
    decimals: int
    written: bool
    behind: Behind | None = None
    images: Sequence[np.ndarray] = ()


def local_accuracy(accuracies: np.ndarray, methods: dict[str, float], samples: int) -> Figure:
    """Test accuracy of every local CNN on the grid, (rows, columns) or (depth, rows, columns), beside that of the methods.

    Args:
        samples: on which the accuracies were measured: they tell the decimals and the intervals.
    """
    layers = accuracies.reshape(-1, *accuracies.shape[-2:])
    depths, rows, columns = layers.shape
    # no blank panels; of such arrangements that which is nearest to a square
    across = min(range(1, depths + 1), key=lambda n: (-depths % n, abs(n * columns - -(-depths // n) * rows), -n))
    down = -(-depths // across)
    bars = {"worst local CNN": accuracies.min(), "mean local CNN": accuracies.mean(), "best local CNN": accuracies.max()} | methods
    written = accuracies.size <= MANY_CELLS
    height = max(0.36 * len(bars) + 1.2, 3.2, 2.4 * down, 1.2 + 0.45 * rows * down * written)
    width = min(max((height - 1.2) / down / rows * columns * across, 2.2), 8)
    figure = Figure((width + 1.6 + 5.4, height), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(width + 1.6, 5.4))[0]
    grid = left.subplots(down, across, squeeze=False)
    for axes in grid.ravel()[depths:]:
        axes.remove()
    style = _Style(Normalize(0, 100), decimals(samples), written)  # all of the range: little is to look like little
    for depth, (axes, layer) in enumerate(zip(grid.ravel(), layers, strict=False)):
        low, high = 100 * of_share(layer, samples)
        texts = [f"{a:.{style.decimals}f}–{b:.{style.decimals}f}" for a, b in zip(low.ravel(), high.ravel(), strict=True)]
        shown = _layer(axes, 100 * layer, depth, style, texts if accuracies.size <= FEW_CELLS else ())
        axes.set_title(f"depth {depth}" if depths > 1 else "")
    left.colorbar(shown, ax=grid, label="test accuracy in percent")
    left.suptitle("local CNNs, by number of the subdomain")
    _bars(right.subplots(), bars, samples)
    right.suptitle(f"with 95 % intervals on {samples:,} test images")
    return figure


def _bars(axes: Any, bars: dict[str, float], samples: int) -> None:
    """Accuracies with their intervals; none at a mean of several."""
    values = np.array(list(bars.values()))
    low, high = of_share(values, samples)
    several = np.array([name == "mean local CNN" for name in bars])
    low[several] = high[several] = np.nan
    axes.barh(list(bars), 100 * values, color=[GREY] * 3 + [BLUE] * (len(bars) - 3))
    style: dict[str, Any] = {"ls": "none", "color": "black", "lw": 1.2, "capsize": 3}
    axes.errorbar(100 * values, range(len(bars)), xerr=100 * np.stack([values - low, high - values]), **style)
    places = decimals(samples)
    for k, (value, least, most) in enumerate(100 * np.stack([values, low, high], 1)):
        interval = "" if np.isnan(least) else f"  ({least:.{places}f}–{most:.{places}f})"
        axes.text(1.02, k, f"{value:.{places}f}{interval}", va="center", transform=axes.get_yaxis_transform())
    axes.set(xlim=(0, 100), xticks=range(0, 101, 20), xlabel="test accuracy in percent")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def reliance(lost: dict[str, np.ndarray], samples: int, behind: Behind | None = None) -> Figure:
    """Per method, a column: accuracy lost on the grid, (rows, columns), or (depth, rows, columns) in a row per depth.

    Args:
        samples: on which this was measured.
        behind: an image to lay it over, if the grid cuts images.
    """
    maps = {name: 100 * values.reshape(-1, *values.shape[-2:]) for name, values in lost.items()}
    depths, rows, columns = next(iter(maps.values())).shape
    low = min(0.0, min(values.min() for values in maps.values()))
    high = max(values.max() for values in maps.values())
    aspect = np.ptp(behind.edges(-2)) / np.ptp(behind.edges(-1)) if behind else rows / columns
    figure = Figure((max(2.3 * len(maps) + 1, 5), 0.6 + depths * max(1.0, min(2.15 * aspect, 4))), layout="constrained")
    grid = figure.subplots(depths, len(maps), squeeze=False)
    few = depths * rows * columns <= MANY_CELLS and columns <= MANY_COLUMNS
    style = _Style(Normalize(low, max(high, low + LEAST_RANGE)), decimals(samples), few, behind, behind.layers() if behind else ())
    for column, (name, layers) in enumerate(maps.items()):
        for depth, layer in enumerate(layers):
            axes = grid[depth, column]
            shown = _layer(axes, layer, depth, style)
            if depth == 0:
                axes.set_title(name)
            if depths > 1 and column == 0:
                axes.set_ylabel(f"depth {depth}")
    figure.colorbar(shown, ax=grid, label="accuracy lost in points")
    return figure


def _layer(axes: Any, values: np.ndarray, depth: int, style: _Style, below: Sequence[str] = ()) -> Any:
    """One layer of the grid (rows, columns), with texts ``below`` the values; returns what a colour bar is for."""
    rows, columns = values.shape
    first, behind = depth * rows * columns, style.behind
    down, across = (behind.edges(-2), behind.edges(-1)) if behind else (np.arange(rows + 1), np.arange(columns + 1))
    if behind:
        axes.imshow(style.images[depth], cmap="gray", extent=(0, across[-1], down[-1], 0), vmin=-0.3, vmax=1.3)
    look: dict[str, Any] = {"alpha": 0.62 if behind else 1, "edgecolors": "white", "lw": 0.5}
    shown = axes.pcolormesh(across, down, values, cmap="cividis", norm=style.norm, **look)
    axes.set(xlim=(0, across[-1]), ylim=(down[-1], 0), aspect="equal" if behind or rows > 1 else "auto", xticks=[], yticks=[])
    middles = (across[1:] + across[:-1]) / 2, (down[1:] + down[:-1]) / 2
    if not style.written:  # the first number of a row of cells, and what is to be added to it along the row
        over, up = -(-columns // 8), -(-rows // 8)
        axes.set_xticks(middles[0][::over], [f"+{k}" for k in range(0, columns, over)], fontsize=8)
        axes.set_yticks(middles[1][::up], [first + k * columns for k in range(0, rows, up)], fontsize=8)
        return shown
    size = 10 if columns * axes.get_gridspec().ncols <= 12 else 7
    for k, value in enumerate(values.ravel()):
        row, column = divmod(k, columns)
        colour: dict[str, Any] = {"color": "white" if behind or style.norm(value) < 0.5 else "black"}
        if behind:
            colour["path_effects"] = [withStroke(linewidth=2.5, foreground="black")]
        where = middles[0][column], middles[1][row]
        axes.text(*where, f"{value:z.{style.decimals}f}", ha="center", va="center", fontsize=size, **colour)
        small: dict[str, Any] = {"textcoords": "offset points", "fontsize": size - 2, "va": "top"} | colour
        axes.annotate(f"{first + k}", (across[column], down[row]), (3, -2), ha="left", style="italic", **small)
        if below:
            axes.annotate(below[k], where, (0, -size), ha="center", **small)
    return shown


def confusion(counts: np.ndarray, names: Sequence[str], method: str) -> Figure:
    """Counts (K, K) of the samples of a class (row) that a method puts into a class (column); names as of ``fonts.label``."""
    classes, samples = len(counts), counts.sum(1).astype(int)
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(max(4.2, 2.5 + 0.42 * classes), 9)
    figure = Figure((size + 1.4, size), layout="constrained")
    axes = figure.subplots()
    # the root lets rare confusions show beside a strong diagonal
    shown = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    if classes <= MANY_CLASSES:
        each = range(classes)
        slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 2 else {}
        axes.set_xticks(each, names, **slanted)
        axes.set_yticks(each, [f"{name} ({number})" for name, number in zip(names, samples, strict=True)])
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                colour = "white" if value > 30 else "black"
                axes.text(column, row, f"{max(value, 1):.0f}", ha="center", va="center", color=colour, fontsize=9)
    number = "" if classes <= MANY_CLASSES else ", by its number"
    of_each = " (test images)" if classes <= MANY_CLASSES else ""
    axes.set(xlabel=f"found class{number}", ylabel=f"true class{number}{of_each}", title=f"{method}: percent of each true class")
    figure.colorbar(shown, ax=axes, ticks=[0, 1, 5, 10, 25, 50, 100], shrink=0.9, label=ROOT)
    return figure

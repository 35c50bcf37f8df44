"""Values on the grid of the subdomains, and confusions: maps whose cells are coloured."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from ddcnn.report.figures import BLUE, GREY

MANY_CELLS = 144  # cells of a map with their numbers written in
MANY_CLASSES = 20  # classes with names at the axes and numbers in the cells


def local_accuracy(accuracies: np.ndarray, methods: dict[str, float]) -> Figure:
    """Test accuracy of every local CNN on the grid, (rows, columns) or (depth, rows, columns), beside that of the methods."""
    layers = 100 * accuracies.reshape(-1, *accuracies.shape[-2:])
    across = int(np.ceil(np.sqrt(len(layers))))
    down = int(np.ceil(len(layers) / across))
    figure = Figure((11, max(3.8, 2.6 * down)), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.2, 1))[0]
    grid = left.subplots(down, across, squeeze=False)
    low, high = layers.min(), layers.max()
    for axes in grid.ravel()[len(layers) :]:
        axes.remove()
    for depth, (axes, layer) in enumerate(zip(grid.ravel(), layers, strict=False)):
        shown = _layer(axes, layer, (low - 0.5, high + 0.5), layer.size * across**2 <= MANY_CELLS)
        if len(layers) > 1:
            axes.set_title(f"depth {depth}")
    left.colorbar(shown, ax=grid, label="test accuracy in percent", shrink=0.9)
    left.suptitle("local CNNs")

    bars = {"worst local CNN": low, "mean local CNN": layers.mean(), "best local CNN": high}
    bars |= {name: 100 * accuracy for name, accuracy in methods.items()}
    axes = right.subplots()
    drawn = axes.barh(list(bars), list(bars.values()), color=[GREY] * 3 + [BLUE] * len(methods))
    axes.bar_label(drawn, fmt="%.2f", padding=3)
    axes.set(xlim=(0, 115), xticks=range(0, 101, 20), xlabel="test accuracy in percent")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    right.suptitle("local CNNs and methods")
    return figure


def reliance(lost: dict[str, np.ndarray]) -> Figure:
    """Per method, a column: accuracy lost on the grid, (rows, columns), or (depth, rows, columns) in a row per depth."""
    maps = {name: 100 * values.reshape(-1, *values.shape[-2:]) for name, values in lost.items()}
    first = next(iter(maps.values()))
    depths, rows, columns = first.shape
    high = max(values.max() for values in maps.values())
    low = min(0.0, min(values.min() for values in maps.values()))
    figure = Figure((max(2.3 * len(maps) + 1, 5), 0.6 + depths * max(1.0, min(2.4 * rows / columns, 4))), layout="constrained")
    grid = figure.subplots(depths, len(maps), squeeze=False)
    for column, (name, layers) in enumerate(maps.items()):
        for depth, layer in enumerate(layers):
            axes = grid[depth, column]
            shown = _layer(axes, layer, (low, max(high, low + 1)), layer.size * len(maps) <= 2 * MANY_CELLS and columns <= 10)
            if depth == 0:
                axes.set_title(name)
            if depths > 1 and column == 0:
                axes.set_ylabel(f"depth {depth}")
    figure.colorbar(shown, ax=grid, label="accuracy lost in points", shrink=0.9)
    return figure


def _layer(axes: Any, values: np.ndarray, limits: tuple[float, float], written: bool) -> Any:
    """One layer of the grid (rows, columns), its values written into the cells or not; returns what a colour bar is for."""
    low, high = limits
    shown = axes.imshow(values, cmap="cividis", vmin=low, vmax=high)
    rows, columns = values.shape
    axes.set(xticks=range(0, columns, -(-columns // 8)), yticks=range(0, rows, -(-rows // 8)))
    if written:
        across = columns * axes.get_gridspec().ncols
        _write_numbers(axes, values, values < (low + high) / 2, "{:z.1f}", 10 if across <= 12 else 7)
    if axes.get_subplotspec().is_last_row():
        axes.set_xlabel("column of the grid" if rows > 1 else "number")
    if rows == 1:
        axes.set_yticks([])
    elif axes.get_subplotspec().is_first_col():
        axes.set_ylabel("row of the grid")
    return shown


def confusion(shares: np.ndarray, names: Sequence[str], method: str) -> Figure:
    """Shares (K, K) of the samples of a class (row) that a method puts into a class (column); names as of ``fonts.label``."""
    classes = len(shares)
    size = min(max(4.2, 2.5 + 0.42 * classes), 9)
    figure = Figure((size + 1, size), layout="constrained")
    axes = figure.subplots()
    # the root lets rare confusions show beside a strong diagonal
    shown = axes.imshow(100 * shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    if classes <= MANY_CLASSES:
        ticks = np.arange(classes)
        slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 2 else {}
        axes.set_xticks(ticks, names, **slanted)
        axes.set_yticks(ticks, names)
        _write_numbers(axes, np.where(shares < 0.005, np.nan, 100 * shares), shares > 0.3, "{:.0f}", 9)
    number = "" if classes <= MANY_CLASSES else " (its number)"
    axes.set(xlabel=f"found class{number}", ylabel=f"true class{number}", title=f"{method}: percent of each true class")
    figure.colorbar(shown, ax=axes, ticks=[0, 5, 20, 50, 100], shrink=0.8, label="percent")
    return figure


def _write_numbers(axes: Any, values: np.ndarray, on_dark: np.ndarray, pattern: str, size: float) -> None:
    """Writes values (rows, columns) into the cells of a map, in white where it is dark; none for NaN."""
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if on_dark[row, column] else "black"
            axes.text(column, row, pattern.format(value), ha="center", va="center", color=colour, fontsize=size)

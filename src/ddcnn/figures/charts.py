"""Accuracies, losses, confusions and the timeline of the ranks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ddcnn.figures.colours import BLUE, GREEN, GREY, ORANGE, SKY

METHOD_COLOURS = {
    "vote": "#CC79A7", "average": SKY, "dnn": BLUE, "coherent": ORANGE, "transfer": GREEN, "global": "black",
}  # fmt: skip
KIND_COLOURS = {"compute": BLUE, "communicate": ORANGE, "wait": "#D4D4D4"}
MANY_CURVES = 16  # subdomains with a curve each; of more, the range is drawn
MANY_CELLS = 144  # cells of a map with their numbers written in
MANY_CLASSES = 20  # classes with names at the axes and numbers in the cells
MANY_RANKS = 64  # ranks with a row each
TIME_STEPS = 1500  # columns of the timeline, about as many as the picture has pixels


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
        shown = axes.imshow(layer, cmap="cividis", vmin=low - 0.5, vmax=high + 0.5)
        rows, columns = layer.shape
        axes.set(xticks=range(0, columns, -(-columns // 8)), yticks=range(0, rows, -(-rows // 8)))
        if layer.size * across**2 <= MANY_CELLS:
            _write_numbers(axes, layer, layer < (low + high) / 2, "{:.1f}", 10 if columns * across <= 8 else 7)
        if len(layers) > 1:
            axes.set_title(f"depth {depth}")
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel("column of the grid" if rows > 1 else "number")
        if rows == 1:
            axes.set_yticks([])
        elif axes.get_subplotspec().is_first_col():
            axes.set_ylabel("row of the grid")
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


def accuracy_over_time(runs: list[dict[str, np.ndarray]]) -> Figure:
    """Test accuracy over the wall time of each method: curves (points, 2) of seconds and accuracy, of one run or of several seeds."""
    figure = Figure((9, 5), layout="constrained")
    axes = figure.subplots()
    for name in runs[0]:
        colour = METHOD_COLOURS[name]
        for seed, curves in enumerate(runs):
            seconds, accuracy = curves[name].T
            axes.plot(
                seconds, 100 * accuracy, color=colour, lw=1.8, alpha=1 if len(runs) == 1 else 0.6, marker="o", markevery=[-1],
                ms=7 if len(seconds) == 1 else 4, ls="none" if len(seconds) == 1 else "-", label="" if seed else name,
            )  # fmt: skip
    if "global" in runs[0]:
        target = np.mean([100 * curves["global"][-1, 1] for curves in runs])
        axes.axhline(target, color=METHOD_COLOURS["global"], ls=":", lw=1)
    lowest = min(100 * curve[-1, 1] for curves in runs for curve in curves.values())
    axes.set(xlabel="seconds of wall time", ylabel="test accuracy in percent", xlim=(0, None), ylim=(max(0, lowest - 20), None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    return figure


def learning_curves(epochs: list[dict[str, Any]], test_accuracy: dict[str, float]) -> Figure:
    """Loss and accuracy over the epochs (lines of metrics.jsonl), a row of panels per phase; its method's test accuracy at the end."""
    phases = list(dict.fromkeys(epoch["phase"] for epoch in epochs))
    figure = Figure((10, 0.5 + 2.7 * len(phases)), layout="constrained")
    for phase, (loss, accuracy) in zip(phases, figure.subplots(len(phases), 2, squeeze=False), strict=True):
        rows = [epoch for epoch in epochs if epoch["phase"] == phase]
        name = {"local": "local CNNs", "dnn": "DNN"}.get(phase, phase)
        _curves(loss, rows, "loss", 1, BLUE, "training")
        loss.set(title=f"{name}: loss", xlabel="epoch", ylim=(0, None))
        _curves(accuracy, rows, "accuracy", 100, BLUE, "training")
        if phase in test_accuracy:  # the last epoch is judged by the method's own decisions
            last = max(row["epoch"] for row in rows)
            rows = [row if row["epoch"] < last else row | {"test_accuracy": test_accuracy[phase]} for row in rows]
        _curves(accuracy, rows, "test_accuracy", 100, ORANGE, "test")
        accuracy.set(title=f"{name}: accuracy in percent", xlabel="epoch", ylim=(0, None))
        for axes in (loss, accuracy):
            axes.set(ylim=(0, 1.06 * axes.get_ylim()[1]), xlim=(min(0.5, axes.get_xlim()[0]), max(1.5, axes.get_xlim()[1])))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.3)
            axes.legend(loc="best", frameon=False, fontsize=9)
    return figure


def _curves(axes: Any, rows: list[dict[str, Any]], quantity: str, factor: float, colour: str, label: str) -> None:
    """A thin line per subdomain, or the range of many, and the mean in bold."""
    rows = [row for row in rows if row[quantity] is not None]
    if not rows:
        return
    epochs = sorted({row["epoch"] for row in rows})
    subdomains = {subdomain: k for k, subdomain in enumerate(dict.fromkeys(row["subdomain"] for row in rows))}
    column = {epoch: k for k, epoch in enumerate(epochs)}
    curves = np.full((len(subdomains), len(epochs)), np.nan)
    for row in rows:
        curves[subdomains[row["subdomain"]], column[row["epoch"]]] = factor * row[quantity]
    if len(subdomains) > MANY_CURVES:
        axes.fill_between(epochs, np.nanmin(curves, 0), np.nanmax(curves, 0), color=colour, alpha=0.2, lw=0, label=f"{label}, range")
    elif len(subdomains) > 1:
        axes.plot(epochs, curves.T, color=colour, lw=0.8, alpha=0.5)
    mean = f"{label}, mean" if len(subdomains) > 1 else label
    axes.plot(epochs, np.nanmean(curves, 0), color=colour, lw=2, marker="o" if len(epochs) < 10 else None, ms=4, label=mean)


def confusion(shares: np.ndarray, names: Sequence[str], method: str) -> Figure:
    """Shares (K, K) of the samples of a class (row) that a method puts into a class (column)."""
    classes = len(shares)
    size = min(max(4.2, 2.5 + 0.42 * classes), 9)
    figure = Figure((size + 1, size), layout="constrained")
    axes = figure.subplots()
    # the root lets rare confusions show beside a strong diagonal
    shown = axes.imshow(100 * shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    if classes <= MANY_CLASSES:
        ticks = np.arange(classes)
        labels = [name if len(name) <= 16 else name[:15] + "…" for name in names]
        slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 2 else {}
        axes.set_xticks(ticks, labels, **slanted)
        axes.set_yticks(ticks, labels)
        _write_numbers(axes, 100 * shares, shares > 0.3, "{:.0f}", 9)
    number = "" if classes <= MANY_CLASSES else " (its number)"
    axes.set(xlabel=f"found class{number}", ylabel=f"true class{number}", title=f"{method}: percent of each true class")
    figure.colorbar(shown, ax=axes, ticks=[0, 5, 20, 50, 100], shrink=0.8)
    return figure


def _write_numbers(axes: Any, values: np.ndarray, on_dark: np.ndarray, pattern: str, size: float) -> None:
    """Writes values (rows, columns) into the cells of a map, in white where it is dark; a value that rounds to 0 is left out."""
    for (row, column), value in np.ndenumerate(values):
        if value >= 0.5:
            colour = "white" if on_dark[row, column] else "black"
            axes.text(column, row, pattern.format(value), ha="center", va="center", color=colour, fontsize=size)


def timeline(spans: np.ndarray, phases: Sequence[str], kinds: Sequence[str]) -> Figure:
    """A row per rank, coloured by what it does when.

    Args:
        spans: (spans, 5) rank, phase, kind, start and stop in seconds; those of one rank do not overlap.
        phases, kinds: names for the numbers in ``spans``.
    """
    ranks = np.unique(spans[:, 0])
    shown = ranks[np.linspace(0, len(ranks) - 1, min(len(ranks), MANY_RANKS)).round().astype(int)]
    end = spans[:, 4].max()
    edges = np.linspace(0, end, TIME_STEPS + 1)
    # a picture rather than a bar per span: a step of training may leave thousands of spans in one pixel
    picture = np.ones((len(shown), TIME_STEPS, 3))
    for row, rank in enumerate(shown):
        for number, kind in enumerate(kinds):
            share = _share(spans[(spans[:, 0] == rank) & (spans[:, 2] == number), 3:], edges)
            picture[row] += share[:, None] * (np.array(to_rgb(KIND_COLOURS[kind])) - 1)
    height = min(max(0.3 * len(shown), 0.6), 6)
    figure = Figure((10, 1.6 + height))
    figure.set_layout_engine("constrained", h_pad=0, hspace=0)  # the phases' lines go on from the strip to the rows
    strip, axes = figure.subplots(2, 1, height_ratios=(0.5, height))
    axes.imshow(picture.clip(0, 1), extent=(0, end, len(shown) - 0.5, -0.5), aspect="auto", interpolation="nearest")
    axes.hlines(np.arange(1, len(shown)) - 0.5, 0, end, color="white", lw=2 if len(shown) <= 16 else 0.7)
    step = int(np.ceil(len(shown) / 16))
    axes.set_yticks(range(0, len(shown), step), [f"{rank:.0f}" for rank in shown[::step]])
    axes.set(xlabel="seconds", ylabel="rank" if len(shown) == len(ranks) else f"rank ({len(shown)} of {len(ranks)} are shown)")
    axes.spines[["top", "right"]].set_visible(False)
    begins = {name: spans[spans[:, 1] == number, 3].min() for number, name in enumerate(phases) if (spans[:, 1] == number).any()}
    axes.vlines(list(begins.values()), -0.5, len(shown) - 0.5, color="black", lw=1, clip_on=False)
    _name_phases(strip, begins, end)
    seconds = [(spans[spans[:, 2] == number, 4] - spans[spans[:, 2] == number, 3]).sum() for number in range(len(kinds))]
    patches = [
        Patch(color=KIND_COLOURS[kind], label=f"{kind} {100 * part / end / len(ranks):.0f} %")
        for kind, part in zip(kinds, seconds, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(kinds), frameon=False, borderpad=1)
    return figure


def _share(spans: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of every time step between ``edges`` (T + 1,) that spans (n, 2), which do not overlap, cover: (T,)."""
    spans = spans[np.argsort(spans[:, 0])]
    covered = np.cumsum(np.diff(spans, axis=1))
    so_far = np.stack([np.concatenate([[0], covered[:-1]]), covered], 1) if len(spans) else np.zeros((1, 2))
    knots = spans if len(spans) else np.zeros((1, 2))
    return np.diff(np.interp(edges, knots.ravel(), so_far.ravel())) / np.diff(edges)


def _name_phases(strip: Any, begins: dict[str, float], end: float) -> None:
    """The name of every phase above its beginning, moved aside where names would meet; a line leads to it."""
    room = 0.1 * end  # for a name
    names = sorted(begins, key=lambda name: begins[name])
    places = np.array([begins[name] for name in names])
    for k in range(1, len(names)):
        places[k] = max(places[k], places[k - 1] + room)
    for k in range(len(names)):
        places[k] = min(places[k], end - room * (len(names) - k - 0.2))
    for name, place in zip(names, places, strict=True):
        strip.plot([begins[name], place, place], [0, 0.4, 0.5], color="black", lw=1, clip_on=False)
        strip.text(place, 0.55, name)
    strip.set(xlim=(0, end), ylim=(0, 1))
    strip.set_axis_off()

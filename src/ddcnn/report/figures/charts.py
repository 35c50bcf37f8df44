"""Accuracies, losses and confidences as curves and bars."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ddcnn.report.figures import BLUE, GREEN, GREY, ORANGE, SKY
from ddcnn.report.intervals import of_share, percent

METHOD_COLOURS = {
    "vote": "#CC79A7", "average": SKY, "dnn": BLUE, "coherent": ORANGE, "transfer": GREEN, "global": "black", "spatial": "dimgrey",
}  # fmt: skip
MARKERS = {"vote": "X", "average": "v", "dnn": "s", "coherent": "o", "transfer": "^", "global": "D", "spatial": "P"}
LOCAL, LOCAL_MARKER = "#D55E00", "."
FEW_SAMPLES = 10  # in a bin of confidences: its accuracy says little
ACROSS = 4  # methods beside each other
LEAST_RANGE = 20  # points that an axis of accuracies spans at least: smaller differences are small


def accuracy_over_time(runs: list[dict[str, np.ndarray]], split: str, samples: int) -> Figure:
    """Accuracy on the ``samples`` of a split over the wall time of each method: curves (points, 2) of seconds and accuracy.

    Of several seeds, the mean and a band of a standard deviation to either side. The legend has the ends, the most accurate first.
    """
    figure = Figure((8, 5.6), layout="constrained")
    axes = figure.subplots()
    ends, shown = {}, dict[str, Any]()
    for name in runs[0]:
        curves = [curve[name] for curve in runs if len(curve.get(name, ()))]
        if not curves:
            continue
        (seconds, accuracy), spread = _mean_curve(curves)
        style: dict[str, Any] = {"color": METHOD_COLOURS[name], "marker": MARKERS[name], "markevery": [-1]}
        if len(seconds) > 1:
            (shown[name],) = axes.plot(seconds, 100 * accuracy, lw=1.8, ms=6, **style)
            axes.fill_between(seconds, 100 * (accuracy - spread), 100 * (accuracy + spread), color=style["color"], alpha=0.2, lw=0)
        else:
            shown[name] = axes.errorbar(
                seconds, 100 * accuracy, 100 * spread if spread.any() else None, ls="none", ms=7, capsize=3, **style
            )
        ends[name] = accuracy[-1]
    if "global" in ends:
        axes.axhline(100 * ends["global"], color=METHOD_COLOURS["global"], ls=":", lw=1)
    low, high = axes.get_ylim()
    low, high = min(low, high - LEAST_RANGE), min(high, 101)
    axes.set(xlabel="seconds of wall time", ylabel=f"{split} accuracy in percent", xlim=(0, None), ylim=(max(low, -1), high))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    names = sorted(ends, key=lambda name: -ends[name])
    texts = [f"{name} {percent(ends[name], len(runs) * samples)}" for name in names]
    figure.legend([shown[name] for name in names], texts, loc="outside lower center", ncols=ACROSS, frameon=False)
    return figure


def _mean_curve(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean (2, points) seconds and accuracy of curves (points, 2), and standard deviation (points,) of the accuracy.

    Points count at the same part of a training, so that also with early stopping a curve begins and ends with the means of the seeds.
    """
    points = max(map(len, curves))
    parts = np.linspace(0, 1, points)
    resampled = np.array([[np.interp(parts, np.linspace(0, 1, len(curve)), column) for column in curve.T] for curve in curves])
    return resampled.mean(0), resampled[:, 1].std(0, ddof=1) if len(curves) > 1 else np.zeros(points)


def learning_curves(epochs: list[dict[str, Any]], ends: dict[str, float], split: str) -> Figure:
    """Loss and accuracy over the epochs: all trainings in one panel, beside those on the training images those on the other split.

    Args:
        epochs: lines of metrics.jsonl, with the accuracy on the other ``split`` as "evaluated".
        ends: that of the methods at their ends.
    """
    phases = list(dict.fromkeys(epoch["phase"] for epoch in epochs))
    columns = [("training", "loss", "accuracy")]
    if split != "training":
        columns.append((split, "validation_loss", "evaluated"))
    figure = Figure((5 * len(columns), 6.5), layout="constrained")
    panels = figure.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
    shown = {}
    for (loss, accuracy), (images, *quantities) in zip(panels.T, columns, strict=True):
        for phase in phases:
            rows = [epoch for epoch in epochs if epoch["phase"] == phase]
            if phase in ends:  # the last epoch is judged by the method's own decisions
                last = max(row["epoch"] for row in rows)
                judged = [row["evaluated"] is None and row["epoch"] == last for row in rows]
                rows = [row | {"evaluated": ends[phase]} if end else row for row, end in zip(rows, judged, strict=True)]
            for axes, quantity, factor in zip((loss, accuracy), quantities, (1, 100), strict=True):
                if line := _curve(axes, rows, quantity, factor, phase):
                    shown[{"local": "local CNNs", "dnn": "DNN"}.get(phase, phase)] = line
        loss.set_title(f"{images} images")
        accuracy.set_xlabel("epoch")
        accuracy.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes, name in zip(panels[:, 0], ("loss", "accuracy in percent"), strict=True):
        axes.set(ylabel=name, ylim=(0, 1.06 * axes.get_ylim()[1]))
    for axes in panels.ravel():
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        if not axes.lines:
            axes.text(0.5, 0.5, "not recorded", ha="center", transform=axes.transAxes)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown), frameon=False)
    return figure


def _curve(axes: Any, rows: list[dict[str, Any]], quantity: str, factor: float, phase: str) -> Any:
    """The mean over the subdomains, with a band from the least to the most; None if there is nothing to draw."""
    rows = [row for row in rows if row.get(quantity) is not None]
    if not rows:
        return None
    epochs, column = np.unique([row["epoch"] for row in rows], return_inverse=True)
    subdomains, line = np.unique([row["subdomain"] or 0 for row in rows], return_inverse=True)
    curves = np.full((len(subdomains), len(epochs)), np.nan)
    curves[line, column] = [factor * row[quantity] for row in rows]
    colour = METHOD_COLOURS.get(phase, LOCAL)
    if len(subdomains) > 1:
        axes.fill_between(epochs, np.nanmin(curves, 0), np.nanmax(curves, 0), color=colour, alpha=0.2, lw=0)
    marks = {"marker": MARKERS.get(phase, LOCAL_MARKER), "ms": 5, "markevery": -(-len(epochs) // 8)}
    return axes.plot(epochs, np.nanmean(curves, 0), color=colour, lw=1.8, **marks)[0]


def reliability(bins: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], errors: dict[str, float]) -> Figure:
    """Per method: accuracy over confidence with 95 % intervals, and below it how many samples have which one, on a logarithmic axis.

    Args:
        bins: of equal width, per method: mean confidence, accuracy and samples, (bins,) each; NaN where there are no samples.
        errors: expected calibration error.
    """
    down = -(-len(bins) // ACROSS)
    across = -(-len(bins) // down)
    most = max(samples.max() for _, _, samples in bins.values())
    figure = Figure((max(2.5 * across, 5), 0.3 + 4.4 * down), layout="constrained")
    columns = []
    for part in figure.subfigures(down, 1, squeeze=False)[:, 0]:
        panels = part.subplots(2, across, squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1.2))
        panels[0, 0].set(ylabel="accuracy in %")
        panels[1, 0].set(ylabel="samples")
        columns += list(panels.T)
    for above, below in columns[len(bins) :]:
        above.remove()
        below.remove()
    for (name, (_, accuracy, samples)), (above, below) in zip(bins.items(), columns, strict=False):
        left, width = 100 * np.arange(len(samples)) / len(samples), 100 / len(samples)
        enough, few = samples >= FEW_SAMPLES, (samples > 0) & (samples < FEW_SAMPLES)
        for chosen, style in ((enough, {"color": SKY, "ec": "white"}), (few, {"color": "white", "ec": GREY, "ls": ":", "hatch": "////"})):
            above.bar(left[chosen], 100 * accuracy[chosen], width, align="edge", lw=0.8, **style)
        low, high = abs(of_share(accuracy, samples) - accuracy)
        for chosen, colour in ((enough, BLUE), (few, GREY)):
            thin: dict[str, Any] = {"ls": "none", "color": colour, "lw": 1, "capsize": 1.5, "clip_on": False}
            above.errorbar((left + width / 2)[chosen], 100 * accuracy[chosen], 100 * np.stack([low, high])[:, chosen], **thin)
        above.plot([0, 100], [0, 100], color="black", ls="--", lw=1.2)
        above.set(title=f"{name}\nECE {percent(errors[name], int(samples.sum()))} %", xlim=(0, 100), ylim=(0, 100), xticks=(0, 50, 100))
        below.bar(left, samples, width, align="edge", color=GREY, ec="white", lw=0.5)
        below.axhline(FEW_SAMPLES, color="black", ls=":", lw=0.8)
        below.set(xlabel="confidence in %", yscale="log", ylim=(0.7, 2 * max(most, FEW_SAMPLES)))
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
    return figure

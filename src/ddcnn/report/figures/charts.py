"""Accuracies, losses and confidences as curves, and the timeline of the ranks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ddcnn.report.figures import BLUE, GREEN, GREY, ORANGE, SKY

METHOD_COLOURS = {
    "vote": "#CC79A7", "average": SKY, "dnn": BLUE, "coherent": ORANGE, "transfer": GREEN, "global": "black", "spatial": "dimgrey",
}  # fmt: skip
KIND_COLOURS = {"compute": BLUE, "communicate": ORANGE, "wait": "#D4D4D4"}
MANY_CURVES = 16  # subdomains with a curve each; of more, the range is drawn
MANY_RANKS = 64  # ranks with a row each
TIME_STEPS = 1500  # columns of the timeline, about as many as the picture has pixels


def accuracy_over_time(runs: list[dict[str, np.ndarray]], split: str) -> Figure:
    """Accuracy on a split over the wall time of each method: curves (points, 2) of seconds and accuracy, of one run or of several seeds."""
    runs = [{name: curve for name, curve in curves.items() if len(curve)} for curves in runs]
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
        axes.axhline(target, color=METHOD_COLOURS["global"], ls=":", lw=1, label="where global ends")
    axes.set(xlabel="seconds of wall time", ylabel=f"{split} accuracy in percent", xlim=(0, None))
    all_curves = [100 * curve[:, 1] for curves in runs for curve in curves.values()]
    axes.set_ylim(_floor(all_curves) if all_curves else 0, min(axes.get_ylim()[1], 101))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    return figure


def _floor(curves: list[np.ndarray]) -> float:
    """Where the axis of accuracies (points,) begins: below all ends, and below all that follows once a curve has got so far."""
    floor = max(0.0, min(curve[-1] for curve in curves) - 20)
    return min(floor, *(curve[np.argmax(curve >= floor) :].min() for curve in curves))


def learning_curves(epochs: list[dict[str, Any]], ends: dict[str, float], split: str) -> Figure:
    """Loss and accuracy over the epochs, a row of panels per phase.

    Args:
        epochs: lines of metrics.jsonl, with the accuracy on the other ``split`` as "evaluated".
        ends: that of the methods at their ends.
    """
    phases = list(dict.fromkeys(epoch["phase"] for epoch in epochs))
    figure = Figure((10, 0.5 + 2.8 * len(phases)))
    figure.set_layout_engine("constrained", h_pad=0.1)
    for phase, (loss, accuracy) in zip(phases, figure.subplots(len(phases), 2, squeeze=False), strict=True):
        rows = [epoch for epoch in epochs if epoch["phase"] == phase]
        name = {"local": "local CNNs", "dnn": "DNN"}.get(phase, phase)
        _curves(loss, rows, "loss", 1, BLUE, "training")
        _curves(loss, rows, "validation_loss", 1, ORANGE, "validation")
        loss.set(title=f"{name}: loss", xlabel="epoch", ylim=(0, None))
        _curves(accuracy, rows, "accuracy", 100, BLUE, "training")
        if phase in ends:  # the last epoch is judged by the method's own decisions
            last = max(row["epoch"] for row in rows)
            judged = [row["evaluated"] is None and row["epoch"] == last for row in rows]
            rows = [row | {"evaluated": ends[phase]} if end else row for row, end in zip(rows, judged, strict=True)]
        _curves(accuracy, rows, "evaluated", 100, ORANGE, split)
        accuracy.set(title=f"{name}: accuracy in percent", xlabel="epoch", ylim=(0, None))
        for axes in (loss, accuracy):
            axes.set(ylim=(0, 1.06 * axes.get_ylim()[1]), xlim=(min(0.5, axes.get_xlim()[0]), max(1.5, axes.get_xlim()[1])))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.3)
            axes.legend(loc="best", frameon=False, fontsize=9)
    return figure


def reliability(bins: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], errors: dict[str, float]) -> Figure:
    """A column per method: accuracy over confidence (larger dots are of more samples), and below it how many samples have which one.

    Args:
        bins: of equal width, per method: mean confidence, accuracy and samples, (bins,) each; NaN where there are no samples.
        errors: expected calibration error.
    """
    figure = Figure((max(2.5 * len(bins), 5), 4.6), layout="constrained")
    columns = figure.subplots(2, len(bins), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1)).T
    for (name, (confidence, accuracy, samples)), (above, below) in zip(bins.items(), columns, strict=True):
        left = 100 * np.arange(len(samples)) / len(samples)
        style: dict[str, Any] = {"width": 100 / len(samples), "align": "edge", "edgecolor": "white", "lw": 0.5}
        above.bar(left, 100 * accuracy, color=SKY, alpha=0.4, **style)
        above.plot([0, 100], [0, 100], color=GREY, ls="--", lw=1.2)
        above.scatter(100 * confidence, 100 * accuracy, 3 + 100 * samples / samples.sum(), color=BLUE, clip_on=False, zorder=3)
        above.set(title=f"{name}\nECE {100 * errors[name]:.1f} %", xlim=(0, 100), ylim=(0, 100), xticks=(0, 50, 100))
        below.bar(left, 100 * samples / samples.sum(), color=GREY, **style)
        below.set(xlabel="confidence in %")
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
    columns[0][0].set(ylabel="accuracy in %")
    columns[0][1].set(ylabel="samples in %")
    return figure


def _curves(axes: Any, rows: list[dict[str, Any]], quantity: str, factor: float, colour: str, label: str) -> None:
    """A thin line per subdomain, or the range of many, and the mean in bold."""
    rows = [row for row in rows if row.get(quantity) is not None]
    if not rows:
        return
    epochs, column = np.unique([row["epoch"] for row in rows], return_inverse=True)
    subdomains, line = np.unique([row["subdomain"] or 0 for row in rows], return_inverse=True)
    curves = np.full((len(subdomains), len(epochs)), np.nan)
    curves[line, column] = [factor * row[quantity] for row in rows]
    if len(subdomains) > MANY_CURVES:
        axes.fill_between(epochs, np.nanmin(curves, 0), np.nanmax(curves, 0), color=colour, alpha=0.2, lw=0, label=f"{label}, range")
    elif len(subdomains) > 1:
        axes.plot(epochs, curves.T, color=colour, lw=0.8, alpha=0.5)
    mean = f"{label}, mean" if len(subdomains) > 1 else label
    axes.plot(epochs, np.nanmean(curves, 0), color=colour, lw=2, marker="o" if len(epochs) < 10 else None, ms=4, label=mean)


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

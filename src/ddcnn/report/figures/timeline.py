"""The timeline of the ranks: who computes, communicates and waits when."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ddcnn.report.figures import BLUE, ORANGE

START = "start-up"  # imports and opening files are neither computing nor communicating
COLOURS = {"compute": BLUE, "communicate": ORANGE, "wait": "#C4C4C4", START: "#CC79A7"}
MANY_RANKS = 64  # ranks with a row each
TIME_STEPS = 400  # columns of the picture
ALL_RANKS = 60  # lines of the picture of all ranks together


def timeline(spans: np.ndarray, phases: Sequence[str], kinds: Sequence[str]) -> Figure:
    """A row per rank, and above them all ranks together: in every step of time, from below, the part that is spent on what.

    Args:
        spans: (spans, 5) rank, phase, kind, start and stop in seconds; those of one rank do not overlap.
        phases, kinds: names for the numbers in ``spans``.
    """
    parts = _by_kind(spans, phases, kinds)
    ranks = np.unique(spans[:, 0])
    shown = ranks[np.linspace(0, len(ranks) - 1, min(len(ranks), MANY_RANKS)).round().astype(int)]
    end = spans[:, 4].max()
    edges = np.linspace(0, end, TIME_STEPS + 1)
    # shares of time steps rather than a bar per span: a step of training may leave thousands of spans in one of them
    shares = np.array([[_share(part[part[:, 0] == rank, 3:], edges) for part in parts.values()] for rank in ranks])  # (ranks, kinds, T)
    several = len(ranks) > 1
    height = min(max(0.5 * len(shown), 0.8), 6)
    figure = Figure((10, 1.6 + height + several))
    figure.set_layout_engine("constrained", h_pad=0.02, hspace=0)  # the phases' lines go on from the strip to the rows
    strip, *above, axes = figure.subplots(2 + several, 1, height_ratios=(0.5, *([1] if several else []), height))
    rows = [_stacked(shares[ranks == rank][0], list(parts), max(ALL_RANKS // len(shown), 8)) for rank in shown]
    axes.imshow(np.concatenate(rows), extent=(0, end, len(shown) - 0.5, -0.5), aspect="auto", interpolation="nearest")
    axes.hlines(np.arange(1, len(shown)) - 0.5, 0, end, color="white", lw=2 if len(shown) <= 16 else 0.7)
    step = int(np.ceil(len(shown) / 16))
    axes.set_yticks(range(0, len(shown), step), [f"{rank:.0f}" for rank in shown[::step]])
    axes.set(xlabel="seconds", ylabel="rank" if len(shown) == len(ranks) else f"rank ({len(shown)} of {len(ranks)} are shown)")
    for together in above:
        picture = _stacked(shares.mean(0), list(parts), ALL_RANKS)
        together.imshow(picture, extent=(0, end, 0, 100), aspect="auto", interpolation="nearest")
        together.set(xticks=[], yticks=(0, 50, 100), ylabel="all ranks\nin %")
    begins = {name: spans[spans[:, 1] == number, 3].min() for number, name in enumerate(phases) if (spans[:, 1] == number).any()}
    for panel in (*above, axes):
        panel.spines[["top", "right"]].set_visible(False)
        panel.vlines(list(begins.values()), *panel.get_ylim(), color="black", lw=1, clip_on=False)
    _name_phases(strip, begins, end)
    percent, start = percentages(spans, phases, kinds)
    patches = [Patch(fc=COLOURS.get(name, "white"), ec="grey", lw=0.5, label=f"{name} {part} %") for name, part in percent.items()]
    patches.append(Patch(color=COLOURS[START], label=f"{START} {start:.1f} s, apart"))
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, borderpad=1)
    return figure


def percentages(spans: np.ndarray, phases: Sequence[str], kinds: Sequence[str]) -> tuple[dict[str, int], float]:
    """What the ranks spend their time on after the start-up, in whole percent that sum to 100; and the mean seconds of the start-up."""
    ranks = len(np.unique(spans[:, 0]))
    seconds = {name: float((part[:, 4] - part[:, 3]).sum()) / ranks for name, part in _by_kind(spans, phases, kinds).items()}
    start = seconds.pop(START)
    whole = max(float(spans[:, 4].max()) - start, sum(seconds.values()))
    seconds["not recorded"] = whole - sum(seconds.values())
    exact = {name: 100 * part / whole if whole else 0.0 for name, part in seconds.items()}
    percent = {name: int(part) for name, part in exact.items()}
    short = round(sum(exact.values())) - sum(percent.values())
    for name in sorted(exact, key=lambda name: percent[name] - exact[name])[:short]:  # those that were cut most
        percent[name] += 1
    return percent, start


def _by_kind(spans: np.ndarray, phases: Sequence[str], kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """The spans by kind, those of the start-up apart."""
    starting = np.array(phases)[spans[:, 1].astype(int)] == "start"
    return {kind: spans[(spans[:, 2] == number) & ~starting] for number, kind in enumerate(kinds)} | {START: spans[starting]}


def _stacked(shares: np.ndarray, names: Sequence[str], lines: int) -> np.ndarray:
    """A picture (lines, T, 3) of shares (kinds, T), one above the other from below; white where they end."""
    colours = np.array([*(to_rgb(COLOURS[name]) for name in names), (1, 1, 1)])
    heights = (lines - np.arange(lines) - 0.5)[:, None, None] / lines  # the first line is the uppermost
    return colours[(np.cumsum(shares, axis=0) < heights).sum(1)]


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

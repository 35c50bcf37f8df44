"""Speed-up and efficiency over the number of ranks."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ddcnn.figures.colours import BLUE, GREEN, GREY, ORANGE

COLOURS = (ORANGE, BLUE, GREEN)


def scaling(ranks: Sequence[int], speed_up: Mapping[str, Sequence[float]], efficiency: Mapping[str, Sequence[float]], kind: str) -> Figure:
    """Curves (a number of ranks each) by name; the fewest ranks come first and are what the others are compared with."""
    figure = Figure((10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ideal = {"color": GREY, "ls": "--", "lw": 1.5, "label": "ideal"}
    left.plot(ranks, [number / ranks[0] for number in ranks], **ideal)
    right.plot(ranks, [100.0] * len(ranks), **ideal)
    for k, (colour, name) in enumerate(zip(COLOURS, speed_up, strict=False)):
        style = {"marker": "o", "ms": 8 - 2 * k, "lw": 4 - 1.5 * k}  # curves that coincide are still seen
        left.plot(ranks, speed_up[name], color=colour, label=name, **style)
        right.plot(ranks, [100 * value for value in efficiency[name]], color=colour, label=name, **style)
    left.set_yscale("log", base=2)
    left.yaxis.set_major_formatter("{x:g}")
    left.set(ylabel=f"{'scaled ' if kind == 'weak' else ''}speed-up over {ranks[0]} {'rank' if ranks[0] == 1 else 'ranks'}")
    right.set(ylabel="efficiency in percent", ylim=(0, max(105, 1.05 * right.get_ylim()[1])))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(number) for number in ranks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("ranks")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    left.legend(loc="upper left", frameon=False)
    figure.suptitle(f"{kind} scaling")
    return figure

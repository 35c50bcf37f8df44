"""Speed-up and efficiency over the number of ranks, and times that a performance model predicts for more of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ddcnn.report.figures import BLUE, GREEN, GREY, ORANGE
from ddcnn.report.figures.charts import METHOD_COLOURS

COLOURS = (ORANGE, BLUE, GREEN)


def scaling(
    ranks: Sequence[int],
    speed_up: Mapping[str, Sequence[float]],
    spread: Mapping[str, Sequence[tuple[float, float]]],
    law: Sequence[float],
    law_name: str,
    kind: str,
) -> Figure:
    """Curves (a number of ranks each) by name; the fewest ranks come first and are what the others are compared with.

    Args:
        spread: the least and the most speed-up of the repetitions.
        law: the speed-up by a law with a serial fraction.
    """
    figure = Figure((10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ideal = np.array(ranks) / ranks[0]
    for axes, scale in ((left, np.ones(len(ranks))), (right, 100 / ideal)):  # efficiency in percent: speed-up over the ideal one
        axes.plot(ranks, scale * ideal, color=GREY, ls="--", lw=1.5, label="ideal")
        axes.plot(ranks, scale * law, color=GREY, ls=":", lw=1.5, label=law_name)
        for k, (colour, name) in enumerate(zip(COLOURS, speed_up, strict=False)):
            style = {"marker": "o", "ms": 8 - 2 * k, "lw": 4 - 1.5 * k, "capsize": 3, "elinewidth": 1.5}  # coinciding curves are still seen
            middle, ends = np.array(speed_up[name]), np.array(spread[name]).T
            errors = scale * np.maximum(0, np.stack([middle - ends[0], ends[1] - middle]))
            axes.errorbar(ranks, scale * middle, errors, color=colour, label=name, **style)
        _over_ranks(axes, ranks)
    left.set_yscale("log", base=2)
    left.yaxis.set_major_formatter("{x:g}")
    left.set(ylabel=f"{'scaled ' if kind == 'weak' else ''}speed-up over {ranks[0]} {'rank' if ranks[0] == 1 else 'ranks'}")
    right.set(ylabel="efficiency in percent", ylim=(0, max(105, 1.05 * right.get_ylim()[1])))
    left.legend(loc="upper left", frameon=False)
    figure.suptitle(f"{kind} scaling")
    return figure


def _over_ranks(axes: Axes, ranks: Sequence[int]) -> None:
    """Ranks on a logarithmic axis, with a mark each."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(number) for number in ranks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("ranks")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)


def predicted(
    ranks: Sequence[int],
    methods: Mapping[str, Sequence[float | None]],
    phases: Mapping[str, Sequence[float | None]],
    measured_ranks: Sequence[int],
    measured: Mapping[str, Sequence[float | None]],
    kind: str,
) -> Figure:
    """Seconds over ranks, on logarithmic axes; None where there is nothing to predict.

    Args:
        methods: their whole times; of the phases, those that are no method by themselves.
        measured: as ``methods``, on ``measured_ranks``.
    """
    figure = Figure((9, 5.2), layout="constrained")
    axes = figure.subplots()
    for name, values in methods.items():
        colour, title = METHOD_COLOURS[name], "global (DDP)" if name == "global" else name
        axes.plot(ranks, _numbers(values), color=colour, lw=2.5, label=f"{title}, model")
        seconds = _numbers(measured[name])
        if not np.isnan(seconds).all():
            axes.plot(measured_ranks, seconds, "o", ms=8, mfc="none", mew=2, color=colour, label=f"{title}, measured")
    for style, (name, values) in zip(("--", ":", "-.", (0, (1, 3)), (0, (5, 5))), phases.items(), strict=False):
        axes.plot(ranks, _numbers(values), color=GREY, ls=style, lw=1.3, label=name)
    _over_ranks(axes, ranks)
    axes.set_yscale("log")
    axes.set_ylabel("seconds")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    most = max(measured_ranks)
    if most < max(ranks):
        axes.axvspan(most, max(ranks), color=GREY, alpha=0.12, lw=0)
        axes.text(most, 1.01, " extrapolated", transform=axes.get_xaxis_transform(), va="bottom", color="dimgrey")
    figure.suptitle(f"{kind} scaling: measured to {most} {'rank' if most == 1 else 'ranks'}, beyond by the model")
    return figure


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    """A gap in the curve for None, or for nothing at all."""
    return np.array([value or np.nan for value in values], dtype=float)

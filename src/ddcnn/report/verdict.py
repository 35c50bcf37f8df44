"""The verdict on top of a report: which method is the most accurate, by how much and how surely, and at what cost."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ddcnn.config.methods import Method
from ddcnn.io.results_schema import RunResults
from ddcnn.report.intervals import decimals, of_difference, of_mean, of_share, percent
from ddcnn.report.methods_table import memory, seconds_cell
from ddcnn.report.pages import human, table

HEADER = ("method", "points against {}", "95 % interval", "told apart", "total s", "communicated", "memory a rank")
NOTE = (
    "**Points** are percentage points of test accuracy: how much more (+) or less (-) than `{}`, which is chosen on the {} images{}. The "
    "interval says how far this difference is uncertain. Where it contains 0, the two methods are not **told apart**: {} do not show which "
    "is better. The costs are of all phases that a method needs."
)


def verdict(results: RunResults, correct: Mapping[str, np.ndarray]) -> str:
    """Of a run with one seed; ``correct`` is whether a method decides rightly, (S,) per method on the test samples."""
    best, samples = results.best, results.data.test_samples
    share = results.methods[best].test_accuracy
    accuracy, low, high = (percent(one, samples) for one in (share, *of_share(share, samples)))
    text = f"It classifies {accuracy} % of the {samples:,} test images correctly (95 % interval {low} to {high})."

    def apart(name: Method) -> tuple[float, tuple[float, float]]:
        return float(correct[name].mean() - correct[best].mean()), of_difference(correct[name], correct[best])

    return _text([results], best, text, apart)


def verdict_of_seeds(runs: Sequence[RunResults], best: Method) -> str:
    """Of several seeds, whose differences are the samples of the interval."""
    accuracies = {name: np.array([run.methods[name].test_accuracy for run in runs]) for name in runs[0].methods}
    ends = (min(max(end, 0.0), 1.0) for end in of_mean(accuracies[best]))
    mean, low, high = (percent(one, len(runs) * runs[0].data.test_samples) for one in (accuracies[best].mean(), *ends))
    text = f"In the mean of {len(runs)} seeds it classifies {mean} % of the test images correctly (95 % interval {low} to {high})."

    def apart(name: Method) -> tuple[float, tuple[float, float]]:
        gained = accuracies[name] - accuracies[best]
        return float(gained.mean()), of_mean(gained)

    return _text(runs, best, text, apart)


def _text(runs: Sequence[RunResults], best: Method, text: str, apart: Callable[[Method], tuple[float, tuple[float, float]]]) -> str:
    """The sentences, and a row per method, by accuracy."""
    judged = "validation" if runs[0].data.validation_samples else "test"
    methods = {name: [run.methods[name] for run in runs] for name in runs[0].methods}
    costs = {
        name: (
            seconds_cell([one.seconds.total for one in each]), human(each[0].bytes_communicated),
            memory(each[0].peak_memory_bytes, each[0].peak_gpu_memory_bytes),
        )
        for name, each in methods.items()
    }  # fmt: skip
    seconds, sent, resident = costs[best]
    means = {name: float(np.mean([run.accuracy_of(name) for run in runs])) for name in methods}
    equal = [name for name in methods if name != best and means[name] == means[best]]
    first = f"**`{best}` is the most accurate method** on the {judged} images, by which methods are compared."
    if equal:
        names = f"{', '.join(f'`{name}`' for name in (best, *equal[:-1]))} and `{equal[-1]}`"
        first = f"**No single method is the most accurate**: {names} are equal on the {judged} images,"
        first += f" by which methods are compared. `{best}` stands for them, {_reason(runs, best, equal)}."
    cost = f"It takes {seconds} s, the ranks send {sent}{f', and a rank needs {resident} of memory' if resident != '–' else ''}."
    if len(methods) == 1:
        return f"**`{best}`** is the only method. {text} {cost}"
    compared = {name: apart(name) for name in methods if name != best}
    places, said = decimals(len(runs) * runs[0].data.test_samples), "these seeds" if len(runs) > 1 else "these test images"
    rows = [(best, "chosen", "", "", *costs[best])]
    for name, (gained, (low, high)) in sorted(compared.items(), key=lambda pair: -pair[1][0]):
        points, low, high = (round(100 * one, places) for one in (gained, low, high))  # what is told is what is shown
        told = "yes" if high < 0 else "yes, better on the test images" if low > 0 else "no"
        shown, low_end, high_end = (f"{one:+z.{places}f}" for one in (points, low, high))
        rows.append((name, shown, f"{low_end} to {high_end}", told, *costs[name]))
    if all(row[3] in ("", "no") for row in rows):
        text += " No other method is told apart from it on the test images."
    above = "; another one may lie above it here" if judged == "validation" else ""
    header = [name.format(best) for name in HEADER]
    return f"{first} {text} {cost}\n\n{table(header, rows)}\n\n{NOTE.format(best, judged, above, said)}"


def _reason(runs: Sequence[RunResults], best: Method, equal: Sequence[Method]) -> str:
    """Why the best one is it among those of equal accuracy."""
    losses = {name: [run.methods[name].validation_loss for run in runs] for name in (best, *equal)}
    means = {name: sum(each) for name, each in losses.items() if None not in each}  # type: ignore[arg-type]
    least = best in means and all(means[best] < mean for name, mean in means.items() if name != best)
    return "with the smallest validation loss" if least else "as the first of them"

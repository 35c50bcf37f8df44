"""The tables of the methods of a run, or of several seeds: how accurate they are, what they cost, and what the columns mean."""

import statistics
from collections.abc import Mapping, Sequence

from rich.console import Console

from ddcnn.config.methods import Method
from ddcnn.config.splitting import ImageSplitting
from ddcnn.io.results_schema import MethodResult, RunResults, SubdomainResult
from ddcnn.report.intervals import decimals
from ddcnn.report.pages import human, number, seconds, table
from ddcnn.report.terminal import fitted, show, width_of

ACCURACY = {
    "validation in %": "the accuracy on the validation images. Methods and epochs are chosen by it.",
    "test accuracy in %": "the accuracy on the test images, which each method sees once, at its end.",
    "balanced in %": "the mean of the accuracies on the test images of each class: rare classes count as much as frequent ones.",
    "AUC": "the area under the ROC curve (with more than two classes, the mean over each class against the rest): 1 is perfect, 0.5 is "
    "chance.",
    "test loss": "the mean cross entropy on the test images.",
    "epochs": "passes over the training images in all trainings that the method needs, that of the local CNNs included.",
    "kept epoch": "the epoch whose parameters the method classifies with. `7 of 10` means: its own training, the last one that it needs, "
    "had 10 epochs, and the parameters after the 7th were kept. It is the epoch with the best validation accuracy under `--keep best` (the "
    "default with `--early-stopping`), else the last one.",
}  # columns, and what they mean
COST = {
    "parameters": "those of all networks that the method classifies with.",
    "total s": "the wall time of all phases that the method needs, such as the training of the local CNNs.",
    "compute s": "what a rank spends on computing in this time, the mean over the ranks; `communicate s` and `wait s` likewise.",
    "communicate s": "",
    "wait s": "",
    "communicated": "what all ranks together send.",
    "memory a rank": "the largest resident set of a rank (and what PyTorch has reserved on its GPU).",
    "level with global at s": "the second at which the method's validation accuracy first reaches the final one of `global`; later it may "
    "have been lower again.",
}
DASH = {
    "AUC": " `vote` has no probabilities, and so neither AUC nor loss.",
    "kept epoch": " `vote` and `average` have no training of their own.",
}  # added where a column has a dash
SHOWN = ("method", "validation in %", "test accuracy in %", "AUC", "parameters", "total s", "communicated")  # on the terminal
MEANING = {
    Method.VOTE: "takes the class that most local CNNs choose.",
    Method.AVERAGE: "takes the class with the largest mean of the local CNNs' probabilities.",
    Method.DNN: "lets a small network, the DNN, decide on what all the trained local CNNs say.",
    Method.COHERENT: "trains local CNNs and DNN together as one network, from scratch.",
    Method.TRANSFER: "trains the same network, started from the trained local CNNs and the trained DNN.",
    Method.GLOBAL: "is one CNN that sees the whole image, trained by all ranks (DistributedDataParallel): the baseline.",
    Method.SPATIAL: "is one CNN that sees the whole image, too, but each rank computes on a part of every image.",
}
COMPOSED = "trains the CNN of `global`, composed of the trained thin networks."


def methods_text(runs: Sequence[RunResults], without_local: bool = False) -> str:
    """The section on the methods: what each of them does, and a table each of accuracies and costs with the meaning of its columns.

    Args:
        without_local: the local CNNs were trained in another run, whose seconds nobody knows here.
    """
    rows = method_rows(runs, without_local)
    splitting = runs[0].decomposition.splitting
    parts = ["\n".join(f"- `{name}` {meaning(name, splitting)}" for name in runs[0].methods)]
    for title, columns in (("Accuracy", ACCURACY), ("Cost", COST)):
        shown = [name for name in columns if any(row[name] != "–" for row in rows)]
        dashes = {name: text for name, text in DASH.items() if any(row[name] == "–" for row in rows)}
        terms = "\n".join(f"- `{name}`: {columns[name]}{dashes.get(name, '')}" for name in shown if columns[name])
        parts += [f"### {title}", table(("method", *shown), ([row[name] for name in ("method", *shown)] for row in rows)), terms]
    return "\n\n".join(parts)


def meaning(name: Method, splitting: ImageSplitting) -> str:
    """What a method does, in words."""
    if splitting.composes(name):
        return COMPOSED
    return MEANING[name] if splitting.cuts_images else MEANING[name].replace("local CNNs", "thin networks")


def method_rows(runs: Sequence[RunResults], without_local: bool = False) -> list[dict[str, str]]:
    """A row per method, by column: values of one run, or mean ± standard deviation of several seeds."""
    rows, data = [], runs[0].data

    def shares(values: Sequence[float | None], samples: int) -> str:
        return cell([None if value is None else 100 * value for value in values], f"{{:.{decimals(samples * len(runs))}f}}")

    for name, first in runs[0].methods.items():
        methods = [run.methods[name] for run in runs]
        unknown = without_local and name not in (Method.COHERENT, Method.GLOBAL, Method.SPATIAL)
        rows.append({
            "method": name,
            "validation in %": shares([method.validation_accuracy for method in methods], data.validation_samples),
            "test accuracy in %": shares([method.test_accuracy for method in methods], data.test_samples),
            "balanced in %": shares([method.balanced_accuracy for method in methods], data.test_samples),
            "AUC": cell([method.auc for method in methods], "{:.4f}"),
            "test loss": cell([method.test_loss for method in methods], "{:.4f}"),
            "epochs": whole_cell([method.epochs for method in methods]),
            "kept epoch": kept_cell(methods),
            "parameters": f"{first.parameters:,}",
            **{f"{kind} s": seconds_cell([getattr(method.seconds, kind) for method in methods])
               for kind in ("total", "compute", "communicate", "wait")},
            "communicated": human(first.bytes_communicated),
            "memory a rank": memory(first.peak_memory_bytes, first.peak_gpu_memory_bytes),
            "level with global at s": "–" if unknown else reached(runs, name),
        })  # fmt: skip
    return rows


def memory(resident: float | None, on_gpu: float | None) -> str:
    """Bytes in a table; a dash where an older version has not recorded them."""
    return " + ".join([human(resident), *([f"{human(on_gpu)} on its GPU"] if on_gpu else [])]) if resident else "–"


def cell(values: Sequence[float | None], pattern: str) -> str:
    """A value, or mean ± standard deviation of several; a dash for none."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < 2:
        return number(numbers[0] if numbers else None, pattern)
    return f"{pattern} ± {pattern}".format(statistics.mean(numbers), statistics.stdev(numbers))


def seconds_cell(values: Sequence[float]) -> str:
    """Seconds of one run, or mean ± standard deviation of several."""
    return seconds(values[0]) if len(values) == 1 else cell(values, "{:.1f}")


def whole_cell(values: Sequence[float | None]) -> str:
    """A number if all are equal, else as ``cell``."""
    return cell(values[:1] if len(set(values)) == 1 else values, "{:.0f}" if len(set(values)) == 1 else "{:.1f}")


def kept_cell(trained: Sequence[MethodResult | SubdomainResult]) -> str:
    """Which epoch is kept, and of how many."""
    made = [one.own_epochs if isinstance(one, MethodResult) else one.epochs for one in trained]
    kept = whole_cell([one.kept_epoch for one in trained])
    return kept if None in made else f"{kept} of {whole_cell(made)}"


def reached(runs: Sequence[RunResults], name: Method) -> str:
    """Seconds after which the curve of a method first reaches the final accuracy of ``global``, on the validation images."""
    if Method.GLOBAL not in runs[0].methods or runs[0].curves_on == "training":
        return "–"
    found = [
        next((time for time, accuracy in run.methods[name].curve or () if accuracy >= run.accuracy_of(Method.GLOBAL)), None) for run in runs
    ]
    times = [time for time in found if time is not None]
    if len(times) == len(runs):
        return seconds_cell(times)
    return f"in {len(times)} of {len(runs)} seeds" if times else "not reached"


def show_methods(runs: Sequence[RunResults], console: Console) -> None:
    """Shows the most important columns of the tables of methods; the most accurate method of one run in bold."""
    rows: list[Mapping[str, str]] = list(method_rows(runs))
    bold = [number for number, row in enumerate(rows) if len(runs) == 1 and row["method"] == runs[0].best]
    show(fitted(SHOWN, [[row[name] for name in SHOWN] for row in rows], width_of(console), bold=bold), console)

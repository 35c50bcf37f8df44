"""The table of the methods of a run, or of several seeds, as rows of text."""

import statistics
from collections.abc import Sequence

from rich.console import Console

from ddcnn.config.methods import Method
from ddcnn.io.results_schema import MethodResult, RunResults, SubdomainResult
from ddcnn.report.pages import human, number
from ddcnn.report.terminal import fitted, show, width_of

METHOD_COLUMNS = (
    "method", "validation in %", "test accuracy in %", "balanced in %", "AUC", "test loss", "parameters", "epochs", "kept epoch",
)  # fmt: skip
SHOWN = ("method", "validation in %", "test accuracy in %", "AUC", "parameters", "total s", "communicated")  # on the terminal
TIME_COLUMNS = ("compute", "communicate", "wait", "total")
METHODS_NOTE = (
    "`validation` is the accuracy on the validation images, by which methods and epochs are compared; the test images are looked at "
    "once, at the end of a method. `balanced` is the mean per-class recall, AUC the area under the ROC curve (of more than two classes: "
    "the mean of each against the rest). Epochs are passes over the training images, of all trainings that the method needs; the kept "
    "epoch, whose parameters remain, is one of those of its own network alone, which are fewer than were asked for if it stopped early. "
    "`compute`, `communicate` and `wait` are means over the ranks; `total` is the wall time of the phases that a method needs, "
    "`memory a rank` the largest resident set of a rank in them (and what PyTorch has reserved on its GPU); the last column says "
    "after how many of these seconds its curve reaches that of `global`."
)
METHODS_HEADER = (*METHOD_COLUMNS, *(f"{name} s" for name in TIME_COLUMNS), "memory a rank", "communicated", "reaches global at s")


def method_rows(runs: Sequence[RunResults]) -> list[list[str]]:
    """A row per method: values of one run, or mean ± standard deviation of several seeds."""
    rows, pattern = [], "{:.1f}" if len(runs) > 1 else "{:.2f}"
    for name, first in runs[0].methods.items():
        methods = [run.methods[name] for run in runs]
        validation = [None if method.validation_accuracy is None else 100 * method.validation_accuracy for method in methods]
        reaching = [reached(run, name) for run in runs]
        rows.append([
            name, cell(validation, "{:.2f}"), cell([100 * method.test_accuracy for method in methods], "{:.2f}"),
            cell([100 * method.balanced_accuracy for method in methods], "{:.2f}"), cell([method.auc for method in methods], "{:.4f}"),
            cell([method.test_loss for method in methods], "{:.4f}"), f"{first.parameters:,}",
            whole_cell([method.epochs for method in methods]), kept_cell(methods),
            *(cell([getattr(method.seconds, kind) for method in methods], pattern) for kind in TIME_COLUMNS),
            memory(first.peak_memory_bytes, first.peak_gpu_memory_bytes), human(first.bytes_communicated),
            reaching[0] if len(set(reaching)) == 1 else " / ".join(reaching),
        ])  # fmt: skip
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


def whole_cell(values: Sequence[float | None]) -> str:
    """A number if all are equal, else as ``cell``."""
    return cell(values[:1] if len(set(values)) == 1 else values, "{:.0f}" if len(set(values)) == 1 else "{:.1f}")


def kept_cell(trained: Sequence[MethodResult | SubdomainResult]) -> str:
    """Which epoch is kept, and of how many."""
    made = [one.own_epochs if isinstance(one, MethodResult) else one.epochs for one in trained]
    kept = whole_cell([one.kept_epoch for one in trained])
    return kept if None in made else f"{kept} of {whole_cell(made)}"


def reached(results: RunResults, name: Method) -> str:
    """Seconds after which the curve of a method reaches the accuracy of ``global``, on the same images."""
    if Method.GLOBAL not in results.methods or results.curves_on == "training":
        return "–"
    target, curve = results.accuracy_of(Method.GLOBAL), results.methods[name].curve or []
    return next((f"{seconds:.1f}" for seconds, accuracy in curve if accuracy >= target), "not reached")


def show_methods(runs: Sequence[RunResults], console: Console) -> None:
    """Shows the most important columns of the table of methods; the most accurate method of one run in bold."""
    rows = [[row[METHODS_HEADER.index(name)] for name in SHOWN] for row in method_rows(runs)]
    bold = [number for number, row in enumerate(rows) if len(runs) == 1 and row[0] == runs[0].best]
    show(fitted(SHOWN, rows, width_of(console), bold=bold), console)

"""The report of a finished run: tables and figures, made from the files in its folder alone."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ddcnn.config.methods import Method
from ddcnn.decomposition import times
from ddcnn.io.atomic import write_text
from ddcnn.io.results_schema import DecompositionSummary, PhaseSeconds, RunResults, SubdomainResult
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import FinishedRun, curves_of, load
from ddcnn.parallel.heartbeat import beat
from ddcnn.report.analysis_report import analysis_captions, analysis_figures, analysis_text
from ddcnn.report.metrics import confusion
from ddcnn.report.pages import human, number, page, plain, table
from ddcnn.report.terminal import fitted, show, width_of

MANY_SUBDOMAINS = 64
LONGEST_TITLE, LONGEST_TICK = 22, 16  # characters of the names of classes in figures
METHOD_COLUMNS = ("method", "test accuracy in %", "balanced in %", "AUC", "test loss", "parameters", "epochs")
SHOWN = ("method", "test accuracy in %", "AUC", "parameters", "total s", "communicated")  # on the terminal
TIME_COLUMNS = ("compute", "communicate", "wait", "total")
METHODS_NOTE = (
    "`balanced` is the mean per-class recall, AUC the area under the ROC curve (of more than two classes: the mean of each against the "
    "rest). Epochs are passes over the training images. `compute`, `communicate` and `wait` are means over the "
    "ranks; `total` is the wall time of the phases that a method needs, `memory a rank` the largest resident set of a rank in them (and "
    "what PyTorch has reserved on its GPU); the last column says after how many of these seconds its curve reaches the final accuracy of "
    "`global`."
)
METHODS_HEADER = (*METHOD_COLUMNS, *(f"{name} s" for name in TIME_COLUMNS), "memory a rank", "communicated", "reaches global at s")
CURVES_CAPTION = (
    "Test accuracy against the wall time of a method's own phases (evaluation on the test images included); that of `average` "
    "averages the local CNNs as they are then, those whose training has begun; a dot without a line is a method without a curve, and the "
    "dotted line is the final accuracy of `global`."
)


def write_report(folder: RunFolder, console: Console | None = None, draw: bool = True) -> None:
    """Writes the report of a finished run and, if ``draw``, its figures into its folder, and shows the methods on the console.

    Raises:
        InputError: the run has not finished, or a file in its folder is damaged.
    """
    run = load(folder)
    text = report_text(run)
    if draw:
        text += "\n## Figures\n" + "".join(figure_text(folder, *drawn) for drawn in write_figures(run).items())
    publish(folder, text, [run.results], console)


def publish(folder: RunFolder, text: str, runs: Sequence[RunResults], console: Console | None) -> None:
    """Writes a report as Markdown and as HTML, and shows the methods on the console."""
    if console:
        show_methods(runs, console)
    try:
        write_text(folder.html, page(folder, text))
    finally:  # a full disk may still have room for it
        write_text(folder.report, text)
    if console:
        console.out(f"report: {folder.report}", highlight=False)


def write_figures(run: FinishedRun) -> dict[str, str]:
    """Draws figures/*.png; returns a caption for each that has been drawn, which says how to read it."""
    from ddcnn.report.figures import can_draw

    if not can_draw(run.folder.figures):
        return {}
    from ddcnn.report.figures import charts, images, maps
    from ddcnn.report.figures.fonts import label

    details = run.details
    shares = confusion_shares(run)
    different = slice(None) if run.results.decomposition.splitting.cuts_images else slice(1)  # else all see the same

    def names(most: int) -> list[str]:
        return [label(name, most) for name in details.class_names]

    def decomposition() -> Any:
        titles = [names(LONGEST_TITLE)[k] for k in details.labels[details.example_rows]]
        return images.decomposition(details.examples, titles, run.cores[different], run.subimages[different])

    figures: dict[str, Callable[[], Any]] = {
        "decomposition": decomposition,
        "accuracy_over_time": lambda: charts.accuracy_over_time([curves_of(run.results)]),
        "confusion": lambda: maps.confusion(shares, names(LONGEST_TICK), run.results.best),
        "timeline": lambda: charts.timeline(details.timeline, list(details.phases), list(details.kinds)),
    }
    if run.epochs:
        figures["learning_curves"] = lambda: charts.learning_curves([line.model_dump() for line in run.epochs], run.test_accuracy)
    if (local := run.local_accuracy) is not None:
        figures["local_accuracy"] = lambda: maps.local_accuracy(local, run.test_accuracy)
    drawn = draw_figures(run.folder, figures | analysis_figures(run), details.class_names)
    return {name: caption for name, caption in (captions(run, shares) | analysis_captions(run)).items() if name in drawn}


def draw_figures(run: RunFolder, figures: dict[str, Callable[[], Any]], class_names: Iterable[str] = ()) -> list[str]:
    """Draws figures/*.png; returns the names of those that have been drawn."""
    from ddcnn.report.figures import draw

    drawn = []
    for name, figure in figures.items():
        beat("figures")
        if draw(run.figure(name), figure, class_names):
            drawn.append(name)
    return drawn


def captions(run: FinishedRun, shares: np.ndarray) -> dict[str, str]:
    wrong = shares * (1 - np.eye(len(shares)))
    true, decided = np.unravel_index(wrong.argmax(), wrong.shape)
    names = [plain(name) for name in run.details.class_names]
    often = f"; most often, {names[true]} is taken for {names[decided]} ({wrong.max():.0%})" if wrong.any() else ""
    slices = "; of a volume, the middle slice along each axis is shown" if run.details.examples.ndim == 5 else ""
    splitting = run.results.decomposition.splitting
    return {
        "decomposition": f"{splitting.caption}{slices}.",
        "local_accuracy": f"On the left, each cell is {splitting.cell}: the brighter, the more test samples its local CNN classifies "
        "correctly alone; on the right, what the methods make of them all.",
        "accuracy_over_time": CURVES_CAPTION,
        "learning_curves": "Thin lines are single local CNNs (a band where there are many), the thick line is their mean; training "
        "accuracy far above test accuracy means overfitting.",
        "confusion": f"Of the samples of a true class (row), the percentage that `{run.results.best}`, the most accurate method, puts into "
        f"each class (column): the diagonal is right{often}.",
        "timeline": "What every rank does when, with a line at the beginning of each phase: the more blue, the better the ranks are used "
        "(white: not recorded).",
    }


def confusion_shares(run: FinishedRun) -> np.ndarray:
    """(K, K) share of the test samples of a class (row) that the best method puts into a class (column)."""
    counts = confusion(run.details.labels, run.details.classes[run.results.best], run.results.data.classes)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def report_text(run: FinishedRun) -> str:
    """report.md without its figures."""
    results, settings = run.results, run.settings
    data, decomposition, methods = results.data, results.decomposition, method_rows([results])
    if settings.start_from:  # without the seconds of training the local CNNs nothing can be said of these methods
        methods = [row if row[0] in (Method.COHERENT, Method.GLOBAL) else [*row[:-1], "–"] for row in methods]
    about = results.environment.model_dump(exclude_unset=True).items()
    environment = [(name.replace("_", " "), ("no", "yes")[value] if isinstance(value, bool) else value) for name, value in about]
    phases = [phase_row(name, phase) for name, phase in results.phases.items() if phase.seconds > 0]
    return f"""# {title(results)}

{data.train_samples} training and {data.test_samples} test images of {times(data.shape)}, {data.classes} classes\
{f" (damaged and left out: {data.skipped})" if data.skipped else ""}; network {settings.network}\
{f" from the trained weights {settings.weights.name}" if settings.weights else ""}, \
{f"width {settings.width}, " if settings.width else ""}interface {settings.interface}, seed {settings.seed}. \
{start_note(settings.start_from)}\
{sources_note(run.folder)}

## Methods

{table(METHODS_HEADER, methods)}

{METHODS_NOTE}

{one_class_note(run)}## Subdomains

{parameters_note(decomposition)}

{subdomain_table(decomposition.subdomains)}

{analysis_text(run)}## Phases

{table(("phase", "wall s", "busiest rank s", "mean rank s", "memory of a rank at most"), phases)}

A rank is busy while it computes.

## Environment

{table(("what", "value"), environment)}
"""


def sources_note(run: RunFolder) -> str:
    config, results = run.config.name, run.results.name
    return f"All settings: [{config}]({config}); all numbers: [{results}]({results})."


def figure_text(run: RunFolder, name: str, caption: str) -> str:
    return f"\n![{name.replace('_', ' ')}]({run.figure(name).relative_to(run.path)})\n\n{caption}\n"


def one_class_note(run: FinishedRun) -> str:
    """Names methods that put all samples into one class, whose accuracy and calibration say little."""
    names = [f"`{name}`" for name, classes in run.details.classes.items() if (classes == classes[0]).all()]
    return f"All test samples are put into one class by {', '.join(names)}: train longer, or with smaller batches.\n\n" if names else ""


def title(results: RunResults) -> str:
    decomposition = results.decomposition
    return f"{plain(results.data.source)}, {decomposition.splitting.headline(decomposition.grid, decomposition.overlap)}"


def parameters_note(decomposition: DecompositionSummary) -> str:
    together, whole = decomposition.parameters, decomposition.global_parameters
    if not together:
        return "No local CNN has been trained."
    ratio = f", {together / whole:.2f} times as many as the global CNN ({whole:,})" if whole else ""
    return f"Together the local CNNs have {together:,} parameters{ratio}; width divisor {decomposition.width_divisor:.3g}."


def start_note(start: Path | None) -> str:
    if not start:
        return ""
    taken = f"The local CNNs (and a DNN for the same interface) are taken from {plain(str(start))}"
    return f"{taken}: seconds and bytes are without their training. "


def method_rows(runs: Sequence[RunResults]) -> list[list[str]]:
    """A row per method: values of one run, or mean ± standard deviation of several seeds."""
    rows, pattern = [], "{:.1f}" if len(runs) > 1 else "{:.2f}"
    for name, first in runs[0].methods.items():
        methods = [run.methods[name] for run in runs]
        reaching = [reached(run, name) for run in runs]
        rows.append([
            name, cell([100 * method.test_accuracy for method in methods], "{:.2f}"),
            cell([100 * method.balanced_accuracy for method in methods], "{:.2f}"), cell([method.auc for method in methods], "{:.4f}"),
            cell([method.test_loss for method in methods], "{:.4f}"), f"{first.parameters:,}", str(first.epochs),
            *(cell([getattr(method.seconds, kind) for method in methods], pattern) for kind in TIME_COLUMNS),
            memory(first.peak_memory_bytes, first.peak_gpu_memory_bytes), human(first.bytes_communicated),
            reaching[0] if len(set(reaching)) == 1 else " / ".join(reaching),
        ])  # fmt: skip
    return rows


def phase_row(name: str, phase: PhaseSeconds) -> list[str]:
    seconds = (phase.seconds, phase.max_rank_seconds, phase.mean_rank_seconds)
    return [name, *(f"{value:.2f}" for value in seconds), memory(phase.max_rank_memory_bytes, phase.max_rank_gpu_reserved_bytes)]


def memory(resident: float | None, on_gpu: float | None) -> str:
    """Bytes in a table; a dash where an older version has not recorded them."""
    return " + ".join([human(resident), *([f"{human(on_gpu)} on its GPU"] if on_gpu else [])]) if resident else "–"


def cell(values: Sequence[float | None], pattern: str) -> str:
    """A value, or mean ± standard deviation of several; a dash for none."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < 2:
        return number(numbers[0] if numbers else None, pattern)
    return f"{pattern} ± {pattern}".format(statistics.mean(numbers), statistics.stdev(numbers))


def reached(results: RunResults, name: Method) -> str:
    """Seconds after which the curve of a method reaches the accuracy of ``global``."""
    if Method.GLOBAL not in results.methods:
        return "–"
    target, curve = results.methods[Method.GLOBAL].test_accuracy, results.methods[name].curve or []
    return next((f"{seconds:.1f}" for seconds, accuracy in curve if accuracy >= target), "not reached")


def subdomain_table(subdomains: list[SubdomainResult]) -> str:
    """A row per subdomain; of many, the most and the least accurate."""
    note = ""
    if len(subdomains) > MANY_SUBDOMAINS:
        note = f"The 8 most and the 8 least accurate of {len(subdomains)} subdomains.\n\n"
        ordered = sorted(subdomains, key=lambda box: -(box.test_accuracy or 0))
        subdomains = ordered[:8] + ordered[-8:]
    rows = (
        (
            box.index, " × ".join(f"{a}:{b}" for a, b in zip(box.start, box.stop, strict=True)),
            number(box.parameters, "{:,}"), number(box.test_accuracy, "{:.2%}").rstrip("%"), number(box.seconds, "{:.2f}"),
        )
        for box in subdomains
    )  # fmt: skip
    return note + table(("subdomain", "pixels", "parameters", "test accuracy in %", "seconds"), rows)


def show_methods(runs: Sequence[RunResults], console: Console) -> None:
    """Shows the most important columns of the table of methods; the most accurate method of one run in bold."""
    rows = [[row[METHODS_HEADER.index(name)] for name in SHOWN] for row in method_rows(runs)]
    bold = [number for number, row in enumerate(rows) if len(runs) == 1 and row[0] == runs[0].best]
    show(fitted(SHOWN, rows, width_of(console), bold=bold), console)

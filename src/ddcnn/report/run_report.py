"""The report of a finished run: tables and figures, made from the files in its folder alone."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ddcnn.config.settings import RunSettings
from ddcnn.decomposition import times
from ddcnn.io.atomic import write_text
from ddcnn.io.results_schema import DataSummary, DecompositionSummary, PhaseSeconds, RunResults, SubdomainResult
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import FinishedRun, curves_of, load
from ddcnn.parallel.heartbeat import beat
from ddcnn.report.analysis_report import analysis_figures, analysis_text
from ddcnn.report.descriptions import confusion_counts, curve_samples, described
from ddcnn.report.intervals import percent
from ddcnn.report.methods_table import kept_cell, memory, methods_text, show_methods
from ddcnn.report.pages import figure_text, number, page, plain, seconds, table
from ddcnn.report.verdict import verdict

MANY_SUBDOMAINS = 64
LONGEST_TITLE, LONGEST_TICK = 22, 16  # characters of the names of classes in figures
TRAINING_CURVES = "There are no validation images: accuracies over epochs and time are those on the training images, during the epoch.\n\n"


def write_report(folder: RunFolder, console: Console | None = None, draw: bool = True) -> None:
    """Writes the report of a finished run and, if ``draw``, its figures into its folder, and shows the methods on the console.

    Raises:
        InputError: the run has not finished, or a file in its folder is damaged.
    """
    run = load(folder)
    figures = write_figures(run) if draw else {}
    publish(folder, report_text(run, figures), [run.results], console)


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
    """Draws figures/*.png; returns those that have been drawn as parts of the report, by name."""
    from ddcnn.report.figures import can_draw

    if not can_draw(run.folder.figures):
        return {}
    from ddcnn.report.figures import charts, images, maps
    from ddcnn.report.figures.fonts import label
    from ddcnn.report.figures.timeline import timeline

    details = run.details
    different = slice(None) if run.results.decomposition.splitting.cuts_images else slice(1)  # else all see the same

    def names(most: int) -> list[str]:
        return [label(name, most) for name in details.class_names]

    def decomposition() -> Any:
        titles = [names(LONGEST_TITLE)[k] for k in details.labels[details.example_rows]]
        return images.decomposition(details.examples, titles, run.cores[different], run.subimages[different])

    figures: dict[str, Callable[[], Any]] = {
        "decomposition": decomposition,
        "accuracy_over_time": lambda: charts.accuracy_over_time(
            [curves_of(run.results)], run.results.curves_on, curve_samples(run.results)
        ),
        "confusion": lambda: maps.confusion(confusion_counts(run), names(LONGEST_TICK), run.results.best),
        "timeline": lambda: timeline(details.timeline, list(details.phases), list(details.kinds)),
    }
    if run.epochs:
        lines = [line.model_dump() | {"evaluated": line.evaluated_accuracy} for line in run.epochs]
        figures["learning_curves"] = lambda: charts.learning_curves(lines, run.curve_ends, run.results.curves_on)
    if (local := run.local_accuracy) is not None:
        figures["local_accuracy"] = lambda: maps.local_accuracy(local, run.test_accuracy, run.results.data.test_samples)
    drawn = draw_figures(run.folder, figures | analysis_figures(run), details.class_names)
    texts = described(run)
    return {name: figure_text(run.folder, name, texts[name].caption, texts[name].instead) for name in drawn}


def draw_figures(run: RunFolder, figures: dict[str, Callable[[], Any]], class_names: Iterable[str] = ()) -> list[str]:
    """Draws figures/*.png; returns the names of those that have been drawn."""
    from ddcnn.report.figures import draw

    drawn = []
    for name, figure in figures.items():
        beat("figures")
        if draw(run.figure(name), figure, class_names):
            drawn.append(name)
    return drawn


def report_text(run: FinishedRun, figures: dict[str, str]) -> str:
    """report.md, each figure beside the tables that it belongs to."""
    results, settings = run.results, run.settings
    data, decomposition = results.data, results.decomposition
    about = results.environment.model_dump(exclude_unset=True).items()
    flat = [pair for name, value in about for pair in (value.items() if isinstance(value, dict) else [(name, value)])]
    told = [(name.replace("_", " "), value) for name, value in flat if value is not None]
    environment = [(name, ("no", "yes")[value] if isinstance(value, bool) else value) for name, value in told]
    phases = [phase_row(name, phase) for name, phase in results.phases.items() if phase.seconds > 0]
    correct = {name: classes == run.details.labels for name, classes in run.details.classes.items()}

    def figure(name: str, section: str = "") -> str:
        heading = f"## {section}\n\n" if section else ""
        return f"{heading}{figures[name]}" if name in figures else ""

    return f"""# {title(results)}

{samples_text(data)} images of {size_text(data.shape)}, {data.classes} classes\
{f" (damaged and left out: {data.skipped})" if data.skipped else ""}; {networks_text(settings)}, seed {settings.seed}. \
{start_note(settings.start_from)}\
{sources_note(run.folder)}

## Verdict

{verdict(results, correct)}

{figure("accuracy_over_time")}## Methods

{methods_text([results], without_local=settings.start_from is not None)}

{TRAINING_CURVES if results.curves_on == "training" else ""}{one_class_note(run)}{figure("learning_curves", "Learning curves")}\
{figure("confusion", "Confusion")}## Subdomains

{parameters_note(decomposition)}

{figure("decomposition")}{subdomain_table(decomposition.subdomains, data)}

{figure("local_accuracy")}{analysis_text(run, figures)}## Phases

{table(("phase", "wall s", "busiest rank s", "mean rank s", "memory of a rank at most"), phases)}

The wall time of a phase is longer than the seconds that its busiest rank computes, by what this rank sends and waits for. A mean far \
below the busiest rank means that the work is shared out badly.

{figure("timeline")}## Environment

{table(("what", "value"), environment)}
"""


def networks_text(settings: RunSettings) -> str:
    """Which networks there are, and what connects them."""
    weights, shared = settings.weights, {"all": "shared parameters", "early": "a shared first stage"}
    parts = (
        f"network {settings.network}{f' from the trained weights {weights.name}' if weights else ''}",
        settings.width and f"width {settings.width}", settings.head and f"{settings.head} head", f"interface {settings.interface}",
        settings.convolutional and f"a convolutional DNN of width {settings.convolutional[0][0]}",
        settings.coarse_stages and f"{settings.coarse_stages} of the network's stages in it",
        settings.coarse_image and "the image's cells beside the maps", shared.get(settings.share),
    )  # fmt: skip
    return ", ".join(part for part in parts if part)


def samples_text(data: DataSummary) -> str:
    """How many images there are to train, validate and test."""
    validation = f", {data.validation_samples} validation" if data.validation_samples else ""
    return f"{data.train_samples} training{validation} and {data.test_samples} test"


def size_text(shape: Sequence[int]) -> str:
    """Pixels and channels of an image (*spatial, C)."""
    return f"{times(shape[:-1])} {'pixels' if len(shape) == 3 else 'voxels'} and {shape[-1]} channel{'s' if shape[-1] > 1 else ''}"


def sources_note(run: RunFolder) -> str:
    config, results = run.config.name, run.results.name
    return f"All settings: [{config}]({config}); all numbers: [{results}]({results})."


def one_class_note(run: FinishedRun) -> str:
    """Names methods that put all samples into one class, whose accuracy and calibration say little; or that there is only one."""
    if (run.details.labels == run.details.labels[0]).all():
        return f"All test images are of one class, `{run.results.data.class_names[run.details.labels[0]]}`: accuracies say little.\n\n"
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
    divided = f"their widths are those of the global CNN divided by {decomposition.width_divisor:.3g}, in multiples of 4"
    return f"Together the local CNNs have {together:,} parameters{ratio}; {divided}."


def start_note(start: Path | None) -> str:
    if not start:
        return ""
    taken = f"The local CNNs (and a DNN for the same interface) are taken from {plain(str(start))}"
    return f"{taken}: seconds and bytes are without their training. "


def phase_row(name: str, phase: PhaseSeconds) -> list[str]:
    spent = (phase.seconds, phase.max_rank_seconds, phase.mean_rank_seconds)
    return [name, *map(seconds, spent), memory(phase.max_rank_memory_bytes, phase.max_rank_gpu_reserved_bytes)]


def subdomain_table(subdomains: list[SubdomainResult], data: DataSummary) -> str:
    """A row per subdomain; of many, the most and the least accurate."""
    note = ""
    if len(subdomains) > MANY_SUBDOMAINS:
        note = f"The 8 most and the 8 least accurate of {len(subdomains)} subdomains.\n\n"
        ordered = sorted(subdomains, key=lambda box: -(box.validation_accuracy or box.test_accuracy or 0))
        subdomains = ordered[:8] + ordered[-8:]
    rows = (
        (
            box.index, " × ".join(f"{a}:{b}" for a, b in zip(box.start, box.stop, strict=True)),
            number(box.parameters, "{:,}"), percent(box.validation_accuracy, data.validation_samples),
            percent(box.test_accuracy, data.test_samples), kept_cell([box]), "–" if box.seconds is None else seconds(box.seconds),
        )
        for box in subdomains
    )  # fmt: skip
    return note + table(
        ("subdomain", "pixels of its subimage", "parameters", "validation in %", "test accuracy in %", "kept epoch", "seconds"), rows
    )

"""The report of a finished run: tables and figures, made from the files in its folder alone."""

import json
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddcnn.errors import InputError
from ddcnn.files import disk_errors, replacing, write_text

SCHEMA_VERSION = 1  # of results.json
MANY_SUBDOMAINS = 64
METHOD_COLUMNS = ("method", "test accuracy in %", "test loss", "parameters", "epochs")
TIME_COLUMNS = ("compute", "communicate", "wait", "total")
SETTINGS = ("network", "width", "interface", "seed")  # those that the report tells
METHODS_NOTE = (
    "Epochs are passes over the training images. `compute`, `communicate` and `wait` are means over the ranks; `total` is the wall time "
    "of the phases that a method needs; the last column says after how many of these seconds its curve reaches the final accuracy of "
    "`global`."
)
CURVES_CAPTION = (
    "Test accuracy against the wall time of a method's own phases (evaluation on the test images included); that of `average` is what "
    "the local CNNs would say together if their training ended there, and a dot is a method that decides only at its end."
)
METRICS = ("phase", "subdomain", "epoch", "loss", "accuracy", "test_accuracy")


@dataclass(frozen=True)
class FinishedRun:
    """What a run has left in its folder.

    Attributes:
        results, settings: of results.json and config.toml.
        epochs: the lines of metrics.jsonl.
        cores, subimages: (N, 2, d) start and stop of the boxes.
        accuracies: (*grid) of the local CNNs, None if none have been trained on their own.
        labels: (S,) of the test samples; ``classes``: (S,) per method, its decisions.
        class_names: K names.
        examples: (n, *spatial, C) test images.
        spans: (spans, 5) rank, phase, kind, start, stop; ``phases`` and ``kinds`` are the names of their numbers.
    """

    folder: Path
    results: dict[str, Any]
    settings: dict[str, Any]
    epochs: list[dict[str, Any]]
    cores: np.ndarray
    subimages: np.ndarray
    accuracies: np.ndarray | None
    labels: np.ndarray
    classes: dict[str, np.ndarray]
    class_names: list[str]
    examples: np.ndarray
    spans: np.ndarray
    phases: list[str]
    kinds: list[str]

    @property
    def test_accuracy(self) -> dict[str, float]:
        return {name: method["test_accuracy"] for name, method in self.results["methods"].items()}

    @property
    def best(self) -> str:
        return max(self.test_accuracy, key=lambda name: self.test_accuracy[name])


def write_report(run: Path, show: bool = True) -> None:
    """Writes report.md and figures/*.png into a finished run's folder, and prints the methods if ``show``.

    Raises:
        InputError: the folder of no finished run, or a file in it is damaged.
    """
    found = load(run)
    with reading(run / "results.json"):
        text = report_text(found)
    for name, caption in write_figures(found).items():
        text += f"\n![{name.replace('_', ' ')}](figures/{name}.png)\n\n{caption}\n"
    write_text(run / "report.md", text)
    if show:
        show_methods(found)
        print(f"report: {run / 'report.md'}")


def load(run: Path) -> FinishedRun:
    """Reads the files of a run's folder."""
    if not (run / "results.json").is_file():
        raise InputError(f"{run}: no results.json: not a finished run of ddcnn; give the folder that a run has named as its --output")
    values: dict[str, Any] = {"folder": run}
    with reading(run / "results.json"):
        results = json.loads((run / "results.json").read_text())
        if results["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {results['schema_version']}, where this program reads {SCHEMA_VERSION}")
        subdomains = results["decomposition"]["subdomains"]
        values["results"] = results
        values["cores"] = np.array([[place["core_start"], place["core_stop"]] for place in subdomains], dtype=int)
        values["subimages"] = np.array([[place["start"], place["stop"]] for place in subdomains], dtype=int)
        found = [place["test_accuracy"] for place in subdomains]
        values["accuracies"] = None if None in found else np.array(found, dtype=float).reshape(results["decomposition"]["grid"])
    with reading(run / "config.toml"):
        settings = tomllib.loads((run / "config.toml").read_text())
        values["settings"] = {name: settings[name] for name in SETTINGS} | {"start-from": settings.get("start-from")}
    with reading(run / "metrics.jsonl"):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        values["epochs"] = [{name: line[name] for name in METRICS} for line in lines]
    with reading(run / "details.h5"), h5py.File(run / "details.h5", "r") as file:
        values["labels"] = _dataset(file, "labels")[...]
        values["classes"] = {name: _dataset(file, f"classes/{name}")[...] for name in results["methods"]}
        examples = _dataset(file, "examples")
        values["examples"] = examples[:1] if examples.ndim == 5 else examples[...]  # one volume is enough, and may be large
        timeline = _dataset(file, "timeline")
        values["spans"] = timeline[...]
        values["phases"], values["kinds"] = timeline.attrs["phases"].split(), timeline.attrs["kinds"].split()
        values["class_names"] = json.loads(file.attrs["class_names"])
        _check_shapes(values)
    return FinishedRun(**values)


def _check_shapes(values: dict[str, Any]) -> None:
    """The figures take it for granted that these files belong to one run."""
    data, samples = values["results"]["data"], values["labels"].shape
    if (
        samples != (data["test_samples"],)
        or any(classes.shape != samples for classes in values["classes"].values())
        or values["examples"].shape[1:] != tuple(data["shape"])
        or len(values["class_names"]) != data["classes"]
        or values["spans"].shape[1:] != (5,)
        or len(values["spans"]) == 0
    ):
        raise ValueError("its arrays do not fit results.json")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what a missing or damaged file leads to into an InputError that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path.parent}: {path.name} is missing, damaged or foreign ({what}); bring it back, or run again") from None


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset that lies in this very file: links and virtual sources could show any other file in the report."""
    dataset = file[name]
    if dataset.file.filename != file.filename or dataset.is_virtual or dataset.external:
        raise ValueError(f"{name} lies in another file, which is not followed")
    return dataset


def write_figures(run: FinishedRun) -> dict[str, str]:
    """Draws figures/*.png; returns a caption for each, which says how to read it."""
    from ddcnn import figures

    shares = confusion_shares(run)
    drawn = {
        "decomposition": figures.decomposition(
            run.examples, [run.class_names[label] for label in run.labels[: len(run.examples)]], run.cores, run.subimages
        ),
        "accuracy_over_time": figures.accuracy_over_time([curves_of(run.results)]),
        "confusion": figures.confusion(shares, run.class_names, run.best),
        "timeline": figures.timeline(run.spans, run.phases, run.kinds),
    }
    if run.epochs:
        drawn["learning_curves"] = figures.learning_curves(run.epochs, run.test_accuracy)
    if run.accuracies is not None:
        drawn["local_accuracy"] = figures.local_accuracy(run.accuracies, run.test_accuracy)
    save_figures(run.folder / "figures", drawn)
    return {name: caption for name, caption in captions(run, shares).items() if name in drawn}


def save_figures(folder: Path, drawn: dict[str, Any]) -> None:
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        with replacing(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def curves_of(results: dict[str, Any]) -> dict[str, np.ndarray]:
    """Per method (points, 2): seconds, test accuracy."""
    return {name: np.array(method["curve"], dtype=float).reshape(-1, 2) for name, method in results["methods"].items()}


def captions(run: FinishedRun, shares: np.ndarray) -> dict[str, str]:
    wrong = shares * (1 - np.eye(len(shares)))
    true, found = np.unravel_index(wrong.argmax(), wrong.shape)
    names = run.class_names
    often = f"; most often, {names[true]} is taken for {names[found]} ({wrong.max():.0%})" if wrong.any() else ""
    slices = "; of a volume, the middle slice along each axis is shown" if run.examples.ndim == 5 else ""
    return {
        "decomposition": "Test images with the lines along which they are cut into cores, and below them the subimages (cores extended "
        f"by the overlap) that the local CNNs see, each alone{slices}.",
        "local_accuracy": "On the left, each cell is a subdomain at its place in the image: the brighter, the more test samples its "
        "local CNN classifies correctly alone; on the right, what the methods make of them all.",
        "accuracy_over_time": CURVES_CAPTION,
        "learning_curves": "Thin lines are single local CNNs (a band where there are many), the thick line is their mean; training "
        "accuracy far above test accuracy means overfitting.",
        "confusion": f"Of the samples of a true class (row), the percentage that `{run.best}`, the most accurate method, puts into each "
        f"class (column): the diagonal is right{often}.",
        "timeline": "What every rank does when, with a line at the beginning of each phase: the more blue, the better the ranks are used "
        "(white: not recorded).",
    }


def confusion_shares(run: FinishedRun) -> np.ndarray:
    """(K, K) share of the test samples of a class (row) that the best method puts into a class (column)."""
    counts = np.zeros((len(run.class_names),) * 2)
    np.add.at(counts, (run.labels, run.classes[run.best]), 1)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def report_text(run: FinishedRun) -> str:
    """report.md without its figures."""
    results, settings = run.results, run.settings
    data, decomposition = results["data"], results["decomposition"]
    environment = {name.replace("_", " "): value for name, value in results["environment"].items()}
    return f"""# {data["source"]}, {"x".join(map(str, decomposition["grid"]))} subdomains, overlap {decomposition["overlap"]}

{data["train_samples"]} training and {data["test_samples"]} test images of {"x".join(map(str, data["shape"]))}, {data["classes"]} classes; \
network {settings["network"]}, width {settings["width"]}, interface {settings["interface"]}, seed {settings["seed"]}. \
{start_note(settings)}\
All settings: [config.toml](config.toml); all numbers: [results.json](results.json).

## Methods

{method_table(results["methods"], settings["start-from"])}

{METHODS_NOTE}

## Subdomains

{subdomain_table(decomposition["subdomains"])}

## Phases

{table(("phase", "wall s", "busiest rank s", "mean rank s"), phase_rows(results["phases"]))}

A rank is busy while it computes.

## Environment

{table(("what", "value"), environment.items())}

## Figures
"""


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; numbers to the right, the first column to the left."""
    header = list(header)
    lines = [header, [":--"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def start_note(settings: dict[str, Any]) -> str:
    start = settings["start-from"]
    return f"The local CNNs (and the DNN) are taken from {start}: their training is not in the seconds and bytes below. " if start else ""


def method_table(methods: dict[str, dict[str, Any]], start: str | None = None) -> str:
    header = (*METHOD_COLUMNS, *(f"{name} s" for name in TIME_COLUMNS), "communicated", "reaches global at s")
    target = methods["global"]["test_accuracy"] if "global" in methods else None
    rows = [[*method_row(name, method), reached(method["curve"], target)] for name, method in methods.items()]
    if start:
        rows = [row if row[0] in ("coherent", "global") else [*row[:-1], "–"] for row in rows]
    return table(header, rows)


def reached(curve: list[tuple[float, float]], target: float | None) -> str:
    """Seconds until a curve reaches an accuracy."""
    if target is None:
        return "–"
    return next((f"{seconds:.1f}" for seconds, accuracy in curve if accuracy >= target), "not reached")


def method_row(name: str, method: dict[str, Any]) -> list[str]:
    loss = "–" if method["test_loss"] is None else f"{method['test_loss']:.4f}"
    return [
        name, f"{100 * method['test_accuracy']:.2f}", loss, f"{method['parameters']:,}", str(method["epochs"]),
        *(f"{method['seconds'][kind]:.2f}" for kind in TIME_COLUMNS), human(method["bytes_communicated"]),
    ]  # fmt: skip


def subdomain_table(subdomains: list[dict[str, Any]]) -> str:
    """A row per subdomain; of many, the most and the least accurate."""
    note = ""
    if len(subdomains) > MANY_SUBDOMAINS:
        note = f"The 8 most and the 8 least accurate of {len(subdomains)} subdomains.\n\n"
        ordered = sorted(subdomains, key=lambda place: -(place["test_accuracy"] or 0))
        subdomains = ordered[:8] + ordered[-8:]
    rows = (
        (
            place["index"], " × ".join(f"{a}:{b}" for a, b in zip(place["start"], place["stop"], strict=True)),
            number(place["parameters"], "{:,}"), number(place["test_accuracy"], "{:.2%}").rstrip("%"), number(place["seconds"], "{:.2f}"),
        )
        for place in subdomains
    )  # fmt: skip
    return note + table(("subdomain", "pixels", "parameters", "test accuracy in %", "seconds"), rows)


def phase_rows(phases: dict[str, dict[str, float]]) -> list[list[str]]:
    """The phases that took place."""
    return [[name, *(f"{value:.2f}" for value in phase.values())] for name, phase in phases.items() if phase["seconds"] > 0]


def show_methods(run: FinishedRun) -> None:
    """Prints the table of methods."""
    rows = [method_row(name, method) for name, method in run.results["methods"].items()]
    show_table((*METHOD_COLUMNS[:4], "total s", "communicated"), [[*row[:4], *row[-2:]] for row in rows], run.best)


def show_table(header: Iterable[str], rows: list[list[str]], bold: str | None) -> None:
    """Prints a table; the row that begins with ``bold`` stands out."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, header_style="bold")
    for name in header:
        shown.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row, style="bold" if row[0] == bold else None)
    Console().print(shown)


def number(value: float | None, pattern: str) -> str:
    return "–" if value is None else pattern.format(value)


def human(number: float) -> str:
    """Bytes in a unit that leaves few digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"

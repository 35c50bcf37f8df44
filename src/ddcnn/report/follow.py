"""``ddcnn report --follow``: what a run does, from the metrics.jsonl that it writes, until it has finished."""

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ddcnn.config.settings import RunSettings
from ddcnn.errors import InputError
from ddcnn.io.lock import is_held
from ddcnn.io.run_folder import RunFolder

INTERVAL = 0.5  # seconds between two looks
MOST = 20  # trainings that are shown, the latest
SHADES = "▁▂▃▄▅▆▇█"
POINTS = 24  # of a curve
HEADER = ("training", "epoch", "loss", "", "accuracy", "test accuracy", "at s")


@dataclass(frozen=True)
class Line:
    """What metrics.jsonl says of an epoch, and the seed of its run if there are several."""

    phase: str
    subdomain: int | None
    epoch: int
    loss: float | None
    accuracy: float | None
    test_accuracy: float | None
    seconds: float
    time: float
    seed: int | None = None

    @property
    def training(self) -> str:
        seed = "" if self.seed is None else f"seed {self.seed}  "
        return f"{seed}{self.phase}" + ("" if self.subdomain is None else f"  subdomain {self.subdomain}")


logger = logging.getLogger(__name__)
LINE = TypeAdapter(Line)


def follow(run: RunFolder, interval: float = INTERVAL) -> None:
    """Shows the run until it has written its results: a table on a terminal that renews itself, else a line for every epoch.

    Raises:
        InputError: not the folder of a run, or a file in it is damaged.
    """
    if sys.stdout.isatty():
        with Live(view(run, []), console=Console(), auto_refresh=False) as live:
            for lines in looks(run, interval):
                live.update(view(run, lines), refresh=True)
    else:
        told: set[str] = set()  # a run that was resumed may have epochs anew
        state = ""
        for lines in looks(run, interval):
            if state_of(run) != state:
                state = state_of(run)
                if state:
                    logger.info("%s", state)
            for line in lines:
                name = f"{line.training}  epoch {line.epoch}"
                if name not in told:
                    told.add(name)
                    logger.info("%s", "  ".join((name, *named(line))))
    show_results(run)


def looks(run: RunFolder, interval: float) -> Iterator[list[Line]]:
    """What is there, again and again; for the last time when the results are."""
    while True:
        finished = run.has_results
        if run.path.exists() and not run.path.is_dir():
            raise InputError(f"{run} is no folder: name the one that the run has as its --output")
        yield list(read(run))
        if finished:
            return
        time.sleep(interval)


def read(run: RunFolder) -> Iterator[Line]:
    """The lines of the run, or of the runs of its seeds; a last line that is still being written is left for later."""
    settings = settings_of(run)
    seeds = range(settings.seed, settings.seed + settings.seeds) if settings and settings.seeds > 1 else [None]
    for seed in seeds:
        file = (run if seed is None else run.seed(seed)).metrics
        try:
            whole = file.read_text().rpartition("\n")[0].splitlines()
            yield from sorted((line_of(seed, text) for text in whole), key=lambda line: line.time)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{file}: damaged, or of another version ({error})") from None


def line_of(seed: int | None, text: str) -> Line:
    try:
        return replace(LINE.validate_json(text, strict=True), seed=seed)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(": ".join([*map(str, first["loc"]), first["msg"]])) from None


def settings_of(run: RunFolder) -> RunSettings | None:
    """None if the run has not begun."""
    return run.settings() if run.is_run else None


def state_of(run: RunFolder) -> str:
    """Why nothing happens, if so."""
    if not run.is_run:
        return f"{run}: no run yet; waiting for one to begin (Ctrl-C ends this)"
    if is_held(run.path) or run.has_results:
        return ""
    return f"{run}: no job is at work on it; to go on: python -m ddcnn run --resume --output {run}"


def view(run: RunFolder, lines: list[Line]) -> RenderableType:
    """A row for each of the latest trainings."""
    settings = settings_of(run)
    if settings is None:
        return Text(state_of(run))
    trainings: dict[str, list[Line]] = {}
    for line in lines:
        trainings.setdefault(line.training, []).append(line)
    latest = sorted(trainings.values(), key=lambda training: (training[-1].seed or 0, training[-1].time))[-MOST:]
    table = Table(box=None, header_style="bold")
    for name in HEADER:
        table.add_column(name, justify="left" if name in ("training", "") else "right", no_wrap=True)
    for training in latest:
        last = training[-1]
        table.add_row(
            last.training, f"{last.epoch}/{epochs_of(settings, last.phase)}", shown(last.loss, "{:.3f}"),
            curve([line.loss for line in training if line.loss is not None]), shown(last.accuracy, "{:.3f}"),
            shown(last.test_accuracy, "{:.3f}"), f"{last.time:.1f}",
        )  # fmt: skip
    hidden = f"; the latest {MOST} of {len(trainings)} trainings" if len(trainings) > MOST else ""
    grid = "x".join(map(str, settings.grid))
    kind = "subdomains" if settings.decomposition == "image" else "in width"
    title = f"{run}: {settings.data}, {grid} {kind}, {settings.network}{hidden}"
    note = state_of(run) or "Of the subdomains, those of rank 0 until the run ends."
    return Group(Text(title), table, Text(note, style="dim"))


def epochs_of(settings: RunSettings, phase: str) -> int:
    """How many a training of this phase has."""
    own = {"local": settings.epochs, "dnn": settings.dnn_epochs, "transfer": settings.frozen_epochs + settings.transfer_epochs}
    return own[phase] if phase in own else settings.epochs_of(phase)


def curve(values: list[float]) -> str:
    """The latest values as bars, the largest of them the highest."""
    values = values[-POINTS:]
    low, high = min(values, default=0.0), max(values, default=0.0)
    steps = (len(SHADES) - 1) / (high - low) if high > low else 0.0
    return "".join(SHADES[round((value - low) * steps)] for value in values)


def named(line: Line) -> Iterable[str]:
    """The values of a line, those that it has, with their names."""
    for name in ("loss", "accuracy", "test_accuracy"):
        if (value := getattr(line, name)) is not None:
            yield f"{name.replace('_', ' ')} {value:.3f}"
    yield f"{line.time:.1f} s"


def shown(value: float | None, pattern: str) -> str:
    return "" if value is None else pattern.format(value)


def show_results(run: RunFolder) -> None:
    """Prints the methods of the finished run."""
    from ddcnn.io.run_reader import reading
    from ddcnn.report.run_report import METHODS_HEADER, method_row, show_table

    with reading(run.results):
        methods: dict[str, dict[str, Any]] = json.loads(run.results.read_text())["methods"]
        rows = [method_row(name, method) for name, method in methods.items()]
        best = max(methods, key=lambda name: methods[name]["test_accuracy"])
    show_table(METHODS_HEADER[:-1], rows, best)

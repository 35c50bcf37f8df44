"""``ddcnn report --follow``: shows the progress of a run, from the metrics that it writes, until it has finished."""

import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from ddcnn.config.settings import RunSettings
from ddcnn.errors import InputError
from ddcnn.io.lock import is_held
from ddcnn.io.results_schema import EpochLine, parse
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import load_results
from ddcnn.report.pages import number
from ddcnn.report.run_report import show_methods

INTERVAL = 0.5  # seconds between two polls
MOST = 20  # trainings that are shown, the latest
SHADES = "▁▂▃▄▅▆▇█"
POINTS = 24  # of a curve
HEADER = ("training", "epoch", "loss", "", "accuracy", "test accuracy", "at s")
Lines = list[tuple[str, EpochLine]]  # each with its training in words


def follow(run: RunFolder, console: Console) -> None:
    """Shows the run until it has written its results: on a terminal as a table that renews itself, else a line per epoch.

    Raises:
        InputError: not the folder of a run, or a file in it is damaged.
    """
    if console.is_terminal:
        with Live(view(run, []), console=console, auto_refresh=False) as live:
            for lines in poll(run):
                live.update(view(run, lines), refresh=True)
    else:
        shown: set[str] = set()  # a resumed run may write epochs again
        state = ""
        for lines in poll(run):
            if (now := state_of(run)) != state:
                state = now
                console.out(state, end="\n" if state else "", highlight=False)
            for training, line in lines:
                name = f"{training}  epoch {line.epoch}"
                if name not in shown:
                    shown.add(name)
                    values = ((words, getattr(line, words.replace(" ", "_"))) for words in ("loss", "accuracy", "test accuracy"))
                    said = (f"{words} {value:.3f}" for words, value in values if value is not None)
                    console.out("  ".join((name, *said, f"{line.time:.1f} s")), highlight=False)
    show_methods([load_results(run)], console)


def poll(run: RunFolder) -> Iterator[Lines]:
    """All lines so far, again and again; the last time when the results are there."""
    while True:
        finished = run.has_results
        if run.path.exists() and not run.path.is_dir():
            raise InputError(f"{run} is no folder: name the one that the run has as its --output")
        yield list(read(run))
        if finished:
            return
        time.sleep(INTERVAL)


def read(run: RunFolder) -> Iterator[tuple[str, EpochLine]]:
    """The lines of the run, or of the runs of its seeds, without a last line that is still being written."""
    seeds = run.seeds() if run.is_run else []
    for folder in seeds or [run]:
        try:
            whole = folder.metrics.read_bytes().rpartition(b"\n")[0].splitlines()
            lines = sorted((parse(EpochLine, line) for line in whole), key=lambda line: line.time)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise InputError(f"{folder.metrics}: damaged, or of another version ({error})") from None
        seed = f"{folder.path.name.replace('-', ' ')}  " if seeds else ""
        for line in lines:
            yield f"{seed}{line.phase}{'' if line.subdomain is None else f'  subdomain {line.subdomain}'}", line


def state_of(run: RunFolder) -> str:
    """Why nothing happens, if so."""
    if not run.is_run:
        return f"{run}: no run yet; waiting for one to begin (Ctrl-C ends this)"
    if is_held(run.path) or run.has_results:
        return ""
    return f"{run}: no job is at work on it; to go on: python -m ddcnn run --resume --output {run}"


def view(run: RunFolder, lines: Lines) -> RenderableType:
    """A row for each of the latest trainings."""
    if not run.is_run:
        return Text(state_of(run))
    settings = run.settings()
    trainings: dict[str, list[EpochLine]] = {}  # the one that went on last is the last
    for training, line in lines:
        epochs = trainings.pop(training, [])
        epochs.append(line)
        trainings[training] = epochs
    columns = (Column(name, justify="left" if name in ("training", "") else "right", no_wrap=True) for name in HEADER)
    table = Table(*columns, box=None, header_style="bold")
    for name, epochs in list(trainings.items())[-MOST:]:
        last = epochs[-1]
        table.add_row(
            name, f"{last.epoch}/{epochs_of(settings, last.phase)}", number(last.loss, "{:.3f}", ""),
            curve([line.loss for line in epochs if line.loss is not None]), number(last.accuracy, "{:.3f}", ""),
            number(last.test_accuracy, "{:.3f}", ""), f"{last.time:.1f}",
        )  # fmt: skip
    hidden = f"; the latest {MOST} of {len(trainings)} trainings" if len(trainings) > MOST else ""
    headline = f"{run}: {settings.data}, {settings.splitting.headline(settings.grid, settings.overlap)}, {settings.network}{hidden}"
    note = state_of(run) or "Until the run ends, only the subdomains of rank 0 are shown."
    return Group(Text(headline), table, Text(note, style="dim"))


def epochs_of(settings: RunSettings, phase: str) -> int:
    """Epochs of a training of this phase."""
    epochs = {"dnn": settings.dnn_epochs, "transfer": settings.frozen_epochs + settings.transfer_epochs}
    return epochs.get(phase, settings.epochs_of(phase))


def curve(values: list[float]) -> str:
    """The latest values as bars, the largest the highest."""
    values = values[-POINTS:]
    low, high = min(values, default=0.0), max(values, default=0.0)
    steps = (len(SHADES) - 1) / (high - low) if high > low else 0.0
    return "".join(SHADES[round((value - low) * steps)] for value in values)

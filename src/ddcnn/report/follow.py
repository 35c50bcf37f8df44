"""``ddcnn report --follow``: shows the progress of a run, from the metrics that it writes, until it has ended."""

import logging
import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ddcnn.config.settings import RunSettings
from ddcnn.errors import InputError, Stopped, escaped
from ddcnn.io.lock import BEAT, Holder, look
from ddcnn.io.results_schema import EpochLine, parse
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import load_results
from ddcnn.parallel.logs import lost_stdout
from ddcnn.report.pages import number
from ddcnn.report.run_report import show_methods
from ddcnn.report.terminal import fitted

INTERVAL = 0.5  # seconds between two polls
BEGINNING = 30.0  # seconds within which a run must begin
GRACE = 2 * BEAT + 1  # seconds without a sign of life in which another job may take over
SILENCE = 300.0  # seconds without one, after which a job on another host is given up
ASKING = 60.0  # seconds between two questions to SLURM
WAY_ON = "to go on: mpirun -n N python -m ddcnn run --resume --output {}"
MOST = 20  # trainings that are shown, the latest
AROUND = 6  # lines of a terminal for what stands above and below them
SHADES = "▁▂▃▄▅▆▇█"
POINTS = 24  # of a curve
HEADER = ("training", "epoch", "loss", "", "accuracy", "validation", "at s")
logger = logging.getLogger(__name__)
Lines = list[tuple[str, EpochLine]]  # each with its training in words


def follow(run: RunFolder, console: Console) -> int:
    """Shows the run until it has ended: on a terminal as a table that renews itself, else a line per epoch.

    Returns:
        0 if it has finished, 1 if it has failed, has been killed, or is not at work.

    Raises:
        InputError: not the folder of a run, or a file in it is damaged.
        Stopped: the run was stopped, and can be resumed.
    """
    vigil = Vigil(run)
    if console.is_terminal:
        with Live(view(run, [], console), console=console, auto_refresh=False) as live:
            for lines in poll(run, vigil):
                live.update(view(run, lines, console), refresh=True)
    else:
        shown: set[str] = set()  # a resumed run may write epochs again
        state = ""
        for lines in poll(run, vigil):
            if (now := state_of(run)) != state:
                state = now
                console.out(state, end="\n" if state else "", highlight=False)
            for training, line in lines:
                name = f"{training}  epoch {line.epoch}"
                if name not in shown:
                    shown.add(name)
                    values = (("loss", line.loss), ("accuracy", line.accuracy), ("validation", line.evaluated_accuracy))
                    said = (f"{words} {value:.3f}" for words, value in values if value is not None)
                    console.out("  ".join((name, *said, f"{line.time:.1f} s")), highlight=False)
    if run.has_results:
        show_methods([load_results(run)], console)
        return 0
    if lost_stdout():  # nobody looks any more
        return 0
    kind, message = run.how_it_ended()
    if kind == "stopped":
        raise Stopped(f"{run}: {message}")
    reason = {"failed": f"it has failed: {message}", "interrupted": "it was interrupted"}.get(kind, vigil.reason)
    logger.critical("%s: %s; %s", run, reason, WAY_ON.format(run))
    return 1


def poll(run: RunFolder, vigil: "Vigil") -> Iterator[Lines]:
    """All lines so far, again and again; the last time when the run has ended."""
    while True:
        ended = run.has_results or vigil.is_over()
        if run.path.exists() and not run.path.is_dir():
            raise InputError(f"{run} is no folder: name the one that the run has as its --output")
        yield list(read(run))
        if ended or lost_stdout():
            return
        time.sleep(INTERVAL)


class Vigil:
    """Tells when nothing more is to be expected of a run.

    Attributes:
        reason: why not.
    """

    def __init__(self, run: RunFolder):
        self.run, self.reason = run, ""
        self._begun = False  # whether there was a run
        self._beat, self._since = 0.0, time.monotonic()  # the latest sign of life, and when it was seen
        self._asked, self._gone = -ASKING, False  # when SLURM was asked last, and what it said

    def is_over(self) -> bool:
        """Whether the run is dead.

        Raises:
            InputError: there is none, or no more.
        """
        holder, beat = look(self.run.path)
        now = time.monotonic()
        if beat != self._beat:
            self._beat, self._since = beat, now
        quiet = now - self._since
        if not self.run.is_run and not holder:
            if self._begun:
                raise InputError(f"{self.run}: the run is gone; its folder was deleted or moved")
            if quiet > BEGINNING:
                raise InputError(f"{self.run}: no run has begun within {BEGINNING:.0f} s; name the --output of a run that is at work")
            return False
        self._begun = self._begun or self.run.is_run
        if holder and holder.host != Holder.this_process().host:
            return self._is_lost(holder, beat, quiet)
        self.reason = (
            f"no job is at work on it, and {holder} is gone: killed, or ended by another rank" if holder else "no job is at work on it"
        )
        return quiet > GRACE and not (holder and holder.is_running())

    def _is_lost(self, holder: Holder, beat: float, quiet: float) -> bool:
        """Whether a holder on another host has shown no sign of life for long, or SLURM says that its job has ended."""
        if time.monotonic() - self._asked > ASKING:
            self._asked, self._gone = time.monotonic(), holder.is_running() is False
        self.reason = f"{holder} has ended" if self._gone else f"no sign of life from {holder}"
        return (self._gone and quiet > GRACE) or quiet > SILENCE or (quiet > 5 * GRACE and time.time() - beat > SILENCE)


def read(run: RunFolder) -> Iterator[tuple[str, EpochLine]]:
    """The lines of the run, or of the runs of its seeds, without a last line that is still being written."""
    seeds = run.seeds() if run.is_run else []
    for folder in seeds or [run]:
        try:
            whole = folder.metrics.read_bytes().rpartition(b"\n")[0].splitlines()
            lines = sorted((parse(EpochLine, line) for line in whole), key=lambda line: line.time)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{folder.metrics}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise InputError(f"{folder.metrics}: damaged, or of another version ({error})") from None
        seed = f"{folder.path.name.replace('-', ' ')}  " if seeds else ""
        for line in lines:
            yield f"{seed}{line.phase}{'' if line.subdomain is None else f'  subdomain {line.subdomain}'}", line


def state_of(run: RunFolder) -> str:
    """Why nothing happens, if so."""
    holder, _ = look(run.path)
    if not run.is_run:
        return f"{run}: no run yet; waiting for one to begin (Ctrl-C ends this)"
    if run.has_results or (holder and (holder.host != Holder.this_process().host or holder.is_running())):
        return ""
    return f"{run}: no job is at work on it; {WAY_ON.format(run)}"


def view(run: RunFolder, lines: Lines, console: Console) -> RenderableType:
    """A row for each of the latest trainings, as many as a terminal has room for."""
    if not run.is_run:
        return Text(state_of(run), overflow="fold")
    settings = run.settings()
    trainings: dict[str, list[EpochLine]] = {}  # the one that went on last is the last
    for training, line in lines:
        epochs = trainings.pop(training, [])
        epochs.append(line)
        trainings[training] = epochs
    rows = [
        (
            name, f"{epochs[-1].epoch}/{epochs_of(settings, epochs[-1].phase)}", number(epochs[-1].loss, "{:.3f}", ""),
            curve([line.loss for line in epochs if line.loss is not None]), number(epochs[-1].accuracy, "{:.3f}", ""),
            number(epochs[-1].evaluated_accuracy, "{:.3f}", ""), f"{epochs[-1].time:.1f}",
        )
        for name, epochs in list(trainings.items())[-MOST:]
    ]  # fmt: skip
    while len(table := fitted(HEADER, rows, console.width, left=("",))) > max(2, console.height - AROUND) and len(rows) > 1:
        rows.pop(0)
    hidden = f"; the latest {len(rows)} of {len(trainings)} trainings" if len(trainings) > len(rows) else ""
    headline = f"{run}: {settings.data}, {settings.splitting.headline(settings.grid, settings.overlap)}, {settings.network}{hidden}"
    note = state_of(run) or "Until the run ends, only the subdomains of rank 0 are shown."
    return Group(Text(escaped(headline), overflow="fold"), *table, Text(note, style="dim", overflow="fold"))


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

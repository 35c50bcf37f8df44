"""A scaling study: its runs are started here, one after the other, or by SLURM (module ``slurm``)."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, get_args

import tomli_w

from ddcnn.config.parser import parse
from ddcnn.config.settings import RunSettings
from ddcnn.decomposition import grid_of, times
from ddcnn.errors import InputError, Stopped
from ddcnn.io.atomic import disk_errors, write_text
from ddcnn.io.hdf5 import DAMAGED, parsing, reading
from ddcnn.io.progress import Progress
from ddcnn.io.run_folder import RunFolder
from ddcnn.parallel.launcher import given_threads, launched_size, size_variable
from ddcnn.scaling.measurements import Kind

PATIENCE = 10  # seconds for the ranks to end when the study is ended
DEFAULTS = {"methods": "vote,average,dnn", "evaluate_every": "0", "progress": "none"}  # where the user says nothing
OWN = {"output", "overwrite", "resume", "time_limit", "start_from", "dry_run"}  # set by the study, or such that a run measures nothing
OWN_IF_WEAK = {"data", "grid", "volumes", "decomposition"}
RUN = re.compile(r"(\d+)(-\d+)?")  # name of a run's folder: its ranks, and from the second on the repetition


class FailedRun(Exception):
    """A run of the study has failed: the study ends."""


@dataclass(frozen=True)
class Study:
    """Description of a study.

    Attributes:
        folder: of the study; a run has a folder in it.
        ranks: ascending.
        options: of ``ddcnn run``, the same for all runs.
        size: of the synthetic images of weak scaling: ``side`` of a rank's subdomain in pixels, ``classes`` and ``samples``.
    """

    kind: Kind
    folder: Path
    ranks: tuple[int, ...]
    repetitions: int
    options: tuple[str, ...]
    size: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def given(self) -> set[str]:
        """The settings that the options (and the file that they name) set."""
        return parse(RunSettings, self.options, "run").model_fields_set

    def run(self, ranks: int, repetition: int) -> Path:
        """Folder of a run; repetitions count from 1."""
        return self.folder / (str(ranks) if repetition == 1 else f"{ranks}-{repetition}")

    def arguments(self, ranks: int, repetition: int = 1) -> list[str]:
        """Arguments of ``python -m ddcnn`` for a run."""
        defaults = DEFAULTS | {"partitions": str(self.folder / "partitions")}  # partitioned by the first run, found by the others
        own = {"output": str(self.run(ranks, repetition))}
        if self.kind == "weak":
            grid = grid_of(ranks, (1, 1))
            shape = "x".join(str(self.size["side"] * number) for number in grid)
            defaults |= {"width_divisor": "1"}
            own |= {"data": f"synthetic:{shape}x{self.size['classes']}x{self.size['samples']}", "grid": times(grid)}
        first = {name: value for name, value in defaults.items() if name not in self.given}
        return ["run", *_options(first), *self.options, *_options(own), "--overwrite"]  # of a run that has not finished

    def check(self) -> None:
        """Checks the options of all runs."""
        reserved = sorted(self.given & (OWN | OWN_IF_WEAK if self.kind == "weak" else OWN))
        if reserved:
            raise InputError(f"--{reserved[0].replace('_', '-')}: a study of {self.kind} scaling says it itself; leave it out after --")
        for ranks in self.ranks:
            settings = parse(RunSettings, self.arguments(ranks)[1:], "run")
            subdomains = prod(settings.grid)
            if subdomains % ranks and ranks % subdomains and not settings.data.endswith(".h5"):  # a partitioned set has a grid of its own
                grid = times(settings.grid)
                raise InputError(f"--ranks: {ranks} ranks do not fit {subdomains} subdomains (--grid {grid}): give divisors or multiples")

    def describe(self, threads: int | None = None) -> int | None:
        """Writes study.toml, from which a study that goes on knows its folder; the threads of a rank, which stay as they were.

        Raises:
            InputError: the folder is that of another study.
        """
        about: dict[str, Any] = {"kind": self.kind, "options": list(self.options), **self.size}
        path = self.folder / "study.toml"
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            with reading(path, *DAMAGED), parsing():
                before = tomllib.loads(path.read_text("utf-8"))
            threads = before.pop("threads", threads)
            if before != about:
                raise InputError(f"--output {self.folder} holds another study (see {path}): name another folder, or give the same options")
        write_text(path, tomli_w.dumps(about | ({"threads": threads} if threads else {})))
        return threads


def _options(values: dict[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]


def runs_of(study: Path) -> list[Path]:
    """The finished runs in the folder of a study, by their ranks; none if it is not a study."""
    runs = [path for path in study.glob("*") if RUN.fullmatch(path.name) and RunFolder(path).has_any_results]
    return sorted(runs, key=lambda run: tuple(map(int, run.name.split("-"))))


def kind_of(study: Path) -> Kind:
    """The kind of a study, from its study.toml.

    Raises:
        InputError: it has none.
    """
    try:
        kind = tomllib.loads((study / "study.toml").read_text("utf-8"))["kind"]
    except (OSError, ValueError, KeyError):
        kind = None
    if kind not in get_args(Kind):
        raise InputError(f"{study}: no study.toml of a scaling study: give the --output of ddcnn scaling strong or weak, or say --kind")
    return kind


def parse_ranks(text: str) -> tuple[int, ...]:
    """``1,2,4`` or ``1 2 4``: ascending numbers."""
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise InputError(f"--ranks {text}: write numbers of ranks, such as 1,2,4")
    return tuple(sorted({int(word) for word in words}))


def find_launcher(words: Sequence[str]) -> list[str]:
    """The words of ``--launcher``; by default mpirun, the one beside this Python first."""
    beside = Path(sys.executable).parent / "mpirun"
    if not words and beside.exists():
        return [str(beside)]
    command = list(words) or ["mpirun"]
    if shutil.which(command[0]) is None:
        raise InputError(f"--launcher {command[0]}: there is no such program; name the one that starts ranks here")
    return command


def start(study: Study, launcher: Sequence[str]) -> None:
    """Starts the runs that have not finished, the numbers of ranks in turn, so that a disturbance affects all of them alike.

    Raises:
        InputError: a run was refused.
        FailedRun, Stopped: it failed or was stopped.
    """
    if launched_size() > 1:
        raise InputError(f"a study starts its runs itself: start it without mpirun (or unset {size_variable()})")
    threads = study.describe(given_threads() or max(1, len(os.sched_getaffinity(0)) // study.ranks[-1]))
    runs = [(ranks, repetition) for repetition, ranks in product(range(1, study.repetitions + 1), study.ranks)]
    left = [run for run in runs if not RunFolder(study.run(*run)).is_finished]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}  # as many for every number of ranks
    with Progress(f"{study.kind} scaling", len(runs), "auto", unit="runs") as progress:
        progress.skip(len(runs) - len(left))
        for ranks, repetition in left:
            begin = time.perf_counter()
            log = study.folder / f"{study.run(ranks, repetition).name}.log"
            execute([*launcher, "-n", str(ranks), sys.executable, "-m", "ddcnn", *study.arguments(ranks, repetition)], log, environment)
            progress.advance(f"{ranks} ranks, repetition {repetition}: {time.perf_counter() - begin:.1f} s")


def execute(command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
    """Runs a command to its end, with its output in a file; ends it, and through its launcher all ranks, on SIGTERM, Ctrl-C or an error."""
    with disk_errors(log):
        stream = log.open("w", encoding="utf-8")
    with stream:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment)
        except OSError as error:
            raise InputError(f"--launcher {command[0]}: cannot be started ({error.strerror})") from None
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
            for ask in (process.terminate, process.terminate, process.kill):  # a run takes the first request as one to save
                ask()  # nothing happens to a process that has ended
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE / 2)
    if process.returncode == 0:
        return
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("ddcnn: ")]  # lines of the launcher come last
    last = (ours or lines or ["it said nothing"])[-1].removeprefix("ddcnn: ").removeprefix("error: ")
    message = f"{last} (exit code {process.returncode}; all of it: {log})"
    if process.returncode == 75:
        message = f"a run was stopped (all that it said: {log}); the same command goes on with the study, and begins this run anew"
    raise {2: InputError, 75: Stopped}.get(process.returncode, FailedRun)(message)

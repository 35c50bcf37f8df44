"""The folder of a run: the names of its files, which no other module knows, its settings, its state; how a job takes and clears it."""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import tomli_w

from ddcnn.config.load import load
from ddcnn.config.settings import CHANGEABLE, RunSettings
from ddcnn.decomposition import times
from ddcnn.errors import InputError, Stopped, cause
from ddcnn.io.atomic import check_place, disk_errors, write_json, write_text
from ddcnn.io.lock import check_free, locked
from ddcnn.io.origin import PATHS, Origin, digest_of_file, relocated

MARK = "# settings of a run of ddcnn, written by it"  # first line of config.toml, by which a run's folder is recognised
OF_AN_ATTEMPT = {
    "resume": False,
    "overwrite": False,
    "time_limit": None,
    "dry_run": False,
}  # of one attempt, not stored
LEFT_BY_A_RUN = {
    "": (
        "results.json",
        "details.h5",
        "metrics.jsonl",
        "report.md",
        "report.html",
        "config.toml",
        ".config.toml.*",
        "tensorboard",
        ".ended.json",
        "origin.json",
    ),
    "checkpoints": ("*.h5", ".*.h5.*", "training"),
    "figures": ("*.png",),
}  # folder -> patterns of what a new run clears  # fmt: skip
RUNS = Path("runs")  # where a run is that has no --output
SEED = re.compile(r"seed-\d+")  # the name of a folder
logger = logging.getLogger(__name__)


def short_name(source: str) -> str:
    """The name of a source, fit to be a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", Path(source).name.removesuffix(".npz").removesuffix(".h5"))


class RunFolder:
    """The folder of a run with one seed, or of a run with several seeds, which have folders of their own in it."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.toml"  # resolved settings
        self.origin = path / "origin.json"  # where the run began, and on which images
        self.metrics = path / "metrics.jsonl"  # a line per epoch
        self.results = path / "results.json"  # all numbers
        self.details = path / "details.h5"  # what the figures are drawn from
        self.report = path / "report.md"
        self.html = path / "report.html"
        self.ended = path / ".ended.json"  # how the latest job has ended, if not with results
        self.figures = path / "figures"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"  # parameters of trained networks
        self.training = self.checkpoints / "training"  # checkpoints of trainings that have not ended

    def __str__(self) -> str:
        return str(self.path)

    def figure(self, name: str) -> Path:
        return self.figures / f"{name}.png"

    def parameters(self, name: str) -> Path:
        """The parameters of a trained network: ``local-0003``, ``dnn``, ``transfer-0003``, ``global`` …"""
        return self.checkpoints / f"{name}.h5"

    def seed(self, seed: int) -> "RunFolder":
        return RunFolder(self.path / f"seed-{seed}")

    @property
    def name(self) -> str:
        """The folder's name; of a seed, with that of its run."""
        folder = self.path.resolve()
        return "/".join(folder.parts[-2:] if SEED.fullmatch(folder.name) else folder.parts[-1:])

    def seeds(self) -> list["RunFolder"]:
        """The folders of the single seeds; none if the run has one seed, or the folder is not that of a run. Raises as ``settings``."""
        if not self.config.is_file():
            return []
        settings = self.settings()
        return [self.seed(settings.seed + k) for k in range(settings.seeds)] if settings.seeds > 1 else []

    # State

    @property
    def is_run(self) -> bool:
        """Whether a run has written the config.toml."""
        try:
            with self.config.open("rb") as file:
                return file.read(len(MARK)) == MARK.encode()
        except OSError:
            return False

    @property
    def has_results(self) -> bool:
        return self.results.is_file()

    @property
    def has_any_results(self) -> bool:
        """Whether the run, or one of its seeds, has results."""
        return any(folder.has_results for folder in self._with_seeds())

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do: the report is the last file that is written."""
        return self.is_run and self.has_results and self.report.is_file()

    @property
    def is_unfinished(self) -> bool:
        """Whether there are checkpoints of trainings that have not ended."""
        return any(entry for folder in self._with_seeds() for entry in folder.training.glob("*"))

    def settings(self) -> RunSettings:
        """The settings that the run has stored; InputError if config.toml is missing, damaged, or of another version."""
        if self.config.is_file():
            settings = load(RunSettings, OF_AN_ATTEMPT, self.config)
            if "seed" in settings.model_fields_set:  # not an empty file, nor the beginning of one
                if settings.convolutional and "coarse_stages" not in settings.model_fields_set:
                    raise InputError(f"{self}: a run of an older version, whose convolutional DNN added the local logits: train it again")
                return settings.as_stored()
        raise InputError(f"{self}: {self.config.name} is missing, damaged or foreign; bring it back, or run again")

    def check_has_results(self) -> None:
        """Raises InputError if the run has no results, with what to do about it."""
        if not self.has_results:
            resume = f"the run has not finished: go on with python -m ddcnn run --resume --output {self}"
            way_out = resume if self.config.is_file() else "give the folder of a finished run, its --output"
            raise InputError(f"{self}: no {self.results.name}{' in it' if self.path.is_dir() else ', and no such folder'}; {way_out}")

    # Taking the folder for a run

    def check(self, settings: RunSettings) -> None:
        """Raises InputError if something in the folder would be lost."""
        if settings.overwrite or (settings.resume and self.is_run):
            return
        if settings.resume and self.is_unfinished:
            raise InputError(
                f"--output {self}: its {self.config.name} is missing or damaged: bring it back, or add --overwrite to begin anew"
            )
        if self.has_any_results:
            raise InputError(f"--output {self} holds a finished run: name another folder, or add --overwrite")
        if self.is_unfinished:
            raise InputError(
                f"--output {self} holds a run that has not finished: add --resume to go on with it, or --overwrite to begin anew"
            )
        names = [entry.name for entry in self.path.iterdir() if entry != self.checkpoints or any(entry.iterdir())]
        if not self.is_run and any(not re.fullmatch(r"\.lock.*|\.ended.*|\.config\.toml\.\d+", name) for name in names):
            raise InputError(f"--output {self} holds files that are not of a run: name another folder, or add --overwrite")

    def prepare(self, settings: RunSettings) -> None:
        """Writes config.toml; before that, unless the run is resumed, removes what an earlier run has left."""
        with disk_errors(self.path):
            if not settings.resume:
                for folder in self._with_seeds():
                    folder._clear()
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        stored = settings.model_copy(update=OF_AN_ATTEMPT | {"output": self.path})
        values = {name.replace("_", "-"): value for name, value in stored.model_dump(mode="json", exclude_none=True).items()}
        write_text(self.config, f"{MARK}\n{tomli_w.dumps(values)}")

    @contextmanager
    def noting_end(self) -> Iterator[None]:
        """Context of a job's work: an error that ends it is noted for ``report --follow``."""
        with suppress(OSError):
            self.ended.unlink(missing_ok=True)
        try:
            yield
        except BaseException as error:
            kind = {Stopped: "stopped", KeyboardInterrupt: "interrupted"}.get(type(error), "failed")
            message = str(error) if isinstance(error, Stopped) else ", ".join([*getattr(error, "__notes__", []), cause(error)])
            with suppress(InputError):
                write_json(self.ended, {"kind": kind, "message": message})
            raise

    def how_it_ended(self) -> tuple[str, str]:
        """ "stopped", "interrupted" or "failed", and what was said; empty if nothing is known."""
        try:
            noted = json.loads(self.ended.read_text("utf-8"))
            return str(noted["kind"]), str(noted["message"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", ""

    def _clear(self) -> None:
        """Removes what a run leaves; links are not followed."""
        for part, patterns in LEFT_BY_A_RUN.items():
            if not self.path.is_symlink() and not (self.path / part).is_symlink():
                for old in [path for pattern in patterns for path in (self.path / part).glob(pattern)]:
                    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()

    def _with_seeds(self) -> Iterator["RunFolder"]:
        """This folder, and those of single seeds that are in it, whatever config.toml says."""
        yield self
        yield from (RunFolder(entry) for entry in self.path.glob("seed-*") if SEED.fullmatch(entry.name))


def resumes_finished(settings: RunSettings) -> bool:
    """Whether a run is to be resumed that has nothing left to do."""
    return settings.resume and settings.output is not None and RunFolder(settings.output).is_finished


def with_stored(settings: RunSettings) -> RunSettings:
    """The settings of a run: with --resume those stored in its folder, and of the given ones those that may change.

    Raises:
        InputError: another one of the given settings is not that of the folder.
    """
    if not settings.resume or settings.output is None or not RunFolder(settings.output).is_run:
        return settings
    folder = RunFolder(settings.output)
    origin, stored = Origin.read(folder.origin), folder.settings()
    located = relocated(stored, folder.path, origin)
    given, before, now = (values.model_dump(mode="json") for values in (settings, stored, located))
    changed = set()
    for name in settings.model_fields_set:
        if given[name] == now[name] or (given[name] == before[name] and name in PATHS and not Path(given[name]).exists()):
            continue  # a batch script always gives all of its options
        if (name, given[name]) == ("precision", "auto"):
            continue  # that which the run has found when it began
        same = origin and (
            (name == "start_from" and origin.start and digest_of_file(RunFolder(Path(given[name])).results) == origin.start)
            or (name == "weights" and origin.weights and digest_of_file(Path(given[name])) == origin.weights)
        )
        if name not in CHANGEABLE and not same:
            raise InputError(
                f"--{name.replace('_', '-')} {given[name]}: the run in {settings.output} has {before[name]}; leave it out, "
                "or name another --output"
            )
        changed.add(name)
    return located.model_copy(update={name: getattr(settings, name) for name in changed | {"output"}})


def check_output(settings: RunSettings) -> None:
    """Raises InputError if the output folder holds a finished run, or something else that would be lost; or if another job holds it."""
    output = settings.output
    if settings.resume and output is None:
        raise InputError("--resume: name the folder of the run with --output")
    if output is None:
        if settings.dry_run:  # a script of the Python API needs no folder
            check_place(RUNS)
        return
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file: name a folder, which the run makes")
    check_place(output)
    if settings.dry_run:
        _tell_beginning(settings)
    if not output.exists():
        return
    with ExitStack() as held:
        if settings.dry_run:
            check_free(output)
        else:
            held.enter_context(locked(output))
        RunFolder(output).check(settings)
    start = settings.start_from.resolve() if settings.start_from else None
    if start and (output.resolve() in (start, *start.parents) or start in output.resolve().parents):
        raise InputError(f"--output {output}: --start-from reads from there; name another folder")


def take_output(settings: RunSettings, held: ExitStack) -> RunFolder:
    """Makes the output folder, holds it for this job, and prepares it; InputError if another job holds it."""
    name = f"{short_name(settings.data)}-{times(settings.grid)}-{time.strftime('%Y%m%d-%H%M%S')}"
    output = settings.output or RUNS / name
    with disk_errors(output):
        if settings.output is None and output.exists():  # of another run that was started in the same second
            output = output.with_name(f"{output.name}-{os.getpid()}")
        output.mkdir(parents=True, exist_ok=True)
    held.enter_context(locked(output))
    folder = RunFolder(output)
    folder.check(settings)  # another job may have used it meanwhile
    _tell_beginning(settings)
    if not resumes_finished(settings):
        folder.prepare(settings)
        held.enter_context(folder.noting_end())
    return folder


def _tell_beginning(settings: RunSettings) -> None:
    """Of a run that is to be resumed, and of which nothing is there, or no checkpoint."""
    folder = RunFolder(settings.output) if settings.resume and settings.output else None
    if folder and not folder.is_run:
        logger.info("%s: no run to go on with; a new one, on %s, begins", folder, settings.data)
    elif folder and not any(one.has_results or one.training.is_dir() for one in folder._with_seeds()):
        logger.info("%s: nothing was saved of this run; it begins again, with its settings", folder)

"""The commands ``ddcnn scaling strong|weak|collect|predict``: their settings and functions."""

import logging
import shlex
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from ddcnn.config.types import Group, Settings, option
from ddcnn.errors import InputError

logger = logging.getLogger(__name__)
Kind = Literal["strong", "weak"]


class StrongSettings(Settings):
    """Settings of ``ddcnn scaling strong``."""

    ranks: str = option(Group.STUDY, "1,2,4", "numbers of ranks", "LIST")
    repetitions: int = option(Group.STUDY, 5, "runs on each number of ranks, in turn", "R", ge=1)
    launcher: str = option(
        Group.STUDY, "", 'command that starts ranks with -n (default: mpirun; with --slurm "srun --mpi=pmi2")', "COMMAND"
    )
    slurm: bool = option(Group.STUDY, False, "submit SLURM jobs: one for each number of ranks, and one that collects them")
    sbatch: str = option(Group.STUDY, "", 'options of sbatch, such as --sbatch="--time=02:00:00" (default: none)', "OPTIONS")
    collect: bool = option(Group.STUDY, True, "collect the finished runs; ddcnn scaling collect does it later")
    output: Path = option(Group.OUTPUT, ..., "folder of the study; an unfinished study in it is continued", "FOLDER")
    run_options: tuple[str, ...] = option(Group.STUDY, (), "options of ddcnn run, after --")


class WeakSettings(StrongSettings):
    """Settings of ``ddcnn scaling weak``, on synthetic images."""

    side: int = option(Group.DATA, 32, "side of each rank's subdomain", "PIXELS", ge=4)
    classes: int = option(Group.DATA, 10, "classes of the synthetic images", "K", ge=2)
    samples: int = option(Group.DATA, 5000, "number of training images", "S", ge=2)

    @model_validator(mode="after")
    def _a_sample_per_class(self) -> Self:
        if self.samples < self.classes:
            raise ValueError(f"--samples {self.samples}: give {self.classes} or more, one per class")
        return self


class CollectSettings(Settings):
    """Settings of ``ddcnn scaling collect``."""

    runs: tuple[Path, ...] = option(Group.STUDY, ..., "folders of finished runs, or of a study", "RUN", positional=True)
    kind: Kind = option(Group.STUDY, "strong", "kind of study: strong: the same problem; weak: the same work per rank")
    output: Path = option(Group.OUTPUT, ..., "folder of scaling.csv, .json, .md and .png", "FOLDER")


class ExtrapolationSettings(Settings):
    """Settings of ``ddcnn scaling predict``."""

    study: Path = option(Group.STUDY, ..., "folder of a finished study", "STUDY", positional=True)
    ranks: str = option(Group.STUDY, "16,64,256,1024,4096", "numbers of ranks, beside those of the study", "LIST")
    kind: Kind | None = option(Group.STUDY, None, "kind of study (default: what its study.toml says)", "strong|weak")
    measure: bool = option(Group.MACHINE, False, "measure latency, bandwidth and reading on this machine, with two ranks")
    launcher: str = option(Group.MACHINE, "", "command that starts these two ranks (default: mpirun)", "COMMAND")
    latency_us: float | None = option(Group.MACHINE, None, "latency of a message in microseconds (default: as measured)", "α", gt=0)
    bandwidth_gb: float | None = option(Group.MACHINE, None, "bandwidth per rank in gigabytes a second (default: as measured)", "β", gt=0)
    read_gb: float | None = option(
        Group.MACHINE, None, "reading of a partitioned set, per rank in gigabytes a second (default: as measured, else 1)", "ρ", gt=0
    )
    output: Path | None = option(Group.OUTPUT, None, "folder of predict.csv, .md and .png (default: STUDY)", "FOLDER")


def study(settings: StrongSettings) -> int:
    """Runs or submits a study: the exit code."""
    from ddcnn.scaling.slurm import submit
    from ddcnn.scaling.study import FailedRun, Study, find_launcher, parse_ranks, start

    launcher, ranks = _words("launcher", settings.launcher), parse_ranks(settings.ranks)
    if len(ranks) == 1 and settings.collect:
        raise InputError(f"--ranks {ranks[0]}: a study compares different numbers of ranks; give several (or --no-collect)")
    kind: Kind = "weak" if isinstance(settings, WeakSettings) else "strong"
    size = settings.model_dump(include={"side", "classes", "samples"})
    described = Study(kind, settings.output, ranks, settings.repetitions, settings.run_options, size)
    described.check()
    if settings.slurm:
        sbatch = _words("sbatch", settings.sbatch)
        if wrong := [name for name in sbatch if not name.startswith("--")]:
            raise InputError(f"--sbatch {wrong[0]}: write options as --name=value, several in one pair of quotes")
        submit(described, launcher, sbatch)
        return 0
    try:
        start(described, find_launcher(launcher))
    except FailedRun as failure:
        logger.error("%s", failure, extra={"kind": "failed"})
        return 1
    if settings.collect:
        collect(CollectSettings(runs=(settings.output,), output=settings.output, kind=kind))
    return 0


def collect(settings: CollectSettings) -> None:
    """Puts finished runs together."""
    from ddcnn.scaling.collect import collect

    collect(settings.runs, settings.output, settings.kind)


def predict(settings: ExtrapolationSettings) -> None:
    """Predicts times on more ranks."""
    from ddcnn.scaling import extrapolation_report
    from ddcnn.scaling.study import kind_of, parse_ranks

    given: dict[str, float] = {}
    if settings.latency_us:
        given |= dict.fromkeys(("messages", "reduce_messages"), 1e-6 * settings.latency_us)
    if settings.bandwidth_gb:
        given |= dict.fromkeys(("bytes_sent", "reduce_bytes"), 1e-9 / settings.bandwidth_gb)
    if settings.read_gb:
        given["bytes_read"] = 1e-9 / settings.read_gb
    launcher = _words("launcher", settings.launcher) if settings.measure else None
    kind, output = settings.kind or kind_of(settings.study), settings.output or settings.study
    extrapolation_report.predict(settings.study, parse_ranks(settings.ranks), given, launcher, output, kind)


def _words(name: str, text: str) -> list[str]:
    """The words of an option that is a piece of a command line."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"--{name} {text}: {error}") from None

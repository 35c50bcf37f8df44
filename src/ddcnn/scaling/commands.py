"""The command line of ``ddcnn scaling``."""

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ddcnn.config.settings import RunSettings
from ddcnn.errors import InputError

STUDIES = {
    "strong": "run one problem on several numbers of ranks, and collect the runs",
    "weak": "run a problem that grows with the ranks: one subdomain of SIDE x SIDE pixels a rank, of synthetic images",
}
COLLECT = "put finished runs on different numbers of ranks together: scaling.csv, .json, .md and .png"
PREDICT = "times on more ranks, by a performance model that is fitted to a study, beside those of DistributedDataParallel"


def add_parsers(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="study", metavar="STUDY", required=True)
    for kind, summary in STUDIES.items():
        study = commands.add_parser(
            kind, help=summary, description=summary, allow_abbrev=False, usage=f"ddcnn scaling {kind} [options] -- [options of ddcnn run]"
        )
        study.add_argument("--ranks", default="1,2,4", metavar="LIST", help="numbers of ranks (default: 1,2,4)")
        study.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the study; one that is there goes on")
        study.add_argument("--repetitions", type=int, default=5, metavar="R", help="runs on every number of ranks, in turn (default: 5)")
        launcher = 'what starts ranks with -n (default: mpirun; with --slurm: "srun --mpi=pmi2")'
        study.add_argument("--launcher", metavar="COMMAND", help=launcher)
        study.add_argument("--slurm", action="store_true", help="submit a job array, and a job that collects it")
        study.add_argument("--sbatch", default="", metavar="OPTIONS", help='of sbatch, such as --sbatch="--time=02:00:00"')
        study.add_argument("--no-collect", action="store_true", help="leave it to ddcnn scaling collect")
        if kind == "weak":
            study.add_argument("--side", type=int, default=32, metavar="PIXELS", help="of a rank's subdomain (default: 32)")
            study.add_argument("--classes", type=int, default=10, metavar="K", help="of the images (default: 10)")
            study.add_argument("--samples", type=int, default=5000, metavar="S", help="training images (default: 5000)")
        study.set_defaults(side=32, classes=10, samples=5000)
    collect = commands.add_parser("collect", help=COLLECT, description=COLLECT, allow_abbrev=False)
    collect.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs, or of a study")
    collect.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where to write them")
    collect.add_argument("--kind", choices=("strong", "weak"), default="strong", help="what the runs must share (default: strong)")
    predict = commands.add_parser("predict", help=PREDICT, description=PREDICT, allow_abbrev=False)
    predict.add_argument("folder", type=Path, metavar="STUDY", help="folder of a finished study")
    predict.add_argument("--ranks", default="16,64,256,1024,4096", metavar="LIST", help="beside those of the study (default: 16,64,…,4096)")
    predict.add_argument("--measure", action="store_true", help="measure latency, bandwidth and reading on this machine, with two ranks")
    predict.add_argument("--launcher", metavar="COMMAND", help="what starts these (default: mpirun)")
    predict.add_argument("--latency-us", type=float, metavar="α", help="microseconds a message of the machine that is predicted")
    predict.add_argument("--bandwidth-gb", type=float, metavar="β", help="gigabytes a second of its network, for a rank")
    predict.add_argument("--read-gb", type=float, metavar="ρ", help="gigabytes a second of reading a partitioned set, for a rank")
    predict.add_argument("--kind", choices=("strong", "weak"), help="of the study (default: what its study.toml says)")
    predict.add_argument("--output", type=Path, metavar="FOLDER", help="where to write predict.csv, .md and .png (default: STUDY)")


def main(parsed: argparse.Namespace, options: Sequence[str], settings_of: Callable[[Sequence[str]], RunSettings]) -> int:
    """``options`` stood after ``--``; ``settings_of`` are the settings that arguments of ``python -m ddcnn`` come to."""
    if parsed.study in STUDIES:
        return study(parsed, options, settings_of)
    if options:
        raise InputError(f"ddcnn scaling {parsed.study} takes no options after --")
    if parsed.study == "predict":
        predict(parsed)
    else:
        from ddcnn.scaling.collect import collect

        collect(parsed.runs, parsed.output, parsed.kind)
    return 0


def study(parsed: argparse.Namespace, options: Sequence[str], settings_of: Callable[[Sequence[str]], RunSettings]) -> int:
    """Runs or submits a study: the exit code."""
    from ddcnn.scaling.collect import collect
    from ddcnn.scaling.slurm import submit
    from ddcnn.scaling.study import FailedRun, Study, find_launcher, parse_ranks, start

    launcher = words("launcher", parsed.launcher)
    ranks, given = parse_ranks(parsed.ranks), frozenset(settings_of(["run", *options]).model_fields_set)
    smallest = {"repetitions": 1, "side": 4, "classes": 2, "samples": parsed.classes}
    for name, least in smallest.items():
        if getattr(parsed, name) < least:
            raise InputError(f"--{name} {getattr(parsed, name)}: give {least} or more")
    if len(ranks) == 1 and not parsed.no_collect:
        raise InputError(f"--ranks {ranks[0]}: a study compares different numbers of ranks; give several (or --no-collect)")
    described = Study(
        parsed.study, parsed.output, ranks, parsed.repetitions, tuple(options), given, parsed.side, parsed.classes, parsed.samples
    )
    described.check(settings_of)
    if parsed.slurm:
        submit(described, launcher, options_of_sbatch(parsed.sbatch))
        return 0
    try:
        start(described, find_launcher(launcher))
    except FailedRun as failure:
        print(f"ddcnn: {failure}", file=sys.stderr, flush=True)
        return 1
    if not parsed.no_collect:
        collect([parsed.output], parsed.output, parsed.study)
    return 0


def predict(parsed: argparse.Namespace) -> None:
    from ddcnn.scaling import extrapolation as prediction
    from ddcnn.scaling.collect import kind_of
    from ddcnn.scaling.study import parse_ranks

    for name in ("latency_us", "bandwidth_gb", "read_gb"):
        value = getattr(parsed, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value:g}: give a number above 0")
    given: dict[str, float] = {}
    if parsed.latency_us:
        given |= dict.fromkeys(("messages", "reduce_messages"), 1e-6 * parsed.latency_us)
    if parsed.bandwidth_gb:
        given |= dict.fromkeys(("bytes_sent", "reduce_bytes"), 1e-9 / parsed.bandwidth_gb)
    if parsed.read_gb:
        given["bytes_read"] = 1e-9 / parsed.read_gb
    launcher = words("launcher", parsed.launcher) if parsed.measure else None
    kind = parsed.kind or kind_of(parsed.folder)
    prediction.predict(parsed.folder, parse_ranks(parsed.ranks), given, launcher, parsed.output or parsed.folder, kind)


def options_of_sbatch(text: str) -> list[str]:
    found = words("sbatch", text)
    for option in found:
        if not option.startswith("--"):
            raise InputError(f"--sbatch {option}: write options as --name=value, several in one pair of quotes")
    return found


def words(name: str, text: str | None) -> list[str]:
    """Of an option that is a piece of a command line."""
    try:
        return shlex.split(text or "")
    except ValueError as error:
        raise InputError(f"--{name} {text}: {error}") from None

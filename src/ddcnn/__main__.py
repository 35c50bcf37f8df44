"""``python -m ddcnn``: the table of commands, exit codes, and how a failing rank ends the job.

The functions of the commands import torch and h5py themselves, so that ``--help`` and refusals are quick.
"""

import errno
import gc
import logging
import signal
import sys
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from tempfile import gettempdir

from ddcnn import __version__
from ddcnn.config.data_settings import PartitionSettings
from ddcnn.config.parser import HELP, Command, check_text, find, overview, settings_of
from ddcnn.config.settings import ReportSettings, RunSettings
from ddcnn.config.trained_settings import ExportSettings, PredictSettings
from ddcnn.config.types import Settings
from ddcnn.decomposition import times
from ddcnn.errors import InputError, Stopped
from ddcnn.io.run_folder import RunFolder, resumes_finished, with_stored
from ddcnn.parallel.abort import abort_all, is_out_of_memory, log_failure
from ddcnn.parallel.allocator import keep_freed
from ddcnn.parallel.launcher import launched_rank
from ddcnn.parallel.logs import lost_stdout, open_streams, set_up
from ddcnn.parallel.stall_watchdog import watched
from ddcnn.parallel.stop_requests import StopRequests, block_signals, interrupt_on_sigterm, slurm_job, unblock_signals
from ddcnn.parallel.world import World
from ddcnn.scaling import commands as scaling

INTERRUPTED = 130  # as shells do after Ctrl-C
STOPPED = 75  # EX_TEMPFAIL of sysexits.h
logger = logging.getLogger("ddcnn")


def run(world: World, settings: RunSettings) -> None:
    from ddcnn.experiment.plan import prepare_run

    if world.on_root(lambda: resumes_finished(settings)):
        logger.info("%s: finished, nothing to resume", settings.output)
        return
    if settings.dry_run:
        from ddcnn.experiment.unpartitioned import described_set

        interrupt_on_sigterm()
        described = described_set(world, settings)
        from ddcnn.experiment.dry_run import dry_run

        dry_run(world, settings, *described)
        return
    stop_requests = StopRequests(settings.stop_signals, settings.time_limit, world.on_root(slurm_job))
    try:
        store = prepare_run(world, settings, lambda: bool(stop_requests.reason))
    except Stopped:
        raise Stopped("while the images were being partitioned, of which nothing is kept: start the same command again") from None
    with world.timeline.span("compute"):
        gc.disable()  # garbage collection would take a fifth of the time of importing torch
        from ddcnn.experiment.run import run

        gc.enable()

    run(world, settings, store, stop_requests)


def partition(world: World, settings: PartitionSettings) -> None:
    from ddcnn.experiment.plan import partition_command

    interrupt_on_sigterm()
    partition_command(world, settings)


def predict(world: World, settings: PredictSettings) -> None:
    from ddcnn.inference.predict import predict

    interrupt_on_sigterm()
    predict(world, settings)


def export(settings: ExportSettings) -> None:
    from ddcnn.inference.export import export

    export(settings)


def report(settings: ReportSettings) -> int:
    from rich.console import Console

    if settings.follow:
        from ddcnn.report.follow import follow

        if len(settings.runs) > 1:
            raise InputError("--follow shows one run: name one folder (a run of several seeds is one)")
        return follow(RunFolder(settings.runs[0]), Console())
    from ddcnn.report.seeds_report import write_reports

    for folder in settings.runs:
        write_reports(RunFolder(folder), Console())
    return 0


def info(world: World, settings: Settings) -> None:
    from rich.console import Console

    from ddcnn.parallel.environment import describe, describe_ranks
    from ddcnn.report.terminal import fitted, width_of

    unblock_signals()
    rows, refusal = describe_ranks(world)
    nodes = len({row[1] for row in rows})
    about = describe() | {"MPI": world.library(), "ranks": f"{world.size} on {nodes} node{'s' * (nodes != 1)}"}
    for name, value in about.items():
        logger.info("%-7s %s", name, value)
    for line in ("", *fitted(("rank", "node", "cores it may use", "threads", "device"), rows, width_of(Console()), ("node", "device"))):
        logger.info("%s", str(line).rstrip())
    if refusal:
        logger.info("\nnote: a run with --device auto is refused: %s", refusal)


RUN = "mpirun -n 4 python -m ddcnn run"
COMMANDS = (  # the first one is the default
    Command(
        "run", "trains, compares methods and reports (the default command)", RunSettings, run, all_ranks=True,
        examples=(f"{RUN} --data cifar10 --download --output runs/cifar10", f"{RUN} --resume --output runs/cifar10"),
    ),
    Command(
        "partition", "writes a data set as a partitioned HDF5 file", PartitionSettings, partition, all_ranks=True,
        examples=("mpirun -n 4 python -m ddcnn partition cifar10 --grid 2x2 --output set.h5", f"{RUN} --data set.h5"),
    ),
    Command(
        "predict", "classifies images with a finished run, into CSV or HDF5", PredictSettings, predict, all_ranks=True,
        examples=(
            "python -m ddcnn predict runs/cifar10 photos --unlabelled --output photos.csv",
            "mpirun -n 4 python -m ddcnn predict runs/cifar10 cifar10 --method dnn --output dnn.h5",
        ),
    ),
    Command(
        "export", "writes the network of a finished run for other programs", ExportSettings, export,
        examples=(
            "python -m ddcnn export runs/cifar10 --output cifar10.pt2",
            "python -m ddcnn export runs/cifar10 --method transfer --format onnx --output cifar10.onnx",
        ),
    ),
    Command(
        "report", "writes the reports of runs again, or follows a run", ReportSettings, report,
        examples=("python -m ddcnn report runs/cifar10", "python -m ddcnn report --follow runs/cifar10"),
    ),
    Command(
        "scaling strong", "runs one problem on several numbers of ranks", scaling.StrongSettings, scaling.study,
        examples=(
            "python -m ddcnn scaling strong --ranks 1,2,4 --output study -- --data cifar10",
            'python -m ddcnn scaling strong --ranks 4,8,16 --slurm --sbatch="--time=01:00:00" --output study -- --data set.h5',
        ),
    ),
    Command(
        "scaling weak", "runs a problem that grows with the number of ranks", scaling.WeakSettings, scaling.study,
        examples=(
            "python -m ddcnn scaling weak --ranks 1,2,4 --side 32 --output study -- --network vgg3",
            "python -m ddcnn scaling weak --ranks 1,4,9 --repetitions 3 --samples 20000 --output study",
        ),
    ),
    Command(
        "scaling collect", "compares finished runs on different numbers of ranks", scaling.CollectSettings, scaling.collect,
        examples=(
            "python -m ddcnn scaling collect runs/1 runs/2 runs/4 --output study",
            "python -m ddcnn scaling collect --kind weak weak/1 weak/4 weak/9 --output study",
        ),
    ),
    Command(
        "scaling predict", "predicts times on more ranks by a performance model", scaling.ExtrapolationSettings, scaling.predict,
        examples=(
            "python -m ddcnn scaling predict study --measure",
            "python -m ddcnn scaling predict study --latency-us 2 --bandwidth-gb 10",
        ),
    ),
    Command(
        "info", "shows versions, and the node, cores and GPU of every rank", Settings, info, all_ranks=True, shows=True,
        examples=("python -m ddcnn info", "mpirun -n 4 python -m ddcnn info"),
    ),
)  # fmt: skip


def needs_ranks(arguments: list[str]) -> bool:
    """Whether all ranks run the command together."""
    command, own = find(COMMANDS, arguments)
    return command is not None and command.all_ranks and not set(HELP) & set(takewhile(lambda word: word != "--", own))


def execute(arguments: list[str], world: World | None) -> int:
    """Runs a command and returns the exit code; ``world`` is None unless the command needs ranks."""
    if world is None and launched_rank() > 0:  # rank 0 alone runs the command, without MPI
        return 0
    if arguments == ["--version"]:
        sys.stdout.write(f"ddcnn {__version__}\n")
        return 0
    command, own = find(COMMANDS, arguments)
    if command is None:
        sys.stdout.write(f"{overview(COMMANDS, arguments)}\n")
        return 0

    def parsed() -> Settings:
        settings = settings_of(command, own)
        return with_stored(settings) if isinstance(settings, RunSettings) else settings

    if world is None:
        return command.function(parsed()) or 0
    settings = command.settings.model_validate_json(world.on_root(lambda: parsed().model_dump_json(exclude_unset=True)))
    if isinstance(settings, RunSettings) and not arguments:
        logger.info(
            "no command: run --data %s --grid %s --methods %s (python -m ddcnn --help shows what else there is)",
            settings.data, times(settings.grid), ",".join(settings.methods),
        )  # fmt: skip
    with watched(world, _meeting_places(world, settings), getattr(settings, "stall_timeout", 0)):
        return command.function(world, settings) or 0


def _meeting_places(world: World, settings: Settings) -> list[Path]:
    """Folders that all ranks see; on one host the one for temporary files, so that none of the user's is needed."""
    output: Path | None = getattr(settings, "output", None)
    temporary = []
    if world.local_size == world.size:
        with suppress(FileNotFoundError):  # all of them are full or not writable
            temporary = [Path(gettempdir())]
    return [*temporary, *([output.parent, output] if output else [Path("runs")])]


def main() -> int:
    """Runs the command of sys.argv. A stdout that cannot be written fails those whose result it is; a closed pipe (``| head``) none."""
    open_streams()
    try:
        code = _main()
    except SystemExit as end:  # argparse's, of --help
        code = int(end.code or 0)
    lost = lost_stdout()
    if code or lost is None or lost.errno == errno.EPIPE:
        return code
    command, own = find(COMMANDS, sys.argv[1:])
    message = f"stdout: cannot be written ({lost.strerror})"
    if command is None or command.shows or set(HELP) & set(own):
        log_failure(InputError(message), 0, 1)
        return 2
    logger.warning("%s", message)
    return 0


def _main() -> int:
    world = None
    set_up(launched_rank())
    try:
        check_text(sys.argv[1:])
        if needs_ranks(sys.argv[1:]):
            block_signals(starting=True)
            keep_freed()
            world = World()
            block_signals()
            set_up(world.rank)
        return execute(sys.argv[1:], world)
    except InputError as error:
        if world and not error.agreed:
            abort_all(world, error)
        elif (world.rank if world else launched_rank()) == 0 or not error.agreed:
            log_failure(error, 0, 1)
        return 2
    except Stopped as stop:  # on all ranks, or of a study's run
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # srun sends it to the ranks that exit last, and would change their exit code
        if world is None or world.rank == 0:
            logger.warning("%s", stop, extra={"kind": "stopped"})
        return STOPPED
    except KeyboardInterrupt as interrupt:
        if world:
            if world.rank == 0:
                logger.warning("; ".join(filter(None, ("all ranks end", str(interrupt)))), extra={"kind": "interrupted"})
            world.abort(INTERRUPTED)
        return INTERRUPTED
    except BaseException as error:  # also SystemExit: a rank that exits alone blocks the others in MPI_Finalize
        if world is None and not isinstance(error, Exception):
            raise
        error = _as_users(error)
        if world:
            abort_all(world, error)
        else:
            log_failure(error, 0, 1)
        return 2 if isinstance(error, InputError) else 1


def _as_users(error: BaseException) -> BaseException:
    """The error of a user's network, if it is one, which the user can mend."""
    custom = sys.modules.get("ddcnn.networks.custom")  # None as long as no such network has been made
    return custom.as_users(error) if custom and not is_out_of_memory(error) else error


if __name__ == "__main__":
    sys.exit(main())

"""The command line: sub-commands and options. torch and h5py are imported by the commands, so that ``--help`` is quick."""

import argparse
import gc
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NoReturn, cast, get_args, get_origin

from ddcnn import __version__
from ddcnn.config.load import load, option_names
from ddcnn.config.settings import Command, Literal, PartitionSettings, RunSettings, Settings
from ddcnn.config.trained_settings import ExportSettings, PredictSettings
from ddcnn.errors import InputError, Stopped, did_you_mean
from ddcnn.io.run_folder import RunFolder, with_stored
from ddcnn.parallel.launcher import launched_rank
from ddcnn.parallel.stall_watchdog import watched
from ddcnn.parallel.world import World
from ddcnn.scaling import commands as scaling

PARALLEL: dict[str, type[Command]] = {"run": RunSettings, "partition": PartitionSettings, "predict": PredictSettings}
CONFIGURED = PARALLEL | {"export": ExportSettings}
POSITIONAL = ("run", "source")
OPTION = re.compile(r"--[a-z][a-z-]*[a-z]")
SUMMARIES = {
    "run": "decompose, train the local CNNs, gather, decide, report (the default command)",
    "partition": "write a data set as a partitioned HDF5 file",
    "predict": "classify images with a finished run, into a CSV or HDF5 file",
    "export": "write the network of a finished run as one, for other programs",
    "report": "tables and figures of finished runs, made anew; what a run does while it goes on",
    "scaling": "strong and weak scaling studies: run or submitted, collected, predicted for more ranks",
    "info": "MPI, HDF5, devices, cores and threads of this machine",
}


def needs_ranks(arguments: list[str]) -> bool:
    """Whether the command is one that all ranks run together."""
    return _command(arguments) in PARALLEL and not {"-h", "--help", "--version"} & set(arguments)


def main(arguments: list[str], world: World | None) -> int:
    """Runs a command and returns the exit code; ``world`` is there if the command needs ranks."""
    if world is None:
        # under a launcher too one process is enough, but MPI starts only if all ranks start it
        return _alone(arguments) if launched_rank() == 0 or arguments == ["info"] else 0
    command = _command(arguments)
    kind = PARALLEL[command]
    text = world.on_root(lambda: _settings(kind, arguments).model_dump_json(exclude_unset=True))
    settings = kind.model_validate_json(text)
    with watched(world, _meeting_places(world, settings), settings.stall_timeout):
        return _together(settings, world)


def _meeting_places(world: World, settings: Command) -> list[Path]:
    """Folders that all ranks see: on one host none of the user's needs to be written into."""
    output: Path | None = getattr(settings, "output", None)
    own = [Path(gettempdir())] if world.local_size == world.size else []
    return [*own, *([output.parent, output] if output else [Path("runs")])]


def _together(settings: Command, world: World) -> int:
    if isinstance(settings, PartitionSettings):
        from ddcnn.experiment.plan import partition_command
        from ddcnn.parallel.stop_requests import release

        release()
        partition_command(world, settings)
    elif isinstance(settings, RunSettings):
        from ddcnn.experiment.plan import prepare_run
        from ddcnn.io.run_folder import resumes_finished
        from ddcnn.parallel.stop_requests import Interrupts, slurm_job

        if world.on_root(lambda: resumes_finished(settings)):
            if world.rank == 0:
                print(f"{settings.output}: finished, nothing to resume")
            return 0
        interrupts = Interrupts(settings.stop_signals, settings.time_limit, world.on_root(slurm_job))
        try:
            store = prepare_run(world, settings, lambda: bool(interrupts.reason))
        except Stopped:
            raise Stopped("while the images were being partitioned, of which nothing is kept: start again") from None
        with world.timeline.span("compute"):
            gc.disable()  # a fifth of torch's import would be the collector, looking at what is not garbage
            from ddcnn.experiment.run import run

            gc.enable()

        run(world, settings, store, interrupts)
    elif isinstance(settings, PredictSettings):
        from ddcnn.inference.predict import predict
        from ddcnn.parallel.stop_requests import release

        release()
        predict(world, settings)
    return 0


def _command(arguments: list[str]) -> str:
    return arguments[0] if arguments and not arguments[0].startswith("-") else "run"


def _alone(arguments: list[str]) -> int:
    if arguments and arguments[0] == "export" and not {"-h", "--help"} & set(arguments):
        from ddcnn.inference.export import export

        export(_settings(ExportSettings, arguments))
        return 0
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        arguments = ["run", *arguments]
    end = arguments.index("--") if "--" in arguments and arguments[0] == "scaling" else len(arguments)
    parser = _parser()
    parsed, unknown = parser.parse_known_args(arguments[:end])
    if unknown:
        raise _unknown(unknown[0], parsed.command, OPTION.findall(parser.commands[parsed.command].format_help()))
    if parsed.command == "scaling":
        return scaling.main(parsed, arguments[end + 1 :], lambda own: _settings(RunSettings, list(own)))
    if parsed.command == "report":
        report(parsed.runs, parsed.follow)
    elif parsed.command == "info":
        from ddcnn.parallel.environment import show_info

        show_info()
    return 0


def report(runs: list[Path], follow: bool) -> None:
    if follow:
        from ddcnn.report import follow as following

        if len(runs) > 1:
            raise InputError("--follow shows one run: name one folder (a run of several seeds is one)")
        following.follow(RunFolder(runs[0]))
        return
    from ddcnn.report.seeds_report import write_reports

    for run in runs:
        write_reports(RunFolder(run))


def _settings(kind: type[Settings], arguments: list[str]) -> Settings:
    if not arguments or arguments[0].startswith("-"):
        arguments = ["run", *arguments]
    parsed, unknown = _parser().parse_known_args(arguments)
    if unknown:
        raise _unknown(unknown[0], parsed.command, [f"--{name}" for name in option_names(kind)])
    options = vars(parsed)
    del options["command"]
    settings = load(kind, options, options.pop("config"))
    return cast(Settings, with_stored(settings)) if isinstance(settings, RunSettings) else settings


def _unknown(word: str, command: str, options: list[str]) -> InputError:
    """A word that the command does not know, and what may have been meant."""
    if not word.startswith("-"):
        hint = f"; images are named with --data {word}" if command == "run" else ""
        return InputError(f"{word}: a word that belongs to no option{hint}; see python -m ddcnn {command} --help")
    guess = did_you_mean(f"--{word.lstrip('-').replace('_', '-')}", options)
    if command == "scaling" and not guess:
        guess = " (options of ddcnn run stand behind --)"
    return InputError(f"unknown option {word}{guess}; see python -m ddcnn {command} --help")


class _Parser(argparse.ArgumentParser):
    """argparse, with errors as ours are.

    Attributes:
        commands: the parsers of the sub-commands.
    """

    commands: Mapping[str, argparse.ArgumentParser]

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m {self.prog} --help")


def _parser() -> _Parser:
    parser = _Parser(
        prog="ddcnn", description="Model-parallel training of image classifiers by domain decomposition.", allow_abbrev=False,
        epilog="Start it with mpirun -n N python -m ddcnn … ; ddcnn COMMAND --help shows the options of a command.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"ddcnn {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parser.commands = commands.choices
    for name, summary in SUMMARIES.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if name in CONFIGURED:
            command.add_argument("--config", type=Path, metavar="FILE.toml", help="options under their names; the command line wins")
            _add_options(command, CONFIGURED[name])
        elif name == "report":
            command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
            command.add_argument("--follow", action="store_true", help="instead show what one run does, until it has finished")
        elif name == "scaling":
            scaling.add_parsers(command)
    return parser


def _add_options(parser: argparse.ArgumentParser, kind: type[Command]) -> None:
    """An option per field; values are checked later, with those of the TOML file."""
    for name, field in kind.model_fields.items():
        extra: Any = field.json_schema_extra or {}
        default = None if field.is_required() or "default" in str(field.description) else field.default
        text = field.description if default in (None, False, ()) else f"{field.description} (default: {default})"
        keywords: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        if field.annotation is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        elif get_origin(field.annotation) is Literal:
            keywords["metavar"] = "|".join(get_args(field.annotation))
        else:
            keywords["metavar"] = extra.get("metavar")
            if isinstance(keywords["metavar"], tuple):
                keywords["nargs"] = len(keywords["metavar"])
        if name in POSITIONAL:
            parser.add_argument(name, **keywords)
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", **keywords)

"""The command line: finds the command that it names, and reads its options, one for each field of the command's settings."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args, get_origin

from ddcnn.config.load import load, option_names
from ddcnn.config.types import AnySettings, Group, Settings
from ddcnn.errors import InputError, did_you_mean, escaped

HELP = ("-h", "--help")


@dataclass(frozen=True)
class Command:
    """A command of ``python -m ddcnn``."""

    name: str  # a word, or two of which the first is that of a group
    summary: str  # its line in the list of commands
    settings: type[Settings]  # its options are their fields
    function: Callable[..., int | None]  # of (settings), or of (world, settings) if ``all_ranks``; returns an exit code, or None for 0
    all_ranks: bool = False  # whether all ranks run it together
    shows: bool = False  # whether what it prints is its result
    examples: tuple[str, ...] = ()  # command lines, shown below its options


def check_text(arguments: Sequence[str]) -> None:
    """Raises InputError for an argument that is not UTF-8, which the files of a run, being UTF-8, could not repeat."""
    for argument in arguments:
        if escaped(argument, ("Cs",)) != argument:
            shown = escaped(argument)
            raise InputError(f"{shown}: not in UTF-8; rename the file or folder, or make a link to it (ln -s) and name that", agreed=True)


def find(commands: Sequence[Command], arguments: list[str]) -> tuple[Command | None, list[str]]:
    """The named command and its arguments: the first command if none is named, None if there is no such command."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in (*HELP, "--version")):
        return commands[0], arguments
    for command in commands:
        words = command.name.split()
        if arguments[: len(words)] == words:
            return command, arguments[len(words) :]
    return None, arguments


def overview(commands: Sequence[Command], arguments: Sequence[str]) -> str:
    """The help text without a command: a list of all commands, or of those of a group.

    Raises:
        InputError: the arguments do not ask for help, so that a command is missing or misspelt.
    """
    first, second = [*arguments, ""][:2]
    group = [command for command in commands if command.name.startswith(f"{first} ")]
    shown = group or commands
    if first not in HELP and not (group and second in HELP):
        names = list(dict.fromkeys(command.name.removeprefix(f"{first} ").split()[0] for command in shown))
        wrong = second if group else first
        unknown = f"{wrong}: no such command{did_you_mean(wrong, names)}" if wrong else "name a command"
        raise InputError(f"{f'{first}: ' if group else ''}{unknown}; there are {', '.join(names)}; see python -m ddcnn --help")
    lines = [f"  {command.name:<18}{command.summary}" for command in shown]
    launcher = "mpirun -n N " if any(command.all_ranks for command in shown) else ""
    usage = f"usage: {launcher}python -m ddcnn {f'{first} ' if group else ''}COMMAND [options]"
    about = (
        "Trains image classifiers by domain decomposition: a CNN per subdomain of the\nimage, and a network that combines their results."
    )
    return "\n".join([usage, "", about, "", "commands:", *lines, "", "python -m ddcnn COMMAND --help shows the options of a command."])


def parse(kind: type[AnySettings], arguments: Sequence[str], name: str) -> AnySettings:
    """The settings of the command ``name`` that the arguments give, InputError for a bad one."""
    return _parsed(kind, arguments, Command(name, "", kind, lambda _: None))


def settings_of(command: Command, arguments: Sequence[str]) -> Settings:
    """As ``parse``; ``--help`` prints the options of the command, and exits."""
    return _parsed(command.settings, arguments, command)


def _parsed(kind: type[AnySettings], arguments: Sequence[str], command: Command) -> AnySettings:
    end = arguments.index("--") if "run_options" in kind.model_fields and "--" in arguments else len(arguments)
    parsed, unknown = _parser(kind, command).parse_known_args(arguments[:end])
    if unknown:
        raise _unknown(unknown[0], command.name, kind)
    options = vars(parsed)
    if "run_options" in kind.model_fields:
        options["run_options"] = arguments[end + 1 :]
    return load(kind, options, options.pop("config", None))


def _unknown(word: str, name: str, kind: type[Settings]) -> InputError:
    """The error for a word that the command does not know, with a suggestion."""
    see = f"see python -m ddcnn {name} --help"
    if word == "--":
        return InputError(f"ddcnn {name} takes no options after --; {see}")
    if not word.startswith("-"):
        hint = f"; images are named with --data {word}" if name == "run" else ""
        return InputError(f"{word} belongs to no option{hint}; {see}")
    hint = did_you_mean(f"--{word.lstrip('-').replace('_', '-')}", [f"--{option}" for option in option_names(kind)])
    if not hint and "run_options" in kind.model_fields:
        hint = " (options of ddcnn run go after --)"
    return InputError(f"unknown option {word}{hint}; {see}")


class _Parser(argparse.ArgumentParser):
    """argparse, with errors raised as InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def _parser(kind: type[Settings], command: Command) -> _Parser:
    positional = [field for field in kind.model_fields if extra(kind, field)["positional"]]
    words = [f"{extra(kind, field)['metavar']}{' ...' * (field == 'runs')}" for field in positional]
    words += ["-- [options of ddcnn run]"] if "run_options" in kind.model_fields else []
    program, summary = f"python -m ddcnn {command.name}", command.summary
    launcher = "mpirun -n N " if command.all_ranks else ""
    parser = _Parser(
        prog=program, usage=" ".join([f"{launcher}{program} [options]", *words]), description=f"{summary[:1].upper()}{summary[1:]}.",
        epilog="\n  ".join(["examples:", *command.examples]), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for field in positional:
        _add_option(parser, kind, field)
    own_first = dict.fromkeys(field for one in kind.__mro__ for field in getattr(one, "__annotations__", {}) if field in kind.model_fields)
    for group in Group:
        section = parser.add_argument_group(group.value)
        if group is Group.RUN and kind.from_file:
            section.add_argument("--config", type=Path, metavar="FILE.toml", help="file of options; the command line wins (default: none)")
        for field in own_first:
            if extra(kind, field)["group"] == group and field not in positional and field != "run_options":
                _add_option(section, kind, field)
    return parser


def extra(kind: type[Settings], name: str) -> dict[str, Any]:
    """Group, metavar and whether positional, as given to ``option``."""
    return cast(dict[str, Any], kind.model_fields[name].json_schema_extra)


def _add_option(section: argparse._ActionsContainer, kind: type[Settings], name: str) -> None:
    """Adds the option of a field; its value is checked later, together with those of the TOML file."""
    field, about = kind.model_fields[name], extra(kind, name)
    text, default = str(field.description), field.default
    if field.is_required():
        text += "" if about["positional"] else " (required)"
    elif "(default: " not in text:
        text += f" (default: {('no', 'yes')[default] if isinstance(default, bool) else default})"
    keywords: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS, "metavar": about["metavar"]}
    if field.annotation is bool:
        del keywords["metavar"]
        keywords["action"] = argparse.BooleanOptionalAction
    elif get_origin(field.annotation) is Literal:
        keywords["metavar"] = "|".join(get_args(field.annotation))
    elif isinstance(about["metavar"], tuple):
        keywords["nargs"] = len(about["metavar"])
    if about["positional"]:
        section.add_argument(name, nargs="+" if get_origin(field.annotation) is tuple else None, **keywords)
    else:
        section.add_argument(f"--{name.replace('_', '-')}", **keywords)

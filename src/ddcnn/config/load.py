"""Settings as they are given: by options, by a TOML file, by the folder of a run; and what is said of those that will not do."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from ddcnn.config.settings import FREE, Command, RunSettings, Settings
from ddcnn.errors import InputError, did_you_mean

MARK = "# settings of a run of ddcnn, written by it"  # the first line of config.toml, which tells a run's folder from others
OF_AN_ATTEMPT = {"resume": False, "overwrite": False, "time_limit": None}  # not of the run


def load(kind: type[Settings], options: dict[str, Any], file: Path | None = None) -> Settings:
    """Settings from a TOML file and the command line's options, which win.

    Raises:
        InputError: an unreadable file, an unknown key or a bad value, with its name and what is allowed.
    """
    values = (_read_toml(kind, file) if file else {}) | options
    settings = _validated(kind, values, options, file)
    return cast(Settings, _resumed(settings, values)) if isinstance(settings, RunSettings) else settings


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run: its config.toml is one that a run has written."""
    try:
        with (folder / "config.toml").open("rb") as file:
            return file.read(len(MARK)) == MARK.encode()
    except OSError:
        return False


def of_run(folder: Path) -> RunSettings:
    """The settings in the folder of a run.

    Raises:
        InputError: its config.toml is damaged, or of another version.
    """
    file = folder / "config.toml"
    return _validated(RunSettings, _read_toml(RunSettings, file) | OF_AN_ATTEMPT, {}, file)


def _validated(kind: type[Settings], values: dict[str, Any], options: dict[str, Any], file: Path | None) -> Settings:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(kind, error, options, file)) from None


def _resumed(settings: RunSettings, given: Iterable[str]) -> RunSettings:
    """The settings in the folder of a run that is resumed, with those of the ``given`` ones that may change.

    Raises:
        InputError: another one of the given settings is not that of the folder.
    """
    if not settings.resume or settings.output is None or not is_run(settings.output):
        return settings
    stored = of_run(settings.output)
    for name in given:
        ours, theirs = (values.model_dump(mode="json")[name] for values in (settings, stored))
        if name not in FREE and ours != theirs:
            raise InputError(
                f"--{name.replace('_', '-')} {ours}: the run in {settings.output} has {theirs}; leave it out, or name another --output"
            )
    return stored.model_copy(update={name: getattr(settings, name) for name in given if name in FREE})


def _read_toml(kind: type[Command], file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            found = tomllib.load(stream)
    except OSError as error:
        raise InputError(f"--config {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file}: not a TOML file ({error})") from None
    values = {key.replace("-", "_"): value for key, value in found.items()}
    for key in found:
        if key.replace("-", "_") not in kind.model_fields:
            raise InputError(f"{file}: unknown key {key!r}{suggest(key, kind)}; allowed: {', '.join(option_names(kind))}")
    return values


def option_names(kind: type[Command]) -> list[str]:
    return [name.replace("_", "-") for name in kind.model_fields]


def suggest(key: str, kind: type[Command]) -> str:
    return did_you_mean(key.replace("_", "-"), option_names(kind))


def _explain(kind: type[Command], error: ValidationError, options: dict[str, Any], file: Path | None) -> str:
    first = error.errors()[0]
    if not first["loc"]:  # of several options together
        return str(first["msg"]).removeprefix("Value error, ")
    name = str(first["loc"][0])
    if first["type"] == "missing":
        extra: Any = kind.model_fields[name].json_schema_extra or {}
        value = f" {extra['metavar']}" if extra.get("metavar") else ""
        return f"--{name}{value} is required: {kind.model_fields[name].description}"
    where = f"--{name.replace('_', '-')}" if name in options or file is None else f"{file}: {name.replace('_', '-')}"
    given = options.get(name, first["input"])
    given = " ".join(map(str, given)) if isinstance(given, list) else given
    if first["type"] in ("enum", "literal_error"):
        known = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        return f"{where} {given}: {first['input']} is none of {', '.join(known)}{did_you_mean(str(first['input']), known)}"
    return f"{where} {given}: {first['msg'].removeprefix('Value error, ')}"

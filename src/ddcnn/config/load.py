"""Reads settings from options and a TOML file, and explains invalid settings."""

import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ddcnn.config.types import AnySettings, Settings
from ddcnn.errors import InputError, did_you_mean


def load(kind: type[AnySettings], options: dict[str, Any], file: Path | None = None) -> AnySettings:
    """Settings from a TOML file and from options of the command line, which win.

    Raises:
        InputError: an unreadable file, an unknown key or a bad value; the message names it and what is allowed.
    """
    try:
        return kind.model_validate((_read_toml(kind, file) if file else {}) | options)
    except ValidationError as error:
        raise InputError(_explain(kind, error, options, file)) from None


def _read_toml(kind: type[Settings], file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = tomllib.load(stream)
    except OSError as error:
        raise InputError(f"--config {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file}: not a TOML file ({error})") from None
    values = {key.replace("-", "_"): value for key, value in content.items()}
    names = option_names(kind)
    for key in content:
        if key.replace("_", "-") not in names:
            raise InputError(f"{file}: unknown key {key!r}{did_you_mean(key.replace('_', '-'), names)}; allowed: {', '.join(names)}")
    return values


def option_names(kind: type[Settings]) -> list[str]:
    """The options without their dashes."""
    return [name.replace("_", "-") for name in kind.model_fields]


def _explain(kind: type[Settings], error: ValidationError, options: dict[str, Any], file: Path | None) -> str:
    """The first of pydantic's errors, as a message that begins with the option or the key."""
    first = error.errors()[0]
    if not first["loc"]:  # an error of several options together
        return str(first["msg"]).removeprefix("Value error, ")
    name = str(first["loc"][0])
    if first["type"] == "missing":
        extra: Any = kind.model_fields[name].json_schema_extra
        value = f" {extra['metavar']}" if extra["metavar"] else ""
        return f"--{name}{value} is required: {kind.model_fields[name].description}"
    where = f"--{name.replace('_', '-')}" if name in options or file is None else f"{file}: {name.replace('_', '-')}"
    given = options.get(name, first["input"])
    given = " ".join(map(str, given)) if isinstance(given, list) else given
    if first["type"] in ("enum", "literal_error"):
        known = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        return f"{where} {given}: {first['input']} is none of {', '.join(known)}{did_you_mean(str(first['input']), known)}"
    return f"{where} {given}: {first['msg'].removeprefix('Value error, ')}"

"""Reads settings from options and a TOML file, and explains invalid settings."""

import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ddcnn.config.types import AnySettings, Settings
from ddcnn.errors import InputError, did_you_mean

BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}  # of numbers, as pydantic names them
NUMERIC = ("int_", "float_", "finite_", "greater_", "less_")  # kinds of pydantic's errors


def load(kind: type[AnySettings], options: dict[str, Any], file: Path | None = None) -> AnySettings:
    """Settings from a TOML file and from options of the command line, which win.

    Raises:
        InputError: an unreadable file, an unknown key or a bad value; the message names it and what is allowed.
    """
    from_file = _read_toml(kind, file) if file else {}
    try:
        return kind.model_validate(from_file | options)
    except ValidationError as error:
        raise InputError(_explain(kind, error, options, from_file, file)) from None


def _read_toml(kind: type[Settings], file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = tomllib.load(stream)
    except OSError as error:
        hint = "name a TOML file of options, such as the config.toml in the folder of a run"
        raise InputError(f"--config {file}: cannot be read ({error.strerror}): {hint}") from None
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


def bounds_of(field: FieldInfo) -> list[str]:
    """What a number may be: "at least 1"."""
    return [f"{words} {getattr(one, bound):g}" for bound, words in BOUNDS.items() for one in field.metadata if hasattr(one, bound)]


def _explain(kind: type[Settings], error: ValidationError, options: dict[str, Any], from_file: dict[str, Any], file: Path | None) -> str:
    """The first of pydantic's errors, in words of ours, as a message that begins with the option or the key."""
    first = error.errors()[0]
    if not first["loc"]:  # an error of several options together
        return str(first["msg"]).removeprefix("Value error, ")
    name, within = str(first["loc"][0]), first["loc"][1:]
    about = kind.model_fields[name]
    extra: Any = about.json_schema_extra
    if first["type"] == "missing" and not within:
        value = f" {extra['metavar']}" if extra["metavar"] else ""
        return f"--{name}{value} is required: {about.description}"
    where = f"--{name.replace('_', '-')}" if name in options or file is None else f"{file}: {name.replace('_', '-')}"
    given = (from_file | options).get(name, first["input"])
    given = " ".join(map(str, given)) if isinstance(given, list) else given
    part = f"{first['input']} " if within and str(first["input"]) != str(given) else ""
    if first["type"] in ("enum", "literal_error"):
        known = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        return f"{where} {given}: {first['input']} is none of {', '.join(known)}{did_you_mean(str(first['input']), known)}"
    if first["type"] == "value_error":
        return f"{where} {given}: {first['msg'].removeprefix('Value error, ')}"
    if first["type"].startswith(NUMERIC):
        of_floats = "a finite number" if first["type"].startswith("finite_") else "a number"
        number = "a whole number" if re.search(r"\bint\b", str(about.annotation)) else of_floats
        limits: dict[str, Any] = first.get("ctx", {})  # of the parts of a value, such as those of a grid
        bounds = bounds_of(about) or [f"{words} {limits[bound]:g}" for bound, words in BOUNDS.items() if bound in limits]
        return f"{where} {given}: {part}must be {number}{', ' * bool(bounds)}{' and '.join(bounds)}"
    if first["type"].startswith("bool"):
        return f"{where} {given}: must be true or false"
    form = extra["metavar"] or "text"
    form = form if isinstance(form, str) else f"[{', '.join(form)}]"
    return f"{where} {given}: write it as {form}: {about.description}"

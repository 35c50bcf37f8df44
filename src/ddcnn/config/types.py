"""What settings are made of: options, and the types of their values, as they are written and checked."""

import os
import re
import signal
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from ddcnn.config.methods import Method
from ddcnn.decomposition import times


class Group(StrEnum):
    """The groups of options in ``--help``, in this order."""

    DATA = "data"
    DECOMPOSITION = "decomposition"
    NETWORK = "methods and network"
    LOCAL = "local training"
    DNN = "DNN"
    JOINT = "coherent and transfer"
    BASELINE = "whole images (global, spatial)"
    RUN = "run and checkpoints"
    STUDY = "study"
    MACHINE = "machine"
    OUTPUT = "output"


def option(
    group: Group, default: Any, help: str, metavar: str | tuple[str, ...] | None = None, *, positional: bool = False, **bounds: Any
) -> Any:
    """A field that is an option.

    Args:
        default: ``...`` for an option that is required.
        help: names the default in parentheses where it is not ``default`` itself.
        metavar: the name of its value, or of each of its values.
        bounds: as in pydantic's ``Field``.
    """
    extra: dict[str, Any] = {"group": group, "metavar": metavar, "positional": positional}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


class Settings(BaseModel):
    """Settings of a command: each field is an option of the command line and a key of the TOML file, with the same name.

    Attributes:
        from_file: whether they can be given in a TOML file, ``--config``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    from_file: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _home(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A ``~`` that no shell has replaced, in a file or after an equals sign."""
        return {name: os.path.expanduser(value) if isinstance(value, str) else value for name, value in values.items()}


AnySettings = TypeVar("AnySettings", bound=Settings)


def _sizes(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = tuple(int(part) for part in value.lower().split("x"))
        except ValueError:
            raise ValueError("write it as rows x columns, such as 2x2, or depth x rows x columns, such as 2x2x2") from None
    return value


def _along(axes: int) -> Callable[[Any], Any]:
    """A validator of pixels per axis; a single number holds for all axes."""

    def read(value: Any) -> Any:
        sizes = (value,) if type(value) is int else _sizes(value)  # type, since True is an int
        if isinstance(sizes, (tuple, list)) and len(sizes) not in (1, axes):
            raise ValueError(f"write one number of pixels, or {axes} such as {'x'.join(['64'] * axes)}")
        return tuple(sizes) * axes if isinstance(sizes, (tuple, list)) and len(sizes) == 1 else sizes

    return read


def _ordered(window: tuple[float, float]) -> tuple[float, float]:
    if window[0] >= window[1]:
        raise ValueError("the lower bound comes first")
    return window


def _words(value: Any) -> Any:
    """Words between commas."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _joined(*known: str) -> Callable[[str], str]:
    """A validator of names joined by plus signs, which it puts into the order of those that are ``known``."""

    def read(value: str) -> str:
        given = [part.strip() for part in value.split("+")]
        for name in given:
            if name not in known:
                raise ValueError(f"{name or 'an empty name'} is none of {', '.join(known)}, joined by + such as {'+'.join(known[-2:])}")
        if "none" in given and len(given) > 1:
            raise ValueError("none stands alone")
        return "+".join(name for name in known if name in given)

    return read


def _every(value: Any) -> Any:
    """A number of epochs, or of minutes such as 10min."""
    text = str(value).strip()
    if not re.fullmatch(r"[1-9]\d*|\d+(\.\d+)?min", text):
        raise ValueError("write a number of epochs, such as 5, or of minutes, such as 10min")
    return text


def _signals(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in filter(None, names):
        if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
            raise ValueError(f"{name} cannot be handled; give names of signals such as SIGUSR1,SIGTERM")
    return tuple(filter(None, names))


def _subdomains(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = tuple(int(part) for part in value.split(",") if part.strip())
        except ValueError:
            raise ValueError("write numbers of subdomains, such as 1,3") from None
    return value


AXES = ("depth", "rows", "columns")
Augment = Annotated[str, AfterValidator(_joined("none", "flip", "shift", "erase", "mixup"))]
FlipAxes = Annotated[str, AfterValidator(_joined(*AXES))]
Device = Literal["auto", "cpu", "cuda"]
Interface = Literal["probabilities", "logits", "features", "maps"]
Schedule = Literal["one-cycle", "cosine", "constant"]
Positive = Annotated[int, Field(ge=1)]
as_text = PlainSerializer(times)
Grid = Annotated[tuple[Positive, ...], BeforeValidator(_sizes), as_text]
ImageSize = Annotated[tuple[Positive, Positive], BeforeValidator(_along(2)), as_text]
VolumeSize = Annotated[tuple[Positive, Positive, Positive], BeforeValidator(_along(3)), as_text]
Window = Annotated[tuple[float, float], AfterValidator(_ordered)]
Methods = Annotated[tuple[Method, ...], BeforeValidator(_words), PlainSerializer(",".join), Field(min_length=1)]
Subdomains = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_subdomains)]
Every = Annotated[str, BeforeValidator(_every)]
Signals = Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_signals), PlainSerializer(",".join)]

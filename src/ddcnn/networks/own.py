"""The user's own networks, by the name of a factory: ``package.module:factory``; see ``registry`` for what it is to look like."""

import importlib
import inspect
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from ddcnn.errors import InputError, did_you_mean
from ddcnn.networks.refusals import refusing
from ddcnn.networks.shape import Shape


def places(name: str) -> list[Path]:
    """Where a factory's module is looked for; nothing is imported, since that would run it."""
    first, *rest = name.partition(":")[0].split(".")
    spec = find_spec(first) if first else None
    found = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])] if spec else []
    return [Path(place, *rest).resolve() for place in found]


def make(name: str, shape: Shape, width: int | None, divisor: float) -> nn.Module:
    """What the factory makes; ``width`` is handed on only if there is one.

    Raises:
        InputError: no such factory, it cannot be called, it fails, or it makes something else than a network.
    """
    option = f"--network {name}"
    module_name, _, factory_name = name.partition(":")
    if not (module_name and factory_name):
        raise InputError(f"{option}: write it as package.module:factory")
    way_out = "; a module has to be in the current folder (start with python -m ddcnn) or on PYTHONPATH"
    with refusing(f"{option} cannot be imported", way_out):
        module = importlib.import_module(module_name)
    factory = getattr(module, factory_name, None)
    if factory is None:
        raise InputError(f"{option}: {module_name} has no {factory_name}{did_you_mean(factory_name, dir(module))}")
    options = {"divisor": divisor} if width is None else {"width": width, "divisor": divisor}
    try:
        inspect.signature(factory).bind(shape, **options)
    except (TypeError, ValueError) as error:
        call = f"{factory_name}({', '.join(['shape', *(f'{key}={value:g}' for key, value in options.items())])})"
        hint = "; give --width" if "'width'" in str(error) and width is None else ""
        raise InputError(f"{option} cannot be called as {call}: {error}{hint}") from None
    with refusing(f"{option} fails to make a network for images of {shape.size}"):
        network = factory(shape, **options)
    if not isinstance(network, nn.Module):
        raise InputError(f"{option} has to return a torch.nn.Module, but it returned a {type(network).__name__}")
    return network

"""Parameters of trained networks: one HDF5 file for each network, one dataset for each tensor. Nothing is ever unpickled."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddcnn.errors import InputError
from ddcnn.io.hdf5 import Damaged, attributes, checked_array, names_in, opened, parsing, writing

Attribute = str | int | float | tuple[int, ...] | tuple[float, ...]


def save(path: Path, network: nn.Module, attributes: dict[str, Attribute]) -> None:
    """Writes parameters and buffers of a network, and attributes that describe it."""
    with writing(path) as file:
        for name, tensor in network.state_dict().items():
            file[f"parameters/{dataset_name(name)}"] = tensor.detach().cpu().numpy()
        for key, value in attributes.items():
            file.attrs[key] = value


def dataset_name(parameter: str) -> str:
    """The name of a parameter without the character that HDF5 takes for a path; a user's module may have it in its name."""
    return parameter.replace("/", "%")


def attributes_of(path: Path) -> dict[str, Any]:
    """The attributes of a file, which describe its network; InputError if it is missing or damaged."""
    with opened(path, "not a readable checkpoint") as file:
        return attributes(file)


def load(path: Path, network: nn.Module, expected: dict[str, Attribute]) -> dict[str, Any]:
    """Reads parameters and buffers into a network in place; returns all attributes of the file.

    Raises:
        InputError: no such file, or it holds another network than the attributes ``expected`` and the shapes of ``network`` say.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder of a finished run with the same --grid")
    state = {dataset_name(name): tensor for name, tensor in network.state_dict().items()}
    with opened(path, "not a readable checkpoint") as file:
        stored = attributes(file)
        for key, value in expected.items():
            if key not in stored:
                raise Damaged(f"attribute {key} is missing")
            other = tuple(stored[key]) if isinstance(stored[key], list) else stored[key]
            if other != value and key == "data":
                raise InputError(
                    f"{path}: trained on other images than this run's; give the same --data, with the same options, such as "
                    "--validation-fraction (0 for a run without validation images)"
                )
            if other != value:
                raise InputError(f"{path}: a network with {key} {other}, where this run has {value}")
        if set(names_in(file, "parameters")) != set(state):
            raise InputError(f"{path}: parameters of another network than this run's")
        for name, tensor in state.items():
            array = checked_array(file, f"parameters/{name}")
            if array.shape != tuple(tensor.shape):
                raise InputError(f"{path}: {name} has shape {array.shape}, where this run's network has {tuple(tensor.shape)}")
            with parsing():
                values = torch.from_numpy(array)
            if values.dtype != tensor.dtype or not values.isfinite().all():
                raise Damaged(f"{name} holds {array.dtype}, or values that are NaN or infinite")
            tensor.copy_(values)
    return stored

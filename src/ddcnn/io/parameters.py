"""Parameters on disk: one HDF5 file a network, a dataset a tensor. Nothing is ever unpickled."""

from pathlib import Path
from typing import Any

import h5py
import torch
from torch import nn

from ddcnn.errors import InputError
from ddcnn.io.atomic import replacing
from ddcnn.io.hdf5 import DAMAGE, HDF5_FORMAT, attribute, own_dataset, own_group

Attribute = str | int | float | tuple[int, ...] | tuple[float, ...]


def save(path: Path, network: nn.Module, attributes: dict[str, Attribute]) -> None:
    """Writes parameters and buffers of a network, and attributes that say which network it is."""
    with replacing(path) as temporary, h5py.File(temporary, "w", libver=HDF5_FORMAT) as file:
        for name, tensor in network.state_dict().items():
            file[f"parameters/{name}"] = tensor.detach().cpu().numpy()
        for key, value in attributes.items():
            file.attrs[key] = value


def attributes_of(path: Path) -> dict[str, Any]:
    """What a file says about its network.

    Raises:
        InputError: not an HDF5 file.
    """
    try:
        with h5py.File(path, "r") as file:
            return _attributes(file)
    except DAMAGE as error:
        raise InputError(f"{path}: not a readable checkpoint ({error})") from None


def load(path: Path, network: nn.Module, attributes: dict[str, Attribute]) -> dict[str, Any]:
    """Reads parameters and buffers into a network in place; all attributes of the file.

    Raises:
        InputError: no such file, or it holds another network than ``attributes`` and the shapes of ``network`` say.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder of a finished run with the same --grid")
    try:
        with h5py.File(path, "r") as file:
            found = _attributes(file)
            for key, wanted in attributes.items():
                there = tuple(found[key]) if isinstance(wanted, tuple) else found[key]
                if there != wanted and key == "data":
                    raise InputError(f"{path}: trained on other images than this run's; give the same --data, with the same options")
                if there != wanted:
                    raise InputError(f"{path}: a network with {key} {there}, where this run has {wanted}")
            state = network.state_dict()
            if set(own_group(file, "parameters")) != set(state):
                raise InputError(f"{path}: parameters of another network; train anew without --start-from")
            for name, tensor in state.items():
                dataset = own_dataset(file, f"parameters/{name}")
                if dataset.shape != tuple(tensor.shape):
                    raise InputError(f"{path}: {name} has shape {dataset.shape}, where this run's network has {tuple(tensor.shape)}")
                values = torch.from_numpy(dataset[...])
                if values.dtype != tensor.dtype or not values.isfinite().all():
                    raise ValueError(f"{name} holds {dataset.dtype}, or what is no number")
                tensor.copy_(values)
    except DAMAGE as error:
        raise InputError(f"{path}: not a readable checkpoint ({error})") from None
    return found


def _attributes(file: h5py.File) -> dict[str, Any]:
    return {key: attribute(file, key) for key in file.attrs}

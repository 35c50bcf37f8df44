"""Parameters on disk: one HDF5 file a network, a dataset a tensor. Nothing is ever unpickled."""

from pathlib import Path

import h5py
import torch
from torch import nn

from ddcnn.errors import InputError
from ddcnn.files import replacing


def save(path: Path, network: nn.Module, attributes: dict[str, str | int | float | tuple[int, ...]]) -> None:
    """Writes parameters and buffers of a network, and attributes that say which network it is."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for name, tensor in network.state_dict().items():
            file[f"parameters/{name}"] = tensor.detach().cpu().numpy()
        for key, value in attributes.items():
            file.attrs[key] = value


def load(path: Path, network: nn.Module) -> nn.Module:
    """Reads parameters and buffers into a network of the same architecture.

    Raises:
        InputError: a file that is unreadable, or holds other tensors than the network has.
    """
    expected = network.state_dict()
    try:
        with h5py.File(path, "r") as file:
            group = file["parameters"]
            if set(group) != set(expected):
                raise InputError(f"{path}: its tensors are not those of the network: {sorted(set(group) ^ set(expected))[:3]}")
            found = {name: torch.from_numpy(group[name][...]) for name in expected}
    except (OSError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no readable checkpoint ({error})") from None
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise InputError(f"{path}: {name} is {tuple(found[name].shape)}, the network's is {tuple(tensor.shape)}")
    network.load_state_dict(found)
    return network

"""Parameters on disk: one HDF5 file a network, a dataset a tensor. Nothing is ever unpickled."""

from pathlib import Path

import h5py
from torch import nn

from ddcnn.files import replacing


def save(path: Path, network: nn.Module, attributes: dict[str, str | int | float | tuple[int, ...]]) -> None:
    """Writes parameters and buffers of a network, and attributes that say which network it is."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for name, tensor in network.state_dict().items():
            file[f"parameters/{name}"] = tensor.detach().cpu().numpy()
        for key, value in attributes.items():
            file.attrs[key] = value

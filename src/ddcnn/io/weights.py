"""Trained weights to start from (``--weights``): a state dict, from safetensors or torch.save. No code in such a file is executed."""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ddcnn.errors import InputError
from ddcnn.io.origin import digest_of_file
from ddcnn.networks.custom import HeadedNetwork
from ddcnn.networks.layers import CONVOLUTION
from ddcnn.networks.resnet import ResNet
from ddcnn.networks.torchvision_models import OTHER_HEADS, entries

HOLDERS = ("state_dict", "model_state_dict", "model")  # keys of a checkpoint under which its state dict is
WRAPPERS = ("module.", "_orig_mod.")  # that DistributedDataParallel and torch.compile put before every name
VARIANCE = ".running_var"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COUNT = ".num_batches_tracked"  # of a batch normalisation, which old state dicts do not have
COLOURS = 3
SAFE = ".safetensors"
WAY_OUT = f"give a state dict, in {SAFE} or as torch.save(network.state_dict(), FILE) writes it"


@dataclass(frozen=True)
class Weights:
    """The state dict that networks start from.

    Attributes:
        sha256: of the file.
        tensors: parameters and buffers by name, on the CPU.
    """

    path: Path
    sha256: str
    tensors: dict[str, torch.Tensor]

    @classmethod
    def read(cls, path: Path) -> "Weights":
        """Raises InputError if the file is missing, or is not a state dict and nothing else."""
        if not path.is_file():
            raise InputError(f"--weights {path}: no such file; {WAY_OUT}")
        try:
            digest = digest_of_file(path)
        except OSError as error:
            raise InputError(f"--weights {path}: {error.strerror}") from None
        content = _content(path)
        for key in HOLDERS:
            if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
                content = content[key]
                break
        if not isinstance(content, Mapping) or not content:
            found = "empty" if isinstance(content, Mapping) else f"a {type(content).__name__}"
            raise InputError(f"--weights {path}: it is no state dict, but {found}; {WAY_OUT}")
        while prefix := next((prefix for prefix in WRAPPERS if all(str(name).startswith(prefix) for name in content)), None):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
        for name, value in content.items():
            if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise InputError(f"--weights {path}: its {name} is no tensor of numbers: save the state dict of a network alone")
        return cls(path, digest, dict(content))

    def check(self, make: Callable[[], nn.Module], name: str) -> None:
        """Raises InputError as ``fill`` would for the network that ``make`` makes."""
        with torch.random.fork_rng(devices=[]):
            self.fill(make(), name)

    @torch.no_grad()
    def fill(self, network: nn.Module, name: str) -> nn.Module:
        """Fills parameters and buffers of a new network, ``--network name``, but for the head, which stays new; returns the network.

        Of grey images, the first convolution gets the sum over the three colours' weights, as grey pixels in all three would; of images
        with another number of channels it stays new.

        Raises:
            InputError: naming the first entry that the network or the file has not, or that has another shape or values that are NaN.
        """
        what, own = f"--weights {self.path}", self._own_names(network, name)
        state, head = network.state_dict(), f"{network.head.removeprefix('backbone.')}." if isinstance(network, HeadedNetwork) else "fc."
        stem = next((f"{path}.weight" for path, layer in network.named_modules() if isinstance(layer, tuple(CONVOLUTION.values()))), "")
        for entry, path in own.items():
            target, values = state[path], self.tensors.get(entry)
            if values is None and entry.endswith(COUNT):
                continue
            if values is None:
                raise InputError(f"{what}: it has no {entry}, which --network {name} has: give the state dict of this network")
            if target.is_floating_point() and values.dtype not in FLOATS:
                raise InputError(f"{what}: its {entry} has values of type {values.dtype}, where {target.dtype} ones belong: convert them")
            if path == stem and values.ndim == target.ndim and values.shape[1] == COLOURS != target.shape[1]:
                if target.shape[1] > 1:
                    continue
                values = values.sum(1, keepdim=True)
            if values.shape != target.shape:
                shapes = f"{tuple(values.shape)}, that of --network {name} {tuple(target.shape)}"
                raise InputError(f"{what}: its {entry} has shape {shapes} here: it must be of the same network, width and input")
            values = values.to(target.dtype)  # in which large ones may be infinite
            if not values.isfinite().all():
                raise InputError(f"{what}: its {entry} has values that are NaN or infinite")
            if entry.endswith(VARIANCE) and (values < 0).any():
                raise InputError(f"{what}: its {entry} has negative variances")
            target.copy_(values)
        if unknown := [entry for entry in self.tensors if entry not in own and not entry.startswith((head, *OTHER_HEADS))]:
            raise InputError(f"{what}: its {unknown[0]} is not in --network {name}: give the state dict of this network")
        return network

    def _own_names(self, network: nn.Module, name: str) -> dict[str, str]:
        """The file's name of each parameter and buffer but the head's -> the name in the network; refuses a network that has no such."""
        if isinstance(network, HeadedNetwork):
            return {entry: f"backbone.{entry}" for entry in network.backbone.state_dict()}
        if name == "resnet18" and isinstance(network, ResNet):  # torchvision's, under other names in the same order
            theirs = [entry for entry in entries(name) if not entry.startswith("fc.")]
            return dict(zip(theirs, (f"convolutions.{entry}" for entry in network.convolutions.state_dict()), strict=True))
        raise InputError(
            f"--weights {self.path}: --network {name} is ddcnn's own, without trained weights anywhere: take one of torchvision, such as "
            "resnet18, or your own; a run of ddcnn begins from another one's networks with --start-from"
        )


def _content(path: Path) -> Any:
    """What is in the file; InputError if it cannot be read, or holds more than tensors, numbers and text."""
    try:
        if path.suffix.lower() == SAFE:
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about files that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes the libraries raise; torch's words advise to execute the file
        reason = (
            f"cannot be read as one of {SAFE} ({error})" if path.suffix.lower() == SAFE else "is no state dict that torch.save has written"
        )
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason = f"holds {found[1]}, and so more than tensors"
        raise InputError(f"--weights {path}: it {reason}; nothing in it was executed: {WAY_OUT}") from None

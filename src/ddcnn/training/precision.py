"""Device and precision of the computation, and the memory format that suits them."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from ddcnn.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


def choose_device(local_rank: int, name: str) -> torch.device:
    """The device of this rank; of several GPUs, the one of its node-local rank modulo the GPUs that it sees.

    Args:
        name: "auto", "cpu" or "cuda".

    Raises:
        InputError: ``cuda`` was requested and this process sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this process sees no CUDA device; take --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


@dataclass(frozen=True)
class DevicePolicy:
    """A device, and a precision: "fp32", "bf16" or "fp16"; parameters and loss are always fp32."""

    device: torch.device
    precision: str

    @classmethod
    def choose(cls, device: torch.device, precision: str) -> "DevicePolicy":
        """The policy of this rank; ``auto`` is bf16 on a GPU that supports it, else fp32.

        Raises:
            InputError: fp16 on a CPU.
        """
        if precision == "auto":
            precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        if precision == "fp16" and device.type != "cuda":
            raise InputError("--precision fp16 needs a GPU; take bf16 or fp32")
        return cls(device, precision)

    def autocast(self) -> AbstractContextManager:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.float16 if self.precision == "fp16" else torch.bfloat16)

    def place(self, network: Network) -> Network:
        """The network on the device, its convolutions in channels_last order."""
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                order = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
                module.to(memory_format=order)  # type: ignore[call-overload]
                if self.device.type == "cpu" and self.precision == "bf16":
                    module.forward = partial(_convolve_safely, module)  # type: ignore[method-assign]
        return network.to(self.device)


def _convolve_safely(module: nn.Conv2d | nn.Conv3d, images: torch.Tensor) -> torch.Tensor:
    """A convolution in bf16, but in fp32 where the images are not larger than the kernel along every axis.

    There, bf16 gradients of the weights may be wrong on CPUs and overwrite other memory (torch 2.13 with oneDNN).
    """
    if all(pixels > kernel for pixels, kernel in zip(images.shape[2:], module.kernel_size, strict=True)):
        return type(module).forward(module, images)  # type: ignore[arg-type]
    with torch.autocast("cpu", enabled=False):
        return type(module).forward(module, images.float())  # type: ignore[arg-type]

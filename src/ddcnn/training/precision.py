"""Precision of the computation on a device, and the memory format that suits them."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from ddcnn.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class DevicePolicy:
    """How a rank computes.

    Attributes:
        precision: "fp32", "bf16" or "fp16"; parameters and loss are always fp32.
        capture: whether the passes of a step are recorded as a CUDA graph.
    """

    device: torch.device
    precision: str
    capture: bool = False

    @classmethod
    def choose(cls, device: torch.device, precision: str, volumes: bool = False, capture: bool = False) -> "DevicePolicy":
        """The policy of this rank; ``auto`` is bf16 on a GPU that computes in it, else fp32.

        Args:
            capture: has a meaning on GPUs alone.

        Raises:
            InputError: fp16 on a CPU.
        """
        on_gpu = device.type == "cuda"
        if precision == "auto":
            precision = "bf16" if on_gpu and computes_in_bf16(device, volumes) else "fp32"
        if precision == "fp16" and not on_gpu:
            raise InputError("--precision fp16 needs a GPU; take bf16 or fp32")
        return cls(device, precision, capture and on_gpu)

    def autocast(self, keeps_casts: bool = True) -> AbstractContextManager:
        if self.precision == "fp32":
            return nullcontext()
        kind = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, kind, cache_enabled=keeps_casts)

    def place(self, network: Network) -> Network:
        """The network on the device, its convolutions in channels_last order."""
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                order = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
                module.to(memory_format=order)  # type: ignore[call-overload]
                if self.device.type == "cpu" and self.precision == "bf16":
                    module.forward = partial(_convolve_safely, module)  # type: ignore[method-assign]
        return network.to(self.device)


def computes_in_bf16(device: torch.device, volumes: bool) -> bool:
    """Whether a GPU does so by itself, and fast: older ones only emulate it, and cuDNN has no convolutions for them."""
    version = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2]))
    slow = volumes and version == (2, 9) and (torch.backends.cudnn.version() or 0) < 91500  # 3-D: pytorch/pytorch#166643
    return torch.cuda.get_device_capability(device) >= (8, 0) and not slow


def _convolve_safely(module: nn.Conv2d | nn.Conv3d, images: torch.Tensor) -> torch.Tensor:
    """A convolution in bf16, but in fp32 where the images are not larger than the kernel along every axis.

    There, bf16 gradients of the weights may be wrong on CPUs and overwrite other memory (torch 2.13 with oneDNN).
    """
    if all(pixels > kernel for pixels, kernel in zip(images.shape[2:], module.kernel_size, strict=True)):
        return type(module).forward(module, images)  # type: ignore[arg-type]
    with torch.autocast("cpu", enabled=False):
        return type(module).forward(module, images.float())  # type: ignore[arg-type]

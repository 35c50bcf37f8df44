"""What a network costs, counted without computing anything: operations, layers."""

from collections.abc import Callable
from typing import Any


def layers(network: Any) -> int:
    """Modules without modules in them."""
    return sum(not any(module.children()) for module in network.modules())


def trained_operations(network: Callable[[Any], Any], sample: tuple[int, ...]) -> float:
    """Multiplications and additions of convolutions and matrix products, forward and backward, of a sample, as PyTorch counts them.

    Args:
        network: on the device "meta".
        sample: shape of its input, without the batch.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    batch = 2  # batch normalisation needs two
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(batch, *sample, device="meta")).sum().backward()
    return counter.get_total_flops() / batch


def multiply_adds(network: Any, sample: tuple[int, ...]) -> float:
    """Multiply-adds to classify a sample; arguments as of ``trained_operations``."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(2, *sample, device="meta"))
    return counter.get_total_flops() / 4

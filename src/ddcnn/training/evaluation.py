"""Evaluation of a network: values of many samples, in batches that take less memory than training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ddcnn.data.batches import Samples
from ddcnn.data.stored import on_host
from ddcnn.parallel.heartbeat import beat
from ddcnn.training.precision import DevicePolicy

EVALUATION_SAMPLES = 512  # of a batch at most
BATCHES = 8  # of a block
EVALUATION_PIXELS = 1 << 18  # of a batch of larger images; one image of 512x512, four of 256x256


def classify(network: nn.Module, samples: Samples, chosen: torch.Tensor, policy: DevicePolicy) -> torch.Tensor:
    """Class probabilities of the samples ``chosen`` (S,): (S, K) float32, on the CPU.

    Raises:
        FloatingPointError: an output is NaN or infinite.
    """
    return evaluate(network, lambda inputs: at_least_single(network(inputs)).softmax(1), samples, chosen, policy)


def evaluation_block(pixels: int, ranks: int) -> int:
    """Samples that so many ranks evaluate before their values are gathered and put away: what is held at once is bounded."""
    return ranks * -(-BATCHES * evaluation_batch(pixels) // ranks)


def evaluation_batch(pixels: int) -> int:
    """Samples of an evaluation batch of images of so many pixels; small for large images, so that it takes less memory than training."""
    return min(EVALUATION_SAMPLES, max(1, EVALUATION_PIXELS // pixels))


@torch.inference_mode()
def evaluate(
    network: nn.Module, function: Callable[[Any], torch.Tensor], samples: Samples, chosen: torch.Tensor, policy: DevicePolicy
) -> torch.Tensor:
    """Values (S, ...) on the CPU of ``function`` of the samples ``chosen`` (S,), with the network in evaluation mode.

    Raises:
        FloatingPointError: a value is NaN or infinite.
    """
    network.eval()
    parts = []
    batches = on_host(chosen, policy.device).split(evaluation_batch(samples.pixels))
    samples.ahead(batches)
    for index in batches:
        with policy.autocast():
            parts.append(function(samples.batch(index)[0]))
        beat("evaluation")
    values = torch.cat(parts).cpu()
    if not values.isfinite().all():
        raise FloatingPointError("a network's output is NaN or infinite: try a smaller learning rate")
    return values


def at_least_single(values: torch.Tensor) -> torch.Tensor:
    """Half precision, from an autocast region, becomes float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

"""Batch normalisation of a batch that lies in chunks, here and on other ranks: mean and variance are those of all of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Total = Callable[[torch.Tensor], torch.Tensor]  # numbers (n, G) of n chunks of a batch -> their sum over all chunks, for each of them


def normalised(
    layer: Any, chunks: Sequence[torch.Tensor], copies: Sequence[Mapping[str, torch.Tensor]], real: Sequence[int], total: Total
) -> list[torch.Tensor]:
    """What a layer of batch normalisation makes of chunks (b, C, *size) while it trains; it keeps its running statistics.

    Args:
        copies: of its parameters, for each chunk.
        real: samples of a chunk; what is behind them fills up.
    """
    weights, biases = ([copy[name] for copy in copies] for name in ("weight", "bias"))
    *outputs, count, mean, variance = _Normalise.apply(layer.eps, real, total, *chunks, *weights, *biases)  # type: ignore[no-untyped-call]
    with torch.no_grad():  # the statistics of all chunks are the same
        layer.running_mean.lerp_(mean[0], layer.momentum)
        layer.running_var.lerp_(variance[0] * (count[0] / (count[0] - 1).clamp_min(1)), layer.momentum)
        if layer.num_batches_tracked is not None:  # not while activations are computed again
            layer.num_batches_tracked += 1
    return outputs


class _Normalise(torch.autograd.Function):
    """y = w x̂ + b with x̂ = (x - mean) / √(variance + ε).

    Forward: sums of x and x² over all chunks, from the mean and the variance of each. Adjoint: sums of ȳ and ȳ x̂, likewise;
    x̄ = w / √(variance + ε) (ȳ - Σȳ / n - x̂ Σȳx̂ / n).
    The passes over the pixels are PyTorch's own, of a normalisation whose statistics are given.
    """

    @staticmethod
    def forward(ctx: Any, eps: float, real: Sequence[int], total: Total, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        chunks, weights, biases = (tensors[k * len(real) : (k + 1) * len(real)] for k in range(3))
        sums = []
        for one, samples, weight in zip(chunks, real, weights, strict=True):
            mean, variance = (values.double() for values in _statistics(one[:samples], weight))
            count = mean.new_full((1,), one[:samples, 0].numel())
            sums.append(torch.cat([count * mean, count * (variance + mean.square()), count]))
        statistics = total(torch.stack(sums))  # in double precision, in which a variance is the difference of such sums
        count, (mean, square) = statistics[:, -1:], (statistics[:, :-1] / statistics[:, -1:]).chunk(2, 1)
        count, mean, variance = (values.to(weights[0].dtype) for values in (count, mean, (square - mean.square()).clamp_min(0)))
        outputs = [
            torch.native_batch_norm(one, weight, bias, its_mean, its_variance, False, 0.0, eps)[0]
            for one, weight, bias, its_mean, its_variance in zip(chunks, weights, biases, mean, variance, strict=True)
        ]
        ctx.eps, ctx.real, ctx.total = eps, real, total
        ctx.save_for_backward(*chunks, *weights, count, mean, variance)
        ctx.mark_non_differentiable(count, mean, variance)
        return *outputs, count, mean, variance

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        number, eps = len(ctx.real), ctx.eps
        *tensors, count, mean, variance = ctx.saved_tensors
        chunks, weights = tensors[:number], tensors[number:]
        parts = [_sums_of_products(cotangents[k], x, weights[k], mean[k], (variance[k] + eps).rsqrt()) for k, x in enumerate(chunks)]
        sums = ctx.total(torch.stack([torch.cat(part) for part in parts]))  # of ȳ x̂, and of ȳ
        of_chunks = []
        for k, x in enumerate(chunks):
            deviation = (variance[k] + eps).rsqrt()
            scale = weights[k] * deviation
            slope, shift = (-scale / count[k] * sums[k].unflatten(0, (2, -1))).unbind(0)
            slope = slope * deviation
            per_channel = (-1, *[1] * (x.ndim - 2))
            along, constant, by = (one.view(per_channel) for one in (slope, shift - slope * mean[k], scale))
            found = torch.addcmul(constant, x.to(scale.dtype), along).addcmul_(cotangents[k].to(scale.dtype), by).to(x.dtype)
            found[ctx.real[k] :] = 0
            of_chunks.append(found)
        of_weights, of_biases = zip(*parts, strict=True)
        return None, None, None, *of_chunks, *of_weights, *of_biases


def _statistics(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over all but the channels, (C,) each; zeros of nothing."""
    if not x.numel():
        return torch.zeros_like(weight), torch.zeros_like(weight)
    running = torch.zeros_like(weight), torch.ones_like(weight)  # their type is that of the statistics; of momentum 0 they stay
    return torch.ops.aten.batch_norm_update_stats(x, *running, 0.0)


def _sums_of_products(
    y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Σ y (x - mean) · deviation and Σ y over all but the channels, (C,) each: PyTorch's pass for the gradients of weight and bias."""
    if not x.numel():
        return torch.zeros_like(mean), torch.zeros_like(mean)
    given = (weight, mean, deviation, mean, deviation, True, 0.0)  # running statistics are not read
    _, products, plain = torch.ops.aten.native_batch_norm_backward(y, x, *given, [False, True, True])
    return products, plain

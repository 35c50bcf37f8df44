"""Decomposition in width: thin networks, put side by side, are the undecomposed one with zeros between them.

The global CNN is split in width at constant depth into N thin networks, which are trained on their own; composed, they are a warm
start for the global CNN (Gu, Zhang, Liu, Cai, ETNA 56, 2022; compared with the decomposition of the image in arXiv 2410.23359).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from ddcnn.errors import InputError
from ddcnn.parallel.world import World


@torch.no_grad()
def compose(world: World, thin: Sequence[nn.Module], wide: nn.Module) -> None:
    """All ranks: the thin networks of all ranks become the parameters of ``wide``, whose logits are then the mean of theirs.

    Args:
        thin: the rank's own n of the N thin networks.
        wide: the same network, N times as wide in every hidden layer.

    Raises:
        ValueError: a layer of it is not N thin ones side by side.
    """
    states = [network.state_dict() for network in thin]
    for name, values in wide.state_dict().items():
        part = torch.stack([state[name].cpu() for state in states])
        every = torch.from_numpy(world.all_gather(part.numpy())).flatten(0, 1)  # (N, *thin)
        values.copy_(side_by_side(every, values.shape))


def side_by_side(thin: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A parameter or buffer of the composed network out of those of the thin ones: (N, *thin) -> ``shape``.

    Between hidden layers it is block-diagonal; the cross terms are zero and learn later. The first layer sees what all of them see,
    and the last one takes the mean of what they say.

    Raises:
        ValueError: the shapes do not tell how.
    """
    n, own = len(thin), thin.shape[1:]
    grown = [wide != one for wide, one in zip(shape, own, strict=True)]
    if any(wide != n * one for wide, one, more in zip(shape, own, grown, strict=True) if more) or any(grown[2:]):
        raise ValueError(f"a layer of {tuple(shape)} is not {n} layers of {tuple(own)} side by side")
    if not thin.is_floating_point():  # the batch normalisation's count of batches
        return thin[0]
    if not any(grown):  # the last layer's bias
        return thin.mean(0)
    if grown[:2] == [True, True]:
        wide = thin.new_zeros(shape)
        for k, block in enumerate(thin):
            wide[k * own[0] : (k + 1) * own[0], k * own[1] : (k + 1) * own[1]] = block
        return wide
    return torch.cat(list(thin), 0) if grown[0] else torch.cat(list(thin), 1) / n


def check_composes(alone: World, name: str, make_thin: Callable[[], nn.Module], make_wide: Callable[[], nn.Module], n: int, images) -> None:
    """Composes untrained networks and compares what they say of ``images`` (B, C, *spatial).

    Raises:
        InputError: the network is not one whose thin copies, side by side, are the wide one.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        thin, wide = [make_thin().double().eval() for _ in range(n)], make_wide().double().eval()
        try:
            compose(alone, thin, wide)
            found, expected = wide(images.double()), torch.stack([network(images.double()) for network in thin]).mean(0)
            agree = bool(np.allclose(found, expected, rtol=1e-6, atol=1e-9))
        except (ValueError, KeyError, RuntimeError) as error:
            raise InputError(_refusal(name, n, str(error))) from None
    if not agree:
        raise InputError(_refusal(name, n, "composed, they do not say the mean of what they say alone"))


def _refusal(name: str, n: int, reason: str) -> str:
    return (
        f"--decomposition width: {n} thin networks side by side are not --network {name} ({reason}): for transfer, take a built-in "
        "network and a --width that is a multiple of 4 N, without --features and --width-divisor; or leave transfer out of --methods"
    )

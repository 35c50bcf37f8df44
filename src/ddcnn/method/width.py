"""Decomposition in width: N thin networks side by side are the global CNN, with zeros between them.

Composed, the trained thin networks are the start of the global CNN's training (Gu, Zhang, Liu, Cai, ETNA 56, 2022; compared with the
decomposition of the image in arXiv 2410.23359). What else differs from a decomposition of the image is in ``ddcnn.config.splitting``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.errors import InputError
from ddcnn.method.factory import Networks
from ddcnn.networks import registry
from ddcnn.networks.shape import Shape
from ddcnn.parallel.world import World


@torch.no_grad()
def compose(world: World, thin: Sequence[nn.Module], wide: nn.Module) -> None:
    """Fills the parameters of ``wide`` from the thin networks of all ranks; its logits are then the mean of theirs. All ranks together.

    Args:
        thin: this rank's n of the N thin networks.
        wide: the same network, N times as wide in every hidden layer.

    Raises:
        ValueError: a layer of ``wide`` is not N thin layers side by side.
    """
    states = [network.state_dict() for network in thin]
    for name, values in wide.state_dict().items():
        part = torch.stack([state[name].cpu() for state in states])
        parts = torch.from_numpy(world.all_gather(part.numpy())).flatten(0, 1)  # (N, *thin)
        values.copy_(side_by_side(parts, values.shape))


def side_by_side(thin: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A parameter or buffer of the composed network from those of the thin ones: (N, *thin) -> ``shape``.

    Between hidden layers it is block-diagonal; the cross terms start at zero and learn later. The first layer is a concatenation, the
    last one takes the mean.

    Raises:
        ValueError: the shapes do not fit.
    """
    n, small = len(thin), thin.shape[1:]
    grown = [wide != one for wide, one in zip(shape, small, strict=True)]
    if any(wide != n * one for wide, one, more in zip(shape, small, grown, strict=True) if more) or any(grown[2:]):
        raise ValueError(f"a layer of {tuple(shape)} is not {n} layers of {tuple(small)} side by side")
    if not thin.is_floating_point():  # the batch normalisation's count of batches
        return thin[0]
    if not any(grown):  # the last layer's bias
        return thin.mean(0)
    if grown[:2] == [True, True]:
        wide = thin.new_zeros(shape)
        for k, block in enumerate(thin):
            wide[k * small[0] : (k + 1) * small[0], k * small[1] : (k + 1) * small[1]] = block
        return wide
    return torch.cat(list(thin), 0) if grown[0] else torch.cat(list(thin), 1) / n


def check_composition(alone: World, networks: Networks) -> None:
    """Refuses a network that is not N thin networks side by side: composes untrained ones and compares their logits.

    Raises:
        InputError: naming the network and the reason.
    """
    settings, n = networks.settings, networks.subdomains
    *spatial, channels = networks.store.shape
    if settings.network in registry.NETWORKS:  # whose structure does not depend on the size
        spatial = [min(side, 32) for side in spatial]
    shape = Shape(tuple(spatial), channels, networks.classes)
    images = torch.randn(1, channels, *spatial, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        thin = [registry.make(settings.local_design(n), shape).double().eval() for _ in range(n)]
        wide = registry.make(settings.global_design(Method.TRANSFER), shape).double().eval()
        reason = "the composed logits are not the mean of the thin networks'"
        try:
            compose(alone, thin, wide)
            if np.allclose(wide(images), torch.stack([network(images) for network in thin]).mean(0), rtol=1e-6, atol=1e-9):
                return
        except (ValueError, KeyError, RuntimeError) as error:
            reason = str(error)
    raise InputError(
        f"--decomposition width: {n} thin networks side by side are not --network {settings.network} ({reason}): for transfer, take a "
        "built-in network and a --width that is a multiple of 4 N, without --features and --width-divisor; or leave transfer out"
    )

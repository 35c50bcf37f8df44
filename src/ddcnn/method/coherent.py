"""The local CNNs and the DNN as one coherent network over all ranks (arXiv 2408.14442, section 3), from scratch or by transfer.

Every rank runs its own local CNNs forward and backward; per step only the interface values travel, once. Where there are more ranks
than subdomains, each rank of a group does so for its share of the batch, with the peers that have the same share, and the group's
ranks take the mean of their gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ddcnn.data.batches import Images
from ddcnn.method.interface import Collect, interface_values
from ddcnn.parallel.seeding import Seeds
from ddcnn.parallel.tensors import broadcast_
from ddcnn.parallel.world import World
from ddcnn.training.data_parallel import train_data_parallel
from ddcnn.training.loop import Epoch, Keeper, NothingKept, Recipe
from ddcnn.training.precision import DevicePolicy


class CoherentNetwork(nn.Module):
    """A rank's view of the coherent network: its own n of the N local CNNs, and the DNN, which every rank holds.

    Args:
        world: the ranks that together have every local CNN once, in the order of the subdomains.
        interface: "probabilities", "logits" or "features": what a local CNN hands to the DNN.
        local_cnns: of this rank, as many on every rank.
        dnn: (B, N·C) -> logits (B, K), with the same parameters on all ranks.

    The DNN's gradient is the same on all ranks, so its copies stay the same; ``sync_dnn`` sees to it on unlike devices.
    """

    def __init__(self, world: World, interface: str, local_cnns: Sequence[nn.Module], dnn: nn.Module):
        super().__init__()
        self.world, self.interface = world, interface
        self.local_cnns, self.dnn = nn.ModuleList(local_cnns), dnn
        self.first = world.rank * len(local_cnns)  # subdomain

    def forward(self, subimages: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of the rank's own subdomains, (B, channels, *subimage) each -> logits (B, K), on all ranks."""
        values = self.interface_values(subimages)
        if self.world.size > 1:
            values = Collect.apply(values, self.world)  # (N, B, C)
        with torch.autocast(values.device.type, enabled=False):  # too small to gain from half precision
            return self.dnn(values.movedim(0, 1).flatten(1))

    def interface_values(self, subimages: Sequence[torch.Tensor]) -> torch.Tensor:
        """Interface values (n, B, C) of the rank's own subdomains."""
        draw = int(torch.randint(1 << 62, ())) if self.training else 0  # the same on all ranks
        parts = []
        for k, (network, images) in enumerate(zip(self.local_cnns, subimages, strict=True)):
            with torch.random.fork_rng([images.device] if images.is_cuda else [], enabled=self.training):
                if self.training:
                    torch.manual_seed(draw + self.first + k)  # dropout is that of the subdomain, whichever rank has it
                parts.append(interface_values(self.interface, network, images))
        return torch.stack(parts)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The local CNNs of this rank's subdomains, and the DNN."""
        return {f"local-{self.first + k:04}": network for k, network in enumerate(self.local_cnns)} | {"dnn": self.dnn}

    def freeze(self, frozen: bool) -> None:
        """Frozen, only the DNN learns: the local CNNs' parameters and running statistics stay as they are."""
        self.local_cnns.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "CoherentNetwork":
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.local_cnns.parameters()):
            self.local_cnns.eval()
        return self

    def sync_dnn(self) -> None:
        """All ranks: copies of the DNN that other rounding has driven apart become rank 0's."""
        if not self.world.all_equal(nn.utils.parameters_to_vector(self.dnn.parameters()).detach().cpu().numpy().tobytes()):
            broadcast_(self.world, self.dnn.parameters())


def train_coherent(
    group: World,
    network: CoherentNetwork,
    training: Images,
    chosen: np.ndarray,
    recipe: Recipe,
    policy: DevicePolicy,
    seeds: Seeds,
    after_epoch: Callable[[Epoch], None] = lambda epoch: None,
    keeper: Keeper = NothingKept(),
    frozen: tuple[Recipe, Keeper] | None = None,
) -> None:
    """Trains the coherent network in place, all ranks together (arXiv 2408.14442, section 3); by transfer if its parts are trained ones.

    Args:
        group: the ranks that have the same subdomains as this one, each for its share of every batch.
        training: the subimages of the rank's subdomains; every rank draws the same order and the same augmentation.
        chosen: (S,) the samples that it learns from.
        frozen: recipe of epochs before, in which only the DNN learns, and what keeps them.

    Raises:
        FloatingPointError: the loss is no longer a number.
        Stopped: the keeper was asked to stop.
    """
    before = frozen[0].epochs if frozen else 0

    def after(epoch: Epoch) -> None:
        network.sync_dnn()
        after_epoch(epoch)

    if frozen:
        network.freeze(True)
        own = Seeds(seeds.seed, f"{seeds.role} frozen")
        train_data_parallel(group, network, training, chosen, frozen[0], policy, own, after, frozen[1])
        network.freeze(False)
    train_data_parallel(
        group, network, training, chosen, recipe, policy, seeds,
        lambda epoch: after(replace(epoch, epoch=before + epoch.epoch)), keeper,
        has_unused=network.interface == "features",  # of the local CNNs' last layers
    )  # fmt: skip

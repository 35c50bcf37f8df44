"""The local CNNs and the DNN as one coherent network over all ranks (arXiv 2408.14442, section 3), from scratch or by transfer.

Each rank runs its own local CNNs forward and backward; in each step only the interface values are communicated, once. With more ranks
than subdomains, each rank of a group does so for its share of the batch, and the group averages its gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ddcnn.data.batches import Images
from ddcnn.method.interface import Collect, interface_values
from ddcnn.parallel.world import World
from ddcnn.training.data_parallel import broadcast_, train_data_parallel
from ddcnn.training.loop import Epoch, Trainer, TrainState, WrappedCallback


class CoherentNetwork(nn.Module):
    """A rank's view of the coherent network: its own n of the N local CNNs, and the DNN, which every rank holds.

    Args:
        world: the ranks that together have every local CNN once, in the order of the subdomains.
        interface: "probabilities", "logits" or "features": what the DNN gets from a local CNN.
        local_cnns: those of this rank, equally many on every rank.
        dnn: (B, N·C) -> logits (B, K), with the same parameters on all ranks.

    The gradient of the DNN is the same on all ranks, so its copies stay equal; ``sync_dnn`` makes sure of it on unlike devices.
    """

    def __init__(self, world: World, interface: str, local_cnns: Sequence[nn.Module], dnn: nn.Module):
        super().__init__()
        self.world, self.interface = world, interface
        self.local_cnns, self.dnn = nn.ModuleList(local_cnns), dnn
        self.first = world.rank * len(local_cnns)  # subdomain

    def forward(self, subimages: Sequence[torch.Tensor]) -> torch.Tensor:
        """Subimages of the rank's own subdomains, (B, channels, *subimage) each -> logits (B, K), on all ranks."""
        values = self.interface_values(subimages)
        if self.world.size > 1:
            values = Collect.apply(values, self.world)  # (N, B, C)
        with torch.autocast(values.device.type, enabled=False):  # the DNN is too small to gain from half precision
            return self.dnn(values.movedim(0, 1).flatten(1))

    def interface_values(self, subimages: Sequence[torch.Tensor]) -> torch.Tensor:
        """Interface values (n, B, C) of the rank's own subdomains."""
        seed = int(torch.randint(1 << 62, ())) if self.training else 0  # the same on all ranks
        parts = []
        for k, (network, images) in enumerate(zip(self.local_cnns, subimages, strict=True)):
            with torch.random.fork_rng([images.device] if images.is_cuda else [], enabled=self.training):
                if self.training:
                    torch.manual_seed(seed + self.first + k)  # dropout depends on the subdomain, not on the rank
                parts.append(interface_values(self.interface, network, images))
        return torch.stack(parts)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The local CNNs of this rank's subdomains, and the DNN, by the names of their checkpoints."""
        return {f"local-{self.first + k:04}": network for k, network in enumerate(self.local_cnns)} | {"dnn": self.dnn}

    def train(self, mode: bool = True) -> "CoherentNetwork":
        """Local CNNs whose parameters are frozen keep their running statistics, too."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.local_cnns.parameters()):
            self.local_cnns.eval()
        return self

    def sync_dnn(self) -> None:
        """All ranks: if rounding has driven the copies of the DNN apart, they become rank 0's."""
        if not self.world.all_equal(nn.utils.parameters_to_vector(self.dnn.parameters()).detach().cpu().numpy().tobytes()):
            broadcast_(self.world, self.dnn.parameters())


@dataclass(frozen=True)
class _Synced(WrappedCallback):
    """After each epoch, keeps the copies of the DNN equal; counts epochs from ``before`` + 1."""

    network: CoherentNetwork
    before: int

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        self.network.sync_dnn()
        if state.average:
            with state.evaluated():
                self.network.sync_dnn()
        self.inner.after_epoch(state, replace(epoch, epoch=self.before + epoch.epoch))


def train_coherent(
    group: World, trainer: Trainer, network: CoherentNetwork, images: Images, chosen: np.ndarray, frozen: Trainer | None = None
) -> None:
    """Trains the coherent network in place, all ranks together (arXiv 2408.14442, section 3); ``transfer`` if its parts are trained.

    Args:
        group: the ranks that have the same subdomains as this one, each for its share of every batch.
        images: the subimages of the rank's subdomains; every rank draws the same order and the same augmentation.
        chosen: (S,) int64, the samples to train on.
        frozen: trains the DNN alone, before.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
        Stopped: the callback was asked to stop.
    """

    def synced(trainer: Trainer, before: int) -> Trainer:
        return replace(trainer, callback=_Synced(trainer.callback, network, before))

    if frozen:
        network.local_cnns.requires_grad_(False)
        train_data_parallel(group, synced(frozen, 0), network, images, chosen)
        network.local_cnns.requires_grad_(True)
    before = frozen.recipe.epochs if frozen else 0
    has_unused = network.interface == "features"  # the last layers of the local CNNs
    train_data_parallel(group, synced(trainer, before), network, images, chosen, has_unused)

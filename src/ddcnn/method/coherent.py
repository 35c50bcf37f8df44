"""The local CNNs and the DNN as one coherent network over all ranks (arXiv 2408.14442, section 3), from scratch or by transfer.

Each rank runs its own local CNNs forward and backward; in each step only the interface values are communicated, once. With more ranks
than subdomains, each rank of a group does so for its share of the batch, and the group averages its gradients.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import distributed, nn

from ddcnn.data.batches import Images
from ddcnn.method.coarse_solve import CoarseSolve
from ddcnn.method.interface import interface_values, local_logits
from ddcnn.method.joint import Together, make_equal
from ddcnn.method.shared import SharedParameters
from ddcnn.networks.layers import draws
from ddcnn.parallel.devices import each_has_its_own
from ddcnn.parallel.process_group import process_group
from ddcnn.parallel.world import World
from ddcnn.training.data_parallel import train_data_parallel
from ddcnn.training.evaluation import at_least_single
from ddcnn.training.loop import Trainer


class CoherentNetwork(nn.Module):
    """A rank's view of the coherent network: its own n of the N local CNNs, and the DNN, which every rank holds.

    Args:
        world: the ranks that together have every local CNN once, in the order of the subdomains.
        interface: "probabilities", "logits", "features" or "maps": what the DNN gets from a local CNN.
        local_cnns: those of this rank, equally many on every rank.
        solve: of the DNN, which has the same parameters on all ranks.
        shared: parameters that the local CNNs have in common, if they have some.

    The gradient of the DNN is the same on all ranks, so its copies stay equal; ``sync`` makes sure of it on unlike devices.
    """

    communicates = True  # in its forward pass
    with_local_logits = False  # whether it also returns those of its own local CNNs while it trains

    def __init__(
        self, world: World, interface: str, local_cnns: Sequence[nn.Module], solve: CoarseSolve, shared: SharedParameters | None = None
    ):  # fmt: skip
        super().__init__()
        self.world, self.interface, self.solve, self.shared = world, interface, solve, shared
        self.local_cnns, self.dnn = nn.ModuleList(local_cnns), solve.dnn
        self.first = world.rank * len(local_cnns)  # subdomain
        self.draws = any(map(draws, local_cnns))

    def forward(self, subimages: Sequence[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Subimages of the rank's own subdomains, (B, channels, *subimage) each -> logits (B, K), on all ranks.

        While it trains ``with_local_logits``, also those of the rank's own local CNNs, (n, B, K), over N.
        """
        own = self.interface_values(subimages)
        with nullcontext() if self.dnn.half_precision else torch.autocast(own.device.type, enabled=False):
            logits = self.solve.logits(own if self.dnn.half_precision else at_least_single(own))
        if not (self.training and self.with_local_logits):
            return logits
        pairs = zip(self.local_cnns, own, strict=True)
        return logits, torch.stack([local_logits(self.interface, network, values) for network, values in pairs])

    def interface_values(self, subimages: Sequence[torch.Tensor]) -> torch.Tensor:
        """Interface values (n, B, C) of the rank's own subdomains."""
        seed = int(torch.randint(1 << 62, ())) if self.training else 0  # the same on all ranks
        with_logits = self.with_local_logits or self.dnn.sees_logits or not self.training
        parts = []
        for k, (network, images) in enumerate(zip(self.local_cnns, subimages, strict=True)):
            with torch.random.fork_rng([images.device] if images.is_cuda else [], enabled=self.training and self.draws):
                if self.training and self.draws:
                    torch.manual_seed(seed + self.first + k)  # dropout depends on the subdomain, not on the rank
                parts.append(interface_values(self.interface, network, images, with_logits))
        return torch.stack(parts)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The local CNNs of this rank's subdomains, and the DNN, by the names of their checkpoints."""
        return {f"local-{self.first + k:04}": network for k, network in enumerate(self.local_cnns)} | {"dnn": self.dnn}

    @property
    def clipped(self) -> list[list[nn.Parameter]]:
        """Parameters whose gradient is limited by its own norm: of each part, and of what local CNNs share apart from the rest."""
        shared = [list(copy) for copy in self.shared.parameters] if self.shared else []
        common = {id(one) for copy in shared for one in copy}
        return [*shared, *([one for one in part.parameters() if id(one) not in common] for part in self.parts.values())]

    def train(self, mode: bool = True) -> "CoherentNetwork":
        """Local CNNs whose parameters are frozen keep their running statistics, too."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.local_cnns.parameters()):
            self.local_cnns.eval()
        return self

    def finish_gradient(self) -> None:
        """All ranks, after a backward pass: the DNN's gradient, and those of shared parameters, become their sums."""
        self.solve.finish_gradient()
        if self.shared:
            self.shared.sum_gradients()

    def sync(self) -> None:
        """All ranks, after an epoch: shared running statistics become their mean; copies of the DNN that rounding drove apart rank 0's."""
        if self.shared:
            self.shared.average_running()
        make_equal(self.world, self.dnn.state_dict().values())


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
        return replace(trainer, callback=Together(trainer.callback, network, before))

    network.with_local_logits = trainer.recipe.auxiliary > 0
    with _collecting(network, group, trainer.policy.device):
        if frozen:
            network.local_cnns.requires_grad_(False)
            train_data_parallel(group, synced(frozen, 0), network, images, chosen)
            network.local_cnns.requires_grad_(True)
        before = frozen.recipe.epochs if frozen else 0
        has_unused = network.interface in ("features", "maps") and not network.with_local_logits  # the last layers of the local CNNs
        train_data_parallel(group, synced(trainer, before), network, images, chosen, has_unused)


@contextmanager
def _collecting(network: CoherentNetwork, group: World, device: torch.device) -> Iterator[None]:
    """In here interface values go from GPU to GPU, if each rank has one and no group of ranks shares a subdomain."""
    if device.type == "cpu" or group.size > 1 or network.world.size == 1 or not each_has_its_own(network.world, device):
        yield
        return
    with process_group(network.world, device):
        network.solve.on_device = distributed.get_backend() == "nccl"
        try:
            yield
        finally:
            network.solve.on_device = False

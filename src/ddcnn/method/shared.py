"""One set of parameters for the local CNNs of all subdomains, so that what one learns of a pixel's surroundings serves all.

Every subdomain keeps a copy. The operator that spreads the parameters over the copies has the sum over the subdomains as its adjoint:
all copies get the sum of their gradients, take the same step, and stay equal bit for bit.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from ddcnn.errors import InputError
from ddcnn.networks.registry import NETWORKS, Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.world import World


def spread(parameters: torch.Tensor, subdomains: int) -> torch.Tensor:
    """A parameter vector (G,) -> the copies of all subdomains, (N, G)."""
    return parameters.expand(subdomains, -1)


def sum_over_subdomains(copies: torch.Tensor, world: World | None) -> torch.Tensor:
    """The adjoint of ``spread``: copies (n, G) of this rank's subdomains -> their sum over all N, (G,), on all ranks.

    Without a world, the rank has all copies.

    The terms are added in the order of the subdomains, so that the sum is the same, bit for bit, on any number of ranks: each rank sums
    a slice, which it gets from all others, and sends it to them. With a subdomain a rank that is as many bytes as of a ring all-reduce.
    Few numbers are gathered by all ranks, each of which sums them: one message less to wait for.
    """
    if world is None or world.size == 1:
        return _summed(copies)
    if are_few(copies[0].nbytes // 4, world.size * len(copies)):
        return _summed(torch.from_numpy(world.all_gather(copies.cpu().numpy())).flatten(0, 1)).to(copies.device)
    length = copies.shape[1]
    each = -(-length // world.size)
    slices = nn.functional.pad(copies, (0, each * world.size - length)).unflatten(1, (world.size, each)).transpose(0, 1)
    arrived = torch.from_numpy(world.all_to_all(slices.contiguous().cpu().numpy()))  # (P, n, G/P)
    whole = torch.from_numpy(world.all_gather(_summed(arrived.flatten(0, 1)).numpy()))
    return whole.flatten()[:length].to(copies.device)


def are_few(numbers: int, subdomains: int) -> bool:
    """Whether N copies of so many float32 numbers are summed by every rank."""
    return numbers * subdomains <= 1 << 14


def total(copies: torch.Tensor, world: World | None) -> torch.Tensor:
    """T: the sum over the subdomains, spread over them again; copies (n, G) of this rank's -> of each the sum over all N.

    T is symmetric, so it is its own adjoint.
    """
    return spread(sum_over_subdomains(copies, world), len(copies))


def bytes_of_sum(numbers: int, subdomains: int, ranks: int) -> int:
    """Bytes that all ranks together send for a sum of N copies of so many float32 numbers."""
    if are_few(numbers, subdomains):
        return 4 * numbers * subdomains * (ranks - 1)
    each = -(-numbers // ranks)
    return 4 * each * (subdomains + ranks) * (ranks - 1)


def _summed(terms: torch.Tensor) -> torch.Tensor:
    total = terms[0].clone()
    for term in terms[1:]:
        total += term
    return total


@torch.no_grad()
def sum_gradients(copies: Sequence[Sequence[nn.Parameter]], world: World) -> None:
    """All ranks: the gradient of each of this rank's n copies of the same parameters becomes the sum over all copies of all ranks."""
    gradients = [[one.grad for one in copy if one.grad is not None] for copy in copies]
    if gradients[0]:
        found = sum_over_subdomains(_stacked(gradients), world)
        for copy in gradients:
            _fill(copy, found)


class SharedParameters:
    """Those that the local CNNs of all subdomains have in common.

    Args:
        world: the ranks that together have every local CNN once, in the order of the subdomains.
        local_cnns: of this rank's subdomains, with equal parameters.
        share: "all", or "early", those of the first stage.
    """

    def __init__(self, world: World, local_cnns: Sequence[nn.Module], share: str):
        self.world, self.subdomains = world, world.size * len(local_cnns)
        names = shared_names(local_cnns[0], share)
        self.parameters: list[list[nn.Parameter]] = [[network.get_parameter(name) for name in names] for network in local_cnns]
        running = [name for name, buffer in local_cnns[0].named_buffers() if buffer.is_floating_point() and share == "all"]
        self.running = [[network.get_buffer(name) for name in running] for network in local_cnns]

    def sum_gradients(self) -> None:
        """Every copy gets the gradient of the one set of parameters."""
        sum_gradients(self.parameters, self.world)

    def begin(self) -> None:
        """All copies get the mean of what the local CNNs have learnt on their own."""
        self._average(self.parameters)
        self.average_running()

    def average_running(self) -> None:
        """All copies get the mean of the running statistics of batch normalisation."""
        self._average(self.running)

    @torch.no_grad()
    def _average(self, copies: Sequence[Sequence[torch.Tensor]]) -> None:
        if copies[0]:
            mean = sum_over_subdomains(_stacked(copies), self.world) / self.subdomains
            for copy in copies:
                _fill(copy, mean)


def check_shared(share: str, design: Design, shapes: Sequence[Shape]) -> None:
    """Raises InputError if local CNNs of subimages of these shapes cannot share parameters, with the way out."""
    found: dict[str, Shape] = {}
    for shape in dict.fromkeys(shapes):
        with torch.random.fork_rng(devices=[]), torch.device("meta" if design.name in NETWORKS else "cpu"):
            network = make(design, shape)
        sizes = {name: tuple(network.get_parameter(name).shape) for name in shared_names(network, share)}
        found.setdefault(str(sizes), shape)
    if len(found) > 1:
        first, second, *_ = found.values()
        pooled = "--head pooled, " if design.name in NETWORKS else ""
        raise InputError(
            f"--share {share}: local CNNs of {first.size} and {second.size} pixels have parameters of different sizes: take {pooled}a "
            "--grid and an --overlap that make subimages of one size, or --share none"
        )


def shared_names(local_cnn: nn.Module, share: str) -> list[str]:
    """Names of the parameters that local CNNs share.

    Raises:
        InputError: it is not known which are early.
    """
    names = [name for name, _ in local_cnn.named_parameters()]
    if share == "all":
        return names
    early = getattr(local_cnn, "early", None)
    if early is None:
        raise InputError("--share early is of built-in networks, whose first stage is known: take --share all or none")
    return [name for name in names if name.startswith(early)]


def _stacked(copies: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    return torch.stack([torch.cat([tensor.flatten() for tensor in copy]) for copy in copies])


def _fill(tensors: Iterable[torch.Tensor], vector: torch.Tensor) -> None:
    begin = 0
    for tensor in tensors:
        tensor.copy_(vector[begin : begin + tensor.numel()].view(tensor.shape))
        begin += tensor.numel()

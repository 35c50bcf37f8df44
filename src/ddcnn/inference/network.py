"""The network of a finished run as one: restriction, local CNNs, interface and decision in a single ``torch.nn.Module``."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.errors import InputError
from ddcnn.inference.trained_run import TrainedOn, TrainedRun
from ddcnn.io import parameters
from ddcnn.method.aggregate import fill_missing, vote_scores
from ddcnn.method.factory import Networks
from ddcnn.method.interface import interface_values
from ddcnn.method.local import local_probabilities
from ddcnn.networks.dense import DenseNetwork
from ddcnn.training.loop import build
from ddcnn.training.precision import DevicePolicy

ON_CPU = DevicePolicy(torch.device("cpu"), "fp32")

Restriction = Callable[[torch.Tensor, int], torch.Tensor]  # R_i: images (B, C, *spatial), i -> (B, C, *subimage)


class Assembled(nn.Module):
    """f(x): (B, C, *spatial) whole images in the source's own range of values -> logits (B, K) float32.

    Their softmax are the method's probabilities: of ``average``, logits are the logarithm of the mean p_i. Of ``vote``, which has no
    probabilities, they are scores the largest of which is the decision. The undecomposed CNN is that of a single subdomain.

    Attributes:
        method, class_names: of the run.
        subdomains: numbers of those that ``local_cnns`` are of, in this order.
        present: numbers of all that ``combine`` gets values of: ``subdomains``, unless ranks have parts of the network.
    """

    mean: torch.Tensor  # (C, 1, ..., 1)
    scale: torch.Tensor

    def __init__(
        self, images: TrainedOn, restrict: Restriction, method: Method, interface: str, local_cnns: Sequence[nn.Module],
        dnn: DenseNetwork | None, subdomains: Sequence[int], present: Sequence[int],
    ):  # fmt: skip
        super().__init__()
        self.method, self.interface, self.class_names = method, interface, images.class_names
        self.shape = (images.shape[-1], *images.shape[:-1])
        self.restrict, self.subdomains, self.present = restrict, tuple(subdomains), tuple(present)
        self.local_cnns, self.dnn = nn.ModuleList(local_cnns), dnn
        per_channel = (-1, *[1] * (len(images.shape) - 1))
        self.register_buffer("mean", torch.tensor(images.mean, dtype=torch.float32).reshape(per_channel))
        self.register_buffer("scale", 1 / torch.tensor(images.std, dtype=torch.float32).reshape(per_channel))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) -> logits (B, K)."""
        values = self.interface_values(images)  # (B, n, C)
        if self.method in (Method.VOTE, Method.AVERAGE):
            values = self.classify(values)  # (B, n, K)
        return self.combine(values).float()

    def interface_values(self, images: torch.Tensor) -> torch.Tensor:
        """What the local CNNs hand over of f_i(R_i x), i in ``subdomains``: (B, C, *spatial) -> interface values (B, n, C)."""
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected (B, {', '.join(map(str, self.shape))})")
        images = (images.float() - self.mean) * self.scale
        pairs = zip(self.subdomains, self.local_cnns, strict=True)
        restricted = ((network, self.restrict(images, i)) for i, network in pairs)
        return torch.stack([interface_values(self.interface, network, subimages) for network, subimages in restricted], 1)

    def classify(self, values: torch.Tensor) -> torch.Tensor:
        """Local classifications p_i, i in ``subdomains``, out of what the local CNNs hand over: (B, n, C) -> (B, n, K)."""
        return torch.stack([local_probabilities(self.interface, network, values[:, k]) for k, network in enumerate(self.local_cnns)], 1)

    def combine(self, values: torch.Tensor) -> torch.Tensor:
        """One decision, of all ``present``: interface values (B, n, C), for ``vote`` and ``average`` the p_i (B, n, K) -> logits (B, K)."""
        if self.method == Method.VOTE:
            return vote_scores(values)
        if self.method == Method.AVERAGE:
            return values.mean(1, dtype=torch.float64).log()
        if self.dnn is None:
            return values[:, 0]
        return self.dnn(fill_missing(values, self.present, self.dnn.subdomains).flatten(1))


def load(run: str | Path, method: str | None = None, without: Sequence[int] = ()) -> Assembled:
    """The network of a finished run as one ordinary ``torch.nn.Module`` on the CPU, in its evaluation mode.

    It takes whole images (B, C, *spatial), channels first, in the source's own range of values (0 ... 255 for most), of any type, and
    gives logits (B, K); what the image size was, and which class is which, is in its ``shape`` and ``class_names``. It computes in
    float32 whatever the run's ``--precision`` was, and equals the distributed network to rounding.

    Args:
        run: folder of the run (of several seeds: of one of them).
        method: of the run; None for the first of transfer, coherent, dnn, average, vote, global that it has.
        without: subdomains that are missing: as ``predict --without``.

    Raises:
        InputError: not a finished run, no such method, or a checkpoint that is missing or damaged.
    """
    with torch.random.fork_rng(devices=[]):  # initial parameters are drawn, and replaced
        return assemble(TrainedRun.open(Path(run)), method, tuple(without)).eval()


def assemble(run: TrainedRun, method: str | None = None, without: tuple[int, ...] = (), rank: int = 0, ranks: int = 1) -> Assembled:
    """The part of the network that a rank has, out of ``ranks`` that share the subdomains: its local CNNs, and all of the DNN.

    Raises:
        InputError: as ``load``; or the ranks do not divide the subdomains.
    """
    chosen = run.choose(method, without)
    networks = Networks(run.settings, run.images, ON_CPU)
    if run.is_whole(chosen):
        return _whole(run, networks, chosen)
    present = [i for i in range(networks.subdomains) if i not in without]
    if wrong := sorted(set(without) - set(range(networks.subdomains))):
        raise InputError(f"--without {wrong[0]}: the subdomains of this run are 0 to {networks.subdomains - 1}")
    if not present:
        raise InputError("--without: at least one subdomain has to be there")
    if len(present) % ranks:
        raise InputError(f"--divide subdomains: {ranks} ranks do not fit {len(present)} subdomains; leave it out, or take other ranks")
    each = len(present) // ranks
    own = present[rank * each : (rank + 1) * each]
    local_cnns = []
    for index in own:
        local_cnns.append(networks.new_local(index, "local"))
        path = run.checkpoint(f"{chosen if chosen.joint else 'local'}-{index:04d}")
        parameters.load(path, local_cnns[-1], networks.about_local(index))
    dnn: DenseNetwork | None = None
    if chosen.has_dnn:
        dnn = networks.new_dnn("dnn")
        parameters.load(run.checkpoint(f"{chosen}-dnn" if chosen.joint else "dnn"), dnn, networks.about_dnn())

    def restrict(images: torch.Tensor, i: int) -> torch.Tensor:
        return run.images.decomposition.restrict(images, networks.subimage(i), first_axis=2)

    return Assembled(run.images, restrict, chosen, run.settings.interface, local_cnns, dnn, own, present)


def _whole(run: TrainedRun, networks: Networks, method: Method) -> Assembled:
    """The undecomposed CNN, or the one that thin networks have been composed to."""
    settings = run.settings
    width = settings.width if method == Method.TRANSFER else settings.global_width or settings.width
    network = build(networks.make_global(width), networks.seeds(method), ON_CPU)
    parameters.load(run.checkpoint(method), network, {"architecture": settings.network, "width": width or 0})
    return Assembled(run.images, lambda images, i: images, method, "logits", [network], None, [0], [0])

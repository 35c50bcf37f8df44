"""The network of a finished run as a single ``torch.nn.Module``: restriction, local CNNs, interface and decision."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.data.image_spec import value_range, window_of
from ddcnn.data.prediction_source import Wanted, open_images
from ddcnn.data.sources import SourceOptions
from ddcnn.data.stored import to_tensor
from ddcnn.errors import InputError
from ddcnn.inference.trained_run import TrainedRun
from ddcnn.io import parameters
from ddcnn.method.aggregate import fill_missing, vote_scores
from ddcnn.method.factory import Networks
from ddcnn.method.interface import interface_values, local_probabilities
from ddcnn.training.evaluation import evaluation_batch
from ddcnn.training.precision import DevicePolicy

SCANS = "NIfTI and DICOM: the closest canonical one, depth from foot to head, rows from back to front, columns from left to right"
ON_CPU = DevicePolicy(torch.device("cpu"), "fp32")

Restriction = Callable[[torch.Tensor, int], torch.Tensor]  # R_i: images (B, C, *spatial), i -> (B, C, *subimage)


class Assembled(nn.Module):
    """f(x): whole images (B, C, *spatial) in the source's own range of values -> logits (B, K) float32.

    They are clipped to the run's ``--window`` here, and normalised. All else that was done to the run's images has to be done before: their
    size and, of scans, their orientation. ``read`` does it.

    The softmax of the logits are the method's probabilities; the logits of ``average`` are the logarithm of the mean p_i. ``vote`` has no
    probabilities: its logits are scores, and the largest one is the decision. An undecomposed CNN is the local CNN of a single subdomain.

    Attributes:
        shape: (C, *spatial) of an image.
        layout: of a batch of images, "BCHW" or "BCDHW".
        input_range: what black and white are in images; None where nobody knows (floats and signed integers without ``--window``).
        class_names: K names.
        method: one of the run's; ``why`` it was taken.
        run: name of the run's folder, of a run with several seeds with that of the seed.
        version: of ddcnn, that of the run.
        subdomains: indices of the subdomains of ``local_cnns``.
        present: indices of the subdomains whose values ``combine`` gets: ``subdomains``, or on rank 0 those of all ranks' parts.
        batch_size: images that pass through the local CNNs at a time where no gradient is asked for; this bounds the memory.
        without: indices of the subdomains that are missing.
    """

    why = "it was asked for"
    without: tuple[int, ...] = ()
    mean: torch.Tensor  # (C, 1, ..., 1)
    scale: torch.Tensor

    def __init__(
        self, run: TrainedRun, method: Method, interface: str, local_cnns: Mapping[int, nn.Module], restrict: Restriction,
        present: Sequence[int] = (0,), dnn: Any = None,
    ):  # fmt: skip
        super().__init__()
        images = run.images
        self.method, self.interface, self.class_names = method, interface, images.class_names
        self.shape = (images.shape[-1], *images.shape[:-1])
        self.layout, self.input_range = "BCDHW" if len(self.shape) > 3 else "BCHW", value_range(images.dtype, images.preprocessing)
        self._images, self._window = images, window_of(images.dtype, images.preprocessing)
        self.run, self.version = run.folder.name, run.results.environment.ddcnn
        self.restrict, self.subdomains, self.present = restrict, tuple(local_cnns), tuple(present)
        self.local_cnns, self.dnn = nn.ModuleList(local_cnns.values()), dnn
        none = torch.empty(0, *self.shape)
        self.batch_size = evaluation_batch(max(math.prod(restrict(none, i).shape[2:]) for i in self.subdomains))
        per_channel = (-1, *[1] * (len(images.shape) - 1))
        self.register_buffer("mean", torch.tensor(images.mean, dtype=torch.float32).reshape(per_channel))
        self.register_buffer("scale", 1 / torch.tensor(images.std, dtype=torch.float32).reshape(per_channel))

    def read(self, source: str | Path, data_root: str | Path = "data") -> torch.Tensor:
        """All images of a source as ``predict`` reads them, (S, C, *spatial): of the run's size and crop, scans in its orientation.

        Args:
            source: whatever ``predict`` takes; labels are not looked at.

        Raises:
            InputError: nothing that can be read, or images of another shape or type.
            DamagedSample: an image that cannot be read.
        """
        wanted = Wanted("all", None, unlabelled=True, is_own=lambda images, of: False)
        found = open_images(SourceOptions(str(source), Path(data_root)), self._images, wanted)
        return to_tensor(np.moveaxis(found.images.read(found.chosen), -1, 1))

    @property
    def metadata(self) -> dict[str, Any]:
        """What an exported file says of itself, JSON values by name."""
        return {
            "class_names": self.class_names, "input_layout": self.layout, "input_shape": ("B", *self.shape), "input_dtype": "float32",
            "input_range": self.input_range, "normalisation": "inside, as the clipping to --window: pixels go in as they are in the source",
            "without": self.without, **({"orientation": SCANS} if len(self.shape) > 3 else {}),
            "output": "scores, the largest decides" if self.method == Method.VOTE else "logits, whose softmax are probabilities",
            "method": self.method, "run": self.run, "ddcnn_version": self.version,
        }  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) -> logits (B, K)."""
        values = self.interface_values(images)  # (B, n, C)
        if self.method.combines_probabilities:
            values = self.classify(values)  # (B, n, K)
        return self.combine(values).float()

    def interface_values(self, images: torch.Tensor) -> torch.Tensor:
        """Interface values of f_i(R_i x), i in ``subdomains``: (B, C, *spatial) -> (B, n, C)."""
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected (B, {', '.join(map(str, self.shape))})")
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._values(images)
        return torch.cat([self._values(batch) for batch in images.split(self.batch_size)])

    def _values(self, images: torch.Tensor) -> torch.Tensor:
        images = images.float()
        if self._window:
            images = images.clamp(*self._window)
        images = (images - self.mean) * self.scale
        pairs = zip(self.subdomains, self.local_cnns, strict=True)
        restricted = ((network, self.restrict(images, i)) for i, network in pairs)
        return torch.stack([interface_values(self.interface, network, subimages) for network, subimages in restricted], 1)

    def classify(self, values: torch.Tensor) -> torch.Tensor:
        """Local classifications p_i, i in ``subdomains``, from interface values: (B, n, C) -> (B, n, K)."""
        return torch.stack([local_probabilities(self.interface, network, values[:, k]) for k, network in enumerate(self.local_cnns)], 1)

    def combine(self, values: torch.Tensor) -> torch.Tensor:
        """The decision: interface values (B, n, C), or p_i (B, n, K) for ``vote`` and ``average``, of all ``present`` -> logits (B, K)."""
        if self.method == Method.VOTE:
            return vote_scores(values)
        if self.method == Method.AVERAGE:
            return values.mean(1, dtype=torch.float64).log()
        if self.dnn is None:
            return values[:, 0]
        return self.dnn(fill_missing(values, self.present, self.dnn).flatten(1))


def load(run: str | Path, method: str | None = None, without: Sequence[int] = ()) -> Assembled:
    """The network of a finished run as one ordinary ``torch.nn.Module`` on the CPU, in evaluation mode.

    It takes whole images (B, C, *spatial), channels first, in the source's own range of values (0 ... 255 for most), of any type, and
    returns logits (B, K). It computes in float32 whatever the run's ``--precision`` was, and equals the distributed network up to rounding.
    Its attributes ``shape``, ``layout``, ``input_range``, ``class_names``, ``method``, ``why``, ``run`` and ``version`` tell what it is.

    Args:
        run: folder of the run; of a run with several seeds, the folder of one of them.
        method: one of the run's; None for the most accurate one on its validation images, of equal ones that with the smallest loss;
            if there were no such images, for the first of transfer, coherent, dnn, average, vote, global.
        without: indices of missing subdomains, as in ``predict --without``.

    Raises:
        InputError: not a finished run, no such method, or a checkpoint that is missing or damaged.
    """
    with torch.random.fork_rng(devices=[]):  # initial parameters are drawn, then replaced
        trained = TrainedRun.open(Path(run).expanduser())
        network = assemble(trained, method, tuple(without)).eval()
    if method is None:
        network.why = trained.why(network.method)
    return network


def assemble(run: TrainedRun, method: str | None = None, without: tuple[int, ...] = (), rank: int = 0, ranks: int = 1) -> Assembled:
    """A rank's part of the network, if ``ranks`` divide the subdomains: its local CNNs, and the whole DNN.

    Raises:
        InputError: as ``load``; or the number of subdomains is not a multiple of ``ranks``.
    """
    chosen = run.choose(method, without)
    networks = Networks(run.settings, run.images, ON_CPU)
    if run.settings.sees_whole_image(chosen):
        return _whole(run, networks, chosen)
    present = [i for i in range(networks.subdomains) if i not in without]
    if wrong := sorted(set(without) - set(range(networks.subdomains))):
        raise InputError(f"--without {wrong[0]}: the subdomains of this run are 0 to {networks.subdomains - 1}")
    if not present:
        raise InputError("--without: leave at least one subdomain")
    if len(present) % ranks:
        raise InputError(
            f"--divide subdomains: {ranks} ranks do not fit {len(present)} subdomains; leave it out, or take a divisor of them"
        )
    each = len(present) // ranks
    local_cnns = {index: networks.new_local(index, "local") for index in present[rank * each : (rank + 1) * each]}
    for index, network in local_cnns.items():
        saved = 0 if chosen.joint and run.settings.share == "all" else index
        path = run.checkpoint(f"{chosen if chosen.joint else 'local'}-{saved:04d}")
        parameters.load(path, network, networks.about_local(saved))
    dnn: Any = None
    if chosen.has_dnn:
        dnn = networks.new_dnn("dnn")
        parameters.load(run.checkpoint(f"{chosen}-dnn" if chosen.joint else "dnn"), dnn, networks.about_dnn())

    decomposition = run.images.decomposition

    def restrict(images: torch.Tensor, i: int) -> torch.Tensor:
        return decomposition.restrict(images, networks.subimage(i), first_axis=2)

    network = Assembled(run, chosen, run.settings.interface, local_cnns, restrict, present, dnn)
    network.without = without
    return network


def _whole(run: TrainedRun, networks: Networks, method: Method) -> Assembled:
    """A network that sees the whole image: the undecomposed CNN, or the one that is composed of thin networks."""
    network = networks.new_global(method)
    parameters.load(run.checkpoint(method), network, networks.about_global(method))
    return Assembled(run, method, "logits", {0: network}, lambda images, i: images)

"""The two-step method for scripts and notebooks: decompose, train, gather, combine (arXiv 2302.06564, section 3).

The steps are those of ``ddcnn run``, with its options and its seeds, so that the same numbers come out. Without what a run keeps: no
folder, no checkpoints, no watch over the ranks; under mpirun, start a script with ``python -m mpi4py``, which ends all ranks if one fails.
"""

from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from ddcnn.config.load import load
from ddcnn.config.settings import RunSettings
from ddcnn.config.types import Interface
from ddcnn.data.batches import Subimages
from ddcnn.errors import InputError, did_you_mean
from ddcnn.experiment.plan import prepare_run, resolved
from ddcnn.method.aggregate import classify_by_dnn, train_dnn
from ddcnn.method.factory import Problem, choose_policy
from ddcnn.method.local import DnnSamples, evaluate_interface, train_local
from ddcnn.parallel.environment import threads_per_rank
from ddcnn.parallel.groups import form_groups
from ddcnn.parallel.world import World

DEFAULTS = {"methods": "vote,average,dnn", "progress": "none"}
OF_A_FOLDER = (
    "output", "overwrite", "resume", "start_from", "seeds", "methods", "checkpoint_every", "keep_checkpoints", "time_limit",
    "stop_signals", "stall_timeout", "figures", "tensorboard", "evaluate_every",
)  # options of a run without a meaning here  # fmt: skip


def decompose(world: World, **options: Any) -> "DecomposedProblem":
    """Decomposes images, or finds them decomposed by an earlier call or run; all ranks together.

    Args:
        world: the ranks; ``World()`` are those that mpirun has started, or this process alone.
        options: those of ``ddcnn run`` under their names with underscores, as text or as values: ``grid="2x2"`` or ``grid=(2, 2)``.

    Raises:
        InputError: on all ranks, an unknown option, or whatever the command would refuse, in the same words.
    """
    for name in options:
        if name not in RunSettings.model_fields:
            raise InputError(f"unknown option {name}{did_you_mean(name, RunSettings.model_fields)}; python -m ddcnn run --help shows all")
        if name in OF_A_FOLDER:
            raise InputError(f"{name}: an option of ddcnn run and its folder, without a meaning here; leave it out")
    settings = load(RunSettings, DEFAULTS | options)
    if settings.dnn_data == "out-of-fold":
        raise InputError("dnn_data out-of-fold: needs further local CNNs, which ddcnn run trains; take train or holdout")
    store = prepare_run(world, settings)
    torch.set_num_threads(threads_per_rank(world, settings.threads))
    policy = choose_policy(world, settings)
    labels = {split: store.labels(split) for split in store.samples}
    dnn_samples = DnnSamples.choose(settings.dnn_data, labels["train"], settings.folds, settings.seed)
    groups = form_groups(world, len(store.decomposition))
    return DecomposedProblem(world, groups, resolved(settings, store), store, policy, labels, dnn_samples)


class DecomposedProblem(Problem):
    """Decomposed images, and the steps that solve their classification; ``decompose`` makes one.

    Attributes:
        owned: the subdomains that this rank trains, in its order.
        store: the images, a ``PartitionedSet``; its ``decomposition`` is the geometry, a ``Decomposition``.
        labels: (S,) int64 per split, "train" and "test".
    """

    def train_local(self, index: int) -> nn.Module:
        """Trains the local CNN f_i of a subdomain of this rank, without communication (a group of ranks its own together).

        It maps (B, C, *subimage) float32, normalised, to logits (B, K). Equal, bit for bit, to that of ``ddcnn run``.

        Raises:
            ValueError: another rank owns the subdomain.
            FloatingPointError: the loss is no longer a number.
        """
        if index not in self.owned:
            raise ValueError(f"subdomain {index} is not one of this rank's, {list(self.owned)}")
        training = Subimages.load(self.store, "train", index, self.policy.device, self.augmentation)
        make, seeds = self.networks.make_local(index), self.networks.seeds("local", index)
        return train_local(self.groups.data_parallel, make, training, self.dnn_samples.for_cnn, self.local_recipe, self.policy, seeds)

    def gather(self, local_cnns: list[nn.Module], split: str, interface: str | None = None) -> np.ndarray | None:
        """What all local CNNs say of the images: (S, N, C) float32 on rank 0, None on the others; all ranks together.

        Args:
            local_cnns: of this rank's subdomains, in the order of ``owned``.
            split: "test", or "train": the images that the DNN learns from (all, but with ``dnn_data="holdout"``).
            interface: "probabilities" for the p_i, C = K, "logits" or "features"; None for that of the options.

        Raises:
            ValueError: no such interface or split, or another number of networks.
        """
        interface = interface or self.settings.interface
        for name, value, known in (("interface", interface, get_args(Interface)), ("split", split, tuple(self.labels))):
            if value not in known:
                raise ValueError(f"{name} {value!r}: known are {', '.join(known)}")
        chosen = self.dnn_samples.index if split == "train" else np.arange(self.store.test_samples)
        handed = []
        for index, network in zip(self.owned, local_cnns, strict=True):
            images = Subimages.load(self.store, split, index, self.policy.device)
            handed.append(evaluate_interface(self.groups.data_parallel, interface, network, images, chosen, self.policy))
        own = [values for values in handed if values is not None]  # on the first rank of a group
        gathered = self.groups.across_subdomains.gather(np.stack(own)) if own else None  # (ranks, n, S, C)
        return None if gathered is None else np.concatenate(gathered).swapaxes(0, 1)

    def train_dnn(self, values: np.ndarray) -> nn.Module:
        """On rank 0: trains the DNN on what has been gathered of "train", (S, N, C); it maps (B, N·C) to logits (B, K)."""
        labels, seeds = self.labels["train"][self.dnn_samples.index], self.networks.seeds("dnn")
        classes, policy = self.networks.classes, self.networks.fp32_policy
        return train_dnn(values, labels, self.settings.interface, classes, self.dnn_recipe, policy, seeds)

    def decide(self, dnn: nn.Module, values: np.ndarray) -> np.ndarray:
        """On rank 0: the DNN's probabilities (S, K) float32 of what has been gathered, (S, N, C)."""
        return classify_by_dnn(dnn, values, self.networks.fp32_policy)

"""The two-step method for scripts and notebooks: decompose, train, gather, combine (arXiv 2302.06564, section 3).

The steps are those of ``ddcnn run``, with its options and its seeds, so that the same numbers come out. Without what a run keeps: no
folder, no checkpoints, no watch over the ranks; under mpirun, start a script with ``python -m mpi4py``, which ends all ranks if one fails.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from torch import nn

from ddcnn.config.load import load
from ddcnn.config.settings import RunSettings
from ddcnn.config.types import Interface
from ddcnn.errors import InputError, did_you_mean
from ddcnn.experiment.plan import prepare_run
from ddcnn.experiment.problem import Problem, prepare
from ddcnn.io.rows import Table, kept
from ddcnn.method.aggregate import classify_by_dnn, train_dnn
from ddcnn.method.interface import evaluate_interface, gather_tables
from ddcnn.method.local import train_local
from ddcnn.parallel.world import World
from ddcnn.training.data_parallel import classify_together
from ddcnn.training.loop import Callback, Trainer
from ddcnn.training.recipe import Recipe

DEFAULTS = {"methods": "vote,average,dnn", "progress": "none"}
OF_A_FOLDER = (
    "output", "overwrite", "resume", "start_from", "seeds", "methods", "checkpoint_every", "keep_checkpoints", "time_limit",
    "stop_signals", "stall_timeout", "figures", "tensorboard", "evaluate_every", "dry_run",
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
    if not settings.dnn_epochs:
        raise InputError("dnn_epochs 0: train_dnn would have nothing to do; leave out one of them")
    return DecomposedProblem(prepare(world, settings, prepare_run(world, settings)))


class DecomposedProblem:
    """Decomposed images, and the steps that solve their classification; ``decompose`` makes one.

    Attributes:
        owned: the subdomains that this rank trains, in its order.
        store: the images, a ``PartitionedSet``; its ``decomposition`` is the geometry, a ``Decomposition``.
        labels: (S,) int64 per split, "train", "test" and, if there are validation images, "validation".
    """

    def __init__(self, problem: Problem):
        self._problem = problem
        self.owned, self.store, self.labels = problem.owned, problem.store, problem.labels

    def _trainer(
        self, recipe: Recipe, ranks: World, classify: Callable[[nn.Module], Table | None], role: str, subdomain: int = 0
    ) -> Trainer:
        """What trains a network; ``classify`` its validation images if these decide something (``early_stopping``, ``keep``)."""
        problem, callback = self._problem, Callback()
        if problem.settings.selects:
            callback = problem.validated(callback, classify, ranks, recipe.epochs)
        return Trainer(recipe, problem.policy, problem.networks.seeds(role, subdomain), callback)

    def train_local(self, index: int) -> nn.Module:
        """Trains the local CNN f_i of a subdomain of this rank, without communication (the ranks of its group together).

        It maps (B, C, *subimage) float32, normalised, to logits (B, K). Equal, bit for bit, to that of ``ddcnn run``.

        Raises:
            ValueError: another rank owns the subdomain.
            FloatingPointError: the loss is NaN or infinite.
        """
        problem = self._problem
        if index not in self.owned:
            raise ValueError(f"subdomain {index} is not one of this rank's, {list(self.owned)}")
        group, validation = problem.groups.data_parallel, problem.subimages("validation", index) if problem.settings.selects else None

        def classify(network: nn.Module) -> Table | None:
            samples = problem.store.validation_samples
            return classify_together(group, network, validation, samples, problem.policy, None) if validation else None

        trainer, make = self._trainer(problem.local_recipe, group, classify, "local", index), problem.networks.make_local(index)
        images, chosen = problem.subimages("train", index), problem.dnn_samples.for_cnn
        return train_local(group, trainer, make, images, chosen)

    def gather(self, local_cnns: list[nn.Module], split: str, interface: str | None = None) -> np.ndarray | None:
        """What all local CNNs say of the images: (S, N, C) float32 on rank 0, None on the others; all ranks together.

        Args:
            local_cnns: of this rank's subdomains, in the order of ``owned``.
            split: "test", "validation", or "train": the images that the DNN learns from (all, but with ``dnn_data="holdout"``).
            interface: "probabilities" for the p_i, C = K, "logits" or "features"; None for that of the options, the only one that
                ``train_dnn`` and ``decide`` understand.

        Raises:
            ValueError: no such interface or split, or another number of networks.
        """
        problem = self._problem
        interface = interface or problem.settings.interface
        known = tuple(name for name in get_args(Interface) if name != "maps" or problem.settings.interface == "maps")
        for name, value, allowed in (("interface", interface, known), ("split", split, tuple(self.labels))):
            if value not in allowed:
                raise ValueError(f"{name} {value!r}: known are {', '.join(allowed)}")
        chosen = problem.dnn_samples.for_dnn if split == "train" else np.arange(self.store.samples[split])
        group, values = problem.groups.data_parallel, []
        for index, network in zip(self.owned, local_cnns, strict=True):
            images = problem.subimages(split, index)
            part = kept(len(chosen), evaluate_interface(group, interface, network, images, chosen, problem.policy), None)
            if part is not None:  # on the first rank of a group
                values.append(part)
        gathered = gather_tables(problem.groups.across_subdomains, values, None) if values else None
        return None if gathered is None else gathered.array

    def train_dnn(self, values: np.ndarray, validation: np.ndarray | None = None) -> nn.Module:
        """On rank 0: trains the DNN on gathered interface values of "train", (S, N, C); it maps (B, N·C) to logits (B, K).

        Args:
            validation: those of "validation", which ``early_stopping`` and ``keep="best"`` need.

        Raises:
            ValueError: they are needed, and missing.
        """
        problem = self._problem
        if problem.settings.selects and validation is None:
            raise ValueError(f"{problem.settings.selects} needs the interface values of the validation images")

        def classify(network: nn.Module) -> Table | None:
            return None if validation is None else Table.of(self.decide(network, validation))

        trainer = self._trainer(problem.dnn_recipe, problem.world.alone(), classify, "dnn")
        trainer = replace(trainer, policy=problem.networks.dnn_policy)
        labels = self.labels["train"][problem.dnn_samples.for_dnn]
        return train_dnn(trainer, problem.networks.make_dnn(), values, labels)

    def decide(self, dnn: nn.Module, values: np.ndarray) -> np.ndarray:
        """On rank 0: the DNN's probabilities (S, K) float32 from gathered interface values (S, N, C)."""
        return classify_by_dnn(dnn, values, self._problem.networks.dnn_policy)

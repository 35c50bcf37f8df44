"""What is to be solved: images that have been decomposed, the networks for them, who trains which, and how."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from ddcnn.config.settings import RunSettings
from ddcnn.data.batches import Augmentation
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.errors import InputError
from ddcnn.inference.trained_run import TrainedOn
from ddcnn.io import parameters
from ddcnn.io.parameters import Attribute
from ddcnn.io.run_folder import RunFolder
from ddcnn.method.aggregate import build_dnn
from ddcnn.method.interface import values_per_subdomain
from ddcnn.method.local import DnnSamples
from ddcnn.networks import registry
from ddcnn.networks.shape import Shape
from ddcnn.parallel.groups import Groups
from ddcnn.parallel.seeding import Seeds
from ddcnn.parallel.world import World
from ddcnn.training.data_parallel import batch_of_all
from ddcnn.training.loop import Recipe, build
from ddcnn.training.precision import DevicePolicy, choose_device


def choose_policy(world: World, settings: RunSettings) -> DevicePolicy:
    """What this rank computes with, in the same precision on all ranks; all together.

    Raises:
        InputError: as ``DevicePolicy.choose``, or there is no such device.
    """
    with world.raise_on_all_ranks():
        policy = DevicePolicy.choose(choose_device(world.local_rank, settings.device), settings.precision)
    if world.all_equal(policy.precision.encode()):
        return policy
    return replace(policy, precision="fp32")  # --precision auto, and GPUs of which some have no bf16


@dataclass(frozen=True)
class Networks:
    """The networks that a run's settings and data ask for; they differ from seed to seed."""

    settings: RunSettings
    store: PartitionedSet | TrainedOn
    policy: DevicePolicy

    @property
    def subdomains(self) -> int:
        return len(self.store.decomposition)

    @property
    def classes(self) -> int:
        return len(self.store.class_names)

    @property
    def fp32_policy(self) -> DevicePolicy:
        """For the DNN, which is too small to gain from half precision."""
        return replace(self.policy, precision="fp32")

    def seeds(self, role: str, subdomain: int = 0) -> Seeds:
        return Seeds(self.settings.seed, role, subdomain)

    def make_local(self, index: int) -> Callable[[], nn.Module]:
        settings = self.settings
        return partial(
            registry.make, settings.network, self._local_shape(index), settings.width, settings.divisor(self.subdomains), settings.features
        )

    def make_global(self, width: int | None) -> Callable[[], nn.Module]:
        """The undecomposed CNN."""
        return partial(registry.make, self.settings.network, self._shape(self.store.shape[:-1]), width)

    @property
    def global_parameters(self) -> int | None:
        """How many the global CNN of the same --width has; None if such a network cannot be made for whole images."""
        try:
            with torch.device("meta"):  # nothing is stored or computed
                return sum(parameter.numel() for parameter in self.make_global(self.settings.width)().parameters())
        except InputError:  # all that a network of others' can end with, which may compute while it is made, or not take whole images
            if self.settings.network in registry.NETWORKS:
                raise
            return None

    def new_local(self, index: int, role: str) -> nn.Module:
        return build(self.make_local(index), self.seeds(role, index), self.policy)

    def new_dnn(self, role: str) -> nn.Module:
        values = values_per_subdomain(self.settings.interface, self.make_local(0)())
        return build_dnn(self.settings.interface, self.subdomains, values, self.classes, self.fp32_policy, self.seeds(role))

    # Of the run that this one starts from

    def kept_local(self, index: int) -> tuple[nn.Module, int]:
        """A local CNN, and the epochs that it has been trained for.

        Raises:
            InputError: there is none, or one of another kind.
        """
        network = self.new_local(index, "local")
        path = self._kept.parameters(f"local-{index:04d}")
        attributes = parameters.load(path, network, self.about_local(index))
        if "epochs" not in attributes:
            raise InputError(f"{path}: does not say for how many epochs it has been trained; it is of an older version of ddcnn")
        return network, int(attributes["epochs"])

    @property
    def has_dnn(self) -> bool:
        """Whether that run has trained a DNN for the same interface."""
        path = self._kept.parameters("dnn")
        return path.is_file() and parameters.attributes_of(path).get("interface") == self.settings.interface

    def kept_dnn(self) -> nn.Module | None:
        if not self.has_dnn:
            return None
        network = self.new_dnn("dnn")
        parameters.load(self._kept.parameters("dnn"), network, self.about_dnn())
        return network

    @property
    def _kept(self) -> RunFolder:
        assert self.settings.start_from
        start = RunFolder(self.settings.start_from)
        return start.seed(self.settings.seed) if start.seeds() else start

    # Attributes of checkpoints

    def about_local(self, index: int) -> dict[str, Attribute]:
        settings, shape = self.settings, self._local_shape(index)
        held_out = settings.dnn_data == "holdout" and settings.needs("dnn")
        return {
            "data": self.store.source_sha256,
            "samples": f"all but fold 0 of {settings.folds}, seed {settings.seed}" if held_out else "all",
            "architecture": settings.network, "width": settings.width or 0, "divisor": settings.divisor(self.subdomains),
            "spatial": shape.spatial, "channels": shape.channels, "classes": shape.classes, "subdomain": index,
        }  # fmt: skip

    def about_dnn(self) -> dict[str, Attribute]:
        return {"interface": self.settings.interface, "subdomains": self.subdomains, "classes": self.classes}

    def _local_shape(self, index: int) -> Shape:
        return self._shape(self.store.decomposition.subdomains[index].subimage.shape)

    def _shape(self, spatial: tuple[int, ...]) -> Shape:
        return Shape(spatial, self.store.shape[-1], self.classes)


@dataclass(frozen=True)
class Problem:
    """Decomposed images, and what the settings make of them, with one seed.

    Attributes:
        world, groups: the ranks, and how the subdomains are shared out among them.
        settings: the options of ``ddcnn run``.
        store: the decomposed images.
        policy: device and precision of this rank.
        labels: (S,) int64 per split.
        dnn_samples: which training samples the local CNNs and the DNN learn from.
    """

    world: World
    groups: Groups
    settings: RunSettings
    store: PartitionedSet
    policy: DevicePolicy
    labels: dict[str, np.ndarray]
    dnn_samples: DnnSamples

    @property
    def owned(self) -> range:
        """The subdomains that this rank trains."""
        return self.groups.owned(len(self.store.decomposition))

    @property
    def networks(self) -> Networks:
        return Networks(self.settings, self.store, self.policy)

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation("flip" in self.settings.augment, self.settings.margin)

    # Recipes

    def recipe(self, epochs: int, lr: float | None = None, schedule: str | None = None) -> Recipe:
        """Of a CNN; learning rate and schedule are those of local training if none are given."""
        settings = self.settings
        return Recipe(
            epochs, settings.batch_size, settings.optimizer, lr or settings.lr, settings.weight_decay, schedule or settings.schedule,
            settings.label_smoothing, self._class_weights,
        )  # fmt: skip

    @property
    def local_recipe(self) -> Recipe:
        """Of local training; a group's ranks have equal shares of every batch."""
        samples, folds = self.store.train_samples, self.settings.folds
        fewest = samples - -(-samples // folds) if self.dnn_samples.kind in ("holdout", "out-of-fold") else samples
        recipe = self.recipe(self.settings.epochs)
        return replace(recipe, batch_size=batch_of_all(recipe.batch_size, fewest, self.groups.data_parallel.size))

    @property
    def transfer_recipe(self) -> Recipe:
        settings = self.settings
        return self.recipe(settings.transfer_epochs, settings.transfer_lr or settings.lr / 5, settings.transfer_schedule)

    @property
    def dnn_recipe(self) -> Recipe:
        settings = self.settings
        return Recipe(
            settings.dnn_epochs, settings.batch_size, "adamw", settings.dnn_lr, 0.01, "one-cycle", class_weights=self._class_weights
        )  # fmt: skip

    @property
    def _class_weights(self) -> tuple[float, ...] | None:
        """(K,) by which every class counts as much as any other: S / (K · samples of the class), K the classes that have samples."""
        if self.settings.class_weights == "none":
            return None
        counts = np.bincount(self.labels["train"], minlength=self.networks.classes)
        return tuple((counts.sum() / ((counts > 0).sum() * np.maximum(counts, 1))).tolist())

"""What every step of a run needs: ranks, settings, data, networks and recipes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from ddcnn import checkpoint
from ddcnn.config import RunSettings
from ddcnn.data.batches import Augmentation
from ddcnn.data.store import PartitionedSet
from ddcnn.method.local import DnnSamples
from ddcnn.networks.registry import NETWORKS
from ddcnn.networks.shape import Shape
from ddcnn.parallel import World
from ddcnn.progress import Progress
from ddcnn.results import Results
from ddcnn.seeding import Seeds
from ddcnn.training import Engine, Epoch, Recipe, build


@dataclass(frozen=True)
class Job:
    """One run with one seed.

    Attributes:
        labels: (S,) int64 per split.
        dnn_samples: which training samples the local CNNs and the DNN learn from.
    """

    world: World
    settings: RunSettings
    store: PartitionedSet
    engine: Engine
    labels: dict[str, np.ndarray]
    dnn_samples: DnnSamples
    results: Results

    @property
    def owned(self) -> range:
        return self.world.owned(len(self.store.decomposition))

    @property
    def divisor(self) -> float:
        """Of the width rule."""
        return self.settings.width_divisor or len(self.store.decomposition) ** 0.5

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation("flip" in self.settings.augment, self.settings.margin)

    @property
    def every_test_sample(self) -> torch.Tensor:
        return torch.arange(self.store.test_samples)

    @property
    def small_engine(self) -> Engine:
        """For the DNN, which is too small to gain from half precision."""
        return replace(self.engine, precision="fp32")

    # Networks

    def make_local(self, index: int) -> Callable[[], nn.Module]:
        shape = self._shape(self.store.decomposition.subdomains[index].subimage.shape)
        return partial(NETWORKS[self.settings.network], shape, self.settings.width, self.divisor, self.settings.features)

    def make_global(self) -> Callable[[], nn.Module]:
        shape = self._shape(self.store.shape[:-1])
        return partial(NETWORKS[self.settings.network], shape, self.settings.global_width or self.settings.width, 1, None)

    def seeds(self, role: str, subdomain: int = 0) -> Seeds:
        return Seeds(self.settings.seed, role, subdomain)

    def build_local(self, index: int, role: str) -> nn.Module:
        return build(self.make_local(index), self.seeds(role, index), self.engine)

    def _shape(self, spatial: tuple[int, ...]) -> Shape:
        return Shape(spatial, self.store.shape[-1], len(self.store.class_names))

    # Recipes

    def recipe(self, epochs: int, lr: float | None = None) -> Recipe:
        """Of a CNN; the learning rate is that of local training if none is given."""
        settings = self.settings
        return Recipe(
            epochs, settings.batch_size, settings.optimizer, lr or settings.lr, settings.weight_decay, settings.schedule,
            settings.label_smoothing,
        )  # fmt: skip

    @property
    def dnn_recipe(self) -> Recipe:
        return Recipe(self.settings.dnn_epochs, self.settings.batch_size, "adamw", self.settings.dnn_lr, 0.01, "one-cycle")

    # Telling and keeping

    def progress(self, title: str, epochs: int) -> Progress:
        return Progress(title, epochs, self.settings.progress if self.world.rank == 0 else "none")

    def evaluates(self, epoch: Epoch) -> bool:
        """Whether the test images are classified after this epoch."""
        return bool(self.settings.evaluate_every) and epoch.epoch % self.settings.evaluate_every == 0

    def about_local(self, index: int) -> dict[str, str | int | float | tuple[int, ...]]:
        """Attributes of a local CNN's checkpoint."""
        shape = self._shape(self.store.decomposition.subdomains[index].subimage.shape)
        return {
            "architecture": self.settings.network, "width": self.settings.width, "divisor": self.divisor, "spatial": shape.spatial,
            "channels": shape.channels, "classes": shape.classes, "subdomain": index,
        }  # fmt: skip

    def about_dnn(self) -> dict[str, str | int | float | tuple[int, ...]]:
        return {
            "interface": self.settings.interface,
            "subdomains": len(self.store.decomposition),
            "classes": len(self.store.class_names),
        }

    def save(self, name: str, network: nn.Module, **attributes: str | int | float | tuple[int, ...]) -> None:
        checkpoint.save(self.results.output / "checkpoints" / f"{name}.h5", network, attributes)


def state_of(epoch: Epoch, epochs: int) -> str:
    return f"epoch {epoch.epoch}/{epochs}  loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}"


@contextmanager
def failing_in(what: str) -> Iterator[None]:
    """Names the subdomain or network in the message of whatever fails."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise

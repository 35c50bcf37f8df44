"""The networks that a run's settings and data ask for, and those that an earlier run has trained."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.config.settings import RunSettings
from ddcnn.data.image_spec import TrainedOn
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.errors import InputError
from ddcnn.io import parameters
from ddcnn.io.parameters import Attribute
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.weights import Weights
from ddcnn.method.interface import values_per_subdomain
from ddcnn.networks import registry
from ddcnn.networks.coarse import ConvolutionalNetwork
from ddcnn.networks.dense import DenseNetwork
from ddcnn.networks.layers import count_parameters
from ddcnn.networks.maps import MapInterface, map_interface
from ddcnn.networks.recompute import recompute
from ddcnn.networks.shape import Shape
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import build
from ddcnn.training.precision import DevicePolicy


@dataclass(frozen=True)
class Networks:
    """The networks of one run with one seed.

    Attributes:
        store: what the images are.
        policy: where the networks compute.
        weights: that new CNNs start from; None for random ones.
    """

    settings: RunSettings
    store: PartitionedSet | TrainedOn
    policy: DevicePolicy
    weights: Weights | None = None

    @property
    def subdomains(self) -> int:
        """N: subimages, times the networks that see the same one."""
        return len(self.store.decomposition) * self.settings.networks_per_subimage

    def subimage(self, index: int) -> int:
        """The number of the subimage that subdomain ``index`` sees."""
        return index // self.settings.networks_per_subimage

    @property
    def classes(self) -> int:
        return len(self.store.class_names)

    @property
    def dnn_policy(self) -> DevicePolicy:
        """Of the DNN, which in dense layers is too small to gain from half precision; its few steps are not recorded."""
        policy = replace(self.policy, capture=False)
        return policy if self.settings.convolutional else replace(policy, precision="fp32")

    def seeds(self, role: str, subdomain: int = 0) -> Seeds:
        return Seeds(self.settings.seed, role, subdomain)

    def seeds_of(self, method: str) -> Seeds:
        """Of a network of all subdomains, or a stage of its training: spatial has the network and the batches of global."""
        return self.seeds(Method.GLOBAL if method == Method.SPATIAL else method)

    def make_local(self, index: int) -> Callable[[], nn.Module]:
        make: Callable[[], nn.Module] = partial(registry.make, self.settings.local_design(self.subdomains), self._local_shape(index))
        make = self.map_interface.hands_on(make, index) if self.map_interface else make
        return self._started(with_seed(make, self.seeds("shared")) if self.settings.share != "none" else make)

    @property
    def map_interface(self) -> MapInterface | None:
        """What local CNNs hand on, with ``--interface maps``."""
        settings, channels = self.settings, self.store.shape[-1]
        if settings.interface != "maps":
            return None
        design = settings.local_design(self.subdomains)
        return map_interface(design, self.store.decomposition, channels, self.classes, settings.coarse_image)

    def _started(self, make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        """What makes the same networks, from the trained weights if there are some; activations are recomputed if that is wanted."""
        weights, settings = self.weights, self.settings
        filled = (lambda: weights.fill(make(), settings.network)) if weights else make
        return (lambda: recompute(filled(), settings.network)) if settings.recompute else filled

    def make_global(self, method: Method) -> Callable[[], nn.Module]:
        return partial(registry.make, self.settings.global_design(method), self.whole_shape)

    @property
    def global_parameters(self) -> int | None:
        """Number of parameters of the global CNN with the same --width; None if it cannot be made for whole images."""
        try:
            with torch.device("meta"):  # nothing is stored or computed
                return count_parameters(self.make_global(Method.TRANSFER)())
        except InputError:  # a user's network may compute while it is made, or not take whole images
            if self.settings.network in registry.NETWORKS:
                raise
            return None

    def new_local(self, index: int, role: str) -> nn.Module:
        return build(self.make_local(index), self.seeds(role, index), self.policy)

    def new_global(self, method: Method) -> nn.Module:
        """The network of a method that sees the whole image."""
        return build(self._started(self.make_global(method)), self.seeds_of(method), self.policy)

    def make_dnn(self) -> Callable[[], nn.Module]:
        return coarse_network(self.settings, self.make_local(0)(), self.subdomains)

    def new_dnn(self, role: str) -> nn.Module:
        return build(self.make_dnn(), self.seeds(role), self.dnn_policy)

    # Networks of the run that this one starts from (--start-from)

    def earlier_local(self, index: int) -> tuple[nn.Module, int]:
        """A trained local CNN, and its epochs of training.

        Raises:
            InputError: it is missing, or of another kind.
        """
        network = self.new_local(index, "local")
        path, about = self._earlier.parameters(f"local-{index:04d}"), self.about_local(index)
        known = bool(about["data"])  # neither digest nor mean are known of images that are yet to be partitioned
        attributes = parameters.load(path, network, {name: value for name, value in about.items() if known or name != "data"})
        if "epochs" not in attributes:
            raise InputError(f"{path}: has no number of epochs; it is of an older version of ddcnn")
        if known and not all(np.allclose(attributes[name], getattr(self.store, name), rtol=1e-6) for name in ("mean", "std")):
            raise InputError(f"{path}: trained on images that were normalised otherwise than this run's; give the same --normalise")
        return network, int(attributes["epochs"])

    @property
    def has_earlier_dnn(self) -> bool:
        """Whether that run has a trained DNN for the same interface, and this one asks for one."""
        path = self._earlier.parameters("dnn")
        if not path.is_file():
            return False
        found, wanted = parameters.attributes_of(path), self.about_dnn()
        return bool(self.settings.dnn_epochs and found.get("epochs", 1)) and all(
            found.get(name) == wanted.get(name) for name in ("interface", "coarse_width", "coarse_stages", "coarse_image")
        )

    def earlier_dnn(self) -> nn.Module | None:
        if not self.has_earlier_dnn:
            return None
        network = self.new_dnn("dnn")
        parameters.load(self._earlier.parameters("dnn"), network, self.about_dnn())
        return network

    def check_start(self, owned: range) -> RunSettings:
        """The settings, with the most epochs that one of the local CNNs ``owned`` has been trained for.

        Raises:
            InputError: one of them or the DNN is missing or of another kind.
        """
        epochs = {self.earlier_local(index)[1] for index in owned}
        self.earlier_dnn()
        return self.settings.model_copy(update={"epochs": max(epochs)})

    @property
    def _earlier(self) -> RunFolder:
        assert self.settings.start_from
        start = RunFolder(self.settings.start_from)
        return start.seed(self.settings.seed) if start.seeds() else start

    # Attributes of checkpoints

    def about_local(self, index: int) -> dict[str, Attribute]:
        settings, shape = self.settings, self._local_shape(index)
        held_out = settings.dnn_data == "holdout" and settings.trains_dnn
        return {
            "data": self.store.source_sha256,
            "samples": f"all but fold 0 of {settings.folds}, seed {settings.seed}" if held_out else "all",
            "architecture": settings.network, "width": settings.width or 0, "divisor": settings.divisor(self.subdomains),
            "spatial": shape.spatial, "channels": shape.channels, "classes": shape.classes, "subdomain": index,
        }  # fmt: skip

    def about_global(self, method: Method) -> dict[str, Attribute]:
        return {"architecture": self.settings.network, "width": self.settings.global_design(method).width or 0}

    def about_dnn(self) -> dict[str, Attribute]:
        settings = self.settings
        about: dict[str, Attribute] = {"interface": settings.interface, "subdomains": self.subdomains, "classes": self.classes}
        if settings.convolutional:
            about |= {"coarse_width": settings.convolutional[0][0], "coarse_stages": settings.coarse_stages}
        if settings.coarse_image:
            about["coarse_image"] = 1
        return about

    def _local_shape(self, index: int) -> Shape:
        return self._shape(self.store.decomposition.subdomains[self.subimage(index)].subimage.shape)

    @property
    def whole_shape(self) -> Shape:
        """Of the whole image."""
        return self._shape(self.store.shape[:-1])

    def _shape(self, spatial: tuple[int, ...]) -> Shape:
        return Shape(spatial, self.store.shape[-1], self.classes)


def with_seed(make: Callable[[], nn.Module], seeds: Seeds) -> Callable[[], nn.Module]:
    """What makes the same networks, always with the same initial parameters."""

    def made() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.at("initial parameters"))
            return make()

    return made


def coarse_network(settings: RunSettings, local_cnn: Any, subdomains: int) -> Callable[[], nn.Module]:
    """What makes the DNN of N subdomains whose local CNNs are like this one."""
    if settings.convolutional:
        return partial(ConvolutionalNetwork, local_cnn.map_interface, settings.convolutional)
    values = values_per_subdomain(settings.interface, local_cnn)
    return partial(DenseNetwork, settings.interface, subdomains, values, local_cnn.classifier.out_features)

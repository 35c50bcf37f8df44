"""Timed steps of the trainings of a run, on random images: what they take on this machine as it is now, and the memory that they need.

All ranks time their steps at once, as they will train at once. Nothing that is trained here is kept.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.data.batches import Samples
from ddcnn.data.stand_in import StandIn
from ddcnn.experiment.phase_sizes import coarse_solve
from ddcnn.experiment.problem import Problem
from ddcnn.experiment.undecomposed import undecomposed
from ddcnn.io.rows import BLOCK_BYTES
from ddcnn.method.aggregate import classify_by_dnn, train_dnn
from ddcnn.method.coherent import CoherentNetwork, train_coherent
from ddcnn.method.interface import values_per_subdomain
from ddcnn.method.local import train_local
from ddcnn.method.shared import SharedParameters
from ddcnn.parallel.world import World
from ddcnn.training.evaluation import classify, evaluation_batch
from ddcnn.training.loop import Callback, Trainer
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe
from ddcnn.training.state import Epoch, TrainState
from ddcnn.training.step import WARM_UP

SECONDS = 0.8  # of timed steps of a training, if that are more than the fewest
MOST_STEPS, LONG = 60, 60.0
MADE_UP = 1 << 22  # bytes of images of a split
GATHERED = 1 << 20  # bytes of a rank in a timed gather


@dataclass(frozen=True)
class Pace:
    """Of one training on this rank, in seconds.

    Attributes:
        first: by which the first steps take longer than others.
        step: of the training; of a gather, for a byte of every rank.
        sample: to classify one.
    """

    first: float
    step: float
    sample: float


class Stopwatch(Callback):
    """The moments between the steps of a training of one epoch, whose first ones may take longer."""

    def __init__(self, device: torch.device, warm_up: int):
        self.device, self.warm_up, self.moments = device, warm_up, list[float]()

    def restore(self, state: TrainState) -> None:
        self._stamp()

    def after_step(self, state: TrainState) -> None:
        self._stamp()

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        self._stamp()

    def _stamp(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.moments.append(time.perf_counter())

    @property
    def step(self) -> float:
        """Mean seconds of a step but the first ones."""
        return (self.moments[-1] - self.moments[self.warm_up]) / (len(self.moments) - 1 - self.warm_up)

    @property
    def first(self) -> float:
        """Seconds of the first ones."""
        return self.moments[self.warm_up] - self.moments[0]


class Trial:
    """The trainings of a problem, each with a few steps.

    Attributes:
        few: the problem with a few random images in place of its own.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self.few = replace(problem, store=StandIn.of(problem.store, MADE_UP))
        self.policy = problem.policy

    def paces(self) -> dict[str, Pace]:
        """Of what the methods need: "local", "gather", "dnn" (on rank 0), "joint" (of coherent and transfer), "global", "spatial"."""
        problem, settings, timeline = self.problem, self.problem.settings, self.problem.world.timeline
        composed = settings.splitting.composes(Method.TRANSFER) and Method.TRANSFER in settings.methods
        found: dict[str, Pace] = {}
        local: nn.Module | None = None
        if settings.needs("local"):
            with timeline.phase("local"):
                found["local"], local = self.local()
            with timeline.phase("gather"):
                found["gather"] = self.gather()
        if settings.needs("dnn"):
            with timeline.phase("dnn"):
                if problem.world.rank == 0 and problem.dnn_samples.kind != "none":  # else it is taken from an earlier run
                    found["dnn"] = self.dnn()
                problem.world.barrier()
        if settings.joint:
            with timeline.phase(Method.COHERENT):
                found["joint"] = self.joint(settings.joint[0])
        if composed or Method.GLOBAL in settings.methods:
            with timeline.phase(Method.GLOBAL):
                found["global"] = self.whole(Method.GLOBAL if Method.GLOBAL in settings.methods else Method.TRANSFER)
        if Method.SPATIAL in settings.methods:
            with timeline.phase(Method.SPATIAL):
                found["spatial"] = self.whole(Method.SPATIAL)
        del local  # held until here, as a run holds its local CNNs
        return found

    def local(self) -> tuple[Pace, nn.Module]:
        """The largest local CNN of this rank."""
        problem, networks, group = self.problem, self.problem.networks, self.problem.groups.data_parallel
        index = largest(problem)
        images, test = self.few.subimages("train", index), self.few.subimages("test", index)
        make, recipe = networks.make_local(index), problem.local_recipe

        def train(trainer: Trainer, chosen: np.ndarray) -> nn.Module:
            return train_local(group, trainer, make, images, chosen)

        if problem.settings.start_from:
            network = networks.new_local(index, "local")
            return Pace(0.0, 0.0, self._sample(test, network)), network
        return self._pace(problem.world, recipe, len(problem.dnn_samples.for_cnn), train, partial(self._sample, test))

    def gather(self) -> Pace:
        part, across = np.zeros(GATHERED, np.uint8), self.problem.groups.across_subdomains
        self.problem.world.barrier()
        begin = time.perf_counter()
        across.gather(part)
        return Pace(0.0, (time.perf_counter() - begin) / GATHERED, 0.0)

    def joint(self, method: Method) -> Pace:
        problem, networks, group = self.problem, self.problem.networks, self.problem.groups.data_parallel
        images, test = self.few.owned_subimages("train"), self.few.owned_subimages("test")
        parts = [networks.new_local(index, "coherent") for index in problem.owned]
        dnn = networks.new_dnn("coherent dnn")
        across, settings = problem.groups.across_subdomains, problem.settings
        shared = SharedParameters(across, parts, settings.share) if settings.share != "none" else None
        network = CoherentNetwork(across, settings.interface, parts, coarse_solve(problem, dnn), shared)

        def train(trainer: Trainer, chosen: np.ndarray) -> nn.Module:
            train_coherent(group, trainer, network, images, chosen)
            return network

        recipe = problem.joint_recipe(method, group.size)
        return self._pace(problem.world, recipe, problem.store.train_samples, train, partial(self._sample, test), self._eager)[0]

    def whole(self, method: Method) -> Pace:
        """The undecomposed CNN."""
        problem, world = self.problem, self.problem.world
        ranks = undecomposed(self.few, method, problem.networks.new_global(method))
        images, test = ranks.images("train"), ranks.images("test")

        def train(trainer: Trainer, chosen: np.ndarray) -> nn.Module:
            ranks.train(trainer, images, chosen)
            return ranks.network

        recipe = problem.joint_recipe(method, ranks.sharing)
        policy = self.policy if world.size == 1 and method == Method.GLOBAL else self._eager
        return self._pace(world, recipe, problem.store.train_samples, train, partial(self._sample, test), policy)[0]

    def dnn(self) -> Pace:
        """On rank 0, while the others wait."""
        problem, networks, policy = self.problem, self.problem.networks, self.problem.networks.dnn_policy
        alone, values = problem.world.alone(), values_per_subdomain(problem.settings.interface, networks.make_local(0)())

        def train(trainer: Trainer, chosen: np.ndarray) -> nn.Module:
            labels = self.few.labels["train"][chosen]
            return train_dnn(trainer, networks.make_dnn(), self._values(len(labels), values), labels)

        def classified(network: nn.Module) -> float:
            block = max(1, BLOCK_BYTES // (4 * networks.subdomains * values))  # as a run reads them
            samples, begin = self._values(min(problem.store.test_samples, block), values), time.perf_counter()
            classify_by_dnn(network, samples, policy)
            return (time.perf_counter() - begin) / len(samples)

        return self._pace(alone, problem.dnn_recipe, len(problem.dnn_samples.for_dnn), train, classified, policy)[0]

    @property
    def _eager(self) -> DevicePolicy:
        """Of what is never recorded."""
        return replace(self.policy, capture=False)

    def _values(self, samples: int, values: int) -> np.ndarray:
        """Interface values (S, N, C) of no images, all in the same place."""
        shape = (samples, self.problem.networks.subdomains, values)
        return np.lib.stride_tricks.as_strided(np.full(1, 1 / self.problem.networks.classes, np.float32), shape, (0, 0, 0))

    def _pace(
        self, world: World, recipe: Recipe, samples: int, train: Callable[[Trainer, np.ndarray], nn.Module],
        classified: Callable[[nn.Module], float], policy: DevicePolicy | None = None,
    ) -> tuple[Pace, nn.Module]:  # fmt: skip
        """The pace of a training, and the network; all ranks of ``world``.

        There are at least six steps, with an evaluation between them, as between epochs: only then the memory grows no more. Where steps
        are recorded there are more.

        Args:
            samples: that there will be.
            train: trains a network with these samples of the training split, and returns it.
            classified: seconds to classify a sample with it.
        """
        policy = policy or self.policy
        warm_up = 1 + WARM_UP if policy.capture else 1
        batch, available = min(recipe.batch_size, samples), self.few.store.train_samples

        def timed(steps: int) -> tuple[Stopwatch, nn.Module]:
            watch = Stopwatch(policy.device, warm_up)
            few = replace(recipe, epochs=1, batch_size=batch, lr=1e-4, schedule="constant", warmup=None)
            trainer = Trainer(few, policy, self.problem.networks.seeds("dry run"), watch)
            world.barrier()
            return watch, train(trainer, np.arange(batch * steps) % available)

        watch, network = timed(warm_up + 1)
        first, longest = watch.first, max(1e-6, world.largest(int(1e6 * watch.step)) / 1e6)
        classified(network)
        least = warm_up + (3 if 4 * longest < LONG else 1)
        watch, network = timed(max(least, warm_up + min(int(SECONDS / longest), MOST_STEPS)))
        return Pace(max(0.0, first - warm_up * watch.step), watch.step, classified(network)), network

    def _sample(self, images: Samples, network: nn.Module) -> float:
        """Seconds to classify a sample, all ranks at once."""
        world, batch = self.problem.world, min(self.problem.store.test_samples, evaluation_batch(images.pixels))

        def timed(batches: int) -> float:
            chosen = torch.arange(batch * batches) % self.few.store.test_samples
            world.barrier()
            begin = time.perf_counter()
            classify(network, images, chosen, self.policy)
            return (time.perf_counter() - begin) / (batch * batches)

        timed(1)
        seconds = timed(1)
        batches = int(SECONDS / 3 / max(1e-6, world.largest(int(1e6 * seconds * batch)) / 1e6))
        return timed(min(batches, MOST_STEPS)) if batches > 1 else seconds


def largest(problem: Problem) -> int:
    """The subdomain of this rank whose subimage has the most pixels."""
    return max(problem.owned, key=lambda index: pixels_of(problem, index))


def pixels_of(problem: Problem, index: int) -> int:
    """Pixels of the subimage of a subdomain."""
    return int(np.prod(problem.store.decomposition.subdomains[problem.networks.subimage(index)].subimage.shape))

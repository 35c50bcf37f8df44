"""What the steps of a run share: the problem to solve, and where they record, report and save."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from ddcnn.config.settings import RunSettings
from ddcnn.data.batches import Augmentation, RankSubimages, Subimages
from ddcnn.data.image_spec import TrainedOn
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.experiment.plan import resolved
from ddcnn.experiment.recorder import Recorder
from ddcnn.io import parameters
from ddcnn.io.checkpoints import CheckpointManager
from ddcnn.io.metrics_log import Records
from ddcnn.io.parameters import Attribute
from ddcnn.io.progress import Progress
from ddcnn.method.aggregate import classify_by_dnn
from ddcnn.method.dnn_samples import DnnSamples
from ddcnn.method.factory import Networks
from ddcnn.parallel.environment import threads_per_rank
from ddcnn.parallel.groups import Groups, form_groups
from ddcnn.parallel.heartbeat import at
from ddcnn.parallel.stop_requests import StopRequests
from ddcnn.parallel.world import World
from ddcnn.report.analysis import Decision
from ddcnn.training.data_parallel import global_batch_size
from ddcnn.training.loop import Epoch, Recipe, Trainer, TrainState, WrappedCallback
from ddcnn.training.precision import DevicePolicy, choose_device
from ddcnn.training.resume import Checkpointer


@dataclass(frozen=True)
class Problem:
    """Decomposed images, and how the settings solve their classification, with one seed.

    Attributes:
        groups: which rank trains which subdomain.
        settings: the options of ``ddcnn run``.
        store: the decomposed images.
        policy: device and precision of this rank.
        dnn_samples: which training samples the local CNNs and the DNN learn from.
    """

    world: World
    groups: Groups
    settings: RunSettings
    store: PartitionedSet
    policy: DevicePolicy
    dnn_samples: DnnSamples

    @property
    def networks(self) -> Networks:
        return Networks(self.settings, self.store, self.policy)

    @property
    def owned(self) -> range:
        """The subdomains that this rank trains."""
        return self.groups.owned(self.networks.subdomains)

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """(S,) int64 per split."""
        return {split: self.store.labels(split) for split in self.store.samples}

    def with_settings(self, settings: RunSettings, dnn_data: str) -> "Problem":
        """The same images with other settings; ``dnn_data`` is "none" if no DNN is trained."""
        dnn_samples = DnnSamples.choose(dnn_data, self.store.labels("train"), settings.folds, settings.seed)
        return replace(self, settings=settings, dnn_samples=dnn_samples)

    # Images on the device

    def subimages(self, split: str, index: int) -> Subimages:
        """Those of a subdomain; training images are augmented."""
        return Subimages.load(self.store, split, self.networks.subimage(index), self.policy.device, self._augmentation(split))

    def owned_subimages(self, split: str) -> RankSubimages:
        """Those of all subdomains of this rank."""
        places = [self.networks.subimage(index) for index in self.owned]
        return RankSubimages.load(self.store, split, places, self.policy.device, self._augmentation(split))

    def whole_images(self, split: str) -> Subimages:
        return Subimages.load_whole(self.store, split, self.policy.device, self._augmentation(split))

    def _augmentation(self, split: str) -> Augmentation:
        return Augmentation("flip" in self.settings.augment, self.settings.margin) if split == "train" else Augmentation()

    # Recipes

    def recipe(self, epochs: int, lr: float | None, ranks: int, schedule: str | None = None, samples: int | None = None) -> Recipe:
        """The recipe of a CNN.

        Args:
            lr, schedule: None for those of local training.
            ranks: that train it data-parallel, with equal shares of every batch.
            samples: fewest that it is trained on; None for all training samples.
        """
        settings = self.settings
        batch_size = global_batch_size(settings.batch_size, samples or self.store.train_samples, ranks)
        return Recipe(
            epochs, batch_size, settings.optimizer, lr or settings.lr, settings.weight_decay, schedule or settings.schedule,
            settings.label_smoothing, self._class_weights,
        )  # fmt: skip

    @property
    def local_recipe(self) -> Recipe:
        samples, folds = self.store.train_samples, self.settings.folds
        fewest = samples - -(-samples // folds) if self.dnn_samples.kind in ("holdout", "out-of-fold") else samples
        return self.recipe(self.settings.epochs, None, self.groups.data_parallel.size, samples=fewest)

    def transfer_recipe(self, ranks: int) -> Recipe:
        settings = self.settings
        return self.recipe(settings.transfer_epochs, settings.transfer_lr or settings.lr / 5, ranks, settings.transfer_schedule)

    @property
    def dnn_recipe(self) -> Recipe:
        settings = self.settings
        return Recipe(
            settings.dnn_epochs, settings.batch_size, "adamw", settings.dnn_lr, 0.01, "one-cycle", class_weights=self._class_weights
        )  # fmt: skip

    @property
    def _class_weights(self) -> tuple[float, ...] | None:
        """(K,) weights with which all classes count equally: S / (K · samples of the class), K the number of classes with samples."""
        if self.settings.class_weights == "none":
            return None
        counts = np.bincount(self.labels["train"], minlength=self.networks.classes)
        return tuple((counts.sum() / ((counts > 0).sum() * np.maximum(counts, 1))).tolist())


def prepare(world: World, settings: RunSettings, store: PartitionedSet) -> Problem:
    """The problem on these ranks, for the Python API and for runs; all ranks together.

    Raises:
        InputError: the device or the precision is not available.
    """
    torch.set_num_threads(threads_per_rank(world, settings.threads))
    settings = resolved(settings, store)
    groups = form_groups(world, len(store.decomposition) * settings.networks_per_subimage)
    with world.raise_on_all_ranks():
        policy = DevicePolicy.choose(choose_device(world.local_rank, settings.device), settings.precision)
    if not world.all_equal(policy.precision.encode()):
        policy = replace(policy, precision="fp32")  # --precision auto, and some GPUs have no bf16
    dnn_samples = DnnSamples.choose(settings.dnn_data, store.labels("train"), settings.folds, settings.seed)
    return Problem(world, groups, settings, store, policy, dnn_samples)


@dataclass(frozen=True)
class Watched(WrappedCallback):
    """Records and shows each epoch, before ``inner`` saves it.

    Attributes:
        epochs: number of epochs that is shown.
        record: records an epoch of the network; None does not.
        title: what a line begins with.
    """

    progress: Progress
    epochs: int
    record: Callable[[nn.Module, Epoch], None] | None = None
    title: str = ""

    def restore(self, state: TrainState) -> None:
        super().restore(state)
        self.progress.skip(state.epoch - 1)

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        if self.record:
            self.record(state.module, epoch)
        self.progress.advance(f"{self.title}epoch {epoch.epoch}/{self.epochs}  loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}")
        super().after_epoch(state, epoch)


@dataclass(frozen=True)
class RunContext:
    """One run with one seed: the problem, where its results are recorded, and what asks it to stop."""

    problem: Problem
    results: Recorder
    stop_requests: StopRequests

    def should_stop(self) -> bool:
        return bool(self.stop_requests.reason)

    def progress(self, title: str, epochs: int) -> Progress:
        return Progress(title, epochs, self.problem.settings.progress if self.problem.world.rank == 0 else "none")

    def evaluates(self, epoch: Epoch) -> bool:
        """Whether the test images are classified after this epoch."""
        every = self.problem.settings.evaluate_every
        return bool(every) and epoch.epoch % every == 0

    def test_accuracy(self, probabilities: np.ndarray | None) -> float | None:
        """Accuracy of probabilities (S_test, K); None where there are none."""
        return None if probabilities is None else float((probabilities.argmax(1) == self.problem.labels["test"]).mean())

    def checkpointer(
        self, name: str, recipe: Recipe, samples: int, records: Records, ranks: World, others_stop: Callable[[], bool] = lambda: False
    ) -> Checkpointer:
        """The checkpoints of one training.

        Args:
            name: of their folder.
            samples: number of samples that the network learns from.
            ranks: those that save together.
            others_stop: whether another rank stops, where each works on its own.
        """
        problem = self.problem
        settings = problem.settings
        identity = settings.identity() | {"data": problem.store.source_sha256, "precision": problem.policy.precision}
        checkpoints = CheckpointManager(
            ranks, self.results.folder.training / name, identity, settings.keep_checkpoints, problem.groups.leads
        )

        def should_stop() -> bool:
            return self.should_stop() or others_stop()

        return Checkpointer(checkpoints, recipe, samples, records, settings, should_stop)

    @contextmanager
    def joint_training(
        self, method: str, name: str, epochs: int, classify: Callable[[], np.ndarray | None]
    ) -> Iterator[Callable[[Recipe, str], Trainer]]:
        """Context of training the network ``name`` of all subdomains, with all ranks.

        Args:
            classify: the test probabilities on rank 0. The accuracy after the last epoch is recorded as the method's.

        Yields:
            what makes the trainer of a recipe, and of a stage of the training if it has several.
        """
        problem, timeline = self.problem, self.problem.world.timeline

        def record(_: nn.Module, epoch: Epoch) -> None:
            probabilities = classify() if self.evaluates(epoch) and epoch.epoch < epochs else None
            self.results.epoch(method, None, epoch, self.test_accuracy(probabilities))

        def trainer(recipe: Recipe, stage: str) -> Trainer:
            samples, records = problem.store.train_samples, self.results.records(method, None)
            checkpointer = self.checkpointer("-".join([method, *stage.split()]), recipe, samples, records, problem.world)
            seeds = problem.networks.seeds(f"{method} {stage}".strip())
            return Trainer(recipe, problem.policy, seeds, Watched(checkpointer, progress, epochs, record))

        with failing_in(name), timeline.phase(method), timeline.span("compute"), self.progress(method, epochs) as progress:
            yield trainer

    def decision(self, dnn: nn.Module, values: np.ndarray, labels: np.ndarray) -> Decision:
        """How the DNN, as it is now, decides on interface values (S, N, C) of test samples with labels (S,)."""
        problem = self.problem
        frozen, policy = copy.deepcopy(dnn), problem.networks.fp32_policy  # transfer continues to train the DNN
        return Decision(
            values, labels, lambda values, present: classify_by_dnn(frozen, values, policy, present).argmax(axis=1),
            in_part=problem.settings.interface != "features",
        )  # fmt: skip

    def save(self, name: str, network: nn.Module, **attributes: Attribute) -> None:
        about = TrainedOn.of(self.problem.store).attributes() | attributes
        parameters.save(self.results.folder.parameters(name), network, about)


@contextmanager
def failing_in(what: str) -> Iterator[None]:
    """Adds the subdomain or network to the message of any exception."""
    try:
        with at(what):
            yield
    except Exception as error:
        error.add_note(what)
        raise

"""What the steps of a run share: the problem, and where they record, show and save."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.data.image_spec import TrainedOn
from ddcnn.experiment.problem import Problem
from ddcnn.experiment.recorder import Recorder
from ddcnn.io import parameters
from ddcnn.io.checkpoints import CheckpointManager
from ddcnn.io.metrics_log import Records
from ddcnn.io.parameters import Attribute
from ddcnn.io.progress import Overall, Progress
from ddcnn.io.rows import Room, Table
from ddcnn.method.aggregate import classify_by_dnn
from ddcnn.parallel.heartbeat import at
from ddcnn.parallel.stop_requests import StopRequests
from ddcnn.parallel.world import World
from ddcnn.report.analysis import Decision
from ddcnn.training.loop import Trainer, WrappedCallback
from ddcnn.training.recipe import Recipe
from ddcnn.training.resume import Checkpointer
from ddcnn.training.state import Epoch, TrainState


@dataclass(frozen=True)
class RecordedEpochs(WrappedCallback):
    """Records and shows each epoch, before ``inner`` saves it.

    Attributes:
        epochs: of the training.
        record: records an epoch; None does not.
        title: which of the trainings of a phase this is, if there are several.
    """

    progress: Progress
    epochs: int
    record: Callable[[Epoch], None] | None = None
    title: str = ""

    def restore(self, state: TrainState) -> None:
        super().restore(state)
        self.progress.skip(state.epoch - 1)

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        if self.record:
            self.record(epoch)
        which = f"{self.title}: {epoch.epoch}/{self.epochs}  " if self.title else ""  # else the numbers of the phase say it
        text = f"{which}loss {epoch.loss:.3f}  training accuracy {epoch.accuracy:.3f}"
        if epoch.validation:
            text += f"  validation accuracy {epoch.validation.accuracy:.3f}"
        if epoch.stops_early and state.kept:
            text += f"; stops early after epoch {epoch.epoch}, no better one since epoch {state.kept.epoch}"
            self.progress.skip(self.epochs - epoch.epoch)
        self.progress.advance(text)
        super().after_epoch(state, epoch)


@dataclass(frozen=True)
class RunContext:
    """One run with one seed: the problem, where its results are recorded, what asks it to stop, and how far all seeds are, on rank 0."""

    problem: Problem
    results: Recorder
    stop_requests: StopRequests
    overall: Overall | None = None

    def should_stop(self) -> bool:
        return bool(self.stop_requests.reason)

    def progress(self, title: str, epochs: int) -> Progress:
        style = self.problem.settings.progress if self.problem.world.rank == 0 else "none"
        return Progress(title, epochs, style, overall=self.overall, unit="epochs")

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
        identity |= {"weights": problem.weights_sha256} if problem.weights else {}
        folder = self.results.folder.training / name
        checkpoints = CheckpointManager(ranks, folder, identity, settings.keep_checkpoints, problem.groups.leads)
        return Checkpointer(checkpoints, recipe, samples, records, settings, lambda: self.should_stop() or others_stop())

    @contextmanager
    def joint_training(
        self, method: str, name: str, epochs: int, classify: Callable[[nn.Module], Table | None]
    ) -> Iterator[Callable[[Recipe, str], Trainer]]:
        """Context of training the network ``name`` of all subdomains, with all ranks.

        Args:
            classify: the validation probabilities on rank 0. The score after the last epoch is recorded as the method's.

        Yields:
            what makes the trainer of a recipe, and of a stage of the training if it has several.
        """
        problem, timeline = self.problem, self.problem.world.timeline

        def record(epoch: Epoch) -> None:
            with problem.world.raise_on_all_ranks():
                self.results.epoch(method, None, epoch)

        def trainer(recipe: Recipe, stage: str) -> Trainer:
            samples, records = problem.store.train_samples, self.results.records(method, None)
            role = f"{method} {stage}".strip()
            checkpointer = self.checkpointer(role.replace(" ", "-"), recipe, samples, records, problem.world)
            recorded = RecordedEpochs(checkpointer, progress, epochs, record)
            callback = problem.validated(recorded, classify, problem.world, recipe.epochs, decides=not stage)
            return Trainer(recipe, problem.policy, problem.networks.seeds_of(role), callback)

        with (
            failing_in(name, f"--{Method.GLOBAL if Method(method).whole_image else method}-lr"),
            timeline.phase(method),
            timeline.span("compute"),
            self.progress(method, epochs) as progress,
        ):
            yield trainer

    @property
    def scratch(self) -> Room:
        """For what grows with the samples."""
        return Room(self.results.folder.path, len(self.problem.owned))

    def decision(self, dnn: nn.Module, values: np.ndarray, labels: np.ndarray) -> Decision:
        """How the DNN, as it is now, decides on interface values (S, N, C) of test samples with labels (S,)."""
        problem = self.problem
        frozen, policy = copy.deepcopy(dnn), problem.networks.dnn_policy  # transfer continues to train the DNN
        return Decision(
            values, labels, lambda values, present: classify_by_dnn(frozen, values, policy, present).argmax(axis=1),
            in_part=problem.settings.decides_in_part,
        )  # fmt: skip

    def save(self, name: str, network: nn.Module, **attributes: Attribute) -> None:
        about = TrainedOn.of(self.problem.store).attributes() | attributes
        parameters.save(self.results.folder.parameters(name), network, about)


@contextmanager
def failing_in(what: str, lr: str) -> Iterator[None]:
    """Adds the subdomain or network to the message of any exception, and the option ``lr`` where the learning rate was too large."""
    try:
        with at(what):
            yield
    except Exception as error:
        if isinstance(error, FloatingPointError):
            error.args = (f"{error} ({lr})",)
        error.add_note(what)
        raise

"""What every step of a run needs beside the problem itself: where it records, tells and keeps what it does."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ddcnn.experiment.recorder import Results
from ddcnn.inference.trained_run import TrainedOn
from ddcnn.io import parameters
from ddcnn.io.checkpoints import Sequence
from ddcnn.io.parameters import Attribute
from ddcnn.io.progress import Progress
from ddcnn.method.aggregate import classify_by_dnn
from ddcnn.method.factory import Problem
from ddcnn.parallel.heartbeat import at
from ddcnn.parallel.stop_requests import Interrupts
from ddcnn.report.analysis import Decision
from ddcnn.training.loop import Epoch, Recipe
from ddcnn.training.resume import Keeper


@dataclass(frozen=True)
class Job(Problem):
    """One run with one seed."""

    results: Results
    interrupts: Interrupts

    @property
    def every_test_sample(self) -> torch.Tensor:
        return torch.arange(self.store.test_samples)

    def asked_to_stop(self) -> bool:
        return bool(self.interrupts.reason)

    # Telling and keeping

    def progress(self, title: str, epochs: int) -> Progress:
        return Progress(title, epochs, self.settings.progress if self.world.rank == 0 else "none")

    def evaluates(self, epoch: Epoch) -> bool:
        """Whether the test images are classified after this epoch."""
        return bool(self.settings.evaluate_every) and epoch.epoch % self.settings.evaluate_every == 0

    def test_accuracy(self, probabilities: np.ndarray | None) -> float | None:
        """Of probabilities (S_test, K), which may be on rank 0 alone."""
        return None if probabilities is None else float((probabilities.argmax(1) == self.labels["test"]).mean())

    def watch(self, phase: str, epoch: Epoch, epochs: int, progress: Progress, classified: Callable[[], np.ndarray | None]) -> None:
        """Records an epoch of a network of all subdomains; the last one's test accuracy is that of the method."""
        probabilities = classified() if self.evaluates(epoch) and epoch.epoch < epochs else None
        self.results.epoch(phase, None, epoch, self.test_accuracy(probabilities))
        progress.advance(state_of(epoch, epochs))

    def keeper(
        self, name: str, recipe: Recipe, samples: int, progress: Progress, phase: str, subdomain: int | None = None,
        others_stop: Callable[[], bool] | None = None,
    ) -> Keeper:  # fmt: skip
        """Of one training, whose epochs belong to a phase.

        It is kept by all ranks together or, if ``others_stop`` says whether they stop, by those alone that train: the subdomain's
        group, or without a subdomain this rank.
        """
        settings, world = self.settings, self.world
        identity = settings.identity() | {"data": self.store.source_sha256, "precision": self.policy.precision}
        folder = self.results.folder.training / name
        ranks = world if others_stop is None else world.alone() if subdomain is None else self.groups.data_parallel
        sequence = Sequence(ranks, folder, identity, settings.keep_checkpoints)
        every = (settings.checkpoint_epochs, settings.checkpoint_seconds)
        return Keeper(
            sequence, every, self.interrupts, self.results.records(phase, subdomain), recipe, samples, world.timeline, progress,
            self.groups.leads, others_stop,
        )  # fmt: skip

    def decision(self, dnn: nn.Module, values: np.ndarray, labels: np.ndarray) -> Decision:
        """How a DNN, as it is now, decides on interface values (S, N, C) of test samples with labels (S,)."""
        now, policy = copy.deepcopy(dnn), self.networks.fp32_policy  # transfer will train it on
        return Decision(
            values, labels, lambda values, present: classify_by_dnn(now, values, policy, present).argmax(axis=1),
            in_part=self.settings.interface != "features",
        )  # fmt: skip

    def save(self, name: str, network: nn.Module, **attributes: Attribute) -> None:
        parameters.save(self.results.folder.parameters(name), network, TrainedOn.of(self.store).attributes() | attributes)


def state_of(epoch: Epoch, epochs: int) -> str:
    return f"epoch {epoch.epoch}/{epochs}  loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}"


@contextmanager
def failing_in(what: str) -> Iterator[None]:
    """Names the subdomain or network in the message of whatever fails."""
    try:
        with at(what):
            yield
    except Exception as error:
        error.add_note(what)
        raise

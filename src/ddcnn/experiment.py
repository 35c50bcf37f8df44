"""A run in the order of the papers: local training, gather, one decision. Module ``plan`` has partitioned the images."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # torch's optimizers import it at their first step, a second that is none of the training

from ddcnn import checkpoint
from ddcnn.config import RunSettings
from ddcnn.data.batches import Augmentation, Subimages
from ddcnn.data.store import SPLITS, PartitionedSet
from ddcnn.method.aggregate import average, dnn_rows, train_dnn, vote
from ddcnn.method.local import DnnSamples, LocalClassifier, train_local
from ddcnn.networks.registry import NETWORKS
from ddcnn.networks.shape import Shape
from ddcnn.parallel import World
from ddcnn.progress import Progress
from ddcnn.results import Results
from ddcnn.seeding import Seeds
from ddcnn.training import Engine, Epoch, Recipe, classify


@dataclass(frozen=True)
class Job:
    """What every step of a run needs.

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

    def progress(self, title: str, epochs: int) -> Progress:
        return Progress(title, epochs, self.settings.progress if self.world.rank == 0 else "none")

    def save(self, name: str, network: torch.nn.Module, **attributes: str | int | float | tuple[int, ...]) -> None:
        checkpoint.save(self.results.output / "checkpoints" / f"{name}.h5", network, attributes)


def run(world: World, settings: RunSettings, store: PartitionedSet, output: Path) -> None:
    """Everything after the partitioning; all ranks together."""
    torch.set_num_threads(world.threads(settings.threads))
    with world.together():
        engine = Engine.choose(world.device(settings.device), settings.precision)
    labels = {split: store.labels(split) for split in SPLITS}
    dnn_samples = DnnSamples.choose(
        settings.dnn_data if "dnn" in settings.methods else "none", labels["train"], settings.folds, settings.seed
    )
    job = Job(world, settings, store, engine, labels, dnn_samples, Results(world, settings, store, output))

    with world.timeline.phase("local"):
        owned = world.owned(len(store.decomposition))
        with job.progress("local CNNs", settings.epochs * len(owned) * dnn_samples.networks) as progress:
            found = [train_subdomain(job, index, progress) for index in owned]

    with world.timeline.phase("gather"):
        classifications = np.stack([np.concatenate([local.for_dnn, local.test]) for local in found])
        gathered = world.gather(classifications)  # (ranks, owned, S_dnn + S_test, K) on rank 0

    with world.timeline.phase("dnn"):
        if gathered is not None:
            decide(job, gathered.reshape(-1, *gathered.shape[2:]).swapaxes(0, 1))
        world.barrier()

    job.results.write(engine, len(dnn_samples.index))


def train_subdomain(job: Job, index: int, progress: Progress) -> LocalClassifier:
    """Local training of one subdomain, watched, and its parameters saved."""
    settings, store, engine = job.settings, job.store, job.engine
    divisor = settings.width_divisor or len(store.decomposition) ** 0.5
    shape = Shape(store.decomposition.subdomains[index].subimage.shape, store.shape[-1], len(store.class_names))
    make = partial(NETWORKS[settings.network], shape, settings.width, divisor)
    recipe = Recipe(
        settings.epochs, settings.batch_size, settings.optimizer, settings.lr, settings.weight_decay, settings.schedule,
        settings.label_smoothing,
    )  # fmt: skip
    with job.world.timeline.span("compute"), failing_in(f"subdomain {index}"):
        training = Subimages.load(store, "train", index, engine.device, Augmentation("flip" in settings.augment, settings.margin))
        test = Subimages.load(store, "test", index, engine.device)

        def after_epoch(network: torch.nn.Module, epoch: Epoch, fold: int | None) -> None:
            if fold is None:
                accuracy = None
                if settings.evaluate_every and epoch.epoch % settings.evaluate_every == 0:
                    probabilities = classify(network, test, torch.arange(len(test.labels)), engine)
                    accuracy = float((probabilities.argmax(1).numpy() == job.labels["test"]).mean())
                job.results.epoch("local", index, epoch, accuracy)
            what = f"subdomain {index}" + ("" if fold is None else f" without fold {fold}")
            progress.advance(f"{what}  {_state(epoch, settings.epochs)}")

        begin = time.perf_counter()
        found = train_local(make, training, test, job.dnn_samples, recipe, engine, Seeds(settings.seed, "local", index), after_epoch)
        job.results.subdomain(index, found.network, time.perf_counter() - begin)
        job.save(
            f"local-{index:04d}", found.network, architecture=settings.network, width=settings.width, divisor=divisor,
            spatial=shape.spatial, channels=shape.channels, classes=shape.classes, subdomain=index,
        )  # fmt: skip
    return found


def decide(job: Job, probabilities: np.ndarray) -> None:
    """On rank 0: one decision out of the local classifications (S_dnn + S_test, N, K), by every method that was asked for."""
    settings, results = job.settings, job.results
    for_dnn, test = np.split(probabilities, [len(job.dnn_samples.index)])
    results.local_classes = test.argmax(axis=2)
    if "vote" in settings.methods:
        results.method("vote", vote(test))
    if "average" in settings.methods:
        mean = average(test)
        results.method("average", mean.argmax(axis=1), mean)
    if "dnn" in settings.methods:
        recipe = Recipe(settings.dnn_epochs, settings.batch_size, "adamw", settings.dnn_lr, 0.01, "one-cycle")
        engine = replace(job.engine, precision="fp32")  # too small to gain from less
        with job.world.timeline.span("compute"), failing_in("DNN"), job.progress("DNN", settings.dnn_epochs) as progress:

            def after_epoch(epoch: Epoch) -> None:
                results.epoch("dnn", None, epoch, None)
                progress.advance(_state(epoch, settings.dnn_epochs))

            labels = job.labels["train"][job.dnn_samples.index]
            network = train_dnn(for_dnn, labels, recipe, engine, Seeds(settings.seed, "dnn"), after_epoch)
            found = classify(network, dnn_rows(test, job.labels["test"], engine), torch.arange(len(test)), engine).numpy()
        results.method("dnn", found.argmax(axis=1), found, network)
        job.save("dnn", network, subdomains=test.shape[1], classes=test.shape[2])


def _state(epoch: Epoch, epochs: int) -> str:
    return f"epoch {epoch.epoch}/{epochs}  loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}"


@contextmanager
def failing_in(what: str) -> Iterator[None]:
    """Names the subdomain or network in the message of whatever fails."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise

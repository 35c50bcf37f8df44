"""A run in the order of the papers: local training, gather, one decision. Module ``plan`` has partitioned the images."""

import time
from collections.abc import Callable, Iterator
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
from ddcnn.method.local import DnnSamples, classify_out_of_fold, train_local
from ddcnn.networks.registry import NETWORKS
from ddcnn.networks.shape import Shape
from ddcnn.parallel import World
from ddcnn.plan import prepare_output
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


def run(world: World, settings: RunSettings, store: PartitionedSet) -> None:
    """Everything after the partitioning; all ranks together."""
    torch.set_num_threads(world.threads(settings.threads))
    with world.together():
        engine = Engine.choose(world.device(settings.device), settings.precision)
    output = Path(world.on_root(lambda: str(prepare_output(settings, store))))  # nothing is refused any more: an older run may go
    labels = {split: store.labels(split) for split in SPLITS}
    dnn_samples = DnnSamples.choose(
        settings.dnn_data if "dnn" in settings.methods else "none", labels["train"], settings.folds, settings.seed
    )
    job = Job(world, settings, store, engine, labels, dnn_samples, Results(world, settings, store, output))

    owned = world.owned(len(store.decomposition))
    with job.progress("local CNNs", settings.epochs * len(owned) * dnn_samples.networks) as progress:
        with world.timeline.phase("local"):
            found = [train_subdomain(job, index, progress) for index in owned]
        with world.timeline.phase("folds" if dnn_samples.kind == "out-of-fold" else "local"):
            for_dnn = [classify_for_dnn(job, index, local.network, progress) for index, local in zip(owned, found, strict=True)]

    with world.timeline.phase("gather"):
        classifications = [np.concatenate([seen, local.test]) for seen, local in zip(for_dnn, found, strict=True)]
        gathered = world.gather(np.stack(classifications))  # (ranks, owned, S_dnn + S_test, K) on rank 0

    with world.timeline.phase("dnn"):
        if gathered is not None:
            decide(job, gathered.reshape(-1, *gathered.shape[2:]).swapaxes(0, 1))
        world.barrier()

    job.results.write(engine, len(dnn_samples.index))


@dataclass(frozen=True)
class LocalClassifier:
    """A trained local CNN f_i and the p_i of the test samples, (S_test, K) float32."""

    network: torch.nn.Module
    test: np.ndarray


@dataclass(frozen=True)
class LocalTraining:
    """How the networks of one subdomain are made and trained."""

    make: Callable[[], torch.nn.Module]
    recipe: Recipe
    seeds: Seeds
    about: dict[str, str | int | float | tuple[int, ...]]

    @classmethod
    def of(cls, job: Job, index: int) -> "LocalTraining":
        settings, store = job.settings, job.store
        divisor = settings.width_divisor or len(store.decomposition) ** 0.5
        shape = Shape(store.decomposition.subdomains[index].subimage.shape, store.shape[-1], len(store.class_names))
        recipe = Recipe(
            settings.epochs, settings.batch_size, settings.optimizer, settings.lr, settings.weight_decay, settings.schedule,
            settings.label_smoothing,
        )  # fmt: skip
        about = {
            "architecture": settings.network, "width": settings.width, "divisor": divisor, "spatial": shape.spatial,
            "channels": shape.channels, "classes": shape.classes, "subdomain": index,
        }  # fmt: skip
        return cls(partial(NETWORKS[settings.network], shape, settings.width, divisor), recipe, Seeds(settings.seed, "local", index), about)


def load_training(job: Job, index: int) -> Subimages:
    augmentation = Augmentation("flip" in job.settings.augment, job.settings.margin)
    return Subimages.load(job.store, "train", index, job.engine.device, augmentation)


def train_subdomain(job: Job, index: int, progress: Progress) -> LocalClassifier:
    """Local training of one subdomain, watched, and its parameters saved."""
    settings, engine, local = job.settings, job.engine, LocalTraining.of(job, index)
    every_test = torch.arange(job.store.test_samples)

    def after_epoch(network: torch.nn.Module, epoch: Epoch) -> None:
        accuracy = None
        if settings.evaluate_every and epoch.epoch % settings.evaluate_every == 0:
            probabilities = classify(network, test, every_test, engine)
            accuracy = float((probabilities.argmax(1).numpy() == job.labels["test"]).mean())
        job.results.epoch("local", index, epoch, accuracy)
        progress.advance(f"subdomain {index}  {_state(epoch, settings.epochs)}")

    with failing_in(f"subdomain {index}"), job.world.timeline.span("compute"):
        training, test = load_training(job, index), Subimages.load(job.store, "test", index, engine.device)
        begin = time.perf_counter()
        network = train_local(local.make, training, job.dnn_samples.for_cnn, local.recipe, engine, local.seeds, after_epoch)
        job.results.subdomain(index, network, time.perf_counter() - begin)
        job.save(f"local-{index:04d}", network, **local.about)
        return LocalClassifier(network, classify(network, test, every_test, engine).numpy())


def classify_for_dnn(job: Job, index: int, network: torch.nn.Module, progress: Progress) -> np.ndarray:
    """The p_i (S_dnn, K) of the training samples of the DNN, by the subdomain's local CNN or, out of fold, by those of the folds."""
    samples, engine, local = job.dnn_samples, job.engine, LocalTraining.of(job, index)

    def after_epoch(network: torch.nn.Module, epoch: Epoch) -> None:
        progress.advance(f"subdomain {index}, folds  {_state(epoch, job.settings.epochs)}")

    with failing_in(f"subdomain {index}"), job.world.timeline.span("compute"):
        training = load_training(job, index)
        if samples.kind == "out-of-fold":
            return classify_out_of_fold(local.make, training, samples.fold, local.recipe, engine, local.seeds, after_epoch)
        return classify(network, training, torch.from_numpy(samples.index), engine).numpy()


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

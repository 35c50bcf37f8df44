"""A run in the order of the papers: local training, gather, one decision. Module ``plan`` has partitioned the images."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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


def run(world: World, settings: RunSettings, store: PartitionedSet, output: Path) -> None:
    """Everything after the partitioning; all ranks together."""
    torch.set_num_threads(world.threads(settings.threads))
    with world.together():
        engine = Engine.choose(world.device(settings.device), settings.precision)
    labels = {split: store.labels(split) for split in SPLITS}
    dnn_samples = DnnSamples.choose(settings.dnn_data, labels["train"], settings.folds, settings.seed)
    results = Results(world, settings, store, output)

    with world.timeline.phase("local"):
        owned = world.owned(len(store.decomposition))
        epochs = settings.epochs * len(owned) * (1 + settings.folds * (settings.dnn_data == "out-of-fold"))
        with Progress("local CNNs", epochs, settings.progress if world.rank == 0 else "none") as progress:
            found = [train_subdomain(world, settings, store, index, dnn_samples, engine, progress, results) for index in owned]

    with world.timeline.phase("gather"):
        classifications = np.stack([np.concatenate([local.for_dnn, local.test]) for local in found])
        gathered = world.gather(classifications)  # (ranks, owned, S_dnn + S_test, K) on rank 0

    with world.timeline.phase("dnn"):
        if gathered is not None:
            decide(world, settings, dnn_samples, labels, gathered, engine, results)
        world.barrier()

    results.write(engine, len(dnn_samples.index))


def train_subdomain(
    world: World,
    settings: RunSettings,
    store: PartitionedSet,
    index: int,
    dnn_samples: DnnSamples,
    engine: Engine,
    progress: Progress,
    results: Results,
) -> LocalClassifier:
    """Local training of one subdomain, watched, and its parameters saved."""
    augmentation = Augmentation("flip" in settings.augment, settings.margin)
    divisor = settings.width_divisor or len(store.decomposition) ** 0.5
    shape = Shape(store.decomposition.subdomains[index].subimage.shape, store.shape[-1], len(store.class_names))
    recipe = Recipe(
        settings.epochs, settings.batch_size, settings.optimizer, settings.lr, settings.weight_decay, settings.schedule,
        settings.label_smoothing,
    )  # fmt: skip
    with world.timeline.span("compute"), failing_in(f"subdomain {index}"):
        training = Subimages.load(store, "train", index, engine.device, augmentation)
        test = Subimages.load(store, "test", index, engine.device)

        def after_epoch(network: torch.nn.Module, epoch: Epoch, fold: int | None) -> None:
            what = f"subdomain {index}" + ("" if fold is None else f" without fold {fold}")
            if fold is None:
                accuracy = None
                if settings.evaluate_every and epoch.epoch % settings.evaluate_every == 0:
                    found = classify(network, test, torch.arange(len(test.labels)), engine)
                    accuracy = float((found.argmax(1) == test.labels.cpu()).float().mean())
                results.epoch("local", index, epoch, accuracy)
            progress.advance(f"{what}  epoch {epoch.epoch}/{settings.epochs}  loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}")

        make = partial(NETWORKS[settings.network], shape, settings.width, divisor)
        begin = time.perf_counter()
        found = train_local(make, training, test, dnn_samples, recipe, engine, Seeds(settings.seed, "local", index), after_epoch)
        results.subdomain(index, found.network, time.perf_counter() - begin)
        checkpoint.save(
            results.output / "checkpoints" / f"local-{index:04d}.h5", found.network,
            {"network": settings.network, "width": settings.width, "divisor": divisor, "spatial": shape.spatial,
             "channels": shape.channels, "classes": shape.classes, "subdomain": index},
        )  # fmt: skip
    return found


def decide(
    world: World,
    settings: RunSettings,
    dnn_samples: DnnSamples,
    labels: dict[str, np.ndarray],
    gathered: np.ndarray,
    engine: Engine,
    results: Results,
) -> None:
    """On rank 0: one decision out of the local classifications, by every method that was asked for."""
    probabilities = gathered.reshape(-1, *gathered.shape[2:]).swapaxes(0, 1)  # (S_dnn + S_test, N, K)
    for_dnn, test = np.split(probabilities, [len(dnn_samples.index)])
    results.local_classes = test.argmax(axis=2)
    if "vote" in settings.methods:
        results.method("vote", vote(test))
    if "average" in settings.methods:
        mean = average(test)
        results.method("average", mean.argmax(axis=1), mean)
    if "dnn" in settings.methods:
        recipe = Recipe(settings.dnn_epochs, settings.batch_size, "adamw", settings.dnn_lr, 0.01, "one-cycle")
        with (
            world.timeline.span("compute"),
            failing_in("DNN"),
            Progress("DNN", settings.dnn_epochs, settings.progress) as progress,
        ):

            def after_epoch(epoch: Epoch) -> None:
                results.epoch("dnn", None, epoch, None)
                progress.advance(f"epoch {epoch.epoch}/{settings.dnn_epochs}  loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}")

            engine = replace(engine, precision="fp32")  # too small to gain from less
            network = train_dnn(for_dnn, labels["train"][dnn_samples.index], recipe, engine, Seeds(settings.seed, "dnn"), after_epoch)
            found = classify(network, dnn_rows(test, labels["test"], engine), torch.arange(len(test)), engine).numpy()
        results.method("dnn", found.argmax(axis=1), found, network)
        checkpoint.save(results.output / "checkpoints" / "dnn.h5", network, {"subdomains": test.shape[1], "classes": test.shape[2]})


@contextmanager
def failing_in(what: str) -> Iterator[None]:
    """Names the subdomain or network in the message of whatever fails."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise

"""A run in the order of the papers: local training, gather, one decision; then all as one network, and the undecomposed baseline.

Module ``plan`` has partitioned the images.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # torch's optimizers import it at their first step, a second that is none of the training
from torch import nn

from ddcnn.checks import check_composition, check_start
from ddcnn.config import RunSettings
from ddcnn.data.batches import OwnedSubimages, Subimages
from ddcnn.data.store import SPLITS, PartitionedSet
from ddcnn.job import Job, Networks, failing_in, state_of
from ddcnn.method.aggregate import average, dnn_rows, train_dnn, vote
from ddcnn.method.coherent import CoherentNetwork, train_coherent
from ddcnn.method.composition import compose
from ddcnn.method.global_cnn import classify_together, train_global
from ddcnn.method.interface import share
from ddcnn.method.local import DnnSamples, classify_handed, hand_over, hand_over_out_of_fold, train_local
from ddcnn.parallel import World
from ddcnn.plan import prepare_output
from ddcnn.progress import Progress
from ddcnn.results import Results
from ddcnn.seeding import seed_name
from ddcnn.summary import write_summary
from ddcnn.training import START, Engine, Epoch, build, classify


def run(world: World, settings: RunSettings, store: PartitionedSet) -> None:
    """Everything after the partitioning; all ranks together."""
    torch.set_num_threads(world.threads(settings.threads))
    with world.together():
        engine = Engine.choose(world.device(settings.device), settings.precision)
        seeds = [settings.model_copy(update={"seed": settings.seed + k, "seeds": 1}) for k in range(settings.seeds)]
        if settings.start_from and settings.needs("local"):
            seeds = [check_start(Networks(own, store, engine), world.owned(len(store.decomposition))) for own in seeds]
    if settings.decomposition == "width" and "transfer" in settings.methods:
        world.on_root(lambda: check_composition(world.alone(), Networks(settings, store, engine)))
    output = Path(world.on_root(lambda: str(prepare_output(settings, store))))  # nothing is refused any more: an older run may go
    if settings.seeds == 1:
        run_seed(world, seeds[0], store, engine, output)
        return
    folders = [output / seed_name(own.seed) for own in seeds]
    for own, folder in zip(seeds, folders, strict=True):
        if folder != folders[0]:
            world.barrier()
            world.timeline.begin()
        own = own.model_copy(update={"output": folder})
        world.on_root(lambda own=own: str(prepare_output(own, store)))
        run_seed(world, own, store, engine, folder)
    world.on_root(lambda: write_summary(output, folders, show=settings.progress != "none"))


def run_seed(world: World, settings: RunSettings, store: PartitionedSet, engine: Engine, output: Path) -> None:
    labels = {split: store.labels(split) for split in SPLITS}
    networks = Networks(settings, store, engine)
    trains_dnn = settings.needs("dnn") and not world.broadcast(settings.start_from is not None and networks.has_dnn)
    kind = settings.dnn_data if trains_dnn else "none"
    dnn_samples = DnnSamples.choose(kind, labels["train"], settings.folds, settings.seed)
    job = Job(world, settings, store, engine, labels, dnn_samples, Results(world, settings, store, output))

    if settings.needs("local"):
        local_cnns, dnn = two_step(job)
    if "coherent" in settings.methods:
        fresh = [job.networks.new_local(index, "coherent") for index in job.owned]
        run_coherent(job, "coherent", fresh, job.networks.new_dnn("coherent dnn"))
    if "transfer" in settings.methods and settings.decomposition == "width":
        run_global(job, "transfer", local_cnns)
    elif "transfer" in settings.methods:
        with world.timeline.phase("transfer"):
            warm = dnn or job.networks.new_dnn("dnn")  # rank 0 has trained it
            share(world, warm.parameters())
        run_coherent(job, "transfer", local_cnns, warm)
    if "global" in settings.methods:
        run_global(job, "global")
    job.results.write(engine, networks.global_parameters)


# Local CNNs, gather, one decision (arXiv 2302.06564)


@dataclass(frozen=True)
class LocalClassifier:
    """What a trained local CNN f_i says.

    Attributes:
        test: p_i of the test samples, (S_test, K).
        handed_test: interface values of the same, (S_test, C).
        handed: interface values of the DNN's training samples, (S_dnn, C).
    """

    test: np.ndarray
    handed_test: np.ndarray
    handed: np.ndarray


def two_step(job: Job) -> tuple[list[nn.Module], nn.Module | None]:
    """Trains the parts one after the other: the rank's local CNNs, and on rank 0 the DNN, if a method needs it."""
    world, settings = job.world, job.settings
    with job.progress("local CNNs", settings.epochs * len(job.owned) * job.dnn_samples.networks) as progress:
        with world.timeline.phase("local"):
            networks = [obtain_local(job, index, progress) for index in job.owned]
        with world.timeline.phase("folds" if job.dnn_samples.kind == "out-of-fold" else "local"):
            found = [classify_local(job, index, network, progress) for index, network in zip(job.owned, networks, strict=True)]

    with world.timeline.phase("gather"):
        test = world.gather(np.stack([local.test for local in found]))  # (ranks, owned, S_test, K) on rank 0
        handed = handed_test = None
        if settings.needs("dnn"):
            handed = world.gather(np.stack([local.handed for local in found]))  # (ranks, owned, S_dnn, C); nothing for a DNN that is there
            handed_test = test
            if settings.interface != "probabilities":
                handed_test = world.gather(np.stack([local.handed_test for local in found]))

    dnn = None
    with world.timeline.phase("dnn"):
        if test is not None:
            decide(job, samples_first(test))
        if handed is not None and handed_test is not None:
            dnn = decide_by_dnn(job, samples_first(handed), samples_first(handed_test))
        world.barrier()
    return networks, dnn


def samples_first(gathered: np.ndarray) -> np.ndarray:
    """(ranks, owned, S, C) -> (S, N, C)."""
    return np.concatenate(gathered).swapaxes(0, 1)


def obtain_local(job: Job, index: int, progress: Progress) -> nn.Module:
    """The local CNN of a subdomain, trained and watched, or taken from another run; its parameters are saved."""
    settings, engine = job.settings, job.engine

    def after_epoch(network: nn.Module, epoch: Epoch) -> None:
        accuracy = None
        if job.evaluates(epoch):
            probabilities = classify(network, test, job.every_test_sample, engine).numpy()
            accuracy = job.test_accuracy(probabilities)
            job.results.local_classification(index, probabilities)
        job.results.epoch("local", index, epoch, accuracy)
        progress.advance(f"subdomain {index}  {state_of(epoch, settings.epochs)}")

    with failing_in(f"subdomain {index}"), job.world.timeline.span("compute"):
        begin, epochs = time.perf_counter(), settings.epochs
        if settings.start_from:
            network, epochs = job.networks.kept_local(index)
        else:
            training = Subimages.load(job.store, "train", index, engine.device, job.augmentation)
            test = Subimages.load(job.store, "test", index, engine.device)
            begin = time.perf_counter()
            make, seeds = job.networks.make_local(index), job.networks.seeds("local", index)
            network = train_local(make, training, job.dnn_samples.for_cnn, job.recipe(epochs), engine, seeds, after_epoch)
        job.results.subdomain(index, network, time.perf_counter() - begin)
        job.save(f"local-{index:04d}", network, epochs=epochs, **job.networks.about_local(index))
        return network


def classify_local(job: Job, index: int, network: nn.Module, progress: Progress) -> LocalClassifier:
    """The p_i of the test samples, and what the DNN learns from: by the subdomain's local CNN or, out of fold, by those of the folds."""
    settings, samples, engine = job.settings, job.dnn_samples, job.engine

    def after_epoch(network: nn.Module, epoch: Epoch) -> None:
        progress.advance(f"subdomain {index}, folds  {state_of(epoch, settings.epochs)}")

    with failing_in(f"subdomain {index}"), job.world.timeline.span("compute"):
        test = Subimages.load(job.store, "test", index, engine.device)
        handed_test = hand_over(settings.interface, network, test, job.every_test_sample.numpy(), engine)
        probabilities = classify_handed(settings.interface, network, handed_test, engine)
        if samples.kind == "none":
            return LocalClassifier(probabilities, handed_test, handed_test[:0])
        training = Subimages.load(job.store, "train", index, engine.device, job.augmentation)
        if samples.kind == "out-of-fold":
            recipe, seeds = job.recipe(settings.epochs), job.networks.seeds("local", index)
            make = job.networks.make_local(index)
            handed = hand_over_out_of_fold(make, settings.interface, training, samples.fold, recipe, engine, seeds, after_epoch)
        else:
            handed = hand_over(settings.interface, network, training, samples.index, engine)
        return LocalClassifier(probabilities, handed_test, handed)


def decide(job: Job, probabilities: np.ndarray) -> None:
    """On rank 0: vote and average out of the local classifications (S_test, N, K)."""
    job.results.local_classes = probabilities.argmax(axis=2)
    if "vote" in job.settings.methods:
        job.results.method("vote", vote(probabilities))
    if "average" in job.settings.methods:
        mean = average(probabilities)
        job.results.method("average", mean.argmax(axis=1), mean)


def decide_by_dnn(job: Job, values: np.ndarray, test: np.ndarray) -> nn.Module:
    """On rank 0: trains the DNN on interface values (S_dnn, N, C), or takes it from another run, and classifies (S_test, N, C)."""
    settings, results, engine, recipe = job.settings, job.results, job.networks.small_engine, job.dnn_recipe
    with job.world.timeline.span("compute"), failing_in("DNN"), job.progress("DNN", recipe.epochs) as progress:

        def after_epoch(epoch: Epoch) -> None:
            results.epoch("dnn", None, epoch, None)
            progress.advance(state_of(epoch, recipe.epochs))

        network = job.networks.kept_dnn() if settings.start_from else None
        if network is None:
            labels, seeds = job.labels["train"][job.dnn_samples.index], job.networks.seeds("dnn")
            network = train_dnn(values, labels, settings.interface, job.networks.classes, recipe, engine, seeds, after_epoch)
        job.save("dnn", network, **job.networks.about_dnn())
        if "dnn" in settings.methods:
            found = classify(network, dnn_rows(test, job.labels["test"], engine), torch.arange(len(test)), engine).numpy()
            results.method("dnn", found.argmax(axis=1), found, network)
        return network


# All as one network (arXiv 2408.14442), and the baseline


def run_coherent(job: Job, method: str, local_cnns: list[nn.Module], dnn: nn.Module) -> None:
    """Trains the coherent network from what it is given, watched; its parts are saved."""
    settings, world, engine, results = job.settings, job.world, job.engine, job.results
    frozen = None
    if method == "transfer":
        recipe = job.transfer_recipe
        frozen = replace(recipe, epochs=settings.frozen_epochs) if settings.frozen_epochs else None
    else:
        recipe = job.recipe(settings.epochs_of(method), settings.coherent_lr)
    epochs = recipe.epochs + (frozen.epochs if frozen else 0)
    network = CoherentNetwork(world, settings.interface, local_cnns, dnn)

    def after_epoch(epoch: Epoch) -> None:
        job.watch(method, epoch, epochs, progress, lambda: classify(network, test, job.every_test_sample, engine).numpy())

    with (
        failing_in(method), world.timeline.phase(method), world.timeline.span("compute"), job.progress(method, epochs) as progress
    ):  # fmt: skip
        training = OwnedSubimages.load(job.store, "train", job.owned, engine.device, job.augmentation)
        test = OwnedSubimages.load(job.store, "test", job.owned, engine.device)
        everything = np.arange(job.store.train_samples)
        train_coherent(network, training, everything, recipe, engine, job.networks.seeds(method), after_epoch, frozen)
        found = classify(network, test, job.every_test_sample, engine).numpy()
        for index, local_cnn in zip(job.owned, local_cnns, strict=True):
            job.save(f"{method}-{index:04d}", local_cnn, epochs=epochs, **job.networks.about_local(index))
            if not settings.needs("local"):
                results.subdomain(index, local_cnn, float("nan"))
        if world.rank == 0:
            job.save(f"{method}-dnn", dnn, **job.networks.about_dnn())
            results.method(method, found.argmax(axis=1), found, dnn)


def run_global(job: Job, method: str, thin: list[nn.Module] | None = None) -> None:
    """Trains the undecomposed CNN, watched, from scratch or composed of thin networks; its parameters are saved."""
    settings, world, engine, results = job.settings, job.world, job.engine, job.results
    width = settings.width if thin else settings.global_width or settings.width
    recipe = job.transfer_recipe if thin else job.recipe(settings.epochs_of(method), settings.global_lr)

    def classified() -> np.ndarray | None:
        return classify_together(world, network, test, job.store.test_samples, engine)

    with (
        failing_in(f"{method} CNN"), world.timeline.phase(method), world.timeline.span("compute"),
        job.progress(method, recipe.epochs) as progress,
    ):  # fmt: skip
        training = Subimages.load_whole(job.store, "train", engine.device, job.augmentation)
        test = Subimages.load_whole(job.store, "test", engine.device)
        seeds = job.networks.seeds(method)
        network = build(job.networks.make_global(width), seeds, engine)
        if thin:
            compose(world, thin, network)
            results.epoch(method, None, START, job.test_accuracy(classified()))
        train_global(
            world, network, training, np.arange(job.store.train_samples), recipe, engine, seeds,
            lambda epoch: job.watch(method, epoch, recipe.epochs, progress, classified),
        )  # fmt: skip
        found = classified()
        if found is not None:
            results.method(method, found.argmax(axis=1), found, network)
            job.save(method, network, architecture=settings.network, width=width or 0)

"""The local CNNs and the DNN trained as one network (arXiv 2408.14442), and the undecomposed CNN as one: watched and kept."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.data.batches import OwnedSubimages, Subimages
from ddcnn.experiment.context import Job, failing_in
from ddcnn.method.aggregate import capture_inputs
from ddcnn.method.coherent import CoherentNetwork, train_coherent
from ddcnn.method.width import compose
from ddcnn.training.data_parallel import batch_of_all, classify_together, train_data_parallel
from ddcnn.training.loop import START, Epoch, build


def run_coherent(job: Job, method: str, local_cnns: list[nn.Module], dnn: nn.Module) -> None:
    """Trains the coherent network from what it is given, watched; its parts are saved."""
    settings, world, policy, results = job.settings, job.world, job.policy, job.results
    recipe = job.transfer_recipe if method == Method.TRANSFER else job.recipe(settings.epochs_of(method), settings.coherent_lr)
    frozen_epochs = settings.frozen_epochs if method == Method.TRANSFER else 0
    epochs = frozen_epochs + recipe.epochs
    group, leads = job.groups.data_parallel, job.groups.leads
    recipe = replace(recipe, batch_size=batch_of_all(recipe.batch_size, job.store.train_samples, group.size))
    network = CoherentNetwork(job.groups.across_subdomains, settings.interface, local_cnns, dnn)

    def classified() -> np.ndarray | None:
        return classify_together(group, network, test, job.store.test_samples, policy)

    def after_epoch(epoch: Epoch) -> None:
        job.watch(method, epoch, epochs, progress, classified)

    with (
        failing_in(method), world.timeline.phase(method), world.timeline.span("compute"), job.progress(method, epochs) as progress
    ):  # fmt: skip
        training = OwnedSubimages.load(job.store, "train", job.owned, policy.device, job.augmentation)
        test = OwnedSubimages.load(job.store, "test", job.owned, policy.device)
        everything, frozen = np.arange(job.store.train_samples), None
        keeper = job.keeper(method, recipe, len(everything), progress, method)
        if frozen_epochs:
            first = replace(recipe, epochs=frozen_epochs)
            frozen = first, job.keeper(f"{method}-frozen", first, len(everything), progress, method)
        train_coherent(group, network, training, everything, recipe, policy, job.networks.seeds(method), after_epoch, keeper, frozen)
        watched: AbstractContextManager[list[np.ndarray]] = capture_inputs(dnn) if world.rank == 0 else nullcontext([])
        with watched as seen:
            found = classified()
        for index, local_cnn in zip(job.owned, local_cnns, strict=True) if leads else ():
            job.save(f"{method}-{index:04d}", local_cnn, epochs=epochs, **job.networks.about_local(index))
            if not settings.needs("local"):
                results.subdomain(index, local_cnn, float("nan"))
        if world.rank == 0 and found is not None:
            job.save(f"{method}-dnn", dnn, **job.networks.about_dnn())
            values = np.concatenate(seen)  # of rank 0's share of the samples
            decision = job.decision(dnn, values.reshape(len(values), job.networks.subdomains, -1), job.labels["test"][:: group.size])
            results.method(method, found.argmax(axis=1), found, dnn, decision)


def run_global(job: Job, method: str, thin: list[nn.Module] | None = None) -> None:
    """Trains the undecomposed CNN, watched, from scratch or composed of thin networks; its parameters are saved."""
    settings, world, policy, results = job.settings, job.world, job.policy, job.results
    width = settings.width if thin else settings.global_width or settings.width
    recipe = job.transfer_recipe if thin else job.recipe(settings.epochs_of(method), settings.global_lr)
    recipe = replace(recipe, batch_size=batch_of_all(recipe.batch_size, job.store.train_samples, world.size))

    def classified() -> np.ndarray | None:
        return classify_together(world, network, test, job.store.test_samples, policy)

    with (
        failing_in(f"{method} CNN"), world.timeline.phase(method), world.timeline.span("compute"),
        job.progress(method, recipe.epochs) as progress,
    ):  # fmt: skip
        training = Subimages.load_whole(job.store, "train", policy.device, job.augmentation)
        test = Subimages.load_whole(job.store, "test", policy.device)
        seeds = job.networks.seeds(method)
        network = build(job.networks.make_global(width), seeds, policy)
        if thin:
            compose(job.groups.across_subdomains, thin, network)
            results.epoch(method, None, START, job.test_accuracy(classified()))
        everything = np.arange(job.store.train_samples)
        train_data_parallel(
            world, network, training, everything, recipe, policy, seeds,
            lambda epoch: job.watch(method, epoch, recipe.epochs, progress, classified),
            job.keeper(method, recipe, len(everything), progress, method),
        )  # fmt: skip
        found = classified()
        if found is not None:
            results.method(method, found.argmax(axis=1), found, network)
            job.save(method, network, architecture=settings.network, width=width or 0)

"""The papers' first way: every local CNN on its own, one gather, one decision (arXiv 2302.06564), watched and kept."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.data.batches import Subimages
from ddcnn.experiment.context import Job, failing_in, state_of
from ddcnn.io.progress import Progress
from ddcnn.method.aggregate import average, classify_by_dnn, train_dnn, vote
from ddcnn.method.local import evaluate_interface, evaluate_interface_out_of_fold, probabilities_of, train_local
from ddcnn.parallel.tags import Tag
from ddcnn.report.analysis import Decision
from ddcnn.training.data_parallel import classify_together
from ddcnn.training.loop import Epoch
from ddcnn.training.resume import Keeper


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
        with world.timeline.phase("local"), world.raise_on_all_ranks(), world.cancel_together(Tag.LOCAL, job.asked_to_stop) as others_stop:
            networks = [obtain_local(job, index, progress, others_stop) for index in job.owned]
        folds = job.dnn_samples.kind == "out-of-fold"
        with (
            world.timeline.phase("folds" if folds else "local"),
            world.raise_on_all_ranks(),
            world.cancel_together(Tag.FOLDS, job.asked_to_stop) as others_stop,
        ):
            pairs = zip(job.owned, networks, strict=True)
            classifiers = [classify_local(job, index, network, progress, others_stop) for index, network in pairs]
            found = [local for local in classifiers if local]  # of the first rank of a group

    with world.timeline.phase("gather"):
        peers, test, handed, handed_test = job.groups.across_subdomains, None, None, None
        if found:
            test = peers.gather(np.stack([local.test for local in found]))  # (ranks, owned, S_test, K) on rank 0
        if found and settings.needs("dnn"):
            handed = peers.gather(np.stack([local.handed for local in found]))  # (ranks, owned, S_dnn, C); nothing for a DNN that is there
            handed_test = test
            if settings.interface != "probabilities":
                handed_test = peers.gather(np.stack([local.handed_test for local in found]))

    dnn = None
    with world.timeline.phase("dnn"), world.raise_on_all_ranks(), world.cancel_together(Tag.DNN, job.asked_to_stop) as others_stop:
        if test is not None:
            decide(job, samples_first(test))
        if handed is not None and handed_test is not None:
            dnn = decide_by_dnn(job, samples_first(handed), samples_first(handed_test), others_stop)
    return networks, dnn


def samples_first(gathered: np.ndarray) -> np.ndarray:
    """(ranks, owned, S, C) -> (S, N, C)."""
    return np.concatenate(gathered).swapaxes(0, 1)


def obtain_local(job: Job, index: int, progress: Progress, others_stop: Callable[[], bool]) -> nn.Module:
    """The local CNN of a subdomain, trained and watched, or taken from another run; its parameters are saved."""
    settings, policy, group = job.settings, job.policy, job.groups.data_parallel

    def after_epoch(network: nn.Module, epoch: Epoch) -> None:
        accuracy = None
        if job.evaluates(epoch):
            probabilities = classify_together(group, network, test, job.store.test_samples, policy)
            accuracy = job.test_accuracy(probabilities)
            job.results.local_classification(index, probabilities)
        job.results.epoch("local", index, epoch, accuracy)
        progress.advance(f"subdomain {index}  {state_of(epoch, settings.epochs)}")

    with failing_in(f"subdomain {index}"), job.world.timeline.span("compute"):
        seconds, epochs = float("nan"), settings.epochs
        if settings.start_from:
            network, epochs = job.networks.kept_local(index)
        else:
            training = Subimages.load(job.store, "train", index, policy.device, job.augmentation)
            test = Subimages.load(job.store, "test", index, policy.device)
            make, seeds = job.networks.make_local(index), job.networks.seeds("local", index)
            chosen, recipe = job.dnn_samples.for_cnn, job.local_recipe
            keeper = job.keeper(f"local-{index:04}", recipe, len(chosen), progress, "local", index, others_stop)
            network = train_local(group, make, training, chosen, recipe, policy, seeds, after_epoch, keeper)
            seconds = keeper.seconds
        job.results.subdomain(index, network, seconds)
        if job.groups.leads:
            job.save(f"local-{index:04d}", network, epochs=epochs, **job.networks.about_local(index))
        return network


def classify_local(job: Job, index: int, network: nn.Module, progress: Progress, others_stop: Callable[[], bool]) -> LocalClassifier | None:
    """The p_i of the test samples, and what the DNN learns from: by the subdomain's local CNN or, out of fold, by those of the folds.

    On the first rank of a group; the others take their share.
    """
    settings, samples, policy, group = job.settings, job.dnn_samples, job.policy, job.groups.data_parallel

    def keeper(fold: int, samples: int) -> Keeper:
        name = f"local-{index:04}-without-fold-{fold}"
        return job.keeper(name, job.local_recipe, samples, progress, "folds", index, others_stop)

    def after_epoch(network: nn.Module, epoch: Epoch) -> None:
        progress.advance(f"subdomain {index}, folds  {state_of(epoch, settings.epochs)}")

    with failing_in(f"subdomain {index}"), job.world.timeline.span("compute"):
        test = Subimages.load(job.store, "test", index, policy.device)
        handed_test = evaluate_interface(group, settings.interface, network, test, job.every_test_sample.numpy(), policy)
        handed = None
        if samples.kind != "none":
            training = Subimages.load(job.store, "train", index, policy.device, job.augmentation)
            if samples.kind == "out-of-fold":
                seeds, make = job.networks.seeds("local", index), job.networks.make_local(index)
                handed = evaluate_interface_out_of_fold(
                    group, make, settings.interface, training, samples.fold, job.local_recipe, policy, seeds, after_epoch, keeper
                )
            else:
                handed = evaluate_interface(group, settings.interface, network, training, samples.index, policy)
        if handed_test is None:
            return None
        probabilities = probabilities_of(settings.interface, network, handed_test, policy)
        return LocalClassifier(probabilities, handed_test, handed_test[:0] if handed is None else handed)


def decide(job: Job, probabilities: np.ndarray) -> None:
    """On rank 0: vote and average out of the local classifications (S_test, N, K)."""
    results, labels = job.results, job.labels["test"]
    results.local_classes = probabilities.argmax(axis=2)
    if Method.VOTE in job.settings.methods:
        results.method(Method.VOTE, vote(probabilities), decision=Decision(probabilities, labels, lambda p, present: vote(p)))
    if Method.AVERAGE in job.settings.methods:
        mean = average(probabilities)
        decision = Decision(probabilities, labels, lambda p, present: average(p).argmax(axis=1))
        results.method(Method.AVERAGE, mean.argmax(axis=1), mean, decision=decision)


def decide_by_dnn(job: Job, values: np.ndarray, test: np.ndarray, others_stop: Callable[[], bool]) -> nn.Module:
    """On rank 0: trains the DNN on interface values (S_dnn, N, C), or takes it from another run, and classifies (S_test, N, C)."""
    settings, results, policy, recipe = job.settings, job.results, job.networks.fp32_policy, job.dnn_recipe
    with job.world.timeline.span("compute"), failing_in("DNN"), job.progress("DNN", recipe.epochs) as progress:

        def after_epoch(epoch: Epoch) -> None:
            results.epoch("dnn", None, epoch, None)
            progress.advance(state_of(epoch, recipe.epochs))

        network = job.networks.kept_dnn() if settings.start_from else None
        if network is None:
            labels, seeds = job.labels["train"][job.dnn_samples.index], job.networks.seeds("dnn")
            keeper = job.keeper("dnn", recipe, len(labels), progress, "dnn", None, others_stop)
            network = train_dnn(values, labels, settings.interface, job.networks.classes, recipe, policy, seeds, after_epoch, keeper)
        job.save("dnn", network, **job.networks.about_dnn())
        if Method.DNN in settings.methods:
            found = classify_by_dnn(network, test, policy)
            results.method(Method.DNN, found.argmax(axis=1), found, network, job.decision(network, test, job.labels["test"]))
        return network

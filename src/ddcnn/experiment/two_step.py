"""The first way of the papers: every local CNN on its own, one gather, one decision (arXiv 2302.06564)."""

from collections.abc import Callable

import numpy as np
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.experiment.context import RecordedEpochs, RunContext, failing_in
from ddcnn.experiment.results import Decided
from ddcnn.io.progress import Progress
from ddcnn.method.aggregate import average, classify_by_dnn, train_dnn, vote
from ddcnn.method.dnn_samples import evaluate_interface_out_of_fold
from ddcnn.method.interface import evaluate_interface, gather_interface, probabilities_of
from ddcnn.method.local import train_local
from ddcnn.networks.layers import count_parameters
from ddcnn.parallel.world import Tag
from ddcnn.report.analysis import Decision
from ddcnn.training.data_parallel import classify_together
from ddcnn.training.loop import Epoch, Trainer

OthersStop = Callable[[], bool]  # whether another rank stops


def two_step(context: RunContext) -> tuple[list[nn.Module], nn.Module | None]:
    """Trains the parts one after the other: this rank's local CNNs, and on rank 0 the DNN, if a method needs it."""
    problem = context.problem
    world, settings, dnn_samples = problem.world, problem.settings, problem.dnn_samples
    with context.progress("local CNNs", settings.epochs * len(problem.owned) * dnn_samples.networks) as progress:
        with (
            world.timeline.phase("local"),
            world.raise_on_all_ranks(),
            world.cancel_together(Tag.LOCAL, context.should_stop) as others_stop,
        ):
            networks = [obtain_local(context, index, progress, others_stop) for index in problem.owned]
        with (
            world.timeline.phase("folds" if dnn_samples.kind == "out-of-fold" else "local"), world.raise_on_all_ranks(),
            world.cancel_together(Tag.FOLDS, context.should_stop) as others_stop,
        ):  # fmt: skip
            pairs = zip(problem.owned, networks, strict=True)
            classified = [classify_local(context, index, network, progress, others_stop) for index, network in pairs]

    gathered: dict[str, np.ndarray] = {}  # on rank 0, as of ``classify_local`` (S, N, ...)
    with world.timeline.phase("gather"):
        for name in classified[0]:  # on the first rank of a group
            values = gather_interface(problem.groups.across_subdomains, np.stack([values[name] for values in classified]))
            if values is not None:
                gathered[name] = values

    dnn = None
    with world.timeline.phase("dnn"), world.raise_on_all_ranks(), world.cancel_together(Tag.DNN, context.should_stop) as others_stop:
        if gathered:
            probabilities = gathered["test"]
            sent = probabilities.nbytes - probabilities.nbytes // problem.groups.across_subdomains.size
            vote_and_average(context, probabilities, sent)
            if settings.needs("dnn"):
                dnn = decide_by_dnn(context, gathered["dnn"], gathered.get("interface", probabilities), others_stop)
    return networks, dnn


def obtain_local(context: RunContext, index: int, progress: Progress, others_stop: OthersStop) -> nn.Module:
    """The local CNN of a subdomain, trained or taken from another run (--start-from), and saved."""
    problem, results = context.problem, context.results
    settings, networks, policy, group = problem.settings, problem.networks, problem.policy, problem.groups.data_parallel

    def record(network: nn.Module, epoch: Epoch) -> None:
        accuracy = None
        if context.evaluates(epoch):
            probabilities = classify_together(group, network, test, problem.store.test_samples, policy)
            accuracy = context.test_accuracy(probabilities)
            results.local_classification(index, probabilities)
        with group.raise_on_all_ranks():
            results.epoch("local", index, epoch, accuracy)

    with failing_in(f"subdomain {index}", "--lr"), problem.world.timeline.span("compute"):
        seconds, epochs = float("nan"), settings.epochs
        if settings.start_from:
            network, epochs = networks.earlier_local(index)
        else:
            training, test = problem.subimages("train", index), problem.subimages("test", index)
            recipe, chosen = problem.local_recipe, problem.dnn_samples.for_cnn
            history = results.records("local", index)
            checkpointer = context.checkpointer(f"local-{index:04}", recipe, len(chosen), history, group, others_stop)
            callback = RecordedEpochs(checkpointer, progress, epochs, record, f"subdomain {index}  ")
            trainer = Trainer(recipe, policy, networks.seeds("local", index), callback)
            network = train_local(group, trainer, networks.make_local(index), training, chosen)
            seconds = checkpointer.seconds
        results.subdomain(index, network, seconds)
        if problem.groups.leads:
            context.save(f"local-{index:04d}", network, epochs=epochs, **networks.about_local(index))
        return network


def classify_local(
    context: RunContext, index: int, network: nn.Module, progress: Progress, others_stop: OthersStop
) -> dict[str, np.ndarray]:  # fmt: skip
    """What a trained local CNN f_i says, on the first rank of a group.

    Returns:
        "test": p_i of the test samples, (S_test, K). If there is a DNN, "dnn": the interface values that it learns from, (S_dnn, C), out
        of fold from local CNNs that are trained here without one fold each; and "interface": those of the test samples, (S_test, C),
        unless they are p_i. Nothing on the other ranks of the group.
    """
    problem = context.problem
    settings, networks, policy, group = problem.settings, problem.networks, problem.policy, problem.groups.data_parallel
    dnn_samples = problem.dnn_samples

    def trainer_of(fold: int, samples: int) -> Trainer:
        name, history = f"local-{index:04}-without-fold-{fold}", context.results.records("folds", index)
        checkpointer = context.checkpointer(name, problem.local_recipe, samples, history, group, others_stop)
        callback = RecordedEpochs(checkpointer, progress, settings.epochs, title=f"subdomain {index}, folds  ")
        return Trainer(problem.local_recipe, policy, networks.seeds(f"local without fold {fold}", index), callback)

    with failing_in(f"subdomain {index}", "--lr"), problem.world.timeline.span("compute"):
        test, every_sample = problem.subimages("test", index), np.arange(problem.store.test_samples)
        interface_test = evaluate_interface(group, settings.interface, network, test, every_sample, policy)
        interface_dnn = None if interface_test is None else interface_test[:0]
        training = problem.subimages("train", index) if dnn_samples.kind != "none" else None
        if training and dnn_samples.kind == "out-of-fold":
            make = networks.make_local(index)
            interface_dnn = evaluate_interface_out_of_fold(group, trainer_of, make, settings.interface, training, dnn_samples.fold)
        elif training:
            interface_dnn = evaluate_interface(group, settings.interface, network, training, dnn_samples.for_dnn, policy)
        if interface_test is None or interface_dnn is None:
            return {}
        values = {"test": probabilities_of(settings.interface, network, interface_test, policy)}
        if settings.needs("dnn"):
            values["dnn"] = interface_dnn
            if settings.interface != "probabilities":
                values["interface"] = interface_test
        return values


def vote_and_average(context: RunContext, probabilities: np.ndarray, sent: int) -> None:
    """On rank 0: vote and average of the local classifications (S_test, N, K), of which ``sent`` bytes came from other ranks."""
    results, labels, methods = context.results, context.problem.labels["test"], context.problem.settings.methods
    batch_size = context.problem.local_recipe.batch_size
    results.local_classes = probabilities.argmax(axis=2)
    if Method.VOTE in methods:
        decision = Decision(probabilities, labels, lambda p, present: vote(p))
        results.method(Method.VOTE, Decided(vote(probabilities), batch_size, decision=decision, gathered_bytes=sent))
    if Method.AVERAGE in methods:
        mean = average(probabilities)
        decision = Decision(probabilities, labels, lambda p, present: average(p).argmax(axis=1))
        results.method(Method.AVERAGE, Decided(mean.argmax(axis=1), batch_size, mean, decision=decision, gathered_bytes=sent))


def decide_by_dnn(context: RunContext, values: np.ndarray, test: np.ndarray, others_stop: OthersStop) -> nn.Module:
    """On rank 0: trains the DNN on interface values (S_dnn, N, C), or takes it from another run, and classifies (S_test, N, C)."""
    problem, results = context.problem, context.results
    settings, networks, policy, recipe = problem.settings, problem.networks, problem.networks.fp32_policy, problem.dnn_recipe
    with problem.world.timeline.span("compute"), failing_in("DNN", "--dnn-lr"), context.progress("DNN", recipe.epochs) as progress:
        network = networks.earlier_dnn() if settings.start_from else None
        if network is None:
            labels = problem.labels["train"][problem.dnn_samples.for_dnn]
            alone, history = problem.world.alone(), results.records("dnn", None)
            checkpointer = context.checkpointer("dnn", recipe, len(labels), history, alone, others_stop)
            callback = RecordedEpochs(checkpointer, progress, recipe.epochs, lambda _, epoch: results.epoch("dnn", None, epoch, None))
            trainer = Trainer(recipe, policy, networks.seeds("dnn"), callback)
            network = train_dnn(trainer, values, labels, settings.interface, networks.classes)
        context.save("dnn", network, **networks.about_dnn())
        if Method.DNN in settings.methods:
            probabilities = classify_by_dnn(network, test, policy)
            decision = context.decision(network, test, problem.labels["test"])
            classes, parameters = probabilities.argmax(axis=1), count_parameters(network)
            results.method(Method.DNN, Decided(classes, recipe.batch_size, probabilities, parameters, decision))
        return network

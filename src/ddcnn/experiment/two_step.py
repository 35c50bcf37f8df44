"""The first way of the papers: every local CNN on its own, one gather, one decision (arXiv 2302.06564)."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import repeat
from math import nan

import numpy as np
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.data.batches import Images
from ddcnn.errors import Stopped
from ddcnn.experiment.context import RecordedEpochs, RunContext, failing_in
from ddcnn.experiment.results import Decided
from ddcnn.io.progress import Progress
from ddcnn.io.rows import Table, kept, placed
from ddcnn.method.aggregate import average, classify_all_by_dnn, train_dnn, vote
from ddcnn.method.dnn_samples import evaluate_interface_out_of_fold
from ddcnn.method.interface import evaluate_interface, gather_tables, probabilities_of
from ddcnn.method.local import train_local
from ddcnn.networks.layers import count_parameters
from ddcnn.parallel.messages import Tag
from ddcnn.parallel.world import World
from ddcnn.report.analysis import Decision, some_of
from ddcnn.report.metrics import Probable
from ddcnn.training.data_parallel import classify_together
from ddcnn.training.kept import Score
from ddcnn.training.loop import Callback, Trainer
from ddcnn.training.state import Epoch

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
            training = one_ahead(partial(problem.subimages, "train"), problem.owned) if not settings.start_from else repeat(None)
            networks = [obtain_local(context, index, next(training), progress, others_stop) for index in problem.owned]
        with (
            world.timeline.phase("folds" if dnn_samples.kind == "out-of-fold" else "local"), world.raise_on_all_ranks(),
            world.cancel_together(Tag.FOLDS, context.should_stop) as others_stop,
        ):  # fmt: skip
            pairs = zip(problem.owned, networks, strict=True)
            classified = [classify_local(context, index, network, progress, others_stop) for index, network in pairs]

    gathered: dict[str, Table] = {}  # on rank 0, as of ``classify_local`` (S, N, ...)
    with world.timeline.phase("gather"), world.raise_on_all_ranks(), world.ending_job():
        for name in tuple(classified[0]):  # on the first rank of a group
            values = gather_tables(problem.groups.across_subdomains, [values.pop(name) for values in classified], context.scratch)
            if values is not None:
                gathered[name] = values

    dnn = None
    with world.timeline.phase("dnn"), world.raise_on_all_ranks(), world.cancel_together(Tag.DNN, context.should_stop) as others_stop:
        if gathered:
            vote_and_average(context, gathered)
            if settings.needs("dnn"):
                dnn = decide_by_dnn(context, gathered, others_stop)
    return networks, dnn


def one_ahead(load: Callable[[int], Images], indices: Iterable[int]) -> Iterator[Images]:
    """What ``load`` loads for one index after the other, each while the one before is worked on."""
    with ThreadPoolExecutor(1, "loader") as thread:
        coming = deque[Future[Images]]()  # what has been handed on is not kept
        for index in indices:
            coming.append(thread.submit(load, index))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def obtain_local(context: RunContext, index: int, training: Images | None, progress: Progress, others_stop: OthersStop) -> nn.Module:
    """The local CNN of a subdomain, trained on its images or, without, taken from another run (--start-from), and saved."""
    problem, results = context.problem, context.results
    settings, networks, policy, group = problem.settings, problem.networks, problem.policy, problem.groups.data_parallel

    def classify(network: nn.Module) -> Table | None:
        probabilities = classify_together(group, network, validation, problem.store.validation_samples, policy, context.scratch)
        results.local_classification(index, probabilities)
        return probabilities

    def record(epoch: Epoch) -> None:
        with group.raise_on_all_ranks():
            results.epoch("local", index, epoch)

    with failing_in(f"subdomain {index}", "--lr"), problem.world.timeline.span("compute"):
        seconds = float("nan")
        if training is None:
            network, epochs = networks.earlier_local(index)
        else:
            if problem.validates:
                validation = problem.subimages("validation", index)
            recipe, chosen = problem.local_recipe, problem.dnn_samples.for_cnn
            history = results.records("local", index)
            checkpointer = context.checkpointer(f"local-{index:04}", recipe, len(chosen), history, group, others_stop)
            recorded = RecordedEpochs(checkpointer, progress, settings.epochs, record, f"subdomain {index}")
            validated = problem.validated(recorded, classify, group, settings.epochs)
            trainer = Trainer(recipe, policy, networks.seeds("local", index), validated)
            network = train_local(group, trainer, networks.make_local(index), training, chosen)
            seconds, epochs = checkpointer.seconds, results.epochs_made("local", index)
        results.subdomain(index, network, seconds)
        if problem.groups.leads:
            context.save(f"local-{index:04d}", network, epochs=epochs, **networks.about_local(index))
        return network


def classify_local(
    context: RunContext, index: int, network: nn.Module, progress: Progress, others_stop: OthersStop
) -> dict[str, Table]:  # fmt: skip
    """What a trained local CNN f_i says, on the first rank of a group.

    Returns:
        "test" and, if there are such images, "validation": p_i of their samples, (S, K). If there is a DNN, "dnn": the interface values
        that it learns from, (S_dnn, C), out of fold from local CNNs that are trained here without one fold each; and "interface test",
        "interface validation": those of the samples, (S, C), if it decides on them and they are not p_i. Nothing on the other ranks of
        the group.
    """
    problem = context.problem
    settings, networks, policy, group = problem.settings, problem.networks, problem.policy, problem.groups.data_parallel
    dnn_samples = problem.dnn_samples

    def trainer_of(fold: int, samples: int) -> Trainer:
        name, history = f"local-{index:04}-without-fold-{fold}", context.results.records("folds", index)
        checkpointer = context.checkpointer(name, problem.local_recipe, samples, history, group, others_stop)
        callback: Callback = RecordedEpochs(checkpointer, progress, settings.epochs, title=f"subdomain {index} without fold {fold}")
        if settings.selects:
            callback = problem.validated(callback, classify, group, settings.epochs)
        return Trainer(problem.local_recipe, policy, networks.seeds(f"local without fold {fold}", index), callback)

    def classify(network: nn.Module) -> Table | None:
        return classify_together(group, network, judged["validation"], problem.store.validation_samples, policy, context.scratch)

    def values_of(images: Images, chosen: np.ndarray) -> Table | None:
        blocks = evaluate_interface(group, settings.interface, network, images, chosen, policy)
        return kept(len(chosen), until_stopped(group, blocks, lambda: context.should_stop() or others_stop()), context.scratch)

    with failing_in(f"subdomain {index}", "--lr"), problem.world.timeline.span("compute"), group.ending_job():
        judged = {split: problem.subimages(split, index) for split in problem.store.samples if split != "train"}
        interface = {split: values_of(images, np.arange(problem.store.samples[split])) for split, images in judged.items()}
        interface_dnn: Table | None = None
        if dnn_samples.kind != "none":
            training = problem.subimages("train", index)
            if dnn_samples.kind == "out-of-fold":
                make = networks.make_local(index)
                fold = dnn_samples.fold
                unseen = evaluate_interface_out_of_fold(group, trainer_of, make, settings.interface, training, fold)
                interface_dnn = placed(len(fold), unseen, context.scratch)
            else:
                interface_dnn = values_of(training, dnn_samples.for_dnn)
        present = {split: values for split, values in interface.items() if values is not None}
        if not present:
            return {}
        found: dict[str, Table] = {}
        for split, one in present.items():
            blocks = (probabilities_of(settings.interface, network, block, policy) for block in one.blocks())
            probabilities = one if settings.interface == "probabilities" else kept(len(one), blocks, context.scratch)
            assert probabilities is not None
            found[split] = probabilities
            if split in settings.judged_by_dnn and settings.interface != "probabilities":
                found[f"interface {split}"] = one
        if interface_dnn is not None:
            found["dnn"] = interface_dnn
        return found


def until_stopped(group: World, blocks: Iterator[np.ndarray | None], should_stop: Callable[[], bool]) -> Iterator[np.ndarray | None]:
    """The blocks, one after the other; Stopped on all ranks of the group after the one in which one of them is asked to stop."""
    for block in blocks:
        yield block
        if group.largest_of([should_stop()])[0]:
            raise Stopped


def vote_and_average(context: RunContext, gathered: dict[str, Table]) -> None:
    """On rank 0: vote and average of the local classifications, p_i (S, N, K) of the validation and of the test images."""
    problem, results = context.problem, context.results
    labels, methods, batch_size = problem.labels, problem.settings.methods, problem.local_recipe.batch_size
    probabilities = {split: gathered[split] for split in problem.labels if split in gathered}
    results.local_classes = {split: values.mapped(lambda p: p.argmax(axis=2)) for split, values in probabilities.items()}
    ranks = problem.groups.across_subdomains.size
    sent = sum(values.nbytes - values.nbytes // ranks for values in probabilities.values())
    some, part = some_of(probabilities["test"])
    if Method.VOTE in methods:
        classes = {split: values.mapped(vote) for split, values in probabilities.items()}
        score = Score(float((classes["validation"] == labels["validation"]).mean()), nan) if problem.validates else None
        decision = Decision(some, labels["test"][part], lambda p, present: vote(p))
        results.method(Method.VOTE, Decided(classes["test"], batch_size, score, decision=decision, gathered_bytes=sent))
    if Method.AVERAGE in methods:
        mean = {split: kept(len(values), map(average, values.blocks()), context.scratch) for split, values in probabilities.items()}
        decision = Decision(some, labels["test"][part], lambda p, present: average(p).argmax(axis=1))
        assert mean["test"] is not None
        score, probable = problem.score_of(mean.get("validation")), Probable.of(mean["test"], labels["test"])
        decided = Decided(probable.classes, batch_size, score, probable, decision=decision, gathered_bytes=sent)
        results.method(Method.AVERAGE, decided)


def decide_by_dnn(context: RunContext, gathered: dict[str, Table], others_stop: OthersStop) -> nn.Module:
    """On rank 0: trains the DNN on interface values (S_dnn, N, C), or takes it from another run, and classifies (S, N, C)."""
    problem, results = context.problem, context.results
    settings, networks, policy, recipe = problem.settings, problem.networks, problem.networks.dnn_policy, problem.dnn_recipe
    values = {split: gathered.get(f"interface {split}", gathered[split]) for split in problem.labels if split in gathered}

    def classify(network: nn.Module) -> Table:
        return classify_all_by_dnn(network, values["validation"], policy, context.scratch)

    with problem.world.timeline.span("compute"), failing_in("DNN", "--dnn-lr"), context.progress("DNN", recipe.epochs) as progress:
        network = networks.earlier_dnn() if settings.start_from else None
        epochs = recipe.epochs
        if network is None and not epochs:
            network = networks.new_dnn("dnn")
        if network is None:
            labels = problem.labels["train"][problem.dnn_samples.for_dnn]
            alone, history = problem.world.alone(), results.records("dnn", None)
            checkpointer = context.checkpointer("dnn", recipe, len(labels), history, alone, others_stop)
            recorded = RecordedEpochs(checkpointer, progress, recipe.epochs, lambda epoch: results.epoch("dnn", None, epoch))
            callback = problem.validated(recorded, classify, alone, recipe.epochs)
            trainer = Trainer(recipe, policy, networks.seeds("dnn"), callback)
            network = train_dnn(trainer, networks.make_dnn(), gathered["dnn"], labels)
        context.save("dnn", network, epochs=epochs, **networks.about_dnn())
        if Method.DNN in settings.methods:
            score = problem.score_of(classify(network)) if problem.validates else None
            labels, (some, part) = problem.labels["test"], some_of(values["test"])
            probable = Probable.of(classify_all_by_dnn(network, values["test"], policy, context.scratch), labels)
            decided = Decided(
                probable.classes, recipe.batch_size, score, probable, count_parameters(network),
                context.decision(network, some, labels[part]),
            )  # fmt: skip
            results.method(Method.DNN, decided)
        return network

"""Networks of all subdomains, trained end to end: the coherent network (arXiv 2408.14442) and the undecomposed CNN."""

from dataclasses import replace

import numpy as np
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.experiment.context import RunContext
from ddcnn.experiment.phase_sizes import coarse_solve
from ddcnn.experiment.results import Decided
from ddcnn.experiment.undecomposed import undecomposed
from ddcnn.io.rows import Table
from ddcnn.method.coherent import CoherentNetwork, train_coherent
from ddcnn.method.interface import values_per_subdomain
from ddcnn.method.shared import SharedParameters
from ddcnn.method.width import compose
from ddcnn.networks.layers import count_parameters
from ddcnn.report.analysis import stride_of
from ddcnn.report.metrics import Probable
from ddcnn.training.data_parallel import broadcast_, classify_together
from ddcnn.training.state import START


def run_coherent(context: RunContext, method: Method, local_cnns: list[nn.Module], dnn: nn.Module) -> None:
    """Trains the coherent network from these parts, evaluates it, and saves the parts."""
    problem, results = context.problem, context.results
    settings, world, networks, policy = problem.settings, problem.world, problem.networks, problem.policy
    group, leads = problem.groups.data_parallel, problem.groups.leads
    recipe = problem.joint_recipe(method, group.size)
    frozen_epochs = settings.frozen_epochs if method == Method.TRANSFER else 0
    epochs = frozen_epochs + recipe.epochs
    across = problem.groups.across_subdomains
    with world.timeline.phase(method):
        shared = SharedParameters(across, local_cnns, settings.share) if settings.share != "none" else None
        if shared and method == Method.TRANSFER:
            shared.begin()
        solve = coarse_solve(problem, dnn)
    network = CoherentNetwork(across, settings.interface, local_cnns, solve, shared)

    def classify(split: str = "validation") -> Table | None:
        return classify_together(group, network, images[split], problem.store.samples[split], policy, context.scratch)

    with context.joint_training(method, method, epochs, lambda _: classify()) as trainer:
        images = {split: problem.owned_subimages(split) for split in problem.store.samples if split != "test"}
        frozen = trainer(replace(recipe, epochs=frozen_epochs), "frozen") if frozen_epochs else None
        train_coherent(group, trainer(recipe, ""), network, images["train"], np.arange(problem.store.train_samples), frozen)
        score = problem.score_of(classify()) if problem.validates else None
        images["test"] = problem.owned_subimages("test")
        labels = problem.labels["test"]
        values = values_per_subdomain(settings.interface, local_cnns[0])
        some = Some(stride_of(len(labels[:: group.size]), problem.networks.subdomains, values))
        solve.watch = some.add
        probabilities = classify("test")
        with world.raise_on_all_ranks():
            for index, local_cnn in zip(problem.owned, local_cnns, strict=True) if leads else ():
                if settings.share == "all" and index:
                    continue
                context.save(f"{method}-{index:04d}", local_cnn, **networks.about_local(index))
            if world.rank == 0 and probabilities is not None:
                context.save(f"{method}-dnn", dnn, **networks.about_dnn())
        for index, local_cnn in zip(problem.owned, local_cnns, strict=True) if leads and not settings.needs("local") else ():
            results.subdomain(index, local_cnn, float("nan"))
        if world.rank == 0 and probabilities is not None:
            decision = context.decision(dnn, np.concatenate(some.values), labels[:: group.size][:: some.stride])
            probable, parameters = Probable.of(probabilities, labels), count_parameters(dnn)
            results.method(method, Decided(probable.classes, recipe.batch_size, score, probable, parameters, decision))


class Some:
    """Every ``stride``-th of the interface values (B, N, C) that are added, batch by batch."""

    def __init__(self, stride: int):
        self.stride, self.values = stride, list[np.ndarray]()
        self._next = 0  # place in the coming batch

    def add(self, batch: np.ndarray) -> None:
        self.values.append(batch[self._next :: self.stride].copy())
        self._next = (self._next - len(batch)) % self.stride


def run_transfer(context: RunContext, local_cnns: list[nn.Module], dnn: nn.Module | None) -> None:
    """Transfer learning: trains the trained parts on, as one network (arXiv 2408.14442, section 3); rank 0 has the ``dnn``."""
    problem = context.problem
    if problem.settings.splitting.composes(Method.TRANSFER):
        run_global(context, Method.TRANSFER, local_cnns)
        return
    with problem.world.timeline.phase("transfer"):
        everywhere = dnn or problem.networks.new_dnn("dnn")
        broadcast_(problem.world, everywhere.state_dict().values())
    run_coherent(context, Method.TRANSFER, local_cnns, everywhere)


def run_global(context: RunContext, method: Method, thin: list[nn.Module] | None = None) -> None:
    """Trains the undecomposed CNN, from scratch or composed of ``thin`` networks, evaluates it, and saves it."""
    problem, results = context.problem, context.results
    world, networks, store = problem.world, problem.networks, problem.store

    def classify(split: str = "validation") -> Table | None:
        return ranks.classify(images[split], store.samples[split], context.scratch)

    epochs = problem.settings.epochs_of(method) if method.whole_image else problem.settings.transfer_epochs
    with context.joint_training(method, f"{method} CNN", epochs, lambda _: classify()) as trainer:
        network = networks.new_global(method)
        ranks = undecomposed(problem, method, network)
        recipe = problem.joint_recipe(method, ranks.sharing)
        images = {split: ranks.images(split) for split in store.samples if split != "test"}
        if thin:
            compose(problem.groups.across_subdomains, thin, network)
            start = replace(START, validation=problem.score_of(classify()) if problem.validates else None)
            with world.raise_on_all_ranks():
                results.epoch(method, None, start)
        ranks.train(trainer(recipe, ""), images["train"], np.arange(store.train_samples))
        score = problem.score_of(classify()) if problem.validates else None
        images["test"] = ranks.images("test")
        probabilities = classify("test")
        if probabilities is not None:
            probable, parameters = Probable.of(probabilities, problem.labels["test"]), count_parameters(network)
            results.method(method, Decided(probable.classes, recipe.batch_size, score, probable, parameters))
        with world.raise_on_all_ranks():
            if world.rank == 0:
                context.save(method, network, **networks.about_global(method))

"""A run, in the order of the papers: local training, gather, one decision; then the coherent network and the undecomposed baseline.

Module ``plan`` has partitioned the images before.
"""

import logging
import shlex
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch._dynamo  # noqa: F401  # torch's optimizers import it at their first step, which would count as a second of training
from rich.console import Console

from ddcnn.config.methods import Method
from ddcnn.config.settings import RunSettings
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.errors import Stopped
from ddcnn.experiment.context import RunContext
from ddcnn.experiment.end_to_end import run_coherent, run_global, run_transfer
from ddcnn.experiment.phase_sizes import overall
from ddcnn.experiment.problem import Problem, notes, prepare
from ddcnn.experiment.recorder import Recorder, try_report
from ddcnn.experiment.resumed import keep_origin, what_is_done
from ddcnn.experiment.two_step import two_step
from ddcnn.io.progress import Overall
from ddcnn.io.run_folder import RunFolder, resumes_finished, take_output
from ddcnn.method.width import check_composition
from ddcnn.parallel.launcher import started_by
from ddcnn.parallel.stop_requests import StopRequests
from ddcnn.parallel.world import World
from ddcnn.report.metrics import import_libraries
from ddcnn.report.seeds_report import write_results, write_summary

logger = logging.getLogger(__name__)


def checked(world: World, settings: RunSettings, store: PartitionedSet) -> tuple[Problem, list[RunSettings]]:
    """The problem, and the settings of every seed, after the last refusal; all ranks together.

    Raises:
        InputError: the device or the precision is not available, a run to start from does not fit, networks cannot be composed.
    """
    problem = prepare(world, settings, store)
    settings, networks = problem.settings, problem.networks
    with world.raise_on_all_ranks():
        seeds = [settings.model_copy(update={"seed": settings.seed + k, "seeds": 1}) for k in range(settings.seeds)]
        if settings.start_from and settings.needs("local"):
            seeds = [replace(networks, settings=seed).check_start(problem.owned) for seed in seeds]
    if settings.start_from:  # whose local CNNs may have stopped early, each after its own number of epochs
        seeds = [seed.model_copy(update={"epochs": world.largest(seed.epochs)}) for seed in seeds]
    if settings.splitting.composes(Method.TRANSFER) and Method.TRANSFER in settings.methods:
        world.on_root(lambda: check_composition(world.alone(), networks))
    return problem, seeds


def run(world: World, settings: RunSettings, store: PartitionedSet, stop_requests: StopRequests) -> None:
    """Everything after the partitioning; all ranks together.

    Raises:
        Stopped: on all ranks, with the reason and how to resume.
    """
    problem, seeds = checked(world, settings, store)
    settings = problem.settings
    world.on_root(import_libraries)
    with ExitStack() as held:
        folder = world.on_root(lambda: str(take_output(settings, held)))  # after the last refusal: this may delete an older run
        output = RunFolder(Path(folder))
        if world.on_root(lambda: resumes_finished(settings)):  # by another job, meanwhile
            return
        if world.rank == 0 and settings.progress != "none" and not output.origin.is_file():  # a run that is gone on with keeps its settings
            for text in notes(problem):
                logger.info("note: %s", text)
        world.on_root(lambda: keep_origin(settings, store, output, problem.weights_sha256))
        again = f"to go on: {started_by(world.size)}python -m ddcnn run --resume --output {shlex.quote(str(output))}"
        try:
            run_seeds(problem, seeds, output, stop_requests)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the newest checkpoints are kept; {again}") from None
        except Stopped:
            reasons = world.broadcast(world.gather_values(stop_requests.reason))
            reason = next(filter(None, reasons), "asked to")
            raise Stopped(f"{reason}; what is done is saved; {again}") from None


def run_seeds(problem: Problem, seeds: list[RunSettings], output: RunFolder, stop_requests: StopRequests) -> None:
    """One run per seed; several runs have a folder each."""
    world, weights = problem.world, problem.weights_sha256

    def shown(number: int) -> Overall | None:
        """How far so many runs together are, on rank 0."""
        return overall(problem, number) if world.rank == 0 and problem.settings.progress != "none" else None

    if len(seeds) == 1:
        run_seed(problem, seeds[0], output, stop_requests, shown(1))
        return
    folders = [output.seed(settings.seed) for settings in seeds]
    seeds = [settings.model_copy(update={"output": folder.path}) for settings, folder in zip(seeds, folders, strict=True)]
    together = shown(sum(not resumes_finished(settings) for settings in seeds))
    for settings, folder in zip(seeds, folders, strict=True):
        if folder != folders[0]:
            world.barrier()
            world.timeline.begin()
        if not world.on_root(lambda settings=settings: resumes_finished(settings)):
            world.on_root(lambda settings=settings, folder=folder: folder.prepare(settings))
            world.on_root(lambda settings=settings, folder=folder: keep_origin(settings, problem.store, folder, weights))
            run_seed(problem, settings, folder, stop_requests, together)
    world.on_root(lambda: write_results(output, folders))
    world.on_root(lambda: try_report(output, lambda: write_summary(output, folders, Console(), seeds[0].figures)))


def of_seed(problem: Problem, settings: RunSettings) -> Problem:
    """The problem with the settings of one seed; all ranks together."""
    networks = replace(problem.networks, settings=settings)
    trains_dnn = settings.trains_dnn and not problem.world.broadcast(settings.start_from is not None and networks.has_earlier_dnn)
    return replace(problem, settings=settings, dnn_data=settings.dnn_data if trains_dnn else "none")


def run_seed(
    problem: Problem, settings: RunSettings, output: RunFolder, stop_requests: StopRequests, overall: Overall | None = None
) -> None:  # fmt: skip
    """All methods with one seed."""
    problem = of_seed(problem, settings)
    world, networks = problem.world, problem.networks
    if world.rank == 0 and settings.resume and settings.progress != "none" and output.training.is_dir():
        logger.info("%s", what_is_done(output, settings, networks.subdomains))
    with world.raise_on_all_ranks():
        context = RunContext(problem, Recorder(problem, output), stop_requests, overall)

    if settings.needs("local"):
        local_cnns, dnn = two_step(context)
    if Method.COHERENT in settings.methods:
        fresh = [networks.new_local(index, "coherent") for index in problem.owned]
        run_coherent(context, Method.COHERENT, fresh, networks.new_dnn("coherent dnn"))
    if Method.TRANSFER in settings.methods:
        run_transfer(context, local_cnns, dnn)
    for method in (Method.GLOBAL, Method.SPATIAL):
        if method in settings.methods:
            run_global(context, method)
    context.results.write()
    if world.rank == 0 and output.is_finished:  # else --resume makes the report
        shutil.rmtree(output.training, ignore_errors=True)

"""A run in the order of the papers: local training, gather, one decision; then all as one network, and the undecomposed baseline.

Module ``plan`` has partitioned the images.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path

import torch
import torch._dynamo  # torch's optimizers import it at their first step, a second that is none of the training

from ddcnn.config.methods import Method
from ddcnn.config.settings import RunSettings
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.sources import SPLITS
from ddcnn.errors import Stopped
from ddcnn.experiment.checks import check_composition, check_start
from ddcnn.experiment.context import Job
from ddcnn.experiment.end_to_end import run_coherent, run_global
from ddcnn.experiment.plan import resolved, worth_knowing
from ddcnn.experiment.recorder import Results
from ddcnn.experiment.two_step import two_step
from ddcnn.io.run_folder import RunFolder, resumes_finished, take_output
from ddcnn.method.factory import Networks, choose_policy
from ddcnn.method.local import DnnSamples
from ddcnn.parallel.environment import threads_per_rank
from ddcnn.parallel.groups import Groups, form_groups
from ddcnn.parallel.stop_requests import Interrupts
from ddcnn.parallel.tensors import broadcast_
from ddcnn.parallel.world import World
from ddcnn.report.seeds_report import write_summary
from ddcnn.training.precision import DevicePolicy


def run(world: World, settings: RunSettings, store: PartitionedSet, interrupts: Interrupts) -> None:
    """Everything after the partitioning; all ranks together.

    Raises:
        Stopped: on all ranks, with what to tell.
    """
    settings = resolved(settings, store)
    torch.set_num_threads(threads_per_rank(world, settings.threads))
    groups = form_groups(world, len(store.decomposition))
    policy = choose_policy(world, settings)
    with world.raise_on_all_ranks():
        seeds = [settings.model_copy(update={"seed": settings.seed + k, "seeds": 1}) for k in range(settings.seeds)]
        if settings.start_from and settings.needs("local"):
            seeds = [check_start(Networks(own, store, policy), groups.owned(len(store.decomposition))) for own in seeds]
    if settings.decomposition == "width" and Method.TRANSFER in settings.methods:
        world.on_root(lambda: check_composition(world.alone(), Networks(settings, store, policy)))
    with ExitStack() as held:
        # Nothing is refused any more: an older run in the folder may go.
        output = RunFolder(Path(world.on_root(lambda: str(take_output(settings, held)))))
        if world.on_root(lambda: resumes_finished(settings)):  # by another job, meanwhile
            return
        if world.rank == 0 and settings.progress != "none":
            print("".join(f"note: {text}\n" for text in worth_knowing(settings, store)), end="", flush=True)
        try:
            run_seeds(world, groups, seeds, store, policy, output, interrupts)
        except Stopped:
            reasons = world.broadcast(world.gather_values(interrupts.reason))
            reason = next(filter(None, reasons), "asked to")
            raise Stopped(f"{reason}; what is done is kept: go on with --resume --output {output}") from None


def run_seeds(
    world: World, groups: Groups, seeds: list[RunSettings], store: PartitionedSet, policy: DevicePolicy,
    output: RunFolder, interrupts: Interrupts,
) -> None:  # fmt: skip
    """One run with each of the seeds, into a folder of its own if there are several."""
    if len(seeds) == 1:
        run_seed(world, groups, seeds[0], store, policy, output, interrupts)
        return
    folders = [output.seed(own.seed) for own in seeds]
    for own, folder in zip(seeds, folders, strict=True):
        if folder != folders[0]:
            world.barrier()
            world.timeline.begin()
        own = own.model_copy(update={"output": folder.path})
        if not world.on_root(lambda own=own: resumes_finished(own)):
            world.on_root(lambda own=own, folder=folder: folder.prepare(own))
            run_seed(world, groups, own, store, policy, folder, interrupts)
    world.on_root(lambda: write_summary(output, folders, show=seeds[0].progress != "none", draw=seeds[0].figures))


def run_seed(
    world: World, groups: Groups, settings: RunSettings, store: PartitionedSet, policy: DevicePolicy,
    output: RunFolder, interrupts: Interrupts,
) -> None:  # fmt: skip
    labels = {split: store.labels(split) for split in SPLITS}
    networks = Networks(settings, store, policy)
    trains_dnn = settings.needs("dnn") and not world.broadcast(settings.start_from is not None and networks.has_dnn)
    kind = settings.dnn_data if trains_dnn else "none"
    dnn_samples = DnnSamples.choose(kind, labels["train"], settings.folds, settings.seed)
    results = Results(world, groups, settings, store, output)
    job = Job(world, groups, settings, store, policy, labels, dnn_samples, results, interrupts)

    if settings.needs("local"):
        local_cnns, dnn = two_step(job)
    if Method.COHERENT in settings.methods:
        fresh = [job.networks.new_local(index, "coherent") for index in job.owned]
        run_coherent(job, Method.COHERENT, fresh, job.networks.new_dnn("coherent dnn"))
    if Method.TRANSFER in settings.methods and settings.decomposition == "width":
        run_global(job, Method.TRANSFER, local_cnns)
    elif Method.TRANSFER in settings.methods:
        with world.timeline.phase("transfer"):
            warm = dnn or job.networks.new_dnn("dnn")  # rank 0 has trained it
            broadcast_(world, warm.parameters())
        run_coherent(job, Method.TRANSFER, local_cnns, warm)
    if Method.GLOBAL in settings.methods:
        run_global(job, Method.GLOBAL)
    job.results.write(policy, networks.global_parameters)
    world.on_root(lambda: shutil.rmtree(output.training, ignore_errors=True))

"""Before any rank trains: what is asked for is checked on rank 0, the images are partitioned or found, the folder is made.

Nothing here needs torch, so that a refusal comes at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import sha256
from math import prod
from pathlib import Path

import numpy as np

from ddcnn.config.methods import Method
from ddcnn.config.settings import DataSettings, PartitionSettings, RunSettings
from ddcnn.data.partition import PartitionOptions, partition
from ddcnn.data.partitioned_set import SCHEMA_VERSION, PartitionedSet, is_partitioned
from ddcnn.data.sources import SPLITS, Source, SourceOptions, balanced_subset, loads_whole, open_source
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError
from ddcnn.io.atomic import short_name
from ddcnn.io.run_folder import RunFolder, check_output
from ddcnn.io.tensorboard import check_board
from ddcnn.networks import registry
from ddcnn.networks.shape import Shape
from ddcnn.parallel.world import World

OF_A_SOURCE = (
    "train_samples", "test_samples", "image_size", "image_transform", "interpolation", "volume_size", "window", "test_fraction",
    "skip_damaged",
)  # fmt: skip


def partition_command(world: World, settings: PartitionSettings) -> None:
    """``ddcnn partition``."""
    options = source_options(settings, settings.source)
    opened: list[Source] = []

    def check() -> None:
        if settings.output.suffix != ".h5":
            raise InputError(f"--output {settings.output}: the name of a partitioned set ends in .h5")
        if is_partitioned(Path(settings.source)):
            raise InputError(f"{settings.source} is partitioned already; partition the source that it was made from")
        if settings.output.exists() and not (settings.output.is_file() and is_partitioned(settings.output)):
            raise InputError(f"--output {settings.output} is there and no partitioned set: it is not overwritten, name another file")

    world.on_root(check)
    with world.raise_on_all_ranks(), world.timeline.span("compute"):
        if world.rank == 0 or not loads_whole(options.name):  # all at once: a folder of many files takes its time
            opened.append(open_source(options if world.rank == 0 else replace(options, download=False)))
            decompose(settings, opened[0])
            select(settings, opened[0])
    store = partition_source(world, settings, options, settings.output, opened)
    if world.rank == 0:
        print(
            f"{settings.output}: {store.train_samples} + {store.test_samples} images of {_times(store.shape)}, "
            f"{len(store.decomposition)} subdomains{f'; {store.skipped} damaged ones skipped' if store.skipped else ''}"
        )


def prepare_run(world: World, settings: RunSettings, asked: Callable[[], bool] = lambda: False) -> PartitionedSet:
    """The partitioned set of a run; all ranks together. ``asked`` says whether this rank has been asked to stop.

    Raises:
        InputError: what is asked for cannot be done.
        Stopped: while the images were being partitioned.
    """
    world.barrier()
    world.timeline.begin()
    if world.rank == 0 and settings.progress != "none":
        print(f"images     {settings.data}", flush=True)
    with world.timeline.phase("partition"):
        return find_or_partition(world, settings, asked)


def resolved(settings: RunSettings, store: PartitionedSet) -> RunSettings:
    """With the grid and the overlap of a set that was partitioned before."""
    return settings.model_copy(update={"grid": store.grid, "overlap": store.overlap}) if settings.decomposition == "image" else settings


def source_options(settings: DataSettings, name: str) -> SourceOptions:
    return SourceOptions(
        name, settings.data_root, settings.download, settings.volumes, settings.image_size, settings.image_transform,
        settings.interpolation, settings.volume_size, settings.window, settings.test_fraction, settings.subset_seed,
    )  # fmt: skip


def decompose(settings: DataSettings, source: Source) -> Decomposition:
    """Of the images; thin networks, of a decomposition in width, all see the whole image."""
    grid = (1,) * (len(source.shape) - 1) if settings.decomposition == "width" else settings.grid
    return Decomposition(source.shape[:-1], grid, settings.overlap, settings.margin, settings.thin)


def select(settings: DataSettings, source: Source) -> dict[str, np.ndarray]:
    wanted = {"train": settings.train_samples, "test": settings.test_samples}
    return {split: balanced_subset(source.splits[split].labels, wanted[split], settings.subset_seed, split) for split in SPLITS}


def partition_source(
    world: World,
    settings: DataSettings,
    options: SourceOptions,
    path: Path,
    opened: list[Source],
    asked: Callable[[], bool] = lambda: False,
) -> PartitionedSet:
    """Writes the partitioned set of a source that rank 0 has ``opened`` and found in order."""

    def write(ranks: World, source: Source, asked: Callable[[], bool] = lambda: False) -> PartitionedSet:
        boxes, reuse = replace(decompose(settings, source), thin=1), isinstance(settings, RunSettings)
        how = PartitionOptions(settings.skip_damaged, settings.progress, reuse, asked)
        return partition(ranks, source, select(settings, source), boxes, path, how)

    if world.broadcast(bool(opened and opened[0].in_memory)):
        world.on_root(lambda: write(world.alone(), opened[0]).path)
        with world.raise_on_all_ranks():
            return PartitionedSet.open(path)
    with world.raise_on_all_ranks(), world.timeline.span("compute"):
        source = opened[0] if opened else open_source(replace(options, download=False))
    if not world.all_equal(source.fingerprint.encode()):
        raise InputError(f"--data {options.name}: its files changed while they were looked at; start again", agreed=True)
    return write(world, source, asked)


def find_or_partition(world: World, settings: RunSettings, asked: Callable[[], bool]) -> PartitionedSet:
    """The partitioned set of a run: as given, as found from an earlier run of the same content, or made now."""
    options = source_options(settings, settings.data)
    opened: list[Source] = []

    def plan() -> tuple[str, bool]:
        """Everything that can be refused is refused here, before any rank works."""
        check_output(settings)
        check_methods(world, settings)
        given = Path(settings.data)
        if given.suffix == ".h5" and given.is_file() and is_partitioned(given):
            store = replace(PartitionedSet.open(given), thin=settings.thin)
            check_given(settings, store)
            check_fits(world, settings, store.decomposition, store.shape[-1], len(store.class_names), store.train_samples)
            return str(given), True
        source = open_source(options)
        opened.append(source)
        decomposition = decompose(settings, source)
        samples = len(select(settings, source)["train"])
        check_fits(world, settings, decomposition, source.shape[-1], len(source.class_names), samples)
        content = (replace(options, download=False), decomposition.grid, decomposition.overlap, decomposition.margin)
        chosen = (settings.train_samples, settings.test_samples, settings.skip_damaged)
        key = sha256(repr((source.fingerprint, content, chosen, SCHEMA_VERSION)).encode()).hexdigest()[:16]
        path = settings.partitions / f"{short_name(settings.data)}-{_times(decomposition.grid)}-{key}.h5"
        return str(path), path.is_file()

    path, there = world.on_root(plan)
    if there:
        with world.raise_on_all_ranks():
            store = PartitionedSet.open(Path(path))
    else:
        store = partition_source(world, settings, options, Path(path), opened, asked)
    return replace(store, thin=settings.thin)


def worth_knowing(settings: RunSettings, store: PartitionedSet) -> list[str]:
    """What nobody may have meant, of settings that are in order."""
    notes = []
    samples, batch = store.train_samples, settings.batch_size
    if samples > batch and 10 * (samples % batch) > samples:
        fitting = samples // -(-samples // batch)
        notes.append(
            f"batches of {batch} leave {samples % batch} of the {samples} training images out of every epoch, others each time; "
            f"--batch-size {fitting} takes {'all' if samples % fitting == 0 else f'all but {samples % fitting}'}"
        )
    whole = sum(subdomain.subimage.shape == store.decomposition.shape for subdomain in store.decomposition.subdomains)
    if settings.decomposition == "image" and whole and len(store.decomposition) > 1:
        notes.append(f"with --overlap {store.overlap}, {whole} of {len(store.decomposition)} subimages are the whole image")
    return notes


def check_methods(world: World, settings: RunSettings) -> None:
    """Refuses what a method cannot do, or cannot tell."""
    if settings.tensorboard:
        check_board()
    joint = [method for method in Method if method.joint and not settings.is_composed(method)]
    if settings.precision == "fp16" and set(joint) & set(settings.methods):
        raise InputError(
            "--precision fp16 needs a GPU and networks of one rank (its loss scale differs from rank to rank): take bf16 or fp32, "
            f"or leave {' and '.join(joint)} out of --methods"
        )
    if settings.decomposition == "width" and settings.frozen_epochs and Method.TRANSFER in settings.methods:
        raise InputError("--frozen-epochs: networks that are decomposed in width are composed without a DNN; leave it out")
    if settings.start_from and settings.needs("local"):
        start = RunFolder(settings.start_from)
        if not start.has_results:
            raise InputError(f"--start-from {start}: no {start.results.name} there; give the folder of a finished run")
        kept = start.seeds()
        for seed in range(settings.seed, settings.seed + settings.seeds):
            if kept and start.seed(seed) not in kept:
                raise InputError(f"--start-from {start}: has no {start.seed(seed).path.name}; take the seeds of that run")
        if not kept and settings.seeds > 1:
            raise InputError(f"--start-from {settings.start_from} is a run with one seed: leave --seeds out")


def check_given(settings: RunSettings, store: PartitionedSet) -> None:
    """Refuses options that a set which is already partitioned cannot follow."""
    if settings.decomposition == "width" and prod(store.grid) > 1:
        raise InputError(f"--decomposition width: {store.path} is partitioned with grid {_text(store.grid)}; partition with --grid 1x1")
    for name in ("grid", "overlap") if settings.decomposition == "image" else ():
        if name in settings.model_fields_set and getattr(store, name) != getattr(settings, name):
            raise InputError(f"--{name}: {store.path} is partitioned with {name} {_text(getattr(store, name))}; leave --{name} out")
    for name in OF_A_SOURCE:
        if getattr(settings, name) != RunSettings.model_fields[name].default:
            raise InputError(f"--{name.replace('_', '-')}: {store.path} is partitioned already; give it to the partition command")
    if settings.margin > store.margin:
        raise InputError(
            f"--shift {settings.shift}: {store.path} is partitioned with a margin of {store.margin} pixels; partition again with --augment"
        )


def check_fits(world: World, settings: RunSettings, decomposition: Decomposition, channels: int, classes: int, samples: int) -> None:
    """Refuses too few samples, subimages that are too small for the network, and ranks that do not fit the subdomains."""
    if samples < max(2, settings.folds):
        raise InputError(f"{samples} training samples are fewer than --folds {settings.folds}: give more")
    sharing = world.size if Method.GLOBAL in settings.methods else max(1, world.size // len(decomposition))
    if samples < 2 * sharing:
        raise InputError(f"{samples} training samples are fewer than two a rank of those that share them: give more, or take fewer ranks")
    check_networks(settings, decomposition, channels, classes)
    if "flip" in settings.augment:
        for subdomain in decomposition.subdomains:
            decomposition.mirror(subdomain.index)
    check_ranks(world.size, decomposition)


def check_ranks(ranks: int, decomposition: Decomposition) -> None:
    """Refuses ranks that neither divide the subdomains nor are a multiple of them; names the numbers of ranks that would do."""
    subdomains = len(decomposition)
    if subdomains % ranks and ranks % subdomains:
        fitting = [str(n) for n in range(1, subdomains + 1) if subdomains % n == 0]
        fewer = f"{', '.join(fitting[:-1])} or {fitting[-1]}" if len(fitting) > 1 else "1"
        parts = (
            f"{subdomains} subdomains (--grid {_times(decomposition.grid)})" if decomposition.thin == 1 else f"{subdomains} thin networks"
        )
        raise InputError(f"{ranks} ranks do not fit {parts}: start {fewer} ranks, or a multiple of {subdomains} with mpirun -n")


def check_networks(settings: RunSettings, decomposition: Decomposition, channels: int, classes: int) -> None:
    """Refuses a network that cannot be what is asked for: too small subimages, a width rule that it does not know, an unknown name."""
    divisor = settings.divisor(len(decomposition))
    if any(not method.whole_image for method in settings.methods):
        for spatial in dict.fromkeys(subdomain.subimage.shape for subdomain in decomposition.subdomains):
            registry.check(settings.network, Shape(spatial, channels, classes), settings.width, divisor, settings.features)
    if Method.GLOBAL in settings.methods:
        registry.check(settings.network, Shape(decomposition.shape, channels, classes), settings.global_width or settings.width, 1, None)


def _times(numbers: Iterable[int]) -> str:
    return "x".join(map(str, numbers))


def _text(value: int | tuple[int, ...]) -> str:
    return str(value) if isinstance(value, int) else _times(value)

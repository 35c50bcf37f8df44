"""Before any rank trains: rank 0 checks the settings, and the images are partitioned, or found partitioned.

Nothing here imports torch, so that errors come at once.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from math import prod
from pathlib import Path

import numpy as np

from ddcnn.config.data_settings import DataSettings, PartitionSettings
from ddcnn.config.settings import RunSettings
from ddcnn.data.partition import PartitionOptions, partition
from ddcnn.data.partitioned_set import SCHEMA_VERSION, PartitionedSet, is_partitioned
from ddcnn.data.sources import Source, SourceOptions, balanced_subset, named_without_option, open_like, open_source
from ddcnn.decomposition import Decomposition, times
from ddcnn.errors import InputError
from ddcnn.experiment.fitting import check_fits, check_trained
from ddcnn.experiment.resumed import Resumed, images_of
from ddcnn.io.atomic import check_place
from ddcnn.io.run_folder import RunFolder, check_output, short_name
from ddcnn.io.tensorboard import check_board
from ddcnn.networks.user_code import look_in
from ddcnn.parallel.devices import choose_device
from ddcnn.parallel.world import World
from ddcnn.training.precision import DevicePolicy

logger = logging.getLogger(__name__)
OF_A_SOURCE = (
    "train_samples", "validation_samples", "test_samples", "validation_fraction", "image_size", "image_transform", "interpolation",
    "volume_size", "window", "test_fraction", "skip_damaged", "mode", "nan", "follow_links",
)  # settings that a partitioned set has followed already  # fmt: skip


def partition_command(world: World, settings: PartitionSettings) -> None:
    """``ddcnn partition``; all ranks together."""

    def check() -> None:
        if settings.output.suffix != ".h5":
            raise InputError(f"--output {settings.output}: the name of a partitioned set ends in .h5")
        if is_partitioned(Path(settings.source)):
            raise InputError(f"{settings.source} is partitioned already; partition the source that it was made from")
        if settings.output.exists() and not is_partitioned(settings.output):
            raise InputError(f"--output {settings.output} exists and is not a partitioned set: name another file")

    world.on_root(check)
    options, source = source_options(settings, settings.source), None
    with world.raise_on_all_ranks(), world.timeline.span("compute"):
        if world.rank == 0:
            with named_without_option():
                source = open_source(options)
            decompose(settings, source)
            select(settings, source)
    store = partition_source(world, settings, options, settings.output, source)
    if world.rank == 0:
        logger.info(
            "%s",
            f"{settings.output}: {' + '.join(map(str, store.samples.values()))} images of {times(store.shape)}, "
            f"{len(store.decomposition)} subdomains{f'; {store.skipped} damaged ones skipped' if store.skipped else ''}",
        )


def prepare_run(world: World, settings: RunSettings, should_stop: Callable[[], bool] = lambda: False) -> PartitionedSet:
    """The partitioned set of a run: as given, as found from an earlier run of the same content, or made now; all ranks together.

    Args:
        should_stop: whether this rank has been asked to stop.

    Raises:
        InputError: the settings cannot be followed.
        Stopped: while the images were being partitioned.
    """
    world.barrier()
    world.timeline.begin()
    device = choose_device(world, settings.device, settings.deterministic)  # refused now, not after hours of partitioning
    with world.raise_on_all_ranks():
        DevicePolicy.choose(device, settings.precision)
    resumed = Resumed.of(settings) if world.rank == 0 else None
    look_in(settings.network, world.on_root(lambda: resumed.module_places if resumed else []))
    options, source, target = source_options(settings, settings.data), None, None
    with world.timeline.phase("partition"):
        with world.raise_on_all_ranks(), world.timeline.span("compute"):
            if world.rank == 0:
                source, target = plan_set(world.size, settings, options, resumed)
                if settings.progress != "none":  # after what can be refused
                    logger.info("images     %s", settings.data)
        path = Path(world.broadcast(str(target)))
        if world.on_root(path.is_file):
            with world.raise_on_all_ranks():
                store = PartitionedSet.open(path)
        else:
            store = partition_source(world, settings, options, path, source, should_stop)
        if store.skipped:
            world.on_root(lambda: check_store(world.size, settings, store))  # fewer samples than were checked before
        world.on_root(lambda: resumed.check(settings, images_of(store)) if resumed else None)
        return store


def plan_set(ranks: int, settings: RunSettings, options: SourceOptions, resumed: Resumed | None) -> tuple[Source | None, Path]:
    """On rank 0: checks all settings, and says where the partitioned set is, or is to be written from the source.

    Raises:
        InputError: whatever can be refused before any rank works.
    """
    check_output(settings)
    check_methods(settings, ranks)
    given, source = Path(settings.data), None
    if not (given.suffix.lower() == ".h5" and is_partitioned(given)):
        try:
            source = open_source(replace(options, known=partial(_known, settings, options)))
        except InputError as error:
            if not resumed:
                raise
            given = resumed.replacement(settings, error)
    if not source:
        store = PartitionedSet.open(given)
        check_given(settings, store, () if resumed else OF_A_SOURCE)
        check_store(ranks, settings, store)
        check_trained(settings, store.decomposition, store, store.dtype, resumed)
        return None, given
    decomposition, selected = decompose(settings, source), select(settings, source)
    check_validates(settings, "validation" in selected, why_none(settings))
    check_fits(ranks, settings, decomposition, len(selected["train"]), source.shape[-1], len(source.class_names))
    check_trained(settings, decomposition, source, source.splits["train"].dtype.str, resumed)
    target = _place(settings, options, source.fingerprint, len(decomposition.grid))
    if not target.is_file():
        check_place(target)
    return source, target


def _place(settings: RunSettings, options: SourceOptions, fingerprint: str, axes: int) -> Path:
    """Where the partitioned set of a source lies, or is to lie."""
    grid = settings.splitting.image_grid(settings.grid, axes)
    content = (replace(options, name="", data_root=Path(), download=False), grid, settings.overlap, settings.margin)
    chosen = (settings.train_samples, settings.validation_samples, settings.test_samples, settings.skip_damaged)
    key = sha256(repr((fingerprint, content, chosen, SCHEMA_VERSION)).encode()).hexdigest()[:16]
    return settings.partitions / f"{short_name(settings.data)}-{times(grid)}-{key}.h5"


def _known(settings: RunSettings, options: SourceOptions, fingerprint: str, axes: int) -> tuple[tuple[int, ...], np.dtype] | None:
    """Shape and type of the images of a source that an earlier run has partitioned."""
    path = _place(settings, options, fingerprint, axes)
    try:
        store = PartitionedSet.open(path)
    except InputError:  # there is none, or a damaged one, which is refused when it is used
        return None
    return store.shape, np.dtype(store.dtype)


def resolved(settings: RunSettings, store: PartitionedSet) -> RunSettings:
    """The settings, with the grid and the overlap of a set that was partitioned before."""
    return settings.model_copy(update={"grid": store.grid, "overlap": store.overlap}) if settings.splitting.cuts_images else settings


def source_options(settings: DataSettings, name: str) -> SourceOptions:
    return SourceOptions(
        name, settings.data_root, settings.download, settings.volumes, settings.image_size, settings.image_transform,
        settings.interpolation, settings.volume_size, settings.window, settings.test_fraction, settings.subset_seed,
        mode=settings.mode, nan=settings.nan, follow_links=settings.follow_links, validation_fraction=settings.validation_fraction,
    )  # fmt: skip


def decompose(settings: DataSettings, source: Source) -> Decomposition:
    """How the images of a source are cut."""
    spatial = source.shape[:-1]
    return Decomposition(spatial, settings.splitting.image_grid(settings.grid, len(spatial)), settings.overlap, settings.margin)


def select(settings: DataSettings, source: Source) -> dict[str, np.ndarray]:
    """The samples of each split that are used, (S,) int64."""
    wanted = {"train": settings.train_samples, "validation": settings.validation_samples, "test": settings.test_samples}
    if settings.train_samples and not settings.validation_samples and "validation" in source.drawn:
        share = settings.validation_fraction / (1 - settings.validation_fraction)
        proportional = max(len(source.class_names), round(share * settings.train_samples))
        wanted["validation"] = min(len(source.splits["validation"]), proportional)
    if settings.validation_samples and "validation" not in source.splits:
        raise InputError(f"--validation-samples {settings.validation_samples}: there are no validation images, {why_none(settings)}")
    chosen = {}
    for split, images in source.splits.items():
        try:
            chosen[split] = balanced_subset(images.labels, wanted[split], settings.subset_seed, split)
        except InputError as error:
            others = len(source.splits["validation"]) if split == "train" and "validation" in source.drawn else 0
            raise InputError(f"{error}{f'; {others} others are for validation (--validation-fraction)' if others else ''}") from None
    return chosen


def partition_source(
    world: World, settings: DataSettings, options: SourceOptions, path: Path, source: Source | None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PartitionedSet:  # fmt: skip
    """Writes the partitioned set of a source, which rank 0 has opened; the other ranks (None) open it here, without all headers."""

    def write(ranks: World, source: Source, should_stop: Callable[[], bool] = lambda: False) -> PartitionedSet:
        how = PartitionOptions(settings.skip_damaged, settings.progress, isinstance(settings, RunSettings), should_stop)
        return partition(ranks, source, select(settings, source), decompose(settings, source), path, how)

    if world.broadcast(bool(source and source.in_memory)):
        world.on_root(lambda: write(world.alone(), source).path if source else None)
        with world.raise_on_all_ranks():
            return PartitionedSet.open(path)
    shape, dtype = world.broadcast((source.shape, source.splits["train"].dtype.str) if source else None)
    with world.raise_on_all_ranks(), world.timeline.span("compute"):
        source = source or open_like(options, tuple(shape), np.dtype(dtype))
    if not world.all_equal(source.fingerprint.encode()):
        raise InputError(f"--data {options.name}: its files changed while they were read; start again", agreed=True)
    return write(world, source, should_stop)


def check_methods(settings: RunSettings, ranks: int) -> None:
    """Refuses methods that do not go with other settings on so many ranks, and a run to start from that does not fit."""
    if settings.tensorboard:
        check_board()
    if settings.precision == "fp16" and settings.joint and ranks > 1:
        raise InputError(
            f"--precision fp16 needs a GPU, and for {' and '.join(settings.joint)} one rank (its loss scale differs from rank to rank): "
            "take bf16 or fp32, one rank, or other --methods"
        )
    if settings.start_from and settings.needs("local"):
        start = RunFolder(settings.start_from)
        if not start.has_results:
            raise InputError(f"--start-from {start}: no {start.results.name} there; give the folder of a finished run")
        kept = [folder.path for folder in start.seeds()]
        for seed in range(settings.seed, settings.seed + settings.seeds):
            if kept and start.seed(seed).path not in kept:
                raise InputError(f"--start-from {start}: has no {start.seed(seed).path.name}; take the seeds of that run")
        if not kept and settings.seeds > 1:
            raise InputError(f"--start-from {settings.start_from} is a run with one seed: leave --seeds out")
        earlier = (start.seed(settings.seed) if kept else start).settings()
        if earlier.coarse_stages and not settings.convolutional:
            raise InputError(
                f"--start-from {start}: its local CNNs lack the stages that its DNN has on maps: add --interface maps, or train others"
            )
        for name in ("head", "coarse_stages") if earlier.network == settings.network else ():
            if (found := getattr(earlier, name)) != getattr(settings, name):
                raise InputError(f"--start-from {start}: has other networks than this run: give --{name.replace('_', '-')} {found}, too")
        if earlier.share == "none" != settings.share:
            why = "its local CNNs began from different parameters, whose mean is worth nothing"
            raise InputError(f"--start-from {start}: {why}: leave --share {settings.share} out, or train them with it")


def check_given(settings: RunSettings, store: PartitionedSet, of_a_source: Sequence[str] = OF_A_SOURCE) -> None:
    """Refuses options that a set which is already partitioned cannot follow; those ``of_a_source`` it has followed before."""
    if not settings.splitting.cuts_images and prod(store.grid) > 1:
        raise InputError(
            f"--decomposition {settings.decomposition}: {store.path} is partitioned with grid {_text(store.grid)}; partition with 1x1"
        )
    for name in ("grid", "overlap") if settings.splitting.cuts_images else ():
        if name in settings.model_fields_set and getattr(store, name) != getattr(settings, name):
            raise InputError(f"--{name}: {store.path} is partitioned with {name} {_text(getattr(store, name))}; leave --{name} out")
    for name in of_a_source:
        if getattr(settings, name) != RunSettings.model_fields[name].default:
            raise InputError(f"--{name.replace('_', '-')}: {store.path} is partitioned already; give it to the partition command")
    if settings.margin > store.margin:
        raise InputError(
            f"--shift {settings.shift}: {store.path} is partitioned with a margin of {store.margin} pixels; partition again with --augment"
        )


def check_store(ranks: int, settings: RunSettings, store: PartitionedSet) -> None:
    """``check_validates`` and ``check_fits`` of a set that has been partitioned."""
    check_validates(settings, "validation" in store.samples, "since it was partitioned without: partition with a --validation-fraction")
    check_fits(ranks, settings, store.decomposition, store.train_samples, store.shape[-1], len(store.class_names))


def check_validates(settings: RunSettings, has_images: bool, why_none: str) -> None:
    """Refuses decisions by validation images that there are not, and says why."""
    if settings.selects and not has_images:
        raise InputError(f"{settings.selects}: {settings.data} has no validation images, by which to decide, {why_none}")


def why_none(settings: DataSettings) -> str:
    """Why there are no validation images."""
    if settings.validation_fraction:
        return "since no class has an image to spare: a class needs two for training, three where the test images are drawn from them, too"
    return "with --validation-fraction 0: give a larger one"


def _text(value: int | tuple[int, ...]) -> str:
    return str(value) if isinstance(value, int) else times(value)

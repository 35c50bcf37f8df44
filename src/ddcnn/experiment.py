"""A run from start to end, in the order of the papers: partition, local training, gather, one decision, report."""

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import tomli_w
import torch

from ddcnn import checkpoint
from ddcnn.config import DataSettings, PartitionSettings, RunSettings
from ddcnn.data.batches import Augmentation, Subimages
from ddcnn.data.partition import partition
from ddcnn.data.sources import Source, SourceOptions, balanced_subset, open_source
from ddcnn.data.store import SCHEMA_VERSION, SPLITS, PartitionedSet, is_partitioned
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError
from ddcnn.files import disk_errors, write_text
from ddcnn.method.aggregate import average, dnn_rows, train_dnn, vote
from ddcnn.method.local import DnnSamples, LocalClassifier, train_local
from ddcnn.networks import NETWORKS, Shape
from ddcnn.parallel import World
from ddcnn.progress import Progress
from ddcnn.results import Results
from ddcnn.seeding import Seeds
from ddcnn.training import Engine, Epoch, Recipe, classify


def partition_command(world: World, settings: PartitionSettings) -> None:
    """``ddcnn partition``."""
    options = SourceOptions(settings.source, settings.data_root, settings.download, settings.volumes)

    def check() -> None:
        source = open_source(options)
        decompose(settings, source)
        select(settings, source)

    world.on_root(check)
    store = partition_source(world, settings, options, settings.output)
    if world.rank == 0:
        print(
            f"{settings.output}: {store.train_samples} + {store.test_samples} images of {_times(store.shape)}, "
            f"{len(store.decomposition)} subdomains"
        )


def run_command(world: World, settings: RunSettings) -> None:
    """``ddcnn run``."""
    world.barrier()
    world.timeline.begin()
    with world.timeline.phase("partition"):
        store = find_or_partition(world, settings)
        output = Path(world.on_root(lambda: str(prepare_output(settings, store))))
    torch.set_num_threads(world.threads(settings.threads))
    with world.together():
        engine = Engine.choose(world.device(settings.device), settings.precision)
    labels = {split: store.labels(split) for split in SPLITS}
    dnn_samples = DnnSamples.choose(settings.dnn_data, labels["train"], settings.folds, settings.seed)
    results = Results(world, settings, store, output)

    with world.timeline.phase("local"):
        owned = world.owned(len(store.decomposition))
        epochs = settings.epochs * len(owned) * (1 + settings.folds * (settings.dnn_data == "out-of-fold"))
        with Progress("local CNNs", epochs, settings.progress if world.rank == 0 else "none") as progress:
            found = [train_subdomain(world, settings, store, index, dnn_samples, engine, progress, results) for index in owned]

    with world.timeline.phase("gather"):
        classifications = np.stack([np.concatenate([local.for_dnn, local.test]) for local in found])
        gathered = world.gather(classifications)  # (ranks, owned, S_dnn + S_test, K) on rank 0

    with world.timeline.phase("dnn"):
        if gathered is not None:
            decide(world, settings, dnn_samples, labels, gathered, engine, results)
        world.barrier()

    results.write(engine, len(dnn_samples.index))


def prepare_output(settings: RunSettings, store: PartitionedSet) -> Path:
    """Makes the output folder; refuses one that holds a finished run."""
    grid = _times(store.grid)
    output = settings.output or Path("runs") / f"{_file_name(settings.data)}-{grid}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (output / "results.json").exists() and not settings.overwrite:
        raise InputError(f"--output {output} holds a finished run: name another folder, or replace it with --overwrite")
    with disk_errors(output):
        (output / "checkpoints").mkdir(parents=True, exist_ok=True)
        (output / "results.json").unlink(missing_ok=True)
    resolved = settings.model_copy(update={"output": output, "grid": store.grid, "overlap": store.overlap})
    values = {name.replace("_", "-"): value for name, value in resolved.model_dump(mode="json", exclude_none=True).items()}
    write_text(output / "config.toml", tomli_w.dumps(values))
    return output


def decompose(settings: DataSettings, source: Source) -> Decomposition:
    return Decomposition(source.shape[:-1], settings.grid, settings.overlap, settings.margin)


def select(settings: DataSettings, source: Source) -> dict[str, np.ndarray]:
    wanted = {"train": settings.train_samples, "test": settings.test_samples}
    return {split: balanced_subset(source.splits[split].labels, wanted[split], settings.subset_seed, split) for split in SPLITS}


def partition_source(world: World, settings: DataSettings, options: SourceOptions, path: Path) -> PartitionedSet:
    """All ranks open the source, which rank 0 has found in order, and write the partitioned set together."""
    with world.together(), world.timeline.span("compute"):
        source = open_source(options)
    return partition(world, source, select(settings, source), decompose(settings, source), path)


def find_or_partition(world: World, settings: RunSettings) -> PartitionedSet:
    """The partitioned set of a run: as given, as found from an earlier run of the same content, or made now."""
    options = SourceOptions(settings.data, settings.data_root, settings.download, settings.volumes)

    def plan() -> tuple[str, bool]:
        """Everything that can be refused is refused here, before any rank works."""
        given = Path(settings.data)
        if given.suffix == ".h5" and given.is_file() and is_partitioned(given):
            store = PartitionedSet.open(given)
            check_given(settings, store)
            check_fits(world, settings, store.decomposition, store.shape[-1], len(store.class_names))
            return str(given), True
        source = open_source(options)
        decomposition = decompose(settings, source)
        select(settings, source)
        check_fits(world, settings, decomposition, source.shape[-1], len(source.class_names))
        content = settings.model_dump_json(include=set(DataSettings.model_fields) - {"data_root", "download"})
        key = sha256(repr((source.fingerprint, content, SCHEMA_VERSION)).encode()).hexdigest()[:16]
        path = settings.partitions / f"{_file_name(settings.data)}-{settings.grid_text}-{key}.h5"
        return str(path), path.is_file()

    path, there = world.on_root(plan)
    if there:
        with world.together():
            return PartitionedSet.open(Path(path))
    return partition_source(world, settings, options, Path(path))


def check_given(settings: RunSettings, store: PartitionedSet) -> None:
    """Refuses options that a set which is already partitioned cannot follow."""
    for name in ("grid", "overlap"):
        if name in settings.model_fields_set and getattr(store, name) != getattr(settings, name):
            raise InputError(f"--{name}: {store.path} is partitioned with {name} {getattr(store, name)}; leave --{name} out")
    for name in ("train_samples", "test_samples"):
        if name in settings.model_fields_set:
            raise InputError(f"--{name.replace('_', '-')}: {store.path} is partitioned already; give it to the partition command")
    if settings.margin > store.margin:
        raise InputError(f"--shift {settings.shift}: {store.path} is partitioned with a margin of {store.margin} pixels for shifts")


def check_fits(world: World, settings: RunSettings, decomposition: Decomposition, channels: int, classes: int) -> None:
    """Refuses subimages that are too small for the network, and numbers of ranks that do not fit the subdomains."""
    for subdomain in decomposition.subdomains:
        Shape(subdomain.subimage.shape, channels, classes).check(settings.network)
    if "flip" in settings.augment:
        for subdomain in decomposition.subdomains:
            decomposition.mirror(subdomain.index)
    world.check_fits(decomposition)


def train_subdomain(
    world: World,
    settings: RunSettings,
    store: PartitionedSet,
    index: int,
    dnn_samples: DnnSamples,
    engine: Engine,
    progress: Progress,
    results: Results,
) -> LocalClassifier:
    """Local training of one subdomain, watched, and its parameters saved."""
    augmentation = Augmentation("flip" in settings.augment, settings.margin)
    divisor = settings.width_divisor or len(store.decomposition) ** 0.5
    shape = Shape(store.decomposition.subdomains[index].subimage.shape, store.shape[-1], len(store.class_names))
    recipe = Recipe(
        settings.epochs, settings.batch_size, settings.optimizer, settings.lr, settings.weight_decay, settings.schedule,
        settings.label_smoothing,
    )  # fmt: skip
    with world.timeline.span("compute"), failing_in(f"subdomain {index}"):
        training = Subimages.load(store, "train", index, engine.device, augmentation)
        test = Subimages.load(store, "test", index, engine.device)

        def after_epoch(network: torch.nn.Module, epoch: Epoch, fold: int | None) -> None:
            what = f"subdomain {index}" + ("" if fold is None else f" without fold {fold}")
            if fold is None:
                accuracy = None
                if settings.evaluate_every and epoch.epoch % settings.evaluate_every == 0:
                    found = classify(network, test, torch.arange(len(test.labels)), engine)
                    accuracy = float((found.argmax(1) == test.labels.cpu()).float().mean())
                results.epoch("local", index, epoch, accuracy)
            progress.advance(f"{what}  epoch {epoch.epoch}/{settings.epochs}  loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}")

        make = partial(NETWORKS[settings.network], shape, settings.width, divisor)
        begin = time.perf_counter()
        found = train_local(make, training, test, dnn_samples, recipe, engine, Seeds(settings.seed, "local", index), after_epoch)
        results.subdomain(index, found.network, time.perf_counter() - begin)
        checkpoint.save(
            results.output / "checkpoints" / f"local-{index:04d}.h5", found.network,
            {"network": settings.network, "width": settings.width, "divisor": divisor, "spatial": shape.spatial,
             "channels": shape.channels, "classes": shape.classes, "subdomain": index},
        )  # fmt: skip
    return found


def decide(
    world: World,
    settings: RunSettings,
    dnn_samples: DnnSamples,
    labels: dict[str, np.ndarray],
    gathered: np.ndarray,
    engine: Engine,
    results: Results,
) -> None:
    """On rank 0: one decision out of the local classifications, by every method that was asked for."""
    probabilities = gathered.reshape(-1, *gathered.shape[2:]).swapaxes(0, 1)  # (S_dnn + S_test, N, K)
    for_dnn, test = np.split(probabilities, [len(dnn_samples.index)])
    results.local_classes = test.argmax(axis=2)
    if "vote" in settings.methods:
        results.method("vote", vote(test))
    if "average" in settings.methods:
        mean = average(test)
        results.method("average", mean.argmax(axis=1), mean)
    if "dnn" in settings.methods:
        recipe = Recipe(settings.dnn_epochs, settings.batch_size, "adamw", settings.dnn_lr, 0.01, "one-cycle")
        with (
            world.timeline.span("compute"),
            failing_in("DNN"),
            Progress("DNN", settings.dnn_epochs, settings.progress) as progress,
        ):

            def after_epoch(epoch: Epoch) -> None:
                results.epoch("dnn", None, epoch, None)
                progress.advance(f"epoch {epoch.epoch}/{settings.dnn_epochs}  loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}")

            network = train_dnn(for_dnn, labels["train"][dnn_samples.index], recipe, engine, Seeds(settings.seed, "dnn"), after_epoch)
            found = classify(network, dnn_rows(test, labels["test"], engine), torch.arange(len(test)), engine).numpy()
        results.method("dnn", found.argmax(axis=1), found, network)
        checkpoint.save(
            results.output / "checkpoints" / "dnn.h5", network, {"subdomains": test.shape[1], "classes": test.shape[2]}
        )


@contextmanager
def failing_in(what: str) -> Iterator[None]:
    """Names the subdomain or network in the message of whatever fails."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


def _times(numbers: Iterable[int]) -> str:
    return "x".join(map(str, numbers))


def _file_name(source: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(source).name)

"""The results of a run, computed on rank 0 from what all ranks have recorded; nothing is communicated."""

from dataclasses import dataclass

import numpy as np

from ddcnn.config.methods import Method
from ddcnn.config.settings import RunSettings
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.io import results_schema as schema
from ddcnn.io.metrics_log import COLUMNS, curve, rows_of
from ddcnn.parallel.timeline import KINDS, PHASES, largest_peaks, phase_seconds, seconds_of, wall, windows
from ddcnn.report.analysis import Decision, analyse
from ddcnn.report.metrics import Probable, scores
from ddcnn.training.kept import Score

POINTS = 200  # of the curve of the average
Curve = list[tuple[float, float]]  # (seconds, accuracy)


@dataclass(frozen=True)
class Gathered:
    """What all ranks have recorded, and rank 0 knows.

    Attributes:
        sent: (ranks, phases) bytes.
        spans: a list over ranks of arrays (spans, 4), as of ``timeline``.
        epochs: (rows, columns) as of ``metrics_log``, by phase, subdomain and epoch.
        subdomains: (n, 4) index, parameters, parameters that the DNN uses, seconds; of the local CNNs that were trained.
        classifications: (events, 2) index and time, and (events, S', K) p_i after epochs of local training, if any were recorded.
        stride: of the validation samples in these.
        local_classes: (S, N) arg max p_i of the validation and test samples, if local CNNs have been trained.
        global_parameters: of the undecomposed CNN of the same width, if there can be one.
        peaks: (ranks, phases, 3) bytes, as of ``timeline``.
    """

    sent: np.ndarray
    spans: list[np.ndarray]
    epochs: np.ndarray
    subdomains: np.ndarray
    classifications: tuple[np.ndarray, np.ndarray] | None
    stride: int
    local_classes: dict[str, np.ndarray]
    global_parameters: int | None
    peaks: np.ndarray


@dataclass(frozen=True)
class Decided:
    """The decisions of a method.

    Attributes:
        classes: (S_test,)
        batch_size: samples per step of the last training that it needs.
        score: on the validation images, if there are any; NaN for the loss of decisions without probabilities.
        probable: of its probabilities, if it has any.
        parameters: of its own network, beside the local CNNs.
        decision: how it decides on interface values, if it does.
        gathered_bytes: sent for it in the phase ``gather``, if that is less than the whole phase.
    """

    classes: np.ndarray
    batch_size: int
    score: Score | None = None
    probable: Probable | None = None
    parameters: int = 0
    decision: Decision | None = None
    gathered_bytes: int | None = None


def results_of(
    gathered: Gathered, decided: dict[Method, Decided], settings: RunSettings, store: PartitionedSet, environment: schema.Environment
) -> schema.RunResults:
    """The results of a run."""
    labels = {split: store.labels(split) for split in store.samples}
    methods = {name: method_result(name, decided[name], gathered, labels, settings, len(store.class_names)) for name in settings.methods}
    if Method.TRANSFER in methods and Method.DNN in methods and "dnn" in settings.phases_of(Method.TRANSFER):
        start, transfer = methods[Method.DNN].curve or [], methods[Method.TRANSFER]
        methods[Method.TRANSFER] = transfer.model_copy(update={"curve": [*start[-1:], *(transfer.curve or [])]})
    networks = len(store.decomposition) * settings.networks_per_subimage
    classes: dict[str, np.ndarray] = {name: one.classes for name, one in decided.items()}
    confidence: dict[str, np.ndarray] = {name: one.probable.confidence for name, one in decided.items() if one.probable}
    decisions: dict[str, Decision] = {name: one.decision for name, one in decided.items() if one.decision}
    return schema.RunResults(
        schema_version=schema.SCHEMA_VERSION,
        data=schema.DataSummary(
            source=store.source, shape=store.shape, classes=len(store.class_names), train_samples=store.train_samples,
            validation_samples=store.validation_samples, test_samples=store.test_samples, skipped=store.skipped,
            class_names=list(store.class_names),
        ),
        decomposition=schema.DecompositionSummary(
            kind=settings.decomposition, grid=store.grid if settings.splitting.cuts_images else settings.grid, overlap=store.overlap,
            width_divisor=settings.divisor(networks), parameters=int(gathered.subdomains[:, 1].sum()),
            global_parameters=gathered.global_parameters, subdomains=subdomain_results(gathered, networks, store, labels, settings),
        ),
        methods=methods,
        analysis=analyse(decisions, labels["test"], classes, confidence, settings.seed),
        phases={name: phase_result(name, seconds, gathered.peaks) for name, seconds in phase_seconds(gathered.spans).items()},
        environment=environment,
    )  # fmt: skip


def phase_result(name: str, seconds: dict[str, float], peaks: np.ndarray) -> schema.PhaseSeconds:
    resident, allocated, reserved = largest_peaks(peaks, (name,))
    return schema.PhaseSeconds(
        **seconds, max_rank_memory_bytes=resident, max_rank_gpu_allocated_bytes=allocated, max_rank_gpu_reserved_bytes=reserved
    )


def method_result(
    name: Method, decided: Decided, gathered: Gathered, labels: dict[str, np.ndarray], settings: RunSettings, classes: int
) -> schema.MethodResult:
    """Scores and cost of a method; its curve ends with its validation accuracy after all its seconds."""
    phases, spans = settings.phases_of(name), gathered.spans
    intervals = windows(spans, phases)
    score, end = decided.score, wall(intervals)
    measures = scores(labels["test"], decided.classes, decided.probable, classes)
    points = curve(gathered.epochs, phases[-1], "validation_accuracy" if score else "accuracy")
    if name == Method.AVERAGE and gathered.classifications:
        points = average_curve(*gathered.classifications, labels["validation"][:: gathered.stride])
    own = "" if name.combines_probabilities else phases[-1]  # the training of its own network
    parameters = decided.parameters
    if not settings.sees_whole_image(name):  # such a network is all that the method needs
        each = gathered.subdomains[:, 1 if name.combines_probabilities else 2]
        parameters += int((each[:1] if name.joint and settings.share == "all" else each).sum())
    sent = {phase: int(gathered.sent[:, PHASES.index(phase)].sum()) for phase in phases}
    if decided.gathered_bytes is not None:
        sent["gather"] = decided.gathered_bytes
    resident, _, reserved = largest_peaks(gathered.peaks, phases)
    means = {kind: float(np.mean(seconds_of(spans, phases, kind))) for kind in KINDS}
    return schema.MethodResult(
        **measures,
        validation_accuracy=score and score.accuracy,
        validation_loss=None if score is None or np.isnan(score.loss) else score.loss,
        own_epochs=last_epoch(gathered.epochs, own) if own else None,
        kept_epoch=kept_epoch(gathered.epochs, own, settings) if own else None,
        parameters=parameters,
        epochs=epochs_made(gathered.epochs, name, settings),
        batch_size=decided.batch_size,
        seconds=schema.MethodSeconds(**means, total=end),
        bytes_communicated=sum(sent.values()),
        peak_memory_bytes=resident,
        peak_gpu_memory_bytes=reserved,
        curve=[*((wall(intervals, time), accuracy) for time, accuracy in points), *([(end, score.accuracy)] if score else [])],
    )


def last_epoch(rows: np.ndarray, phase: str, subdomain: float = np.nan) -> int | None:
    """The last epoch of a training; None if there was no training."""
    own = rows_of(rows, phase, subdomain)
    return int(own[-1, COLUMNS.index("epoch")]) if len(own) else None


def kept_epoch(rows: np.ndarray, phase: str, settings: RunSettings, subdomain: float = np.nan) -> int | None:
    """The epoch whose parameters a training has kept, none of its frozen epochs; None if there was no training."""
    own = rows_of(rows, phase, subdomain)
    own = own[own[:, COLUMNS.index("epoch")] > (settings.frozen_epochs if phase == Method.TRANSFER else 0)]
    if not len(own):
        return None
    measured = own[:, [COLUMNS.index(name) for name in ("epoch", "validation_accuracy", "validation_loss")]].tolist()
    validated = {int(epoch): Score(accuracy, loss) for epoch, accuracy, loss in measured if not np.isnan(accuracy)}
    if settings.keeps == "last" or not validated:
        return int(measured[-1][0])
    return max(validated, key=lambda epoch: validated[epoch].order)  # of equal ones the first, as in training


def epochs_made(rows: np.ndarray, name: Method, settings: RunSettings) -> int:
    """Epochs of training that a method has taken, early stopping included; of local CNNs those of the longest training."""
    local = rows[rows[:, 0] == PHASES.index("local"), COLUMNS.index("epoch")]
    parts = int(local.max()) if len(local) else settings.epochs
    if not name.joint and not name.whole_image:
        return parts
    made = last_epoch(rows, settings.phases_of(name)[-1])
    if made is None:
        return settings.epochs_of(name)
    return parts + made if name == Method.TRANSFER else made


def average_curve(moments: np.ndarray, classifications: np.ndarray, labels: np.ndarray) -> Curve:
    """(time, accuracy) of the average of the latest p_i of every subdomain that has any.

    Args:
        moments: (events, 2) index of the subdomain, time.
        classifications: (events, S', K) p_i.
        labels: (S',)
    """
    latest: dict[float, np.ndarray] = {}
    points: Curve = []
    order = np.argsort(moments[:, 1])
    shown = set(np.linspace(0, len(order) - 1, min(POINTS, len(order))).astype(int).tolist())
    for number, event in enumerate(order):
        latest[moments[event, 0]] = classifications[event]
        if number in shown:
            mean = np.mean([latest[index] for index in sorted(latest)], axis=0, dtype=np.float32)  # in an order that is no matter of time
            points.append((float(moments[event, 1]), float((mean.argmax(1) == labels).mean())))
    return points


def subdomain_results(
    gathered: Gathered, networks: int, store: PartitionedSet, labels: dict[str, np.ndarray], settings: RunSettings
) -> list[schema.SubdomainResult]:  # fmt: skip
    def accuracy(split: str, index: int) -> float | None:
        classes = gathered.local_classes.get(split)
        return None if classes is None else float((classes[:, index] == labels[split]).mean())

    trained = {int(index): (int(parameters), seconds) for index, parameters, _, seconds in gathered.subdomains.tolist()}
    results = []
    boxes = store.decomposition.subdomains
    for index in range(networks):
        box = boxes[index * len(boxes) // networks]
        parameters, seconds = trained.get(index, (None, np.nan))
        results.append(schema.SubdomainResult(
            index=index, start=box.subimage.start, stop=box.subimage.stop, core_start=box.core.start, core_stop=box.core.stop,
            parameters=parameters, validation_accuracy=accuracy("validation", index), test_accuracy=accuracy("test", index),
            epochs=last_epoch(gathered.epochs, "local", index), kept_epoch=kept_epoch(gathered.epochs, "local", settings, index),
            seconds=None if np.isnan(seconds) else seconds,
        ))  # fmt: skip
    return results

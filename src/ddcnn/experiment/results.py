"""The results of a run, computed on rank 0 from what all ranks have recorded; nothing is communicated."""

from dataclasses import dataclass

import numpy as np

from ddcnn.config.methods import Method
from ddcnn.config.settings import RunSettings
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.io import results_schema as schema
from ddcnn.io.metrics_log import curve
from ddcnn.parallel.timeline import KINDS, PHASES, largest_peaks, phase_seconds, seconds_of, wall, windows
from ddcnn.report.analysis import Decision, analyse
from ddcnn.report.metrics import scores

POINTS = 200  # of the curve of the average
Curve = list[tuple[float, float]]  # (seconds, test accuracy)


@dataclass(frozen=True)
class Gathered:
    """What all ranks have recorded, and rank 0 knows.

    Attributes:
        sent: (ranks, phases) bytes.
        spans: a list over ranks of arrays (spans, 4), as of ``timeline``.
        epochs: (rows, columns) as of ``metrics_log``, by phase, subdomain and epoch.
        subdomains: (n, 4) index, parameters, parameters that the DNN uses, seconds; of the local CNNs that were trained.
        classifications: (events, 2) index and time, and (events, S', K) p_i after epochs of local training, if any were recorded.
        stride: of the test samples in these.
        local_classes: (S_test, N) arg max p_i, if local CNNs have been trained.
        global_parameters: of the undecomposed CNN of the same width, if there can be one.
        peaks: (ranks, phases, 3) bytes, as of ``timeline``.
    """

    sent: np.ndarray
    spans: list[np.ndarray]
    epochs: np.ndarray
    subdomains: np.ndarray
    classifications: tuple[np.ndarray, np.ndarray] | None
    stride: int
    local_classes: np.ndarray | None
    global_parameters: int | None
    peaks: np.ndarray


@dataclass(frozen=True)
class Decided:
    """The decisions of a method.

    Attributes:
        classes: (S_test,)
        batch_size: samples per step of the last training that it needs.
        probabilities: (S_test, K) if it has any.
        parameters: of its own network, beside the local CNNs.
        decision: how it decides on interface values, if it does.
        gathered_bytes: sent for it in the phase ``gather``, if that is less than the whole phase.
    """

    classes: np.ndarray
    batch_size: int
    probabilities: np.ndarray | None = None
    parameters: int = 0
    decision: Decision | None = None
    gathered_bytes: int | None = None


def results_of(
    gathered: Gathered, decided: dict[Method, Decided], settings: RunSettings, store: PartitionedSet, environment: schema.Environment
) -> schema.RunResults:
    """The results of a run."""
    labels = store.labels("test")
    methods = {name: method_result(name, decided[name], gathered, labels, settings, len(store.class_names)) for name in settings.methods}
    if Method.TRANSFER in methods and Method.DNN in methods and "dnn" in settings.phases_of(Method.TRANSFER):
        start, transfer = methods[Method.DNN].curve or [], methods[Method.TRANSFER]
        methods[Method.TRANSFER] = transfer.model_copy(update={"curve": [start[-1], *(transfer.curve or [])]})
    networks = len(store.decomposition) * settings.networks_per_subimage
    classes: dict[str, np.ndarray] = {name: one.classes for name, one in decided.items()}
    probabilities: dict[str, np.ndarray | None] = {name: one.probabilities for name, one in decided.items()}
    decisions: dict[str, Decision] = {name: one.decision for name, one in decided.items() if one.decision}
    return schema.RunResults(
        schema_version=schema.SCHEMA_VERSION,
        data=schema.DataSummary(
            source=store.source, shape=store.shape, classes=len(store.class_names), train_samples=store.train_samples,
            test_samples=store.test_samples, skipped=store.skipped, class_names=list(store.class_names),
        ),
        decomposition=schema.DecompositionSummary(
            kind=settings.decomposition, grid=store.grid if settings.splitting.cuts_images else settings.grid, overlap=store.overlap,
            width_divisor=settings.divisor(networks), parameters=int(gathered.subdomains[:, 1].sum()),
            global_parameters=gathered.global_parameters, subdomains=subdomain_results(gathered, networks, store, labels),
        ),
        methods=methods,
        analysis=analyse(decisions, labels, classes, probabilities, settings.seed),
        phases={name: phase_result(name, seconds, gathered.peaks) for name, seconds in phase_seconds(gathered.spans).items()},
        environment=environment,
    )  # fmt: skip


def phase_result(name: str, seconds: dict[str, float], peaks: np.ndarray) -> schema.PhaseSeconds:
    resident, allocated, reserved = largest_peaks(peaks, (name,))
    return schema.PhaseSeconds(
        **seconds, max_rank_memory_bytes=resident, max_rank_gpu_allocated_bytes=allocated, max_rank_gpu_reserved_bytes=reserved
    )


def method_result(
    name: Method, decided: Decided, gathered: Gathered, labels: np.ndarray, settings: RunSettings, classes: int
) -> schema.MethodResult:
    """Scores and cost of a method; its curve ends with its test accuracy after all its seconds."""
    phases, spans = settings.phases_of(name), gathered.spans
    intervals = windows(spans, phases)
    measures = scores(labels, decided.classes, decided.probabilities, classes)
    points = curve(gathered.epochs, phases[-1])
    if name == Method.AVERAGE and gathered.classifications:
        points = average_curve(*gathered.classifications, labels[:: gathered.stride])
    parameters = decided.parameters
    if not settings.sees_whole_image(name):  # such a network is all that the method needs
        parameters += int(gathered.subdomains[:, 1 if name.combines_probabilities else 2].sum())
    sent = {phase: int(gathered.sent[:, PHASES.index(phase)].sum()) for phase in phases}
    if decided.gathered_bytes is not None:
        sent["gather"] = decided.gathered_bytes
    resident, _, reserved = largest_peaks(gathered.peaks, phases)
    means = {kind: float(np.mean(seconds_of(spans, phases, kind))) for kind in KINDS}
    return schema.MethodResult(
        **measures,
        parameters=parameters,
        epochs=settings.epochs_of(name),
        batch_size=decided.batch_size,
        seconds=schema.MethodSeconds(**means, total=wall(intervals)),
        bytes_communicated=sum(sent.values()),
        peak_memory_bytes=resident,
        peak_gpu_memory_bytes=reserved,
        curve=[*((wall(intervals, time), accuracy) for time, accuracy in points), (wall(intervals), measures["test_accuracy"])],
    )


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
            mean = np.mean(list(latest.values()), axis=0, dtype=np.float32)
            points.append((float(moments[event, 1]), float((mean.argmax(1) == labels).mean())))
    return points


def subdomain_results(gathered: Gathered, networks: int, store: PartitionedSet, labels: np.ndarray) -> list[schema.SubdomainResult]:
    local_classes = gathered.local_classes
    trained = {int(index): (int(parameters), seconds) for index, parameters, _, seconds in gathered.subdomains.tolist()}
    results = []
    boxes = store.decomposition.subdomains
    for index in range(networks):
        box = boxes[index * len(boxes) // networks]
        parameters, seconds = trained.get(index, (None, np.nan))
        results.append(schema.SubdomainResult(
            index=index, start=box.subimage.start, stop=box.subimage.stop, core_start=box.core.start, core_stop=box.core.stop,
            parameters=parameters,
            test_accuracy=None if local_classes is None else float((local_classes[:, index] == labels).mean()),
            seconds=None if np.isnan(seconds) else seconds,
        ))  # fmt: skip
    return results

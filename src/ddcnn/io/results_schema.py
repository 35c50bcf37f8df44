"""Typed models of results.json and of a line of metrics.jsonl, for all that write and read them."""

from collections.abc import Sequence
from math import inf
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddcnn.config.methods import PREFERRED, Method
from ddcnn.config.splitting import SPLITTINGS, ImageSplitting
from ddcnn.io.hdf5 import Damaged

SCHEMA_VERSION = 2
Number = int | float  # the mean over several seeds is a float
Model = TypeVar("Model", bound=BaseModel)


class Part(BaseModel):
    """A part of the files; docstrings of attributes are descriptions in the JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)


class EpochLine(Part):
    """A line of metrics.jsonl: an epoch of a training."""

    phase: str
    """A training: local, dnn, transfer, coherent, global or spatial."""
    subdomain: int | None
    """Null for a network of all subdomains."""
    epoch: int
    """From 1; 0 is the state before a training that begins with trained parts."""
    loss: float | None
    """Mean over the epoch's samples; null for epoch 0."""
    accuracy: float | None
    """On the training samples, during the epoch."""
    validation_accuracy: float | None = None
    """Null if the validation samples were not classified after this epoch."""
    validation_loss: float | None = None
    """Mean cross entropy."""
    test_accuracy: float | None = None
    """In runs of schema version 1 only."""
    seconds: float
    """Of this epoch."""
    time: float
    """Seconds since the run began."""

    @property
    def training(self) -> str:
        """``local-0003``, ``dnn``, ``transfer``: as checkpoints are named."""
        return self.phase if self.subdomain is None else f"{self.phase}-{self.subdomain:04}"

    @property
    def evaluated_accuracy(self) -> float | None:
        """On the validation samples; of a run of schema version 1 on the test samples."""
        return self.test_accuracy if self.validation_accuracy is None else self.validation_accuracy


class DataSummary(Part):
    source: str
    """Name of the data set that the images come from."""
    shape: tuple[int, ...]
    """(*spatial, C)"""
    classes: int
    train_samples: int
    validation_samples: int = 0
    test_samples: int
    skipped: int
    """Damaged samples that were left out."""
    class_names: list[str]


class SubdomainResult(Part):
    """The pixels start <= x < stop per axis, of the subimage; its core is what it has without the overlap."""

    index: int
    """0 to N - 1, in row-major order of the grid."""
    start: tuple[int, ...]
    stop: tuple[int, ...]
    core_start: tuple[int, ...]
    core_stop: tuple[int, ...]
    parameters: int | None
    """Of the local CNN; null if none was trained."""
    validation_accuracy: float | None = None
    test_accuracy: float | None
    """Of the local CNN alone."""
    epochs: Number | None = None
    """Of its training; with early stopping those that were made."""
    kept_epoch: Number | None = None
    """The epoch of its training whose parameters it has."""
    seconds: float | None
    """Of training the local CNN."""


class DecompositionSummary(Part):
    kind: Literal["image", "width"]
    """What is split: the image, or the width of the CNN."""
    grid: tuple[int, ...]
    """Subdomains per axis."""
    overlap: int
    """Pixels by which a core is extended on each side that has a neighbour."""
    width_divisor: Number
    """Channels of the undecomposed CNN by those of a local CNN."""
    parameters: int
    """Of all local CNNs."""
    global_parameters: int | None
    """Of the undecomposed CNN of the same width; null if there can be none."""
    subdomains: list[SubdomainResult]
    """In the order of their index."""

    @property
    def splitting(self) -> ImageSplitting:
        return SPLITTINGS[self.kind]


class MethodSeconds(Part):
    """Means over the ranks; the total is wall time of the phases that the method needs."""

    compute: float
    """In the program and PyTorch."""
    communicate: float
    """In messages: gathers, broadcasts, sums over ranks. Those of NCCL count as computing, since the host does not wait for them."""
    wait: float
    """At barriers, until all ranks have come."""
    total: float


class Spread(Part):
    """Standard deviations over the seeds."""

    validation_accuracy: float | None = None
    validation_loss: float | None = None
    test_accuracy: float | None
    balanced_accuracy: float | None
    auc: float | None
    test_loss: float | None


class MethodResult(Part):
    validation_accuracy: float | None = None
    """Null without validation samples."""
    validation_loss: float | None = None
    """Mean cross entropy; null without probabilities."""
    own_epochs: Number | None = None
    """Epochs of the training of its own network, of transfer the frozen ones included, with early stopping those that were made; null
    for vote and average."""
    kept_epoch: Number | None = None
    """Which of its own epochs has left the parameters; null for vote and average."""
    test_accuracy: float
    test_loss: float | None
    """Mean cross entropy; null without probabilities."""
    balanced_accuracy: float
    """Mean per-class recall."""
    auc: float | None
    """Area under the ROC curve; with more than two classes, the mean of each against the rest."""
    confusion: list[list[Number]] | None
    """(K, K) counts, true classes in rows; null with many classes."""
    parameters: int
    """Of all networks that the method decides with."""
    epochs: Number
    """Passes over the training samples; with early stopping those that were made."""
    batch_size: int
    """Samples per step, of all ranks together."""
    seconds: MethodSeconds
    bytes_communicated: Number
    """By all ranks, in the phases that the method needs."""
    peak_memory_bytes: Number | None = None
    """Largest resident set of a rank in the phases that the method needs; absent in older results. Where the system does not forget
    a peak (other than Linux), it is that of the process until the end of the phase."""
    peak_gpu_memory_bytes: Number | None = None
    """The same of what PyTorch has reserved on its GPU; null on CPUs."""
    curve: list[tuple[float, float]] | None = None
    """(seconds, accuracy on the validation samples, or without such on the training samples; in schema version 1 on the test
    samples); absent with several seeds."""
    spread: Spread | None = None
    """With several seeds only."""


class Influence(Part):
    """Of the subdomains on the decisions of a method."""

    samples: int
    """Test samples on which this was measured."""
    reliance: list[float]
    """Per subdomain: accuracy lost if the values of its local CNN are permuted over the samples."""
    without: list[float] | None
    """Per subdomain: accuracy if it is missing; null if the method needs all subdomains."""


class Analysis(Part):
    """Per method: influence if it decides on interface values, calibration error if it has probabilities."""

    influence: dict[str, Influence]
    calibration_error: dict[str, float]
    """Expected calibration error."""
    disagreement: dict[Literal["dnn", "vote", "neither"], Number]
    """Test samples that vote and DNN classify differently, by which of them is right; empty without both methods."""


class PhaseSeconds(Part):
    """Wall time and memory of a phase; rank seconds are those of computing, and memory is that of the rank that has most."""

    seconds: float
    max_rank_seconds: float
    mean_rank_seconds: float
    max_rank_memory_bytes: Number | None = None
    """Peak of the resident set, as ``peak_memory_bytes``."""
    max_rank_gpu_allocated_bytes: Number | None = None
    """Peak of PyTorch's tensors on the GPU; null on CPUs."""
    max_rank_gpu_reserved_bytes: Number | None = None
    """Peak of what PyTorch has reserved on the GPU for them."""


class Environment(Part):
    ranks: int
    subdomains_per_rank: int
    ranks_per_subdomain: int
    threads_per_rank: int
    device: str
    precision: Literal["fp32", "bf16", "fp16"]
    mpi: str
    hdf5: str
    torch: str
    ddcnn: str
    gpu: dict[str, str] | None = None
    """The ranks' GPUs, each kind once; driver and libraries of rank 0, and the ranks on its GPU; the backend of
    gradients' sums over ranks. Null on CPUs."""
    seed: int
    resumed: bool = False
    """Whether the run was stopped and resumed."""
    coarse_solve: Literal["by every rank", "divided over the samples"] | None = None
    """Who solves the coarse problem of a step of coherent and transfer; null if neither is a method, or on one rank."""


class RunResults(Part):
    """results.json: of a run with one seed, or means over several seeds."""

    schema_version: Literal[1, 2]
    data: DataSummary
    decomposition: DecompositionSummary
    methods: dict[Method, MethodResult] = Field(min_length=1)
    analysis: Analysis | None = Field(None, alias="understanding")
    phases: dict[str, PhaseSeconds]
    environment: Environment
    seeds: list[int] | None = None
    """With several seeds only."""

    @property
    def best(self) -> Method:
        """The most accurate method, by the validation samples if there are any, as of ``best_of``."""
        return self.best_of([name for name in PREFERRED if name in self.methods])

    def best_of(self, names: Sequence[Method]) -> Method:
        """The most accurate of some methods; of equal ones that with the smaller loss, and of equal ones the first.

        They are judged by the validation samples; where there are none by the test samples, and by no loss.
        """
        losses = {name: self.methods[name].validation_loss for name in names}
        return max(names, key=lambda name: (self.accuracy_of(name), -inf if (loss := losses[name]) is None else -loss))

    def accuracy_of(self, name: Method) -> float:
        """The accuracy by which methods are compared: on the validation samples, on the test samples where there are no others."""
        method = self.methods[name]
        return method.test_accuracy if method.validation_accuracy is None else method.validation_accuracy

    @property
    def curves_on(self) -> str:
        """The split whose accuracy curves show, "validation", "training" or, in schema version 1, "test"."""
        return "test" if self.schema_version == 1 else "validation" if self.data.validation_samples else "training"

    @model_validator(mode="after")
    def _check_subdomains(self) -> Self:
        subdomains, axes = self.decomposition.subdomains, len(self.data.shape) - 1
        for box in subdomains:
            if {len(box.start), len(box.stop), len(box.core_start), len(box.core_stop)} != {axes}:
                raise ValueError(f"subdomain {box.index} has not {axes} axes")
            for starts, stops in ((box.start, box.stop), (box.core_start, box.core_stop)):
                if not all(0 <= a < b <= size for a, b, size in zip(starts, stops, self.data.shape, strict=False)):
                    raise ValueError(f"subdomain {box.index} lies beyond the image")
        for name, influence in self.analysis.influence.items() if self.analysis else ():
            if {len(influence.reliance), len(influence.without or subdomains)} != {len(subdomains)}:
                raise ValueError(f"influence on {name} is not that of {len(subdomains)} subdomains")
        if self.analysis and not {*self.analysis.influence, *self.analysis.calibration_error} <= set(self.methods):
            raise ValueError("analysis of a method that the run has not")
        return self


def parse(model: type[Model], text: str | bytes) -> Model:
    """Reads a model from JSON; Damaged names the first thing that is wrong, with its place."""
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Damaged(f"{place}{place and ': '}{first['msg'].removeprefix('Value error, ')}, not {str(first['input'])[:60]}") from None


def dump(results: RunResults) -> dict[str, Any]:
    """The JSON object; optional parts that were not given are left out."""
    return results.model_dump(by_alias=True, exclude_unset=True)

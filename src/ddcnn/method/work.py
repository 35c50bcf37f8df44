"""The work of a run: what every phase costs the busiest rank, as counts of things that a machine does at some rate.

Symbols: P ranks, N subdomains, n = N / P of them a rank; S training and S_v validation samples, S_t validation and test samples, K
classes, C interface values a subdomain; batch B, E epochs of s = S // B steps; F_l, F_g, F_d floating-point operations that a local CNN,
the global CNN and the DNN need to train on one sample (forward and backward; forward alone is a third), L_l, L_g, L_d their layers; w
parameters of the global CNN. A machine has

    R_l, R_g   operations per second of narrow local CNNs (and of the DNN), and of the global CNN
    t          seconds that a layer takes in a step of training beyond its arithmetic, however small it is (starting what computes it)
    ρ          bytes per second of reading a partitioned set (a rank alone)
    α, β       seconds per message, bytes per second of MPI; α', β' those of DistributedDataParallel's all-reduce (gloo, NCCL)
    o          seconds that a collective takes beyond its messages (ddcnn waits politely, and looks only now and then)

and the phases last, with e evaluations on the validation samples and b_l, b_g bytes of a subdomain's and of all images,

    local      n [E s (B F_l / R_l + t L_l) + (S_t + e E S_v + S) F_l / (3 R_l) + b_l / ρ]
    folds      the same for every fold, without a fold of the samples
    gather     2 g (o + α ⌈log₂ P⌉) + 4 N (K S_t + C S + C S_t) (P-1)/P / β                (g gathers, each after a barrier)
    dnn        E_d s (B F_d / R_l + t L_d) + (S_t + e E_d S_v) F_d / (3 R_l)                  (serial: on rank 0)
    coherent   E_c s {n (B F_l / R_l + t L_l) + B F_d / R_l + t L_d + 2 (o + α ⌈log₂ P⌉) + 4 N C B (P-1)/P / β}
    transfer   the same with its epochs; with a coarse problem that is divided over the samples (``coarse_step``) F_d / P, and with shared
               parameters their sum (``_sum``)
    spatial    E_g s {B F_g / (P R_g) + t L_g + m (o + α) + 4 H B / (P β)} + sums + b_g / (P ρ)   (m halos of H values a sample)
    global     E_g s' {b F_g / R_g + t L_g + α' [2 (P-1) + ⌈log₂ P⌉] + 8 w (P-1)/P / β'} + b_g / ρ     (DistributedDataParallel)

A rank's share of the global CNN's batch is b = B // P, at least 2 samples (its batch normalisation needs them): the global batch stays B
up to B / 2 ranks and grows beyond, s' = S // (b P); on more than S / 2 ranks there is none. Of the gathers, C S is for the DNN
alone, and C S_t for the DNN with another interface than the probabilities. The all-reduce is a ring whose messages do not overlap
with the computing; the allgather doubles recursively. An operation count does not know how well a layer uses a core, hence two rates R.

One t serves all networks: VGG3, VGG9 and ResNet20 on 4x4 pixels and two samples, and the DNN, of 5 to 60 layers, took 135 to 171 µs of
processor time a layer and step on one core. What a training does once (its first step, keeping its network) is not told apart from R.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import NamedTuple

import numpy as np

from ddcnn.config.settings import RunSettings
from ddcnn.method.costs import Halos, Network
from ddcnn.method.shared import are_few
from ddcnn.networks.coarse import statistics

FORWARD = 1 / 3  # of the operations of training
FLOAT = 4  # bytes


class Counts(NamedTuple):
    """Counts of the work of the busiest rank; or, under the same names, seconds per count, to be multiplied with them."""

    local_operations: float = 0.0  # 1 / R_l
    global_operations: float = 0.0  # 1 / R_g
    layer_steps: float = 0.0  # t
    bytes_read: float = 0.0  # 1 / ρ
    messages: float = 0.0  # α
    bytes_sent: float = 0.0  # 1 / β
    collectives: float = 0.0  # o
    reduce_messages: float = 0.0  # α'
    reduce_bytes: float = 0.0  # 1 / β'

    def seconds(self, each: "Counts") -> float:
        return float(np.dot(self, each))

    def plus(self, *others: "Counts") -> "Counts":
        return Counts(*map(sum, zip(self, *others, strict=True)))

    def times(self, number: float) -> "Counts":
        return Counts(*(number * value for value in self))

    def only(self, names: Collection[str]) -> "Counts":
        return Counts(**{name: value for name, value in self._asdict().items() if name in names})


SECONDS = {  # for each, about, by the kind of device
    "cpu": Counts(local_operations=2e-11, global_operations=1.5e-11, layer_steps=1.5e-4, collectives=2e-4, bytes_sent=1e-9),
    "cuda": Counts(local_operations=2e-13, global_operations=1e-13, layer_steps=4e-5, collectives=2e-4, bytes_sent=1e-9),
}


@dataclass(frozen=True)
class Sizes:
    """One problem on P ranks; symbols as above.

    Attributes:
        phases: that take place.
        samples: of every split.
        subimage: pixels per axis of the largest one.
        local_bytes, global_bytes: of the images of a subdomain, and of whole ones, of all splits.
        divided: whether the coarse problem of a step is divided over the samples.
        halos: of ``spatial``, if it takes place.
    """

    settings: RunSettings
    ranks: int
    subdomains: int
    phases: tuple[str, ...]
    samples: Mapping[str, int]
    classes: int
    subimage: tuple[int, ...]
    local: Network
    whole: Network
    dnn: Network
    local_bytes: int = 0
    global_bytes: int = 0
    divided: bool = False
    halos: Halos | None = None

    @property
    def own(self) -> int:
        """n: subdomains of the busiest rank."""
        return -(-self.subdomains // self.ranks)

    @property
    def training(self) -> int:
        """S."""
        return self.samples["train"]

    @property
    def judged(self) -> list[int]:
        """Samples that are classified after a training: for validation, if there are such, and for testing."""
        return [self.samples[split] for split in ("validation", "test") if self.samples.get(split)]

    def epochs(self, phase: str) -> int:
        """E: of a training, without those with frozen local CNNs."""
        settings = self.settings
        own = {"dnn": settings.dnn_epochs, "transfer": settings.transfer_epochs}
        return own[phase] if phase in own else settings.epochs_of(phase)

    @property
    def global_share(self) -> int:
        """b: a rank's share of the global CNN's batch."""
        batch = min(self.settings.batch_size, self.training)
        return max(2, batch // self.ranks) if self.ranks > 1 else batch

    @property
    def global_fits(self) -> bool:
        """Whether there are two samples for every rank of the global CNN."""
        return self.ranks == 1 or 2 * self.ranks <= self.training

    def steps(self, samples: int, batch: int | None = None) -> tuple[int, int]:
        """s: steps of an epoch; and the samples of one."""
        batch = min(batch or self.settings.batch_size, samples)
        return max(1, samples // batch), batch


def counts(sizes: Sizes) -> dict[str, Counts]:
    """Counts of every phase that takes place, without a global CNN that does not fit the ranks."""
    of = {"local": _local, "folds": _folds, "gather": _gather, "dnn": _dnn, "global": _global, "spatial": _spatial}
    together = ("coherent", "transfer")
    phases = [phase for phase in sizes.phases if phase != "global" or sizes.global_fits]
    return {phase: _coherent(sizes, phase) if phase in together else of[phase](sizes) for phase in phases}


def _evaluated(sizes: Sizes, phase: str) -> float:
    """Samples that are classified during the training and after it."""
    every = sizes.settings.evaluate_every
    return sum(sizes.judged) + (sizes.samples.get("validation", 0) * sizes.epochs(phase) / every if every else 0.0)


def _local(sizes: Sizes) -> Counts:
    steps, batch = sizes.steps(sizes.training)
    training = sizes.epochs("local") * steps
    handed = sizes.training if sizes.settings.trains_dnn else 0
    operations = training * batch + FORWARD * (_evaluated(sizes, "local") + handed)
    return Counts(
        local_operations=sizes.own * operations * sizes.local.operations,
        layer_steps=sizes.own * training * sizes.local.layers,
        bytes_read=sizes.own * sizes.local_bytes,
    )


def _folds(sizes: Sizes) -> Counts:
    folds = sizes.settings.folds
    steps, batch = sizes.steps(sizes.training - sizes.training // folds)
    training = folds * sizes.epochs("local") * steps
    operations = training * batch + FORWARD * sizes.training
    return Counts(local_operations=sizes.own * operations * sizes.local.operations, layer_steps=sizes.own * training * sizes.local.layers)


def _collectives(sizes: Sizes, number: float, bytes_arriving: float) -> Counts:
    """Collectives, each a barrier and an exchange of ``bytes_arriving``, of which a rank has its own part already."""
    if sizes.ranks == 1:
        return Counts()
    sent = number * bytes_arriving * (sizes.ranks - 1) / sizes.ranks
    return Counts(messages=2 * number * ceil(log2(sizes.ranks)), bytes_sent=sent, collectives=2 * number)


def _gather(sizes: Sizes) -> Counts:
    arriving = [sizes.classes * samples for samples in sizes.judged]
    if "dnn" in sizes.phases:
        arriving += [sizes.local.values * sizes.training] if sizes.settings.trains_dnn else []
        if sizes.settings.interface != "probabilities":
            arriving += [sizes.local.values * sizes.samples.get(split, 0) for split in sizes.settings.judged_by_dnn]
    return _collectives(sizes, len(arriving), FLOAT * sizes.subdomains * sum(arriving) / len(arriving))


def _dnn(sizes: Sizes) -> Counts:
    steps, batch = sizes.steps(sizes.training)
    training = sizes.epochs("dnn") * steps
    return Counts(
        local_operations=(training * batch + FORWARD * _evaluated(sizes, "dnn")) * sizes.dnn.operations,
        layer_steps=training * sizes.dnn.layers,
    )


def _coherent(sizes: Sizes, phase: str) -> Counts:
    steps, batch = sizes.steps(sizes.training)
    frozen = sizes.settings.frozen_epochs if phase == "transfer" else 0
    training, all_steps = sizes.epochs(phase) * steps, (sizes.epochs(phase) + frozen) * steps
    forward = FORWARD * (frozen * steps * batch + _evaluated(sizes, phase))
    own = Counts(
        local_operations=sizes.own * (training * batch + forward) * sizes.local.operations,
        layer_steps=all_steps * sizes.own * sizes.local.layers,
        bytes_read=sizes.own * sizes.local_bytes,
    )
    shared = _sum(sizes, sizes.local.parameters) if sizes.settings.share != "none" else Counts()
    return own.plus(coarse_step(sizes, batch, sizes.divided).times(all_steps), shared.times(training))


def coarse_step(sizes: Sizes, batch: int, divided: bool) -> Counts:
    """Of solving the coarse problem in a step: by all ranks, or by each for its samples."""
    solved = Counts(local_operations=batch * sizes.dnn.operations, layer_steps=sizes.dnn.layers)
    if not divided:
        values = _collectives(sizes, 1, FLOAT * sizes.subdomains * sizes.local.values * batch)
        return solved.plus(values)
    exchanges = _collectives(sizes, 2, FLOAT * sizes.own * sizes.local.values * batch)
    logits = _collectives(sizes, 1, FLOAT * sizes.classes * batch)
    each = solved._replace(local_operations=solved.local_operations / sizes.ranks, layer_steps=sizes.own * sizes.dnn.layers)
    sums = (sizes.dnn.parameters, *statistics(sizes.settings.convolutional or ()))
    return each.plus(exchanges, logits, *(_sum(sizes, numbers) for numbers in sums))


def _sum(sizes: Sizes, numbers: int) -> Counts:
    """Of a sum over the subdomains: an all-to-all of n copies, and an allgather; of few numbers an allgather alone."""
    if are_few(numbers, sizes.subdomains):
        return _collectives(sizes, 1, FLOAT * sizes.subdomains * numbers)
    return _collectives(sizes, 1, FLOAT * sizes.own * numbers).plus(_collectives(sizes, 1, FLOAT * numbers))


def divides(sizes: Sizes, each: Counts) -> bool:
    """Whether it is cheaper, at so many seconds for each count, to divide the coarse problem over the samples; if there is a choice.

    There is none where several ranks share a subdomain, of which each has a part of the batch, and for dense DNNs, whose cost is small.
    """
    if not (sizes.settings.convolutional and 1 < sizes.ranks <= sizes.subdomains):
        return False
    batch = sizes.steps(sizes.training)[1]
    apart, together = (coarse_step(sizes, batch, divided).seconds(each) for divided in (True, False))
    return apart < together


def _global(sizes: Sizes) -> Counts:
    ranks, share = sizes.ranks, sizes.global_share
    steps = sizes.epochs("global") * sizes.steps(sizes.training, share * ranks)[0]
    operations = steps * share + FORWARD * _evaluated(sizes, "global") / ranks
    messages = 2 * (ranks - 1) + ceil(log2(ranks))  # gradients around the ring; rank 0's buffers
    return Counts(
        global_operations=operations * sizes.whole.operations,
        layer_steps=steps * sizes.whole.layers,
        bytes_read=sizes.global_bytes,
        reduce_messages=steps * messages,
        reduce_bytes=steps * 2 * FLOAT * sizes.whole.parameters * (ranks - 1) / ranks,
    )


def _spatial(sizes: Sizes) -> Counts:
    halos, ranks = sizes.halos or Halos(0, 0, (), 0), sizes.ranks
    steps, batch = sizes.steps(sizes.training)
    steps *= sizes.epochs("spatial")
    sent = FLOAT * halos.values * batch / ranks / sizes.settings.accumulate
    exchanges = Counts(messages=halos.exchanges, bytes_sent=sent, collectives=halos.exchanges)
    of_ranks = replace(sizes, subdomains=ranks)  # a copy of the parameters a rank
    sums = (_sum(of_ranks, numbers) for channels in halos.normalised for numbers in (2 * (2 * channels + 1), 2 * channels))
    return Counts(
        global_operations=(steps * batch + FORWARD * _evaluated(sizes, "spatial")) * sizes.whole.operations / ranks,
        layer_steps=steps * sizes.whole.layers,
        bytes_read=sizes.global_bytes / ranks,
    ).plus(exchanges.plus(*sums).times(steps * sizes.settings.accumulate), _sum(of_ranks, halos.parameters).times(steps))

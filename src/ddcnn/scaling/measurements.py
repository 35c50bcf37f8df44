"""Measurements of finished runs on different numbers of ranks, whether they are comparable, and medians per number of ranks.

With ψ the speed-up of P ranks over the fewest, P₀, and p = P / P₀, the serial fraction is

    strong scaling (Karp, Flatt, Comm. ACM 33(5), 1990):    e = (1/ψ - 1/p) / (1 - 1/p)
    weak scaling (Gustafson, Comm. ACM 31(5), 1988):        e = (p - ψ) / (p - 1)

If e grows with P, there is overhead (communication, imbalance); if it does not, there is work that is not divided.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from ddcnn.config.settings import CHANGEABLE
from ddcnn.errors import InputError
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import FinishedRun, load
from ddcnn.parallel.timeline import PHASES, wall, windows

Kind = Literal["strong", "weak"]
TIMED = tuple(phase for phase in PHASES if phase not in ("start", "partition"))  # a set is partitioned once for many runs
TOTAL = "total"
TRAINING = ("local", "coherent", "global", "spatial")  # the first of them that took place gives load imbalance and images/s
NOT_COMPARED = set(CHANGEABLE) - {"capture", "deterministic", "recompute"} | {"data", "precision", "seed", "seeds"}  # or elsewhere
MOST_DIFFERENCES = 3  # that a refusal names


@dataclass(frozen=True)
class Measured:
    """One run of a study.

    Attributes:
        seconds: of wall time, per phase and in all ("total", without start and partitioning; phases may overlap).
        rank_seconds: per phase: what the busiest rank computes, and the mean.
        training: the phase of ``images_per_second``.
        conditions: what has to be the same in all runs, by a name for people.
    """

    folder: Path
    ranks: int
    seed: int
    seconds: dict[str, float]
    rank_seconds: dict[str, tuple[float, float]]
    training: str
    images_per_second: float
    conditions: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One number of ranks: medians over its runs; ``speed_up`` and ``efficiency`` as ``seconds``, per phase and in all.

    Attributes:
        extremes: per phase and in all, the shortest and the longest of the runs.
        serial_fraction: e of the whole time, as above; None for the fewest ranks.
    """

    ranks: int
    runs: int
    seconds: dict[str, float]
    extremes: dict[str, tuple[float, float]]
    rank_seconds: dict[str, tuple[float, float]]
    images_per_second: float
    speed_up: dict[str, float]
    efficiency: dict[str, float]
    serial_fraction: float | None

    def imbalance(self, phase: str) -> float:
        """Seconds of the busiest rank over those of the mean one."""
        busiest, mean = self.rank_seconds[phase]
        return busiest / mean if mean else 1.0

    def cost(self, phase: str) -> float:
        """Rank-seconds: number of ranks times wall time."""
        return self.ranks * self.seconds[phase]

    def speed_ups(self, name: str) -> tuple[float, float]:
        """Speed-ups of the slowest and of the fastest run."""
        slowest, fastest = (self.speed_up[name] * self.seconds[name] / value if value else 1.0 for value in reversed(self.extremes[name]))
        return slowest, fastest


def measure(folder: RunFolder, kind: Kind) -> Measured:
    """Times and conditions of a finished run."""
    run = load(folder)
    results, environment = run.results, run.results.environment
    if environment.resumed:
        raise InputError(f"{folder}: this run was stopped and resumed, which is no measurement: run it anew, in one go")
    phases = {name: phase for name, phase in results.phases.items() if name in TIMED}
    training = next((name for name in TRAINING if name in phases), None)
    if training is None:
        raise InputError(f"{folder}: nothing was trained from scratch in this run (--start-from): it has no place in a scaling study")
    return Measured(
        folder.path, environment.ranks, environment.seed,
        {name: phase.seconds for name, phase in phases.items()} | {TOTAL: wall(windows(run.spans_by_rank, TIMED))},
        {name: (phase.max_rank_seconds, phase.mean_rank_seconds) for name, phase in phases.items()},
        training, run.settings.epochs_of(training) * results.data.train_samples / phases[training].seconds, conditions(run, kind),
    )  # fmt: skip


def conditions(run: FinishedRun, kind: Kind) -> dict[str, Any]:
    """Everything that must be equal in all runs of a study; options under their names."""
    data, boxes, environment = run.results.data, run.results.decomposition, run.results.environment
    ranks, subdomains = environment.ranks, boxes.subdomains
    pixels = sum(prod(b - a for a, b in zip(box.core_start, box.core_stop, strict=True)) for box in subdomains)
    conditions: dict[str, Any] = {
        "train samples": data.train_samples,
        "validation samples": data.validation_samples,
        "test samples": data.test_samples,
        "classes": data.classes,
    }
    if kind == "strong":
        conditions |= {"--data": data.source, "image": data.shape, "width divisor": boxes.width_divisor}
    else:
        conditions |= {
            "channels": data.shape[-1], "subdomains a rank": len(subdomains) / ranks, "pixels a rank": pixels / ranks,
            "parameters a subdomain (--width-divisor 1 keeps them)": boxes.parameters / len(subdomains),
        }  # fmt: skip
    conditions |= {
        name.replace("_", " "): getattr(environment, name) for name in ("device", "precision", "threads_per_rank", "torch", "ddcnn")
    }
    free = NOT_COMPARED if kind == "strong" else NOT_COMPARED | {"grid"}
    options = run.settings.model_dump(mode="json", exclude_none=True, exclude=free)
    return conditions | {f"--{name.replace('_', '-')}": value for name, value in options.items()}


def check_comparable(runs: Sequence[Measured]) -> None:
    """
    Raises:
        InputError: the runs differ in more than the number of ranks.
    """
    first = runs[0]
    for run in runs[1:]:
        names = [name for name in first.conditions | run.conditions if first.conditions.get(name) != run.conditions.get(name)]
        if names:
            differences = "; ".join(
                f"{name} is {run.conditions.get(name)} and {first.conditions.get(name)}" for name in names[:MOST_DIFFERENCES]
            )
            more = f"; and {len(names) - MOST_DIFFERENCES} more" if len(names) > MOST_DIFFERENCES else ""
            raise InputError(f"{run.folder} and {first.folder} cannot be compared: {differences}{more}")
    seeds = {ranks: sorted({run.seed for run in runs if run.ranks == ranks}) for ranks in {run.ranks for run in runs}}
    if len(seeds) == 1:
        raise InputError(f"all of these runs are on {first.ranks} ranks: a scaling study compares different numbers of them")
    for ranks, own_seeds in seeds.items():
        if own_seeds != seeds[first.ranks]:
            raise InputError(
                f"the runs on {ranks} ranks have --seed {own_seeds}, those on {first.ranks} {seeds[first.ranks]}: use the same"
            )


def points_of(runs: Sequence[Measured], kind: Kind) -> list[Point]:
    """A point per number of ranks, ascending; speed-ups are relative to the first."""
    phases = [name for name in TIMED if any(name in run.seconds for run in runs)]
    points: list[Point] = []
    for ranks in sorted({run.ranks for run in runs}):
        these = [run for run in runs if run.ranks == ranks]
        middle = statistics.median
        each = {name: [run.seconds.get(name, 0.0) for run in these] for name in (*phases, TOTAL)}
        seconds = {name: middle(values) for name, values in each.items()}
        extremes = {name: (min(values), max(values)) for name, values in each.items()}
        pairs = {name: [run.rank_seconds.get(name, (0.0, 0.0)) for run in these] for name in phases}
        busy = {name: (middle(most for most, _ in pair), middle(mean for _, mean in pair)) for name, pair in pairs.items()}
        first = points[0] if points else None
        ratio = {name: (first.seconds[name] if first else value) / value if value else 1.0 for name, value in seconds.items()}
        more = ranks / first.ranks if first else 1.0
        speed_up = ratio if kind == "strong" else {name: value * more for name, value in ratio.items()}
        efficiency = {name: value / more for name, value in speed_up.items()}
        images, fraction = middle(run.images_per_second for run in these), serial_fraction(speed_up[TOTAL], more, kind)
        points.append(Point(ranks, len(these), seconds, extremes, busy, images, speed_up, efficiency, fraction))
    return points


def serial_fraction(speed_up: float, more: float, kind: Kind) -> float | None:
    """e out of ψ and p, as above; below zero if the speed-up is more than ideal."""
    if more == 1:
        return None
    return (1 / speed_up - 1 / more) / (1 - 1 / more) if kind == "strong" else (more - speed_up) / (more - 1)


def speed_up_at(fraction: float, more: float, kind: Kind) -> float:
    """ψ out of e and p: Amdahl's law, or Gustafson's."""
    return 1 / (fraction + (1 - fraction) / more) if kind == "strong" else fraction + (1 - fraction) * more

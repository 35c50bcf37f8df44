"""``ddcnn scaling predict``: the performance model, fitted to a finished study, compared with what was measured, on more ranks."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from ddcnn.errors import InputError
from ddcnn.io.atomic import disk_errors, replacing, write_text
from ddcnn.io.hdf5 import parsing, reading
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import DAMAGED, load
from ddcnn.scaling.collect import csv_text, measured
from ddcnn.scaling.measurements import TOTAL, Kind, Point, points_of
from ddcnn.scaling.performance_model import COMMUNICATION, FITTED, Counts, Observation, Sizes, counts, fit
from ddcnn.scaling.study import execute, find_launcher
from ddcnn.scaling.workload import Problem

POLLING = 1e-4  # seconds that a polite collective takes beyond its messages, where it has not been measured
SMALL = 0.01  # share of the whole time up to which a phase is not compared
READING = 1e9  # bytes per second of a partitioned set, likewise


@dataclass(frozen=True)
class Compared:
    """A phase that was measured, or all of them, and what the model says of it, fitted to the other numbers of ranks."""

    ranks: int
    phase: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Predicted:
    """A number of ranks: seconds of every phase, and what of them is reading and communicating; or why there is nothing to predict."""

    ranks: int
    sizes: Sizes | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    reading: dict[str, float] = field(default_factory=dict)
    communication: dict[str, float] = field(default_factory=dict)
    refusal: str = ""

    def of(self, phase: str) -> float | None:
        return self.seconds.get(phase)


@dataclass(frozen=True)
class Model:
    """A fitted model.

    Attributes:
        measured, predicted: seconds per count of the machine of the study, and of the one that is predicted.
        untold: what the study does not tell.
    """

    kind: Kind
    problem: Problem
    points: list[Point]
    measured: Counts
    predicted: Counts
    untold: tuple[str, ...]
    compared: list[Compared]

    def at(self, ranks: int) -> Predicted:
        """What the problem takes on so many ranks."""
        try:
            sizes = self.problem.at(ranks)
        except InputError as refusal:
            return Predicted(ranks, refusal=str(refusal))
        each, machine = counts(sizes), self.predicted
        seconds, read, communication = (
            {phase: found.only(names).seconds(machine) for phase, found in each.items()}
            for names in (Counts._fields, ("bytes_read",), COMMUNICATION)
        )
        return Predicted(ranks, sizes, seconds, read, communication)


def predict(study: Path, ranks: Sequence[int], given: dict[str, float], launcher: Sequence[str] | None, output: Path, kind: Kind) -> None:
    """Writes predict.csv, predict.md and predict.png, and prints the tables.

    Args:
        given: seconds per count of the machine that is predicted, as far as they are known; the others are those of this one.
        launcher: of the program that measures this machine; None: do not.

    Raises:
        InputError: no finished study, or nothing is known of the network.
    """
    from ddcnn.report import figures
    from ddcnn.scaling.extrapolation_report import csv_row, error_table, refusals, text, time_table

    if launcher is None and not {"messages", "bytes_sent"} <= set(given):
        raise InputError("nothing is known of the network: add --measure, or --latency-us and --bandwidth-gb")
    runs = measured([study], kind)
    problem = Problem.of(load(RunFolder(runs[0].folder)), kind, set(runs[0].seconds))
    most = max(run.ranks for run in runs) if kind == "strong" else problem.ranks
    if most > prod(problem.grid):
        raise InputError(f"{study}: {most} ranks trained {prod(problem.grid)} subdomains, in groups, which are not modelled: study fewer")
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    here = Counts(collectives=POLLING, bytes_read=1 / READING)
    here = here._replace(**(given if launcher is None else measured_speed(launcher, study, output)))
    model = fitted(kind, problem, points_of(runs, kind), here, given)
    wanted = [model.at(number) for number in sorted({*(point.ranks for point in model.points), *ranks})]
    write_text(output / "predict.csv", csv_text(map(csv_row(problem), wanted)))
    write_text(output / "predict.md", text(model, wanted, runs[0]))
    figure = figures.predicted(
        [one.ranks for one in wanted],
        {method: [problem.in_all(method, one.seconds) for one in wanted] for method in problem.methods},
        {phase: [one.of(phase) for one in wanted] for phase in problem.phases if phase not in problem.methods},
        [point.ranks for point in model.points],
        {method: [problem.in_all(method, point.seconds) for point in model.points] for method in problem.methods},
        kind,
    )
    with replacing(output / "predict.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    print(f"{error_table(model)}\n\n{time_table(problem, wanted)}\n{refusals(wanted)}\nprediction: {output / 'predict.md'}")


def fitted(kind: Kind, problem: Problem, points: list[Point], here: Counts, given: dict[str, float]) -> Model:
    """The model of all points, and what it says of each of them when it is fitted to the others."""
    each = {point.ranks: counts(problem.at(point.ranks)) for point in points}

    def observed(left_out: int | None = None) -> list[Observation]:
        return [
            Observation(found, point.seconds[phase])
            for point in points
            if point.ranks != left_out
            for phase, found in each[point.ranks].items()
            if phase in point.seconds
        ]

    compared: list[Compared] = []
    for point in points:
        others, _ = fit(observed(left_out=point.ranks), here)
        phases = {phase: found.seconds(others) for phase, found in each[point.ranks].items() if phase in point.seconds}
        whole = Compared(point.ranks, TOTAL, sum(point.seconds[phase] for phase in phases), sum(phases.values()))
        found = [Compared(point.ranks, phase, point.seconds[phase], seconds) for phase, seconds in phases.items()]
        compared += [one for one in found if one.measured > SMALL * whole.measured] + [whole]
    rates, untold = fit(observed(), here)
    if "global_operations" in untold:  # no global CNN was trained: it computes as fast as the local ones
        rates = rates._replace(global_operations=rates.local_operations)
    return Model(kind, problem, points, rates, rates._replace(**given), untold, compared)


def measured_speed(launcher: Sequence[str], study: Path, output: Path) -> dict[str, float]:
    """Seconds per count of this machine's network, and of reading a set of the study if there is one."""
    sets = sorted(map(str, (study / "partitions").glob("*.h5")))[-1:]
    log = output / "network_speed.log"
    program = [sys.executable, "-m", "ddcnn.scaling.machine_benchmark", *sets]
    execute([*find_launcher(launcher), "-n", "2", *program], log, dict(os.environ))
    with reading(log, *DAMAGED), parsing():
        found = json.loads(next(line for line in log.read_text().splitlines() if line.startswith("{")))
        return {name: float(found[name]) for name in Counts._fields if name in found and name not in FITTED}

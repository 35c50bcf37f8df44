"""The performance model, fitted to a finished study: compared with the measurements, and evaluated on more ranks."""

from dataclasses import dataclass, field

from ddcnn.errors import InputError
from ddcnn.method.work import Counts, Sizes, counts
from ddcnn.scaling.measurements import TOTAL, Point
from ddcnn.scaling.performance_model import COMMUNICATION, Observation, fit
from ddcnn.scaling.workload import Workload

SMALL = 0.01  # share of the whole time up to which a phase is not compared


@dataclass(frozen=True)
class Compared:
    """Measured and predicted seconds of a phase or of all; predicted by the model that is fitted to the other numbers of ranks."""

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
    """Predicted seconds per phase on a number of ranks, and their parts of reading and communicating; or why there is no prediction."""

    ranks: int
    sizes: Sizes | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    reading: dict[str, float] = field(default_factory=dict)
    communication: dict[str, float] = field(default_factory=dict)
    refusal: str = ""


@dataclass(frozen=True)
class Model:
    """A fitted model.

    Attributes:
        measured, predicted: seconds per count of the machine of the study, and of the one that is predicted.
        undetermined: rates that the study does not determine.
    """

    workload: Workload
    points: list[Point]
    measured: Counts
    predicted: Counts
    undetermined: tuple[str, ...]
    compared: list[Compared]

    def at(self, ranks: int) -> Predicted:
        """The prediction on so many ranks."""
        try:
            sizes = self.workload.at(ranks)
        except InputError as refusal:
            return Predicted(ranks, refusal=str(refusal))
        each, machine = counts(sizes), self.predicted
        seconds, read, communication = (
            {phase: found.only(names).seconds(machine) for phase, found in each.items()}
            for names in (Counts._fields, ("bytes_read",), COMMUNICATION)
        )
        return Predicted(ranks, sizes, seconds, read, communication)


def fitted(workload: Workload, points: list[Point], known: Counts, given: dict[str, float]) -> Model:
    """The model fitted to all points, and its prediction of each point when fitted to the others."""
    each = {point.ranks: counts(workload.at(point.ranks)) for point in points}

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
        others, _ = fit(observed(left_out=point.ranks), known)
        phases = {phase: found.seconds(others) for phase, found in each[point.ranks].items() if phase in point.seconds}
        whole = Compared(point.ranks, TOTAL, sum(point.seconds[phase] for phase in phases), sum(phases.values()))
        found = [Compared(point.ranks, phase, point.seconds[phase], seconds) for phase, seconds in phases.items()]
        compared += [one for one in found if one.measured > SMALL * whole.measured] + [whole]
    rates, undetermined = fit(observed(), known)
    if "global_operations" in undetermined:  # no global CNN was trained: it computes as fast as the local ones
        rates = rates._replace(global_operations=rates.local_operations)
    return Model(workload, points, rates, rates._replace(**given), undetermined, compared)

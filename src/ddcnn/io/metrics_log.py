"""Records of a rank: a row per epoch, and local classifications after epochs; rows as lines of metrics.jsonl and as curves."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddcnn.io.results_schema import EpochLine
from ddcnn.parallel.timeline import PHASES, Timeline

OLDER = {"test_accuracy"}  # of lines of earlier versions
COLUMNS = tuple(name for name in EpochLine.model_fields if name not in OLDER)  # of a row
OLDER_COLUMNS = ("phase", "subdomain", "epoch", "loss", "accuracy", "test_accuracy", "seconds", "time")  # in their checkpoints


@dataclass
class Recorded:
    """Records of all trainings of a rank."""

    epochs: list[tuple[float, ...]] = field(default_factory=list)  # rows of COLUMNS; NaN for none
    moments: list[tuple[float, ...]] = field(default_factory=list)  # (index of the subdomain, time) of the classifications
    classifications: list[np.ndarray] = field(default_factory=list)  # p_i after an epoch of local training, each (S', K) float16


@dataclass(frozen=True)
class Records:
    """Records of one training, of a subdomain or of a network of all subdomains, which are kept with its checkpoints."""

    recorded: Recorded
    phase: str
    subdomain: int | None
    active: bool  # whether this rank records the training
    timeline: Timeline  # of this rank, kept too
    on_restore: Callable[[], None]  # called when records have been brought back

    def to_save(self) -> tuple[list[list[float]], dict[str, np.ndarray]]:
        """Rows, the same on all ranks that record, and arrays of this rank."""
        recorded, timeline = self.recorded, self.timeline.to_save()
        rows = [list(row) for row in recorded.epochs if self._mine(row)]
        if self.phase != "local":
            return rows, timeline
        numbers = [number for number, moment in enumerate(recorded.moments) if moment[0] == self.subdomain]
        moments = np.array([recorded.moments[number] for number in numbers], dtype=np.float64).reshape(-1, 2)
        classifications = np.array([recorded.classifications[number] for number in numbers], dtype=np.float16)
        return rows, timeline | {"records/moments": moments, "records/classifications": classifications}

    def restore(self, rows: list[list[float]], arrays: dict[str, np.ndarray]) -> None:
        self.timeline.restore(arrays)
        recorded = self.recorded
        if not self.active:
            return
        older = any(len(row) == len(OLDER_COLUMNS) for row in rows)
        back = [tuple(map(float, from_older(row) if older else row)) for row in rows]
        if any(not self._mine(row) for row in back):
            raise ValueError("rows of other records")
        recorded.epochs = [row for row in recorded.epochs if not self._mine(row)] + back
        if self.phase == "local" and not older:  # whose classifications are of test images
            moments, classifications = arrays["records/moments"], arrays["records/classifications"]
            recorded.moments += map(tuple, moments.tolist())
            recorded.classifications += list(classifications)
        self.on_restore()

    def _mine(self, row: tuple[float, ...]) -> bool:
        subdomain = None if row[1] != row[1] else int(row[1])
        return int(row[0]) == PHASES.index(self.phase) and subdomain == self.subdomain


def from_older(row: Sequence[float]) -> list[float]:
    """A row of an earlier version, which knew no validation, as one of COLUMNS."""
    values = dict(zip(OLDER_COLUMNS, row, strict=True))
    return [values.get(name, np.nan) for name in COLUMNS]


def line(row: Sequence[float]) -> EpochLine:
    """A row of COLUMNS as a line of metrics.jsonl."""
    values: dict[str, Any] = {name: None if value != value else value for name, value in zip(COLUMNS, row, strict=True)}
    subdomain = None if row[1] != row[1] else int(row[1])
    return EpochLine(**values | {"phase": PHASES[int(row[0])], "subdomain": subdomain, "epoch": int(row[2])})


def text(row: Sequence[float]) -> str:
    return json.dumps(line(row).model_dump(exclude=OLDER)) + "\n"


def rows_of(rows: np.ndarray, phase: str, subdomain: float = np.nan) -> np.ndarray:
    """The rows of a training, of a subdomain or, for NaN, of the network of all subdomains."""
    subdomains = rows[:, COLUMNS.index("subdomain")]
    return rows[(rows[:, 0] == PHASES.index(phase)) & (np.isnan(subdomains) if np.isnan(subdomain) else subdomains == subdomain)]


def curve(rows: np.ndarray, phase: str, accuracy: str) -> list[tuple[float, float]]:
    """(time, accuracy) after the epochs of the network of all subdomains in a phase, where there is one in the column ``accuracy``."""
    time, values = (rows_of(rows, phase)[:, COLUMNS.index(name)] for name in ("time", accuracy))
    there = ~np.isnan(values)
    return list(zip(time[there].tolist(), values[there].tolist(), strict=True))

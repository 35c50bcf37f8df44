"""Analysis of the decisions of a run: reliance on subdomains, calibration, disagreement; on rank 0, without communication.

*Reliance* on a subdomain is permutation importance: the accuracy that a method loses if the values of the subdomain's local CNN are
permuted over the test samples. *Without* a subdomain a method classifies as ``ddcnn predict --without`` does. Both classify N times,
so of very many values only a part of the test samples is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddcnn.io.results_schema import Analysis, Influence
from ddcnn.io.rows import Table
from ddcnn.parallel.heartbeat import beat
from ddcnn.parallel.seeding import numpy_generator
from ddcnn.report.metrics import calibration_error

MOST_NUMBERS, KEPT_NUMBERS = 1 << 27, 1 << 23  # N·S·N·C that the decisions are made of; S·N·C of them that are kept for each method
PICTURES = 6  # of one kind of disagreement
MOST_PIXELS = 256  # of a picture along an axis


@dataclass(frozen=True)
class Decision:
    """How a method decides on interface values.

    Attributes:
        values: (S, N, C) float32 of every ``stride_of``-th test sample.
        labels: (S,) int64, their classes.
        decide: values (S, n, C) and the numbers of their n subdomains -> classes (S,).
        in_part: whether it can decide without some subdomains.
    """

    values: np.ndarray
    labels: np.ndarray
    decide: Callable[[np.ndarray, Sequence[int]], np.ndarray]
    in_part: bool = True

    @property
    def subdomains(self) -> int:
        return self.values.shape[1]

    def accuracy(self, values: np.ndarray, present: Sequence[int]) -> float:
        beat("analysis")
        return float((self.decide(values, present) == self.labels).mean())

    def reliance(self, seed: int) -> list[float]:
        """Accuracy lost per subdomain if its values are permuted over the samples."""
        everyone = range(self.subdomains)
        whole, lost = self.accuracy(self.values, everyone), []
        for index in everyone:
            order = numpy_generator(seed, "reliance", index).permutation(len(self.values))
            shuffled = self.values.copy()
            shuffled[:, index] = self.values[order, index]
            lost.append(whole - self.accuracy(shuffled, everyone))
        return lost

    def without(self) -> list[float] | None:
        """Accuracy per subdomain if it is missing; None if the method needs all, or N = 1."""
        if not self.in_part or self.subdomains == 1:
            return None
        present = [[other for other in range(self.subdomains) if other != index] for index in range(self.subdomains)]
        return [self.accuracy(self.values[:, others], others) for others in present]


def stride_of(samples: int, subdomains: int, values: int) -> int:
    """Of the test samples: their part is as large as ``MOST_NUMBERS`` and ``KEPT_NUMBERS`` allow."""
    kept = samples * subdomains * values
    return max(1, -(-kept * subdomains // MOST_NUMBERS), -(-kept // KEPT_NUMBERS))


def some_of(values: Table) -> tuple[np.ndarray, slice]:
    """The values (S', N, C) that a ``Decision`` gets of all (S, N, C), and which samples they are of."""
    part = slice(None, None, stride_of(len(values), *values.shape))
    return values.read(np.arange(len(values))[part]), part


def analyse(
    decisions: dict[str, Decision],
    labels: np.ndarray,
    classes: dict[str, np.ndarray],
    confidence: dict[str, np.ndarray],
    seed: int,
) -> Analysis:
    """What the decisions of a run rest on.

    Args:
        decisions: of the methods that decide on interface values.
        labels: (S,) of the test samples.
        classes, confidence: per method (S,), the latter if it has probabilities.
    """
    correct = {name: decisions_of == labels for name, decisions_of in classes.items()}
    return Analysis(
        influence={
            name: Influence(samples=len(decision.values), reliance=decision.reliance(seed), without=decision.without())
            for name, decision in decisions.items()
        },
        calibration_error={name: calibration_error(of_decisions, correct[name]) for name, of_decisions in confidence.items()},
        disagreement={kind: len(rows) for kind, rows in disagreements(labels, classes).items()},
    )


def disagreements(labels: np.ndarray, classes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Samples (n,) that vote and DNN classify differently, by which of them is right; empty without both methods.

    Args:
        labels: (S,)
        classes: (S,) per method.
    """
    if not {"vote", "dnn"} <= set(classes):
        return {}
    vote, dnn = classes["vote"], classes["dnn"]
    differ = vote != dnn
    kinds = {"dnn": differ & (dnn == labels), "vote": differ & (vote == labels), "neither": differ & (dnn != labels) & (vote != labels)}
    return {name: np.flatnonzero(mask) for name, mask in kinds.items()}


def to_picture(labels: np.ndarray, classes: dict[str, np.ndarray]) -> np.ndarray:
    """A few samples (n,) of every kind of disagreement, spread over the test set, ascending."""
    kinds = disagreements(labels, classes).values()
    few = [rows[np.linspace(0, len(rows) - 1, min(len(rows), PICTURES)).astype(int)] for rows in kinds]
    return np.sort(np.concatenate([np.empty(0, dtype=int), *few]))


def small_picture(image: np.ndarray) -> np.ndarray:
    """(h, w, C) of an image (*spatial, C): of a volume the middle slice, of many pixels every k-th."""
    if image.ndim == 4:
        image = image[len(image) // 2]
    k = -(-max(image.shape[:2]) // MOST_PIXELS)
    return image[::k, ::k]

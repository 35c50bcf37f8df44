"""Analysis of the decisions of a run: reliance on subdomains, calibration, disagreement; on rank 0, without communication.

*Reliance* on a subdomain is permutation importance: the accuracy that a method loses if the values of the subdomain's local CNN are
permuted over the test samples. *Without* a subdomain a method classifies as ``ddcnn predict --without`` does. Both classify N times,
so of very many values only a part of the test samples is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddcnn.io.results_schema import Analysis, Influence
from ddcnn.parallel.heartbeat import beat
from ddcnn.parallel.seeding import numpy_generator
from ddcnn.report.metrics import calibration_error

MOST_NUMBERS = 1 << 27  # N·S·N·C that the decisions are made of
PICTURES = 6  # of one kind of disagreement
MOST_PIXELS = 256  # of a picture along an axis


@dataclass(frozen=True)
class Decision:
    """How a method decides on interface values.

    Attributes:
        values: (S, N, C) float32 of test samples.
        labels: (S,) int64, their classes.
        decide: values (S, n, C) and the numbers of their n subdomains -> classes (S,).
        in_part: whether it can decide without some subdomains.
    """

    values: np.ndarray
    labels: np.ndarray
    decide: Callable[[np.ndarray, Sequence[int]], np.ndarray]
    in_part: bool = True

    def thinned(self) -> "Decision":
        """The same on a part of the samples, as large as ``MOST_NUMBERS`` allows."""
        stride = -(-self.values.size * self.subdomains // MOST_NUMBERS)
        return Decision(np.ascontiguousarray(self.values[::stride]), self.labels[::stride], self.decide, self.in_part)

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


def analyse(
    decisions: dict[str, Decision],
    labels: np.ndarray,
    classes: dict[str, np.ndarray],
    probabilities: dict[str, np.ndarray | None],
    seed: int,
) -> Analysis:
    """What the decisions of a run rest on.

    Args:
        decisions: of the methods that decide on interface values.
        labels: (S,) of the test samples.
        classes, probabilities: per method (S,), and (S, K) if it has any.
    """
    correct = {name: decisions_of == labels for name, decisions_of in classes.items()}
    return Analysis(
        influence={
            name: Influence(samples=len(decision.values), reliance=decision.reliance(seed), without=decision.without())
            for name, decision in decisions.items()
        },
        calibration_error={
            name: calibration_error(values.max(axis=1), correct[name]) for name, values in probabilities.items() if values is not None
        },
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

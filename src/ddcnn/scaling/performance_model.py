"""A performance model: the seconds that a machine takes for the work of a run (counts and equations: ``ddcnn.method.work``).

Every phase is linear in the seconds per count, so that those that are not known are fitted by non-negative least squares, relative
to what was measured (Hockney's α-β model: Parallel Computing 20, 1994; collectives: Thakur et al., IJHPCA 19(1), 2005).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from ddcnn.method.work import Counts

COLLINEAR = 1e-2  # smallest singular value, over the largest, of columns that can still be told apart
FITTED = ("local_operations", "global_operations", "layer_steps")  # the others are measured apart, or given
COMMUNICATION = ("messages", "bytes_sent", "collectives", "reduce_messages", "reduce_bytes")


@dataclass(frozen=True)
class Observation:
    """A phase that was measured: what it consists of, and its seconds."""

    counts: Counts
    seconds: float


def fit(observations: Sequence[Observation], known: Counts) -> tuple[Counts, tuple[str, ...]]:
    """Seconds per count that fit the observations best, relative to their seconds; and the names of those that they do not determine.

    A count that is collinear with others, such as the steps of layers where all steps are alike, is left at zero seconds: all the time
    then counts as arithmetic.

    Args:
        known: seconds per count of all that is not ``FITTED``.
    """
    rows = [one for one in observations if one.seconds > 0 and any(one.counts.only(FITTED))]
    matrix = np.array([[getattr(one.counts, name) / one.seconds for name in FITTED] for one in rows]).reshape(-1, len(FITTED))
    right = np.array([1 - one.counts.only(set(Counts._fields) - set(FITTED)).seconds(known) / one.seconds for one in rows])
    chosen: list[int] = []
    for k in range(len(FITTED)):  # arithmetic first
        if matrix[:, k].any() and _independent(matrix[:, [*chosen, k]]):
            chosen.append(k)
    fitted = np.zeros(len(FITTED))
    if chosen:
        fitted[chosen] = non_negative(matrix[:, chosen], right)
    undetermined = tuple(name for k, name in enumerate(FITTED) if k not in chosen)
    return known._replace(**dict(zip(FITTED, fitted.tolist(), strict=True))), undetermined


def non_negative(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Non-negative least squares; columns are scaled."""
    scale = np.linalg.norm(matrix, axis=0)
    return nnls(matrix / scale, right)[0] / scale


def _independent(columns: np.ndarray) -> bool:
    """Whether least squares can tell these columns apart."""
    scaled = columns / np.linalg.norm(columns, axis=0)
    return bool(np.linalg.matrix_rank(scaled, COLLINEAR * np.linalg.norm(scaled, 2)) == columns.shape[1])

"""Seconds out of the timelines of two ranks."""

import numpy as np
import pytest

from ddcnn.results import _phase, _seconds, _wall
from ddcnn.timeline import KINDS, PHASES


def timeline(*spans: tuple[str, str, float, float]) -> np.ndarray:
    return np.array([(PHASES.index(phase), KINDS.index(kind), start, stop) for phase, kind, start, stop in spans])


RANKS = [
    timeline(("local", "compute", 1, 5), ("folds", "compute", 5, 9), ("gather", "wait", 9, 12), ("gather", "communicate", 12, 13)),
    timeline(("local", "compute", 1, 7), ("folds", "compute", 7, 12), ("gather", "wait", 12, 12), ("gather", "communicate", 12, 13)),
]


def test_a_phase_lasts_from_its_first_start_to_its_last_stop_and_is_as_busy_as_its_ranks_compute():
    assert _phase(RANKS, "local") == {"seconds": 6, "max_rank_seconds": 6, "mean_rank_seconds": 5}
    assert _phase(RANKS, "gather")["max_rank_seconds"] == 0


@pytest.mark.parametrize(
    ("phases", "seconds"), [(("local",), 6), (("local", "gather"), 10), (("local", "folds", "gather"), 12), (("dnn",), 0)]
)
def test_overlapping_phases_count_once_and_a_phase_between_them_not_at_all(phases, seconds):
    assert _wall(RANKS, phases) == seconds


def test_kinds_are_means_over_the_ranks():
    assert _seconds(RANKS, ("local", "gather")) == {"compute": 5, "communicate": 1, "wait": 1.5}

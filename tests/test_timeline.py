"""Seconds out of the timelines of two ranks."""

import mmap

import numpy as np
import pytest

from ddcnn.parallel import memory
from ddcnn.parallel.timeline import KINDS, PHASES, Timeline, phase_seconds, seconds_of, wall, windows


def timeline(*spans: tuple[str, str, float, float]) -> np.ndarray:
    return np.array([(PHASES.index(phase), KINDS.index(kind), start, stop) for phase, kind, start, stop in spans])


RANKS = [
    timeline(("local", "compute", 1, 5), ("folds", "compute", 5, 9), ("gather", "wait", 9, 12), ("gather", "communicate", 12, 13)),
    timeline(("local", "compute", 1, 7), ("folds", "compute", 7, 12), ("gather", "wait", 12, 12), ("gather", "communicate", 12, 13)),
]


def test_a_phase_lasts_from_its_first_start_to_its_last_stop_and_is_as_busy_as_its_ranks_compute():
    assert phase_seconds(RANKS)["local"] == {"seconds": 6, "max_rank_seconds": 6, "mean_rank_seconds": 5}
    assert phase_seconds(RANKS)["gather"]["max_rank_seconds"] == 0
    assert "dnn" not in phase_seconds(RANKS)


@pytest.mark.parametrize(
    ("phases", "seconds"), [(("local",), 6), (("local", "gather"), 10), (("local", "folds", "gather"), 12), (("dnn",), 0)]
)
def test_overlapping_phases_count_once_and_a_phase_between_them_not_at_all(phases, seconds):
    assert wall(windows(RANKS, phases)) == seconds


@pytest.mark.parametrize(("until", "seconds"), [(0, 0), (3, 2), (7, 6), (11, 8), (99, 10)])
def test_seconds_of_a_method_until_a_moment(until, seconds):
    assert wall(windows(RANKS, ("local", "gather")), until) == seconds


def test_seconds_of_a_kind_per_rank():
    found = [seconds_of(RANKS, ("local", "gather"), kind) for kind in KINDS]
    assert found == [[4, 6], [1, 1], [3, 0]]


def seconds(timeline: Timeline, kind: str) -> float:
    return seconds_of([timeline.array()], PHASES, kind)[0]


def test_a_span_inside_another_interrupts_it(clock):
    found = Timeline()
    with found.span("compute"):
        clock.now = 1
        with found.span("wait"):
            clock.now = 3
        with found.span("communicate"):
            clock.now = 3.5
        clock.now = 6
    assert [seconds(found, kind) for kind in KINDS] == [3.5, 0.5, 2]
    spans = found.array()
    assert spans[0, 2] == 0 and spans[-1, 3] == 6
    np.testing.assert_allclose(spans[1:, 2], spans[:-1, 3], atol=1e-12)  # no two at once, none missing


def test_the_steps_of_a_long_run_leave_few_spans_and_every_second(clock):
    found = Timeline()
    with found.phase("coherent"), found.span("compute"):
        for _ in range(100_000):
            clock.now += 0.02
            with found.span("wait"):
                clock.now += 0.001
            with found.span("communicate"):
                clock.now += 0.002
    assert len(found.array()) < 30_000
    assert [seconds(found, kind) for kind in KINDS] == pytest.approx([2000, 200, 100])
    assert wall(windows([found.array()], ("coherent",))) == pytest.approx(2300)


def test_blocks_end_where_nothing_is_recorded_and_with_their_phase(clock):
    found = Timeline()
    for phase in ("local", "gather"):
        with found.phase(phase):
            for _ in range(2):
                with found.span("compute"):
                    clock.now += 0.01
                clock.now += 0.5
    spans = found.array()
    np.testing.assert_allclose(spans[:, 2], [0, 0.51, 1.02, 1.53])
    np.testing.assert_allclose(spans[:, 3] - spans[:, 2], 0.01)
    assert [PHASES[int(row[0])] for row in spans] == ["local", "local", "gather", "gather"]


def test_a_later_attempt_goes_on_with_the_seconds_and_leaves_out_what_it_took_to_come_back(clock):
    first = Timeline()
    with first.phase("partition"), first.span("compute"):
        clock.now += 3
    with first.phase("local"), first.span("compute"):
        clock.now += 20
        kept = first.to_save()  # in the middle of a span
        clock.now += 7  # lost
    second = Timeline()
    with second.phase("partition"), second.span("compute"):
        clock.now += 5
    with second.phase("local"), second.span("compute"):
        second.count(100)
        second.restore(kept)
        clock.now += 10
    with second.phase("gather"), second.span("wait"):
        clock.now += 1
    assert {name: phase["seconds"] for name, phase in phase_seconds([second.array()]).items()} == {"partition": 3, "local": 30, "gather": 1}
    assert phase_seconds([second.array()])["local"]["max_rank_seconds"] == 30
    assert second.now() == 23 + 5 + 11
    assert sum(second.sent.values()) == 0
    assert second.resumed and not first.resumed


def touch(size: int) -> None:
    """Uses so many bytes beside the heap, in which earlier tests have left room, and gives them back."""
    with mmap.mmap(-1, size) as memory:
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1


def test_every_phase_has_its_own_peak_of_memory_which_a_later_attempt_keeps():
    first = Timeline()
    first.begin()
    with first.phase("local"):
        touch(1 << 26)
        Timeline()  # as of a rank that works alone
    with first.phase("gather"):
        kept = first.to_save()
    resident = dict(zip(PHASES, first.take_peaks()[:, 0].tolist(), strict=True))
    assert resident["local"] > max(resident["start"], resident["gather"]) + (48 << 20)
    assert resident["gather"] > 0 == resident["dnn"]
    second = Timeline()
    with second.phase("gather"):
        touch(1 << 27)  # more than what the first one had there
    second.restore(kept)
    assert second.take_peaks()[PHASES.index("gather"), 0] > resident["gather"] + (96 << 20)
    with second.phase("gather"):
        touch(1 << 26)
    again = dict(zip(PHASES, second.take_peaks()[:, 0].tolist(), strict=True))
    assert again["local"] == resident["local"] and again["gather"] > resident["gather"] + (48 << 20)
    second.restore({name: values for name, values in kept.items() if name != "timeline/peaks"})  # as an older version has saved it
    second.begin()
    assert not second.take_peaks()[1:].any()


def test_where_a_peak_is_not_forgotten_it_is_that_of_the_process_so_far(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none" / "of this")
    touch(1 << 26)
    first, second = memory.take_peaks(), memory.take_peaks()
    assert second[0] == first[0] > 1 << 26

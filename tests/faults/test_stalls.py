"""A rank that stops without dying, in whatever the others wait for it: the job ends and says which one; slow ones are waited for."""

import os
import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from launching import Started, launch
from quick import full
from test_kills import PHASES, QUICK, RANKS

STALLING = (str(Path(__file__).with_name("stalling.py")),)
LIMIT = 8
OPTIONS = ("run", *QUICK, "--stall-timeout", str(LIMIT))


def line(stderr: str) -> str:
    """The one that says why."""
    lines = [line for line in stderr.splitlines() if line.startswith("ddcnn: ")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    assert lines[0].endswith("; ending all ranks. --stall-timeout sets the limit")
    return lines[0]


@pytest.mark.parametrize(
    "phases", [("local", "coherent", "global"), full(("coherent", "global", "local")), full(("global", "local", "coherent"))], ids="-".join
)
def test_a_stopped_rank_ends_all_and_is_named_once(tmp_path, phases):
    """Three runs side by side, in each of which another rank is stopped, in another phase."""
    with ExitStack() as stack:
        runs = []
        for victim, phase in enumerate(phases):
            folder = tmp_path / str(victim)
            folder.mkdir()
            runs.append(stack.enter_context(Started(RANKS, *OPTIONS, *PHASES[phase], cwd=folder)))
        for victim, (phase, run) in enumerate(zip(phases, runs, strict=True)):
            metrics = tmp_path / str(victim) / "run" / "metrics.jsonl"
            run.wait_for(lambda metrics=metrics, phase=phase: metrics.exists() and f'"{phase}"' in metrics.read_text("utf-8"))
            time.sleep(1)  # until every rank has told where it is
            os.kill(run.ranks()[victim], signal.SIGSTOP)
        assert runs[-1].seconds_to_end(most=8 * LIMIT) < 2.5 * LIMIT
        for victim, (phase, run) in enumerate(zip(phases, runs, strict=True)):
            run.seconds_to_end(most=LIMIT)
            place = {"local": f"subdomain {victim}", "global": "global CNN"}.get(phase, phase)
            named = rf"no sign of life for {LIMIT} s from rank {victim} of {RANKS} \(last: {place}(, [a-z0-9, ]+)?\);"
            assert re.search(named, line(run.said())), run.said()
            assert run.process.returncode


@pytest.mark.parametrize(
    ("how", "step", "method"),
    [("loop", "train_local", "vote"), full("loop", "train_data_parallel", "global"), ("sleep", "train_coherent", "coherent")],
)
def test_a_rank_that_is_stuck_ends_all_and_is_named_once(tmp_path, how, step, method):
    begin = time.monotonic()
    finished = launch(RANKS, "1", how, step, *OPTIONS, "--methods", method, cwd=tmp_path, program=STALLING)
    assert time.monotonic() - begin < 60
    assert finished.returncode not in (0, 2)
    said = line(finished.stderr)
    assert f"from rank 1 of {RANKS}" in said
    assert "rank 0" not in said and "rank 2" not in said


@pytest.mark.full
def test_a_rank_that_works_for_long_is_waited_for_and_so_is_a_job_that_was_suspended(tmp_path):
    """Rank 1 takes several times the limit for its local CNN, in steps; then all are stopped, and go on."""
    slow = ("1", "slow", "-", *OPTIONS, "--methods", "dnn,transfer", "--batch-size", "2")
    with Started(RANKS, *slow, cwd=tmp_path, program=STALLING) as run:
        run.wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
        time.sleep(4)
        ranks = run.ranks().values()
        assert len(ranks) == RANKS
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in ranks:
                os.kill(process, number)
            time.sleep(1.5 * LIMIT)
        run.process.wait(120)
        assert run.process.returncode == 0, run.said()
    assert (tmp_path / "run" / "results.json").exists()


def test_nothing_is_left_of_the_watching(tmp_path):
    places = {"TMPDIR": str(tmp_path)}
    assert launch(2, "run", *QUICK, "--grid", "2x1", "--methods", "vote", cwd=tmp_path, **places).returncode == 0
    assert launch(2, "run", *QUICK, "--grid", "2x1", "--methods", "vote", cwd=tmp_path, **places).returncode == 2
    assert not list(tmp_path.glob(".*"))

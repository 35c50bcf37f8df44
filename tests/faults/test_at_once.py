"""Several ranks fail at once: each of them says what has failed, with its rank."""

from pathlib import Path

import pytest
from launching import launch
from quick import quick

FAILING = (str(Path(__file__).with_name("failing_at_once.py")),)
QUICK = quick()


def test_a_coherent_training_that_diverges_is_one_line_a_rank(tmp_path):
    diverging = ("--methods", "coherent", "--lr", "1e6", "--optimizer", "sgd", "--evaluate-every", "0")
    finished = launch(4, "run", *QUICK, *diverging, cwd=tmp_path)
    assert finished.returncode not in (0, 2, 75)
    lines = [line for line in finished.stderr.splitlines() if line.startswith("ddcnn: ")]
    assert len(lines) == 4, finished.stderr
    for rank, line in enumerate(sorted(lines)):
        assert line.startswith(f"ddcnn: failed: rank {rank} of 4, coherent: ")
        assert "try a smaller learning rate (--coherent-lr)" in line
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("ranks", [[1, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("error", ["ZeroDivisionError", "InputError"])
def test_all_that_fail_at_once_say_so_with_their_rank(tmp_path, ranks, error):
    finished = launch(4, ",".join(map(str, ranks)), error, cwd=tmp_path, program=FAILING)
    assert finished.returncode == {"ZeroDivisionError": 1, "InputError": 2}[error]
    assert finished.stderr.count("ddcnn: ") == len(ranks)
    for rank in ranks:
        assert finished.stderr.count(f"rank {rank} of 4: ") == 1
        assert finished.stderr.count(f"[rank {rank}] Traceback") == (error == "ZeroDivisionError")


def test_a_lost_connection_does_not_hide_the_failure_that_it_comes_from(tmp_path):
    finished = launch(4, "2,0", "RuntimeError,ZeroDivisionError", cwd=tmp_path, program=FAILING)
    assert finished.returncode == 1
    lines = [line for line in finished.stderr.splitlines() if line.startswith("ddcnn: ")]
    assert lines == ["ddcnn: failed: rank 0 of 4: ZeroDivisionError: made to fail"]


def test_a_lost_connection_without_another_failure_is_said(tmp_path):
    finished = launch(4, "2", "RuntimeError", cwd=tmp_path, program=FAILING)
    assert "ddcnn: failed: rank 2 of 4: another rank is gone (Connection closed by peer)" in finished.stderr

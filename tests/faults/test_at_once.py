"""Several ranks fail at once: one of them speaks, the lowest, and once."""

from pathlib import Path

import pytest
from launching import launch

FAILING = (str(Path(__file__).with_name("failing_at_once.py")),)
QUICK = ("--epochs", "2", "--network", "vgg3", "--train-samples", "200", "--progress", "none")


def test_a_coherent_training_that_diverges_is_one_line(tmp_path):
    diverging = ("--methods", "coherent", "--lr", "1e6", "--optimizer", "sgd", "--evaluate-every", "0")
    finished = launch(4, "run", *QUICK, *diverging, cwd=tmp_path)
    assert finished.returncode not in (0, 2, 75)
    lines = [line for line in finished.stderr.splitlines() if line.startswith("ddcnn: ")]
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("ddcnn: failed: rank 0 of 4, coherent: ")
    assert "try a smaller --lr" in lines[0]
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(("ranks", "speaker"), [("1,3", "rank 1 of 4"), ("0,1,2,3", "rank 0 of 4")])
@pytest.mark.parametrize("error", ["ZeroDivisionError", "InputError"])
def test_of_several_that_fail_at_once_the_lowest_speaks_alone(tmp_path, ranks, speaker, error):
    finished = launch(4, ranks, error, cwd=tmp_path, program=FAILING)
    assert finished.returncode == {"ZeroDivisionError": 1, "InputError": 2}[error]
    assert finished.stderr.count("ddcnn: ") == 1
    assert speaker in finished.stderr
    assert finished.stderr.count("Traceback") == (error == "ZeroDivisionError")

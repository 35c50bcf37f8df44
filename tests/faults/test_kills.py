"""A rank that is killed, or mpirun itself, in every phase: nobody goes on, nobody stays behind."""

import os
import signal
from itertools import product

import pytest
from launching import Started
from quick import full, quick

RANKS = 3
QUICK = quick(grid="3x1", overlap=1, epochs=1, dnn_epochs=1, train_samples=100, test_samples=20, evaluate_every=0, output="run")
ENDLESS = "1000000"
PHASES = {
    "local": ("--methods", "vote", "--epochs", ENDLESS),
    "dnn": ("--methods", "dnn", "--dnn-epochs", ENDLESS),
    "coherent": ("--methods", "coherent", "--coherent-epochs", ENDLESS),
    "transfer": ("--methods", "transfer", "--transfer-epochs", ENDLESS),
    "global": ("--methods", "global", "--global-epochs", ENDLESS),
}


TELLING = [("local", 1), ("dnn", "mpirun"), ("transfer", 0), ("global", 2)]


@pytest.mark.parametrize(
    ("phase", "victim"), [*TELLING, *(full(*case) for case in product(PHASES, (0, 1, 2, "mpirun")) if case not in TELLING)]
)
def test_whoever_is_killed_all_are_gone_soon(tmp_path, phase, victim):
    metrics = tmp_path / "run" / "metrics.jsonl"
    with Started(RANKS, "run", *QUICK, *PHASES[phase], cwd=tmp_path) as run:
        run.wait_for(lambda: metrics.exists() and f'"{phase}"' in metrics.read_text("utf-8"))
        os.kill(run.process.pid if victim == "mpirun" else run.ranks()[victim], signal.SIGKILL)
        assert run.seconds_to_end(most=20) < 10
        assert run.process.returncode
        assert not (tmp_path / "run" / "results.json").exists()

"""Programs in benchmarks/ that read what a run tells on the terminal, run as a user does."""

import json
import os
import subprocess
import sys
from pathlib import Path

from launching import LIMIT, MPIRUN

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_dry_run_compares_every_phase_with_its_estimate(tmp_path):
    problem = ("--data", "digits", "--network", "vgg3", "--width", "8", "--epochs", "1", "--dnn-epochs", "1", "--methods", "vote,dnn")
    path = os.pathsep.join([str(Path(MPIRUN[0]).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "dry_run.py", "--ranks", "1", "--", *problem],
        cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    phases = json.loads(done.stdout)["ranks"]["1"]
    assert set(phases) == {"partition", "local", "gather", "dnn", "in all"}
    assert all(phase["bytes"] > 0 < phase["measured_bytes"] and phase["measured_seconds"] > 0 for phase in phases.values())
    assert list(tmp_path.iterdir()) == []

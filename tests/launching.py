"""Starts ddcnn as its users do: mpirun, as CTest found it, or the one beside this Python."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

beside = Path(sys.executable).parent / "mpirun"
MPIRUN = shlex.split(os.environ.get("DDCNN_MPIRUN", str(beside if beside.exists() else "mpirun")))
LIMIT = 300  # seconds: only to end a test that hangs


def launch(ranks: int, *arguments: str, cwd: Path, program: tuple[str, ...] = ("-m", "ddcnn"), **environment: str):
    """mpirun -n RANKS python -m ddcnn ARGUMENTS: the finished process, with stdout and stderr as text."""
    command = [*MPIRUN, "-n", str(ranks), sys.executable, *program, *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=LIMIT)


def alone(*arguments: str, cwd: Path, **environment: str):
    """python -m ddcnn ARGUMENTS without mpirun."""
    command = [sys.executable, "-m", "ddcnn", *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=LIMIT)


def refusal(finished) -> str:
    """The one line of a refusal: exit code 2, no traceback, nothing else from ddcnn on stderr."""
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    lines = [line for line in finished.stderr.splitlines() if line.startswith("ddcnn: ")]
    assert len(lines) == 1, finished.stderr
    return lines[0]

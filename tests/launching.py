"""Starts ddcnn as its users do: mpirun, as CTest found it, or the one beside this Python."""

import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

beside = Path(sys.executable).parent / "mpirun"
MPIRUN = shlex.split(os.environ.get("DDCNN_MPIRUN", str(beside if beside.exists() else "mpirun")))
LIMIT = max(300, 40 * int(os.environ.get("DDCNN_KILLS", "0")))  # seconds: only to end a test that hangs


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


class Started:
    """A run in the background: mpirun (python alone without ranks), and every process that comes of it, which a variable tells."""

    def __init__(self, ranks: int | None, *arguments: str, cwd: Path, program: tuple[str, ...] = ("-m", "ddcnn"), **environment: str):
        self.mark = f"DDCNN_TEST={uuid.uuid4()}"
        own = os.environ | environment | dict([self.mark.split("=")])
        launcher = [*MPIRUN, "-n", str(ranks)] if ranks else []
        command = [*launcher, sys.executable, *program, *arguments]
        self.stderr = (cwd / "stderr").open("w+")
        self.process = subprocess.Popen(command, cwd=cwd, env=own, stdout=subprocess.DEVNULL, stderr=self.stderr)
        self.begin = time.monotonic()
        self.deadline = self.begin + LIMIT

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *error) -> None:
        for process in self.processes():
            os.kill(process, signal.SIGKILL)
        self.process.wait()
        self.stderr.close()

    def processes(self) -> dict[int, dict[str, str]]:
        """Number and environment of those that live."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                lines = (folder / "environ").read_text(errors="replace").split("\0")
                if self.mark in lines:
                    found[int(folder.name)] = dict(line.partition("=")[::2] for line in lines)
        return found

    def ranks(self) -> dict[int, int]:
        """The processes of the ranks."""
        names = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
        told = {process: next((own[name] for name in names if name in own), "") for process, own in self.processes().items()}
        return {int(rank): process for process, rank in told.items() if rank}

    def wait_for(self, there: Callable[[], object]) -> None:
        while not there():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < self.deadline
            time.sleep(0.05)

    def seconds_to_end(self, most: float) -> float:
        """Until no process is left."""
        begin = time.monotonic()
        while self.process.poll() is None or self.processes():
            assert time.monotonic() - begin < most, (self.ranks(), self.said())
            time.sleep(0.05)
        return time.monotonic() - begin

    def said(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read()

"""Starts ddcnn as its users do: mpirun, as CTest found it, or the one beside this Python.

``on_ranks`` is the quick way, in ranks that stay: what mpirun and the imports take (3 s of each rank) is paid once. ``launch`` and
``Started`` start processes, for what is about processes: signals, aborts, exit codes, the environment.
"""

import atexit
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
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


class KeptRanks:
    """Ranks that execute one command after the other (kept_ranks.py); without ``ranks`` one process that no launcher has started."""

    def __init__(self, ranks: int | None):
        self.ranks, self.folder = ranks, Path(tempfile.mkdtemp(prefix="ddcnn-kept-"))
        names = ["codes", *map(str, range(ranks or 1))]
        for name in names:
            os.mkfifo(self.folder / name)
        self.codes, *self.orders = (os.open(self.folder / name, os.O_RDWR) for name in names)  # RDWR waits for nobody
        launcher = [*MPIRUN, "-n", str(ranks)] if ranks else []
        self.own = self.folder / "launcher"
        with self.own.open("w", encoding="utf-8") as said:
            program = [sys.executable, str(Path(__file__).with_name("kept_ranks.py")), str(self.folder)]
            self.process = subprocess.Popen([*launcher, *program], stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def execute(self, arguments: list[str], order: dict) -> subprocess.CompletedProcess:
        outputs = [self.folder / name for name in ("stdout", "stderr")]
        for path in outputs:
            path.write_text("", "utf-8")
        for pipe in self.orders:
            os.write(pipe, (json.dumps(order | {"arguments": arguments}) + "\n").encode())
        code = self._code()
        stdout, stderr = (path.read_text("utf-8") for path in outputs)
        if self.process.poll() is not None:
            stderr += self.own.read_text("utf-8")
            self.end()
        assert "unused" not in stderr  # DistributedDataParallel, of parameters that it was told to look for; once in a process
        return subprocess.CompletedProcess(arguments, code, stdout, stderr)

    def _code(self) -> int:
        """The exit code of all ranks, or of the launcher if one has aborted."""
        told, end = "", time.monotonic() + LIMIT
        while told.count("\n") < len(self.orders):
            if select.select([self.codes], [], [], 0.1)[0]:
                told += os.read(self.codes, 4096).decode()
            elif self.process.poll() is not None:
                return self.process.returncode
            elif time.monotonic() > end:
                self.process.kill()
                raise subprocess.TimeoutExpired("kept_ranks.py", LIMIT, stderr=(self.folder / "stderr").read_bytes())
        codes = {int(code) for code in told.split()}
        assert len(codes) == 1, f"exit codes {told}"
        return codes.pop()

    def end(self) -> None:
        """Ranks end when nobody can write to their pipes."""
        for pipe in (self.codes, *self.orders):
            os.close(pipe)
        self.process.wait(LIMIT)
        shutil.rmtree(self.folder)
        del KEPT[self.ranks]


KEPT: dict[int | None, KeptRanks] = {}
MOST_KEPT = 4  # more are started anew, since they would lie about with 300 MB each


def on_ranks(
    ranks: int | None, *arguments: object, cwd: Path, script: str = "", interrupted: Sequence | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """What ``launch`` gives (or ``alone``, for None), but in kept ranks.

    Args:
        script: in ``cwd``, instead of ddcnn.
        interrupted: arguments of interrupting.interrupted.
    """
    if (ranks or 1) > MOST_KEPT:
        return launch(ranks, *map(str, arguments), cwd=cwd, **environment)
    if ranks not in KEPT:
        KEPT[ranks] = KeptRanks(ranks)
    order = {"cwd": str(cwd), "script": script, "interrupted": interrupted, "environment": environment}
    return KEPT[ranks].execute(list(map(str, arguments)), order)


@atexit.register
def end_all() -> None:
    for kept in list(KEPT.values()):
        kept.end()


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
        self.stderr = (cwd / "stderr").open("w+", encoding="utf-8")
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
                lines = (folder / "environ").read_text(errors="replace", encoding="utf-8").split("\0")
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

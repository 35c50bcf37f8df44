"""Requests to stop: signals and time limits. A signal handler only sets a flag, which the ranks read between two steps of training."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress

RESERVE = 60.0  # seconds before the end of the job, for saving ...
SHARE = 0.1  # ... or this part of a short job
BLOCKED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


def block_signals(starting: bool = False) -> None:
    """Delays signals until ``unblock_signals``, since MPI may install handlers that would swallow them.

    Before MPI starts (``starting``) SIGTERM is left as it is: a rank that waits in there for others, which are gone, must end.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*BLOCKED} - {signal.SIGTERM} if starting else BLOCKED)


def unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)


def interrupt_on_sigterm() -> None:
    """Lets SIGTERM end this process as Ctrl-C does: what it has begun to write is removed."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    unblock_signals()


class StopRequests:
    """Whether this process should stop.

    Args:
        signals: names of the signals that request it; the same one a second time ends the process at once.
        time_limit: minutes from now, None for none.
        job: start and end of the SLURM job in seconds since 1970 (see ``slurm_job``).
    """

    def __init__(self, signals: Iterable[str], time_limit: float | None = None, job: tuple[float, float] | None = None):
        self._reason = ""
        self._seen: set[int] = set()
        self._deadlines = []
        if time_limit is not None:
            self._deadlines.append((time.time() + 60 * time_limit, "--time-limit"))
        if job is not None:
            begin, end = job
            self._deadlines.append((end - min(RESERVE, SHARE * (end - begin)), "the end of the SLURM job"))
        for name in signals:
            signal.signal(signal.Signals[name], self._on_signal)
        unblock_signals()

    @property
    def reason(self) -> str:
        """Why this process should stop, "" if it should not."""
        if not self._reason:
            self._reason = next((reason for deadline, reason in self._deadlines if time.time() >= deadline), "")
        return self._reason

    def _on_signal(self, number: int, frame: object) -> None:
        if number in self._seen:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._seen.add(number)  # SLURM sends SIGTERM at the end, while the run may be saving because of another signal
        self._reason = self._reason or signal.Signals(number).name


def slurm_job() -> tuple[float, float] | None:
    """Start and end of this process's SLURM job, if it has a time limit: from the environment, else from squeue."""
    times = [os.environ.get(f"SLURM_JOB_{name}_TIME", "") for name in ("START", "END")]
    if "SLURM_JOB_ID" in os.environ and not all(times):
        with suppress(OSError, subprocess.SubprocessError):
            command = ["squeue", "--noheader", "--job", os.environ["SLURM_JOB_ID"], "--format", "%S %e"]
            environment = os.environ | {"SLURM_TIME_FORMAT": "%s"}
            times = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, env=environment
            ).stdout.split()
    with suppress(ValueError):
        begin, end = map(float, times)
        return begin, end
    return None

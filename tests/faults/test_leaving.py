"""A rank that has stopped on request and leaves after the others, or is interrupted while it reads ahead."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from launching import Started
from quick import quick

LATE = "import atexit, time; atexit.register(time.sleep, 5)"
OPTIONS = quick(output="run", methods="average", epochs=5000)
ALONE = """
import time
from ddcnn.parallel.launcher import launched_rank
if launched_rank():
    time.sleep(3600)  # never comes to MPI
from ddcnn.__main__ import main
main()
"""  # of two ranks, one waits in MPI_Init
LIMIT = 300  # seconds: only to end a test that hangs


def test_the_launcher_does_not_change_its_exit_code(tmp_path):
    """With --kill-on-bad-exit, srun sends SIGTERM to the other ranks when the first one has left with 75."""
    (tmp_path / "sitecustomize.py").write_text(LATE, "utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "ddcnn", "run", *OPTIONS]
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as rank:
        end, epochs = time.monotonic() + LIMIT, tmp_path / "run" / "metrics.jsonl"
        while not (epochs.exists() and epochs.read_text("utf-8")) and time.monotonic() < end:
            time.sleep(0.1)
        rank.send_signal(signal.SIGUSR1)
        while "stopped" not in rank.stderr.readline():
            assert rank.poll() is None
        time.sleep(1)  # the message comes first
        rank.send_signal(signal.SIGTERM)
        assert rank.wait(LIMIT) == 75


def test_an_interrupt_does_not_wait_for_what_is_read_ahead(digits_run, tmp_path):
    program = (str(Path(__file__).with_name("reading.py")),)
    with Started(None, "predict", str(digits_run), "digits", "--output", "p.csv", cwd=tmp_path, program=program) as started:
        started.wait_for((tmp_path / "reading").exists)
        started.process.send_signal(signal.SIGINT)
        started.seconds_to_end(most=LIMIT)
        assert started.process.returncode == 130 or "interrupted" in started.said()
    assert not (tmp_path / "p.csv").exists()


def test_sigterm_ends_a_rank_that_waits_for_others_while_mpi_starts(tmp_path):
    with Started(2, "info", cwd=tmp_path, program=("-c", ALONE)) as started:
        started.wait_for(lambda: 0 in started.ranks() and "/libmpi" in Path(f"/proc/{started.ranks()[0]}/maps").read_text("utf-8"))
        time.sleep(1)
        os.kill(started.ranks()[0], signal.SIGTERM)
        started.seconds_to_end(most=60)
        assert started.process.returncode not in (0, 2, 75)

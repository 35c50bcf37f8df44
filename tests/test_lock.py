"""One job at a time in a folder, with real processes; SLURM's squeue is a script here, since no test may need a cluster."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from ddcnn.errors import InputError
from ddcnn.io import lock
from ddcnn.io.lock import locked

HOLD = """
import sys
from pathlib import Path
from ddcnn.errors import InputError
from ddcnn.io.lock import locked
sys.stdin.readline()
try:
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except InputError as error:
    print(error, flush=True)
"""


def start(folder: Path, **environment: str) -> subprocess.Popen:
    """A process that takes the lock at the first line of its stdin, and leaves it at the second."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    return subprocess.Popen(command, env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go_on(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


@contextmanager
def holder(folder: Path, **environment: str):
    """Another process that holds the folder, or its refusal: (process, what it says)."""
    process = start(folder, **environment)
    try:
        go_on(process)
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as raised, locked(folder):
        pass
    return str(raised.value)


def foreign(folder: Path, **changes: object) -> Path:
    """The lock of a job on another host."""
    content = {"host": "elsewhere", "pid": 1, "started": 5, "job": "4711", "restarts": 0} | changes
    (folder / ".lock").write_text(json.dumps(content), "utf-8")
    return folder


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Lets a script answer in place of SLURM."""

    def answer(script: str) -> None:
        program = tmp_path / "bin" / "squeue"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return answer


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_second_job_is_refused_with_the_holder_and_the_way_out(folder):
    with holder(folder, SLURM_JOB_ID="99") as (first, said), holder(folder) as (_, refused):
        assert said == "held"
        assert f"{folder} is in use by process {first.pid} on {socket.gethostname()}, SLURM job 99" in refused
        assert "name another folder" in refused


def test_a_lock_is_free_and_gone_after_its_holder(folder):
    with holder(folder) as (first, _):
        go_on(first)
        first.wait()
        assert not list(folder.iterdir())
        with holder(folder) as (_, said):
            assert said == "held"


def test_the_lock_of_a_killed_holder_is_taken_over(folder):
    with holder(folder) as (first, _):
        os.kill(first.pid, signal.SIGKILL)
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # dead, but its parent has not asked
        assert (folder / ".lock").exists()
        with holder(folder) as (second, said):
            assert said == "held"
            assert json.loads((folder / ".lock").read_text("utf-8"))["pid"] == second.pid


def test_an_exception_of_the_holder_frees_the_folder(folder):
    with pytest.raises(ZeroDivisionError), locked(folder):
        raise ZeroDivisionError
    assert not list(folder.iterdir())


def test_a_process_that_only_has_the_number_of_the_holder_holds_nothing(folder):
    own = {"host": socket.gethostname(), "pid": os.getpid()}
    with holder(foreign(folder, **own, started=1)) as (_, said):
        assert said == "held"


def test_a_living_holder_is_known_by_its_start(folder):
    started = int(Path(f"/proc/{os.getpid()}/stat").read_text("utf-8").rpartition(")")[2].split()[19])
    own = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
    with holder(foreign(folder, **own)) as (_, said):
        assert f"in use by process {os.getpid()}" in said


def test_a_process_of_another_user_that_proc_hides_holds_the_folder(folder, monkeypatch):
    def kill(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "kill", kill)
    assert f"in use by process {2**22 + 1}" in refusal(foreign(folder, host=socket.gethostname(), pid=2**22 + 1))


@pytest.mark.parametrize("left", [True, False], ids=["left by a killed one", "free"])
def test_of_several_that_start_at_once_exactly_one_gets_the_folder(folder, left):
    racers = [start(folder) for _ in range(4)]
    try:
        if left:
            foreign(folder, host=socket.gethostname(), pid=2**22 + 1)
        for racer in racers:
            go_on(racer)
        said = [racer.stdout.readline().strip() for racer in racers]
        assert sorted(line == "held" for line in said) == [False, False, False, True], said
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


RACE = """
import os, sys, time
from pathlib import Path
from ddcnn.errors import InputError
from ddcnn.io import lock
from ddcnn.io.lock import locked
folder, won = Path(sys.argv[1]), 0
inside = folder / "inside"
until = time.monotonic() + 3
while time.monotonic() < until:
    try:
        with locked(folder):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another one is in here
            won += 1
            inside.unlink()
            if won % 5 == 0 and len(sys.argv) > 2:
                os.kill(os.getpid(), 9)
    except InputError:
        pass
print(won)
"""


def test_no_two_are_ever_in_the_folder_while_many_take_it_and_leave_it(folder):
    """Hundreds of rounds: taking, leaving, refusing, and in between one that is killed and leaves its lock behind."""
    command = [sys.executable, "-c", RACE, str(folder)]
    racers = [subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "123"]
    killed = 0
    while any(racer.poll() is None for racer in racers):
        killed += subprocess.run([*command, "killed"], env=os.environ, capture_output=True).returncode == -signal.SIGKILL
    said = [racer.communicate() for racer in racers]
    assert all(error == "" for _, error in said), said
    assert sum(int(won) for won, _ in said) > 50
    assert killed
    with locked(folder):
        pass


@pytest.mark.parametrize(
    "answer", ["exit 0", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"], ids=["forgotten", "unknown to SLURM"]
)
def test_the_lock_of_another_host_is_taken_over_when_its_job_has_ended(folder, squeue, answer):
    squeue(f'[ "$*" = "-h -j 4711 -o %T" ] || exit 9\n{answer}')
    with holder(foreign(folder)) as (_, said):
        assert said == "held"


@pytest.mark.parametrize(
    ("answer", "way_out"),
    [
        ("echo RUNNING", "wait until it has ended"),
        ("echo PENDING", "wait until it has ended"),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "if that has ended, delete"),
    ],
)
def test_the_lock_of_another_host_is_respected_while_its_job_runs_or_may_run(folder, squeue, answer, way_out):
    squeue(answer)
    refused = refusal(foreign(folder))
    assert "process 1 on elsewhere, SLURM job 4711" in refused
    assert way_out in refused


def test_without_slurm_the_lock_of_another_host_is_respected(folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for job in ("", "4711"):
        assert f"if that has ended, delete {folder / '.lock'}" in refusal(foreign(folder, job=job))


def test_a_requeued_job_takes_over_what_it_has_left_on_another_host(folder, squeue, monkeypatch):
    squeue("echo RUNNING")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    refusal(foreign(folder))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with locked(foreign(folder)):
        pass


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\x00", b"[1, 2]", b"{}", b"1" * 5000, b"[" * 10**6,
        b'{"host": 1, "pid": "x", "started": null, "job": 4, "restarts": {}}',
        b'{"host": "a", "pid": true, "started": 1, "job": "", "restarts": 0}',
    ],
)  # fmt: skip
def test_content_that_no_job_has_written_is_written_over(folder, content):
    (folder / ".lock").write_bytes(content)
    with holder(folder) as (_, said):
        assert said == "held"


def test_what_a_foreign_lock_says_is_neither_run_nor_shown_raw(folder, squeue):
    squeue(f"touch {folder}/ran")
    refused = refusal(foreign(folder, host="a\x1b[31m\nb" + "c" * 1000, job="1 -M; x"))
    assert "\x1b" not in refused and "-M" not in refused and len(refused) < 500
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("kind", ["link", "dangling", "other name", "folder", "pipe"])
def test_a_lock_that_is_no_plain_file_is_refused_and_nothing_outside_is_touched(tmp_path, folder, kind):
    other, path = tmp_path / "other", folder / ".lock"
    other.write_text("mine", "utf-8")
    if kind in ("link", "dangling"):
        path.symlink_to(other if kind == "link" else tmp_path / "new")
    elif kind == "other name":
        path.hardlink_to(other)
    else:
        path.mkdir() if kind == "folder" else os.mkfifo(path)
    refused = refusal(folder)
    assert f"{path} is a link or no file: delete it" in refused
    assert other.read_text("utf-8") == "mine"
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_gone_or_cannot_be_written_is_said(folder):
    folder.rmdir()
    assert "cannot be written" in refusal(folder)
    folder.mkdir()
    with locked(folder):
        (folder / ".lock").unlink()
        folder.rmdir()


KILLED = """
import os, signal, sys
from pathlib import Path
from ddcnn.io.lock import locked
folder, left = sys.argv[1], int(sys.argv[2])
def count(event, arguments):
    global left
    if any(str(argument).startswith(folder) for argument in arguments):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
with locked(Path(folder)):
    pass
"""


def test_one_that_is_killed_before_any_of_its_operations_does_not_block_others_on_its_host(folder):
    left = set()
    for operation in count():
        killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(operation)], check=False)
        left |= {path.name for path in folder.iterdir()}
        begin = time.monotonic()
        with locked(folder):
            assert time.monotonic() - begin < 2
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL
    assert operation > 15
    assert {".lock", ".lock.taking"} < left
    assert all(not any(path.iterdir()) for path in folder.iterdir())


@pytest.mark.parametrize("mark", ["elsewhere.1.1", f"{socket.gethostname()}.{os.getpid()}.{lock._started(os.getpid())}", "foreign"])
def test_one_that_is_stopped_while_it_takes_the_folder_does_not_block_others_for_long(folder, mark):
    """It may live, or have been killed on another host; the refusal names its guard."""
    (folder / ".lock.taking").mkdir()
    (folder / ".lock.taking" / mark).touch()
    begin = time.monotonic()
    with holder(folder) as (_, said):
        assert f"{folder}/.lock.taking is in the way" in said
    assert time.monotonic() - begin < 15


def test_a_holder_that_cannot_be_seen_from_here_is_known_by_the_kernels_lock(folder):
    foreign(folder, host=socket.gethostname(), pid=2**31 - 2)  # no such process, as seen from another container
    with (folder / ".lock").open(encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "is in use by process 2147483646" in refusal(folder)
    with locked(folder):
        pass


def test_nobody_is_kept_out_while_slurm_takes_its_time(folder, squeue, monkeypatch):
    squeue("sleep 2; echo RUNNING")
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    foreign(folder)
    other = start(folder)
    go_on(other)
    time.sleep(0.7)
    assert "is in use by process 1 on elsewhere, SLURM job 4711" in refusal(folder)
    assert "is in use by process 1 on elsewhere" in other.communicate()[0]


def test_a_guard_whose_process_was_killed_is_taken_away_in_time(folder):
    guard = folder / ".lock.taking"
    guard.mkdir()
    (guard / "elsewhere.1.1").touch()
    os.utime(guard, (time.time() - 2 * lock.ABANDONED,) * 2)
    with locked(folder):
        pass
    assert not guard.exists()

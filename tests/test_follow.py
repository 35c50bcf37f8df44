"""``ddcnn report --follow``: what is shown of a run that goes on, whoever writes its files."""

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from launching import on_ranks, refusal
from rich.console import Console

from ddcnn.config.settings import RunSettings
from ddcnn.errors import InputError, Stopped
from ddcnn.io.run_folder import RunFolder, take_output
from ddcnn.report import follow as following
from ddcnn.report.follow import curve


def lines_of(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)


@pytest.fixture
def unfinished(digits_run, tmp_path) -> Path:
    """A run that has settings and half of its epochs."""
    run = tmp_path / "copy"
    run.mkdir()
    shutil.copy(digits_run / "config.toml", run)
    epochs = lines_of(digits_run)
    (run / "metrics.jsonl").write_text("".join(epochs[: len(epochs) // 2]), "utf-8")
    return run


def finish(run: Path, digits_run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(lines_of(digits_run)), "utf-8")
    shutil.copy(digits_run / "results.json", run)


class Follower:
    """The command on a pipe, or on a terminal of its own."""

    def __init__(self, run: Path, terminal: bool = False):
        command = [sys.executable, "-m", "ddcnn", "report", "--follow", str(run)]
        ours, theirs = pty.openpty() if terminal else os.pipe()
        environment = os.environ | {"COLUMNS": "250", "LINES": "40", "TERM": "xterm"}
        self.process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, text=True, env=environment)
        os.close(theirs)
        self.output, self.said, self.deadline = ours, "", time.monotonic() + 60

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *error) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.output)

    def read(self) -> bool:
        """Something more; False at the end."""
        assert time.monotonic() < self.deadline and select.select([self.output], [], [], 30)[0], self.said
        try:
            piece = os.read(self.output, 1 << 16).decode()
        except OSError:  # of a terminal
            piece = ""
        self.said += piece
        return bool(piece)

    def until(self, words: str) -> None:
        while words not in self.said:
            assert self.read(), self.said

    def end(self) -> str:
        while self.read():
            pass
        assert self.process.wait(30) == 0, self.process.stderr.read()
        return self.said


def epochs_in(text: str) -> list[str]:
    return re.findall(r"^(\S+(?:  subdomain \d+)?  epoch \d+)  ", text, re.MULTILINE)


def test_on_a_pipe_every_epoch_is_a_line_once_and_the_methods_end_it(digits_run, tmp_path):
    run = tmp_path / "copy"
    with Follower(run) as follower:
        follower.until("no run yet; waiting for one to begin")
        run.mkdir()
        shutil.copy(digits_run / "config.toml", run)
        epochs = lines_of(digits_run)
        (run / "metrics.jsonl").write_text("".join(epochs[:3]) + epochs[3][:20], "utf-8")  # the fourth is still being written
        while len(epochs_in(follower.said)) < 3:
            assert follower.read(), follower.said
        finish(run, digits_run)
        said = follower.end()
    told = epochs_in(said)
    assert len(told) == len(set(told)) == len(epochs)
    assert "\x1b" not in said
    for name, method in json.loads((digits_run / "results.json").read_text("utf-8"))["methods"].items():
        assert re.search(rf"^ {name} .*\b{100 * method['test_accuracy']:.1f}\b", said, re.MULTILINE)


def test_on_a_terminal_a_row_is_a_training(unfinished, digits_run):
    with Follower(unfinished, terminal=True) as follower:
        follower.until("no job is at work on it; to go on: mpirun -n N python -m ddcnn run --resume")
        finish(unfinished, digits_run)
        said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", follower.end())
    last = said[said.rindex("training ") :]
    assert re.search(r"^ local  subdomain 3 +2/2 +\d\.\d{3} ", last, re.MULTILINE)
    assert re.search(r"^ transfer +1/1 +\d\.\d{3} ", last, re.MULTILINE)
    assert re.search(r"^ transfer +\d\d\.\d ", last, re.MULTILINE)


def test_the_seeds_of_a_run_are_told_apart(unfinished, digits_run):
    config = (unfinished / "config.toml").read_text("utf-8")
    (unfinished / "config.toml").write_text(config.replace("\nseeds = 1", "\nseeds = 2").replace("\nseed = 0", "\nseed = 5"), "utf-8")
    for seed in (5, 6):
        (unfinished / f"seed-{seed}").mkdir()
        shutil.copy(digits_run / "metrics.jsonl", unfinished / f"seed-{seed}")
    shutil.copy(digits_run / "results.json", unfinished)
    said = on_ranks(None, "report", "--follow", str(unfinished), cwd=unfinished.parent).stdout
    for seed in (5, 6):
        assert len(re.findall(rf"^seed {seed}  .*epoch", said, re.MULTILINE)) == len(lines_of(digits_run))


@pytest.mark.parametrize("terminal", [False, True])
def test_an_interrupt_ends_it_without_a_traceback(unfinished, terminal):
    with Follower(unfinished, terminal) as follower:
        follower.until("no job is at work")
        time.sleep(0.2)
        follower.process.send_signal(signal.SIGINT)
        assert follower.process.wait(30) == 130
        assert "Traceback" not in follower.process.stderr.read()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda run: ["report", "--follow", run, run], "--follow shows one run"),
        (lambda run: ["report", "--follow", f"{run}/metrics.jsonl"], "metrics.jsonl is no folder"),
        (lambda run: ["report", "--folow", run], "unknown option --folow (did you mean --follow?)"),
    ],
)
def test_wrong_calls(unfinished, wrong, words):
    assert words in refusal(on_ranks(None, *wrong(str(unfinished)), cwd=unfinished.parent))


def test_a_curve_has_its_largest_value_highest():
    assert curve([0.0, 7.0, 3.0]) == "▁█▄"
    assert curve([1.0, 1.0]) == "▁▁"
    assert curve([]) == ""


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\n",
        b'{"phase": 3}\n',
        b'{"phase": "local", "subdomain": 0, "epoch": 1, "loss": "x", "accuracy": 0, "test_accuracy": 0, "seconds": 1, "time": 1}\n',
    ],
)
def test_a_file_that_is_no_text_and_a_loss_that_is_no_number_are_named(unfinished, damage):
    with (unfinished / "metrics.jsonl").open("ab") as file:
        file.write(damage)
    assert "metrics.jsonl: damaged" in refusal(on_ranks(None, "report", "--follow", str(unfinished), cwd=unfinished.parent))


# A run that has ended without results


def state(run: Path, **changes) -> None:
    """A lock as another job would leave it."""
    holder = {"host": "elsewhere", "pid": 1, "started": 1, "job": "", "restarts": 0}
    (run / ".lock").write_text(json.dumps(holder | changes), encoding="utf-8")


@pytest.fixture
def impatient(monkeypatch):
    for name, seconds in {"GRACE": 0.2, "BEGINNING": 0.3, "SILENCE": 0.4, "INTERVAL": 0.05, "ASKING": 0.1}.items():
        monkeypatch.setattr(following, name, seconds)

    def stop(*_):
        raise TimeoutError("it has not ended")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def followed(run: Path) -> int:
    return following.follow(RunFolder(run), Console(file=io.StringIO(), width=80))


def test_a_run_that_is_killed_ends_it_and_so_do_its_words(unfinished, impatient, caplog):
    program = (
        "import sys, time; from pathlib import Path; from ddcnn.io.lock import locked\nwith locked(Path(sys.argv[1])):\n time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(unfinished)]) as job:
        while not (unfinished / ".lock").is_file() or not (unfinished / ".lock").stat().st_size:
            time.sleep(0.02)
        beat = (unfinished / ".lock").stat().st_mtime
        vigil = following.Vigil(RunFolder(unfinished))
        end = time.monotonic() + 3.5
        while time.monotonic() < end:
            assert not vigil.is_over()
            time.sleep(0.05)
        assert (unfinished / ".lock").stat().st_mtime > beat  # its signs of life
        job.kill()
        job.wait()
        assert followed(unfinished) == 1
    assert f"process {job.pid} on " in caplog.text and "is gone: killed" in caplog.text and "--resume --output" in caplog.text


def test_it_says_how_the_job_has_ended(unfinished, impatient, caplog):
    folder = RunFolder(unfinished)
    assert followed(unfinished) == 1 and "no job is at work on it" in caplog.text
    for error, words in (
        (Stopped("time limit; go on with --resume"), "time limit; go on with --resume"), (InputError("a: full"), "it has failed: a: full"),
        (ValueError("x"), "it has failed: ValueError: x"), (KeyboardInterrupt(), "it was interrupted"),
    ):  # fmt: skip
        with pytest.raises(type(error)), folder.noting_end():
            raise error
        if isinstance(error, Stopped):
            with pytest.raises(Stopped, match=words):
                followed(unfinished)
        else:
            assert followed(unfinished) == 1 and words in caplog.text
    with folder.noting_end():
        assert folder.how_it_ended() == ("", "")  # a job that begins has not ended


def test_a_job_on_another_host_is_given_up_when_it_is_silent_or_slurm_says_so(unfinished, impatient, monkeypatch, caplog):
    state(unfinished)
    begin = time.monotonic()
    with monkeypatch.context() as patient:
        patient.setattr(following, "GRACE", 60)
        assert followed(unfinished) == 1
    assert time.monotonic() - begin > 0.4 and "no sign of life from process 1 on elsewhere" in caplog.text
    caplog.clear()
    monkeypatch.setattr(following, "SILENCE", 60)
    os.utime(unfinished / ".lock", (1e9, 1e9))  # silent for years when it is looked at
    assert followed(unfinished) == 1 and "no sign of life from process 1 on elsewhere" in caplog.text
    monkeypatch.setattr("ddcnn.io.lock._job_is_running", lambda job: False)
    state(unfinished, job="12")
    assert followed(unfinished) == 1 and "process 1 on elsewhere, SLURM job 12 has ended" in caplog.text


def test_a_folder_without_a_run_or_one_that_goes_ends_it(unfinished, impatient):
    (unfinished / "file").touch()
    with pytest.raises(InputError, match=r"file/run/metrics.jsonl: cannot be read \(Not a directory\)"):
        following.follow(RunFolder(unfinished / "file" / "run"), Console(file=io.StringIO()))
    with pytest.raises(InputError, match=r"no run has begun within"):
        followed(unfinished / "nowhere")
    vigil = following.Vigil(RunFolder(unfinished))
    assert not vigil.is_over()
    shutil.rmtree(unfinished)
    with pytest.raises(InputError, match="the run is gone"):
        vigil.is_over()


@pytest.mark.parametrize(("width", "height"), [(20, 10), (40, 24), (80, 24), (200, 50)])
def test_what_is_followed_fits_a_terminal_and_is_never_cut(unfinished, width, height):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    run = RunFolder(unfinished)
    lines = list(following.read(run))
    console.print(following.view(run, lines, console))
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    training, last = lines[-1]
    for value in (*training.split(), f"{last.loss:.3f}", f"{last.accuracy:.3f}", f"{last.time:.1f}"):
        assert value in shown
    assert "…" not in shown


def test_the_job_of_a_run_notes_its_end(tmp_path):
    with pytest.raises(Stopped), ExitStack() as held:
        folder = take_output(RunSettings(output=tmp_path / "run"), held)
        raise Stopped("time limit")
    assert folder.how_it_ended() == ("stopped", "time limit")

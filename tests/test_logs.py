"""Who says what where: notes on the stdout of rank 0, warnings and errors of any rank on stderr; nothing is printed past that."""

import ast
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from quick import quick

import ddcnn
from ddcnn import __main__ as program
from ddcnn.errors import Stopped
from ddcnn.io.progress import Overall, Progress
from ddcnn.parallel.logs import set_up

SOURCE = Path(ddcnn.__file__).parent
MAY_PRINT = ("experiment", "inference", "scaling", "__main__.py")


@pytest.fixture(autouse=True)
def as_before():
    logger = logging.getLogger("ddcnn")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.parametrize("rank", [0, 3])
def test_notes_are_rank_0s_alone_and_problems_anyones(rank, capsys):
    set_up(1 - rank)  # a later call replaces the handlers
    set_up(rank)
    logger = logging.getLogger("ddcnn.io.any")
    logger.debug("detail")
    logger.info("note: %d", 1)
    for level in (logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(level, "text")
    logger.warning("sample 3", extra={"kind": "skipped"})
    written = capsys.readouterr()
    assert written.out == ("" if rank else "note: 1\n")
    assert written.err == "ddcnn: warning: text\nddcnn: error: text\nddcnn: failed: text\nddcnn: skipped: sample 3\n"


def test_a_stdout_that_cannot_be_written_ends_the_program_in_one_line():
    with open("/dev/full", "w", encoding="utf-8") as full:
        ended = subprocess.run([sys.executable, "-m", "ddcnn", "info"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    said = [line for line in ended.stderr.splitlines() if not line.startswith("Abort(")]  # a line of MPI's own
    assert said == ["ddcnn: error: stdout: cannot be written (No space left on device)"]


def test_a_study_that_was_stopped_says_so(monkeypatch, capsys):
    def stop(*_):
        raise Stopped("a run was stopped")

    monkeypatch.setattr(program, "execute", stop)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["ddcnn", "scaling", "strong"])
    assert program.main() == 75
    assert capsys.readouterr().err == "ddcnn: stopped: a run was stopped\n"


def printing(tree: ast.Module) -> list[int]:
    """Lines that print, or write to stdout or stderr; not what a module does as a program, nor on a console that its caller gives."""
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'")]
    calls = [(node.lineno, ast.unparse(node.func)) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        line for line, function in calls
        if function == "print" or function.endswith((").print", ").out", ".stdout.write", ".stderr.write", ".stdout.buffer.write"))
    ]  # fmt: skip


def test_nothing_below_experiment_prints():
    places = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(MAY_PRINT) and (lines := printing(ast.parse(path.read_text("utf-8")))):
            places[name] = lines
    assert places == {}, "log it: logging.getLogger(__name__).info(…)"


@pytest.mark.parametrize("code", ["print(1)", "sys.stderr.write('x')", "Console().print(table)", "def f():\n    print(1)"])
def test_printing_is_noticed(code):
    assert printing(ast.parse(code))


@pytest.mark.parametrize("code", ["console.print(table)", "if __name__ == '__main__':\n    print(1)", "logger.info('x')"])
def test_a_console_that_is_given_and_a_program_may_print(code):
    assert printing(ast.parse(code)) == []


@pytest.mark.parametrize(("terminal", "style"), [(True, "bar"), (False, "lines")])
def test_progress_is_a_bar_on_a_terminal_and_else_lines(terminal, style, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert Progress("local CNNs", 3, "auto").style == style
    assert Progress("local CNNs", 3, "none").style == "none"


def test_progress_lines_are_logged(caplog):
    caplog.set_level(logging.INFO, "ddcnn")
    with Progress("local CNNs", 3, "lines", unit="epochs") as progress:
        progress.skip(1)
        progress.advance("subdomain 1")
        progress.seconds = 1000
        progress.advance("subdomain 2")
    assert [record.getMessage()[:35] for record in caplog.records] == ["local CNNs  2/3 epochs  subdomain 1"]


def test_a_line_tells_the_time_left_of_the_phase_and_of_the_run_by_the_sizes_of_the_phases(caplog, clock):
    caplog.set_level(logging.INFO, "ddcnn")
    overall = Overall([("local CNNs", 1.0), ("DNN", 0.1), ("global", 4.0)])
    assert overall.text(0.0, 0.0, None) == "phase 0 of 3"
    with Progress("local CNNs", 2, "lines", overall=overall) as progress:
        for now in (10, 20):
            clock.now = now
            progress.advance("a")
    clock.now = 30  # evaluation: 30 s for a size of 1
    with Progress("global", 4, "lines", overall=overall) as progress:  # the second phase is not shown after all
        progress.skip(2)
        clock.now = 50
        progress.advance("b")
        clock.now = 70
        progress.advance("b")
    assert [record.getMessage() for record in caplog.records] == [
        "local CNNs  1/2  a  10 s left  (phase 1 of 3, 92 s left in all)",
        "local CNNs  2/2  a  0 s left  (phase 1 of 3, 82 s left in all)",
        "global  3/4  b  20 s left  (phase 3 of 3, 20 s left in all)",
        "global  4/4  b  0 s left  (phase 3 of 3, 0 s left in all)",
    ]


def test_sizes_that_cannot_be_counted_fail_no_run(world, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr("ddcnn.experiment.phase_sizes.counts", lambda sizes: {})
    caplog.set_level(logging.INFO, "ddcnn")
    options = quick(methods="vote", epochs=1, train_samples=50, grid="1x1", progress="lines", output=tmp_path / "run", partitions=tmp_path)
    assert program.execute(["run", *options], world) == 0
    assert any(
        re.match(r"local CNNs  1/1 epochs  subdomain 0: 1/1  loss \S+  training accuracy .* left$", record.getMessage())
        for record in caplog.records
    )
    assert "its phases cannot be counted (KeyError: 'local')" in caplog.text


def test_before_its_first_piece_a_phase_takes_as_long_as_its_size_says(clock):
    overall = Overall([("DNN", 2.0), ("transfer", 3.0), ("global", 5.0)])
    with Progress("DNN", 1, "none", overall=overall) as progress:
        assert progress.in_all() == "phase 1 of 3"
        clock.now = 4
        progress.advance("")
    with Progress("transfer", 9, "none", overall=overall) as progress:
        assert progress.in_all() == "phase 2 of 3, 16 s left in all"
        progress.skip(6)
        clock.now = 6  # without a piece of its own
    with Progress("global", 1, "none", overall=overall) as progress:
        assert progress.in_all() == "phase 3 of 3, 15 s left in all"


def test_on_a_terminal_there_is_a_line_for_the_run_and_one_for_the_phase_which_stays(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    overall = Overall([("local CNNs", 1.0), ("global", 4.0)])
    with Progress("local CNNs", 2, "bar", overall=overall) as progress:
        progress.advance("subdomain 1")
        progress.bar.refresh()
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
        progress.advance("subdomain 2")
    last = capsys.readouterr().err.rsplit("\x1b[2K", 1)[1]  # what is written after the lines before have been erased
    left = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last).splitlines()
    lines = shown.splitlines()[-3:]
    assert lines[0].startswith("run        phase 1 of 2, ") and lines[0].endswith(" left in all")
    assert "1/2" in lines[1] and lines[2].strip() == "subdomain 1"
    assert left[0].startswith("local CNNs") and "2/2 in 0" in left[0]
    assert [line.strip() for line in left[1:]] == ["subdomain 2"]

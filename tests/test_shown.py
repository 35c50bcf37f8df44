"""Nothing fails after the work is done: whatever names, locales, terminals, closed streams, fonts and disks there are."""

import ast
import csv
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import alone, on_ranks, refusal
from PIL import Image
from quick import quick
from rich.console import Console

from ddcnn.errors import InputError, cause, escaped, file_name
from ddcnn.experiment import recorder
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import load_results
from ddcnn.parallel.launcher import launched_rank
from ddcnn.report import figures, methods_table, run_report
from ddcnn.report.figures import fonts
from ddcnn.report.pages import plain, table
from ddcnn.report.terminal import fitted

ODD = [
    "$x$", "a$b", "back\\$", f"{'$' * 15}z", "new\nline", "tab\tx", "\x1b[31mred", "pipe|x", "<b>", "x" * 250, "👨‍👩‍👧", "עברית\u202e", " ",
    os.fsdecode(b"caf\xe9"), "猫", "[x](y)",
]  # fmt: skip
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
TINY = quick(train_samples=None, epochs=1, dnn_epochs=1, batch_size=16, methods="vote,dnn", width=4)


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory) -> Path:
    """A run on classes of any name, in an ASCII locale, without a home, with a backend that is none, whose reader goes away."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("odd")
    for name in ODD:
        (folder / "set" / name).mkdir(parents=True)
        for k in range(6):
            path = folder / "set" / name / f"{k}{os.fsdecode(bytes([0xE9]))}.png"
            Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path, format="PNG")
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"), "/proc/nowhere")
    environment = os.environ | ASCII_LOCALE | nowhere | {"MPLBACKEND": "nonsense"}
    options = [option for option in TINY if option not in ("--no-figures", "--progress=none")]
    command = [sys.executable, "-m", "ddcnn", "run", *options, "--data=set", "--output=run"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout.readline()
        run.stdout.close()
        said = run.stderr.read().decode()
    assert (run.returncode, said) == (0, "")
    return folder / "run"


@pytest.fixture
def bare(odd_run, tmp_path) -> Path:
    """A finished run without a report."""
    shutil.copytree(odd_run, tmp_path / "copy", ignore=shutil.ignore_patterns("report.*", "figures", "checkpoints"))
    return tmp_path / "copy"


# Names


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("é猫", "é猫"), ("caf\udce9", "caf\\xe9"), ("\ud800", "\\ud800"), ("\x1b[1m\0\n", "\\x1b[1m\\x00\\n"), ("a\u202eb", "a\\u202eb"),
        ("👨‍👩", "👨‍👩"), ("\u2028", "\\u2028"), ("می‌خواهم", "می‌خواهم"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_escaped(name, shown):
    assert escaped(name) == shown
    shown.encode()


def test_the_name_of_a_file_is_the_same_text_in_every_locale():
    program = (
        "import os; from ddcnn.errors import file_name; "
        "print(*(ascii(file_name(os.fsdecode(name))) for name in (b'caf\\xe9', b'\\xc3\\xa9')))"
    )
    found = [
        subprocess.run([sys.executable, "-c", program], env=os.environ | locale, capture_output=True, encoding="utf-8", check=True).stdout
        for locale in (ASCII_LOCALE, {"LC_ALL": "C.UTF-8"})
    ]
    assert found[0] == found[1] == f"{f'caf{chr(92)}xe9'!a} {'é'!a}\n"
    assert file_name("\ud800") == "\\ud800"


def test_a_table_of_a_page_holds_any_name():
    text = table(("class", "n"), [(plain(name), 1) for name in [*ODD, "", "\u2028", "\udce9"]])
    text.encode()
    assert len(text.splitlines()) == len(ODD) + 5
    assert all(len(re.split(r"(?<!\\)\|", line)) == 4 for line in text.splitlines())
    assert not any(character in text for character in "\x1b\u202e")


def test_classes_of_the_same_name_are_told_apart():
    from ddcnn.data.sources.base import in_memory

    images, labels = np.zeros((3, 4, 4, 1), np.uint8), np.arange(3)
    source = in_memory("x", {split: (images, labels) for split in ("train", "test")}, ["crane", "b", "crane"])
    assert source.class_names == ("crane", "b", "crane (2)")


@pytest.mark.parametrize("arguments", [["run", "--data", b"caf\xe9"], ["report", b"\xff"], ["run", b"--\xe9"], [b"\xe9"]])
def test_an_argument_that_is_not_utf_8_is_refused_in_a_line(tmp_path, arguments):
    wrong = os.fsdecode(arguments[-1])
    assert f"{escaped(wrong)}: not in UTF-8" in refusal(on_ranks(None, *map(os.fsdecode, arguments), cwd=tmp_path))


def test_names_are_the_same_in_all_files_of_a_run_and_of_predictions(odd_run, tmp_path):
    folder = RunFolder(odd_run)
    names = json.loads(folder.results.read_text("utf-8"))["data"]["class_names"]
    assert set(names) == {file_name(name) for name in ODD}
    page, text = folder.html.read_text("utf-8"), folder.report.read_text("utf-8")
    assert not any(character in page + text for character in "\x1b\u202e\udce9")
    assert text.count("](figures/") == len(list(folder.figures.iterdir())) >= 8

    for suffix in ("csv", "h5"):
        arguments = ("predict", odd_run, odd_run.parent / "set", f"--output=p.{suffix}", "--split=all", "--threads=1", "--method=dnn")
        assert on_ranks(None, *arguments, cwd=tmp_path).returncode == 0
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == set(names)
    assert {f"p({name})" for name in names} < set(rows[0])
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["samples"].asstr()[...].tolist() == [row["sample"] for row in rows]
        assert json.loads(file.attrs["class_names"]) == names
    assert all(row["sample"].endswith("\\xe9.png") for row in rows)


# Streams


def test_a_command_goes_on_whose_streams_are_closed_or_full(tmp_path, write_arrays, random_arrays):
    write_arrays(tmp_path / "a.npz", **random_arrays((8, 8)))
    commands = {"run >&- 2>&- <&-": [*TINY, "--data=a.npz", "--output=run"], "partition >/dev/full": ["a.npz", "--output=set.h5"]}
    for command, arguments in commands.items():
        shell = ["sh", "-c", f'exec "$0" -m ddcnn {command.replace(" ", f" {chr(34)}$@{chr(34)} ", 1)}', sys.executable, *arguments]
        done = subprocess.run(shell, cwd=tmp_path, capture_output=True, encoding="utf-8")
        warning = "ddcnn: warning: stdout: cannot be written (No space left on device)\n" * (command[0] == "p")
        assert (done.returncode, done.stderr) == (0, warning)
    assert RunFolder(tmp_path / "run").is_finished and (tmp_path / "set.h5").is_file()


def test_info_tells_what_every_rank_has_got(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    told = on_ranks(3, "info", cwd=tmp_path, OMP_NUM_THREADS="2")
    assert (told.returncode, told.stderr) == (0, "")
    assert "\nranks   3 on 1 node\n\n rank  node " in told.stdout
    rank, node, number, which, threads, device = told.stdout.splitlines()[-1].split()
    assert (rank, node, number, threads, device) == ("0-2", socket.gethostname(), str(len(cores)), "2", "CPU")
    assert which in (f"({cores[0]}-{cores[-1]})", f"({cores[0]})") or "," in which
    assert not re.search("cores per process|CPU precision", told.stdout)


@pytest.mark.parametrize(("numbers", "words"), [([0], "0"), ([0, 1], "0-1"), ([0, 1, 2, 8, 10, 11], "0-2,8,10-11"), ([], "")])
def test_cores_are_told_in_ranges(numbers, words):
    from ddcnn.parallel.environment import ranges

    assert ranges(numbers) == words


STREAMS = "from ddcnn.parallel.logs import open_streams, lost_stdout; import os, sys; open_streams(); "


@pytest.mark.parametrize(
    ("shell", "program", "said"),
    [
        ("PYTHONIOENCODING=ascii", "print('a–b ± é \\udce9')", "a-b +- \\xe9 \\udce9\n"),
        ("PYTHONIOENCODING=latin-1", "print('é' == 'é', '猫')", "True \\u732b\n"),
        ("LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0", "print('\\u2581\\u2588')", "_#\n"),
        ("COLUMNS=0 LINES=0", "from rich.console import Console; Console().print('shown')", "shown\n"),
        ("", "os.set_blocking(1, False); print(len('x' * 300000), 'x' * 300000)", "300000 " + "x" * 300000 + "\n"),
    ],
)
def test_streams_escape_what_they_cannot_show_and_wait_for_a_full_pipe(shell, program, said):
    command = f'sleep 0.2; {shell} {sys.executable} -c "$1" | (sleep 0.7; cat)'
    done = subprocess.run(["sh", "-c", command, "sh", STREAMS + program], capture_output=True, encoding="utf-8")
    assert (done.stdout, done.stderr) == (said, "")


def test_no_file_gets_the_number_of_a_closed_stream():
    program = STREAMS + "file = open(os.devnull); print(1); sys.exit(10 * bool(lost_stdout()) + (file.fileno() < 3))"
    assert subprocess.run(["sh", "-c", f"{sys.executable} -c '{program}' >&- 2>&- <&-"]).returncode == 0


@pytest.mark.parametrize("arguments", [["info"], ["--help"], ["run", "--help"], ["--version"]])
def test_a_command_whose_result_is_what_it_prints_fails_on_a_full_disk_and_not_with_its_reader(arguments):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "ddcnn", *arguments], stdout=full, stderr=subprocess.PIPE, encoding="utf-8")
    assert "stdout: cannot be written (No space left on device)" in refusal(done)
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "wb") as gone:
        done = subprocess.run([sys.executable, "-m", "ddcnn", *arguments], stdout=gone, stderr=subprocess.PIPE, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_rank_counts_only_below_a_launcher(monkeypatch, tmp_path):
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        with monkeypatch.context() as left_over:
            left_over.setenv(name, "3")
            left_over.setattr("ddcnn.parallel.launcher._has_launcher", lambda: False)
            assert launched_rank() == 0
            left_over.setattr("ddcnn.parallel.launcher._has_launcher", lambda: True)
            assert launched_rank() == 3
    done = alone("report", str(tmp_path), cwd=tmp_path, OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="1")
    assert "no results.json in it" in refusal(done)


# Tables


@pytest.mark.parametrize("width", [1, 20, 40, 60, 80, 1000])
def test_names_and_numbers_are_never_cut(odd_run, width):
    results = load_results(RunFolder(odd_run))
    console = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
    methods_table.show_methods([results], console)
    shown = console.file.getvalue()
    for row in methods_table.method_rows([results]):
        for name in methods_table.SHOWN:
            value = row[name]
            assert name in shown and re.search(rf"(?<!\S){re.escape(value)} ", shown)
    if width >= 40:
        assert max(map(len, shown.splitlines())) <= width


@given(
    st.lists(st.lists(st.text("ab猫", max_size=12), min_size=3, max_size=3), min_size=1, max_size=3),
    st.integers(1, 60),
)
def test_a_table_is_divided_by_columns_and_fits_where_two_columns_do(rows, width):
    from rich.cells import cell_len

    header, *cells = rows
    lines = [line.plain for line in fitted(header, cells, width)]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    assert max(map(cell_len, lines)) <= max(width, 4 + widths[0] + max(widths[1:]))
    if width > sum(widths) + 6:
        assert len(lines) == len(rows)
    for row in rows:
        assert all(any(cell in line for line in lines) for cell in row)


# Figures


@given(st.text("$\\{a^_\n ", max_size=30), st.integers(1, 20))
def test_a_label_is_short_and_no_formula(name, most):
    from matplotlib.cbook import is_math_text

    label = fonts.label(name, most)
    assert not is_math_text(label)
    shown = label.replace(r"\$", "$")
    assert len(shown) <= max(most, 1) and "\n" not in shown
    if len(" ".join(name.split())) in range(1, most + 1):
        assert shown == " ".join(name.split())


def test_a_character_is_drawn_with_a_font_that_has_it_and_else_is_its_code(tmp_path, recwarn):
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib.font_manager import fontManager

    assert fonts.label("猫\U000f1234x", 30) in (
        "\\u732b\\U000f1234x",
        "猫\\U000f1234x",
    )  # a private character; for 猫 there may be a font here
    pen = TTGlyphPen(None)
    for place in ((0, 0), (0, 800), (600, 800)):
        (pen.lineTo if place[1] else pen.moveTo)(place)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({0xF1234: "cat"})
    builder.setupGlyf({name: pen.glyph() for name in (".notdef", "cat")})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", "cat"), (700, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Ddcnn Test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cat.ttf")
    before = list(fontManager.ttflist)
    try:
        fontManager.addfont(tmp_path / "cat.ttf")
        fonts.fallbacks.cache_clear()
        assert fonts.label("\U000f1234x", 30) == "\U000f1234x"
        assert fonts.fallbacks(frozenset("\U000f1234"))[0] == ("Ddcnn Test",)
        drawn = figures.draw(tmp_path / "figures" / "a.png", lambda: titled("\U000f1234"), ["\U000f1234"])
        assert drawn and not recwarn.list
        assert figures.draw(tmp_path / "figures" / "b.png", lambda: titled("\U000f1234"))  # with a box
        assert (tmp_path / "figures" / "a.png").read_bytes() != (tmp_path / "figures" / "b.png").read_bytes()
    finally:
        fontManager.ttflist[:] = before
        fonts.fallbacks.cache_clear()
        fontManager._findfont_cached.cache_clear()


def titled(text: str):
    from matplotlib.figure import Figure

    (figure := Figure()).subplots().set_title(text)
    return figure


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_what_cannot_be_drawn_is_a_line_and_left_out(bare, monkeypatch, caplog):
    def broken():
        raise RuntimeError("no\nfont")

    (bare / "figures" / "full.png").mkdir(parents=True)
    run_report.draw_figures(RunFolder(bare), {"bad": broken, "full": lambda: titled("b"), "good": lambda: titled("a")})
    assert [path.name for path in (bare / "figures").iterdir() if path.is_file()] == ["good.png"]
    said = [f"{bare}/figures/bad.png: not drawn (RuntimeError: no font)", f"{bare}/figures/full.png: cannot be written (Is a directory)"]
    assert warnings_in(caplog) == said
    caplog.clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run_report.write_report(RunFolder(bare))
    assert len(said := warnings_in(caplog)) == 1 and said[0].startswith(f"{bare}/figures: not drawn (ModuleNotFoundError")
    assert "](figures/" not in (bare / "report.md").read_text("utf-8")


def test_figures_are_the_same_whatever_the_users_matplotlibrc_says(tmp_path):
    from matplotlib import rc_context

    with rc_context({"text.usetex": True, "font.family": ["Nosuch"], "figure.dpi": 300, "axes.facecolor": "red"}):
        assert figures.draw(tmp_path / "a.png", lambda: titled("a_b"))
    assert figures.draw(tmp_path / "b.png", lambda: titled("a_b"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# What adorns results


def test_a_page_that_has_no_room_leaves_the_report(bare, monkeypatch):
    def full(path, text, write=run_report.write_text):
        if path.suffix == ".html":
            raise InputError(f"{path}: cannot be written")
        write(path, text)

    monkeypatch.setattr(run_report, "write_text", full)
    with pytest.raises(InputError, match=r"report\.html"):
        run_report.write_report(RunFolder(bare), draw=False)
    assert (bare / "report.md").is_file()


@pytest.mark.parametrize("error", [InputError("a: full"), RuntimeError("no\nroom"), MemoryError()])
def test_an_error_in_the_report_of_a_run_is_a_line(bare, error, caplog):
    def broken():
        raise error

    recorder.try_report(RunFolder(bare), broken)
    assert warnings_in(caplog) == [f"{cause(error)}; the run is complete but for its report: python -m ddcnn report {bare}"]
    assert "\n" not in cause(error)
    done = []
    with pytest.raises(type(error)):
        recorder.try_all(broken, lambda: done.append(1))
    assert done == [1]


def test_a_board_that_cannot_be_written_is_a_line_and_the_training_goes_on(tmp_path, monkeypatch, caplog):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="pip install 'ddcnn[tensorboard]'")
    from ddcnn.io.results_schema import EpochLine
    from ddcnn.io.tensorboard import Board

    values = {"phase": "dnn", "subdomain": None, "loss": 1.0, "accuracy": 1.0, "test_accuracy": None, "seconds": 1.0, "time": 1.0}
    board = Board(RunFolder(tmp_path), lambda: 1.0)
    board.add([EpochLine(epoch=1, **values)])
    monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalar", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space")))
    for epoch in (2, 3):
        board.add([EpochLine(epoch=epoch, **values)])
    board.close()
    assert warnings_in(caplog) == [f"{tmp_path}/tensorboard: not written any further (OSError: [Errno 28] No space)"]


# Files

PLACES = ("src", "benchmarks", "tests")
ROOT = Path(__file__).parent.parent


def without_encoding(tree: ast.AST) -> list[int]:
    """Lines that open, read or write a text without saying its encoding."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = {word.arg: word.value for word in call.keywords}
        constants = [argument.value for argument in [*call.args, *given.values()] if isinstance(argument, ast.Constant)]
        mode = next((value for value in constants if isinstance(value, str) and re.fullmatch("[rwax][bt+]*", value)), "")
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        opens = owner not in ("os", "archive") and not owner[:1].isupper() and "b" not in mode and (mode or not owner or not call.args)
        written = isinstance(call.func, ast.Attribute) and len(call.args) < 2
        of_text = {"read_text": not call.args, "write_text": written, "open": opens, "TextIOWrapper": True}
        if of_text.get(name) and "encoding" not in given:
            found.append(call.lineno)
    return found


@pytest.mark.parametrize("place", PLACES)
def test_all_text_says_its_encoding(place):
    found = {str(path): lines for path in (ROOT / place).rglob("*.py") if (lines := without_encoding(ast.parse(path.read_text("utf-8"))))}
    assert {path: lines for path, lines in found.items() if "data/partition.py" not in path} == {}  # which opens sets, not texts


@pytest.mark.parametrize("code", ["open(x)", "open(x, 'w')", "p.open()", "p.open('a')", "p.read_text()", "p.write_text(t)"])
def test_a_text_without_an_encoding_is_noticed(code):
    assert without_encoding(ast.parse(code))
    assert not without_encoding(ast.parse(f"{code[:-1]}{'' if code[-2] == '(' else ', '}encoding='utf-8')"))
    assert not without_encoding(
        ast.parse("open(x, 'rb'); p.open('wb'); os.open(p, 1); archive.open(p, 'w'); Image.open(p); p.read_text('utf-8'); write_text(p, t)")
    )

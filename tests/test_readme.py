"""The README and the pages of docs/ are true: their commands run, or are at least such as the program takes, and their options exist.

Run, on small stand-ins for the data, with few epochs and narrow networks: ``run``, ``partition``, ``predict``, ``export``, ``report``,
``info``, ``--help``, and the Python blocks (that of the API in tests/runs). The commands of a page run one after the other in a
folder of its own, which has what the page takes for granted: data, and runs that other pages tell how to make. Only checked, as
everything is checked before it starts: ``scaling`` (tests/runs has studies that run), jobs/, benchmarks/, and what installs or tests.
"""

import configparser
import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from readme import ROOT, Command, blocks, commands, prose
from scans import write_nifti, write_series, write_stack

from ddcnn.__main__ import COMMANDS as OURS
from ddcnn.__main__ import execute
from ddcnn.networks.torchvision_compat import import_torchvision

DRIVER = Path(__file__).with_name("readme_commands.py")
SMALL = {"cifar10": "synthetic:32x32x3x10x60", "fashion-mnist": "synthetic:28x28x10x60"}  # data sets
SHRUNK = {
    "--train-samples": "50",
    "--validation-samples": "5",
    "--test-samples": "10",
    "--image-size": "32",
    "--volume-size": "16",
    "--seeds": "2",
}  # if they are there
SIZES = ("--image-size", "--volume-size")
QUICK = ("--epochs=1", "--transfer-epochs=1", "--dnn-epochs=1", "--threads=1", "--progress=none", "--no-figures", "--no-download")
FOREIGN = {
    "--build", "--ntasks", "--mpi", "--strict", "--name", "--no-name", "--cpus-per-task", "--oversubscribe", "--time", "--logdir",
    "--signal", "--gpus-per-task", "--kill-on-bad-exit", "--open-mode", "--requeue", "--no-binary", "--force-reinstall",
    "--gpu-bind", "--gpus-per-node", "--ntasks-per-node",
}  # options of other programs in the text, and what stands for any name  # fmt: skip
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
GRANTED = {
    "runs/first": ["run"],
    "runs/cifar10": ["run", "--data", "cifar10", "--overlap", "4", "--methods", "vote,average,dnn,transfer"],
}  # finished runs that pages start from without making them; others are as runs/first
COMMANDS = commands()
OF_DDCNN = [command for command in COMMANDS if command.arguments is not None]
OTHERS = [command for command in COMMANDS if command.arguments is None]


def key(command: Command) -> str:
    return f"{command.page}: {command.text}"


def small(source: str) -> str:
    """A stand-in for --data."""
    name, _, numbers = source.partition(":")
    if name == "scattered-digits":
        return f"{name}:64x64x40"
    if name == "synthetic":
        *shape, classes, samples = map(int, numbers.split("x"))
        return f"{name}:{'x'.join(map(str, [*(min(size, 32) for size in shape), min(classes, 10), min(samples, 60)]))}"
    return SMALL.get(source, source)


def shrunk(arguments: list[str]) -> list[str]:
    """Of ``run``, with options behind that win: as small as can be."""
    arguments = [small(word) if before in ("--data", "partition") else word for before, word in pairwise(["", *arguments])]
    if arguments[:1] == ["partition"]:
        return [*arguments, *(word for name in SIZES if name in arguments for word in (name, SHRUNK[name]))]
    if arguments[:1] not in ([], ["run"]) or {"--resume", "--help"} & set(arguments):
        return arguments
    width = [] if "--weights" in arguments else ["--width", "16" if "width" in arguments else "4"]  # thin networks have a multiple of 4
    smaller = [word for name, value in SHRUNK.items() if name in arguments for word in (name, value)]
    return [*(arguments or ["run"]), *smaller, *width, *QUICK]


OF_PYTHON = {
    "docs/how-to/predict.md": {"python": "load.py"},
    "docs/how-to/networks.md": {"ranks": 2, "arguments": shrunk(["run", "--network", "mine:small", "--output", "runs/mine"])},
}  # what is done with the Python blocks of a page, behind its commands


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> Path:
    """A folder with the data that the pages take for granted."""
    folder, random = tmp_path_factory.mktemp("readme"), np.random.default_rng(0)

    def pixels(*shape: int) -> np.ndarray:
        return random.integers(0, 256, shape, dtype=np.uint8)

    for name in ("photos/daisy", "photos/rose", "flower_photos/daisy", "flower_photos/rose", "new-photos"):
        (folder / name).mkdir(parents=True)
        for k in range(10):
            Image.fromarray(pixels(40 + k, 50, 3)).save(folder / name / f"{k}.jpg")
    for name in ("scans.npz", "adrenalmnist3d_64.npz"):
        arrays = {
            "x_train": pixels(16, 16, 16, 16),
            "x_test": pixels(6, 16, 16, 16),
            "y_train": np.arange(16) % 2,
            "y_test": np.arange(6) % 2,
        }
        np.savez(folder / name, **arrays)
    (folder / "ct").mkdir()
    for k in range(8):
        write_nifti(folder / "ct" / f"{k}.nii.gz", pixels(9, 9, 9).astype(np.int16))
        write_series(folder / "ct" / f"series{k}", pixels(4, 9, 9))
    write_nifti(folder / "new.nii.gz", pixels(9, 9, 9).astype(np.int16))
    table = "".join(f"{k}.nii.gz,{k % 2}\nseries{k},{k % 2}\n" for k in range(8))
    (folder / "ct" / "labels.csv").write_text(f"file,label\n{table}", "utf-8")
    for k in range(16):
        write_stack(folder / "stacks" / f"class{k % 2}" / f"{k}.tif", pixels(5, 9, 9))
    torch.save(import_torchvision().models.resnet18().state_dict(), folder / "resnet18.pth")
    (folder / "scans.toml").write_text("batch-size = 8\n", "utf-8")
    np.savez(folder / "new.npz", x=pixels(5, 8, 8))
    Image.fromarray(pixels(8, 8)).save(folder / "scan.png")
    (folder / "load.py").write_text(blocks("python", "Load in Python")[0], "utf-8")
    (folder / "mine.py").write_text(blocks("python", "Your own network")[0], "utf-8")
    return folder


def taken_for_granted(page: list[Command]) -> dict[str, str]:
    """The runs that commands of a page start from and none before makes, each with that of GRANTED which stands for it."""
    made, needed = set(), {}
    for arguments in (command.arguments or [] for command in page):
        after = dict(pairwise(arguments))
        inputs = {after.get("--start-from"), after.get("--output") if "--resume" in arguments else None}
        if arguments[:1] in (["predict"], ["export"], ["report"]):
            inputs |= {word for word in arguments if word.startswith("runs/") and word != after.get("--output")}
        for name in inputs - made - {None}:
            needed[name] = name if name in GRANTED else "runs/first"
        made.add(after.get("--output"))
    return needed


@pytest.fixture(scope="module")
def done(sandbox, tmp_path_factory) -> dict[str, tuple[int, str, float]]:
    """Exit code, words and seconds of every command of ddcnn, by page and text, and of the Python blocks of two pages.

    A command that stands on several pages with the same words is done on the first of them; the others get what it has made.
    """
    base = tmp_path_factory.mktemp("granted")
    given: dict[str, dict] = {}
    first: dict[tuple[str, ...], str] = {}  # the names of what was given, by the words of a command
    twins: dict[str, str] = {}
    for name, arguments in GRANTED.items():
        words = (*arguments, "--output", name)
        given[name] = {"folder": str(base), "ranks": 1, "arguments": shrunk([*words])}
        first[words] = name
    for page in dict.fromkeys(command.page for command in OF_DDCNN):
        folder = tmp_path_factory.mktemp("page")
        shutil.copytree(sandbox, folder, dirs_exist_ok=True)
        of_page = {key(command): command for command in OF_DDCNN if command.page == page}
        for name, stand_in in taken_for_granted([*of_page.values()]).items():
            given[f"{page} needs {name}"] = {"folder": str(folder), "copy": str(base / stand_in), "to": name}
        for name, command in of_page.items():
            words = tuple(command.arguments or ())
            twin = first.setdefault(words, name)
            output = dict(pairwise(words)).get("--output")
            if twin == name or words[:1] in (("predict",), ("partition",)) or "--resume" in words:
                given[name] = {"folder": str(folder), "ranks": command.ranks, "arguments": shrunk([*words])}
                continue
            twins[name] = twin
            if output and words[0] == "run":
                given[f"{name}, again"] = {"folder": str(folder), "copy": str(Path(given[twin]["folder"], output)), "to": output}
        if page in OF_PYTHON:
            given[f"{page}: Python"] = {"folder": str(folder)} | OF_PYTHON[page]
    finished = subprocess.run(
        [sys.executable, DRIVER], cwd=sandbox, input=json.dumps([*given.values()]), capture_output=True, text=True, timeout=1800
    )
    assert finished.returncode == 0, finished.stderr
    found = dict(zip(given, json.loads(finished.stdout), strict=True))
    return found | {name: found[twin] for name, twin in twins.items()}


@pytest.mark.parametrize("name", [*dict.fromkeys(map(key, OF_DDCNN)), *(f"{page}: Python" for page in OF_PYTHON)])
def test_command_of_ddcnn(done, name):
    code, said, _ = done[name]
    if "onnx" in name and find_spec("onnxscript") is None:
        pytest.skip("onnxscript is not installed")
    assert code == 0, said


@pytest.mark.parametrize("command", OTHERS, ids=map(key, OTHERS))
def test_other_command(command, sandbox):
    for prefix, check in CHECKS.items():
        if command.words[: len(prefix.split())] == prefix.split():
            check(command)
            return
    pytest.fail("nobody knows whether this works: add a check")


def test_options_in_the_text_exist():
    named = set(OPTION.findall(prose()))
    assert len(named) > 50
    assert sorted(named - known_options() - FOREIGN) == []


def known_options() -> set[str]:
    """Those of all commands, from their help, and those of the benchmarks."""
    shown = io.StringIO()
    for command in OURS:
        with redirect_stdout(shown), suppress(SystemExit):
            execute([*command.name.split(), "--help"], None)
    programs = "".join(path.read_text("utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    return set(OPTION.findall(shown.getvalue() + programs))


def nothing(command: Command) -> None:
    """Of other programs, with nothing of ours."""


def extras(command: Command) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for names in re.findall(r"\.\[(.*)\]", command.text):
        assert set(names.split(",")) <= set(setup["options.extras_require"])


def suite(command: Command) -> None:
    words = command.words[command.words.index("pytest") + 1 :]
    folder = ROOT / words[0]
    assert folder.exists()
    if "-k" in words:
        files = folder.glob("test_*.py")
        assert any(re.search(rf"def test_\w*{words[words.index('-k') + 1]}", file.read_text("utf-8")) for file in files)


def target(command: Command) -> None:
    name = command.words[command.words.index("--target") + 1]
    assert f"add_custom_target({name}" in (ROOT / "CMakeLists.txt").read_text("utf-8")


def job(command: Command) -> None:
    """A script in jobs/, with variables that are in it and options of ``run``."""
    place = next(k for k, word in enumerate(command.words) if word.startswith("jobs/"))
    text = (ROOT / command.words[place]).read_text("utf-8")
    assert all(f"${{{name}" in text for name in command.variables)
    assert set(OPTION.findall(" ".join(command.words[place + 1 :]))) <= known_options()


def program(command: Command) -> None:
    """A line of Python; what it would download is not."""
    compile(command.words[2], "README", "exec")


def benchmark(command: Command) -> None:
    """A program in benchmarks/, with options that are in it and, after ``--`` or within a value, options of ddcnn."""
    name, *words = command.words[1:]
    own = words[: words.index("--")] if "--" in words else words
    text = (ROOT / name).read_text("utf-8")
    assert all(f'"{word}"' in text for word in own if word.startswith("--"))
    values = [word for word in own if not word.startswith("--")]
    assert set(OPTION.findall(" ".join([*values, *words[len(own) :]]))) <= known_options()


CHECKS = {
    "python3 -m venv": nothing, "source": nothing, "apt-get install": nothing, "ctest": nothing, "ruff": nothing, "mypy": nothing,
    "ulimit -v": nothing,
    "mkdocs": nothing, "cd": nothing, "git": nothing, "module": nothing, "export": nothing, "kill": nothing, "tensorboard": nothing,
    "cmake -B": nothing, "cmake --build": target, "pip install": extras, "pytest": suite, "python -m pytest": suite,
    "python -c": program, "python": benchmark, "bash": job, "sbatch": job,
}  # by how they begin  # fmt: skip

"""The README and the pages of benchmarks/ are true: their commands run, or are at least such as the program takes, and their options exist.

Run, on small stand-ins for the data, with few epochs and narrow networks: ``run``, ``partition``, ``predict``, ``export``, ``report``,
``info``, ``--help``, and the Python blocks (that of the API in tests/runs). Only checked, as everything is checked before it starts:
``scaling`` (tests/runs has studies that run), jobs/, benchmarks/, and what installs or tests.
"""

import configparser
import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
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
SMALL = {
    "--data": {
        "cifar10": "synthetic:32x32x3x10x60", "fashion-mnist": "synthetic:28x28x10x60",
        "scattered-digits:128x128x6000": "scattered-digits:64x64x40",
        "synthetic:128x128x3x10x160000": "synthetic:64x64x3x10x60", "synthetic:32x32x1x1000x120000": "synthetic:32x32x1x10x60",
    }
}  # fmt: skip
SHRUNK = {
    "--train-samples": "50",
    "--validation-samples": "5",
    "--test-samples": "10",
    "--image-size": "32",
    "--volume-size": "16",
    "--seeds": "2",
}  # if they are there
QUICK = ("--epochs=1", "--transfer-epochs=1", "--dnn-epochs=1", "--threads=1", "--progress=none", "--no-figures", "--no-download")
FOREIGN = {
    "--build", "--ntasks", "--mpi", "--cpus-per-task", "--oversubscribe", "--time", "--logdir", "--signal", 
}  # options of other programs in the text  # fmt: skip
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
COMMANDS = commands()
OF_DDCNN = [command for command in COMMANDS if command.arguments is not None]
OTHERS = [command for command in COMMANDS if command.arguments is None]


def shrunk(arguments: list[str]) -> list[str]:
    """Of ``run``, with options behind that win: as small as can be."""
    arguments = [SMALL.get(before, {}).get(word, word) for before, word in zip(["", *arguments], arguments, strict=False)]
    if arguments[:1] not in ([], ["run"]) or {"--resume", "--help"} & set(arguments):
        return arguments
    width = [] if "--weights" in arguments else ["--width", "16" if "width" in arguments else "4"]  # thin networks have a multiple of 4
    smaller = [word for name, value in SHRUNK.items() if name in arguments for word in (name, value)]
    return [*(arguments or ["run"]), *smaller, *width, *QUICK]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> Path:
    """A folder with everything that the README's commands take for granted."""
    folder, random = tmp_path_factory.mktemp("readme"), np.random.default_rng(0)

    def pixels(*shape: int) -> np.ndarray:
        return random.integers(0, 256, shape, dtype=np.uint8)

    for name in ("photos", "flower_photos"):
        for kind in ("daisy", "rose"):
            (folder / name / kind).mkdir(parents=True)
            for k in range(10):
                Image.fromarray(pixels(40 + k, 50, 3)).save(folder / name / kind / f"{k}.jpg")
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
    table = "".join(f"{k}.nii.gz,{k % 2}\nseries{k},{k % 2}\n" for k in range(8))
    (folder / "ct" / "labels.csv").write_text(f"file,label\n{table}", "utf-8")
    for k in range(16):
        write_stack(folder / "stacks" / f"class{k % 2}" / f"{k}.tif", pixels(5, 9, 9))
    torch.save(import_torchvision().models.resnet18().state_dict(), folder / "resnet18.pth")
    (folder / "scans.toml").write_text("batch-size = 8\n", "utf-8")
    np.savez(folder / "new.npz", x=pixels(5, 8, 8))
    Image.fromarray(pixels(8, 8)).save(folder / "scan.png")
    (folder / "load.py").write_text(blocks("python", "Using a finished run")[0], "utf-8")
    (folder / "mine.py").write_text(next(block for block in blocks("python", "Networks")), "utf-8")
    return folder


@pytest.fixture(scope="module")
def done(sandbox) -> dict[str, tuple[int, str]]:
    """Exit code and words of every command of ddcnn, in the order of the README, and of the Python block that loads a run."""
    given: list[dict] = [{"ranks": command.ranks, "arguments": shrunk(command.arguments or [])} for command in OF_DDCNN]
    names = [command.text for command in OF_DDCNN]
    for name, further in {
        "load": {"python": "load.py"},
        "mine": {"ranks": 2, "arguments": shrunk(["run", "--network", "mine:small", "--output", "runs/mine"])},
    }.items():
        names.append(name)
        given.append(further)
    finished = subprocess.run([sys.executable, DRIVER], cwd=sandbox, input=json.dumps(given), capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    return dict(zip(names, json.loads(finished.stdout), strict=True))


@pytest.mark.parametrize("name", [*dict.fromkeys(command.text for command in OF_DDCNN), "load", "mine"])
def test_command_of_ddcnn(done, name):
    code, said = done[name]
    if "onnx" in name and find_spec("onnxscript") is None:
        pytest.skip("onnxscript is not installed")
    assert code == 0, said


@pytest.mark.parametrize("command", OTHERS, ids=[command.text for command in OTHERS])
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
    "cmake -B": nothing, "cmake --build": target, "pip install": extras, "pytest": suite, "python -m pytest": suite,
    "python -c": program, "python": benchmark, "bash": job, "sbatch": job,
}  # by how they begin  # fmt: skip

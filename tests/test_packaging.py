"""What is built of this checkout is whole: source archive, wheel, citation, constraints.

The version is changed in the one place where it stands, so that whatever shows the changed one was made of the wheel and of nothing else.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from quick import quick

import ddcnn

ROOT = Path(__file__).parent.parent
CHANGED = f"{ddcnn.__version__}+wheel"
NOT_OURS = (".*", "build", "dist", "runs", "shared", "__pycache__", "*.egg-info")  # an egg-info would name what was packed before
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
LIBRARIES = sorted(Path(sys.prefix, "lib").glob("libmpi.so.*"))  # of the extra mpich, which mpi4py seeks in its own environment alone
MPI = {"MPI4PY_LIBMPI": str(LIBRARIES[0])} if LIBRARIES else {}


@dataclass(frozen=True)
class Built:
    """Paths of an archive and a wheel, and the names of the files in them, relative to their top."""

    archive: Path
    wheel: Path
    in_archive: set[str]
    in_wheel: set[str]
    metadata: Message


def backend(call: str, source: Path) -> None:
    """Calls setuptools as pip does, without the network: the build requirement is there, see the extra ``test``."""
    program = f"import setuptools.build_meta as backend; backend.{call}"
    finished = subprocess.run([sys.executable, "-c", program], cwd=source, env=CLEAN, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """The source archive, and the wheel that is built of what is in it."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*NOT_OURS))
    place = folder / "checkout" / "src" / "ddcnn" / "__init__.py"
    text = place.read_text("utf-8")
    assert text.count(f'"{ddcnn.__version__}"') == 1
    place.write_text(text.replace(f'"{ddcnn.__version__}"', f'"{CHANGED}"'), "utf-8")
    backend(f"build_sdist({str(folder)!r})", folder / "checkout")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    (top,) = (folder / "unpacked").iterdir()
    in_archive = {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()}
    backend(f"build_wheel({str(folder)!r})", top)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        in_wheel = set(file.namelist())
        metadata = message_from_bytes(file.read(f"ddcnn-{CHANGED}.dist-info/METADATA"))
    return Built(archive, wheel, in_archive, in_wheel, metadata)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The folder of programs of a virtual environment with the wheel alone, which finds the requirements where this Python has them."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, env=CLEAN)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", built.wheel]
    finished = subprocess.run(pip, env=CLEAN, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    (site,) = (folder / "lib").glob("python*/site-packages")
    here = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site / "requirements.pth").write_text("\n".join(here), "utf-8")  # .pth files there, such as that of this checkout, are not read
    return folder / "bin"


def modules() -> set[str]:
    return {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "ddcnn").rglob("*.py")}


def test_wheel_has_the_package_its_licence_and_nothing_else(built):
    about = f"ddcnn-{CHANGED}.dist-info/"
    ours = {name for name in built.in_wheel if not name.startswith(about)}
    assert ours == modules() | {"ddcnn/py.typed"}
    assert f"{about}licenses/LICENSE" in built.in_wheel
    assert built.metadata["License-Expression"] == "MIT"
    assert built.metadata["Version"] == CHANGED


def test_archive_has_what_a_build_and_a_reader_need_and_no_tests(built):
    files = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "constraints.txt", "setup.cfg", "pyproject.toml"}
    assert files | {f"src/{name}" for name in modules()} | {"src/ddcnn/py.typed"} <= built.in_archive
    tops = {name.split("/")[0] for name in built.in_archive}
    assert not tops & {"tests", "benchmarks", "jobs", "docs"}


def said(program: Path, *words: str, cwd: Path) -> str:
    """What a program says that has neither this checkout nor its tests on its path."""
    finished = subprocess.run([program, *words], cwd=cwd, env=CLEAN | MPI, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_wheel_is_found_outside_of_the_checkout(installed, tmp_path):
    place = said(installed / "python", "-c", "import ddcnn; print(ddcnn.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(installed.parent)
    assert said(installed / "python", "-m", "ddcnn", "--version", cwd=tmp_path) == f"ddcnn {CHANGED}\n"


@pytest.mark.full
def test_wheel_runs_outside_of_the_checkout(installed, tmp_path):
    said(installed / "ddcnn", "run", *quick(output="run", methods="vote,dnn", epochs=1, train_samples=100), cwd=tmp_path)
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert results["environment"]["ddcnn"] == CHANGED


def test_requirements_have_lower_bounds_alone(built):
    """An upper bound would keep users from versions that may well work; what was tested is in constraints.txt."""
    requirements = [Requirement(text) for text in built.metadata.get_all("Requires-Dist")]
    assert len(requirements) > 20
    assert [str(one) for one in requirements if [bound.operator for bound in one.specifier] != [">="]] == []


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in pins}


def needed() -> dict[str, list[Requirement]]:
    """By name, what ddcnn[mpich,test] asks for, itself and through what it needs, as far as that is installed."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    lines = "\n".join([setup["options"]["install_requires"], extras["mpich"], extras["test"]]).split("\n")
    new = [Requirement(line) for line in lines if line]
    found: dict[str, list[Requirement]] = {}
    while new:
        one = new.pop()
        known = found.setdefault(canonicalize_name(one.name), [])
        if one in known:
            continue
        known.append(one)
        try:
            theirs = [Requirement(text) for text in distribution(one.name).requires or []]
        except PackageNotFoundError:  # as mpich on a cluster
            continue
        new += [other for other in theirs if not other.marker or any(other.marker.evaluate({"extra": name}) for name in ("", *one.extras))]
    return found


def test_constraints_name_one_version_of_everything_that_is_needed():
    pins, asked = constraints(), needed()
    assert len(asked) > 40
    assert sorted(set(asked) - set(pins)) == []
    assert [str(pin) for pin in pins.values() if not re.fullmatch(r"==[\w.]+", str(pin.specifier))] == []
    refused = [
        f"{pin} is none of {one}" for name, those in asked.items() for pin in [pins[name]] for one in those
        if not one.specifier.contains(str(pin.specifier).removeprefix("=="), prereleases=True)
    ]  # fmt: skip
    assert refused == []


def test_citation_and_changelog_are_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [ddcnn.__version__]
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest
    assert newest[1] == ddcnn.__version__


def test_citation_names_the_papers_of_the_readme():
    start = (ROOT / "README.md").read_text("utf-8").split("\n## ")[0]
    papers = set(re.findall(r"arxiv\.org/abs/(\d+\.\d+)", start))
    assert len(papers) >= 2
    assert papers <= set(re.findall(r"arxiv\.org/abs/(\d+\.\d+)", (ROOT / "CITATION.cff").read_text("utf-8")))

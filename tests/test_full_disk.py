"""Disks that fill, that turn read-only, that have a quota: one line names file and cause, what was there stays, and nothing else."""

import errno
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from launching import Started, launch, on_ranks, refusal
from resuming import SHORT, assert_same, outcome, start
from torch import nn

from ddcnn.data import set_writer
from ddcnn.data.partition import partition
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.set_writer import SetFiles
from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError
from ddcnn.inference.writers import Columns, writing
from ddcnn.io import atomic, parameters
from ddcnn.io.details import Details
from ddcnn.parallel.world import World

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
SOURCE = "synthetic:32x32x4x600"

# ddcnn, but files whose name contains NAME cannot be written: python failing_files.py NAME ARGUMENTS…
FAILING_FILES = """
import os, sys
from ddcnn import __main__
name, pwrite = sys.argv.pop(1), os.pwrite

def failing(descriptor, *arguments):
    if name in os.readlink(f"/proc/self/fd/{descriptor}"):
        raise OSError(28, os.strerror(28))
    return pwrite(descriptor, *arguments)

os.pwrite = failing
try:
    code = __main__.main()
finally:
    os.pwrite = pwrite
sys.exit(code)
"""

# ddcnn, whose files may have 100 000 bytes: python limited.py ARGUMENTS…
LIMITED = """
import resource, sys
from mpi4py import MPI  # needs larger ones
from ddcnn.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
sys.exit(main())
"""


class FailingOs:
    """The module os, of whose calls that write one fails."""

    def __init__(self, call: int | None, number: int = errno.ENOSPC):
        self.call, self.number, self.calls = call, number, list[str]()

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name not in ("open", "pwrite", "ftruncate", "fsync", "replace"):
            return real

        def maybe(*arguments: object) -> object:
            self.calls.append(name)
            if self.call is not None and len(self.calls) > self.call:
                raise OSError(self.number, os.strerror(self.number))
            return real(*arguments)

        return maybe


def write_parameters(path: Path) -> None:
    parameters.save(path, nn.Sequential(*[nn.Linear(40, 40) for _ in range(9)]), {"data": "x" * 300, "shape": (1, 2)})


def write_details(path: Path) -> None:
    classes = {f"method {k}": np.arange(1000) for k in range(5)}
    images, rows = np.zeros((4, 20, 20, 3)), np.arange(4)
    confidence = {name: np.zeros(1000, np.float32) for name in classes}
    Details(np.arange(1000), classes, confidence, ["a", "b"], images, rows, images, rows, np.zeros((99, 5)), ("p",), ("k",)).write(path)


def write_predictions(path: Path) -> None:
    columns = Columns(("a", "b"), True, True, (0, 1, 2, 3))
    rows = np.ones((500, columns.width))
    with writing(path, columns, lambda i: "a name of some length" * 5, {"run": "x"}) as writer:
        for _ in range(6):
            writer.write(rows)


def write_set(path: Path) -> None:
    source = open_source(SourceOptions("synthetic:16x16x4x60", Path(), False))
    selection = {name: np.arange(len(split)) for name, split in source.splits.items()}
    partition(World(), source, selection, Decomposition((16, 16), (8, 8), 1, 0), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("parameters.h5", write_parameters), ("details.h5", write_details), ("predictions.h5", write_predictions),
        ("predictions.csv", write_predictions), ("set.h5", write_set), ("text.json", lambda path: atomic.write_json(path, [1, 2])),
    ],
)  # fmt: skip
def test_whichever_call_fails_the_file_is_as_before(tmp_path, monkeypatch, name: str, write: Callable[[Path], None]):
    """HDF5 would crash here, or when the tests end: at opening, writing, flushing and closing."""
    path, opened = tmp_path / name, h5py.h5f.get_obj_count(types=h5py.h5f.OBJ_FILE)
    monkeypatch.setattr(atomic, "os", counting := FailingOs(None))
    write(path)
    calls, whole, tried = counting.calls, len(path.read_bytes()), 0
    last_write = max(number for number, made in enumerate(calls) if made in ("pwrite", "ftruncate"))
    assert "fsync" in calls[last_write : calls.index("replace")]
    for call in range(0, len(calls), max(1, len(calls) // 30)):
        number = ERRORS[call % len(ERRORS)]
        path.write_bytes(b"earlier")
        monkeypatch.setattr(atomic, "os", FailingOs(call, number))
        with pytest.raises(InputError) as raised:
            write(path)
        assert str(raised.value).startswith(f"{path}: cannot be written ({os.strerror(number)})")
        assert [entry.name for entry in tmp_path.iterdir()] == [name]
        assert h5py.h5f.get_obj_count(types=h5py.h5f.OBJ_FILE) == opened  # none that HDF5 could not close
        assert path.read_bytes() == b"earlier" or (len(path.read_bytes()) == whole and call >= len(calls) - 2)
        tried += 1
    assert tried == len(calls) or tried >= 30
    monkeypatch.undo()
    write(path)
    assert len(path.read_bytes()) == whole


def test_writing_ends_soon_after_the_disk_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "os", FailingOs(30))
    blocks = 0
    columns = Columns(("a", "b"), True, True, (0, 1))
    with pytest.raises(InputError, match="No space left"), writing(tmp_path / "a.h5", columns, str, {}) as writer:
        for blocks in range(1000):  # noqa: B007
            writer.write(np.ones((500, columns.width)))
    assert blocks < 30


def test_an_interrupt_within_hdf5_is_not_lost(tmp_path, monkeypatch):
    def interrupted(*arguments: object) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(atomic, "os", SimpleNamespace(**vars(os) | {"pwrite": interrupted}))
        write_parameters(tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, with the options of tmpfs."""
    place = folder / "disk"
    place.mkdir(exist_ok=True)
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("a file system of one's own needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("ranks", "inodes"), [(None, 6), (2, 7)])
def test_a_set_that_does_not_fit_on_the_disk(tmp_path, ranks, inodes):
    small = ("--train-samples", "20", "--test-samples", "8", "--output", "set.h5")
    outcomes = []
    for options in ("size=120k", "size=180k", "size=400k", "size=600k", f"size=20m,nr_inodes={inodes}", "size=20m"):
        with disk(tmp_path, options) as folder:
            assert on_ranks(ranks, "partition", SOURCE, *small, "--grid", "1x1", cwd=folder).returncode == 0
            before = content(folder)
            finished = on_ranks(ranks, "partition", SOURCE, "--grid", "4x4", "--output", "set.h5", cwd=folder)
            outcomes.append(finished.returncode)
            if finished.returncode:
                assert refusal(finished).startswith("ddcnn: error: set.h5: cannot be written (No space left on device): make room there")
                assert content(folder) == before
            else:
                assert PartitionedSet.open(folder / "set.h5").grid == (4, 4)
            assert not list(folder.glob(".*"))
    assert outcomes == [2, 2, 2, 2, 2, 0]


def test_the_largest_file_that_is_allowed(tmp_path):
    """In processes of their own, to which a crash at their end would give another exit code."""
    program = tmp_path / "limited.py"
    program.write_text(LIMITED, "utf-8")
    (tmp_path / "out").mkdir()
    finished = launch(2, "partition", SOURCE, "--output", "out/set.h5", cwd=tmp_path, program=(str(program),))
    assert refusal(finished) == "ddcnn: error: out/set.h5: cannot be written (File too large)"
    assert finished.stderr.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


OPTIONS = (*SHORT, "--methods", "vote,dnn,transfer,global")


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Path:
    """The folder of a run without such troubles."""
    folder = tmp_path_factory.mktemp("expected")
    finished = start(2, folder, *OPTIONS)
    assert finished.returncode == 0, finished.stderr
    return folder


def test_a_run_writes_what_it_can_and_goes_on_when_there_is_room(tmp_path, expected):
    """Wherever the disk fills: one file after the other cannot be written."""
    (tmp_path / "failing_files.py").write_text(FAILING_FILES, "utf-8")
    run, arguments = tmp_path / "run", ("run", "--output", "run", *OPTIONS, "--partitions", str(expected / "partitions"), "--resume")
    for file, written in (
        ("checkpoints/local-0001.h5", set()),
        ("checkpoints/transfer-0003.h5", set()),
        ("checkpoints/global.h5", set()),
        ("results.json", {"details.h5"}),
        ("details.h5", {"results.json"}),
    ):
        finished = on_ranks(2, Path(file).name, *arguments, cwd=tmp_path, script="failing_files.py")
        assert f"run/{file}: cannot be written (No space left on device)" in refusal(finished)
        assert not (run / file).exists() and not list(run.rglob(".*[0-9]"))  # temporary names
        assert {name for name in ("results.json", "details.h5", "report.md") if (run / name).exists()} == written
        (run / "details.h5").unlink(missing_ok=True)
    finished = on_ranks(2, "report.", *arguments, cwd=tmp_path, script="failing_files.py")
    assert finished.returncode == 0, finished.stderr
    assert "warning: run/report.md: cannot be written (No space left on device): make room there" in finished.stderr
    assert "; the run is complete" in finished.stderr
    assert "python -m ddcnn report run" in finished.stderr and not (run / "report.md").exists()
    assert (run / "checkpoints" / "training").exists()  # so that no training is done again
    assert start(2, tmp_path, "--resume").returncode == 0
    assert (run / "report.md").exists() and not (run / "checkpoints" / "training").exists()
    assert_same(outcome(tmp_path), outcome(expected))


def test_a_run_on_a_small_disk_goes_on_when_it_is_larger(tmp_path, expected):
    """It fills up with checkpoints of training, on one rank or the other."""
    with disk(tmp_path, "size=1m") as folder:
        options = (*OPTIONS, "--partitions", str(expected / "partitions"))
        for size in ("1m", "1700k", "2500k"):
            subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
            line = refusal(start(2, folder, *options, "--resume"))
            assert "run/checkpoints/" in line
            assert "(No space left on device): make room there (an unfinished run then goes on with --resume)" in line
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        finished = start(2, folder, "--resume")
        assert finished.returncode == 0, finished.stderr
        assert_same(outcome(folder), outcome(expected))


@pytest.mark.parametrize("output", ["predictions.h5", "predictions.csv"])
def test_predictions_that_do_not_fit_on_the_disk(tmp_path, expected, output):
    arguments = ("predict", str(expected / "run"), "digits", "--method", "dnn", "--output", output, "--overwrite")
    with disk(tmp_path, "size=16k") as folder:
        (folder / output).write_text("earlier", "utf-8")
        for ranks in (None, 2):
            finished = on_ranks(ranks, *arguments, cwd=folder)
            assert refusal(finished).startswith(f"ddcnn: error: {output}: cannot be written (No space left on device): make room there")
            assert content(folder) == {output: b"earlier"}
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        said = refusal(on_ranks(None, *arguments, cwd=folder))
        assert f"{output}: cannot be written (Read-only file system): make its folder writable, or name another place" in said


# Of jobs that are killed, and of several at once


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_a_partitioning_that_is_killed_leaves_nothing_for_long(tmp_path, end):
    with Started(2, "partition", "synthetic:64x64x4x200000", "--output", "set.h5", cwd=tmp_path) as job:
        job.wait_for(lambda: len(list(tmp_path.glob(".set.*.parts/*.h5"))) == 2)
        for rank, process in job.ranks().items():
            if rank == 1 or end == "SIGKILL":  # SIGTERM of one rank ends all
                os.kill(process, signal.Signals[end])
        job.seconds_to_end(most=30)
        assert job.process.returncode
    (tmp_path / "stderr").unlink()
    if end == "SIGKILL":  # the next job clears up, but not after one that may still run
        (abandoned,) = tmp_path.iterdir()
        shutil.copytree(abandoned, tmp_path / ".set.12345678.parts")
        lock = (abandoned / ".lock").read_text("utf-8")
        (tmp_path / ".set.12345678.parts" / ".lock").write_text(lock.replace('"host":"', '"host":"another-'), "utf-8")
        assert on_ranks(None, "partition", SOURCE, "--output", "set.h5", cwd=tmp_path).returncode == 0
        shutil.rmtree(tmp_path / ".set.12345678.parts")
        (tmp_path / "set.h5").unlink()
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_killed_processes_are_removed_by_the_next_one(tmp_path):
    path = tmp_path / "a.json"
    dead = subprocess.Popen(["true"])
    dead.wait()
    atomic.temporary_name(path, dead.pid).write_text("half", "utf-8")
    atomic.temporary_name(path, os.getppid()).write_text("being written", "utf-8")
    atomic.write_json(path, 1)
    assert set(tmp_path.iterdir()) == {path, atomic.temporary_name(path, os.getppid())}


def test_of_two_jobs_that_write_the_same_set_one_leaves_its_parts(tmp_path, monkeypatch):
    """Also where one finishes while the other one looks for the parts that it replaces."""
    world, path = SimpleNamespace(size=2, rank=0), tmp_path / "set.h5"
    sets = [SetFiles(world, path, identity * 8, False, True) for identity in "ab"]  # type: ignore[arg-type]
    for files in sets:
        files.unfinished.mkdir()
        (files.unfinished / "00000.h5").touch()
        with h5py.File(files.joint, "w") as file:
            file.attrs["parts"] = files.parts.name
    other = threading.Thread(target=sets[1]._publish)
    look = set_writer.written_parts

    def while_another_finishes(path: Path) -> set[Path]:
        found = look(path)
        if not other.ident:
            other.start()
            other.join(0.3)
        return found

    monkeypatch.setattr(set_writer, "written_parts", while_another_finishes)
    sets[0]._publish()
    other.join()
    with h5py.File(path) as file:
        assert file.attrs["parts"] == "set.aaaaaaaa.parts"
    assert {entry.name for entry in tmp_path.glob("[!.]*")} == {"set.h5", "set.aaaaaaaa.parts"}
    assert sets[1].unfinished.exists()  # which its job removes

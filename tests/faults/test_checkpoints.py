"""Checkpoints of jobs that are killed while they save, of damaged files and of disks that refuse: never wrong parameters."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from launching import launch, on_ranks, refusal
from resuming import SHORT, assert_same, outcome, start

from ddcnn.io.checkpoints import CheckpointManager
from ddcnn.parallel.world import World

SAVING = Path(__file__).with_name("saving.py")


def value_of_the_newest(folder: Path) -> int:
    """Of what lies in a folder: the newest step is whole, and another one can be saved."""
    manager = CheckpointManager(World(), folder, {}, 1)
    step = manager.load(["local-0000", "local-0001"])
    assert step
    value = step.about["value"]
    for part in step.parts.values():
        assert (part["parameters/weight"] == value).all()
    manager.save(step)
    assert [path.name for path in folder.iterdir() if path.name.isdigit()] == [f"{manager._number:07}"]
    return value


@pytest.mark.parametrize("rank", [0, 1])
def test_between_any_two_steps_of_saving_the_newest_whole_step_is_there(tmp_path, rank):
    """Of a job that is killed then: copies of the folder, as it is before each system call of a rank."""
    finished = launch(2, str(tmp_path / "saved"), str(rank), "copy", cwd=tmp_path, program=(str(SAVING),))
    assert finished.returncode == 0, finished.stderr
    copies = sorted((tmp_path / "copies").iterdir(), key=lambda folder: int(folder.name))
    found = [value_of_the_newest(folder) for folder in [*copies, tmp_path / "saved"]]
    assert found[-1] == 2 and sorted(found) == found
    assert found.count(1) >= (6 if rank == 0 else 1)


@pytest.mark.full
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_between_any_two_steps_of_saving(tmp_path, rank):
    found = []
    for event in range(1, 60):
        folder = tmp_path / str(event)
        finished = launch(2, str(folder), str(rank), str(event), cwd=tmp_path, program=(str(SAVING),))
        found.append(value_of_the_newest(folder))
        if "saved" in finished.stdout:
            break
    assert found[-1] == 2 and sorted(found) == found
    assert found.count(1) >= (6 if rank == 0 else 1)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped while it was trained on as one network, and the outcome if it had not been."""
    folder = tmp_path_factory.mktemp("stopped")
    options = (*SHORT, "--methods", "dnn,transfer")
    assert start(2, folder, *options).returncode == 0
    expected = outcome(folder)
    assert start(2, folder, *options, "--overwrite", interrupted=("transfer", 12, 1, "SIGUSR1")).returncode == 75
    return folder, expected


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damaged_steps_are_named_and_gone_behind(tmp_path, stopped, damage):
    folder, expected = stopped
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    trainings = sorted((tmp_path / "run" / "checkpoints" / "training").iterdir())
    for number, training in enumerate(trainings):
        newest = max(training.iterdir())
        path = sorted(newest.iterdir())[number % len(list(newest.iterdir()))]
        data = path.read_bytes()
        if damage == "flip":
            path.write_bytes(data[:100] + bytes([data[100] ^ 16]) + data[101:])
        elif damage == "truncate":
            path.write_bytes(data[: len(data) // 2])
        else:
            path.unlink()
    finished = start(2, tmp_path, "--resume")
    assert finished.returncode == 0, finished.stderr
    for training in trainings:
        assert f"{training.name}/" in finished.stderr
    assert_same(outcome(tmp_path), expected)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("a file system of one's own needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    ("training", "rank", "happens", "says", "mend"),
    [
        ("local-0002", 1, "head -c 100m /dev/zero > filler", "No space left on device", "rm filler"),
        ("transfer", 0, "head -c 100m /dev/zero > filler", "No space left on device", "rm filler"),
        ("transfer", 1, "mount --bind {0} {0} && mount -o remount,bind,ro {0}", "Read-only file system", "umount {0}"),
    ],
)
def test_a_disk_that_refuses_ends_the_run_and_keeps_what_there_was(small_disk, stopped, training, rank, happens, says, mend):
    expected = stopped[1]
    options = (*SHORT, "--methods", "dnn,transfer")
    happens, mend = (command.format("run/checkpoints/training") for command in (happens, mend))
    finished = start(2, small_disk, *options, interrupted=(training, 12, rank, happens))
    assert says in refusal(finished)
    subprocess.run(mend, shell=True, cwd=small_disk, check=True)
    assert any((small_disk / "run" / "checkpoints" / "training").iterdir())
    finished = start(2, small_disk, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert_same(outcome(small_disk), expected)


def test_a_disk_that_refuses_leaves_no_process_group_behind(small_disk):
    """In the same processes a second one could not be made."""
    folder = "run/checkpoints/training"
    happens = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
    finished = start(2, small_disk, *SHORT, "--methods", "global", interrupted=("global", 12, 1, happens))
    assert "Read-only file system" in refusal(finished)
    subprocess.run(["umount", folder], cwd=small_disk, check=True)
    finished = start(2, small_disk, "--resume")
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("kind", ["state-dict", "torch-export"])
def test_a_full_disk_refuses_an_exported_network(small_disk, digits_run, kind):
    subprocess.run("head -c 100m /dev/zero > filler", shell=True, cwd=small_disk)
    finished = on_ranks(None, "export", str(digits_run), "--format", kind, "--output", "network.pt", cwd=small_disk)
    assert "network.pt: cannot be written (No space left on device)" in refusal(finished)
    assert [entry.name for entry in small_disk.iterdir()] == ["filler"]

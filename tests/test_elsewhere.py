"""A run goes on, and is used, from any folder: after it was moved, after its images have gone, and with the user's network."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from launching import alone, on_ranks, refusal
from quick import quick

NETWORK = """
from torch import nn

def small(shape, width=8, divisor=1):
    return nn.Sequential(nn.Conv2d(shape.channels, 4, 3), nn.Flatten(), nn.LazyLinear(shape.classes))
"""
OPTIONS = quick(
    network="mine:small", data="data.npz", methods="global", batch_size=16, train_samples=48, epochs=2, output="run", grid="2x1"
)


def arrays(path: Path, seed: int = 0, samples: int = 60, classes: int = 3) -> None:
    random = np.random.default_rng(seed)
    images, labels = random.integers(0, 255, (samples, 8, 8), dtype=np.uint8), np.arange(samples) % classes
    np.savez(path, x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])


@pytest.fixture(scope="module")
def began(tmp_path_factory) -> Path:
    """The folder of a project, gone from where it was: images, the module of a network, and a run that was stopped."""
    folder = tmp_path_factory.mktemp("began") / "project"
    folder.mkdir()
    arrays(folder / "data.npz")
    (folder / "mine.py").write_text(NETWORK, "utf-8")
    finished = on_ranks(1, "run", *OPTIONS, cwd=folder, interrupted=("global", 2, 0, "SIGUSR1"))
    assert finished.returncode == 75, finished.stderr
    return folder


@pytest.fixture
def project(began, tmp_path):
    """That folder, as if it had been moved to a test's own place."""
    folder = tmp_path / "project"
    shutil.copytree(began, folder)
    (folder / "mine.py").unlink()
    os.link(began / "mine.py", folder / "mine.py")  # the same file
    began.rename(began.with_name("away"))
    yield folder
    began.with_name("away").rename(began)


def resume(cwd: Path, *options: object):
    cwd.mkdir(parents=True, exist_ok=True)
    return on_ranks(1, "run", "--resume", *map(str, options), cwd=cwd)


def succeeded(finished) -> str:
    assert finished.returncode == 0, finished.stderr
    return finished.stdout + finished.stderr


def test_a_run_goes_on_and_is_used_from_another_folder_after_its_project_was_moved(project, tmp_path):
    cwd = tmp_path / "else" / "where"
    cwd.mkdir(parents=True)
    (cwd / "data.npz").write_text("another file of that name", "utf-8")
    succeeded(resume(cwd, "--output", "../../project/run"))
    assert not (cwd / "runs").exists()  # the partitioned set is found, too
    (tmp_path / "link").symlink_to(project / "run")
    project.rename(tmp_path / "renamed")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "renamed" / "run")
    for command in (
        ["report", "../link"],
        ["predict", "../link", "../renamed/data.npz", "--output=p.csv"],
        ["export", "../link", "--format=state-dict", "--output=n.pt"],
    ):
        succeeded(on_ranks(None, *command, cwd=tmp_path / "else"))


def test_a_module_that_is_another_file_is_not_imported_by_itself(project, tmp_path):
    (project / "mine.py").unlink()
    (project / "mine.py").write_text(NETWORK, "utf-8")
    line = refusal(alone("run", "--resume", "--output", str(project / "run"), cwd=tmp_path))
    assert "mine:small cannot be imported" in line
    assert "PYTHONPATH" in line
    succeeded(resume(project, "--output", "run"))
    (project / "mine.py").rename(tmp_path / "else.py")
    line = refusal(alone("predict", str(project / "run"), str(project / "data.npz"), "--output=p.csv", cwd=tmp_path))
    assert "its network mine:small cannot be found: start where its module lies, or name its folder in PYTHONPATH" in line
    assert f"(the run imported it from {project})" in line


def test_where_the_images_have_gone_their_partitioned_set_is_taken(began, project, tmp_path):
    (project / "data.npz").rename(tmp_path / "elsewhere.npz")
    shutil.copytree(project, tmp_path / "second")
    told = succeeded(resume(tmp_path / "else", "--output", project / "run"))
    assert "data.npz: no such file or folder" in told
    assert "going on with its partitioned set" in told
    origin = json.loads((project / "run" / "origin.json").read_text(encoding="utf-8"))
    assert Path(origin["folder"]) == began  # where the images will be looked for when they are back
    assert "--batch-size" not in told  # a note with advice that a run which goes on refuses
    shutil.rmtree(tmp_path / "second" / "runs")
    line = refusal(resume(tmp_path / "second", "--output=run"))
    assert "bring it back, or give --data the path where it, or a partitioned set of it, lies now" in line
    line = refusal(resume(tmp_path / "second", "--output=run", "--data=digits"))
    assert "--data digits: the run in run has data.npz, of other images (here: new classes 3, 4, 5, 6, 7" in line
    (partitioned,) = (project / "runs" / "partitions").glob("*.h5")
    shutil.copytree(tmp_path / "second", tmp_path / "third")
    succeeded(resume(tmp_path / "second", "--output=run", f"--data={partitioned}"))
    succeeded(resume(tmp_path / "third", "--output=run", "--data=../elsewhere.npz"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "as many images of the same classes, but other pixels or labels"), ({"classes": 4}, "new classes 3"),
        ({"samples": 46}, r"40 + 4 + 9 images to train, validate and test, before 48 + 5 + 9"),
    ],
)  # fmt: skip
def test_images_that_have_changed_are_told_with_a_way_out(project, change, words):
    config = (project / "run" / "config.toml").read_text("utf-8")
    if "samples" in change:
        (project / "run" / "config.toml").write_text(config.replace("train-samples = 48", "train-samples = 40"), "utf-8")
    arrays(project / "data.npz", **change)
    line = refusal(resume(project, "--output=run"))
    assert f"run is of a run with data that have changed: data.npz has {words}; bring the images back, go on" in line
    (option,) = (word.strip(",") for word in line.split() if word.endswith(".h5,"))
    (project / "run" / "config.toml").write_text(config, "utf-8")
    if "seed" in change:
        succeeded(resume(project, "--output=run", f"--data={option}"))


def test_a_run_of_an_older_version_is_found_again(project, tmp_path):
    (project / "run" / "origin.json").unlink()
    for manifest in (project / "run" / "checkpoints").rglob("manifest.json"):
        values = json.loads(manifest.read_text(encoding="utf-8").partition("\n")[0])
        del values["identity"]["mode"], values["identity"]["nan"]  # options that it had not
        line = json.dumps(values)
        manifest.write_text(f"{line}\n{hashlib.sha256(line.encode()).hexdigest()}\n", encoding="utf-8")
    shutil.copytree(project, tmp_path / "copy")
    arrays(tmp_path / "copy" / "data.npz", seed=1)
    assert "is of a run with data that have changed since" in refusal(resume(tmp_path / "copy", "--output=run"))
    (tmp_path / "else").mkdir()
    os.link(project / "mine.py", tmp_path / "else" / "mine.py")
    succeeded(resume(tmp_path / "else", "--output", "../project/run"))


def test_a_run_that_started_from_another_finds_it_again(tmp_path):
    (tmp_path / "project").mkdir()
    options = quick(methods="average,transfer", train_samples=100, transfer_epochs=2, epochs=1, batch_size=16)
    succeeded(on_ranks(1, "run", *options, "--output=first", cwd=tmp_path / "project"))
    second = ("--start-from=first", "--output=second")
    stopped = on_ranks(1, "run", *options, *second, cwd=tmp_path / "project", interrupted=("transfer", 1, 0, "SIGUSR1"))
    assert stopped.returncode == 75, stopped.stderr
    (tmp_path / "project").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "apart")
    succeeded(resume(tmp_path, "--output=moved/second"))
    (tmp_path / "apart" / "first").rename(tmp_path / "gone")
    assert "--start-from first: no results.json there" in refusal(resume(tmp_path / "apart", "--output=second"))
    assert "--start-from" in refusal(resume(tmp_path / "apart", "--output=second", "--start-from=../moved/second"))
    succeeded(resume(tmp_path / "apart", "--output=second", "--start-from=../gone"))


def test_a_run_behind_a_link_finds_what_lies_before_it(tmp_path):
    (tmp_path / "a" / "b" / "scratch").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "runs").symlink_to(tmp_path / "a" / "b" / "scratch")
    arrays(tmp_path / "home" / "data.npz")
    arrays(tmp_path / "a" / "b" / "data.npz", seed=1)  # where the way back to the data leads without the link
    options = quick(methods="global", data="data.npz", batch_size=16, train_samples=48, output="runs/1", partitions="sets")
    stopped = on_ranks(1, "run", *options, cwd=tmp_path / "home", interrupted=("global", 1, 0, "SIGUSR1"))
    assert stopped.returncode == 75, stopped.stderr
    succeeded(resume(tmp_path / "else", "--output", "../home/runs/1"))


def test_seeds_are_used_after_their_run_was_moved(tmp_path):
    (tmp_path / "at").mkdir()
    options = quick(methods="average", train_samples=100, epochs=1, seeds=2, output="run")
    succeeded(on_ranks(1, "run", *options, cwd=tmp_path / "at"))
    (tmp_path / "at" / "run").rename(tmp_path / "other")
    succeeded(on_ranks(None, "report", "other", cwd=tmp_path))
    succeeded(on_ranks(None, "predict", "other/seed-1", "digits", "--output=p.csv", cwd=tmp_path))
    assert json.loads((tmp_path / "other" / "seed-1" / "origin.json").read_text("utf-8"))["folder"] == str(tmp_path / "at")


def test_a_tilde_in_a_file_or_after_an_equals_sign_is_the_home_folder(tmp_path):
    arrays(tmp_path / "data.npz")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "c.toml").write_text('data = "~/data.npz"\npartitions = "~/sets"\n', "utf-8")
    options = quick(methods="average", train_samples=40, epochs=1, batch_size=16)
    succeeded(on_ranks(1, "run", *options, "--config=c.toml", "--output=~/run", cwd=tmp_path / "work", HOME=str(tmp_path)))
    assert (tmp_path / "run" / "results.json").exists()
    assert list((tmp_path / "sets").glob("*.h5"))

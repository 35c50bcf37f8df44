"""What is refused and what fails: one clear message, all ranks ended, nothing lost. Limits here only end a test that hangs."""

import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from launching import alone, launch, on_ranks, refusal
from quick import full, quick

FAILING = (str(Path(__file__).with_name("failing.py")),)
QUICK = quick()


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return {
        "x_train": random.random((30, 8, 8)).astype(np.float32),
        "y_train": np.arange(30) % 3,
        "x_test": random.random((6, 8, 8)).astype(np.float32),
        "y_test": np.arange(6) % 3,
    }


@pytest.mark.parametrize("ranks", [3, 6, full(5)])
def test_a_number_of_ranks_that_does_not_fit_names_those_that_do(tmp_path, ranks):
    line = refusal(launch(ranks, *QUICK, cwd=tmp_path))
    assert f"{ranks} ranks do not fit 4 subdomains (--grid 2x2): start 1, 2 or 4 ranks" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("variables", [("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")])
def test_the_wrong_launcher_is_noticed(tmp_path, variables):
    """A launcher of another MPI leaves its variables, but MPI starts as a single rank."""
    first = alone(*QUICK, cwd=tmp_path, **{variables[0]: "4", variables[1]: "0"})
    assert "the launcher started 4 processes" in refusal(first)
    (launcher := tmp_path / "mpirun").write_text('#!/bin/sh\n"$@"\nexit $?\n', encoding="utf-8")
    launcher.chmod(0o755)
    environment = os.environ | {variables[0]: "4", variables[1]: "3"}
    command = [str(launcher), sys.executable, "-m", "ddcnn", *QUICK]
    second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert (second.returncode, second.stderr) == (2, "")
    left_over = alone(*QUICK, cwd=tmp_path, **{variables[0]: "4", variables[1]: "3"})  # in a shell, without any launcher
    assert f"without a launcher, unset {variables[0]}" in refusal(left_over)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--epoch", "3"), ["--epoch", "did you mean --epochs"]),
        (("--epochs", "0"), ["--epochs 0", "at least 1"]),
        (("--epochs", "many"), ["--epochs many", "whole number"]),
        (("--grid", "2by2"), ["--grid 2by2", "2x2"]),
        (("--grid", "2x2x2"), ["--grid 2x2x2", "8x8"]),
        (("--grid", "16x1"), ["--grid 16x1", "8x8"]),
        (("--grid", "4x2", "--overlap", "0"), ["vgg3", "2x4"]),
        (("--methods", "vote,magic"), ["--methods vote,magic", "none of vote, average, dnn"]),
        (("--network", "vgg99"), ["--network vgg99", "vgg3"]),
        (("--lr", "nan"), ["--lr nan", "finite"]),
        (("--train-samples", "100000"), ["--train-samples 100000", "1294"]),
        (("--data", "cifar10", "--data-root", "nowhere"), ["nowhere", "--data-root"]),
        (("--data", "nothing.npz"), ["nothing.npz", "no such file"]),
        (("--data", "mnist"), ["mnist", "cifar10"]),
        (("--config", "nothing.toml"), ["nothing.toml", "No such file"]),
        (("--precision", "fp16"), ["--precision fp16", "GPU"]),
        (("--device", "cuda"), ["--device cuda", "cpu"]),
        (("--output", "/proc/ddcnn"), ["/proc/ddcnn", "cannot be written", "name another place"]),
    ],
)
def test_bad_usage_is_one_line_that_names_the_culprit_and_the_way_out(tmp_path, options, words):
    line = refusal(on_ranks(2, "run", *QUICK, *options, cwd=tmp_path))
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a["y_train"].__setitem__(4, -1), ["label -1", "train sample 4"]),
        (lambda a: a["y_test"].__setitem__(5, 3), ["label 3", "test sample 5"]),
        (lambda a: a["x_train"].__setitem__((29, 0, 0), np.nan), ["train sample 29", "NaN"]),
        (lambda a: a["x_test"].__setitem__((5, 7, 7), np.inf), ["test sample 5", "NaN or infinite"]),
        (lambda a: a.update(x_test=a["x_test"][:, 1:]), ["(8, 8, 1)", "(7, 8, 1)"]),
        (lambda a: a.update(x_train=np.array([np.zeros((8, 8)), np.zeros((7, 8))], dtype=object)), ["x_train", "different shapes"]),
        (lambda a: a.pop("y_test"), ["x_test and y_test"]),
    ],
)
def test_bad_arrays_are_refused_with_the_sample(tmp_path, arrays, change, words):
    change(arrays)
    np.savez(tmp_path / "a.npz", **arrays)
    line = refusal(on_ranks(2, "run", "--data", "a.npz", *quick(train_samples=None), cwd=tmp_path))
    for word in words:
        assert word in line
    assert not list(tmp_path.glob("runs/partitions/*"))


def test_partition_overwrites_nothing_but_a_partitioned_set(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    (tmp_path / "a.h5").write_text("mine", "utf-8")
    assert "is not a partitioned set: name another file" in refusal(on_ranks(2, "partition", "a.npz", "--output", "a.h5", cwd=tmp_path))
    assert (tmp_path / "a.h5").read_text("utf-8") == "mine"
    (tmp_path / "a.h5").unlink()
    before = (tmp_path / "a.npz").read_bytes()
    assert "ends in .h5" in refusal(on_ranks(2, "partition", "a.npz", "--output", "a.npz", cwd=tmp_path))
    assert (tmp_path / "a.npz").read_bytes() == before
    for grid in ("1x2", "2x2"):
        assert on_ranks(2, "partition", "a.npz", "--grid", grid, "--output", "a.h5", cwd=tmp_path).returncode == 0
    assert len(list(tmp_path.iterdir())) == 3  # the source, the set and its parts


def test_a_finished_run_is_not_overwritten_unasked(tmp_path):
    assert on_ranks(1, *QUICK, "--output", "run", cwd=tmp_path).returncode == 0
    before = (tmp_path / "run" / "results.json").read_bytes()
    assert "--overwrite" in refusal(on_ranks(2, *QUICK, "--output", "run", cwd=tmp_path))
    assert (tmp_path / "run" / "results.json").read_bytes() == before


STEPS = ("train_local", "evaluate_interface", "Recorder")
TELLING = [(1, "train_local"), (0, "evaluate_interface"), (3, "Recorder")]


@pytest.mark.parametrize(("rank", "step"), [*TELLING, *(full(*case) for case in product((0, 1, 3), STEPS) if case not in TELLING)])
def test_an_exception_on_one_rank_ends_all_ranks_with_its_traceback(tmp_path, rank, step):
    finished = launch(4, str(rank), step, "raise", "run", *QUICK, cwd=tmp_path, program=FAILING)
    assert finished.returncode not in (0, 2, 75)
    assert finished.stderr.count("Traceback") == 1
    assert f"rank {rank} of 4" in finished.stderr
    assert f"ZeroDivisionError: made to fail in {step}" in finished.stderr
    if step == "train_local":
        assert f"subdomain {rank}" in finished.stderr


def test_the_others_are_ended_while_they_wait_for_a_rank_that_fails_late(tmp_path):
    """Rank 0 fails in the DNN while the others wait for it in a barrier: they must not go on waiting."""
    begin = time.monotonic()
    finished = launch(4, "0", "train_dnn", "raise", "run", *QUICK, cwd=tmp_path, program=FAILING)
    assert finished.returncode not in (0, 2, 75)
    assert time.monotonic() - begin < 120
    assert "rank 0 of 4, DNN: ZeroDivisionError" in finished.stderr


@pytest.mark.parametrize(
    ("step", "method", "place"), [("train_local", "vote", "subdomain 1"), full("train_data_parallel", "global", "global CNN")]
)
def test_a_rank_that_runs_out_of_memory_ends_all_and_says_what_takes_less(tmp_path, step, method, place):
    greedy = ("--grid", "3x1", "--overlap", "1", "--batch-size", "1400", "--width", "256", "--methods", method)
    finished = launch(3, "1", step, "starve", "run", *quick(train_samples=None), *greedy, cwd=tmp_path, program=FAILING)
    assert finished.returncode not in (0, 2, 75)
    lines = [line for line in finished.stderr.splitlines() if line.startswith("ddcnn: ")]
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith(f"ddcnn: failed: rank 1 of 3, {place}")
    assert "not enough memory" in lines[0] and "a smaller --batch-size" in lines[0]
    assert "Traceback" not in finished.stderr


def test_a_loss_that_is_no_number_names_the_subdomain_and_the_way_out(tmp_path):
    finished = launch(2, "run", *QUICK, "--optimizer", "sgd", "--lr", "1e30", "--schedule", "constant", cwd=tmp_path)
    assert finished.returncode not in (0, 2, 75)
    assert "try a smaller learning rate (--lr)" in finished.stderr
    assert "subdomain" in finished.stderr

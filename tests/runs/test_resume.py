"""A run that is stopped and resumed ends with the same bits as one that was not."""

import os
import shutil
import signal
import time
import tomllib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from launching import Started, launch, on_ranks, refusal
from quick import full, quick
from resuming import SHORT, assert_same, outcome, start

DECOMPOSED = ("--methods", "vote,average,dnn,coherent,transfer")
TRAININGS = ("local-0002", "dnn", "coherent", "transfer-frozen", "transfer", "global")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Outcomes of runs with certain options that nothing has disturbed."""
    runs: dict[tuple[str, ...], dict] = {}

    def get(ranks: int, *options: str) -> dict:
        if options not in runs:
            folder = tmp_path_factory.mktemp("undisturbed")
            finished = start(ranks, folder, *SHORT, *options)
            assert finished.returncode == 0, finished.stderr
            runs[options] = outcome(folder)
        return runs[options]

    return get


@pytest.mark.parametrize(
    ("what", "trainings"),
    [("SIGUSR1", TRAININGS), ("SIGTERM", ["local-0002", "dnn", "global"]), ("SIGKILL", ["local-0002", "transfer"]),
     full("SIGTERM", TRAININGS), full("SIGKILL", TRAININGS)],
)  # fmt: skip
def test_stopped_in_the_middle_of_an_epoch_of_every_training(tmp_path, undisturbed, what, trainings):
    """With SIGUSR1 rank 0 is asked alone, and with SIGTERM rank 1: all stop. Images that are read meanwhile change nothing."""
    resident = ("--resident", "stream") if what == "SIGKILL" else ()
    for training in trainings:
        # of 9 steps an epoch; several ranks agree on whether to stop after the steps 1 and 4, and then hardly before the end of an epoch
        step = 3 if what != "SIGKILL" else 5 if training == "transfer-frozen" else 12
        rank = 0 if training == "dnn" or (what == "SIGUSR1" and not training.startswith("local")) else 1
        finished = start(2, tmp_path, *SHORT, *resident, "--resume", "--progress", "lines", interrupted=(training, step, rank, what))
        if training == "transfer" and trainings == TRAININGS and what != "SIGKILL":  # its frozen part alone has begun, and is saved
            assert ", coherent 5 of 5, transfer 0 of 3\n" in finished.stdout
        if what == "SIGKILL":
            assert finished.returncode not in (0, 2, 75)
        else:
            assert finished.returncode == 75, finished.stderr
            assert (
                f"ddcnn: stopped: {what}; what is done is saved; to go on: mpirun -n 2 python -m ddcnn run --resume --output run\n"
                in finished.stderr
            )
            assert "Traceback" not in finished.stderr
    assert not (tmp_path / "run" / "results.json").exists()
    finished = start(2, tmp_path, "--resume", "--progress", "lines")  # with the settings of the folder
    assert finished.returncode == 0, finished.stderr
    if trainings == TRAININGS:
        saved = 1 if what == "SIGKILL" else 0  # of the last one the others are stopped in the first epoch
        assert (
            "\ngoing on with run; epochs done and saved: "
            f"local 8 of 8, dnn 2 of 2, coherent 5 of 5, transfer 3 of 3, global {saved} of 5\n" in finished.stdout
        )
    assert_same(outcome(tmp_path), undisturbed(2))
    assert not (tmp_path / "run" / "checkpoints" / "training").exists()
    finished = start(2, tmp_path, "--resume")
    assert (finished.returncode, finished.stdout) == (0, "run: finished, nothing to resume\n")


# ddcnn, which keeps nothing in memory that grows with the samples: python in_files.py ARGUMENTS…
IN_FILES = """
import sys
from ddcnn import __main__
from ddcnn.io import rows
rows.IN_MEMORY, rows.BLOCK_BYTES = 0, 1 << 12
sys.exit(__main__.main())
"""


def test_what_is_kept_in_files_is_what_would_be_in_memory(tmp_path, undisturbed):
    (tmp_path / "in_files.py").write_text(IN_FILES, "utf-8")
    options = (*SHORT, "--dnn-data", "out-of-fold")
    finished = launch(2, "run", "--output", "run", *options, "--resident", "stream", cwd=tmp_path, program=("in_files.py",))
    assert finished.returncode == 0, finished.stderr
    assert_same(outcome(tmp_path), undisturbed(2, "--dnn-data", "out-of-fold"))
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(("tmp", "."))]


@pytest.mark.full
def test_killed_at_random_moments(tmp_path, undisturbed):
    """A rank or mpirun, at DDCNN_KILLS moments in a row, wherever the run is then."""
    random, kills, killed = np.random.default_rng(), int(os.environ.get("DDCNN_KILLS", "6")), 0
    epochs = str(max(2, 7 * kills - 40))  # so that the run outlasts them
    options = ("--epochs", epochs, "--dnn-epochs", epochs, "--transfer-epochs", epochs)
    for moment in random.uniform(2, 9, kills):
        with Started(2, "run", "--output", "run", *SHORT, *options, "--resume", "--checkpoint-every", "0.002min", cwd=tmp_path) as run:
            while run.process.poll() is None and time.monotonic() < run.begin + moment:
                time.sleep(0.02)
            if run.process.poll() is not None:
                break
            victims = [run.process.pid, *run.ranks().values()]
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(int(random.choice(victims)), signal.SIGKILL)
            run.seconds_to_end(most=30)
            killed += 1
    assert killed
    finished = start(2, tmp_path, *SHORT, *options, "--resume")  # on a slow machine all were killed before they stored their settings
    assert finished.returncode == 0, finished.stderr
    assert_same(outcome(tmp_path), undisturbed(2, *options))


@pytest.mark.parametrize("first", ["SIGUSR1", full("SIGKILL")])
def test_resumed_on_another_number_of_ranks(tmp_path, undisturbed, first):
    steps = [(4, ("local-0001", 12, 1, first)), (1, ("dnn", 12, 0, "SIGUSR1")), (2, ("transfer", 3, 1, "SIGUSR1"))]
    for ranks, interrupted in steps:
        finished = start(ranks, tmp_path, *SHORT, *DECOMPOSED, "--resume", interrupted=interrupted)
        assert (finished.returncode == 75) == (interrupted[-1] != "SIGKILL"), finished.stderr
        assert finished.returncode not in (0, 2)
    finished = start(4, tmp_path, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert_same(outcome(tmp_path), undisturbed(2, *DECOMPOSED))


@pytest.mark.parametrize(
    ("options", "interrupted"),
    [
        (("--methods", "dnn", "--dnn-data", "out-of-fold", "--folds", "2"), ("local-0003-without-fold-1", 6, 1, "SIGUSR1")),
        (("--methods", "dnn,transfer", "--decomposition", "width", "--network", "resnet20", "--width", "16", "--frozen-epochs", "0",
          "--train-samples", "100", "--interface", "features", "--optimizer", "sgd"), ("transfer", 4, 0, "SIGUSR1")),
        (("--methods", "dnn,coherent", "--network", "dropping:small", "--schedule", "cosine"),
         ("coherent", 3, 1, "SIGUSR1")),
        full(("--methods", "dnn,coherent", "--network", "mobilenet_v3_small", "--width-divisor", "1", "--train-samples", "100",
              "--schedule", "cosine"), ("coherent", 4, 1, "SIGUSR1")),
    ],
)  # fmt: skip
def test_folds_thin_networks_and_dropout(tmp_path, undisturbed, options, interrupted):
    assert start(2, tmp_path, *SHORT, *options, interrupted=interrupted).returncode == 75
    finished = start(1 if "cosine" in options else 2, tmp_path, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert_same(outcome(tmp_path), undisturbed(2, *options))


@pytest.mark.parametrize(("ranks", "grid", "interrupted"), [(2, "2x2", ("local-0003", 0, 1)), full(4, "1x2", ("local-0001", 0, 3))])
def test_a_stop_while_images_are_classified_is_no_later_than_their_next_block(tmp_path, undisturbed, ranks, grid, interrupted):
    """Of vote and average no step of a training follows, which would see it."""
    options = ("--methods", "vote,average", "--grid", grid)
    assert start(ranks, tmp_path, *SHORT, *options, interrupted=(*interrupted, "SIGUSR1")).returncode == 75
    assert not (tmp_path / "run" / "results.json").exists()
    assert start(ranks, tmp_path, "--resume").returncode == 0
    assert_same(outcome(tmp_path), undisturbed(ranks, *options))


def test_a_run_goes_on_with_other_methods(tmp_path, undisturbed):
    """Such as without the one that diverges."""
    finished = start(2, tmp_path, *SHORT, "--methods", "vote,average,dnn,coherent", interrupted=("coherent", 12, 1, "SIGUSR1"))
    assert finished.returncode == 75
    finished = start(2, tmp_path, "--resume", "--methods", "dnn")
    assert finished.returncode == 0, finished.stderr
    assert_same(outcome(tmp_path), undisturbed(2, "--methods", "dnn"))
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text("utf-8"))["methods"] == "dnn"


def test_several_seeds_go_on_with_the_one_that_was_stopped(tmp_path, undisturbed):
    options = ("--methods", "dnn", "--seeds", "2")
    finished = start(2, tmp_path, *SHORT, *options, interrupted=("dnn", 24, 0, "SIGUSR1"))
    assert finished.returncode == 75, finished.stderr
    first = (tmp_path / "run" / "seed-0" / "results.json").read_bytes()
    assert start(2, tmp_path, "--resume").returncode == 0
    assert (tmp_path / "run" / "seed-0" / "results.json").read_bytes() == first
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "run" / "seed-1", tmp_path / "other" / "run")
    assert_same(outcome(tmp_path / "other"), undisturbed(2, "--methods", "dnn", "--seed", "1"))


@pytest.mark.parametrize("limit", ["option", "slurm"])
def test_a_time_limit_stops_the_run(tmp_path, limit):
    options, environment = ("--time-limit", "0.0001"), {}
    if limit == "slurm":
        options, environment = (), {"SLURM_JOB_START_TIME": str(int(time.time())), "SLURM_JOB_END_TIME": str(int(time.time()) + 1)}
    finished = start(2, tmp_path, *SHORT, *options, **environment)
    assert finished.returncode == 75, finished.stderr
    assert {"option": "--time-limit", "slurm": "the end of the SLURM job"}[limit] in finished.stderr
    assert start(2, tmp_path, "--resume").returncode == 0


def test_a_second_signal_ends_at_once(tmp_path):
    finished = start(2, tmp_path, *SHORT, interrupted=("local-0003", 3, 1, "SIGUSR1+SIGUSR1"))
    assert finished.returncode not in (0, 2, 75)
    training = tmp_path / "run" / "checkpoints" / "training"
    assert list(training.glob("local-0002/*")) and not list(training.glob("local-0003/*"))  # what one signal would have kept


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--grid", "1x2"), ["--grid 1x2", "the run in run has 2x2"]),
        (("--seed", "3"), ["--seed 3", "has 0"]),
        (("--network", "vgg9"), ["--network vgg9", "has vgg3"]),
        (("--lr", "0.1"), ["--lr 0.1", "has 0.005"]),
        (("--data", "cifar10"), ["--data cifar10", "has data.npz"]),
        (("--overwrite",), ["--overwrite", "--resume"]),
    ],
)
def test_other_settings_are_refused_with_the_difference(tmp_path, stopped, options, words):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    line = refusal(start(2, tmp_path, "--resume", *options))
    for word in words:
        assert word in line


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run of the method global that was stopped; of data that may change."""
    folder = tmp_path_factory.mktemp("stopped")
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 255, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
    np.savez(folder / "data.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    options = ("--methods", "global", "--data", "data.npz", "--train-samples", "48", "--batch-size", "16", "--grid", "2x2")
    finished = start(2, folder, *quick(train_samples=None), *options, interrupted=("global", 2, 0, "SIGUSR1"))
    assert finished.returncode == 75, finished.stderr
    return folder


def test_other_data_are_refused(tmp_path, stopped):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    with np.load(tmp_path / "data.npz") as file:
        arrays = {name: file[name].copy() for name in file}
    np.savez(tmp_path / "data.npz", **arrays | {"x_train": arrays["x_train"] + 1})
    assert "is of a run with data" in refusal(start(2, tmp_path, "--resume"))
    np.savez(tmp_path / "data.npz", **arrays)
    assert start(2, tmp_path, "--resume").returncode == 0


@pytest.mark.parametrize("left", ["report.md", "seed-best/results.json", "checkpoints/best.h5", "figures/mine.png", "config.toml"])
@pytest.mark.parametrize("option", [(), ("--resume",)])
def test_a_folder_that_is_not_a_run_s_is_left_alone(tmp_path, left, option):
    path = tmp_path / "run" / left
    path.parent.mkdir(parents=True)
    path.write_text("mine = 1\n", "utf-8")
    assert "--output run" in refusal(start(1, tmp_path, *SHORT, *option))
    assert path.read_text("utf-8") == "mine = 1\n"


def test_checkpoints_without_their_settings_are_not_thrown_away(tmp_path, stopped):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run" / "config.toml").unlink()
    before = sorted((tmp_path / "run").rglob("*"))
    line = refusal(start(2, tmp_path, "--resume", "--data", "data.npz"))
    assert "config.toml is missing or damaged" in line
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_checkpoints_behind_a_link_are_not_followed(tmp_path, stopped):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    training = tmp_path / "run" / "checkpoints" / "training" / "global"
    shutil.move(training, tmp_path / "elsewhere")
    training.symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    assert "is a link" in refusal(start(2, tmp_path, "--resume"))
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


def test_begun_with_overwrite_on_a_partitioned_set_with_a_grid_of_its_own(tmp_path):
    assert on_ranks(1, "partition", "digits", "--grid", "1x2", "--overlap", "1", "--output", "set.h5", cwd=tmp_path).returncode == 0
    options = ("--data", "set.h5", "--methods", "vote", "--overwrite", "--epochs", "2", "--network", "vgg3", "--progress", "none")
    assert start(2, tmp_path, *options, interrupted=("local-0001", 3, 1, "SIGUSR1")).returncode == 75
    finished = start(2, tmp_path, "--resume")
    assert finished.returncode == 0, finished.stderr


def test_a_request_to_a_rank_that_waits_is_passed_on(tmp_path):
    """While rank 0 trains the DNN."""
    with Started(2, "run", "--output", "run", *SHORT, "--methods", "dnn", "--dnn-epochs", "1000000", cwd=tmp_path) as run:
        metrics = tmp_path / "run" / "metrics.jsonl"
        run.wait_for(lambda: metrics.exists() and '"dnn"' in metrics.read_text("utf-8"))
        os.kill(run.ranks()[1], signal.SIGUSR1)
        run.seconds_to_end(most=60)
        assert run.process.returncode == 75
        assert "stopped: SIGUSR1" in run.said()


def test_partitioning_can_be_stopped(tmp_path):
    options = ("--data", "synthetic:64x64x4x200000", "--partitions", "parts", "--progress", "none")
    with Started(2, "run", "--output", "run", *options, cwd=tmp_path) as run:
        run.wait_for(lambda: list(tmp_path.glob("parts/*.parts/*.h5")))
        run.process.send_signal(signal.SIGUSR1)
        run.seconds_to_end(most=60)
        assert run.process.returncode == 75
        assert "while the images were being partitioned" in run.said()
    assert list(tmp_path.glob("parts/*")) == []


def test_a_run_that_has_not_finished_is_not_thrown_away_unasked(tmp_path, stopped):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    line = refusal(start(2, tmp_path, "--data", "data.npz", "--methods", "global"))
    assert "--resume" in line and "--overwrite" in line


def test_resume_needs_a_folder_and_begins_where_there_is_nothing(tmp_path):
    assert "--output" in refusal(on_ranks(1, "run", "--resume", cwd=tmp_path))
    finished = start(1, tmp_path, *SHORT, "--methods", "vote", "--resume")
    first, table = finished.stdout.split("\n", 1)
    assert (finished.returncode, first) == (0, "run: no run to go on with; a new one, on digits, begins")
    assert table.split()[0] == "method" and table.endswith("report: run/report.md\n")  # whatever --progress says


def test_a_request_while_mpi_starts_is_not_lost(tmp_path):
    """MPICH has a handler of its own for SIGUSR1, which swallows it."""
    with Started(2, "run", "--output", "run", *SHORT, "--methods", "vote", cwd=tmp_path) as run:
        run.wait_for(lambda: len(run.ranks()) == 2 and all(_holds(process) for process in run.ranks().values()))
        os.kill(run.ranks()[1], signal.SIGUSR1)
        run.seconds_to_end(most=60)
        assert run.process.returncode == 75, run.said()


def _holds(process: int) -> bool:
    """Whether a process has begun to hold back what asks to stop."""
    with suppress(OSError):
        blocked = next(line for line in Path(f"/proc/{process}/status").read_text("utf-8").splitlines() if line.startswith("SigBlk"))
        return bool(int(blocked.split()[1], 16) & 1 << (signal.SIGUSR1 - 1))
    return False

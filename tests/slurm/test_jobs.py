"""The scripts in jobs/, on a SLURM that is started for these tests."""

import ast
import csv
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from cluster import OVER
from quick import quick

JOBS = Path(__file__).parents[2] / "jobs"
QUICK = quick(train_samples=400, epochs=None, dnn_epochs=3, transfer_epochs=2, methods="average,dnn,transfer")
LONG = (*QUICK, "--epochs", "60")  # so that there is time to stop it
ENDLESS = (*QUICK, "--epochs", "5000")


def results(folder):
    return json.loads((folder / "results.json").read_text("utf-8"))


def weights(folder):
    """Every dataset of the checkpoints of finished networks."""
    found = {}
    for path in sorted((folder / "checkpoints").glob("*.h5")):
        with h5py.File(path) as file:
            file.visititems(lambda name, item, path=path: found.update({(path.name, name): item[...]} if hasattr(item, "shape") else {}))
    return found


def epochs(folder):
    """Lines of metrics.jsonl so far: those of rank 0."""
    path = folder / "metrics.jsonl"
    return len(path.read_text("utf-8").splitlines()) if path.exists() else 0


def trains(slurm, job, folder):
    """Waits until the ranks of a job have trained some epochs."""
    slurm.until(lambda: epochs(folder) >= 4 or slurm.jobs(job)[0]["JobState"] == "FAILED", f"job {job} did not begin to train")
    assert slurm.jobs(job)[0]["JobState"] == "RUNNING", (folder.parents[1] / f"ddcnn-{job}.out").read_text("utf-8")


def submitted(told):
    """The numbers of a study's jobs, and of the one that collects: "jobs 1, 2, one after the other, then job 3: study/scaling.md"."""
    jobs, collector = re.fullmatch(r"jobs (.*), one after the other, then job (\d+): study/scaling.md\n", told).groups()
    return jobs.split(", "), collector


def ranks_of(slurm, job):
    """Process numbers of a job's ranks, in their order."""
    lines = [line.split() for line in slurm.run("scontrol", "listpids", f"{job}.0").splitlines()[1:]]
    return [int(pid) for pid, _, _, _, rank in sorted(lines, key=lambda line: line[4]) if rank.isdigit()]


def test_a_job_runs_a_rank_a_subdomain_and_leaves_a_report(slurm, tmp_path):
    job = slurm.submit("train.sbatch", *QUICK, "--epochs", "2", cwd=tmp_path)
    over = slurm.wait(job)
    output = (tmp_path / f"ddcnn-{job}.out").read_text("utf-8")
    assert (over["JobState"], over["Restarts"], over["Requeue"]) == ("COMPLETED", "0", "1"), output
    environment = results(tmp_path / "runs" / job)["environment"]
    assert (environment["ranks"], environment["subdomains_per_rank"], environment["threads_per_rank"]) == (4, 1, 1)
    assert (tmp_path / "runs" / job / "report.md").exists()


@pytest.fixture(scope="module")
def undisturbed(slurm, tmp_path_factory):
    """Weights of a run that is not stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert slurm.wait(slurm.submit("train.sbatch", *LONG, cwd=folder, DDCNN_OUTPUT="run"))["JobState"] == "COMPLETED"
    return weights(folder / "run")


@pytest.mark.full
@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_job_that_is_stopped_goes_on_and_ends_with_the_same_weights_bit_for_bit(slurm, undisturbed, tmp_path, name):
    job = slurm.submit("train.sbatch", *LONG, cwd=tmp_path)
    trains(slurm, job, tmp_path / "runs" / job)
    slurm.run("scancel", f"--signal={name}", job)  # as --signal=USR1@120 does before the time limit: to the ranks
    slurm.until(lambda: slurm.jobs(job)[0]["Restarts"] == "1" or slurm.jobs(job)[0]["JobState"] in OVER, "neither requeued nor over")
    assert not (tmp_path / "runs" / job / "results.json").exists()
    over = slurm.wait(job)
    output = (tmp_path / f"ddcnn-{job}.out").read_text("utf-8")
    assert (over["JobState"], over["Restarts"]) == ("COMPLETED", "1"), output
    after = weights(tmp_path / "runs" / job)
    assert len(after) > 20 and after.keys() == undisturbed.keys()
    for dataset, values in undisturbed.items():
        np.testing.assert_array_equal(after[dataset], values, err_msg=str(dataset))


def test_the_end_of_the_job_is_known(slurm, tmp_path):
    """Old SLURMs do not say it in the environment."""
    program = "from ddcnn.parallel.stop_requests import slurm_job; print(slurm_job())"
    command = f"srun {sys.executable} -c '{program}'"
    job = slurm.run("sbatch", "--parsable", "--time=3", "--output=out", f"--wrap={command}", cwd=tmp_path).strip()
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    begin, end = ast.literal_eval((tmp_path / "out").read_text("utf-8"))
    assert end - begin == 180 and abs(time.time() - begin) < 60


@pytest.mark.full
def test_a_job_that_reaches_its_time_limit_too_often_ends(slurm, tmp_path):
    """ddcnn's own --time-limit, since SLURM's is a minute at least."""
    job = slurm.submit("train.sbatch", *ENDLESS, "--time-limit", "0.1", cwd=tmp_path, DDCNN_MOST_REQUEUES="1")
    over = slurm.wait(job)
    output = (tmp_path / f"ddcnn-{job}.out").read_text("utf-8")
    assert (over["JobState"], over["Restarts"], over["ExitCode"]) == ("FAILED", "1", "75:0"), output
    assert "requeued 1 times and still not finished" in output


@pytest.mark.full
def test_a_rank_that_is_killed_ends_the_job_at_once_and_for_good(slurm, tmp_path):
    job = slurm.submit("train.sbatch", *ENDLESS, cwd=tmp_path)
    trains(slurm, job, tmp_path / "runs" / job)
    ranks = ranks_of(slurm, job)
    assert len(ranks) == 4
    os.kill(ranks[2], signal.SIGKILL)
    killed = time.monotonic()
    over = slurm.wait(job)
    assert time.monotonic() - killed < 20  # 10 s are SLURM's KillWait here
    assert over["JobState"] == "FAILED" and over["Restarts"] == "0" and over["ExitCode"] not in ("0:0", "75:0")


@pytest.mark.full
def test_a_job_that_is_cancelled_is_not_requeued(slurm, tmp_path):
    """Cancelling sends SIGTERM too, upon which the ranks save and exit with 75."""
    job = slurm.submit("train.sbatch", *ENDLESS, cwd=tmp_path)
    trains(slurm, job, tmp_path / "runs" / job)
    slurm.run("scancel", job)
    over = slurm.wait(job)
    time.sleep(8)  # longer than a requeued job would wait here
    assert (over["JobState"], over["Restarts"]) == ("CANCELLED", "0")
    assert slurm.jobs(job)[0]["JobState"] == "CANCELLED"


@pytest.mark.full
@pytest.mark.parametrize(("kind", "options"), [("strong", ("--train-samples", "400")), ("weak", ("--width", "8"))])
def test_a_scaling_study_is_submitted_with_one_command_and_collected(slurm, tmp_path, kind, options):
    small = {"DDCNN_RANKS": "1 2 4", "DDCNN_STUDY": "study", "DDCNN_REPETITIONS": "1"} | (
        {"DDCNN_SIDE": "8", "DDCNN_SAMPLES": "200"} if kind == "weak" else {}
    )
    told = slurm.run("bash", JOBS / f"{kind}_scaling.sbatch", "--network", "vgg3", "--epochs", "2", *options, cwd=tmp_path, **small)
    jobs, collector = submitted(told)
    over = slurm.wait(collector)
    study = tmp_path / "study"
    outputs = [path.read_text("utf-8") for path in study.glob("*.out")]
    assert over["JobState"] == "COMPLETED", outputs
    for job, ranks in zip(jobs, "124", strict=True):  # each has what it needs, and no more
        (told,) = slurm.jobs(job)
        assert (told["JobState"], told["NumTasks"], told["NumCPUs"]) == ("COMPLETED", ranks, ranks)
    rows = list(csv.DictReader((study / "scaling.csv").open(encoding="utf-8")))
    assert [row["ranks"] for row in rows] == ["1", "2", "4"]
    assert {len(results(study / row["ranks"])["decomposition"]["subdomains"]) for row in rows} == ({4} if kind == "strong" else {1, 2, 4})
    assert (study / "scaling.png").stat().st_size > 10_000
    assert f"# {kind.title()} scaling" in (study / "scaling.md").read_text("utf-8")


@pytest.mark.full
def test_a_study_with_a_failed_run_is_not_collected(slurm, tmp_path):
    options = ("--network", "vgg3", "--epochs", "1", "--data", "nowhere")
    told = slurm.run(
        "bash", JOBS / "strong_scaling.sbatch", *options, cwd=tmp_path, DDCNN_RANKS="1 2", DDCNN_STUDY="study", DDCNN_REPETITIONS="1"
    )
    jobs, collector = submitted(told)
    assert slurm.wait(collector)["JobState"] == "CANCELLED"  # as soon as one of them has failed
    for job, ranks in zip(jobs, "12", strict=True):
        assert slurm.wait(job)["JobState"] == "FAILED"
        assert "--data nowhere" in (tmp_path / "study" / f"{ranks}.out").read_text("utf-8")
    assert not (tmp_path / "study" / "scaling.md").exists()


def test_a_study_that_no_rank_can_run_is_not_submitted(slurm, tmp_path):
    before = slurm.run("squeue", "--noheader", "--states=all")
    told = slurm.run("bash", JOBS / "strong_scaling.sbatch", cwd=tmp_path, check=False, DDCNN_RANKS="2 3", DDCNN_STUDY="study")
    assert told == "" and not (tmp_path / "study").exists()
    assert slurm.run("squeue", "--noheader", "--states=all") == before


@pytest.mark.full
def test_a_study_is_submitted_by_the_command_with_repetitions_and_options_of_sbatch(slurm, tmp_path):
    sizes = ("--ranks", "1,2", "--repetitions", "2", "--side", "8", "--samples", "200", "--output", "study")
    where = ("--slurm", "--launcher", f"srun --mpi={slurm.environment['DDCNN_MPI']}", "--sbatch=--time=05:00 --comment=ours")
    options = ("--network", "vgg3", "--width", "8", "--epochs", "1")
    told = slurm.run(sys.executable, "-m", "ddcnn", "scaling", "weak", *sizes, *where, "--", *options, cwd=tmp_path)
    jobs, collector = submitted(told)
    study = tmp_path / "study"
    assert slurm.wait(collector)["JobState"] == "COMPLETED", [path.read_text("utf-8") for path in study.glob("*.out")]
    for (job,) in map(slurm.jobs, (*jobs, collector)):
        assert (job["TimeLimit"], job["Comment"]) == ("00:05:00", "ours")
    assert [(row["ranks"], row["runs"]) for row in csv.DictReader((study / "scaling.csv").open(encoding="utf-8"))] == [
        ("1", "2"),
        ("2", "2"),
    ]

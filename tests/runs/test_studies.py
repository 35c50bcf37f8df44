"""Scaling studies, run as a user does."""

import csv
import json
import signal
import subprocess
from pathlib import Path

import pytest
from launching import MPIRUN, Started, alone, refusal
from quick import full, quick

OPTIONS = quick(width=8, epochs=1, dnn_epochs=1, threads=None)
LAUNCHER = ("--launcher", " ".join(MPIRUN))


def study(folder: Path, *arguments: str, options: tuple[str, ...] = OPTIONS, **environment: str) -> subprocess.CompletedProcess:
    return alone("scaling", *arguments, *LAUNCHER, "--output", "study", "--", *options, cwd=folder, **environment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder in which a study of two runs lies, which began with one."""
    folder = tmp_path_factory.mktemp("studies")
    begun = study(folder, "strong", "--ranks", "1", "--repetitions", "1", "--no-collect")
    assert begun.returncode == 0 and not (folder / "study" / "scaling.md").exists(), begun.stderr
    done = study(folder, "strong", "--ranks", "1,2", "--repetitions", "1")
    assert done.returncode == 0, done.stderr
    assert "strong scaling  2/2 runs  2 ranks, repetition 1" in done.stdout
    return folder


def test_a_study_runs_every_number_of_ranks_partitions_once_and_is_collected(finished):
    found = finished / "study"
    assert [row["ranks"] for row in csv.DictReader((found / "scaling.csv").open(encoding="utf-8"))] == ["1", "2"]
    assert [json.loads((found / name / "results.json").read_text("utf-8"))["environment"]["ranks"] for name in "12"] == [1, 2]
    assert {json.loads((found / name / "results.json").read_text("utf-8"))["environment"]["threads_per_rank"] for name in "12"} == {1}
    assert len(list((found / "partitions").glob("*.h5"))) == 1
    assert (found / "1.log").exists() and (found / "scaling.png").exists()


def test_a_study_goes_on_with_what_is_missing_and_keeps_the_threads_of_its_beginning(finished):
    found = finished / "study"
    (found / "2" / "report.md").unlink()  # as if it had been killed
    before = (found / "1" / "results.json").stat().st_mtime_ns
    done = study(finished, "strong", "--ranks", "1,2", "--repetitions", "1", OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    assert {json.loads((found / name / "results.json").read_text("utf-8"))["environment"]["threads_per_rank"] for name in "12"} == {1}
    assert "1 ranks" not in done.stdout and "2 ranks, repetition 1" in done.stdout
    assert (found / "1" / "results.json").stat().st_mtime_ns == before and (found / "2" / "report.md").exists()
    again = study(finished, "strong", "--ranks", "1,2", "--repetitions", "1")
    assert again.returncode == 0 and "repetition" not in again.stdout and "study: study/scaling.md" in again.stdout


@pytest.mark.parametrize(("kind", "options"), [("strong", ("--epochs", "2")), ("weak", OPTIONS)])
def test_the_folder_of_another_study_is_refused(finished, kind, options):
    before = (finished / "study" / "study.toml").read_text("utf-8")
    assert "holds another study" in refusal(study(finished, kind, "--ranks", "1,2", options=options))
    assert (finished / "study" / "study.toml").read_text("utf-8") == before


def test_a_study_cannot_be_started_by_a_launcher(finished):
    done = alone("scaling", "strong", "--output", "other", *LAUNCHER, cwd=finished, PMI_SIZE="2", PMI_RANK="0")
    assert "start it without mpirun" in refusal(done)


def test_a_run_that_is_refused_ends_the_study_with_its_words(tmp_path):
    told = refusal(study(tmp_path, "strong", options=("--data", "nowhere")))
    assert "--data nowhere" in told and "all of it: study/1.log" in told
    assert "--data nowhere" in (tmp_path / "study" / "1.log").read_text("utf-8")
    assert not (tmp_path / "study" / "2.log").exists()


def test_a_run_that_fails_ends_the_study_with_its_words(tmp_path):
    done = study(tmp_path, "strong", options=(*OPTIONS, "--lr", "1e30", "--optimizer", "sgd"))
    assert done.returncode == 1, done.stderr
    assert "subdomain 0: a network" in done.stderr.splitlines()[-1] and "study/1.log" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, full(signal.SIGTERM)])
def test_a_study_that_is_ended_leaves_no_rank_behind(tmp_path, number):
    arguments = ("scaling", "strong", *LAUNCHER, "--output", "study", "--", *OPTIONS, "--epochs", "100000")
    with Started(None, *arguments, cwd=tmp_path) as started:
        log = tmp_path / "study" / "1" / "metrics.jsonl"
        started.wait_for(lambda: log.exists() and log.stat().st_size)
        assert len(started.processes()) > 2
        started.process.send_signal(number)
        started.seconds_to_end(20)
        assert started.process.returncode == 128 + number

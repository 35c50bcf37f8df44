"""Calls that a person gets wrong, and that no other test makes: one line names the culprit and the way out."""

import os
import subprocess
from pathlib import Path

import pytest

from ddcnn.__main__ import execute, needs_ranks
from ddcnn.errors import InputError

CALLS = [
    ("run -data digits", r"unknown option -data \(did you mean --data\?\); see python -m ddcnn run --help"),
    ("run digits", "digits belongs to no option; images are named with --data digits"),
    ("run --output TMP/text.txt", "text.txt is a file: name a folder"),
    ("run --resume", "--resume: name the folder of the run with --output"),
    ("run --start-from TMP", "no results.json there; give the folder of a finished run"),
    ("partition nowhere --output TMP/set.h5", r"^nowhere: no such file or folder, and no known set"),
    ("partition digits", "--output FILE.h5 is required: the partitioned file to write"),
    ("partition digits --output TMP/text.txt", r"ends in \.h5"),
    ("predict RUN digits", r"--output FILE.csv\|FILE.h5 is required: file of the predictions"),
    ("predict digits RUN --output TMP/p.csv", "digits: no such folder; give the folder of a finished run"),
    ("predict --output TMP/p.csv RUN -- --help", "--help"),
    ("predict RUN digits digits --output TMP/p.csv", "digits belongs to no option; see python -m ddcnn predict --help"),
    ("export RUN", "--output FILE is required: the file to write"),
    (
        "export RUN --output TMP/network",
        r"--format is required: torch-export, onnx or state-dict; or an --output that ends in \.pt2, \.onnx",
    ),
    *(
        (f"export RUN --format onnx --output TMP/network.onnx {option}", "unknown option --")
        for option in ("--data-root TMP", "--download", "--skip-damaged", "--progress none", "--stall-timeout 5")
    ),
    ("report --folow RUN", r"unknown option --folow \(did you mean --follow\?\); see python -m ddcnn report --help"),
    ("report RUN --output x", "unknown option --output; see python -m ddcnn report --help"),
    ("report", "required: RUN"),
    ("scaling strong --output TMP/s --data digits", r"unknown option --data \(options of ddcnn run go after --\)"),
    ("scaling predict TMP", "no study.toml of a scaling study"),
    ("scaling collect RUN --output TMP/s", "different numbers"),
    ("info --verbose", "unknown option --verbose; see python -m ddcnn info --help"),
    ("runn", r"runn: no such command \(did you mean run\?\); there are run, partition, predict"),
    ("scaling", "scaling: name a command; there are strong, weak, collect, predict"),
    ("scaling colect", r"scaling: colect: no such command \(did you mean collect\?\); there are strong"),
    ("run --data digits --batch-size 64 --accumulate 33", "fewer than two samples of a batch of 64 .*: take 32 at most"),
    ("run --device cpu --precision fp16", "--precision fp16 needs a GPU; take bf16 or fp32"),  # nothing is partitioned before
    ("scaling weak --output TMP/s --samples 9", "--samples 9: give 10 or more"),
]


@pytest.mark.parametrize(("call", "words"), CALLS, ids=[call for call, _ in CALLS])
def test_a_wrong_call_is_refused_in_a_line_that_says_what_to_do(digits_run, world, tmp_path, monkeypatch, call, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("mine", "utf-8")
    arguments = call.replace("TMP", str(tmp_path)).replace("RUN", str(digits_run)).split()
    with pytest.raises(InputError, match=words) as refused:
        execute(arguments, world if needs_ranks(arguments) else None)
    assert "\n" not in str(refused.value)
    assert [path.name for path in Path().iterdir()] == ["text.txt"]


@pytest.mark.parametrize("job", ["train", "strong_scaling", "weak_scaling"])
def test_a_job_without_its_virtual_environment_says_which_variable_names_it(tmp_path, job):
    script = Path(__file__).parent.parent / "jobs" / f"{job}.sbatch"
    environment = os.environ | {"DDCNN_VENV": "nowhere", "SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "1"}
    done = subprocess.run(["bash", str(script)], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == f"no virtual environment nowhere in {tmp_path}: set DDCNN_VENV to its path, or to nothing\n"

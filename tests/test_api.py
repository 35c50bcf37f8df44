"""What the Python API refuses, and that it costs nothing to import."""

import subprocess
import sys

import pytest

import ddcnn

SMALL = {"network": "vgg3", "width": 4, "epochs": 1, "train_samples": 60, "test_samples": 20}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlop": 1}, "unknown option overlop (did you mean overlap?)"),
        ({"grid": "2x"}, "--grid 2x: write it as rows x columns"),
        ({"data": "digit"}, "--data digit: no such file or folder, and no known set (did you mean digits"),
        ({"output": "runs/first"}, "output: an option of ddcnn run and its folder"),
        ({"dnn_data": "out-of-fold"}, "take train or holdout"),
        ({"network": "vgg33"}, "vgg33"),
    ],
)
def test_bad_options_are_refused_as_the_command_refuses_them(world, tmp_path, options, words):
    with pytest.raises(ddcnn.InputError) as refusal:
        ddcnn.decompose(world, partitions=tmp_path, **options)
    assert words in str(refusal.value)


def test_what_does_not_fit_the_problem_is_refused(world, tmp_path):
    problem = ddcnn.decompose(world, partitions=tmp_path, **SMALL)
    with pytest.raises(ValueError, match="subdomain 4 is not one of this rank's"):
        problem.train_local(4)
    with pytest.raises(ValueError, match="split 'all': known are train, validation, test"):
        problem.gather([], "all")
    with pytest.raises(ValueError, match="interface 'logit': known are"):
        problem.gather([], "test", "logit")


def test_every_public_name_is_there_and_importing_ddcnn_brings_no_torch():
    assert {name for name in dir(ddcnn) if getattr(ddcnn, name) is not None} >= set(ddcnn.PUBLIC)
    code = "import sys, ddcnn; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'mpi4py')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

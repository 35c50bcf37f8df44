"""The Python API: the README's lines, as a script under mpirun, against the command with the same options."""

import json

import pytest
from launching import launch, on_ranks
from readme import blocks

(SCRIPT,) = blocks("python", "In a script or a notebook")
SCRIPT_UNDER_MPI4PY = ("-m", "mpi4py", "script.py")
OPTIONS = ("--data=digits", "--grid=2x2", "--overlap=1", "--network=vgg3", "--epochs=5", "--methods=vote,average,dnn", "--no-figures")


@pytest.fixture(scope="module")
def accuracies(tmp_path_factory) -> dict[str, float]:
    """Of the command."""
    folder = tmp_path_factory.mktemp("command")
    finished = on_ranks(1, "run", *OPTIONS, "--output=run", "--evaluate-every=0", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    methods = json.loads((folder / "run" / "results.json").read_text("utf-8"))["methods"]
    return {name: method["test_accuracy"] for name, method in methods.items()}


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_readme_s_lines_find_what_the_command_finds(tmp_path, accuracies, ranks):
    (tmp_path / "script.py").write_text(SCRIPT, "utf-8")
    finished = launch(2, cwd=tmp_path, program=SCRIPT_UNDER_MPI4PY) if ranks == 2 else on_ranks(ranks, cwd=tmp_path, script="script.py")
    assert finished.returncode == 0, finished.stderr
    printed = dict(line.split() for line in finished.stdout.splitlines())
    assert {name: float(accuracy) for name, accuracy in printed.items()} == accuracies


CHECKS = """
import numpy as np, ddcnn
world = ddcnn.World()
problem = ddcnn.decompose(world, grid=(1, 2), network="vgg3", width=4, epochs=1, train_samples=100, test_samples=50,
                          interface="logits", dnn_data="holdout", threads=1)
local_cnns = [problem.train_local(i) for i in problem.owned]
handed, p = problem.gather(local_cnns, "train"), problem.gather(local_cnns, "test", "probabilities")
if world.rank:
    assert handed is None and p is None
else:
    assert handed.shape == (20, 2, 10) and p.shape == (50, 2, 10) and np.allclose(p.sum(2), 1), (handed.shape, p.shape)
    decided = problem.decide(problem.train_dnn(handed), problem.gather(local_cnns, "test") if world.size == 1 else handed)
    assert np.allclose(decided.sum(1), 1)
"""


@pytest.mark.parametrize("ranks", [1, 2, 4])  # 4: two ranks train a subdomain together
def test_options_mean_what_they_mean_to_the_command(tmp_path, ranks):
    (tmp_path / "script.py").write_text(CHECKS, "utf-8")
    finished = on_ranks(ranks, cwd=tmp_path, script="script.py")
    assert finished.returncode == 0, finished.stderr

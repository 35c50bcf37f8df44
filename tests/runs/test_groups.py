"""More ranks than subdomains: whole runs, whose subdomains are trained by groups of ranks."""

import json

import pytest
from launching import on_ranks, refusal
from quick import full
from resuming import SHORT, assert_same, outcome, start

GRID = ("--grid", "1x2")
METHODS = ["vote", "average", "dnn", "coherent", "transfer", "global"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run of two ranks a subdomain."""
    folder = tmp_path_factory.mktemp("groups")
    finished = start(4, folder, *SHORT, *GRID)
    assert finished.returncode == 0, finished.stderr
    return folder


def test_a_group_of_ranks_leaves_what_one_rank_would(undisturbed, tmp_path):
    results = json.loads((undisturbed / "run" / "results.json").read_text("utf-8"))
    assert (results["environment"]["subdomains_per_rank"], results["environment"]["ranks_per_subdomain"]) == (1, 2)
    assert list(results["methods"]) == METHODS
    assert start(1, tmp_path, *SHORT, *GRID).returncode == 0
    alone = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    for name, method in results["methods"].items():
        assert method["parameters"] == alone["methods"][name]["parameters"]
        assert len(method["curve"]) == len(alone["methods"][name]["curve"])
        assert method["bytes_communicated"] > alone["methods"][name]["bytes_communicated"] == 0
        assert method["test_accuracy"] == pytest.approx(alone["methods"][name]["test_accuracy"], abs=0.15)  # other batch statistics
    lines, expected = (
        [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
        for folder in (undisturbed, tmp_path)
    )
    names = ("phase", "subdomain", "epoch")
    assert [[line[name] for name in names] for line in lines] == [[line[name] for name in names] for line in expected]
    files = [sorted(path.name for path in (folder / "run" / "checkpoints").iterdir()) for folder in (undisturbed, tmp_path)]
    assert files[0] == files[1]


@pytest.mark.parametrize("what", ["SIGUSR1", full("SIGKILL")])
def test_groups_that_are_stopped_go_on_bit_for_bit(undisturbed, tmp_path, what):
    for training, rank in (("local-0001", 3), ("dnn", 0), ("coherent", 1), ("transfer-frozen", 2)):
        finished = start(4, tmp_path, *SHORT, *GRID, "--resume", interrupted=(training, 5, rank, what))
        assert (finished.returncode == 75) == (what == "SIGUSR1"), finished.stderr
        assert finished.returncode not in (0, 2)
    finished = start(4, tmp_path, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert_same(outcome(tmp_path), outcome(undisturbed))
    sent, expected = (
        {
            name: method["bytes_communicated"]
            for name, method in json.loads((folder / "run" / "results.json").read_text("utf-8"))["methods"].items()
        }
        for folder in (tmp_path, undisturbed)
    )
    assert sent == pytest.approx(expected, abs=5000)  # the records' text is not always as long


def test_what_one_rank_of_a_group_cannot_write_ends_all(tmp_path):
    """The other one must not wait for it, until it is taken for dead, in the next step that they take together."""
    happens = "rm run/metrics.jsonl && mkdir run/metrics.jsonl"
    options = (*SHORT, "--grid", "1x1", "--methods", "vote", "--stall-timeout", "40")
    finished = start(2, tmp_path, *options, interrupted=("local-0000", 3, 0, happens))
    assert "run/metrics.jsonl: cannot be written (Is a directory)" in refusal(finished)


@pytest.mark.parametrize(
    "options",
    [
        ("--dnn-data", "out-of-fold", "--folds", "2", "--interface", "logits", "--methods", "dnn,transfer"),
        ("--decomposition", "width", "--network", "resnet20", "--width", "16", "--frozen-epochs", "0", "--methods", "dnn,transfer"),
        ("--train-samples", "30", "--methods", "vote,dnn,coherent"),  # fewer than a batch
    ],
)
def test_groups_of_every_kind_finish(tmp_path, options):
    finished = start(4, tmp_path, *SHORT, *GRID, *options)
    assert finished.returncode == 0, finished.stderr


def test_what_fits_neither_way_is_refused_with_what_would(tmp_path):
    line = refusal(on_ranks(3, "run", *SHORT, *GRID, cwd=tmp_path))
    assert "3 ranks do not fit 2 subdomains (--grid 1x2): start 1 or 2 ranks, or a multiple of 2" in line


def test_the_results_say_the_batch_size_that_was_trained_with(tmp_path):
    """Three ranks of a group have equal shares of a batch of 128, which are 126 samples; the DNN is trained by one rank."""
    finished = start(3, tmp_path, *SHORT, "--grid", "1x1", "--batch-size", "128", "--evaluate-every", "0")
    assert finished.returncode == 0, finished.stderr
    methods = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))["methods"]
    assert {name: method["batch_size"] for name, method in methods.items()} == dict.fromkeys(METHODS, 126) | {"dnn": 128}

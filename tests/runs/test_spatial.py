"""Runs of spatial: the network of global in other pieces, which stops, goes on, and classifies like any other."""

import csv
import json
import re

import h5py
import numpy as np
import pytest
from launching import on_ranks, refusal
from quick import quick
from resuming import SHORT, assert_same, outcome, start

SPATIAL = (*SHORT, "--methods", "spatial")


def parameters(path, learnt: bool = False) -> np.ndarray:
    """With the statistics of batch normalisation, unless only what is ``learnt`` is asked for."""
    with h5py.File(path) as file:
        found = [values[...] for name, values in sorted(file["parameters"].items()) if not (learnt and re.search("running|batches", name))]
        return np.concatenate([values.astype(np.float64).ravel() for values in found])


def test_spatial_trains_the_network_of_global_on_any_number_of_ranks(tmp_path):
    """How far the first step goes, before rounding is amplified; of one rank the same bits.

    Three ranks do not fit two subdomains, which are not symmetric here: that matters to local CNNs alone.
    """
    for ranks, rate in ((0, 1e-30), (1, 0.1), (3, 0.1), (4, 0.1)):  # the first one hardly moves
        options = quick(
            methods="global,spatial" if ranks == 1 else "spatial", epochs=None, global_epochs=1, batch_size=300, optimizer="sgd",
            train_samples=300, image_size=9, grid="1x2", overlap=1, augment="flip+shift+erase", shift=1, lr=rate, schedule="constant",
        )  # fmt: skip
        done = on_ranks(ranks or 1, "run", *options, "--output", str(ranks), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    planned = on_ranks(3, "run", *options, "--batch-size=3", "--dry-run", cwd=tmp_path).stdout
    assert "\nranks      3, all for the whole images; CPU, " in planned and "of a subdomain" not in planned
    of_global, *others = ["1/checkpoints/global.h5", *(f"{ranks}/checkpoints/spatial.h5" for ranks in (1, 3, 4))]
    assert np.array_equal(parameters(tmp_path / of_global), parameters(tmp_path / others[0]))
    begin, end = (parameters(tmp_path / name, learnt=True) for name in ("0/checkpoints/spatial.h5", of_global))
    for name in others[1:]:
        np.testing.assert_allclose(parameters(tmp_path / name), parameters(tmp_path / of_global), rtol=1e-3, atol=1e-5)
        assert np.linalg.norm(parameters(tmp_path / name, learnt=True) - end) < 1e-3 * np.linalg.norm(end - begin)


@pytest.mark.parametrize("what", ["SIGUSR1", "SIGKILL"])
def test_stopped_and_resumed_it_ends_with_the_same_bits(tmp_path, what):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert start(2, tmp_path / "a", *SPATIAL).returncode == 0
    stopped = start(2, tmp_path / "b", *SPATIAL, "--resident", "stream", "--resume", interrupted=("spatial", 12, 1, what))
    assert stopped.returncode == 75 if what == "SIGUSR1" else stopped.returncode not in (0, 2, 75), stopped.stderr
    finished = start(2, tmp_path / "b", "--resume")
    assert finished.returncode == 0, finished.stderr
    assert_same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predict_decides_as_the_run_did(tmp_path, precision):
    options = quick(methods="spatial", epochs=1, width=8, network="vgg9", image_size=16, precision=precision, recompute=True)
    done = on_ranks(2, "run", *options, "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = on_ranks(None, "predict", "run", "digits", "--output", "p.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text("utf-8").splitlines()))
    accuracy = np.mean([row["label"] == row["class"] for row in rows])
    expected = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))["methods"]["spatial"]["test_accuracy"]
    assert accuracy == pytest.approx(expected, abs=0.01 if precision == "bf16" else 1e-9)


def test_what_ranks_cannot_divide_is_refused(tmp_path):
    options = quick(methods="spatial", network="mobilenet_v2", width_divisor=1, head=None, output="run")
    assert "the layers of --network mobilenet_v2 are not known" in refusal(on_ranks(None, "run", *options, cwd=tmp_path))

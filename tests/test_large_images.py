"""Large images are evaluated in small batches: a run, predictions and the assembled network take no more memory than training."""

import csv
import json
from math import prod

import numpy as np
import pytest
import torch
from launching import on_ranks
from quick import quick
from torch import nn

import ddcnn
from ddcnn.__main__ import execute
from ddcnn.training.evaluation import evaluation_batch

PIXELS = 1 << 18  # of a batch at most, but for single images
METHODS = ("average", "dnn", "coherent", "global")
# By the overlap the middle subimage (300x332) is evaluated in batches of 2, the outer ones (300x291) could be in batches of 3: in a
# coherent network all ranks must take batches of one size.
DATA = "synthetic:300x750x2x60"
OPTIONS = (
    f"--data={DATA}", "--grid=1x3", "--overlap=41", f"--methods={','.join(METHODS)}",
    *quick(train_samples=8, test_samples=7, batch_size=6, epochs=1, dnn_epochs=1, width=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    finished = on_ranks(3, "run", *OPTIONS, "--output=run", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder / "run"


@pytest.fixture
def batches():
    """(samples, pixels) of every batch that a convolution gets in evaluation mode."""
    seen = []

    def note(module: nn.Module, inputs: tuple) -> None:
        if isinstance(module, nn.Conv2d) and not module.training:
            seen.append((len(inputs[0]), prod(inputs[0].shape[2:])))

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    yield seen
    hook.remove()


def test_a_run_evaluates_large_images_in_small_batches(run, tmp_path, world, batches):
    execute(["run", *OPTIONS, f"--output={tmp_path / 'run'}", f"--partitions={run.parent / 'runs/partitions'}"], world)
    assert max(samples for samples, _ in batches) > 1
    assert all(samples == 1 or samples * pixels <= PIXELS for samples, pixels in batches)
    alone, three = (json.loads((folder / "results.json").read_text("utf-8"))["methods"] for folder in (tmp_path / "run", run))
    for method in METHODS[:-1]:  # global's gradients are summed in another order
        assert alone[method]["test_accuracy"] == three[method]["test_accuracy"]


@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_made_in_small_batches_and_equal_the_network_at_once(run, tmp_path, world, batches, method):
    path = tmp_path / "p.csv"
    execute(["predict", str(run), DATA, "--samples=9", f"--output={path}", f"--method={method}"], world)
    network = ddcnn.load(run, method)
    assert all(samples == 1 or samples * pixels <= PIXELS for samples, pixels in batches)
    assert batches
    batches.clear()
    images = torch.randint(0, 256, (5, *network.shape), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        in_parts = network(images)
    assert all(samples == 1 or samples * pixels <= PIXELS for samples, pixels in batches)
    batches.clear()
    at_once = network(images)  # with gradients, as a network that learns on
    assert {samples for samples, _ in batches} == {5}
    torch.testing.assert_close(in_parts, at_once.detach(), rtol=1e-4, atol=1e-4)
    with path.open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 9


def test_small_images_stay_in_batches_of_512():
    sides = np.array([1, 8, 16, 22, 32, 64, 128, 256, 512, 1024])
    assert [evaluation_batch(int(side) ** 2) for side in sides] == [512, 512, 512, 512, 256, 64, 16, 4, 1, 1]

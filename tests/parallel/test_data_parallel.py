"""The baseline: DistributedDataParallel over the ranks against the plain CNN in one process."""

import numpy as np
import pytest
import torch
from callbacks import Watch
from torch import nn

from ddcnn.data.augmentation import Augmentation
from ddcnn.data.batches import Subimages
from ddcnn.data.stored import InMemory
from ddcnn.io.rows import Room
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.data_parallel import bytes_per_step, classify_together, global_batch_size, train_data_parallel
from ddcnn.training.evaluation import classify
from ddcnn.training.loop import Trainer, build
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe

POLICY = DevicePolicy(torch.device("cpu"), "fp32")
SAMPLES, BATCH = 72, 24


def images(augmentation: Augmentation = Augmentation()) -> Subimages:
    pixels = torch.randint(0, 255, (SAMPLES, 6, 6, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = (pixels[:, :3].float().mean((1, 2, 3)) > pixels[:, 3:].float().mean((1, 2, 3))).long()
    window = (slice(0, 6), slice(0, 6))
    stored = InMemory(pixels, pixels.device)
    mirrored = dict.fromkeys(augmentation.mirrors, stored)
    return Subimages(stored, labels, torch.tensor([127.0]), torch.tensor([1 / 74.0]), window, ((1, 1),) * 2, augmentation, mirrored)


def without_normalisation() -> nn.Module:
    """Batch normalisation sees a rank's share alone; without it the ranks' number must not matter."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def with_normalisation() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def trained(world, make, samples: Subimages, epochs=2, watch=lambda epoch: None, **changes) -> nn.Module:
    recipe = Recipe(epochs, global_batch_size(BATCH, SAMPLES, world.size), "sgd", 0.05, 0.0, "one-cycle", **changes)
    network = build(make, Seeds(0, "global"), POLICY)
    train_data_parallel(world, Trainer(recipe, POLICY, Seeds(0, "global"), Watch(watch)), network, samples, np.arange(SAMPLES))
    return network


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(True, 1), Augmentation(True, 1, (-1, -2), 0.5, 1.0)])
@pytest.mark.parametrize(
    "changes", [{}, {"class_weights": (0.6, 1.9)}, {"clip_norm": 0.1, "ema": 0.9, "label_smoothing": 0.1}, {"accumulate": 2}]
)
def test_all_ranks_together_take_the_steps_of_one_process(world, augmentation, changes):
    epochs, alone = [], []
    samples = images(augmentation)
    found = trained(world, without_normalisation, samples, watch=epochs.append, **changes)
    expected = trained(world.alone(), without_normalisation, samples, watch=alone.append, **changes)
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for one, other in zip(epochs, alone, strict=True):
        assert (one.epoch, one.accuracy) == (other.epoch, pytest.approx(other.accuracy))
        assert one.loss == pytest.approx(other.loss, rel=1e-5)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_ranks_end_with_the_same_network(world, ema):
    network = trained(world, with_normalisation, images(), ema=ema)
    state = torch.cat([tensor.double().flatten() for tensor in network.state_dict().values()])  # also of the batch normalisation
    gathered = world.gather(state.numpy())
    if gathered is not None:
        assert (gathered == gathered[0]).all()


def test_it_sends_a_gradient_a_step(world):
    world.timeline.begin()
    with world.timeline.phase("global"):
        network = trained(world, with_normalisation, images(), epochs=1)
    steps = SAMPLES // (BATCH // world.size * world.size)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    (sent,) = world.mean([world.timeline.sent["global"]])
    at_the_end = (world.size - 1) * buffers  # of an epoch, they become rank 0's
    assert world.size * sent == steps * bytes_per_step(parameters, buffers, world.size) + at_the_end


@pytest.mark.parametrize("samples", [1, 7, SAMPLES])
def test_all_ranks_together_classify_as_one_does(world, samples, tmp_path):
    network, data = with_normalisation(), images()
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    found = classify_together(world, network, data, samples, POLICY, Room(tmp_path))
    if world.rank:
        assert found is None
    else:
        np.testing.assert_allclose(found.array, classify(network, data, torch.arange(samples), POLICY), rtol=1e-5, atol=1e-7)

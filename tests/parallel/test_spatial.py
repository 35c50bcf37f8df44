"""Exact spatial parallelism against the same network in one process, in float64."""

import copy
from math import prod

import numpy as np
import pytest
import torch
from callbacks import Watch
from torch import nn

from ddcnn.data.batches import NOTHING
from ddcnn.method.halo import Assemble, Halo, Layout, Window, pixels_sent, plan_of
from ddcnn.method.spatial import SpatialNetwork, train_spatial
from ddcnn.networks.recompute import recompute
from ddcnn.networks.registry import NETWORKS, Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import Trainer
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe

POLICY = DevicePolicy(torch.device("cpu"), "fp32")
K, SAMPLES, BATCH, STEPS = 3, 20, 4, 5
SHAPES = {2: (33, 38), 3: (18, 17, 21)}  # that no number of ranks divides
WINDOWS = [((3, 3), (1, 1), (1, 1)), ((2, 2), (2, 2), (0, 0)), ((7, 3), (2, 2), (3, 1)), ((1, 1), (2, 1), (0, 0)), ((5, 4), (1, 2), (2, 0))]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(world, one: torch.Tensor, other: torch.Tensor) -> float:
    return world.size * world.mean([(one * other).sum().item()])[0]


@pytest.mark.parametrize("window", [*WINDOWS, *(tuple(part[:1] + part for part in window) for window in WINDOWS)], ids=str)
def test_the_adjoint_of_the_halo_adds_to_the_owners(world, window):
    """⟨H x, y⟩ = ⟨x, Hᵀ y⟩ summed over the ranks, in 2-D and 3-D; and H x is what one process sees."""
    shape = SHAPES[len(window[0])]
    window, layout = Window(*window), Layout.of(shape, world.size)
    whole, own = normal(2, 3, *shape), layout.boxes[world.rank]
    part = whole[:, :, *own.slices].clone().requires_grad_()
    found = Halo.apply(part, plan_of(layout, world.rank, window), world, 0.0)
    padded = nn.functional.pad(whole, [width for side in reversed(window.padding) for width in (side, side)])
    result = layout.after(window).boxes[world.rank]
    begin = tuple(a * stride for a, stride in zip(result.start, window.stride, strict=True))
    size = [(n - 1) * s + k for n, s, k in zip(result.shape, window.stride, window.kernel, strict=True)]
    assert torch.equal(found, padded[:, :, *(slice(a, a + n) for a, n in zip(begin, size, strict=True))])
    cotangent = normal(*found.shape, seed=world.rank)
    (back,) = torch.autograd.grad(found, part, cotangent)
    assert dot(world, found.detach(), cotangent) == pytest.approx(dot(world, part.detach(), back), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES.values())
def test_the_adjoint_of_assembling_restricts(world, shape):
    layout, whole, everyone = Layout.of(shape, world.size), normal(2, 3, *shape), normal(2, 3, *shape, seed=9)
    part = whole[:, :, *layout.boxes[world.rank].slices].clone().requires_grad_()
    found = Assemble.apply(part, plan_of(layout, world.rank), world)
    assert torch.equal(found, whole)
    (back,) = torch.autograd.grad(found, part, everyone)
    assert (found * everyone).sum().item() == pytest.approx(dot(world, part.detach(), back), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_bytes_are_counted_as_the_formula_says(world, dtype):
    window, layout = Window((3, 3), (1, 1), (1, 1)), Layout.of((33, 38), world.size)
    part = normal(2, 3, *layout.boxes[world.rank].shape).to(dtype).requires_grad_()
    world.timeline.begin()
    with world.timeline.phase("global"):
        found = Halo.apply(part, plan_of(layout, world.rank, window), world, 0.0)
        found.sum().backward()
        Assemble.apply(part, plan_of(layout, world.rank), world).sum().backward()
    sent = world.size * world.mean([sum(world.timeline.sent.values())])[0]
    assert sent == 2 * 3 * dtype.itemsize * (2 * pixels_sent(layout, window) + pixels_sent(layout, None))


class Numbers:
    """A rank's part of float64 images (S, 2, *shape)."""

    on_device = True

    def __init__(self, shape, box=None, listed=True):
        images = normal(SAMPLES, 2, *shape, seed=1)
        self.images, self.listed = images if box is None else images[:, :, *box.slices], listed
        self.labels, self.pixels = torch.arange(SAMPLES) % K, prod(shape)

    def ahead(self, batches, augmented=False):
        pass

    def draw(self, batches, generator):
        return [NOTHING] * len(batches)

    def batch(self, index, drawn=NOTHING):
        return [self.images[index]] if self.listed else self.images[index], self.labels[index]


def network(name: str, shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    return make(Design(name, 4), Shape(shape, 2, K)).double()


def close(found: torch.Tensor, expected: torch.Tensor, name: str, most: float = 1e-12) -> None:
    apart = ((found - expected).abs().max() / max(1.0, expected.abs().max())).item()
    assert apart <= most, name


CASES = [(name, dimensions) for name in NETWORKS for dimensions in (2, 3)]


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize(("name", "dimensions"), CASES)
def test_logits_gradients_and_statistics_are_those_of_one_process(world, name, dimensions, recomputes):
    shape = SHAPES[dimensions]
    alone = network(name, shape)
    mine = recompute(copy.deepcopy(alone), name) if recomputes else copy.deepcopy(alone)
    spatial = SpatialNetwork(world, mine, Layout.of(shape, world.size))
    found, expected = [], []
    for one, samples, values in ((spatial, Numbers(shape, spatial.own), found), (alone, Numbers(shape, listed=False), expected)):
        inputs, labels = samples.batch(torch.arange(BATCH))
        logits = one(inputs)
        nn.functional.cross_entropy(logits, labels).backward()
        values += [logits]
        with torch.no_grad():
            values += [one.eval()(inputs)]
    spatial.sum_gradients()
    assert len(spatial.divided) > (0 if world.size > 1 else -1)
    for one, other in zip(found, expected, strict=True):
        close(one, other, "logits")
    for (key, one), other in zip(mine.named_parameters(), alone.parameters(), strict=True):
        close(one.grad, other.grad, key)
    for (key, one), other in zip(mine.named_buffers(), alone.buffers(), strict=True):
        close(one, other, key)


@pytest.mark.parametrize(("optimizer", "parts"), [("adamw", 1), ("sgd", 2)])
@pytest.mark.parametrize(("name", "dimensions"), CASES)
def test_five_steps_of_training_are_those_of_one_process(world, name, dimensions, optimizer, parts):
    shape = SHAPES[dimensions]
    alone = network(name, shape)
    mine = copy.deepcopy(alone)
    spatial, told = SpatialNetwork(world, mine, Layout.of(shape, world.size)), []
    recipe = Recipe(1, BATCH, optimizer, 0.01, 0.01, "one-cycle", clip_norm=1.0, ema=0.9, accumulate=parts)
    assert SAMPLES // BATCH == STEPS
    trainer = Trainer(recipe, POLICY, Seeds(0, "spatial"), Watch(told.append))
    train_spatial(trainer, spatial, Numbers(shape, spatial.own), np.arange(SAMPLES))
    trainer.train(alone, Numbers(shape, listed=False), torch.arange(SAMPLES))
    assert told[0].loss == pytest.approx(told[1].loss, rel=1e-12)
    assert told[0].accuracy == told[1].accuracy
    # the last maps of ResNet18 have one voxel here: batch normalisation of two or four numbers makes rounding larger
    most = 1e-10 if (name, dimensions) == ("resnet18", 3) else 1e-12
    for (key, one), other in zip(mine.state_dict().items(), alone.state_dict().values(), strict=True):
        close(one, other, key, most)


@pytest.mark.parametrize(("name", "side"), [("vgg9", 12), ("resnet18", 96), ("resnet20", 20)])
def test_all_ranks_compute_in_the_same_precision(world, name, side):
    """Also where a small part of a map is computed in another one than a large one: halos have one type."""
    policy, shape, logits = DevicePolicy(torch.device("cpu"), "bf16"), (side, side), []
    images = normal(4, 2, *shape).float()
    for precision in ("fp32", "bf16"):
        alone = network(name, shape).float()
        if precision == "fp32":
            logits.append(alone(images))
            continue
        spatial = SpatialNetwork(world, policy.place(alone), Layout.of(shape, world.size))
        with policy.autocast():
            logits.append(spatial([images[:, :, *spatial.own.slices]]))
        logits[-1].float().sum().backward()
        spatial.sum_gradients()
        assert all(one.grad is None or one.grad.isfinite().all() for one in alone.parameters())
    assert (logits[1] - logits[0]).abs().max() < 0.1 * logits[0].abs().max()


def test_layers_whose_parts_would_be_empty_are_computed_by_all_ranks(world):
    """8x8 pixels become 2x2, of which three ranks in a row cannot all have one."""
    spatial = SpatialNetwork(world, network("vgg9", (8, 8)), Layout.of((8, 8), world.size))
    layers = len(list(spatial.network.convolutions))
    assert len(spatial.divided) == layers * (world.size in (2, 4)) or (world.size > 2 and 0 < len(spatial.divided) < layers)
    logits = spatial([normal(2, 2, 8, 8)[:, :, *spatial.own.slices]])
    close(logits, network("vgg9", (8, 8))(normal(2, 2, 8, 8)), "logits")

"""Exact spatial parallelism against the same network in one process, in float64."""

import copy
from contextlib import nullcontext
from functools import partial
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from callbacks import Watch
from torch import nn

from ddcnn.data.batches import NOTHING
from ddcnn.method.divided_layers import exchanged
from ddcnn.method.halo import Assemble, Halo, Layout, Window, pixels_sent, plan_of
from ddcnn.method.halo_convolution import Convolution, edges_of
from ddcnn.method.shared import bytes_of_sum, total
from ddcnn.method.spatial import SpatialNetwork, train_spatial
from ddcnn.networks.normalisation import normalised
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


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES.values(), (4, 5)], ids=str)
def test_a_convolution_of_the_part_and_of_the_edges_is_that_of_the_whole_map(world, shape, biased):
    """Forward; backward ⟨C H x, y⟩ = ⟨x, Hᵀ Cᵀ y⟩, and the ranks' gradients of weight and bias add up to those of one process."""
    layout, dimensions = Layout.of(shape, world.size), len(shape)
    own = layout.boxes[world.rank].slices
    whole, weight = normal(2, 3, *shape), normal(4, 3, *(3,) * dimensions, seed=1).requires_grad_()
    bias = normal(4, seed=2).requires_grad_() if biased else None
    part, everything = whole[:, :, *own].clone().requires_grad_(), whole.clone().requires_grad_()
    convolve = nn.functional.conv2d if dimensions == 2 else nn.functional.conv3d
    expected = convolve(everything, weight, bias, padding=1)
    found = Convolution.apply(part, weight, bias, edges_of(layout, world.rank), world)
    close(found, expected[:, :, *own], "result")
    cotangent, parameters = normal(*expected.shape, seed=3), [one for one in (weight, bias) if one is not None]
    of_part, *of_parameters = torch.autograd.grad(found, [part, *parameters], cotangent[:, :, *own])
    of_whole, *of_all = torch.autograd.grad(expected, [everything, *parameters], cotangent)
    close(of_part, of_whole[:, :, *own], "cotangent")
    for one, other in zip(of_parameters, of_all, strict=True):
        close(world.size * torch.tensor(world.mean(one.flatten().tolist()), dtype=one.dtype).view(one.shape), other, "parameter")


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


def close(found: torch.Tensor, expected: torch.Tensor, name: str, most: float = 1e-12, relative: float = 1e-12) -> None:
    apart, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    assert apart <= most * max(1.0, largest), name
    assert apart <= relative * max(1e-3, largest), name


def of_small_ones(name: str, dimensions: int) -> float:
    """The last maps of ResNet18 have one voxel here: batch normalisation of two or four numbers makes rounding larger."""
    return 1e-9 if (name, dimensions) == ("resnet18", 3) else 1e-12


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
    spatial.finish_gradient()
    assert len(spatial.divided) > (0 if world.size > 1 else -1)
    relative = of_small_ones(name, dimensions)
    for one, other in zip(found, expected, strict=True):
        close(one, other, "logits", relative=relative)
    for (key, one), other in zip(mine.named_parameters(), alone.parameters(), strict=True):
        close(one.grad, other.grad, key, relative=relative)
    for (key, one), other in zip(mine.named_buffers(), alone.buffers(), strict=True):
        close(one, other, key, relative=relative)


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
    relative = of_small_ones(name, dimensions)
    for (key, one), other in zip(mine.state_dict().items(), alone.state_dict().values(), strict=True):
        close(one, other, key, relative, relative)


@pytest.mark.parametrize(("name", "side"), [("vgg9", 12), ("resnet18", 96), ("resnet20", 20)])
def test_all_ranks_compute_in_the_same_precision(world, name, side):
    """Also where a small part of a map is computed in another one than a large one: halos have one type."""
    policy, shape, errors = DevicePolicy(torch.device("cpu"), "bf16"), (side, side), []
    for seed in range(3):  # of one alone, one process may come close by chance
        images, logits, gradients = normal(4, 2, *shape, seed=seed).float(), {}, {}
        for precision, divided in product(("fp32", "bf16"), (False, True)):
            alone = policy.place(network(name, shape).float())
            spatial = SpatialNetwork(world, alone, Layout.of(shape, world.size)) if divided else None
            with policy.autocast() if precision == "bf16" else nullcontext():
                found = spatial([images[:, :, *spatial.own.slices]]) if spatial else alone(images)
            found.float().square().sum().backward()
            if spatial:
                spatial.finish_gradient()
            logits[precision, divided] = found.detach().float()
            gradients[precision, divided] = torch.cat([one.grad.flatten() for one in alone.parameters() if one.grad is not None])
        for values in (logits, gradients):
            exact = values["fp32", False]
            torch.testing.assert_close(values["fp32", True], exact, rtol=1e-3, atol=1e-4 * exact.abs().max().item())
            errors.append([((values["bf16", divided] - exact).norm() / exact.norm()).item() for divided in (False, True)])
    for of_one, of_all in (np.sum(errors[k::2], axis=0) for k in range(2)):
        assert of_all < 1.5 * of_one < 3


def test_layers_whose_parts_would_be_empty_are_computed_by_all_ranks(world):
    """8x8 pixels become 2x2, of which three ranks in a row cannot all have one."""
    spatial = SpatialNetwork(world, network("vgg9", (8, 8)), Layout.of((8, 8), world.size))
    layers = len(list(spatial.network.convolutions))
    assert len(spatial.divided) == layers * (world.size in (2, 4)) or (world.size > 2 and 0 < len(spatial.divided) < layers)
    logits = spatial([normal(2, 2, 8, 8)[:, :, *spatial.own.slices]])
    close(logits, network("vgg9", (8, 8))(normal(2, 2, 8, 8)), "logits")


def test_of_a_network_whose_first_layer_leaves_a_rank_without_pixels_all_is_computed_by_all(world):
    layout = Layout(((*range(world.size), 8), (0, 8)))  # of three ranks, the second one has a row, and nothing after a stride of 2
    spatial = SpatialNetwork(world, network("resnet18", (8, 8)), layout)
    assert bool(spatial.divided) == (world.size == 2)
    logits = spatial([normal(4, 2, 8, 8)[:, :, *spatial.own.slices]])
    close(logits, network("resnet18", (8, 8))(normal(4, 2, 8, 8)), "logits", relative=1e-10)


@pytest.mark.parametrize(("name", "dimensions"), CASES)
def test_a_step_sends_what_the_model_counts(world, name, dimensions):
    shape = SHAPES[dimensions]
    layout = Layout.of(shape, world.size)
    values, exchanges, widths, parameters = exchanged(network(name, shape), layout, 2)
    spatial = SpatialNetwork(world, network(name, shape).float(), layout)
    world.timeline.begin()
    with world.timeline.phase("global"):
        spatial([normal(BATCH, 2, *shape).float()[:, :, *spatial.own.slices]]).sum().backward()
        spatial.finish_gradient()
    sums = [parameters, *(numbers for width in widths for numbers in (2 * (2 * width + 1), 2 * width))]
    sent = world.size * world.mean([sum(world.timeline.sent.values())])[0]
    assert sent == 4 * BATCH * values + sum(bytes_of_sum(numbers, world.size, world.size) for numbers in sums)
    assert bool(exchanges) == (world.size > 1)


@pytest.mark.parametrize(("name", "dimensions"), CASES)
def test_a_rank_keeps_its_share_of_the_activations(world, name, dimensions):
    times = 1 if world.size <= 4 else 2  # beside few pixels the halos of many ranks are large
    shape = {2: (96 * times,) * 2, 3: (32 * times,) * 3}[dimensions]

    def kept_by(one: nn.Module, inputs) -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda kept: sizes.update({kept.data_ptr(): kept.nbytes}) or kept, lambda kept: kept):
            one(inputs).sum()
        return sum(sizes.values()) - sum(parameter.nbytes for parameter in one.parameters())

    images, spatial = normal(2, 2, *shape), SpatialNetwork(world, network(name, shape), Layout.of(shape, world.size))
    mine, alone = kept_by(spatial, [images[:, :, *spatial.own.slices]]), kept_by(network(name, shape), images)
    most = 2.0 if (name, dimensions) == ("resnet18", 3) else 1.25  # its first kernel of 7³ voxels sees many of other ranks here
    assert mine <= (most if world.size > 1 else 1.0) / world.size * alone


def test_statistics_of_values_far_from_zero_are_those_of_batch_normalisation(world):
    """In single precision, of channels whose mean is large against their deviation."""
    torch.manual_seed(0)
    values = (300 + 3 * torch.randn(8, 5, 24, 24)).contiguous(memory_format=torch.channels_last)
    mine, alone = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
    own = values.tensor_split(world.size, 2)[world.rank]
    (found,) = normalised(mine, [own], [dict(mine.named_parameters())], [len(own)], partial(total, world=world))
    expected = alone.double()(values.double()).tensor_split(world.size, 2)[world.rank]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(mine.running_var.double(), alone.running_var, rtol=1e-4, atol=0)

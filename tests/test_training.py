"""The one training loop, seen from outside."""

import math
from itertools import product

import pytest
import torch
from callbacks import Watch
from torch import nn

from ddcnn.data.augmentation import MixedLabels
from ddcnn.data.batches import NOTHING, Rows
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.evaluation import classify
from ddcnn.training.loop import Callback, Trainer, build
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe
from ddcnn.training.step import cross_entropy

POLICY = DevicePolicy(torch.device("cpu"), "fp32")
LABELS = torch.arange(20) % 2


class Recorder(Rows):
    """Rows that note the order in which they are asked for."""

    def batch(self, index, drawn=NOTHING):
        ORDERS[-1].append(index.tolist())
        return super().batch(index, drawn)


ORDERS: list[list[list[int]]] = []


def samples(kind=Rows) -> Rows:
    return kind.of(torch.stack([LABELS * 2.0 - 1, torch.ones(20)], dim=1), LABELS)


def trained(epochs=1, seed=0, kind=Rows, network=None, watch=lambda epoch: None, **changes) -> nn.Module:
    options = {"batch_size": 8, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "schedule": "constant"} | changes
    seeds = Seeds(seed, "test")
    network = network or build(lambda: nn.Linear(2, 2), seeds, POLICY)
    ORDERS.append([])
    Trainer(Recipe(epochs, **options), POLICY, seeds, Watch(watch)).train(network, samples(kind), torch.arange(20))
    return network


def weights(network: nn.Module) -> list:
    return [parameter.tolist() for parameter in network.parameters()]


def test_training_is_a_function_of_the_seed_alone():
    first = weights(trained(seed=1))
    torch.rand(5)  # whatever has been drawn before
    assert weights(trained(seed=1)) == first
    assert weights(trained(seed=2)) != first


def test_every_epoch_has_an_order_of_its_own_of_different_samples_in_full_batches():
    trained(epochs=2, kind=Recorder)
    first, second = ORDERS[-1][:2], ORDERS[-1][2:]
    assert first != second
    for epoch in (first, second):
        assert [len(batch) for batch in epoch] == [8, 8]
        assert len({sample for batch in epoch for sample in batch}) == 16


def test_every_epoch_drops_other_neurons_by_the_seed_and_the_epoch_alone():
    class Dropping(nn.Dropout):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            dropped.append((outputs == 0).tolist())
            return outputs

    dropped: list[list] = []
    for _ in range(2):
        torch.rand(3)  # whatever has been drawn before
        trained(epochs=2, network=nn.Sequential(nn.Linear(2, 6), Dropping(), nn.Linear(6, 2)))
    first, second, again, _ = (dropped[k : k + 2] for k in range(0, 8, 2))
    assert first != second
    assert first == again


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_optimizer_learns(optimizer):
    losses = []
    network = trained(epochs=30, optimizer=optimizer, watch=lambda epoch: losses.append(epoch.loss))
    assert losses[-1] < 0.5 * losses[0]
    found = classify(network, samples(), torch.arange(20), POLICY)
    assert (found.argmax(1) == LABELS).all()
    torch.testing.assert_close(found.sum(1), torch.ones(20))


def movements(schedule: str, warmup: float | None = None) -> list[float]:
    """The parameter's movement in each of 10 steps under a constant gradient, which is the learning rate."""

    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.height = nn.Parameter(torch.zeros(()))
            self.seen = []

        def forward(self, inputs):
            self.seen.append(self.height.item())
            return torch.stack([self.height.expand(len(inputs)) * 1e-3, torch.zeros(len(inputs))], dim=1)

    network = Slope()
    rows = Rows.of(torch.zeros(20, 1), torch.zeros(20, dtype=torch.int64))
    recipe = Recipe(10, 20, "adamw", 0.1, 0.0, schedule, warmup=warmup)
    Trainer(recipe, POLICY, Seeds(0, "test")).train(network, rows, torch.arange(20))
    return [after - before for before, after in zip(network.seen, [*network.seen[1:], network.height.item()], strict=True)]


@pytest.mark.parametrize(("schedule", "ends"), [("one-cycle", 0.1), ("cosine", 0.05), ("constant", 1)])
def test_schedules_end_where_they_should(schedule, ends):
    steps = movements(schedule)
    assert max(steps) == pytest.approx(0.1, rel=0.3)  # momentum is cycled too
    assert steps[-1] <= 1.1 * ends * 0.1


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_warmup_rises_to_where_the_schedule_begins(schedule):
    steps = movements(schedule, warmup=4)
    assert steps[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08], rel=0.1)
    assert steps[4] == pytest.approx(0.1, rel=0.1)
    rest = [0.1 * (1 + math.cos(math.pi * k / 6)) / 2 if schedule == "cosine" else 0.1 for k in range(6)]
    assert steps[4:] == pytest.approx(rest, rel=0.2, abs=0.004)
    assert movements("one-cycle", warmup=4) == movements("one-cycle")


def test_the_gradient_of_every_part_is_cut_to_the_norm_by_itself():
    """With plain SGD and one step, the parameters move by the learning rate times the gradient."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            nn.init.constant_(self.b.weight, 0.0)
            self.parts = {"a": self.a, "b": self.b}

        def forward(self, inputs):
            return 100 * self.a(inputs) + 1e-3 * self.b(inputs)

    moved = {}
    for norm in (None, 0.01, 1e6):
        network = build(Two, Seeds(0, "test"), POLICY)
        before = [parameter.detach().clone() for parameter in network.parameters()]
        trained(network=network, batch_size=20, lr=1.0, clip_norm=norm)
        moved[norm] = [after.detach() - then for after, then in zip(network.parameters(), before, strict=True)]
    first = {norm: torch.cat([tensor.flatten() for tensor in tensors[:2]]) for norm, tensors in moved.items()}
    assert first[None].norm() > 1
    torch.testing.assert_close(first[0.01], 1.9 * 0.01 * first[None] / first[None].norm(), rtol=1e-3, atol=1e-6)  # Nesterov's first step
    assert all(torch.equal(one, other) for one, other in zip(moved[None][2:], moved[0.01][2:], strict=True))  # below the norm
    assert all(torch.equal(one, other) for one, other in zip(moved[None], moved[1e6], strict=True))


def test_a_gradient_in_half_precision_is_cut_after_the_loss_scale_is_taken_out():
    network = build(lambda: nn.Linear(2, 2), Seeds(0, "test"), POLICY)
    before = network.weight.detach().clone()
    recipe = Recipe(1, 20, "sgd", 1.0, 0.0, "constant", clip_norm=0.01)
    Trainer(recipe, DevicePolicy(torch.device("cpu"), "fp16"), Seeds(0, "test")).train(network, samples(), torch.arange(20))
    assert 0.5 * 0.019 < (network.weight.detach() - before).norm().item() <= 1.01 * 0.019


def test_the_average_of_the_steps_is_evaluated_after_epochs_and_is_what_remains():
    class Noted(nn.Sequential):
        def forward(self, inputs):
            if self.training:
                history.append(state(self))
            return super().forward(inputs)

    class Evaluated(Callback):
        def after_epoch(self, state_of_training, epoch):
            plain.append(state(state_of_training.module))
            with state_of_training.evaluated() as network:
                evaluated.append(state(network))
            assert all(torch.equal(*pair) for pair in zip(state(state_of_training.module), plain[-1], strict=True))

    def state(network) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in network.state_dict().values()]

    history: list[list] = []  # before each step
    plain: list[list] = []
    evaluated: list[list] = []

    def run(epochs: int) -> list[torch.Tensor]:
        network = build(lambda: Noted(nn.Linear(2, 2), nn.BatchNorm1d(2)), Seeds(0, "test"), POLICY)
        recipe = Recipe(epochs, 8, "sgd", 0.1, 0.0, "constant", ema=0.6)
        Trainer(recipe, POLICY, Seeds(0, "test"), Evaluated()).train(network, samples(), torch.arange(20))
        return state(network)

    remaining = run(3)
    assert all(torch.equal(*pair) for pair in zip(remaining, evaluated[2], strict=True))
    for noted in (history, plain, evaluated):
        noted.clear()
    run(4)  # which takes the same steps and one epoch more
    assert all(torch.equal(*pair) for pair in zip(remaining, evaluated[2], strict=True))
    assert len(history) == 8
    for epoch in (1, 2, 3):
        steps = history[: 2 * epoch + 1]
        assert all(torch.equal(*pair) for pair in zip(plain[epoch - 1], steps[-1], strict=True))  # the steps go on from the last one
        for found, values in zip(evaluated[epoch - 1], zip(*steps, strict=True), strict=True):
            mean = values[0].double()
            for step, now in enumerate(values[1:], start=1):
                decay = min(0.6, (1 + step) / (10 + step))
                mean = decay * mean + (1 - decay) * now.double()
            torch.testing.assert_close(found.double(), mean if found.is_floating_point() else values[-1].double(), rtol=1e-5, atol=1e-7)


def test_the_loss_of_mixed_labels_is_the_mixture_of_the_losses():
    logits, main, other = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0])
    weight = torch.tensor([0.7, 0.5, 1.0])
    for weights_of_classes, smoothing in product((None, torch.tensor([3.0, 0.5])), (0.0, 0.2)):
        found = cross_entropy(logits, MixedLabels(main, other, weight), weights_of_classes, smoothing)
        each = [
            w * cross_entropy(row[None], a[None], weights_of_classes, smoothing)
            + (1 - w) * cross_entropy(row[None], b[None], weights_of_classes, smoothing)
            for row, a, b, w in zip(logits, main, other, weight, strict=True)
        ]
        assert found.item() == pytest.approx(sum(each).item() / 3)


def test_the_accuracy_of_mixed_images_counts_the_main_label():
    class MixedRows(Rows):
        def batch(self, index, drawn=NOTHING):
            inputs, labels = super().batch(index, drawn)
            return inputs, MixedLabels(labels, 1 - labels, torch.full((len(index),), 0.6))

    told = []
    trained(epochs=30, kind=MixedRows, watch=told.append)
    assert told[-1].accuracy == 1
    assert told[-1].loss == pytest.approx(-(0.6 * math.log(0.6) + 0.4 * math.log(0.4)), abs=0.02)


def test_label_smoothing_changes_the_loss_and_the_mode_is_training_after_an_evaluation():
    losses: dict[float, float] = {}
    modes = []
    for smoothing in (0.0, 0.2):
        network = build(lambda: nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 2)), Seeds(0, "test"), POLICY)

        def watch(epoch, network=network, smoothing=smoothing):
            losses[smoothing] = epoch.loss
            modes.append(network.training)
            classify(network, samples(), torch.arange(20), POLICY)

        trained(epochs=20, network=network, label_smoothing=smoothing, watch=watch)
    assert losses[0.2] > losses[0.0]
    assert all(modes)


def test_weight_decay_shrinks_the_weights():
    norm = {decay: sum(p.norm().item() for p in trained(epochs=50, weight_decay=decay).parameters()) for decay in (0.0, 0.5)}
    assert norm[0.5] < norm[0.0]


def test_a_loss_or_an_output_that_is_no_number_is_a_failure():
    with pytest.raises(FloatingPointError, match="smaller learning rate"):
        trained(epochs=5, lr=1e38)
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="smaller learning rate"):
        classify(network, samples(), torch.arange(20), POLICY)


def test_training_takes_the_steps_of_a_plain_loop_over_the_same_batches():
    network = trained(epochs=3, kind=Recorder)
    plain = build(lambda: nn.Linear(2, 2), Seeds(0, "test"), POLICY)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, nesterov=True, fused=True)
    rows = samples()
    for batch in ORDERS[-1]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(rows.batch(torch.tensor(batch))[0]), LABELS[batch]).backward()
        optimizer.step()
    assert weights(network) == weights(plain)


@pytest.mark.parametrize(
    ("kernel", "size", "stride"),
    [
        (3, (1, 6, 6), 1),
        (3, (2, 6, 6), 1),
        (3, (3, 6, 6), 1),
        (5, (3, 6, 6), 1),
        (5, (5, 6, 6), 1),
        (7, (5, 6, 6), 1),
        (3, (1, 1), 2),
        (7, (1, 1), 2),
        (3, (4, 1), 2),
        (3, (16, 1), 2),
        (5, (8, 1), 2),
        (3, (4, 1, 4), 2),
        (3, (4, 4, 1), 2),
    ],
)
def test_small_images_have_right_gradients_in_half_precision(kernel, size, stride):
    """torch's own, in bf16 on a CPU, may be wrong where an image is no larger than the kernel."""
    convolution = nn.Conv3d if len(size) == 3 else nn.Conv2d

    def gradient(precision: str) -> torch.Tensor:
        policy = DevicePolicy(torch.device("cpu"), precision)
        network = build(lambda: convolution(8, 16, kernel, stride, kernel // 2), Seeds(0, "test"), policy)
        with policy.autocast():
            output = network(images)
        output.float().backward(torch.ones_like(output, dtype=torch.float32))
        assert network.weight.grad is not None
        return network.weight.grad

    images = torch.randn(16, 8, *size, generator=torch.Generator().manual_seed(0))
    expected = gradient("fp32")
    assert (gradient("bf16") - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_loss_of_an_epoch_is_the_mean_over_its_batches():
    told = []
    network = trained(lr=1e-12, watch=told.append, kind=Recorder)
    rows = samples()
    each = [nn.functional.cross_entropy(network(rows.batch(torch.tensor(batch))[0]), LABELS[batch]).item() for batch in ORDERS[-1]]
    assert len(each) == 2
    assert told[0].loss == pytest.approx(sum(each) / 2)


def test_the_weights_of_the_classes_are_those_of_the_samples_in_the_mean():
    """Divided by the samples, not by the weights that a batch happens to have."""
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1, 1])
    each = -logits.log_softmax(1)[torch.arange(3), labels]
    found = cross_entropy(logits, labels, torch.tensor([3.0, 0.5]), 0.0)
    assert found.item() == pytest.approx(((3 * each[0] + 0.5 * each[1] + 0.5 * each[2]) / 3).item())

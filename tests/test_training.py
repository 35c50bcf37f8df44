"""The one training loop, seen from outside."""

import pytest
import torch
from callbacks import Watch
from torch import nn

from ddcnn.data.batches import Rows
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import Recipe, Trainer, build, classify, cross_entropy
from ddcnn.training.precision import DevicePolicy

POLICY = DevicePolicy(torch.device("cpu"), "fp32")
LABELS = torch.arange(20) % 2


class Recorder(Rows):
    """Rows that note the order in which they are asked for."""

    def batch(self, index, generator=None):
        ORDERS[-1].append(index.tolist())
        return super().batch(index, generator)


ORDERS: list[list[list[int]]] = []


def samples(kind=Rows) -> Rows:
    return kind(torch.stack([LABELS * 2.0 - 1, torch.ones(20)], dim=1), LABELS)


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


@pytest.mark.parametrize(("schedule", "ends"), [("one-cycle", 0.1), ("cosine", 0.05), ("constant", 1)])
def test_schedules_end_where_they_should(schedule, ends):
    """The parameters' last movement under a constant gradient is the last learning rate."""

    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.height = nn.Parameter(torch.zeros(()))
            self.seen = []

        def forward(self, inputs):
            self.seen.append(self.height.item())
            return torch.stack([self.height.expand(len(inputs)) * 1e-3, torch.zeros(len(inputs))], dim=1)

    network = Slope()
    rows = Rows(torch.zeros(20, 1), torch.zeros(20, dtype=torch.int64))
    recipe = Recipe(10, 20, "adamw", 0.1, 0.0, schedule)
    Trainer(recipe, POLICY, Seeds(0, "test")).train(network, rows, torch.arange(20))
    steps = [after - before for before, after in zip(network.seen, [*network.seen[1:], network.height.item()], strict=True)]
    assert max(steps) == pytest.approx(0.1, rel=0.3)  # momentum is cycled too
    assert steps[-1] <= 1.1 * ends * 0.1


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
        nn.functional.cross_entropy(plain(rows.inputs[batch]), LABELS[batch]).backward()
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
    each = [nn.functional.cross_entropy(network(rows.inputs[batch]), LABELS[batch]).item() for batch in ORDERS[-1]]
    assert len(each) == 2
    assert told[0].loss == pytest.approx(sum(each) / 2)


def test_the_weights_of_the_classes_are_those_of_the_samples_in_the_mean():
    """Divided by the samples, not by the weights that a batch happens to have."""
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1, 1])
    each = -logits.log_softmax(1)[torch.arange(3), labels]
    found = cross_entropy(logits, labels, torch.tensor([3.0, 0.5]), 0.0)
    assert found.item() == pytest.approx(((3 * each[0] + 0.5 * each[1] + 0.5 * each[2]) / 3).item())

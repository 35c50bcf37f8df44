"""One network, data-parallel over ranks with PyTorch's DistributedDataParallel: each computes the gradient of its share of every batch.

So the baseline is trained, the undecomposed CNN on whole images, over all ranks; and so is a subdomain that has a group of ranks. On
one rank it is the plain training loop; the order of the samples and the augmentation do not depend on the number of ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ddcnn.data.batches import Images, RankShare, Samples
from ddcnn.parallel.heartbeat import beat, waiting
from ddcnn.parallel.process_group import process_group
from ddcnn.parallel.seeding import Seeds
from ddcnn.parallel.tensors import broadcast_
from ddcnn.parallel.world import World
from ddcnn.training.loop import Epoch, Keeper, NothingKept, Recipe, TrainState, classify, train
from ddcnn.training.precision import DevicePolicy


def train_data_parallel(
    world: World,
    network: nn.Module,
    training: Images,
    chosen: np.ndarray,
    recipe: Recipe,
    policy: DevicePolicy,
    seeds: Seeds,
    after_epoch: Callable[[Epoch], None] = lambda epoch: None,
    keeper: Keeper = NothingKept(),
    has_unused: bool = False,
) -> None:
    """Trains a network in place, all ranks of a world together.

    Args:
        network: with the same parameters on all ranks.
        training: the images, resident on every rank as PyTorch's DistributedSampler would visit them.
        chosen: (S,) which of them it learns from.
        recipe: the batch size is that of all ranks together, made of equal shares (see ``batch_of_all``).
        has_unused: whether there are parameters that the loss does not depend on.

    Raises:
        FloatingPointError: the loss is no longer a number.
        Stopped: the keeper was asked to stop.
    """
    if world.size == 1:
        train(network, training, torch.from_numpy(chosen), recipe, policy, seeds, after_epoch, keeper)
        return
    with process_group(world, policy.device):
        parallel = DistributedDataParallel(
            network, [policy.device] if policy.device.type == "cuda" else None, find_unused_parameters=has_unused
        )
        parallel.register_comm_hook(world, all_reduce)
        # The group must go after the reducer: gloo's threads may need the interpreter to end, which only the group's own destructor leaves.
        vars(parallel)["goes_last"] = distributed.group.WORLD
        buffers = sum(buffer.nbytes for buffer in network.buffers())  # DistributedDataParallel shares rank 0's in every step

        def over_all_ranks(epoch: Epoch) -> None:
            broadcast_(world, network.buffers())  # its averages over a rank's shares have gone on since the last step
            loss, accuracy = world.mean([epoch.loss, epoch.accuracy])
            world.timeline.count(0 if world.rank else (world.size - 1) * buffers * recipe.steps_per_epoch(len(chosen)))
            after_epoch(replace(epoch, loss=loss, accuracy=accuracy))

        own = RankShare(training, world.rank, world.size)
        # before the network's own forward pass DistributedDataParallel shares its buffers, and waits
        hooks = [
            parallel.register_forward_pre_hook(lambda *_: waiting()),
            network.register_forward_pre_hook(lambda *_: beat()),
        ]
        train(parallel, own, torch.from_numpy(chosen), recipe, policy, seeds, over_all_ranks, _InOrder(world, keeper, own))
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class _InOrder:
    """Keeps the order in which gradients are summed, and so every bit, when a training goes on.

    DistributedDataParallel orders its buckets anew after its first step; one that goes on takes such a step for nothing.
    """

    world: World
    keeper: Keeper
    samples: RankShare

    def restore(self, training: TrainState) -> None:
        self.keeper.restore(training)
        if (training.epoch, training.step) == (1, 0):
            return
        network, device = training.network, training.loss_sum.device
        before, sent = [buffer.clone() for buffer in network.buffers()], self.world.timeline.sent
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            network(self.samples.batch(torch.arange(2 * self.samples.ranks, device=device))[0]).float().sum().backward()
        network.zero_grad(set_to_none=True)
        self.world.timeline.count(int(sum(sent.values()) - sum(self.world.timeline.sent.values())))  # as if it had not been
        with torch.no_grad():
            for buffer, values in zip(network.buffers(), before, strict=True):
                buffer.copy_(values)

    def after_step(self, training: TrainState) -> None:
        self.keeper.after_step(training)

    def after_epoch(self, training: TrainState) -> None:
        self.keeper.after_epoch(training)


def batch_of_all(batch_size: int, samples: int, ranks: int) -> int:
    """The batch size (samples, of all ranks) that is made of equal shares, of at least 2 samples each for the batch normalisation."""
    return ranks * max(2, min(batch_size, samples) // ranks) if ranks > 1 else batch_size


def all_reduce(world: World, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DistributedDataParallel's own reduction, a bucket while the next ones are computed; what is left after the last one is recorded.

    Waiting for a slower rank cannot be told from communicating here; it counts as communicating.
    """
    gradient = bucket.buffer().div_(world.size)
    work = distributed.all_reduce(gradient, async_op=True)
    world.timeline.count(0 if world.rank else 2 * (world.size - 1) * gradient.nbytes)  # all ranks': reduce-scatter and all-gather
    future = work.get_future().then(lambda done: done.value()[0])
    if bucket.is_last():
        with world.timeline.span("communicate"):
            waiting()
            future.wait()
            beat()
    return future


def bytes_per_step(parameters: int, buffers: int, ranks: int) -> int:
    """Bytes that all ranks together send in a step: a gradient in float32, reduced and returned, and the buffers of rank 0."""
    return (ranks - 1) * (2 * 4 * parameters + buffers)


def classify_together(world: World, network: nn.Module, images: Samples, samples: int, policy: DevicePolicy) -> np.ndarray | None:
    """Probabilities (S, K) float32 of all S samples, which the ranks share; on rank 0, None on the others."""
    return divided(world, np.arange(samples), lambda own: classify(network, images, torch.from_numpy(own), policy).numpy())


def divided(world: World, chosen: np.ndarray, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    """What ``work`` finds (S, ...) for the samples ``chosen`` (S,), of which every rank takes a share; on rank 0."""
    if world.size == 1 or len(chosen) == 0:
        return work(chosen)
    each = -(-len(chosen) // world.size)
    own = np.minimum(np.arange(each) * world.size + world.rank, len(chosen) - 1)
    gathered = world.gather(work(chosen[own]))  # (ranks, each, ...)
    return None if gathered is None else gathered.swapaxes(0, 1).reshape(each * world.size, *gathered.shape[2:])[: len(chosen)]

"""One network trained by several ranks with PyTorch's DistributedDataParallel: each computes the gradient of its share of every batch.

The baseline is trained like this, the undecomposed CNN over all ranks; so is a subdomain that has several ranks. On one rank it is the
plain training loop. Order of the samples and augmentation do not depend on the number of ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ddcnn.data.augmentation import Drawn, Labels
from ddcnn.data.batches import NOTHING, Images, Samples
from ddcnn.io.rows import Room, Table, kept
from ddcnn.parallel.heartbeat import beat, waiting
from ddcnn.parallel.process_group import process_group
from ddcnn.parallel.world import World
from ddcnn.training.evaluation import classify, evaluation_block
from ddcnn.training.loop import Trainer, WrappedCallback
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.state import Epoch, TrainState


def train_data_parallel(
    world: World, trainer: Trainer, network: nn.Module, images: Images, chosen: np.ndarray, has_unused: bool = False
) -> None:
    """Trains a network in place, all ranks of a communicator together.

    Args:
        trainer: its batch size is that of all ranks together, made of equal shares (see ``global_batch_size``).
        network: with the same parameters on all ranks.
        images: of which every rank can read all; each batch is divided as PyTorch's DistributedSampler would.
        chosen: (S,) int64, the samples to train on.
        has_unused: whether there are parameters that the loss does not depend on.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
        Stopped: the callback was asked to stop.
    """
    if world.size == 1:
        trainer.train(network, images, torch.from_numpy(chosen))
        return
    device = trainer.policy.device
    with process_group(world, device):
        parallel = DistributedDataParallel(network, [device] if device.type == "cuda" else None, find_unused_parameters=has_unused)
        parallel.register_comm_hook(world, all_reduce)
        # The group must go after the reducer: gloo's threads may need the interpreter to end, which only the group's own destructor leaves.
        vars(parallel)["goes_last"] = distributed.group.WORLD
        share = RankShare(images, world.rank, world.size)
        callback = _AcrossRanks(trainer.callback, world, share, trainer.recipe.steps_per_epoch(len(chosen)))
        # before the network's own forward pass DistributedDataParallel broadcasts its buffers, and waits
        with parallel.register_forward_pre_hook(lambda *_: waiting()), network.register_forward_pre_hook(lambda *_: beat()):
            replace(trainer, callback=callback).train(parallel, share, torch.from_numpy(chosen))


@dataclass(frozen=True)
class RankShare:
    """A rank's share of every batch: every ``ranks``-th sample, with the augmentation of the whole batch."""

    images: Images
    rank: int
    ranks: int

    @property
    def pixels(self) -> int:
        return self.images.pixels

    @property
    def part(self) -> slice:
        return slice(self.rank, None, self.ranks)

    def ahead(self, batches: Sequence[torch.Tensor], augmented: bool = False) -> None:
        self.images.ahead(batches, augmented, self.part)

    @property
    def on_device(self) -> bool:
        return self.images.on_device

    def draw(self, batches: Sequence[torch.Tensor], generator: torch.Generator) -> list[Drawn]:
        return self.images.draw(batches, generator)

    def batch(self, index: torch.Tensor, drawn: Drawn = NOTHING) -> tuple[Any, Labels]:
        """(B,) -> (B / ranks, C, *spatial) float32, labels (B / ranks,)."""
        return self.images.batch(index, drawn, self.part)


@dataclass(frozen=True)
class _AcrossRanks(WrappedCallback):
    """Metrics of an epoch over all ranks; the order in which gradients are summed, and so every bit, stays the same after a resume.

    DistributedDataParallel rearranges its buckets after its first step; a resumed training runs such a step and discards it.
    """

    world: World
    samples: RankShare
    steps_per_epoch: int

    def restore(self, state: TrainState) -> None:
        self.inner.restore(state)
        if (state.epoch, state.step) == (1, 0):
            return
        network, device = state.network, state.loss_sum.device
        before, sent = [buffer.clone() for buffer in network.buffers()], self.world.timeline.sent
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            output = network(self.samples.batch(torch.arange(2 * self.samples.ranks))[0])
            sum(part.float().sum() for part in (output if isinstance(output, tuple) else (output,))).backward()
        network.zero_grad(set_to_none=True)
        self.world.timeline.count(int(sum(sent.values()) - sum(self.world.timeline.sent.values())))  # this step is not counted
        with torch.no_grad():
            for buffer, values in zip(network.buffers(), before, strict=True):
                buffer.copy_(values)

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        world, buffers = self.world, sum(buffer.nbytes for buffer in state.network.buffers())
        broadcast_(world, state.network.buffers())  # running averages over a rank's own share have changed since the last step
        if state.average:
            with state.evaluated():
                broadcast_(world, state.network.buffers())
        loss, accuracy = world.mean([epoch.loss, epoch.accuracy])
        # DistributedDataParallel broadcasts rank 0's buffers in every step
        world.timeline.count(0 if world.rank else (world.size - 1) * buffers * self.steps_per_epoch)
        self.inner.after_epoch(state, replace(epoch, loss=loss, accuracy=accuracy))


def global_batch_size(batch_size: int, samples: int, ranks: int) -> int:
    """The largest batch of all ranks, up to ``batch_size``, of equal shares: at least 2 samples each, for the batch normalisation."""
    return ranks * max(2, min(batch_size, samples) // ranks) if ranks > 1 else batch_size


def all_reduce(world: World, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The reduction of DistributedDataParallel, which overlaps with the backward pass; the time after the last bucket is recorded.

    Waiting for a slower rank cannot be told from communicating here; it counts as communicating.
    """
    gradient = bucket.buffer().div_(world.size)
    world.timeline.count(0 if world.rank else 2 * (world.size - 1) * gradient.nbytes)  # of all ranks: reduce-scatter and all-gather
    if gradient.is_cuda and distributed.get_backend() == "gloo":  # whose futures do not wait for the copy back: pytorch/pytorch#155714
        host = gradient.cpu()  # once the GPU has computed it, which is no communication
        with world.timeline.span("communicate"):
            waiting()
            distributed.all_reduce(host)
            beat()
        done = torch.futures.Future[torch.Tensor](devices=[gradient.device])
        done.set_result(gradient.copy_(host))
        return done
    work = distributed.all_reduce(gradient, async_op=True)
    future = work.get_future().then(lambda done: done.value()[0])
    if bucket.is_last():
        with world.timeline.span("communicate"):
            waiting()
            future.wait()
            beat()
    return future


@torch.no_grad()
def broadcast_(world: World, tensors: Iterable[torch.Tensor]) -> None:
    """All ranks: copies rank 0's tensors into those of the other ranks, in place."""
    for tensor in tensors if world.size > 1 else ():
        values = np.ascontiguousarray(tensor.detach().cpu().numpy())  # convolutions may be channels last
        world.broadcast_(values)
        tensor.copy_(torch.from_numpy(values).reshape(tensor.shape))


def bytes_per_step(parameters: int, buffers: int, ranks: int) -> int:
    """Bytes that all ranks together send in a step: the float32 gradient, reduced and returned, and the buffers of rank 0."""
    return (ranks - 1) * (2 * 4 * parameters + buffers)


def classify_together(
    world: World, network: nn.Module, images: Samples, samples: int, policy: DevicePolicy, room: Room | None
) -> Table | None:  # fmt: skip
    """Probabilities (S, K) float32 of all S samples on rank 0, None on the other ranks; each rank classifies its share."""
    blocks = divided(world, np.arange(samples), images.pixels, lambda own: classify(network, images, torch.from_numpy(own), policy).numpy())
    return kept(samples, blocks, room)


def divided(
    world: World, chosen: np.ndarray, pixels: int, work: Callable[[np.ndarray], np.ndarray]
) -> Iterator[np.ndarray | None]:  # fmt: skip
    """Values (S, ...) of the samples ``chosen`` (S,) of so many pixels on rank 0, None on the others, block by block.

    Each rank does ``work`` on its share of a block, every P-th sample; all ranks take all blocks.
    """
    size = evaluation_block(pixels, world.size)
    for start in range(0, max(1, len(chosen)), size):
        block = chosen[start : start + size]
        if world.size == 1 or len(block) == 0:
            yield work(block)
            continue
        each = -(-len(block) // world.size)
        share = np.minimum(np.arange(each) * world.size + world.rank, len(block) - 1)
        gathered = world.gather(work(block[share]))  # (ranks, each, ...)
        yield None if gathered is None else gathered.swapaxes(0, 1).reshape(each * world.size, *gathered.shape[2:])[: len(block)]

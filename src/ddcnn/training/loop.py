"""The one training loop, for local CNNs, the DNN and every other network, on samples wherever they are."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ddcnn.data.batches import Samples
from ddcnn.data.stored import on_host, to_device
from ddcnn.parallel.heartbeat import beat
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.precision import DevicePolicy, Network
from ddcnn.training.recipe import Recipe
from ddcnn.training.state import Epoch, TrainState, parts_of
from ddcnn.training.step import gradient_of


def build(make: Callable[[], Network], seeds: Seeds, policy: DevicePolicy) -> Network:
    """A new network on the device; its initial parameters depend on its own seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.at("initial parameters"))
        return policy.place(make())


class Callback:
    """Hooks of the training loop, for recording, display and checkpoints. These do nothing."""

    def restore(self, state: TrainState) -> None:
        """Before the first step; may bring back the state of an earlier attempt."""

    def after_backward(self, state: TrainState) -> None:
        """Between the backward pass and the step of the optimizer; may change gradients."""

    def after_step(self, state: TrainState) -> None:
        """Between two steps of an epoch; may raise ``Stopped``."""

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        """After an epoch; ``state`` is at the begin of the next one, or of the one after the last. May raise ``Stopped``."""


@dataclass(frozen=True)
class WrappedCallback(Callback):
    """Passes everything on to ``inner``; subclasses add to it."""

    inner: Callback

    def restore(self, state: TrainState) -> None:
        self.inner.restore(state)

    def after_backward(self, state: TrainState) -> None:
        self.inner.after_backward(state)

    def after_step(self, state: TrainState) -> None:
        self.inner.after_step(state)

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        self.inner.after_epoch(state, epoch)


@dataclass(frozen=True)
class Trainer:
    """How a network is trained: the recipe, the device and precision, the seeds, and the hooks."""

    recipe: Recipe
    policy: DevicePolicy
    seeds: Seeds
    callback: Callback = Callback()

    def build(self, make: Callable[[], Network]) -> Network:
        return build(make, self.seeds, self.policy)

    def train(self, network: nn.Module, samples: Samples, chosen: torch.Tensor) -> None:
        """Trains ``network`` in place on the samples ``chosen`` (S,) int64 with the cross entropy of its logits.

        Order, augmentation and dropout are functions of the seeds and the epoch alone. Of a network that does not communicate, nothing
        inside an epoch waits for the device.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
            Stopped: the callback was asked to stop.
        """
        recipe, policy, seeds = self.recipe, self.policy, self.seeds
        steps = recipe.steps_per_epoch(len(chosen))
        state = TrainState.start(network, recipe, policy, steps)
        self.callback.restore(state)
        add_gradient = gradient_of(state, samples, recipe, policy)
        while state.epoch <= recipe.epochs:
            if state.step == 0:
                torch.manual_seed(seeds.at("dropout", state.epoch))
            order = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seeds.at("order", state.epoch)))]
            order = to_device(order, policy.device) if samples.on_device else on_host(order, policy.device)
            batches = order.split(recipe.batch_size)[:steps]
            draws = samples.draw(batches, torch.Generator().manual_seed(seeds.at("augmentation", state.epoch)))
            samples.ahead(batches[state.step :], augmented=True)
            network.train()
            state.begin = time.perf_counter()
            for index, drawn in zip(batches[state.step :], draws[state.step :], strict=True):
                self._step(state, add_gradient(index, drawn))
                if state.step < steps:
                    self.callback.after_step(state)
            epoch = state.end_epoch()
            if state.epoch > recipe.epochs:
                state.finish()
            self.callback.after_epoch(state, epoch)
        state.optimizer.zero_grad(set_to_none=True)  # gradients may lie in the memory of a recording

    def _step(self, state: TrainState, samples: int) -> None:
        """The step of the optimizer, with the gradient of so many samples."""
        self.callback.after_backward(state)
        if self.recipe.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            for part in getattr(state.module, "clipped", None) or [part.parameters() for part in parts_of(state.module).values()]:
                nn.utils.clip_grad_norm_(part, self.recipe.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.schedule.step()
        if state.average:
            state.average.follow(state.schedule.last_epoch)
        state.seen += samples
        state.step += 1
        beat(f"epoch {state.epoch}, step {state.step}")

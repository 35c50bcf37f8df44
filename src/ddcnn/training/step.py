"""The gradient of a step: forward pass, loss, backward pass and sums as one function of static inputs.

On a GPU it can be recorded as a CUDA graph, which starts all its kernels at once. The optimizer is outside: its learning rate is a number
of the host's, which a recording would keep.
"""

from contextlib import nullcontext
from functools import cache, partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ddcnn.data.augmentation import Drawn, Labels, MixedLabels
from ddcnn.data.batches import Samples
from ddcnn.errors import InputError
from ddcnn.training.evaluation import at_least_single
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe
from ddcnn.training.state import TrainState

WARM_UP = 3  # steps before a recording, in which libraries choose their algorithms and take their memory


class Gradient(Protocol):
    """Computes the gradient of the loss on a batch, and adds to the sums of the epoch."""

    def __call__(self, index: torch.Tensor, drawn: Drawn) -> int:
        """Of the samples ``index`` (B,), augmented by what has been drawn for them; of how many of them, where ranks share a batch."""


def gradient_of(state: TrainState, samples: Samples, recipe: Recipe, policy: DevicePolicy) -> Gradient:
    """Recorded as a CUDA graph if the policy says so, all samples are on the device, and the network's passes stay on it."""
    eager = Eager(state, samples, recipe, policy)
    alone = state.network is state.module and not getattr(state.module, "communicates", False)
    return Recorded(eager, policy.device) if policy.capture and alone and samples.on_device else eager


class Eager:
    """Kernel by kernel."""

    keeps_casts = True  # of parameters, for a second use in a pass; a recording cannot

    def __init__(self, state: TrainState, samples: Samples, recipe: Recipe, policy: DevicePolicy):
        self.state, self.samples, self.recipe, self.policy = state, samples, recipe, policy
        self.weights = None if recipe.class_weights is None else torch.tensor(recipe.class_weights, device=policy.device)

    def __call__(self, index: torch.Tensor, drawn: Drawn) -> int:
        inputs, labels = self.samples.batch(index, drawn)
        network, batch = self.state.network, len(labels)
        self.state.optimizer.zero_grad(set_to_none=True)
        bounds = [batch * k // self.recipe.accumulate for k in range(self.recipe.accumulate + 1)]
        for part in [slice(*pair) for pair in pairwise(bounds)]:
            alone = part.stop < batch and isinstance(network, DistributedDataParallel)  # with the last part, gradients are reduced
            with network.no_sync() if alone else nullcontext():  # type: ignore[operator]
                self._add(part_of(inputs, part), labels[part], (part.stop - part.start) / batch)
        return batch

    def _add(self, inputs: Any, labels: Labels, share: float) -> None:
        """Of a part of a batch, of which it is the ``share``."""
        state, recipe = self.state, self.recipe
        loss_of = partial(cross_entropy, labels=labels, weights=self.weights, label_smoothing=recipe.label_smoothing)
        with self.policy.autocast(self.keeps_casts):
            output = state.network(inputs)
        logits, others = output if isinstance(output, tuple) else (output, None)
        logits = at_least_single(logits)
        loss = objective = loss_of(logits)
        if others is not None:
            if not self.keeps_casts:
                raise InputError("--capture: a network with further logits cannot be recorded (their weight changes); take --no-capture")
            objective = loss + recipe.auxiliary * state.remaining * sum(loss_of(at_least_single(one)) for one in others)
        state.scaler.scale(objective if share == 1 else share * objective).backward()
        main = labels.main if isinstance(labels, MixedLabels) else labels
        state.loss_sum += loss.detach() if share == 1 else share * loss.detach()
        state.correct += (logits.detach().argmax(1) == main).sum()


class Recorded:
    """A CUDA graph of what ``eager`` does; the same numbers.

    The first steps warm up; then the inputs' places stay, and each step copies its own into them.
    """

    def __init__(self, eager: Eager, device: torch.device):
        self.eager, self.device, self.stream = eager, device, recording_stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.index, self.drawn, self.steps = torch.empty(0), Drawn(), 0
        eager.keeps_casts = False

    def __call__(self, index: torch.Tensor, drawn: Drawn) -> int:
        if not self.steps:
            self.index = torch.empty_like(index, device=self.device)
            self.drawn = Drawn(**{name: torch.empty_like(values) for name, values in drawn.tensors.items()})
        self.index.copy_(index, non_blocking=True)
        for name, values in drawn.tensors.items():
            self.drawn.tensors[name].copy_(values)
        self.steps += 1
        if self.steps <= WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                self.eager(self.index, self.drawn)
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
            return len(index)
        if self.graph is None:
            self.graph = self._record()
        self.graph.replay()
        return len(index)

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self.eager.state.optimizer.zero_grad(set_to_none=True)  # so that gradients are the graph's own, and written, not added to
        try:
            # the next subdomain's images may come to the device meanwhile, from another thread
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.eager(self.index, self.drawn)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of the end of the recording, where the cause came before
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            why = str(error.__context__ or error).splitlines()[0]
            raise InputError(f"--capture: the network cannot be recorded as a CUDA graph; take --no-capture ({why})") from error
        return graph


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all trainings: libraries keep memory for every stream that they have seen."""
    return torch.cuda.Stream(device)


def part_of(inputs: Any, part: slice) -> Any:
    """The samples ``part`` of network input: of a tensor (B, ...), or of each in a list."""
    return inputs[part] if isinstance(inputs, torch.Tensor) else [one[part] for one in inputs]


def cross_entropy(logits: torch.Tensor, labels: Labels, weights: torch.Tensor | None, label_smoothing: float) -> torch.Tensor:
    """Mean cross entropy of logits (B, K) against labels (B,), with weights (K,) of the classes.

    The weighted sum too is divided by B, not by the sum of the batch's weights: so the mean over ranks is the mean over their samples.
    """
    if isinstance(labels, MixedLabels):
        weights = None if weights is None else weights.to(logits.dtype)
        each = partial(functional.cross_entropy, logits, weight=weights, reduction="none", label_smoothing=label_smoothing)
        return torch.lerp(each(labels.other), each(labels.main), labels.weight.to(logits.dtype)).mean()
    if weights is None:
        return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return functional.cross_entropy(logits, labels, weights.to(logits.dtype), reduction="none", label_smoothing=label_smoothing).mean()

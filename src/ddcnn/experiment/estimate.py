"""What a run will take, from the pace of its trainings and the sizes of what it holds: seconds, and memory of a rank."""

from dataclasses import dataclass
from functools import partial

from ddcnn.config.methods import Method
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.stand_in import stored_bytes
from ddcnn.experiment.problem import Problem
from ddcnn.experiment.recorder import KEPT_BYTES
from ddcnn.experiment.residency import bytes_of_part, bytes_of_subimages, bytes_of_two, bytes_of_whole
from ddcnn.experiment.trial import Pace, pixels_of
from ddcnn.io.rows import BLOCK_BYTES, IN_MEMORY
from ddcnn.method.interface import values_per_subdomain
from ddcnn.networks.layers import count_parameters
from ddcnn.parallel.allocator import LARGE
from ddcnn.training.recipe import Recipe

FLOAT = 4  # bytes
STATE = {"adamw": 2, "sgd": 1}  # numbers that an optimizer keeps for a parameter
FROZEN = 1 / 3  # of a step, without a gradient of the local CNNs


@dataclass(frozen=True)
class Memory:
    """Bytes of this rank at the peak of a phase.

    Attributes:
        program: what Python and its libraries hold before.
        data: images, and interface values.
        parameters: with their gradients.
        optimizer: its state.
        activations: what a step or an evaluation needs beyond these, as measured.
    """

    program: float = 0.0
    data: float = 0.0
    parameters: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0

    @property
    def total(self) -> float:
        return self.program + self.data + self.parameters + self.optimizer + self.activations


class Estimate:
    """Of this rank's share of a problem.

    Args:
        paces: as of ``Trial.paces``.
    """

    def __init__(self, problem: Problem, paces: dict[str, Pace]):
        self.problem, self.paces, self.settings = problem, paces, problem.settings
        self.store, self.networks = problem.store, problem.networks
        self.samples = problem.store.samples
        self.local_cnn = self.networks.make_local(0)() if self.settings.needs("local") or self.settings.joint else None
        self.values = values_per_subdomain(self.settings.interface, self.local_cnn) if self.local_cnn else 0  # C
        self.own = len(problem.owned)

    # Seconds

    def seconds(self, phase: str) -> float:
        """Of this rank in a phase."""
        find = {"local": self._local, "folds": self._folds, "gather": self._gather, "dnn": self._dnn}
        return find[phase]() if phase in find else self._together(Method(phase))

    def _evaluated(self, epochs: int) -> float:
        """Samples that are classified after the epochs of a training: those for validation."""
        every = self.settings.evaluate_every
        return self.samples.get("validation", 0) * (epochs // every if every else 0)

    @property
    def _at_the_end(self) -> int:
        """Samples that are classified with a network that has been trained."""
        return self.samples["test"] + self.samples.get("validation", 0)

    @property
    def _scale(self) -> float:
        """Of all local CNNs of this rank, by pixels: how many of the largest one they are."""
        pixels = [pixels_of(self.problem, index) for index in self.problem.owned]
        return sum(pixels) / max(pixels)

    def _local(self) -> float:
        pace, settings, chosen = self.paces["local"], self.settings, self.problem.dnn_samples
        share = self.problem.groups.data_parallel.size
        classified = 0.0 if chosen.kind == "out-of-fold" else self._at_the_end + len(chosen.for_dnn)
        training = 0.0
        if not settings.start_from:
            steps = settings.epochs * self.problem.local_recipe.steps_per_epoch(len(chosen.for_cnn))
            training = pace.first + steps * pace.step
            classified += self._evaluated(settings.epochs)
        return self._scale * (training + classified / share * pace.sample)

    def _folds(self) -> float:
        pace, folds, samples = self.paces["local"], self.settings.folds, self.samples["train"]
        steps = self.settings.epochs * self.problem.local_recipe.steps_per_epoch(samples - samples // folds)
        classified = (self._at_the_end + samples) / self.problem.groups.data_parallel.size
        return self._scale * (folds * (pace.first + steps * pace.step) + classified * pace.sample)

    def _gather(self) -> float:
        return self._gathered * self.paces["gather"].step

    @property
    def _gathered(self) -> float:
        """Bytes that this rank hands over."""
        return self.own * sum(self._tables)

    @property
    def _tables(self) -> list[float]:
        """Bytes of what a local CNN hands over: p_i, and what the DNN gets where that is something else or is of other samples."""
        settings, judged = self.settings, {split: samples for split, samples in self.samples.items() if split != "train"}
        sizes = [self.networks.classes * samples for samples in judged.values()]
        sizes.append(self.values * len(self.problem.dnn_samples.for_dnn))
        if settings.interface != "probabilities":
            sizes += [self.values * samples for split, samples in judged.items() if split in settings.judged_by_dnn]
        return [float(FLOAT * size) for size in sizes]

    @property
    def in_files(self) -> float:
        """Bytes of interface values that all ranks together keep in files: their own, and rank 0 those of all."""
        subdomains, sizes = self.networks.subdomains, self._tables if self.settings.needs("local") else []
        own, of_all = ([size for size in (number * one for one in sizes) if size > IN_MEMORY // self.own] for number in (1, subdomains))
        return subdomains * sum(own) + sum(of_all)

    def _dnn(self) -> float:
        if "dnn" not in self.paces:  # of rank 0 alone
            return 0.0
        pace, recipe = self.paces["dnn"], self.problem.dnn_recipe
        steps = recipe.epochs * recipe.steps_per_epoch(len(self.problem.dnn_samples.for_dnn))
        return pace.first + steps * pace.step + (self._evaluated(recipe.epochs) + self._at_the_end) * pace.sample

    def recipe(self, method: Method) -> tuple[Recipe, int]:
        """Of a network of all subdomains, and the ranks that share a batch."""
        whole = self.settings.sees_whole_image(method)
        ranks = self.problem.world.size if whole else self.problem.groups.data_parallel.size
        ranks = 1 if method == Method.SPATIAL else ranks
        return self.problem.joint_recipe(method, ranks), ranks

    def _together(self, method: Method) -> float:
        pace = self.paces[method if method == Method.SPATIAL else "global" if self.settings.sees_whole_image(method) else "joint"]
        recipe, ranks = self.recipe(method)
        frozen = self.settings.frozen_epochs if method == Method.TRANSFER else 0
        steps = (recipe.epochs + FROZEN * frozen) * recipe.steps_per_epoch(self.samples["train"])
        classified = self._evaluated(recipe.epochs + frozen) + self._at_the_end
        return pace.first + steps * pace.step + classified / ranks * pace.sample

    # Memory

    def memory(self, phase: str, program: float, peak: float, few: PartitionedSet) -> Memory:
        """Of this rank in a phase.

        Args:
            program: bytes before the timed steps.
            peak: bytes in the timed steps of the phase.
            few: their images.
        """
        tried = self._parameters(phase, 1 if phase in ("local", "folds") else self.own)
        data = (0.0 if self._streams(phase) else self._images(phase, self.store)) + self._interface(phase)
        rest = peak - program - sum(tried) - self._images(phase, few)
        return Memory(program, data, *self._parameters(phase, self.own), max(0.0, rest))

    def _images(self, phase: str, store: PartitionedSet) -> float:
        """Bytes of the images in a phase; of the local CNNs' those of one at a time."""
        places = sorted({self.networks.subimage(index) for index in self.problem.owned})
        held = partial(bytes_of_subimages, store, self.problem.augmentation("train").mirrors)
        on_cpu, before = self.problem.policy.device.type == "cpu", self.settings.phases[0] != phase
        if phase in ("gather", "dnn"):
            return max(held([place], LARGE) for place in places) if on_cpu else 0.0  # what the allocator keeps
        if phase == "local" and not self.settings.start_from:
            return bytes_of_two(store, self.problem.augmentation("train").mirrors, places)
        if phase in ("local", "folds"):
            return max(held([place]) for place in places)
        if not self.settings.sees_whole_image(phase):
            return held(places)
        if phase == Method.SPATIAL:
            return bytes_of_part(store, self.problem.layout.boxes[self.problem.world.rank], self.problem.augmentation)
        beside = stored_bytes(store, "train", 0)  # as they arrive
        if on_cpu and before:
            beside += int(held(places, LARGE))  # kept from the phases before
        return bytes_of_whole(store) + beside

    def _streams(self, phase: str) -> bool:
        """Whether a phase reads images as it needs them; the few of the timed steps are in memory."""
        return self.problem.place_of(phase) == "stream"

    def _interface(self, phase: str) -> float:
        """Bytes of interface values and classifications."""
        own = sum(min(self.own * size, IN_MEMORY) for size in self._tables)
        curve = min(KEPT_BYTES, 2 * self.own * self.networks.classes * self._evaluated(self.settings.epochs))  # of the average
        if phase in ("local", "folds"):
            return own + curve
        if phase in ("gather", "dnn"):
            everything = sum(min(size * self.networks.subdomains, IN_MEMORY // self.own) for size in self._tables)
            return own + curve + 3 * BLOCK_BYTES + (everything if self.problem.world.rank == 0 else 0)
        return curve

    @property
    def state(self) -> int:
        """Numbers that are kept of each parameter beside it and its gradient: the optimizer's, the average, and of the best epoch."""
        return STATE[self.settings.optimizer] + (self.settings.ema is not None) + (self.settings.keeps == "best")

    def _parameters(self, phase: str, own: int) -> tuple[float, float]:
        """Bytes of parameters and gradients of so many local CNNs or of another network, and of optimizer and average."""
        state, local = self.state, count_parameters(self.local_cnn) if self.local_cnn else 0
        if phase in ("local", "folds"):
            return 2.0 * FLOAT * local * own, float(state * FLOAT * local)
        if phase == "gather":
            return 2.0 * FLOAT * local * own, 0.0
        if phase == "dnn":
            return 2.0 * FLOAT * local * own + 2.0 * FLOAT * self.dnn_parameters, 2.0 * FLOAT * self.dnn_parameters
        if self.settings.sees_whole_image(phase):
            whole = self.networks.global_parameters or 0
            return 2.0 * FLOAT * whole, float(state * FLOAT * whole)
        both = local * own + self.dnn_parameters
        return 2.0 * FLOAT * both, float(state * FLOAT * both)

    @property
    def dnn_parameters(self) -> int:
        return count_parameters(self.networks.make_dnn()())

    @property
    def set_bytes(self) -> int:
        """Of the partitioned set, on disk."""
        places = range(len(self.store.decomposition))
        return sum(stored_bytes(self.store, split, place) for split in self.store.samples for place in places)

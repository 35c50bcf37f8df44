"""The problem that a run or a script solves: decomposed images, which rank has which subdomain, the networks and their recipes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from ddcnn.config.methods import PHASES_OF, Method, divide_images
from ddcnn.config.settings import RunSettings
from ddcnn.data.augmentation import Augmentation
from ddcnn.data.batches import RankSubimages, Subimages
from ddcnn.data.image_spec import imagenet
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.stored import Place, Resident
from ddcnn.errors import InputError
from ddcnn.experiment import residency
from ddcnn.experiment.plan import resolved
from ddcnn.experiment.residency import Residency
from ddcnn.io.rows import Table
from ddcnn.io.weights import COLOURS, Weights
from ddcnn.method.dnn_samples import DnnSamples
from ddcnn.method.factory import Networks
from ddcnn.method.halo import Layout
from ddcnn.parallel.devices import choose_device
from ddcnn.parallel.environment import threads_per_rank
from ddcnn.parallel.groups import Groups, form_groups
from ddcnn.parallel.world import World
from ddcnn.report.metrics import cross_entropy
from ddcnn.training.data_parallel import global_batch_size
from ddcnn.training.kept import Score
from ddcnn.training.loop import Callback
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe
from ddcnn.training.validation import Selection, Validation

SMALL_BATCH = 8  # in a smaller one, batch normalisation sees too little
FEW_STEPS = 10  # of an epoch: with fewer, the learning-rate schedule has no room
TOO_FEW_STEPS = 4  # with fewer, a network hardly learns
FEW_VALIDATION_IMAGES = 50  # with fewer, what they decide is by chance


@dataclass(frozen=True)
class Problem:
    """Decomposed images, and how the settings solve their classification, with one seed.

    Attributes:
        groups: which rank trains which subdomain.
        settings: the options of ``ddcnn run``.
        store: the decomposed images.
        policy: device and precision of this rank.
        dnn_data: what the DNN learns from, as ``DnnSamples.kind``: "none" if no DNN is trained.
        weights: that CNNs start from; None for random ones.
        residency: where the images are.
    """

    world: World
    groups: Groups
    settings: RunSettings
    store: PartitionedSet
    policy: DevicePolicy
    dnn_data: str
    weights: Weights | None = None
    residency: Residency = Residency()

    @property
    def networks(self) -> Networks:
        return Networks(self.settings, self.store, self.policy, self.weights)

    @property
    def weights_sha256(self) -> str:
        """Of the file that CNNs start from; empty if they start from random ones."""
        return self.weights.sha256 if self.weights else ""

    @property
    def owned(self) -> range:
        """The subdomains that this rank trains."""
        return self.groups.owned(self.networks.subdomains)

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """(S,) int64 per split."""
        return {split: self.store.labels(split) for split in self.store.samples}

    @property
    def validates(self) -> bool:
        """Whether there are validation images."""
        return "validation" in self.store.samples

    def validated(
        self, inner: Callback, classify: Callable[[nn.Module], Table | None], ranks: World, epochs: int, decides: bool = True
    ) -> Callback:
        """``inner`` with the validation of a network that ``ranks`` train in so many epochs, if there are validation images.

        Args:
            classify: probabilities (S_validation, K) on the first rank.
            decides: whether the training may stop early and keep its best epoch.
        """
        settings = self.settings
        if not self.validates:
            return inner
        patience, keep_best = (settings.early_stopping, settings.keeps == "best") if decides else (None, False)
        selection = Selection(settings.evaluate_every, patience, keep_best)
        return Validation(inner, lambda network: self.score_of(classify(network)), selection, ranks, epochs)

    def score_of(self, probabilities: Table | None) -> Score | None:
        """The score of probabilities (S_validation, K); None where there are none."""
        if probabilities is None:
            return None
        labels, classes = self.labels["validation"], probabilities.mapped(lambda block: block.argmax(axis=1))
        return Score(float((classes == labels).mean()), cross_entropy(labels, probabilities))

    @cached_property
    def dnn_samples(self) -> DnnSamples:
        """Which training samples the local CNNs and the DNN learn from."""
        return DnnSamples.choose(self.dnn_data, self.labels["train"], self.settings.folds, self.settings.seed)

    # Images

    def place_of(self, phase: str) -> Resident:
        """Where the images of a phase are."""
        if phase in PHASES_OF[Method.DNN]:
            return self.residency.local
        whole = phase != Method.SPATIAL and self.settings.sees_whole_image(phase)
        return self.residency.whole if whole else self.residency.joint

    def subimages(self, split: str, index: int) -> Subimages:
        """Those of a subdomain; training images are augmented."""
        place = Place(self.policy.device, self.residency.local)
        return Subimages.load(self.store, split, self.networks.subimage(index), place, self.augmentation(split))

    def owned_subimages(self, split: str) -> RankSubimages:
        """Those of all subdomains of this rank."""
        place, subdomains = Place(self.policy.device, self.residency.joint), [self.networks.subimage(index) for index in self.owned]
        return RankSubimages.load(self.store, split, subdomains, place, self.augmentation(split))

    def whole_images(self, split: str) -> Subimages:
        """Of one split; the ranks share the comparison of checksums."""
        decomposition, place = self.store.decomposition, Place(self.policy.device, self.residency.whole)
        checked = range(self.world.rank, len(decomposition), self.world.size)
        return Subimages.load_box(self.store, split, decomposition.box, place, self.augmentation(split), checked)

    def parts_of_images(self, split: str) -> RankSubimages:
        """This rank's part of the whole images, for spatial parallelism."""
        boxes, place = self.layout.boxes, Place(self.policy.device, self.residency.joint)
        part = Subimages.load_box(self.store, split, boxes[self.world.rank], place, self.augmentation(split))
        return RankSubimages([part], max(box.pixels for box in boxes))

    @property
    def layout(self) -> Layout:
        """Which part of the whole images each rank has, in spatial parallelism."""
        return Layout.of(self.store.shape[:-1], self.world.size)

    def augmentation(self, split: str) -> Augmentation:
        settings, names = self.settings, self.settings.augmentations
        if split != "train":
            return Augmentation()
        strengths = {name: getattr(settings, name) for name in ("erase", "mixup") if name in names}
        return Augmentation("flip" in names, settings.margin, settings.flipped_axes, **strengths)

    # Recipes

    def recipe(self, epochs: int, lr: float | None, ranks: int, schedule: str | None = None, samples: int | None = None) -> Recipe:
        """The recipe of a CNN.

        Args:
            lr, schedule: None for those of local training.
            ranks: that train it data-parallel, with equal shares of every batch.
            samples: fewest that it is trained on; None for all training samples.
        """
        settings = self.settings
        batch_size = global_batch_size(settings.batch_size, samples or self.store.train_samples, ranks)
        return Recipe(
            epochs, batch_size, settings.optimizer, lr or settings.lr, settings.weight_decay, schedule or settings.schedule,
            settings.label_smoothing, self._class_weights, settings.clip_norm, settings.ema, settings.warmup or None,
            accumulate=settings.accumulate,
        )  # fmt: skip

    @property
    def local_recipe(self) -> Recipe:
        samples, folds = self.store.train_samples, self.settings.folds
        fewest = samples - -(-samples // folds) if self.dnn_data in ("holdout", "out-of-fold") else samples
        return self.recipe(self.settings.epochs, None, self.groups.data_parallel.size, samples=fewest)

    def joint_recipe(self, method: Method, ranks: int) -> Recipe:
        """The recipe of a network of all subdomains; of transfer without its frozen epochs."""
        settings = self.settings
        if method == Method.TRANSFER:
            recipe = self.recipe(settings.transfer_epochs, settings.transfer_lr or settings.lr / 5, ranks, settings.transfer_schedule)
        else:
            recipe = self.recipe(settings.epochs_of(method), settings.global_lr if method.whole_image else settings.coherent_lr, ranks)
        return recipe if method.whole_image else replace(recipe, auxiliary=settings.auxiliary / self.networks.subdomains)

    @property
    def dnn_recipe(self) -> Recipe:
        settings = self.settings
        return Recipe(
            settings.dnn_epochs, settings.batch_size, "adamw", settings.dnn_lr, 0.01, "one-cycle", class_weights=self._class_weights
        )  # fmt: skip

    @property
    def _class_weights(self) -> tuple[float, ...] | None:
        """(K,) weights with which all classes count equally: S / (K · samples of the class), K the number of classes with samples."""
        if self.settings.class_weights == "none":
            return None
        counts = np.bincount(self.labels["train"], minlength=self.networks.classes)
        return tuple((counts.sum() / ((counts > 0).sum() * np.maximum(counts, 1))).tolist())


def notes(problem: Problem) -> list[str]:
    """Notes on settings that are valid but probably not intended."""
    settings, store, dnn_samples = problem.settings, problem.store, problem.dnn_samples
    texts = []
    images = len(dnn_samples.for_cnn)

    def steps_and_rest(batch_size: int) -> tuple[int, int]:
        """Of an epoch of a local CNN: its steps, and the images that are left over."""
        batch_size = global_batch_size(batch_size, images, problem.groups.data_parallel.size)
        return (images // batch_size, images % batch_size) if batch_size < images else (1, 0)

    batch = settings.batch_size
    steps, rest = steps_and_rest(batch)
    given, leaves = "batch_size" in settings.model_fields_set, 10 * rest > images
    if (not given and steps < FEW_STEPS) or (steps < TOO_FEW_STEPS and not leaves):
        smaller = max(SMALL_BATCH, images // FEW_STEPS)
        too_few = ", too few to learn much" if steps < TOO_FEW_STEPS else ""
        texts.append(
            f"batches of {batch} make {steps} step{'s' * (steps > 1)} an epoch of the {images} training images{too_few}"
            + (f"; --batch-size {smaller} makes {more}" if (more := steps_and_rest(smaller)[0]) > steps else "")
        )
    elif leaves:
        better = min(range(batch, max(2, batch // 2) - 1, -1), key=lambda size: steps_and_rest(size)[1])
        left = steps_and_rest(better)[1]
        advice = f"; --batch-size {better} takes {f'all but {left}' if left else 'all'}" if left < rest else ""
        texts.append(f"batches of {batch} leave {rest} of the {images} training images out of every epoch, others each time{advice}")
    sharing = {"a subdomain": problem.groups.data_parallel.size} if divide_images(settings.methods) else {}
    sharing |= {"global": problem.world.size} if settings.needs("global") else {}
    for title, ranks in sharing.items():
        if (size := global_batch_size(batch, images, ranks)) > batch:
            texts.append(
                f"batches of {title} have {size} images, not {batch}: each of {ranks} ranks needs two, for its batch normalisation"
            )
    whole = sum(subdomain.subimage.shape == store.decomposition.shape for subdomain in store.decomposition.subdomains)
    if settings.splitting.cuts_images and whole and len(store.decomposition) > 1:
        advice = ", so nothing is decomposed: take a smaller --overlap" if whole == len(store.decomposition) else ""
        texts.append(f"with --overlap {store.overlap}, {whole} of {len(store.decomposition)} subimages are the whole image{advice}")
    validation = store.samples.get("validation", 0)
    decided = [settings.selects] * bool(settings.selects) + ["the method that predict takes by default"] * (len(settings.methods) > 1)
    if decided and 0 < validation < FEW_VALIDATION_IMAGES:
        texts.append(
            f"with {validation} validation images a validation accuracy moves in steps of {100 / validation:.1f} points, so it is partly "
            f"chance what it decides: {', and '.join(decided)}; a larger --validation-fraction helps"
        )
    if problem.residency.why:
        texts.append(f"images are not all on the device: {problem.residency} ({problem.residency.why})")
    for split in ("validation", "test"):
        absent = np.setdiff1d(np.arange(len(store.class_names)), problem.labels.get(split, np.empty(0)))
        if len(absent) and split in store.samples:
            others = f" (and of {len(absent) - 1} more)" if len(absent) > 1 else ""
            texts.append(f"no {split} image is of the class {store.class_names[absent[0]]}{others}: {split} accuracies say nothing of it")
    if problem.weights and (channels := store.shape[-1]) not in (1, COLOURS):
        texts.append(
            f"of --weights the first convolution, for {COLOURS} channels, is left out: it is new, for the {channels} of the images"
        )
    return texts


def prepare(world: World, settings: RunSettings, store: PartitionedSet) -> Problem:
    """The problem on these ranks, for the Python API and for runs; all ranks together.

    Raises:
        InputError: the device or the precision is not available.
    """
    torch.set_num_threads(threads_per_rank(world, settings.threads))
    settings = resolved(settings, store)
    groups = form_groups(world, len(store.decomposition) * settings.networks_per_subimage)
    device = choose_device(world, settings.device, settings.deterministic)
    with world.raise_on_all_ranks():
        policy = DevicePolicy.choose(device, settings.precision, len(store.grid) == 3, settings.capture and not settings.recompute)
        weights = Weights.read(settings.weights) if settings.weights else None
        if settings.normalise == "imagenet":
            mean, std = imagenet(store.shape, store.dtype, store.preprocessing, settings.network)
            store = replace(store, mean=mean, std=std)
    if not world.all_equal(policy.precision.encode()):
        policy = replace(policy, precision="fp32")  # --precision auto, and some GPUs have no bf16
    settings = settings.model_copy(update={"precision": policy.precision})  # so that a run goes on in it, on whatever device
    dnn_data = settings.dnn_data if settings.trains_dnn else "none"
    problem = Problem(world, groups, settings, store, policy, dnn_data, weights)
    places = sorted({problem.networks.subimage(index) for index in problem.owned}) if divide_images(settings.methods) else []
    mirrors = problem.augmentation("train").mirrors
    joint = residency.bytes_of_subimages(store, mirrors, places)
    if Method.SPATIAL in settings.methods:
        joint = max(joint, residency.bytes_of_part(store, problem.layout.boxes[world.rank], problem.augmentation))
    needed = (residency.bytes_of_two(store, mirrors, places), joint, residency.bytes_of_whole(store))
    problem = replace(problem, residency=residency.choose(world, settings.resident, needed, policy.device))
    if not world.all_equal(problem.weights_sha256.encode()):
        raise InputError(f"--weights {settings.weights}: not the same file on all ranks, or it has changed meanwhile", agreed=True)
    return problem

"""Network input: normalisation, memory format, and augmentations that are the same for all subimages of an image."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from ddcnn.data.augmentation import Augmentation, Labels, MixedLabels
from ddcnn.data.batches import RankSubimages, Samples, Subimages
from ddcnn.data.partition import partition
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.data.stored import Place, Streamed
from ddcnn.decomposition import Decomposition
from ddcnn.method.halo import Layout
from ddcnn.training.data_parallel import RankShare

CPU = Place(torch.device("cpu"))
SAMPLES = 40
EVERYTHING = Augmentation(True, 2, (-1,), 0.7, 1.0)
ONE_BY_ONE = [
    Augmentation(flip=True), Augmentation(shift=1), Augmentation(shift=2), Augmentation(True, 2),
    Augmentation(erase=1.0), Augmentation(mixup=0.4), EVERYTHING,
]  # fmt: skip
CASES = {  # shape, grid, overlap, type
    "2-D": ((6, 8, 3), (2, 2), 1, "uint8"),
    "2-D without overlap": ((7, 9, 1), (3, 3), 0, "float32"),
    "2-D uneven": ((5, 8, 2), (1, 3), 2, "int16"),
    "3-D": ((4, 5, 6, 2), (2, 1, 3), 1, "uint16"),
    "big-endian": ((5, 6, 1), (2, 2), 1, ">u2"),
}


@pytest.fixture(scope="module")
def stores(world, write_arrays, random_arrays, tmp_path_factory):
    """Gives the set of a case, and its training images as they are."""
    kept: dict = {}

    def make(case: str, margin: int = 2, whole: bool = False) -> tuple[PartitionedSet, np.ndarray]:
        shape, grid, overlap, dtype = CASES[case]
        grid = (1,) * len(grid) if whole else grid
        key = (case, margin, whole)
        if key not in kept:
            folder = tmp_path_factory.mktemp("stores")
            arrays = random_arrays(shape, dtype, train=SAMPLES, classes=3)
            path = write_arrays(folder / "source.npz", **arrays)
            source = open_source(SourceOptions(str(path), Path(), volumes=len(grid) == 3))
            everything = {name: np.arange(len(split)) for name, split in source.splits.items()}
            decomposition = Decomposition(shape[:-1], grid, overlap, margin)
            kept[key] = partition(world, source, everything, decomposition, folder / "set.h5"), arrays["x_train"]
        return kept[key]

    return make


def batches(store: PartitionedSet, augmentation=Augmentation(), seed: int | None = None) -> list[torch.Tensor]:
    """The batch of all training samples, in a shuffled order, of every subdomain, each with the same draw."""
    found = []
    for index in range(len(store.decomposition)):
        found.append(augmented_batch(Subimages.load(store, "train", index, CPU, augmentation), order(), seed)[0])
    return found


def augmented_batch(samples: Samples, index: torch.Tensor, seed: int | None, **part):
    """A batch with what is drawn from a seed, without one as it is."""
    if seed is None:
        return samples.batch(index, **part)
    return samples.batch(index, samples.draw([index], torch.Generator().manual_seed(seed))[0], **part)


def main(labels: Labels) -> torch.Tensor:
    return labels.main if isinstance(labels, MixedLabels) else labels


def order() -> torch.Tensor:
    return torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(7))


def normalised(images: np.ndarray) -> np.ndarray:
    """(S, *shape, C) -> (S, *shape, C), with mean 0 and standard deviation 1 per channel."""
    pixels = images.astype(np.float64)
    axes = tuple(range(images.ndim - 1))
    return (pixels - pixels.mean(axis=axes)) / pixels.std(axis=axes)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("margin", [0, 2])
def test_a_batch_is_the_normalised_subimages_channels_first(stores, case, margin):
    store, images = stores(case, margin)
    expected = np.moveaxis(normalised(images), -1, 1)[order().numpy()]
    for subdomain, batch in zip(store.decomposition.subdomains, batches(store), strict=True):
        assert batch.dtype == torch.float32
        assert batch.shape == (SAMPLES, store.shape[-1], *subdomain.subimage.shape)
        np.testing.assert_allclose(batch, expected[(..., *subdomain.subimage.slices)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["2-D", "3-D"])
@pytest.mark.parametrize("augmentation", [Augmentation(), *ONE_BY_ONE])
@pytest.mark.parametrize("seed", [None, 3])
def test_batches_lie_in_memory_as_channels_last(stores, case, augmentation, seed):
    store, _ = stores(case)
    form = torch.channels_last if case == "2-D" else torch.channels_last_3d
    for batch in batches(store, augmentation, seed):
        assert batch.is_contiguous(memory_format=form)


def test_labels_are_those_of_the_set(stores):
    store, _ = stores("2-D")
    labels = Subimages.load(store, "train", 1, CPU).labels
    assert labels.dtype == torch.int64
    assert labels.tolist() == [k % 3 for k in range(SAMPLES)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("augmentation", ONE_BY_ONE)
def test_without_a_draw_nothing_is_augmented(stores, case, augmentation):
    store, _ = stores(case)
    for plain, batch in zip(batches(store), batches(store, augmentation), strict=True):
        assert torch.equal(plain, batch)


@pytest.mark.parametrize("augmentation", ONE_BY_ONE)
def test_a_draw_decides_the_augmentation(stores, augmentation):
    store, _ = stores("2-D")
    first, again, other = (batches(store, augmentation, seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("augmentation", [*ONE_BY_ONE, "all axes"])
def test_all_subimages_of_an_image_are_augmented_alike(stores, case, augmentation):
    """Those of all subdomains, put together, are the augmented image."""
    store, _ = stores(case)
    if augmentation == "all axes":
        axes = (-1,) if case == "big-endian" else tuple(range(-len(store.grid), 0))  # 5 rows in 2 parts have no mirror image
        augmentation = replace(EVERYTHING, flip_axes=axes)
    whole = batches(stores(case, whole=True)[0], augmentation, seed=3)[0]
    for subdomain, batch in zip(store.decomposition.subdomains, batches(store, augmentation, seed=3), strict=True):
        assert torch.equal(batch, whole[(..., *subdomain.subimage.slices)])


def augmented(images: np.ndarray, flip: bool, offset: tuple[int, ...]) -> np.ndarray:
    """Normalised images (S, *shape, C), flipped from left to right, then moved by ``offset`` with zeros coming in."""
    images = images[..., ::-1, :] if flip else images
    widest = max(map(abs, offset), default=0)
    padded = np.pad(images, [(0, 0), *[(widest, widest)] * len(offset), (0, 0)])
    places = tuple(slice(widest + o, widest + o + n) for o, n in zip(offset, images.shape[1:-1], strict=True))
    return padded[(slice(None), *places)]


@pytest.mark.parametrize("case", ["2-D", "2-D uneven", "3-D"])
@pytest.mark.parametrize("augmentation", [Augmentation(flip=True), Augmentation(shift=1), Augmentation(shift=2), Augmentation(True, 1)])
def test_an_augmented_image_is_flipped_and_shifted_with_zeros_coming_in(stores, case, augmentation):
    store, images = stores(case, whole=True)
    batch = np.moveaxis(batches(store, augmentation, seed=3)[0].numpy(), 1, -1)
    images = normalised(images)[order().numpy()]
    axes, shift = images.ndim - 2, augmentation.shift
    found = {}  # sample -> (flip, offset)
    for flip, offset in product((False, True), product(range(-2, 3), repeat=axes)):
        same = np.isclose(batch, augmented(images, flip, offset), rtol=1e-4, atol=1e-4).reshape(SAMPLES, -1).all(axis=1)
        found |= {sample: (flip, offset) for sample in np.flatnonzero(same)}
    assert len(found) == SAMPLES
    assert {flip for flip, _ in found.values()} == ({False, True} if augmentation.flip else {False})
    for axis in range(axes):
        assert {offset[axis] for _, offset in found.values()} == set(range(-shift, shift + 1))
    if augmentation.shift:  # the axes are moved independently of one another
        assert len({offset for _, offset in found.values()}) > 2 * shift + 1


@pytest.mark.parametrize("case", ["2-D", "3-D"])
def test_images_are_flipped_along_all_combinations_of_the_axes(stores, case):
    store, images = stores(case, whole=True)
    axes = tuple(range(-len(store.grid), 0))
    batch = np.moveaxis(batches(store, Augmentation(flip=True, flip_axes=axes), seed=3)[0].numpy(), 1, -1)
    images, found = normalised(images)[order().numpy()], {}
    for flips in product((False, True), repeat=len(axes)):
        expected = np.flip(images, [axis - 1 for axis, flip in zip(axes, flips, strict=True) if flip])
        same = np.isclose(batch, expected, rtol=1e-4, atol=1e-4).reshape(SAMPLES, -1).all(axis=1)
        found |= {sample: flips for sample in np.flatnonzero(same)}
    assert len(found) == SAMPLES
    assert len(set(found.values())) == 2 ** len(axes)


@pytest.mark.parametrize("case", ["2-D", "3-D"])
def test_a_box_anywhere_in_the_image_is_erased(stores, case):
    store, images = stores(case, whole=True)
    batch = np.moveaxis(batches(store, Augmentation(erase=0.5), seed=3)[0].numpy(), 1, -1)
    images = normalised(images)[order().numpy()]
    erased = (batch == 0).all(axis=-1)
    np.testing.assert_allclose(batch[~erased], images[~erased], rtol=1e-4, atol=1e-5)
    sides = []
    for pixels in erased:
        places = np.nonzero(pixels)
        lengths = [int(np.ptp(place)) + 1 if place.size else 0 for place in places]
        assert pixels.sum() == np.prod(lengths)  # a box
        sides.append(lengths)
    assert np.max(sides, axis=0).tolist() == [round(0.5 * n) for n in store.shape[:-1]]
    for axis in range(1, erased.ndim):  # up to the borders
        assert erased.any(axis=tuple(other for other in range(erased.ndim) if other != axis)).all()
    assert not erased.any(axis=tuple(range(1, erased.ndim))).all()  # some images stay whole


def test_mixed_images_are_pairs_of_the_batch_with_both_labels(stores):
    store, images = stores("2-D", whole=True)
    samples = Subimages.load(store, "train", 0, CPU, Augmentation(mixup=0.5))
    batch, labels = augmented_batch(samples, order(), 3)
    assert isinstance(labels, MixedLabels)
    assert torch.equal(labels.main, samples.labels[order()])
    assert labels.weight.min() >= 0.5
    assert labels.weight.max() > 0.95
    images = normalised(images)[order().numpy()]
    partners = set()
    for k, image in enumerate(np.moveaxis(batch.numpy(), 1, -1)):
        weight = labels.weight[k].item()
        mixed = weight * images[k] + (1 - weight) * images
        fitting = np.flatnonzero(np.isclose(mixed, image, rtol=1e-3, atol=1e-3).reshape(SAMPLES, -1).all(axis=1))
        assert labels.other[k].item() in samples.labels[order()][fitting]
        partners |= set(fitting.tolist()) if len(fitting) == 1 else set()
    assert len(partners) > SAMPLES // 2  # each image is mixed into one


AUGMENTATIONS = [Augmentation(), *ONE_BY_ONE]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("owned", [[0], [1, 0], None])
def test_subdomains_of_one_rank_get_the_batches_that_they_would_get_alone(stores, case, augmentation, owned):
    store, _ = stores(case)
    owned = owned or list(range(len(store.decomposition)))
    together = RankSubimages.load(store, "train", owned, CPU, augmentation)
    found, labels = augmented_batch(together, order(), 3)
    expected = batches(store, augmentation, 3)
    assert len(found) == len(owned)
    assert all(torch.equal(batch, expected[index]) for index, batch in zip(owned, found, strict=True))
    assert torch.equal(main(labels), torch.from_numpy(store.labels("train"))[order()])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_the_whole_image_is_the_subimage_of_a_single_subdomain(stores, case, augmentation):
    store, _ = stores(case)
    single, _ = stores(case, whole=True)
    whole = Subimages.load_box(store, "train", store.decomposition.box, CPU, augmentation)
    found, labels = augmented_batch(whole, order(), 5)
    expected, _ = augmented_batch(Subimages.load(single, "train", 0, CPU, augmentation), order(), 5)
    assert torch.equal(found, expected)
    assert torch.equal(main(labels), torch.from_numpy(store.labels("train"))[order()])


@pytest.mark.parametrize("resident", ["device", "stream"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_the_ranks_parts_of_images_are_the_images(stores, case, augmentation, resident):
    """Whatever the grid of the set is."""
    store, _ = stores(case)
    expected = augmented_batch(Subimages.load_box(store, "train", store.decomposition.box, CPU, augmentation), order(), 5)
    for box in [box for ranks in (2, 3, 4) for box in Layout.of(store.shape[:-1], ranks).boxes]:
        part = Subimages.load_box(store, "train", box, Place(CPU.device, resident), augmentation)
        found, labels = augmented_batch(part, order(), 5)
        assert torch.equal(found, expected[0][:, :, *box.slices])
        assert torch.equal(main(labels), main(expected[1]))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_ranks_shares_of_a_batch_are_the_batch(stores, augmentation, ranks):
    store, _ = stores("2-D")
    whole = Subimages.load_box(store, "train", store.decomposition.box, CPU, augmentation)
    index = order()[: SAMPLES // ranks * ranks]
    expected, labels = augmented_batch(whole, index, 5)
    shares = [augmented_batch(RankShare(whole, rank, ranks), index, 5) for rank in range(ranks)]
    assert torch.equal(torch.stack([images for images, _ in shares], 1).flatten(0, 1), expected)
    assert torch.equal(torch.stack([main(part) for _, part in shares], 1).flatten(), main(labels))
    if isinstance(labels, MixedLabels):
        for name in ("other", "weight"):
            assert torch.equal(torch.stack([getattr(part, name) for _, part in shares], 1).flatten(), getattr(labels, name))


@pytest.mark.parametrize("resident", ["host", "stream"])
@pytest.mark.parametrize("case", CASES)
def test_batches_are_the_same_wherever_the_images_are(stores, case, resident):
    """Announced or not, in the announced order or another one, of parts of a batch and with images that are mixed in."""
    store, _ = stores(case)
    there, announced = Place(CPU.device, resident), list(torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1)).split(8))
    for augmentation, part in product([Augmentation(), EVERYTHING], [slice(None), slice(1, None, 3)]):
        augmented = augmentation.flip
        loads = [lambda place: RankSubimages.load(store, "train", range(len(store.decomposition)), place, augmentation)]  # noqa: B023
        loads += [lambda place: Subimages.load_box(store, "train", store.decomposition.box, place, augmentation)]  # noqa: B023
        for load in loads:
            near, far = load(CPU), load(there)
            for asked in (announced, announced[1:], announced[::-1]):
                far.ahead(announced, augmented, part)
                for index in asked:
                    found, expected = (augmented_batch(samples, index, 5 if augmented else None, part=part) for samples in (far, near))
                    assert all(map(torch.equal, tensors(found), tensors(expected)))


def test_of_large_batches_fewer_are_read_ahead(monkeypatch):
    class Reader:
        shape, done = (10,), 0

        def read(self, rows: np.ndarray) -> np.ndarray:
            self.done += 1
            return np.zeros((len(rows), 10), np.uint8)

    def ahead(most: int) -> int:
        monkeypatch.setattr("ddcnn.data.stored.AHEAD_BYTES", most)
        stored, batches = Streamed(Reader(), CPU.device), list(torch.arange(100).split(5))
        stored.ahead(batches)
        for index in batches[:3]:
            stored.take(index)
        stored._thread.shutdown()
        return stored.reader.done - 3

    assert [ahead(most) for most in (1, 100, 10**9)] == [1, 2, 4]


def tensors(batch) -> list[torch.Tensor]:
    images, labels = batch
    mixed = [labels.main, labels.other, labels.weight] if isinstance(labels, MixedLabels) else [labels]
    return [*(images if isinstance(images, list) else [images]), *mixed]

"""The geometry: cores, subimages, restriction and its adjoint, mirror images."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ddcnn.decomposition import Decomposition, cuts
from ddcnn.errors import InputError


@st.composite
def decompositions(draw) -> Decomposition:
    shape = tuple(draw(st.lists(st.integers(1, 11), min_size=1, max_size=3)))
    grid = tuple(draw(st.integers(1, min(n, 4))) for n in shape)
    return Decomposition(shape, grid, draw(st.integers(0, 5)), draw(st.integers(0, 3)))


def symmetric(size: int, parts: int) -> bool:
    """Whether ``size`` pixels can be cut into ``parts`` alike from both ends."""
    return not (size % 2 == 1 and parts % 2 == 0)


@given(decompositions())
def test_cores_tile_the_image_exactly_once(decomposition):
    covered = np.zeros(decomposition.shape, dtype=int)
    for subdomain in decomposition.subdomains:
        covered[subdomain.core.slices] += 1
    assert (covered == 1).all()
    assert len(decomposition) == len(decomposition.subdomains) == np.prod(decomposition.grid)
    assert [subdomain.index for subdomain in decomposition.subdomains] == list(range(len(decomposition)))


@given(decompositions())
def test_subdomains_are_numbered_with_the_last_axis_fastest(decomposition):
    for subdomain in decomposition.subdomains:
        assert np.ravel_multi_index(subdomain.position, decomposition.grid) == subdomain.index
    starts = [subdomain.core.start for subdomain in decomposition.subdomains]
    assert starts == sorted(starts)


@given(decompositions())
def test_core_sizes_differ_by_at_most_one_pixel_per_axis(decomposition):
    sizes = np.array([subdomain.core.shape for subdomain in decomposition.subdomains])
    assert (sizes.max(axis=0) - sizes.min(axis=0) <= 1).all()
    assert sizes.min() >= 1


@given(decompositions())
def test_overlap_and_margin_extend_both_sides_except_beyond_the_border(decomposition):
    for subdomain in decomposition.subdomains:
        for box, width in ((subdomain.subimage, decomposition.overlap), (subdomain.stored, decomposition.overlap + decomposition.margin)):
            for axis, size in enumerate(decomposition.shape):
                assert box.start[axis] == max(0, subdomain.core.start[axis] - width)
                assert box.stop[axis] == min(size, subdomain.core.stop[axis] + width)


@given(decompositions())
def test_a_box_is_cut_out_of_a_larger_one_as_out_of_the_image(decomposition):
    image = np.arange(np.prod(decomposition.shape)).reshape(decomposition.shape)
    for subdomain in decomposition.subdomains:
        cut = image[subdomain.stored.slices][subdomain.subimage.within(subdomain.stored)]
        assert np.array_equal(cut, image[subdomain.subimage.slices])


@given(decompositions(), st.integers(0, 2**32 - 1))
def test_extension_is_the_adjoint_of_restriction_in_integers(decomposition, seed):
    random = np.random.default_rng(seed)
    images = random.integers(-9, 9, (2, *decomposition.shape, 3))
    for subdomain in decomposition.subdomains:
        subimages = random.integers(-9, 9, (2, *subdomain.subimage.shape, 3))
        extended = np.zeros_like(images)
        decomposition.extend(subimages, subdomain.index, extended)
        assert (decomposition.restrict(images, subdomain.index) * subimages).sum() == (images * extended).sum()


@given(decompositions(), st.integers(0, 2**32 - 1))
def test_extension_is_the_adjoint_of_restriction_for_tensors_with_channels_first(decomposition, seed):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn((2, 3, *decomposition.shape), generator=draw, dtype=torch.float64)
    for subdomain in decomposition.subdomains:
        subimages = torch.randn((2, 3, *subdomain.subimage.shape), generator=draw, dtype=torch.float64)
        extended = torch.zeros_like(images)
        decomposition.extend(subimages, subdomain.index, extended, first_axis=2)
        left = (decomposition.restrict(images, subdomain.index, first_axis=2) * subimages).sum()
        torch.testing.assert_close(left, (images * extended).sum(), rtol=1e-12, atol=1e-12)


@given(decompositions())
def test_extended_subimages_add_up_to_how_often_a_pixel_is_seen(decomposition):
    ones = np.ones((1, *decomposition.shape), dtype=int)
    total, seen = np.zeros_like(ones), np.zeros_like(ones)
    for subdomain in decomposition.subdomains:
        decomposition.extend(decomposition.restrict(ones, subdomain.index), subdomain.index, total)
        seen[(0, *subdomain.subimage.slices)] += 1
    assert (total >= 1).all()
    assert (total == seen).all()
    if decomposition.overlap == 0:
        assert (total == 1).all()


def test_restriction_is_a_view():
    images = np.zeros((1, 4, 4))
    Decomposition((4, 4), (2, 2)).restrict(images, 3)[...] = 1
    assert images[0, 2:, 2:].all()
    assert images.sum() == 4


@pytest.mark.parametrize("size", range(1, 41))
def test_cuts_are_mirror_symmetric_wherever_symmetric_cuts_exist(size):
    for parts in range(1, size + 1):
        places = cuts(size, parts)
        lengths = np.diff(places)
        assert (places[0], places[-1], len(places)) == (0, size, parts + 1)
        assert lengths.max() - lengths.min() <= 1
        assert ([size - place for place in reversed(places)] == places) == symmetric(size, parts)


@given(decompositions(), st.integers(0, 2**32 - 1))
def test_the_mirror_subdomain_holds_the_pixels_of_the_flipped_image(decomposition, seed):
    possible = [axis for axis in range(-len(decomposition.shape), 0) if symmetric(decomposition.shape[axis], decomposition.grid[axis])]
    assume(possible)
    images = np.random.default_rng(seed).random((2, *decomposition.shape))
    for axes in [(axis,) for axis in possible] + [tuple(possible)]:
        flipped = np.flip(images, axis=axes)
        for subdomain in decomposition.subdomains:
            other = decomposition.mirror(subdomain.index, axes)
            assert decomposition.mirror(other, axes) == subdomain.index
            assert axes != (-1,) or decomposition.mirror(subdomain.index) == other
            seen = decomposition.restrict(flipped, subdomain.index)
            assert np.array_equal(np.flip(decomposition.restrict(images, other), axis=axes), seen)
            stored = decomposition.subdomains[other].stored
            for axis in axes:
                stored = stored.mirrored(decomposition.shape[axis], axis)
            assert stored == subdomain.stored


@pytest.mark.parametrize(("size", "parts"), [(5, 2), (5, 4), (9, 4), (9, 6)])
def test_a_subdomain_without_a_mirror_image_is_refused_with_size_and_parts(size, parts):
    decomposition = Decomposition((4, size), (2, parts))
    middle = parts // 2
    with pytest.raises(InputError, match=f"{size} columns in {parts} parts"):
        decomposition.mirror(middle)


def test_flips_along_an_axis_that_is_not_there_or_not_cut_symmetrically_are_refused():
    with pytest.raises(InputError, match="--flip-axes depth"):
        Decomposition((4, 6), (2, 2)).mirror(0, (-3,))
    with pytest.raises(InputError, match=r"5 rows in 2 parts .* other --flip-axes"):
        Decomposition((5, 6), (2, 2)).mirror(0, (-1, -2))


@pytest.mark.parametrize(("shape", "grid"), [((8, 8), (2,)), ((8, 8), (2, 2, 2)), ((8, 8, 8), (2, 2)), ((7, 8), (8, 2)), ((7, 8), (2, 9))])
def test_a_grid_that_does_not_fit_is_refused_with_grid_and_size(shape, grid):
    with pytest.raises(InputError) as error:
        Decomposition(shape, grid)
    assert "--grid " + "x".join(map(str, grid)) in str(error.value)
    assert "x".join(map(str, shape)) in str(error.value)


@pytest.mark.parametrize("bad", [{"grid": (0, 2)}, {"overlap": -1}, {"margin": -1}])
def test_numbers_below_their_bounds_are_refused(bad):
    with pytest.raises(InputError):
        Decomposition(**{"shape": (8, 8), "grid": (2, 2)} | bad)

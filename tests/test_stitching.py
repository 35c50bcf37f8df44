"""Own cells of subdomains and the map that they make together: restriction, stitching, and their adjoints."""

import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional

from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError
from ddcnn.networks.stitching import Stitching


def stitching(decomposition: Decomposition, cell: tuple[int, ...]) -> Stitching:
    """Of maps that drop pixels that make no whole cell, as poolings do."""
    boxes = [subdomain.subimage for subdomain in decomposition.subdomains]
    return Stitching(decomposition, cell, tuple(tuple(n // c for n, c in zip(box.shape, cell, strict=True)) for box in boxes))


@st.composite
def stitchings(draw) -> Stitching:
    dimension = draw(st.integers(2, 3))
    cell = tuple(draw(st.sampled_from([1, 2, 4])) for _ in range(dimension))
    shape = tuple(draw(st.integers(4, 24 if dimension == 2 else 12)) for _ in cell)
    grid = tuple(draw(st.integers(1, 3)) for _ in cell)
    try:
        return stitching(Decomposition(shape, grid, draw(st.integers(0, 6))), cell)
    except InputError:
        assume(False)
        raise


def parts_of(one: Stitching, seed: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(-9, 9, (2, 3, *box.shape), generator=draw).double() for box in one.own]


@given(stitchings())
def test_own_cells_tile_the_map_of_the_whole_image(one):
    covered = torch.zeros(one.shape)
    for box in one.own:
        covered[box.slices] += 1
    assert (covered == 1).all()
    assert one.shape == tuple(n // c for n, c in zip(one.decomposition.shape, one.cell, strict=True))


@given(stitchings(), st.integers(0, 1 << 30))
def test_restriction_and_stitching_stand_beside_their_adjoints(one, seed):
    parts, draw = parts_of(one, seed), torch.Generator().manual_seed(seed + 1)
    whole = torch.randint(-9, 9, (2, 3, *one.shape), generator=draw).double()
    assert (one.stitch(parts) * whole).sum() == sum((part * one.cut(whole, index)).sum() for index, part in enumerate(parts))
    assert torch.equal(one.stitch([one.cut(whole, index) for index in range(len(parts))]), whole)
    for index, part in enumerate(parts):
        values = torch.randint(-9, 9, (2, 3, *one.maps[index]), generator=draw).double()
        assert (one.restrict(values, index) * part).sum() == (values * one.extend(part, index)).sum()


@given(stitchings(), st.integers(0, 1 << 30))
def test_the_gradient_is_the_adjoint_and_cells_stand_where_they_are_in_the_whole_image(one, seed):
    pooling = functional.avg_pool2d if len(one.cell) == 2 else functional.avg_pool3d
    images = torch.randn(2, 3, *one.decomposition.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    images.requires_grad_()
    subimages = [one.decomposition.restrict(images, index, 2) for index in range(len(one.decomposition))]
    whole = one.stitch([one.restrict(pooling(subimage, one.cell), index) for index, subimage in enumerate(subimages)])
    torch.testing.assert_close(whole, pooling(images, one.cell))
    cotangent = torch.randn(whole.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (found,), (expected,) = (torch.autograd.grad((values * cotangent).sum(), images) for values in (whole, pooling(images, one.cell)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("shape", "grid", "overlap", "cell", "words"),
    [
        ((28, 28), (2, 2), 4, (4, 4), "an --overlap of 2, 6 or 10 would do"),
        ((30, 30), (2, 2), 0, (4, 4), "an --overlap of 3, 7 or 11 would do"),
        ((32, 30), (2, 2), 0, (4, 4), "choose another --grid or image size"),
        ((32, 32), (2, 2), 2, (4, 4), "an --overlap of 0, 4 or 8 would do"),
    ],
)
def test_cells_that_are_not_those_of_the_whole_image_are_refused_with_overlaps_that_do(shape, grid, overlap, cell, words):
    with pytest.raises(InputError) as error:
        stitching(Decomposition(shape, grid, overlap), cell)
    assert words in str(error.value)
    for found in re.findall(r"\d+", words):
        stitching(Decomposition(shape, grid, int(found)), cell)

"""Digits scattered over an image, whose class is their sum."""

from pathlib import Path

import numpy as np
import pytest

from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.data.sources.base import Source
from ddcnn.errors import InputError


def opened(name: str, **options) -> Source:
    return open_source(SourceOptions(f"scattered-digits:{name}", Path("data"), **options))


def test_an_image_is_a_function_of_its_index():
    split = opened("64x96x300").splits["train"]
    assert (split.shape, split.dtype, split.labels.shape) == ((300, 64, 96, 1), np.uint8, (300,))
    images = split.read(np.arange(300))
    order = np.random.default_rng(0).permutation(300)[:40]
    assert np.array_equal(split.read(order), images[order])
    again = opened("64x96x300").splits["train"]
    assert np.array_equal(again.read(order), images[order])
    assert np.array_equal(again.labels, split.labels)
    assert len(np.unique(images.reshape(300, -1), axis=0)) == 300


def test_three_digits_of_all_sizes_lie_anywhere_and_make_the_class():
    source = opened("128x128x600")
    assert source.class_names == tuple("0123456789")
    split = source.splits["train"]
    images, shown = split.read(np.arange(600))[..., 0], split.read.__self__.shown
    assert np.array_equal(shown.sum(1), split.labels)
    assert set(np.unique(shown)) == {0, 1, 2, 3}
    for half in (images[:, :64], images[:, 64:], images[:, :, :64], images[:, :, 64:]):  # no side is preferred
        assert 0.4 < half.sum(dtype=np.float64) / images.sum(dtype=np.float64) < 0.6
    area = (images > 0).mean((1, 2))
    assert area.min() < 0.01 < 0.1 < area.max()


def test_test_images_show_other_digits():
    splits = opened("48x48x100").splits
    train, test = (splits[name].read.__self__.glyphs for name in ("train", "test"))
    assert len(splits["test"].labels) == 20
    assert not {glyph.tobytes() for glyph in train} >= {glyph.tobytes() for glyph in test}


@pytest.mark.parametrize("name", ["", "128x128", "128x128x6000x3", "32x128x6000", "128x128x10", "ax128x6000", "128x128x99999999999"])
def test_a_malformed_name_is_refused(name):
    with pytest.raises(InputError, match=r"scattered-digits:"):
        opened(name)


def test_there_are_no_volumes():
    with pytest.raises(InputError, match="there are no volumes of it"):
        opened("128x128x6000", volumes=True)

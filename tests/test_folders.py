"""Folders of class folders: layouts, splits, decoding, sizes, and files that are damaged."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ddcnn.data.sources import DamagedSample, SourceOptions, open_source
from ddcnn.data.sources.resizing import Fit
from ddcnn.errors import InputError
from ddcnn.networks.torchvision_compat import import_torchvision


def opened(root, **options):
    return open_source(SourceOptions(str(root), Path("data"), **options))


def picture(rows=6, columns=8, seed=0, mode="RGB") -> Image.Image:
    shape = (rows, columns, 3) if mode == "RGB" else (rows, columns)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def fill(root: Path, classes=("ant", "bee"), samples=5, make=picture, suffix=".png") -> Path:
    """Image k of class c has the seed 100 c + k."""
    for c, name in enumerate(classes):
        for k in range(samples):
            save(make(seed=100 * c + k), root / name / f"{k}{suffix}")
    return root


def everything(split):
    return split.read(np.arange(len(split)))


def damage(source) -> list[str]:
    """What is said of the samples that cannot be read."""
    messages = []
    for split in source.splits.values():
        for i in range(len(split)):
            try:
                assert split.read(np.array([i])).shape == (1, *source.shape)
            except DamagedSample as error:
                messages.append(str(error))
    return messages


def contents(source) -> list[tuple[int, bytes]]:
    """(label, pixels) of every sample of both splits, sorted."""
    return sorted(
        (int(label), image.tobytes())
        for split in source.splits.values()
        for label, image in zip(split.labels, everything(split), strict=True)
    )


def only(tmp_path, *images: Image.Image, suffix=".png", **options) -> np.ndarray:
    """The images as they are read out of a folder that holds nothing else: (n, rows, columns, C)."""
    for k, image in enumerate(images):
        for split in ("train", "test"):
            for name in ("a", "b"):
                save(image, tmp_path / split / name / f"{k}{suffix}", **options)
    return everything(opened(tmp_path).splits["test"])[: len(images)]


# Layouts


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("train", "val"), ("train", "validation"), ("train", "valid"), ("Train", "Test"), ("training", "testing")],
)
def test_split_folders_are_read_as_they_are(tmp_path, train, test):
    fill(tmp_path / train, ("bee", "ant", "cat"), 4)
    fill(tmp_path / test, ("ant", "cat"), 2)
    source = opened(tmp_path)
    assert source.class_names == ("ant", "bee", "cat")
    assert source.splits["train"].shape == (12, 6, 8, 3)
    assert source.splits["train"].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.splits["test"].labels.tolist() == [0, 0, 2, 2]
    expected = [np.asarray(picture(seed=seed)) for seed in (0, 1, 100, 101)]
    assert np.array_equal(everything(source.splits["test"]), expected)
    assert np.array_equal(source.splits["test"].read(np.array([1, 3])), [expected[1], expected[3]])
    assert source.splits["test"].read(np.array([], np.int64)).shape == (0, 6, 8, 3)


def test_test_goes_before_validation(tmp_path):
    for name, samples in (("train", 3), ("test", 2), ("val", 1)):
        fill(tmp_path / name, samples=samples)
    assert len(opened(tmp_path).splits["test"]) == 4


@pytest.mark.parametrize("below", ["", "train"])
def test_class_folders_are_split_by_a_seeded_fraction_of_every_class(tmp_path, below):
    fill(tmp_path / below, ("ant", "bee"), 10)
    fill(tmp_path / below, ("cat",), 5)
    source = opened(tmp_path)
    assert np.bincount(source.splits["test"].labels).tolist() == [2, 2, 1]
    assert np.bincount(source.splits["train"].labels).tolist() == [8, 8, 4]
    pixels = [pixels for _, pixels in contents(source)]
    assert len(set(pixels)) == 20  # cat shows what ant shows; nothing else is in two places, nothing is lost
    assert contents(opened(tmp_path)) == contents(source)
    test = [set(map(bytes, everything(opened(tmp_path, seed=seed).splits["test"]))) for seed in range(4)]
    assert any(found != test[0] for found in test[1:])
    assert np.bincount(opened(tmp_path, test_fraction=0.5).splits["test"].labels).tolist() == [5, 5, 2]
    assert np.bincount(opened(tmp_path, test_fraction=0.999).splits["train"].labels).tolist() == [1, 1, 1]


def test_a_class_of_one_sample_is_trained_on_and_a_class_of_two_is_tested_too(tmp_path):
    for name, samples in (("one", 1), ("two", 2)):
        fill(tmp_path, (name,), samples)
    source = opened(tmp_path)
    assert source.splits["train"].labels.tolist() == [0, 1]
    assert source.splits["test"].labels.tolist() == [1]
    (tmp_path / "two" / "1.png").unlink()
    with pytest.raises(InputError, match="no class has two samples"):
        opened(tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_fraction_that_is_none_is_refused(tmp_path, fraction):
    with pytest.raises(InputError, match="--test-fraction"):
        opened(fill(tmp_path), test_fraction=fraction)


def test_files_are_found_in_folders_within_a_class_and_others_are_ignored(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test")
    save(picture(seed=7), tmp_path / "test" / "bee" / "x" / "y" / "z.JPG", format="png")
    for name in ("readme.txt", ".hidden.png", "x/.hidden.png", ".cache/1.png", "Thumbs.db"):
        path = tmp_path / "test" / "bee" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    (tmp_path / "test" / ".git").mkdir()
    (tmp_path / "train" / "notes.md").write_text("no class", "utf-8")
    test = opened(tmp_path).splits["test"]
    assert test.labels.tolist() == [0] * 5 + [1] * 6
    assert np.array_equal(test.read(np.array([10])), [np.asarray(picture(seed=7))])


def test_a_class_that_only_the_test_split_has_is_refused(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", ("ant", "wasp"))
    with pytest.raises(InputError, match="wasp: the training split has no class of that name"):
        opened(tmp_path)


def test_an_empty_class_is_refused_by_its_name(tmp_path):
    fill(tmp_path)
    (tmp_path / "wasp").mkdir()
    (tmp_path / "wasp" / "list.txt").write_text("nothing", "utf-8")
    with pytest.raises(InputError, match=r"wasp: the class has no image.*remove the folder"):
        opened(tmp_path)
    save(picture(), tmp_path / "ant" / "1.gif")
    save(picture(), tmp_path / "wasp" / "1.gif")
    with pytest.raises(InputError, match=r"wasp: the class has no image.*convert its 1 that end in \.gif"):
        opened(tmp_path)


def test_folders_of_unpackers_and_disks_are_no_classes(tmp_path):
    fill(tmp_path)
    save(picture(), tmp_path / "__MACOSX" / "._0.png")
    (tmp_path / "lost+found").mkdir()
    assert opened(tmp_path).class_names == ("ant", "bee")


def test_a_link_to_nothing_and_an_image_of_another_kind_are_named(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="gone: a link to what does not exist"):
        opened(tmp_path / "gone")
    root = fill(tmp_path / "set")
    save(picture(), root / "ant" / "7.gif").rename(root / "ant" / "7.jpg")
    (message,) = damage(opened(root))
    assert "it is in the format GIF, whatever its name says" in message


@pytest.mark.parametrize("files", [[], ["1.png", "2.png"], ["brain.nii.gz"]])
def test_a_folder_without_class_folders_is_refused_with_the_layouts(tmp_path, files):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(InputError) as error:
        opened(tmp_path)
    assert all(word in str(error.value) for word in (str(tmp_path), "CLASS", "labels.csv"))


def test_one_class_is_refused(tmp_path):
    with pytest.raises(InputError, match="only one class"):
        opened(fill(tmp_path, ("ant",)))


def test_photos_in_class_folders_are_no_volumes(tmp_path):
    for options, words in (
        ({"volumes": True}, "ant: holds slices itself.*CLASS/VOLUME.*leave --volumes"),
        ({"volume_size": (4, 4, 4)}, r"has no labels\.csv.*--volume-size"),
    ):
        with pytest.raises(InputError, match=words):
            opened(fill(tmp_path), **options)


def test_links_that_leave_the_folder_are_refused_and_those_within_it_are_read(tmp_path):
    root = fill(tmp_path / "root")
    (root / "ant" / "link.png").symlink_to(root / "bee" / "0.png")
    assert sum(map(len, opened(root).splits.values())) == 11
    outside = save(picture(), tmp_path / "outside" / "0.png")
    (root / "bee" / "deep").symlink_to(outside.parent)  # a folder within a class
    with pytest.raises(InputError, match="deep is a link to a folder"):
        opened(root)
    (root / "bee" / "deep").unlink()
    (root / "bee" / "link.png").symlink_to(outside)
    with pytest.raises(InputError, match=r"link\.png is a link to a file outside"):
        opened(root)
    (root / "bee" / "link.png").unlink()
    (root / "cat").symlink_to(outside.parent)
    with pytest.raises(InputError, match="cat is a link to a folder"):
        opened(root)


def test_the_fingerprint_changes_with_files_and_splits(tmp_path):
    root = fill(tmp_path)
    found = [opened(root).fingerprint]
    assert opened(root).fingerprint == found[0]
    assert opened(root, window=(10, 20)).fingerprint == found[0]  # options are the caller's to hash
    assert opened(root, seed=1).fingerprint == found[0]  # by which the splits are drawn
    os.utime(root / "ant" / "0.png", ns=(1, 1))
    found.append(opened(root).fingerprint)
    (root / "ant" / "0.png").rename(root / "ant" / "00.png")
    found.append(opened(root).fingerprint)
    (root / "ant").rename(root / "hornet")
    found.append(opened(root).fingerprint)
    assert len(set(found)) == 4


# Pixels


def test_jpegs_are_what_pillow_decodes(tmp_path):
    image = save(picture(33, 17), tmp_path / "image.jpg")
    read = only(tmp_path / "set", picture(33, 17), suffix=".jpg")
    assert np.array_equal(read[0], np.asarray(Image.open(image)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    image = Image.fromarray(np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)).resize((64, 48), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = only(tmp_path, image, suffix=suffix, exif=exif)[0, ..., 0].astype(int)
    pixels = np.asarray(image)
    upright = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.T, 6: np.rot90(pixels, -1), 7: pixels[::-1, ::-1].T, 8: np.rot90(pixels),
    }[orientation]  # fmt: skip
    assert read.shape == upright.shape
    assert np.abs(read - upright).mean() < 4


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK"])
def test_colour_of_any_kind_becomes_what_torchvision_loads(tmp_path, mode):
    image = picture(20, 30)
    other = image.convert(mode)
    suffix = ".jpg" if mode == "CMYK" else ".png"
    path = save(other, tmp_path / f"image{suffix}")
    read = only(tmp_path / "set", other, suffix=suffix)
    assert np.array_equal(read[0], np.asarray(Image.open(path).convert("RGB")))


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path, recwarn):
    image = picture().convert("P")
    read = only(tmp_path, image, transparency=bytes(range(100)))
    assert np.array_equal(read[0], np.asarray(image.convert("RGB")))
    assert not recwarn.list


def test_grey_images_have_one_channel_and_a_mixture_three(tmp_path):
    grey, black = picture(mode="L"), picture(mode="L", seed=1).convert("1")
    assert np.array_equal(only(tmp_path / "grey", grey, black), np.stack([grey, black.convert("L")])[..., None])
    mixed = only(tmp_path / "mixed", grey, picture())
    assert np.array_equal(mixed, np.stack([grey.convert("RGB"), picture()]))


@pytest.mark.parametrize(("dtype", "suffix"), [("uint16", ".png"), ("uint16", ".tif"), ("int32", ".tif"), ("float32", ".tif")])
def test_deep_grey_images_are_float32(tmp_path, dtype, suffix):
    pixels = np.random.default_rng(0).uniform(0, 60000, (2, 5, 6)).astype(dtype)
    read = only(tmp_path, *map(Image.fromarray, pixels), suffix=suffix)
    assert read.dtype == np.float32
    assert np.array_equal(read[..., 0], pixels.astype(np.float32))


def test_deep_grey_among_others_is_refused_since_it_would_be_cut_off(tmp_path):
    fill(tmp_path)
    save(Image.fromarray(np.full((6, 8), 1000, np.uint16)), tmp_path / "ant" / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png has more than 8 bits a pixel and .*0\.png has 8"):
        opened(tmp_path)


@pytest.mark.parametrize("different", [picture(), Image.fromarray(np.full((6, 8), 1000, np.uint16)), picture(9, 7, mode="L")])
def test_an_image_unlike_its_header_that_was_looked_at_is_refused_by_name_and_not_skipped(tmp_path, different):
    fill(tmp_path, make=partial(picture, mode="L"))
    save(picture(mode="L"), tmp_path / "ant" / "1x.png")
    source = opened(tmp_path)
    save(different, tmp_path / "ant" / "1x.png")
    with pytest.raises(InputError, match=r"ant/1x\.png (is in (colour|grey of more than 8 bits), other|has shape .*--image-size)") as error:
        for split in source.splits.values():
            everything(split)
    assert not isinstance(error.value, DamagedSample)


def test_a_float_image_with_nan_is_damaged(tmp_path):
    good, bad = np.zeros((2, 4, 4), np.float32)
    bad[1, 2] = np.nan
    with pytest.raises(DamagedSample, match=r"1\.tif.*NaN"):
        only(tmp_path, Image.fromarray(good), Image.fromarray(bad), suffix=".tif")


# Sizes


def test_different_sizes_are_refused_with_two_files_and_the_option(tmp_path):
    fill(tmp_path)
    save(picture(7, 9), tmp_path / "bee" / "other.png")
    with pytest.raises(InputError, match=r"ant/0\.png is 6x8 and .*bee/other\.png is 7x9.*--image-size"):
        opened(tmp_path)
    assert opened(tmp_path, image_size=(4, 5)).shape == (4, 5, 3)


def test_sizes_are_compared_upright(tmp_path):
    fill(tmp_path, suffix=".jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(picture(8, 6), tmp_path / "bee" / "turned.jpg", exif=exif)
    assert opened(tmp_path).shape == (6, 8, 3)


SIZES = [(64, 48), (48, 64), (33, 47), (7, 5), (16, 16), (100, 9), (9, 100)]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(16, 16), (15, 15), (40, 40), (12, 31), (31, 12)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_resizing_and_cropping_equal_torchvision(interpolation, size, mode):
    transforms = import_torchvision().transforms
    mode_there = transforms.InterpolationMode(interpolation)
    for rows, columns in SIZES:
        image = picture(rows, columns, mode=mode)
        short, long = min(rows, columns), max(rows, columns)
        wanted_short, wanted_long = size if rows <= columns else size[::-1]
        # the smallest shorter side that leaves no border
        shorter = next(n for n in range(wanted_short, 10000) if int(n * long / short) >= wanted_long)
        expected = {
            "resize": transforms.Resize(size, mode_there),
            "center-crop": transforms.CenterCrop(size),
            "resize+center-crop": transforms.Compose([transforms.Resize(shorter, mode_there), transforms.CenterCrop(size)]),
        }
        if size[0] == size[1]:
            assert shorter == size[0]
        pixels = np.asarray(image).reshape(rows, columns, -1)
        for name, transform in expected.items():
            fit = Fit(SourceOptions("x", Path(), image_size=size, image_transform=name, interpolation=interpolation), 2)
            assert np.array_equal(fit(pixels), np.asarray(transform(image)).reshape(*size, -1)), (rows, columns, name)


def test_files_are_resized_as_they_are_read(tmp_path):
    names = {"train": ("a", "b"), "test": ("a", "b")}
    for split, classes in names.items():
        for name in classes:
            save(picture(30, 20), tmp_path / split / name / "0.png")
            save(picture(21, 43, seed=1), tmp_path / split / name / "1.png")
    split = opened(tmp_path, image_size=(10, 10), interpolation="bicubic").splits["test"]
    transforms = import_torchvision().transforms
    transform = transforms.Compose([transforms.Resize(10, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(10)])
    assert split.shape == (4, 10, 10, 3)
    assert np.array_equal(split.read(np.array([0, 1])), [np.asarray(transform(picture(30, 20))), np.asarray(transform(picture(21, 43, 1)))])


def test_the_window_clips_before_the_size_changes(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, 4:] = 200
    for split in ("train", "test"):
        for name in ("a", "b"):
            save(Image.fromarray(pixels), tmp_path / split / name / "0.png")
    read = everything(opened(tmp_path, window=(50.5, 100), image_size=(4, 1), image_transform="resize").splits["test"])
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - 75.5).max() <= 1  # the mean of 51 and 100; the mean of 0 and 200 would be clipped to 100


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("image_transform", "resize", "give --image-size too"),
        ("interpolation", "bicubic", "--interpolation bicubic applies to --image-size only"),
        ("window", (300, 400), "uint8"),
        ("window", (1.2, 1.8), "uint8"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, option, value, words):
    with pytest.raises(InputError, match=words):
        opened(fill(tmp_path), **{option: value})


# Damage


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("part", [0.0, 0.002, 0.5, 0.97])
def test_a_truncated_file_is_a_damaged_sample_and_the_others_are_read(tmp_path, suffix, part):
    root = fill(tmp_path, make=lambda seed: picture(64, 64, seed), suffix=suffix)
    broken = root / "ant" / "3" / f"x{suffix}"
    save(picture(64, 64, 5), broken)
    broken.write_bytes(broken.read_bytes()[: int(part * broken.stat().st_size)])
    (message,) = damage(opened(root))
    assert message.startswith(f"{broken}: cannot be read")
    assert message.endswith("mend or remove it, or add --skip-damaged")


def test_a_file_that_turns_out_to_have_another_size_is_refused(tmp_path):
    source = opened(fill(tmp_path))
    save(picture(1, 8), tmp_path / "ant" / "3.png")  # one row would fill six
    with pytest.raises(InputError, match=r"3\.png has shape \(1, 8, 3\).*--image-size"):
        for split in source.splits.values():
            everything(split)


@pytest.mark.filterwarnings("error")
def test_an_image_is_never_too_large(tmp_path):
    root = fill(tmp_path)
    Image.fromarray(np.zeros((14000, 14000), np.uint8)).save(root / "bee" / "large.png")  # over Pillow's limit
    assert sum(len(everything(split)) for split in opened(root, image_size=(6, 8)).splits.values()) == 11


def test_only_image_files_are_decoded_whatever_they_are_called(tmp_path):
    root = fill(tmp_path)
    picture().save(root / "bee" / "e.eps")
    (root / "bee" / "e.eps").rename(root / "bee" / "e.png")
    (message,) = damage(opened(root))
    assert "e.png" in message


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_the_other_beside_more_folders_is_refused(tmp_path, split):
    fill(tmp_path / split)
    fill(tmp_path, classes=("unlabelled",))
    with pytest.raises(InputError, match=f"{split} looks like a split"):
        opened(tmp_path)


def test_a_text_chunk_that_is_too_large_is_no_traceback(tmp_path):
    root = fill(tmp_path)
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    save(picture(), root / "ant" / "text.png", pnginfo=info)
    (message,) = damage(opened(root))
    assert "text.png" in message


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def forbid(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    root = fill(tmp_path)
    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(InputError, match=f"--data {tmp_path}.*Permission denied"):
        opened(root)


def test_files_none_of_which_can_be_read_are_refused(tmp_path):
    for name in ("a", "b"):
        for k in range(3):
            path = tmp_path / name / f"{k}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"no image can be read.*a/0\.jpg"):
        opened(tmp_path)

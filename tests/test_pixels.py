"""Pixels of files of every kind: upright, of one mode whatever the seed, nothing cut off or left out without a word; links to images."""

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_folders import damage, everything, fill, opened, picture, save

from ddcnn.config.settings import RunSettings
from ddcnn.data.sources.decoding import decode
from ddcnn.data.sources.image_headers import header
from ddcnn.errors import InputError
from ddcnn.experiment.plan import prepare_run

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I", "I;16", "I;16B", "F")
TURNS = {
    1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p, -1), 7: lambda p: p[::-1, ::-1].swapaxes(0, 1), 8: lambda p: np.rot90(p),
}  # fmt: skip
LOSSLESS = {
    "tif": (".tif", {}), "tif-lzw": (".tif", {"compression": "tiff_lzw"}), "png": (".png", {}), "webp": (".webp", {"lossless": True}),
    "ppm": (".ppm", {}), "bmp": (".bmp", {}), "jpg": (".jpg", {}),
}  # fmt: skip


def of_mode(mode: str) -> Image.Image:
    """6x9 pixels."""
    pixels = np.random.default_rng(1).integers(0, 60000, (6, 9))
    if mode == "I;16B":
        return Image.frombytes(mode, (9, 6), pixels.astype(">u2").tobytes())
    if mode in ("I", "I;16", "F"):
        return Image.fromarray(pixels.astype({"I": np.int32, "F": np.float32}.get(mode, np.uint16)))
    image = picture(6, 9)
    return image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)


def tiff(path: Path, pixels: np.ndarray, photometric=1, extra=(), order="<") -> Path:
    """A plain TIFF of (rows, columns[, C]) of any type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns, channels = (*pixels.shape, 1)[:3]
    kind, bits = {"u": 1, "i": 2, "f": 3, "c": 6}[pixels.dtype.kind], 8 * pixels.dtype.itemsize
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    values = {256: [columns], 257: [rows], 258: [bits] * channels, 259: [1], 262: [photometric], 273: [8], 277: [channels], 278: [rows]}
    values |= {279: [len(data)], 339: [kind] * channels} | ({338: list(extra)} if extra else {})
    start = 8 + len(data) + len(data) % 2
    behind, entries = b"", b""
    for tag, numbers in sorted(values.items()):
        packed = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(packed) > 4:
            place = start + 6 + 12 * len(values) + len(behind)
            behind, packed = behind + packed, struct.pack(f"{order}I", place)
        entries += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + packed.ljust(4, b"\0")
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    path.write_bytes(mark + data.ljust(start - 8, b"\0") + struct.pack(f"{order}H", len(values)) + entries + bytes(4) + behind)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_16(path: Path, pixels: np.ndarray) -> Path:
    """A PNG with 16 bits a channel of (rows, columns, C)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns, channels = pixels.shape
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", columns, rows, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b""))
    return path


def ppm_16(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"P6 %d %d 65535\n" % pixels.shape[1::-1] + pixels.astype(">u2").tobytes())
    return path


def set_of(root: Path, write, samples=4) -> Path:
    """A folder with two classes of files that ``write(path without suffix, k)`` makes."""
    for name in "ab":
        for k in range(samples):
            write(root / name / str(k), k)
    return root


def notes(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture(autouse=True)
def told(caplog):
    """Notes are kept."""
    caplog.set_level(logging.INFO, "ddcnn")
    logging.getLogger("ddcnn").propagate = True


# Sizes and orientation


@pytest.mark.parametrize("kind", LOSSLESS)
def test_the_header_says_what_is_decoded_and_every_orientation_is_turned_upright(tmp_path, kind):
    suffix, options = LOSSLESS[kind]
    path, compared = tmp_path / f"image{suffix}", 0
    for mode in MODES:
        try:
            of_mode(mode).save(path, **options)
        except OSError:  # the format has no such mode
            continue
        plain = decode(path, header(path).pixels).astype(float)
        assert header(path).size == plain.shape[:2] == (6, 9)
        for orientation, turn in TURNS.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            for how in ({"exif": exif}, {"xmp": f'<x tiff:Orientation="{orientation}"/>'.encode()}):
                of_mode(mode).save(path, **options, **how)
                read = decode(path, header(path).pixels)
                assert header(path).size == read.shape[:2], (mode, orientation, how)
                with Image.open(path) as image:
                    tagged = image.getexif().get(0x0112, 1) == orientation or suffix == ".tif"
                expected = turn(plain) if tagged and not (suffix == ".tif" and "xmp" in how) else read
                compared += expected is not read
                assert np.abs(expected - read).max() <= (160 if suffix == ".jpg" else 0), (mode, orientation, how)
    assert compared >= (0 if suffix in (".ppm", ".bmp") else 16)


def test_an_orientation_behind_the_pixels_of_a_png_is_found_before_they_are_decoded(tmp_path):
    path, exif = tmp_path / "late.png", Image.Exif()
    exif[0x0112] = 6
    save(picture(6, 9), path)
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + content[-12:])
    assert header(path).size == (9, 6)
    assert np.array_equal(decode(path, header(path).pixels), np.rot90(np.asarray(picture(6, 9)), -1))


# Modes


def test_the_mode_of_a_set_depends_on_no_seed_and_an_option_says_it(tmp_path, caplog):
    root = fill(tmp_path, samples=150, make=lambda seed: picture(4, 4, seed, "L"))
    save(picture(4, 4, 250, "L").convert("RGBA"), root / "bee" / "77.png")
    for seed in range(5):
        assert opened(root, seed=seed).shape == (4, 4, 3)
    assert "299 images are grey" in notes(caplog)
    assert "1 in colour (" in notes(caplog)
    assert "--mode grey" in notes(caplog)
    grey = opened(root, mode="grey")
    assert grey.shape == (4, 4, 1)
    images = {image.tobytes() for split in grey.splits.values() for image in everything(split)}
    assert np.asarray(picture(4, 4, 250, "L")).tobytes() in images


def test_modes_are_converted_as_the_option_says(tmp_path):
    colour, grey = fill(tmp_path / "colour"), fill(tmp_path / "grey", make=lambda seed: picture(seed=seed, mode="L"))
    as_grey, as_colour = opened(colour, mode="grey"), opened(grey, mode="rgb")
    assert (as_grey.shape, as_colour.shape) == ((6, 8, 1), (6, 8, 3))
    read = {image.tobytes() for split in as_grey.splits.values() for image in everything(split)}
    assert read == {np.asarray(picture(seed=100 * c + k).convert("L")).tobytes() for c in range(2) for k in range(5)}
    first = everything(as_colour.splits["train"])
    assert np.array_equal(first[..., 0], first[..., 2])
    assert opened(colour, mode="auto").preprocessing == opened(colour).preprocessing  # digests of sets are what they were
    assert '"mode": "grey"' in as_grey.preprocessing


def test_deep_grey_is_not_cut_off_by_a_mode(tmp_path):
    root = fill(tmp_path, make=lambda seed: Image.fromarray(np.full((6, 8), 300 + seed, np.uint16)))
    for mode in ("auto", "grey"):
        assert everything(opened(root, mode=mode).splits["train"]).max() >= 300
    with pytest.raises(InputError, match=r"0\.png is in grey of more than 8 bits, which --mode rgb would cut off"):
        opened(root, mode="rgb")
    save(picture(), root / "ant" / "8.png")
    with pytest.raises(InputError, match="more than 8 bits"):
        opened(root, mode="grey")


@pytest.mark.parametrize("write", [
    lambda path, pixels: png_16(path.with_suffix(".png"), pixels),
    lambda path, pixels: png_16(path.with_suffix(".png"), np.repeat(pixels, 2, axis=2)[..., :4]),
    lambda path, pixels: png_16(path.with_suffix(".png"), pixels[..., :2]),
    lambda path, pixels: tiff(path.with_suffix(".tif"), pixels, 2),
    lambda path, pixels: tiff(path.with_suffix(".tif"), pixels, 2, order=">"),
    lambda path, pixels: tiff(path.with_suffix(".tif"), np.repeat(pixels, 2, axis=2)[..., :4], 5),
    lambda path, pixels: ppm_16(path.with_suffix(".ppm"), pixels),
], ids=["rgb48.png", "rgba64.png", "la32.png", "rgb48.tif", "rgb48-big-endian.tif", "cmyk64.tif", "ppm"])  # fmt: skip
def test_colour_of_16_bits_is_refused_until_8_are_asked_for(tmp_path, caplog, write):
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 6, 3)).astype(np.uint16)
    root = set_of(tmp_path, lambda path, k: write(path, pixels))
    with pytest.raises(InputError, match=r"a/0\.\w+ \(and 7 more\) has 16 bits a channel in colour, of which Pillow reads 8.*--mode rgb"):
        opened(root)
    source = opened(root, mode="rgb")
    assert source.splits["train"].dtype == np.uint8
    assert everything(source.splits["train"]).std() > 20
    assert "16 bits a channel" in notes(caplog)


@pytest.mark.parametrize(("dtype", "values"), [
    ("uint32", [0, 7, 2**31, 2**32 - 1]), ("int32", [-(2**31), -1, 0, 2**31 - 1]), ("int16", [-32768, -1, 0, 32767]),
    ("uint16", [0, 255, 256, 65535]), ("float32", [-1e10, -0.5, 0, 1e10]), ("float64", [-1e10, -0.5, 0, 1e10]),
])  # fmt: skip
@pytest.mark.parametrize("order", "<>")
def test_numbers_of_a_tiff_stay_what_they_are_or_are_refused(tmp_path, dtype, values, order):
    pixels = np.array([values] * 4, dtype)
    root = set_of(tmp_path, lambda path, k: tiff(path.with_suffix(".tif"), pixels, order=order))
    if dtype == "float64" or (dtype == "uint32" and order == ">"):
        with pytest.raises(InputError, match="Pillow does not read such an image"):
            opened(root)
        return
    read = everything(opened(root).splits["train"])
    assert np.array_equal(read[0, ..., 0], pixels.astype(np.float32))


@pytest.mark.parametrize(("pixels", "photometric"), [
    (np.full((4, 4), -3, np.int8), 1), (np.ones((4, 4), np.float16), 1), (np.ones((4, 4, 3), np.float32), 2),
    (np.ones((4, 4), np.complex64), 1), (np.ones((4, 4, 7), np.uint8), 1), (np.ones((4, 4, 3), np.uint8), 8),
], ids=["int8", "float16", "float-colour", "complex", "bands", "lab"])  # fmt: skip
def test_what_is_not_supported_is_not_called_damaged(tmp_path, pixels, photometric):
    root = fill(tmp_path, ("a", "b"), make=lambda seed: picture(4, 4, seed))
    tiff(root / "a" / "x.tif", pixels, photometric)
    with pytest.raises(InputError, match=r"x\.tif") as error:
        for message in damage(opened(root, mode="rgb")):  # which catches damage
            raise AssertionError(message)
    assert "damaged" not in str(error.value)


# What is not read


def test_what_is_left_out_is_told_once_for_a_set(tmp_path, caplog):
    pages, more = [picture(5, 5, k) for k in range(4)], {"save_all": True}
    root = tmp_path / "set"
    for name in "ab":
        for k, (suffix, options) in enumerate(
            ((".tif", more), (".png", more), (".webp", more | {"lossless": True}), (".jpg", more | {"format": "MPO"}))
        ):
            save(pages[0].copy(), root / name / f"{k}{suffix}", append_images=[page.copy() for page in pages[1:]], **options)
        save(pages[0].convert("P"), root / name / "transparent.png", transparency=3)
        save(pages[0].convert("L"), root / name / "grey.png", transparency=3)
        tiff(root / name / "bands.tif", np.ones((5, 5, 4), np.uint8), 2, extra=(0,))
        save(pages[0], root / name / "other.gif")
    source = opened(root)
    text = notes(caplog)
    assert "(and 7 more) has more than one page or frame" in text
    assert "(and 3 more) has transparency" in text
    assert "bands.tif (and 1 more) has channels beyond colour" in text
    assert "2 that end in .gif" in text
    assert len(caplog.records) == 5
    for split in source.splits.values():
        for image, path in zip(everything(split), map(split.name, range(len(split))), strict=True):
            if path.suffix in (".tif", ".png", ".webp") and path.stem.isdigit():
                assert np.array_equal(image, np.asarray(pages[0])), path


def test_text_without_an_orientation_behind_the_pixels_does_no_harm(tmp_path):
    path = save(picture(6, 9), tmp_path / "text.png")
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk(b"tEXt", b"Comment\0x") + content[-12:])
    assert header(path).size == (6, 9)
    assert header(path).beyond == ()
    path.write_bytes(path.read_bytes()[:60])
    assert header(path).size == (6, 9)  # it is damage that decoding finds


def test_headers_are_not_read_again_where_a_partitioned_set_is_found(world, tmp_path, monkeypatch):
    root = fill(tmp_path / "set", samples=12, make=lambda seed: picture(16, 16, seed))
    settings = RunSettings(data=str(root), output=tmp_path / "out", partitions=tmp_path, network="vgg3", progress="none")
    first = prepare_run(world, settings)
    monkeypatch.setattr("ddcnn.data.sources.folders.header", lambda path: pytest.fail(f"{path} is read again"))
    assert prepare_run(world, settings) == first
    save(picture(16, 16, 3), root / "ant" / "0.png")
    with pytest.raises(pytest.fail.Exception, match="read again"):
        prepare_run(world, settings)


# Links


def test_links_to_images_elsewhere_are_followed_if_that_is_asked_for(tmp_path):
    store = fill(tmp_path / "store")
    folders, files = tmp_path / "folders", tmp_path / "files"
    folders.mkdir()
    for name in ("ant", "bee"):
        (folders / name).symlink_to(store / name)
        (files / name).mkdir(parents=True)
        for path in (store / name).iterdir():
            (files / name / path.name).symlink_to(path)
    expected = sorted(image.tobytes() for split in opened(store).splits.values() for image in everything(split))
    for root, words in ((folders, "ant is a link to a folder"), (files, r"\.png is a link to a file outside")):
        with pytest.raises(InputError, match=f"{words}.*--follow-links"):
            opened(root)
        source = opened(root, follow_links=True)
        assert sorted(image.tobytes() for split in source.splits.values() for image in everything(split)) == expected
        assert "follow" not in source.preprocessing


def test_links_in_a_circle_and_to_nothing_are_refused_by_name(tmp_path):
    root = fill(tmp_path / "root")
    (root / "ant" / "up").symlink_to(root)
    with pytest.raises(InputError, match=r"ant/up(/bee)?.* is a link to a folder that it lies in"):
        opened(root, follow_links=True)
    (root / "ant" / "up").unlink()
    (tmp_path / "other").mkdir()
    (root / "ant" / "there").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(root / "ant")
    with pytest.raises(InputError, match="ant/there/back is a link to a folder that it lies in"):
        opened(root, follow_links=True)
    (root / "ant" / "there").unlink()
    for place in (root / "ant" / "gone.png", root / "gone", root / "bee" / "self"):
        place.symlink_to(place if place.name == "self" else tmp_path / "nowhere")
        for follow in (False, True):
            with pytest.raises(InputError, match=f"{place} is a link to what does not exist"):
                opened(root, follow_links=follow)
        place.unlink()


# Classes that are called as splits are


@pytest.mark.parametrize("name", ["train", "test", "Val", "validation", "training"])
def test_a_class_may_be_called_as_a_split_is(tmp_path, name):
    beside = fill(tmp_path / "beside", ("bus", "car", name))
    assert set(opened(beside).class_names) == {"bus", "car", name}
    within = tmp_path / "within"
    within.mkdir()
    beside.rename(within / "train")
    assert set(opened(within).class_names) == {"bus", "car", name}


def test_images_of_splits_without_classes_are_not_taken_for_classes(tmp_path):
    fill(tmp_path, ("train", "test"))
    with pytest.raises(InputError, match=r"no class folders in .*train.*into a folder train of their own"):
        opened(tmp_path)
    fill(tmp_path, ("unlabelled",))
    with pytest.raises(InputError, match=r"no class folders in .*train"):
        opened(tmp_path)

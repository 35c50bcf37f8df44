"""Stacks of images as volumes: TIFF files of several pages and folders of slices, their types, and what is no stack."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scans import write_stack
from test_folders import everything, opened
from test_scans import notes
from test_tables import partitioned, to_classify
from test_volumes import check_damage

from ddcnn.data.sources.stacks import natural
from ddcnn.data.sources.volumes import describe, load_volume
from ddcnn.errors import InputError


def stack(dtype="uint8", seed=0, shape=(3, 4, 5)) -> np.ndarray:
    """(pages, rows, columns[, 3]), up to the ends of the type."""
    random, dtype = np.random.default_rng(seed), np.dtype(dtype)
    if dtype.kind == "f":
        return random.normal(0, 1e4, shape).astype(dtype)
    return random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def fill(root: Path, make=stack, **options) -> Path:
    for c, name in enumerate(("benign", "tumour")):
        for k in range(3):
            write_stack(root / name / f"{k}.tif", make(seed=3 * c + k), **options)
    return root


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_pages_are_read_in_their_own_type(tmp_path, dtype, compression):
    path = write_stack(tmp_path / "a.tif", stack(dtype), compression=compression)
    read = load_volume(path)
    assert read.dtype == dtype
    assert np.array_equal(read, stack(dtype)[..., None])
    assert (describe(path).shape, describe(path).dtype) == (read.shape, read.dtype)


def signed(path: Path, pages: np.ndarray) -> Path:
    """A TIFF of signed 16 bits, as tifffile writes it and Pillow does not: little-endian, a strip a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content, rows, columns = bytearray(b"II*\0\x08\0\0\0"), *pages.shape[1:]
    for k, page in enumerate(pages):
        tags = {256: columns, 257: rows, 258: 16, 259: 1, 262: 1, 273: len(content) + 2 + 9 * 12 + 4, 277: 1, 279: page.nbytes, 339: 2}
        entries = b"".join(np.array([tag, 4, 1, 0, value, 0], "<u2").tobytes() for tag, value in tags.items())
        following = 0 if k == len(pages) - 1 else tags[273] + page.nbytes
        content += np.array([len(tags)], "<u2").tobytes() + entries + np.array([following], "<u4").tobytes() + page.astype("<i2").tobytes()
    path.write_bytes(content)
    return path


def test_signed_pages_and_pages_in_colour_and_of_one_bit_are_read(tmp_path):
    read = load_volume(signed(tmp_path / "a.tif", stack("int16")))
    assert read.dtype == np.int16
    assert np.array_equal(read, stack("int16")[..., None])
    colour = stack(shape=(3, 4, 5, 3))
    assert np.array_equal(load_volume(write_stack(tmp_path / "b.tiff", colour)), colour)
    bits = stack() > 100
    assert np.array_equal(load_volume(write_stack(tmp_path / "c.tif", bits)), 255 * bits[..., None])


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", "uint8"), (".png", "uint16"), (".tif", "float32")])
def test_slices_in_a_folder_are_sorted_by_their_numbers(tmp_path, suffix, dtype):
    pages = stack(dtype, shape=(12, 4, 5))
    for k, page in enumerate(pages):
        Image.fromarray(page).save(tmp_path / f"slice{k}{suffix}")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    assert np.array_equal(load_volume(tmp_path), pages[..., None])
    Image.fromarray(pages[0]).save(tmp_path / "other.bmp" if dtype == "uint8" else tmp_path / "other.tiff")
    with pytest.raises(ValueError, match="slices that end in"):
        load_volume(tmp_path)


def test_names_are_sorted_as_people_count():
    names = ["z10", "Z9", "z2_b1", "z2_a10", "z2_a9", "²", "a"]
    assert sorted(names, key=natural) == ["a", "z2_a9", "z2_a10", "z2_b1", "Z9", "z10", "²"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["page0", "page1", "page2", "page4"], r"missing between page2\.png and page4\.png"),
        (["a9_0", "a9_2", "a9_6"], r"missing between a9_2\.png and a9_6\.png"),
        (["5", "10", "15"], ""),
        (["1.5", "2.25", "9"], ""),
        (["120001", "120103", "120304"], ""),  # times
        (["a0_0", "a1_1", "a4_4"], ""),
        (["first1", "last7"], ""),
    ],
)
def test_a_number_that_is_missing_among_slices_is_a_gap(tmp_path, names, words):
    for name in names:
        Image.fromarray(stack(shape=(4, 5))).save(tmp_path / f"{name}.png")
    if words:
        with pytest.raises(ValueError, match=words):
            load_volume(tmp_path)
    else:
        assert load_volume(tmp_path).shape == (len(names), 4, 5, 1)


def test_low_values_for_white_are_turned_or_refused(tmp_path):
    black, white = (np.array([262, 3, 1, 0, value, 0], "<u2").tobytes() for value in (1, 0))
    for path in (write_stack(tmp_path / "a.tif", stack()), write_stack(tmp_path / "b.tif", stack("uint16"))):
        assert path.read_bytes().count(black) == 3
        path.write_bytes(path.read_bytes().replace(black, white))
    assert np.array_equal(load_volume(tmp_path / "a.tif"), 255 - stack()[..., None])
    with pytest.raises(ValueError, match="WhiteIsZero"):
        load_volume(tmp_path / "b.tif")


def test_what_is_no_stack_is_a_damaged_sample(tmp_path):
    root = fill(tmp_path)
    broken = root / "tumour" / "1.tif"
    for pages in ([stack()[0]], [stack()[0], stack(shape=(1, 6, 5))[0]], [stack()[0], stack("uint16")[0]]):
        check_damage(opened(root, volumes=True, volume_size=(3, 4, 5)), write_stack(broken, pages))
    for part in (0.5, 0.95):
        write_stack(broken, stack())
        broken.write_bytes(broken.read_bytes()[: int(part * broken.stat().st_size)])
        check_damage(opened(root, volumes=True), broken)
    folder = tmp_path / "slices"
    for k in range(2):
        (folder / str(k)).mkdir(parents=True)
        for name in range(2):
            Image.fromarray(stack(shape=(4 + name * k, 5))).save(folder / str(k) / f"{name}.png")
    assert load_volume(folder / "0").shape == (2, 4, 5, 1)
    with pytest.raises(ValueError, match="slices 1 and 2 have 4x5 and 5x5 pixels"):
        load_volume(folder / "1")
    (folder / "0" / "1.png").unlink()
    with pytest.raises(ValueError, match="no volume"):
        load_volume(folder / "0")


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("ImageJ=1.53t\nimages=6\nchannels=2\nslices=3\nhyperstack=true\n", "has 3 slices, 2 channels and 1 time"),
        ("ImageJ=1.53t\nimages=6\nframes=6\n", ""),  # a stack that was imported as a film
        ("ImageJ=1.53t\nimages=9000\nslices=9000\n", "9000 slices in one block, of which Pillow reads 6"),
        ('<?xml version="1.0"?><OME><Pixels SizeC="2" SizeT="1" SizeX="5" SizeY="4" SizeZ="3"/></OME>', "has 3 slices, 2 channels"),
        ("ImageJ=1.53t\nimages=6\nslices=6\nunit=\\u00B5m\n", ""),
        ('<OME><Pixels SizeC="3" SizeT="1" SizeZ="6"/></OME>', ""),
        ("a scan", ""),
    ],
)
def test_pages_that_are_no_slices_are_refused_as_imagej_and_ome_tell(tmp_path, description, words):
    path = write_stack(tmp_path / "a.tif", stack(shape=(6, 4, 5)), description=description)
    if words:
        with pytest.raises(InputError, match=words):
            load_volume(path)
        with pytest.raises(InputError, match=words):
            describe(path)
    else:
        assert load_volume(path).shape == (6, 4, 5, 1)


def test_transparency_and_deep_colour_are_refused(tmp_path):
    with pytest.raises(InputError, match="transparency"):
        load_volume(write_stack(tmp_path / "a.tif", stack(shape=(3, 4, 5, 4))))


def test_stacks_in_class_folders_need_the_option(tmp_path, caplog):
    caplog.set_level("INFO")
    root = fill(tmp_path, lambda seed: stack("uint16", seed))
    assert opened(root).shape == (4, 5, 1)
    assert "read stacks with --volumes" in notes(caplog)
    source = opened(root, volumes=True)
    assert (source.shape, source.splits["train"].dtype, source.class_names) == ((3, 4, 5, 1), np.uint16, ("benign", "tumour"))
    found = {volume.tobytes() for split in source.splits.values() for volume in everything(split)}
    assert found == {stack("uint16", k).tobytes() for k in range(6)}
    clipped = everything(opened(root, volumes=True, window=(100, 2000.5), volume_size=(2, 2, 5)).splits["train"])
    assert (clipped.dtype, clipped.shape[1:]) == (np.uint16, (2, 2, 5, 1))
    assert (clipped.min() >= 100) & (clipped.max() <= 2000)
    with pytest.raises(InputError, match="--volumes"):
        opened(root, volume_size=(2, 2, 5))
    write_stack(root / "tumour" / "9.tif", stack("uint8"))
    with pytest.raises(InputError, match=r"0\.tif has voxels of type uint16 and .*9\.tif of uint8"):
        opened(root, volumes=True)
    with pytest.raises(InputError, match=r"9\.tif has voxels of type uint8, and the others uint16"):
        everything(opened(root, volumes=True, known=lambda *_: (source.shape, source.splits["train"].dtype)).splits["train"])


def test_a_single_page_or_a_damaged_file_beside_stacks_makes_them_no_slices(tmp_path):
    root = fill(tmp_path / "set")
    first = root / "tumour" / "-overview.tif"
    write_stack(first, [stack()[0]])
    check_damage(opened(root, volumes=True), first)
    whole = write_stack(first, stack()).read_bytes()
    for part in (10, 50, 90, 160, len(whole) - 20):  # within the first page's header, and behind it
        first.write_bytes(whole[:part])
        check_damage(opened(root, volumes=True), first)
    shutil.rmtree(root / "tumour")
    first.parent.mkdir()
    first.write_bytes(whole[:50])  # by itself
    check_damage(opened(root, volumes=True), first)
    for k in range(3):
        Image.fromarray(stack(shape=(4, 5))).save(tmp_path / f"{k}.tif")
    assert load_volume(tmp_path).shape == (3, 4, 5, 1)
    write_stack(tmp_path / "1.tif", stack())
    with pytest.raises(ValueError, match=r"slice 1\.tif has 3 pages"):
        load_volume(tmp_path)


def test_a_table_names_stacks_without_the_option(tmp_path):
    root = fill(tmp_path)
    for k in range(3):
        (root / "slices").mkdir(exist_ok=True)
        Image.fromarray(stack()[k]).save(root / "slices" / f"{k}.png")
    lines = ["benign/0.tif,0", "tumour/1.tif,1", "slices,1", "benign/1.tif,0"]
    (root / "labels.csv").write_text("\n".join(["file,label", *lines]), "utf-8")
    assert sum(map(len, opened(root).splits.values())) == 4


def test_a_run_on_stacks_classifies_a_stack_a_folder_of_slices_and_folders_of_them(tmp_path, world):
    store = partitioned(world, opened(fill(tmp_path / "set"), volumes=True), tmp_path)
    (tmp_path / "new" / "slices").mkdir(parents=True)
    for k in range(3):
        Image.fromarray(stack()[k]).save(tmp_path / "new" / "slices" / f"{k}.png")
    write_stack(tmp_path / "new" / "b.tiff", stack(seed=1))
    for name, expected in (
        ("new/b.tiff", [1]), ("new/slices", [0]), ("new", [1, 0]), ("set", range(6)), ("set/tumour", range(3, 6)),
    ):  # fmt: skip
        assert np.array_equal(everything(to_classify(tmp_path / name, store)), [stack(seed=k)[..., None] for k in expected]), name
    with pytest.raises(InputError, match=r"c\.tif has voxels of type uint16, and the run's images uint8"):
        everything(to_classify(write_stack(tmp_path / "c.tif", stack("uint16")), store))
    with pytest.raises(InputError, match="is no volume file"):
        to_classify(tmp_path / "new" / "slices" / "0.png", store)

"""What is taken from an HDF5 file, and the words in which the rest is refused."""

import h5py
import numpy as np
import pytest

from ddcnn.errors import InputError
from ddcnn.io.hdf5 import Damaged, attribute, checked_array, checked_dataset, names_in, opened, parsing, reading


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "file.h5", "w") as file:
        yield file


def test_an_array_of_numbers_is_taken_with_hard_links_to_it(file):
    file["group/array"] = np.arange(6, dtype="i4").reshape(2, 3)
    file["group/again"] = file["group"]
    for name in ("group/array", "group/again/again/array"):
        assert checked_dataset(file, name, (2, 3), "i4")[...].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert names_in(file, "group/again") == ["again", "array"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros(3, "i4,f4"), "has type"), (np.full(3, "a", object), "has type"), (np.zeros(3, "S4"), "has type"),
        (np.zeros(3, "c8"), "has type"), (np.zeros(3, "V3"), "has type"), (np.zeros(3, "f8"), "has type float64, not int64"),
        (np.zeros(4, "i8"), r"has shape \(4,\), not \(3,\)"), (h5py.SoftLink("/there"), "is a link"),
        (h5py.ExternalLink("f", "/"), "is a link"), (np.dtype("i8"), "is not an array"), (h5py.Empty("i8"), "has type"),
    ],
)  # fmt: skip
def test_a_dataset_of_another_kind_is_refused(file, values, words):
    file["there"], file["x"] = np.zeros(3, "i8"), values
    with pytest.raises(Damaged, match=f"x {words}"):
        checked_dataset(file, "x", (3,), "i8")


@pytest.mark.parametrize("how", [{"compression": "gzip"}, {"shuffle": True}, {"fletcher32": True}, {"scaleoffset": 0}])
def test_a_filtered_dataset_is_refused(file, how):
    file.create_dataset("x", data=np.zeros(3, "i8"), **how)
    with pytest.raises(Damaged, match="x is compressed or filtered"):
        checked_dataset(file, "x")


@pytest.mark.parametrize("how", [{}, {"chunks": (10,)}])
@pytest.mark.parametrize("size", [10, 1 << 50])
def test_a_dataset_that_was_never_written_is_refused_before_it_takes_memory(file, how, size):
    file.create_dataset("x", (size,), "f8", **how)
    with pytest.raises(Damaged, match="x has fewer data than its shape"):
        checked_dataset(file, "x")


@pytest.mark.parametrize("name", ["missing", "group/missing", "array/below", "", "/", ".", "..", "group//array", "group"])
def test_a_name_that_leads_to_no_array_is_refused(file, tmp_path, name):
    file["array"], file["group/array"] = 1, 2
    with pytest.raises(InputError, match=str(tmp_path)), reading(tmp_path):
        checked_dataset(file, name)


def test_a_dataset_is_not_a_group(file):
    file["x"] = np.arange(3)
    with pytest.raises(Damaged, match="x is not a group"):
        names_in(file, "x")


@pytest.mark.parametrize("value", ["a", "é", 3, 1.5, [1, 2], [[1, 2], [3, 4]], "a" * 100_000, [0.1] * 7000])
def test_plain_attributes_are_taken(file, value):
    file.attrs["x"] = value
    assert attribute(file, "x") == value


def test_text_of_fixed_length_is_text(file):
    file.attrs["x"] = np.bytes_("é".encode())
    assert attribute(file, "x") == "é"


@pytest.mark.parametrize(
    "value", [h5py.Empty("i4"), np.zeros(0), ["a", "b"], np.zeros(2, "i4,f4"), np.zeros((1, 1, 1)), 1j, True, np.void(b"ab")]
)
def test_other_attributes_are_refused(file, value):
    file.attrs["x"] = value
    with pytest.raises(Damaged, match="attribute x is"):
        attribute(file, "x")


def test_references_and_missing_attributes_are_refused(file):
    file.attrs["x"] = file.ref
    for name, words in (("x", "neither"), ("y", "missing")):
        with pytest.raises(Damaged, match=f"attribute {name} is {words}"):
            attribute(file, name)


@pytest.mark.parametrize(
    "error", [OSError("x"), KeyError("x"), IndexError(), MemoryError(), RecursionError("x" * 5000), OverflowError("x")]
)
def test_what_h5py_raises_becomes_one_short_line(tmp_path, error):
    with pytest.raises(InputError) as caught, reading(tmp_path / "f.h5", "not a set", "make it again"), parsing():
        raise error
    assert str(caught.value).startswith(f"{tmp_path / 'f.h5'}: not a set (")
    assert str(caught.value).endswith("); make it again")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("error", [TypeError, KeyError, AttributeError, ValueError, RuntimeError, MemoryError])
def test_an_error_of_this_program_is_not_taken_for_damage(tmp_path, error):
    with pytest.raises(error), reading(tmp_path):
        raise error("x")


def test_a_damaged_file_is_told_from_an_error_while_it_is_open(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x"] = np.arange(3)
    with pytest.raises(TypeError), opened(tmp_path / "f.h5") as file:
        checked_array(file, "x") + "text"
    with (
        pytest.raises(InputError, match=r"f\.h5: not a set \(y is missing\); make it again"),
        opened(tmp_path / "f.h5", "not a set", "make it again") as file,
    ):
        checked_array(file, "y")
    (tmp_path / "f.h5").write_bytes(b"text")
    with pytest.raises(InputError, match="not a readable HDF5 file"), opened(tmp_path / "f.h5"):
        pass
    with pytest.raises(InputError, match=r"nothing\.h5"), opened(tmp_path / "nothing.h5"):
        pass

"""Files that are whole or not there."""

import os

import pytest

from ddcnn.errors import InputError
from ddcnn.io.atomic import replacing, temporary_name, write_text


def test_a_file_is_replaced_or_stays(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "first")
    with pytest.raises(OSError, match="of another file"), replacing(path) as file:
        file.write(b"half of the sec")
        raise OSError("of another file")
    assert path.read_text("utf-8") == "first"
    with pytest.raises(InputError, match=r"a\.txt: cannot be written"), replacing(path) as file:
        file.write(b"half of the sec")
        os.close(file.descriptor)
        file.write(b"ond")
    assert path.read_text("utf-8") == "first"
    write_text(path, "second")
    assert path.read_text("utf-8") == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def test_what_lies_under_the_temporary_name_is_not_followed(tmp_path):
    """A link that somebody has laid there, or what a killed process of the same number has left."""
    (tmp_path / "victim").write_text("precious", "utf-8")
    temporary_name(tmp_path / "a.txt").symlink_to(tmp_path / "victim")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "victim").read_text("utf-8") == "precious"
    assert not (tmp_path / "a.txt").is_symlink() and (tmp_path / "a.txt").read_text("utf-8") == "new"


def current_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask

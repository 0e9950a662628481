"""Files that are there whole or not at all, and their hashes."""

from pathlib import Path

import pytest

import tutelage
from tutelage.files import differences, hashes_of, write_json, write_text, write_whole


def test_a_file_replaces_another_at_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    write_whole(path, "zwei ☺".encode())
    assert path.read_text(encoding="utf-8") == "zwei ☺"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_what_cannot_be_put_in_its_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken" / "x").mkdir(parents=True)
    with pytest.raises(OSError):
        write_text(tmp_path / "taken", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_hashes_tell_what_is_missing_new_and_altered(tmp_path: Path) -> None:
    for name in ("a", "b/c", "manifest"):
        write_text(tmp_path / name, name)
    expected = hashes_of(tmp_path, but="manifest")
    assert list(expected) == ["a", "b/c"] and differences(expected, hashes_of(tmp_path, but="manifest")) == []
    (tmp_path / "a").unlink()
    write_text(tmp_path / "b/c", "other")
    write_text(tmp_path / "d", "")
    actual = hashes_of(tmp_path, but="manifest")
    assert differences(expected, actual) == ["a is missing", "b/c was altered", "d was added"]


def test_the_version_is_that_of_the_project() -> None:
    assert tutelage.__version__.count(".") == 2

"""Choices by name, and those that installed packages add."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tutelage import registry
from tutelage.registry import GROUP, Registry

Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with one module, which an entry point names."""

    def lay_out(source: str) -> None:
        (tmp_path / "added_choices.py").write_text(source)
        information = tmp_path / "example-0.1.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 0.1\n")
        (information / "entry_points.txt").write_text(f"[{GROUP}]\nexample = added_choices\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_loaded", set())
    registry._extensions.cache_clear()
    yield lay_out
    sys.modules.pop("added_choices", None)
    registry._extensions.cache_clear()


def test_a_name_stands_for_one_thing() -> None:
    choices: Registry[int] = Registry("room.choice")
    assert choices.add("one", 1) == 1 and choices["one"] == 1 and list(choices) == ["one"]
    choices.add("one", 1)
    with pytest.raises(ValueError, match=r"room\.choice: 'one' is taken"):
        choices.add("one", 2)


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    choices: Registry[int] = Registry("room.choice")
    choices.add("one", 1)
    assert choices.refusal("one") is None
    assert str(choices.refusal("two")) == "room.choice=two: is none of one"
    assert str(choices.refusal("two", "room.parts.other.choice")) == "room.parts.other.choice=two: is none of one"


def test_an_installed_package_adds_a_choice_before_anybody_looks(install: Install) -> None:
    install("from rollout.verifiers import VERIFIERS\nVERIFIERS.add('added', None)\nassert 'exact' in VERIFIERS\n")
    from rollout.verifiers import VERIFIERS

    try:
        assert "added" in VERIFIERS and VERIFIERS["added"] is None
    finally:
        VERIFIERS._items.pop("added", None)


@pytest.mark.parametrize("source", ["import nothing_like_that", "1 / 0", "def ("])
def test_an_extension_that_cannot_be_imported_is_named_each_time(install: Install, source: str) -> None:
    install(source)
    choices: Registry[int] = Registry("room.choice")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"tutelage\.extensions: added_choices of example cannot be imported"):
            choices.refusal("one")

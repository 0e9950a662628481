"""What is printed is shown as it is, whatever it says, and cannot end anything."""

import io
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from tutelage.console import PlainConsole, display_only, printable

ROOT = Path(__file__).parents[2]
HOSTILE = ["[/INST]", "[bold]x[/bold]", "[link=file:///]", ":smile:", "\x1b[2Jgone", "{answer}", "\ud800", "\u202egnp"]


def shown(text: str) -> str:
    console = PlainConsole(file=io.StringIO(), width=200, force_terminal=False)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(text)
    console.print(table)
    console.rule(text)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_and_commands_are_text(text: str) -> None:
    """The first of these ended a completed run with a traceback."""
    assert shown(text).count(printable(text)) == 5


@given(st.text(alphabet=st.characters(), max_size=40))
def test_any_text_can_be_printed_and_none_commands_the_terminal(text: str) -> None:
    out = shown(text)
    assert out.encode() and not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out)


def test_nobody_listens_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return self.target.fileno()

    with (tmp_path / "out").open("w") as target:
        closed = Closed()
        closed.target = target  # type: ignore[attr-defined]
        monkeypatch.setattr(sys, "stdout", closed)
        console = PlainConsole()
        console.print("one")
        console.print("two")
    assert console.quiet


def test_a_display_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with display_only():
        raise RuntimeError("no ink")
    assert "no ink" in caplog.text


def test_all_printing_goes_through_it() -> None:
    """A console of rich's own reads brackets as markup, and so does a column of a progress bar."""
    rooms = ("diagnostics", "learner", "orchestration", "rollout", "scoring", "tutelage")
    for path in (path for room in rooms for path in (ROOT / room).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if path.name != "console.py":
            assert not re.search(r"\bConsole\(|rich\.console|rich\.markup|from rich import print", source), path
        for column in re.findall(r"TextColumn\([^)]*\)", source):
            assert "markup=False" in column, path

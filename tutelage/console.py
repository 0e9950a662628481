"""What is shown on a terminal: text of data, models and users as it is, and nothing that could end a run."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

log = logging.getLogger("tutelage")
# C0 and C1 controls but tab and newline (ANSI escapes begin with one), what turns the direction of writing, and halves
# of characters, which no encoding has.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Show characters that would command a terminal as Python writes them: "\x1b[2J"."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


@contextmanager
def display_only() -> Iterator[None]:
    """Show something to people; where that fails the log says so, and whatever is shown about goes on."""
    try:
        yield
    except Exception:  # a full disk, a closed pipe, a template's bug: none is worth the run that it is about
        log.exception("could not be shown")


class PlainConsole(Console):
    """A console that takes what it prints as it is: no markup, no emoji codes, no escapes of a terminal."""

    def __init__(self, **options: Any) -> None:
        """
        Args:
            options: of `rich.console.Console`.
        """
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn every string that is printed, those in tables and titles too, into a text without commands."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `rich.console.Console.print` does; what cannot be printed is logged."""
        with display_only():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Go on in silence when nobody reads any more: the run is worth more than its lines."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

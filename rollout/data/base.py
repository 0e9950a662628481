"""What a source of prompts is: how it is asked for them, and how it refuses settings that do not fit it."""

from collections.abc import Iterator
from typing import Protocol

from rollout.config import PromptSourceConfig
from tutelage.records.prompt import Prompt
from tutelage.settings import Refusal


class PromptSource(Protocol):
    """A kind of prompts, chosen by its name with data.train.kind and data.heldout.kind.

    class Squares(PromptSource):
        def load(self, settings: PromptSourceConfig, key: str) -> list[Prompt]:
            return [Prompt(f"{n}", (Message("user", f"{n}*{n}="),), answer=f"{n * n}") for n in range(settings.size)]

    SOURCES.add("squares", Squares())  # from rollout.data.sources import SOURCES
    """

    def load(self, settings: PromptSourceConfig, key: str) -> list[Prompt]:
        """Make all prompts, in their order; the same ones every time.

        Args:
            key: full name of the setting that holds the source, as data.train, for messages.

        Raises:
            ValueError: naming the setting, its value and the fix.
        """
        ...

    def refusals(self, settings: PromptSourceConfig, key: str) -> Iterator[Refusal]:
        """Say what is wrong with the settings, as far as they alone can tell."""
        yield from ()

    def overlaps(self, train: PromptSourceConfig, heldout: PromptSourceConfig) -> Iterator[Refusal]:
        """Refuse held-out prompts that may be training prompts, where both sources are of this kind."""
        yield from ()


def generated_count(settings: PromptSourceConfig) -> int:
    """Count the prompts to make, for a source that could make any number."""
    return settings.size if settings.limit is None else min(settings.size, settings.limit)


def count_refusals(settings: PromptSourceConfig, key: str) -> Iterator[Refusal]:
    """Refuse a size or limit that leaves nothing to generate."""
    if generated_count(settings) < 1:
        name, value = ("size", settings.size) if settings.size < 1 else ("limit", settings.limit)
        yield Refusal(f"{key}.{name}", value, "no task to generate; set 1 or more")

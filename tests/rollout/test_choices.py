"""Verifiers and sources from outside the packages take part like those of our own."""

from collections.abc import Iterator

import pytest

import tutelage
from rollout.config import DataConfig, HeldoutConfig, PromptSourceConfig
from rollout.data.base import PromptSource, count_refusals
from rollout.data.sources import SOURCES, data_refusals, load_prompts
from rollout.verifiers import VERIFIERS
from tests.factories import configured, message
from tutelage.records.prompt import Message, Prompt
from tutelage.settings import Refusal


class Squares(PromptSource):
    def load(self, settings: PromptSourceConfig, key: str) -> list[Prompt]:
        return [Prompt(f"{n}", (Message("user", f"{n}*{n}="),), answer=f"{n * n}") for n in range(settings.size)]

    def refusals(self, settings: PromptSourceConfig, key: str) -> Iterator[Refusal]:
        yield from count_refusals(settings, key)

    def overlaps(self, train: PromptSourceConfig, heldout: PromptSourceConfig) -> Iterator[Refusal]:
        yield Refusal("data.heldout.kind", heldout.kind, "every square is a training prompt; choose another kind")


class Polite(tutelage.Verifier):
    def __call__(self, prompt: Prompt, response: str) -> float:
        return float("please" in response)

    def refusals(self, source: str, kind: str) -> Iterator[Refusal]:
        if kind == "squares":
            yield Refusal("data.verifier", "polite", f"nobody is polite to {source}; set data.verifier=exact")


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES._items, "squares", Squares())
    monkeypatch.setitem(VERIFIERS._items, "polite", Polite())


def test_a_source_from_outside_makes_prompts() -> None:
    source = PromptSourceConfig(kind="squares", size=3)
    assert [prompt.answer for prompt in load_prompts(source)] == ["0", "1", "4"]
    with pytest.raises(ValueError, match=r"data\.train\.limit=0: no task to generate"):
        load_prompts(PromptSourceConfig(kind="squares", limit=0), "data.train")


def test_a_verifier_from_outside_is_chosen_by_its_name() -> None:
    config = configured("data.verifier=polite")
    verifier = VERIFIERS[config.data.verifier]
    assert config.data.is_graded and verifier is not None
    assert verifier(Prompt("p", (Message("user", "?"),)), "please") == 1


def test_they_say_themselves_what_does_not_fit_them() -> None:
    squares = PromptSourceConfig(kind="squares", size=0)
    refused = list(
        map(str, data_refusals(DataConfig(squares, HeldoutConfig(kind="squares", size=0), verifier="polite")))
    )
    assert [text.partition("=")[0] for text in refused] == [
        "data.train.size", "data.heldout.size", "data.heldout.kind", "data.verifier", "data.verifier",
    ]  # fmt: skip
    text = message("data.train.kind=squares", "data.train.size=0", "data.verifier=polite")
    assert "data.train.size=0" in text and "data.verifier=polite: nobody is polite to data.train" in text


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    text = message("data.train.kind=squarez", "data.verifier=polit")
    assert "data.train.kind=squarez: is none of dataset, reasoning_gym, digit_tasks, squares" in text
    assert "data.verifier=polit: is none of none, exact" in text

"""Where prompts come from: every kind of source under its name, and the rules that each of them has."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from rollout.config import DataConfig, HeldoutConfig, PromptSourceConfig, Unusable
from rollout.data.base import PromptSource
from rollout.data.dataset import DatasetSource
from rollout.data.digit_tasks import DigitTaskSource
from rollout.data.reasoning_gym import ReasoningGymSource
from rollout.verifiers import VERIFIERS
from tutelage.records.prompt import Prompt, normalised
from tutelage.registry import Registry
from tutelage.settings import ConfigError, Refusal, Refusals

SOURCES: Registry[PromptSource] = Registry("data.train.kind")
SOURCES.add("dataset", DatasetSource())  # Hugging Face name, local directory, JSONL or Parquet file
SOURCES.add("reasoning_gym", ReasoningGymSource())  # procedural tasks with their own verifier
SOURCES.add("digit_tasks", DigitTaskSource())  # procedural tasks of our own, with worked answers


def load_prompts(settings: PromptSourceConfig, key: str = "data") -> list[Prompt]:
    """Make or read all prompts of a source, in its order.

    Args:
        key: full name of the setting that holds the source, for messages.

    Raises:
        ValueError: naming the setting, its value and the fix.
    """
    refusals = [*_source_refusals(settings, key)]
    if refusals:
        raise ConfigError(*refusals)
    return SOURCES[settings.kind].load(settings, key)


@dataclass(frozen=True)
class Splits:
    prompts: Mapping[str, Sequence[Prompt]]  # "train" and "heldout"
    blank: int  # how many were left out of both because they have no text


def load_splits(data: DataConfig) -> Splits:
    """Make or read the training prompts and the held-out ones, of which no training prompt is one where they share.

    Raises:
        ConfigError: with everything that is wrong with either source.
    """
    refusals, prompts, blank = Refusals(), dict[str, Sequence[Prompt]](), 0
    for name, source in (("train", data.train), ("heldout", data.heldout)):
        if name == "heldout" and data.heldout.share is not None:
            continue
        with refusals.collecting():
            loaded = load_prompts(source, f"data.{name}")
            prompts[name] = [prompt for prompt in loaded if _has_text(prompt)]
            blank += len(loaded) - len(prompts[name])
            refusals.extend(_blank_refusals(data, f"data.{name}", source, loaded))
    refusals.raise_all()
    if data.heldout.share is not None:
        prompts["heldout"], prompts["train"] = _divided(prompts["train"], data.heldout.share, data.heldout.seed)
        if not prompts["train"] or not prompts["heldout"]:
            fix = "data.train has too few different prompts to hold some of them out; give more, or data.heldout.path"
            raise ConfigError(Refusal("data.heldout.share", data.heldout.share, fix))
    return Splits(prompts, blank)


def _has_text(prompt: Prompt) -> bool:
    """Whether there is something that the student can answer."""
    return bool(prompt.messages) and bool(prompt.messages[-1].content.strip())


def _blank_refusals(
    data: DataConfig, key: str, source: PromptSourceConfig, loaded: Sequence[Prompt]
) -> Iterator[Refusal]:
    blank = [prompt.id for prompt in loaded if not _has_text(prompt)]
    if blank and data.blank_prompts is Unusable.refuse:
        fix = (
            f"{len(blank)} of {len(loaded)} prompts of {key} ({source.path or source.kind}) have no text (first: row "
            f"{blank[0]!r}); mend them, or set data.blank_prompts=drop to leave such prompts out"
        )
        yield Refusal("data.blank_prompts", data.blank_prompts, fix)
    elif len(blank) == len(loaded):
        yield Refusal(f"{key}.prompt_column", source.prompt_column, "no prompt has a text; name another column")


def _divided(prompts: Sequence[Prompt], share: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Divide prompts into a share of them and the rest, both in their order; equal prompts go to the same side.

    Which ones depends on their texts and the seed alone: not on their order, nor on what else changes in a file.
    """

    def rank(text: tuple[tuple[str, str], ...]) -> bytes:
        return hashlib.sha256(repr((seed, text)).encode()).digest()

    texts = sorted({normalised(prompt) for prompt in prompts}, key=rank)
    chosen = set(texts[: max(1, round(share * len(texts)))])
    sides = [[prompt for prompt in prompts if (normalised(prompt) in chosen) is side] for side in (True, False)]
    return sides[0], sides[1]


def _share_refusals(heldout: HeldoutConfig) -> Iterator[Refusal]:
    """Refuse settings of prompts of their own, where the held-out prompts are a share of data.train."""
    default = HeldoutConfig()
    for name in (item.name for item in fields(heldout) if item.name not in ("share", "seed")):
        value, unset = getattr(heldout, name), getattr(default, name)
        if value != unset:
            shown = "null" if unset is None else str(unset) or "''"
            fix = (
                f"data.heldout.share={heldout.share:g} holds out prompts of data.train, so this is of no effect; set "
                f"data.heldout.{name}={shown}, or data.heldout.share=null"
            )
            yield Refusal(f"data.heldout.{name}", value, fix)


def data_refusals(data: DataConfig) -> Iterator[Refusal]:
    """Say what is wrong with prompts and verifier, by their settings alone."""
    sources: dict[str, PromptSourceConfig] = {"data.train": data.train, "data.heldout": data.heldout}
    if data.heldout.share is not None:
        yield from _share_refusals(data.heldout)
        sources = {"data.train": data.train}
    for key, settings in sources.items():
        yield from _source_refusals(settings, key)
    if len(sources) > 1 and data.train.kind == data.heldout.kind and data.train.kind in SOURCES:
        yield from SOURCES[data.train.kind].overlaps(data.train, data.heldout)
    unknown = VERIFIERS.refusal(data.verifier)
    if unknown is not None:
        yield unknown
        return
    verifier = VERIFIERS[data.verifier]
    if verifier is not None:
        for key, settings in sources.items():
            yield from verifier.refusals(key, settings.kind)


def _source_refusals(settings: PromptSourceConfig, key: str) -> Iterator[Refusal]:
    unknown = SOURCES.refusal(settings.kind, f"{key}.kind")
    if unknown is not None:
        yield unknown
    else:
        yield from SOURCES[settings.kind].refusals(settings, key)

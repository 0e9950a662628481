"""Where prompts come from: every kind of source under its name, and the rules that each of them has."""

from collections.abc import Iterator

from rollout.config import DataConfig, PromptSourceConfig
from rollout.data.base import PromptSource
from rollout.data.dataset import DatasetSource
from rollout.data.digit_tasks import DigitTaskSource
from rollout.data.reasoning_gym import ReasoningGymSource
from rollout.verifiers import VERIFIERS
from tutelage.records.prompt import Prompt
from tutelage.registry import Registry
from tutelage.settings import ConfigError, Refusal

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


def data_refusals(data: DataConfig) -> Iterator[Refusal]:
    """Say what is wrong with prompts and verifier, by their settings alone."""
    sources = {"data.train": data.train, "data.heldout": data.heldout}
    for key, settings in sources.items():
        yield from _source_refusals(settings, key)
    if data.train.kind == data.heldout.kind and data.train.kind in SOURCES:
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

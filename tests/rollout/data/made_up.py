"""Settings of prompt sources that are made up, for the tests of both."""

from typing import Any

from rollout.config import PromptSourceConfig


def source(task: str = "column_sums", **kwargs: Any) -> PromptSourceConfig:
    return PromptSourceConfig(kind="digit_tasks", task=task, **kwargs)


def tasks(**settings: Any) -> PromptSourceConfig:
    return PromptSourceConfig(kind="reasoning_gym", **settings)

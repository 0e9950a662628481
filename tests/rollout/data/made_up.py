"""Settings of prompt sources that are made up, for the tests of both."""

from typing import Any

from rollout.config import PromptSourceConfig, SourceKind


def source(task: str = "column_sums", **kwargs: Any) -> PromptSourceConfig:
    return PromptSourceConfig(kind=SourceKind.digit_tasks, task=task, **kwargs)


def tasks(**settings: Any) -> PromptSourceConfig:
    return PromptSourceConfig(kind=SourceKind.reasoning_gym, **settings)

"""What the tests make of everyday things: composed configs, records, prompts files and prepared runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from orchestration.cli import explain
from orchestration.config.compose import build, register_schema
from orchestration.config.schema import RunConfig
from orchestration.prepare.inputs import Prepared, prepare
from tutelage.chat import Chat, Rendering, seen_by_student, seen_by_teacher
from tutelage.records.prompt import Prompt
from tutelage.records.trajectory import FinishReason, PolicySpan, Trajectory

CONF = Path(__file__).parents[1] / "conf"
NEEDED_BY_PRESETS = {  # objectives that are refused without further settings, and which
    "naive_student_topk": ["objective.unsafe_baseline=true"],
    "symmetric_difference": ["objective.unsafe_baseline=true"],
    "task_reward_mix": ["data.verifier=exact", "sampling.samples_per_prompt=4"],
    "cross_tokenizer": ["teacher.cross_tokenizer=true"],
    "supervised": ["stage=cold_start"],
    "grpo": ["stage=reinforce", "data.verifier=exact", "sampling.samples_per_prompt=4"],
    "grpo_classic": ["stage=reinforce", "data.verifier=exact", "sampling.samples_per_prompt=4"],
}


def configured(*overrides: str) -> RunConfig:
    """Compose and check the config of a run, as a command does."""
    register_schema()
    with initialize_config_module(version_base="1.3", config_module="conf"):
        return build(compose("config", overrides=list(overrides)))


def message(*overrides: str) -> str:
    """Say what the user reads whose overrides are refused."""
    with pytest.raises(Exception) as caught:  # Hydra, OmegaConf and our own
        configured(*overrides)
    return explain(caught.value)


def prepared(overrides: list[str], *changes: str) -> Prepared:
    """Prepare a run, models and prompts read."""
    return prepare(configured(*overrides, *changes))


def refusal(overrides: list[str], *changes: str) -> str:
    """Say why a run cannot be prepared, at the latest when its files are read."""
    with pytest.raises(ValueError) as caught:
        prepared(overrides, *changes)
    return str(caught.value)


def ids(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def student_reads(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, system_prompt: str | None = None) -> Rendering:
    """Render a prompt as the student reads it."""
    (rendering,) = Chat(tokenizer).render([seen_by_student(prompt, system_prompt)])
    return rendering


def teacher_reads(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, context: str | None = None, system_prompt: str | None = None
) -> Rendering:
    """Render a prompt as its teacher reads it."""
    (rendering,) = Chat(tokenizer).render([seen_by_teacher(prompt, context, system_prompt)])
    return rendering


def make_trajectory(prompt_ids: Sequence[int], response_ids: Sequence[int], **fields: Any) -> Trajectory:
    """Make a whole response of the student's first version, all of it its own, unless fields say otherwise."""
    length = len(response_ids)
    told = {
        "slot": 0,
        "prompt_id": "p",
        "sample_index": 0,
        "loss_mask": np.ones(length, np.bool_),
        "sampling_logprobs": np.zeros(length, np.float32),
        "temperature": 1.0,
        "candidate_ids": None,
        "spans": (PolicySpan(0, 0, length),),
        "finish_reason": FinishReason.STOP,
    }
    return Trajectory(prompt_ids=ids(*prompt_ids), response_ids=ids(*response_ids), **told | fields)

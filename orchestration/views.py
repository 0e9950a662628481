"""How the teacher of a run sees prompts and trajectories: its tokenizer, and what stands for what in the student's."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from learner.objectives import Requirements
from orchestration.config import ConfigError, RunConfig
from rollout.prompts import Message, Prompt
from rollout.rendering import render_follow_ups
from rollout.trajectory import FollowUp
from scoring.config import TeacherConfig
from scoring.views import Views, make_aligner


def reading_tokenizer(
    teacher: TeacherConfig, path: str, student: PreTrainedTokenizerBase, key: str = "teacher"
) -> PreTrainedTokenizerBase:
    """The tokenizer and template by which a teacher reads: the student's own, unless `cross_tokenizer` says otherwise.

    Args:
        key: full name of the teacher's settings, for messages.

    Raises:
        ConfigError: the two tokenizers cannot be aligned.
    """
    if not teacher.cross_tokenizer:
        return student
    own = AutoTokenizer.from_pretrained(teacher.tokenizer or path, trust_remote_code=teacher.trust_remote_code)
    try:
        make_aligner(student, own, f"{key}.tokenizer")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return own


def make_views(
    config: RunConfig, needs: Requirements, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> Views:
    """Of the trajectories of a run, by the tokenizer that its teacher reads by."""
    aligner = make_aligner(student, teacher) if config.teacher.cross_tokenizer else None
    return Views(needs, config.learner.overlap_k, aligner)


def sampled_candidates(config: RunConfig, needs: Requirements) -> int:
    """Most likely ids that rollouts return: more than are compared where some have no equal at the teacher."""
    if not (needs.candidates and config.teacher.cross_tokenizer):
        return needs.candidates
    return max(needs.candidates, config.teacher.twin_candidates)


def student_follow_ups(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, messages: Sequence[Message]
) -> tuple[FollowUp, ...]:
    """A prompt's further turns as they are put to the student."""
    ids: Sequence[NDArray[np.int32]] = render_follow_ups(tokenizer, prompt, messages, prompt.follow_ups)
    return tuple(FollowUp(said.role, said.content, row) for said, row in zip(prompt.follow_ups, ids, strict=True))

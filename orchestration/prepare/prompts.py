"""Prompts of a run, rendered for student and teachers and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from orchestration.config.facts import learns_from_data, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from orchestration.prepare.models import PreparedTeacher
from rollout.config import OverLength
from scoring.backends.factory import kind_of
from scoring.config import TeacherConfig, teacher_setting
from scoring.context import ContextTemplate, static_values
from tutelage.chat import (
    render_completion,
    render_follow_ups,
    render_prompt,
    render_teacher_prompt,
    student_messages,
    teacher_messages,
)
from tutelage.records.prompt import Message, Prompt, RenderedPrompt
from tutelage.records.trajectory import FollowUp
from tutelage.settings import ConfigError, Refusal


def render_for_models(
    prompt: Prompt,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    teachers: Mapping[str, PreparedTeacher],
) -> RenderedPrompt:
    system_prompt = config.data.system_prompt
    student_ids, messages = render_prompt(tokenizer, prompt, system_prompt), student_messages(prompt, system_prompt)
    between = render_follow_ups(tokenizer, prompt, messages, prompt.follow_ups)
    follow_ups = tuple(FollowUp(m.role, m.content, ids) for m, ids in zip(prompt.follow_ups, between, strict=True))
    if not teachers:
        return RenderedPrompt(prompt, student_ids, student_ids, follow_ups=follow_ups)
    members = teachers_of(config)[prompt.teacher].mixture or {prompt.teacher: 1.0}
    views = {key: _teacher_view(prompt, key, config, teachers[key].tokenizer) for key in members}
    longest = max(views.values(), key=len)
    item = RenderedPrompt(prompt, student_ids, longest, follow_ups=follow_ups, teacher_follow_ups=between)
    if len(views) > 1:
        return replace(item, views=views)
    return _with_reading(item, config, messages, teachers[next(iter(members))].tokenizer)


def _with_reading(
    item: RenderedPrompt, config: RunConfig, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase
) -> RenderedPrompt:
    """The further turns by the teacher's own template, and whether it is told more where ids cannot tell."""
    prompt, teacher = item.prompt, teachers_of(config)[item.prompt.teacher]
    context = _context(prompt, prompt.teacher, teacher)
    theirs = teacher_messages(prompt, context, config.data.system_prompt)
    between = render_follow_ups(tokenizer, prompt, theirs, prompt.follow_ups)
    return replace(item, teacher_follow_ups=between, told=theirs != messages if teacher.cross_tokenizer else None)


def _teacher_view(prompt: Prompt, key: str, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int32]:
    """[P']: what a teacher sees of a prompt before there is any response to it."""
    context = _context(prompt, key, teachers_of(config)[key])
    return render_teacher_prompt(tokenizer, prompt, context, config.data.system_prompt)


def with_completions(
    items: Sequence[RenderedPrompt], config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> list[RenderedPrompt]:
    """The training prompts with the data's own responses, if some are learned from."""
    if not learns_from_data(config):
        return list(items)
    return [replace(item, completion_ids=render_completion(tokenizer, _completion(item, config))) for item in items]


def _completion(item: RenderedPrompt, config: RunConfig) -> str:
    if item.prompt.completion is None:
        fix = (
            f"training prompt {item.prompt.id!r} has no completion; set data.train.completion_column="
            f"{config.data.train.completion_column} to the column of the responses, end the messages with the "
            "assistant's, or set objective.sequences.other_source=teacher"
        )
        raise ConfigError(Refusal("objective.sequences.other_source", "dataset", fix))
    return item.prompt.completion


def _context(prompt: Prompt, key: str, teacher: TeacherConfig) -> str | None:
    """The teacher's context for this prompt; None where it waits for a response."""
    if teacher.context is None:
        return None
    template = ContextTemplate(teacher.context)
    missing = template.missing(prompt)
    if missing is not None:
        fix = f"prompt {prompt.id!r} has no {missing}; add a column {missing!r}, or leave the field out"
        raise ConfigError(Refusal(f"{teacher_setting(key)}.context", f"{{{missing}}}", fix))
    return None if template.waits_for else template.filled(static_values(prompt))


def check_gate(config: RunConfig, prompts: Sequence[RenderedPrompt]) -> None:
    contexts = [teacher.context for teacher in teachers_of(config).values() if teacher.context is not None]
    if any(ContextTemplate(context).waits_for for context in contexts):
        return  # it comes with the responses
    if config.objective.gate.only_with_context and not any(item.has_context for item in prompts):
        fix = (
            "no prompt has a context that only the teacher sees, so nothing would be learned; set teacher.context, "
            "give the prompts a privileged_context column, or set false"
        )
        raise ConfigError(Refusal("objective.gate.only_with_context", True, fix))


def fits_model(item: RenderedPrompt, config: RunConfig, limit: int) -> bool:
    longest = max(_tokens(item, config, of_teacher) for of_teacher in (False, True))
    if longest > limit and config.data.over_length is OverLength.refuse:
        fix = (
            f"prompt {item.prompt.id!r} needs {longest} tokens with its response; raise it, or set "
            "data.over_length=drop to leave such prompts out"
        )
        raise ConfigError(Refusal("rollout.max_model_len", limit, fix))
    return longest <= limit


def _tokens(item: RenderedPrompt, config: RunConfig, of_teacher: bool) -> int:
    """Most that a prompt and all that may follow it take; a first answer is also evaluated."""
    prompt = len(item.teacher_ids if of_teacher else item.student_ids)
    others = item.teacher_follow_ups if of_teacher else [follow_up.ids for follow_up in item.follow_ups]
    conversation = (1 + len(others)) * config.sampling.max_tokens + sum(len(ids) for ids in others)
    return prompt + max(conversation, config.evaluation.max_tokens)


def check_teachers_differ(
    config: RunConfig, teachers: Mapping[str, PreparedTeacher], student_path: str, prompts: Sequence[Prompt]
) -> None:
    """Refuse a teacher that has the student's own weights and sees no more than it.

    That holds for an average of them as well: where both begin alike nothing ever moves them apart.
    """
    for key, teacher in teachers.items():
        settings = teachers_of(config)[key]
        alone = not kind_of(settings).is_remote(settings) and teacher.path == student_path
        if alone:
            _check_sees_more(config, key, settings, [prompt for prompt in prompts if prompt.teacher == key])


def _check_sees_more(config: RunConfig, key: str, teacher: TeacherConfig, prompts: Sequence[Prompt]) -> None:
    if not prompts or teacher.context or any(prompt.privileged_context for prompt in prompts):
        return
    selects = config.cold_start.only_correct and config.data.is_graded
    if STAGES[config.stage].collects and selects:
        return  # its own correct answers are something to learn from
    fix = (
        "the same weights as student.model and no teacher-only context, so there is nothing to learn; set "
        f"{teacher_setting(key)}.context, give the prompts a privileged_context column, or choose another teacher"
    )
    raise ConfigError(Refusal(f"{teacher_setting(key)}.model", teacher.model, fix))

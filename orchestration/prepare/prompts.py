"""The second pass over a run's files: its prompts are read, routed, rendered for student and teachers, and checked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from orchestration.config.facts import learns_from_data, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from orchestration.prepare.models import Models, PreparedTeacher
from rollout.config import DataConfig, Unusable
from rollout.data.sources import load_splits
from scoring.backends.factory import kind_of
from scoring.config import TeacherConfig, teacher_setting
from scoring.context import ContextTemplate, static_values
from scoring.routing import route
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
from tutelage.settings import ConfigError, Refusal, Refusals


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run that fit the models."""

    train: tuple[RenderedPrompt, ...]
    heldout: tuple[RenderedPrompt, ...]
    over_length: int  # how many were left out since they do not fit
    blank: int  # how many were left out since they have no text


def read_prompts(config: RunConfig, models: Models) -> Prompts:
    """Read, route and render the prompts of a run, and check what only they can tell.

    Raises:
        ConfigError: with everything that cannot work.
    """
    refusals, teachers = Refusals(), teachers_of(config)
    loaded = load_splits(config.data)
    prompts: dict[str, list[Prompt]] = {}
    columns = {"train": config.data.train.teacher_column, "heldout": config.data.heldout.teacher_column}
    for name, column in columns.items():
        with refusals.collecting():
            used = loaded.prompts[name][: config.evaluation.prompts if name == "heldout" else None]
            prompts[name] = route(used, teachers, f"data.{name}", column)
    refusals.raise_all()
    refusals.extend(_same_model_refusals(config, models, [*prompts["train"], *prompts["heldout"]]))
    renderer, rendered = Renderer(teachers, models.teachers, models.tokenizer, config.data.system_prompt), {}
    for name in prompts:
        with refusals.collecting():
            rendered[name] = [renderer.render(prompt) for prompt in prompts[name]]
    refusals.raise_all()
    with refusals.collecting():
        if learns_from_data(config):
            rendered["train"] = [_with_completion(item, config.data, models.tokenizer) for item in rendered["train"]]
    kept = {name: tuple(item for item in items if _length(item, config) <= config.rollout.max_model_len)
            for name, items in rendered.items()}  # fmt: skip
    refusals.extend(_length_refusals(config, rendered, kept))
    refusals.extend(_gate_refusals(config, kept["train"]))
    refusals.raise_all()
    dropped = sum(len(rendered[name]) - len(kept[name]) for name in kept)
    return Prompts(kept["train"], kept["heldout"], dropped, loaded.blank)


class Renderer:
    """Makes token ids of prompts, as the student and as the teacher of each prompt see them."""

    def __init__(
        self,
        teachers: Mapping[str, TeacherConfig],
        prepared: Mapping[str, PreparedTeacher],
        tokenizer: PreTrainedTokenizerBase,
        system_prompt: str | None,
    ) -> None:
        """
        Args:
            teachers: settings by key, mixtures included.
            prepared: those that answer for themselves, by key.
            tokenizer: the student's.
        """
        self._teachers, self._prepared = teachers, prepared
        self._tokenizer, self._system_prompt = tokenizer, system_prompt

    def render(self, prompt: Prompt) -> RenderedPrompt:
        """
        Raises:
            ConfigError: a teacher's context has a field that the prompt has not.
        """
        messages = student_messages(prompt, self._system_prompt)
        student_ids = render_prompt(self._tokenizer, prompt, self._system_prompt)
        between = render_follow_ups(self._tokenizer, prompt, messages, prompt.follow_ups)
        follow_ups = tuple(FollowUp(m.role, m.content, ids) for m, ids in zip(prompt.follow_ups, between, strict=True))
        if not self._teachers:
            return RenderedPrompt(prompt, student_ids, student_ids, follow_ups=follow_ups)
        members = list(self._teachers[prompt.teacher].mixture or (prompt.teacher,))
        views = {  # [P'] each: what a teacher sees of the prompt before there is any response to it
            key: render_teacher_prompt(
                self._prepared[key].tokenizer, prompt, _context(prompt, key, self._teachers[key]), self._system_prompt
            )
            for key in members
        }
        longest = max(views.values(), key=len)
        item = RenderedPrompt(prompt, student_ids, longest, follow_ups=follow_ups, teacher_follow_ups=between)
        return replace(item, views=views) if len(views) > 1 else self._as_read(item, messages, members[0])

    def _as_read(self, item: RenderedPrompt, messages: Sequence[Message], reader: str) -> RenderedPrompt:
        """Add the further turns by the teacher's own template, and whether it is told more where ids cannot tell.

        Args:
            reader: key of the teacher whose tokenizer reads them: a mixture's only member, or the prompt's teacher.
        """
        prompt, teacher = item.prompt, self._teachers[item.prompt.teacher]
        read = teacher_messages(prompt, _context(prompt, prompt.teacher, teacher), self._system_prompt)
        between = render_follow_ups(self._prepared[reader].tokenizer, prompt, read, prompt.follow_ups)
        return replace(item, teacher_follow_ups=between, told=read != messages if teacher.cross_tokenizer else None)


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


def _with_completion(item: RenderedPrompt, data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> RenderedPrompt:
    """A training prompt with the data's own response, which is learned from."""
    if item.prompt.completion is None:
        fix = (
            f"training prompt {item.prompt.id!r} has no completion; set data.train.completion_column="
            f"{data.train.completion_column} to the column of the responses, end the messages with the assistant's, or "
            "set objective.sequences.other_source=teacher"
        )
        raise ConfigError(Refusal("objective.sequences.other_source", "dataset", fix))
    return replace(item, completion_ids=render_completion(tokenizer, item.prompt.completion))


def _gate_refusals(config: RunConfig, prompts: Sequence[RenderedPrompt]) -> Iterator[Refusal]:
    contexts = [teacher.context for teacher in teachers_of(config).values() if teacher.context is not None]
    if any(ContextTemplate(context).waits_for for context in contexts):
        return  # it comes with the responses
    if config.objective.gate.only_with_context and not any(item.has_context for item in prompts):
        fix = (
            "no prompt has a context that only the teacher sees, so nothing would be learned; set teacher.context, "
            "give the prompts a privileged_context column, or set false"
        )
        yield Refusal("objective.gate.only_with_context", True, fix)


def _length_refusals(
    config: RunConfig,
    rendered: Mapping[str, Sequence[RenderedPrompt]],
    kept: Mapping[str, Sequence[RenderedPrompt]],
) -> Iterator[Refusal]:
    """Refuse prompts that do not fit, where that is asked for, and splits without one that does."""
    limit = config.rollout.max_model_len
    for name, items in rendered.items():
        longest = max(items, key=lambda item: _length(item, config))
        if len(kept[name]) < len(items) and config.data.over_length is Unusable.refuse:
            fix = (
                f"prompt {longest.prompt.id!r} of data.{name} needs {_length(longest, config)} tokens with its "
                "response; raise it, or set data.over_length=drop to leave such prompts out"
            )
            yield Refusal("rollout.max_model_len", limit, fix)
        elif not kept[name]:
            yield Refusal("rollout.max_model_len", limit, f"no prompt of data.{name} fits with its response; raise it")


def _length(item: RenderedPrompt, config: RunConfig) -> int:
    """Most tokens that a prompt and all that may follow it take; a first answer is also evaluated."""
    lengths = []
    for prompt, between in (
        (item.student_ids, [follow_up.ids for follow_up in item.follow_ups]),
        (item.teacher_ids, item.teacher_follow_ups),
    ):
        conversation = (1 + len(between)) * config.sampling.max_tokens + sum(map(len, between))
        lengths.append(len(prompt) + max(conversation, config.evaluation.max_tokens))
    return max(lengths)


def _same_model_refusals(config: RunConfig, models: Models, prompts: Sequence[Prompt]) -> Iterator[Refusal]:
    """Refuse a teacher that has the student's own weights and sees no more than it.

    That holds for an average of them as well: where both begin alike nothing ever moves them apart.
    """
    selects = config.cold_start.only_correct and config.data.is_graded
    if STAGES[config.stage].collects and selects:
        return  # the teacher's own correct answers are something to learn from
    for key, prepared in models.teachers.items():
        teacher = teachers_of(config)[key]
        scored = [prompt for prompt in prompts if prompt.teacher == key]
        differs = kind_of(teacher).is_remote(teacher) or prepared.path != models.student_path
        told = teacher.context or any(prompt.privileged_context for prompt in scored)
        if scored and not differs and not told:
            fix = (
                "the same weights as student.model and no teacher-only context, so there is nothing to learn; set "
                f"{teacher_setting(key)}.context, give the prompts a privileged_context column, or choose another "
                "teacher"
            )
            yield Refusal(f"{teacher_setting(key)}.model", teacher.model, fix)

"""The second pass over a run's files: its prompts are read, routed, rendered for student and teachers, and checked."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
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
from tutelage.chat import Chat, Rendering, seen_by_student, seen_by_teacher
from tutelage.records.prompt import Prompt, RenderedPrompt
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
    from_data = learns_from_data(config)
    if from_data:
        refusals.extend(_completion_refusals(config.data, prompts["train"]))
    refusals.raise_all()
    student, chats = make_chats(config, models.tokenizer, models.teachers)
    renderer, rendered = Renderer(teachers, student, chats, config.data.system_prompt), {}
    for chat in {id(chat): chat for chat in (student, *chats.values())}.values():
        with refusals.collecting():
            chat.check()
    for name in prompts:
        with refusals.collecting():
            rendered[name] = renderer.render(prompts[name], from_data and name == "train")
            renderer.check_contexts(prompts[name][0])
    for name, items in rendered.items():
        refusals.extend(_row_refusals(models, items, f"data.{name}"))
    refusals.raise_all()
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
        self, teachers: Mapping[str, TeacherConfig], student: Chat, chats: Mapping[str, Chat], system_prompt: str | None
    ) -> None:
        """
        Args:
            teachers: settings by key, mixtures included.
            student: how the student reads conversations.
            chats: how the teachers that answer for themselves do, by key.
        """
        self._teachers, self._student, self._chats = teachers, student, chats
        self._system_prompt = system_prompt

    def render(self, prompts: Sequence[Prompt], completions: bool = False) -> list[RenderedPrompt]:
        """Render prompts, all of them together.

        Args:
            completions: render the data's own responses as well; every prompt has one.

        Raises:
            ConfigError: one cannot be rendered, or a teacher's context has a field that it has not.
        """
        seen = [seen_by_student(prompt, self._system_prompt) for prompt in prompts]
        rendered = self._student.render(seen, completions)
        views: list[dict[str, tuple[Prompt, Rendering]]] = [{} for _ in prompts]  # by teacher, of each prompt
        for key, chat in self._chats.items():
            asked = [place for place, prompt in enumerate(prompts) if key in self._members(prompt)]
            told = {place: self._seen_by(key, prompts[place]) for place in asked}
            own = {place: view for place, view in told.items() if chat is not self._student or view != seen[place]}
            written = dict(zip(own, chat.render(list(own.values())), strict=True))
            for place, view in told.items():
                views[place][key] = view, written.get(place, rendered[place])
        return [
            self._joined(prompt, as_student, rendering, views[place])
            for place, (prompt, as_student, rendering) in enumerate(zip(prompts, seen, rendered, strict=True))
        ]

    def check_contexts(self, prompt: Prompt) -> None:
        """Refuse a teacher whose template cannot show it what waits for a response.

        Raises:
            ConfigError: so is one.
        """
        for key, teacher in self._teachers.items():
            template = ContextTemplate(teacher.context or "")
            if template.waits_for:
                filled = template.filled(dict.fromkeys(template.fields, "0"))
                self._chats[key].render([replace(seen_by_teacher(prompt, filled, self._system_prompt), follow_ups=())])

    def _members(self, prompt: Prompt) -> Collection[str]:
        """The teachers that answer for a prompt's, by key."""
        return (self._teachers[prompt.teacher].mixture or (prompt.teacher,)) if self._teachers else ()

    def _seen_by(self, key: str, prompt: Prompt) -> Prompt:
        """The prompt as a teacher sees it before there is any response to it; a mixture's reads the student's turns."""
        view = seen_by_teacher(prompt, _context(prompt, key, self._teachers[key]), self._system_prompt)
        return view if len(self._members(prompt)) == 1 else replace(view, follow_ups=())

    def _joined(
        self, prompt: Prompt, seen: Prompt, student: Rendering, views: Mapping[str, tuple[Prompt, Rendering]]
    ) -> RenderedPrompt:
        item = RenderedPrompt(prompt, student.ids, student.ids, student.completion_ids, follow_ups=student.follow_ups)
        if not views:
            return item
        (_, first), several = next(iter(views.values())), len(views) > 1
        return replace(
            item,
            teacher_ids=max((rendering.ids for _, rendering in views.values()), key=len),
            views={key: rendering.ids for key, (_, rendering) in views.items()} if several else {},
            teacher_follow_ups=student.follow_ups if several else first.follow_ups,
            has_context=any(view.messages != seen.messages for view, _ in views.values()),
        )


def make_chats(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, teachers: Mapping[str, PreparedTeacher]
) -> tuple[Chat, dict[str, Chat]]:
    """How the student reads conversations, and how the teachers do that answer for themselves, by key."""
    time, kwargs = config.data.template_time, config.student.chat_template_kwargs
    student, chats = Chat(tokenizer, kwargs, time), {}
    for key, prepared in teachers.items():
        own = teachers_of(config)[key].chat_template_kwargs
        alike = prepared.tokenizer is tokenizer and own == kwargs
        chats[key] = student if alike else Chat(prepared.tokenizer, own, time, teacher_setting(key))
    return student, chats


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


def _completion_refusals(data: DataConfig, prompts: Sequence[Prompt]) -> Iterator[Refusal]:
    """Refuse to learn from the data's own responses where there is none."""
    without = next((prompt.id for prompt in prompts if prompt.completion is None), None)
    if without is not None:
        fix = (
            f"training prompt {without!r} has no completion; set data.train.completion_column="
            f"{data.train.completion_column} to the column of the responses, end the messages with the assistant's, or "
            "set objective.sequences.other_source=teacher"
        )
        yield Refusal("objective.sequences.other_source", "dataset", fix)


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


def _row_refusals(models: Models, items: Sequence[RenderedPrompt], key: str) -> Iterator[Refusal]:
    """Refuse text that becomes ids without an embedding, as that of a token for pictures does in a text model."""
    rows = {teacher: prepared.rows for teacher, prepared in models.teachers.items()}
    for item in items:
        own = [item.student_ids, *(turn.ids for turn in item.follow_ups)]
        own += [] if item.completion_ids is None else [item.completion_ids]
        told = [item.teacher_ids, *(turn.ids for turn in item.teacher_follow_ups)]
        read = [(models.rows, ids) for ids in own]
        read += [(rows.get(item.prompt.teacher, math.inf), ids) for ids in told]
        read += [(rows[teacher], ids) for teacher, ids in item.views.items()]
        beyond = next((ids[ids >= most][0] for most, ids in read if (ids >= most).any()), None)
        if beyond is not None:
            fix = f"its text becomes id {beyond}, for which the model has no embedding; take that token out of it"
            yield Refusal(key, f"prompt {item.prompt.id!r}", fix)
            return


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
        (item.teacher_ids, [follow_up.ids for follow_up in item.teacher_follow_ups]),
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

"""Prompts as token ids, for the student and for its teacher.

Both renderings end where the response begins, and response ids are appended to them verbatim, so position t of
the teacher is about response_ids[t] whatever its context. With x the conversation and c the teacher-only context:

    student   [system] x            generation prompt ─► response ids
    teacher   [system + c] x        generation prompt ─► the same response ids

System message of the student: the conversation's own if it has one, else the configured one, else none.
System message of the teacher: the student's, a blank line, then c: a prompt's own context wins over the
teacher's. There is one system message, because many chat templates take no second one. A template that inserts a
default system message of its own (SmolLM2's does) does so only where there is none.

A template's rendering of a whole conversation is what counts. A response of the data's own is what the template writes
after the prompt where that response follows, up to the end of its turn. Further turns are what it writes behind an
answer; the end of the answer's turn is left out there, since a sampled answer has ended itself, by whatever token. A
template that does not show all that it is given, or that writes earlier turns in another way once there are later ones,
is refused.

A base model without a chat template sees plain text: system text and contents joined by blank lines; its answers end
with EOS.

The BOS token is there exactly once if the tokenizer adds one to text, and not at all otherwise.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tutelage import templates
from tutelage.records.prompt import Message, Prompt
from tutelage.records.trajectory import STUDENT_ROLE, FollowUp
from tutelage.settings import TEMPLATE_TIME, ConfigError, Refusal
from tutelage.templates import Unrenderable, Writing

NAMING = (
    "name",
    "tool_call_id",
    "id",
)  # of messages: what templates may leave out, since they have no text of their own
_RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message", "strftime_now", "raise_exception")
_SEPARATOR = "\n\n"
_STAND_IN = "0answer0answer0"  # nothing that a template would trim or take for a thought
_THOUGHT = "0thought0thought0"
_ASKS = (Message("user", "?"), Message(STUDENT_ROLE, _STAND_IN))

Writer = Generator[list[Writing], list[str | Unrenderable], "Rendering"]


@dataclass(frozen=True)
class Rendering:
    """A prompt in token ids, as one model reads it."""

    ids: NDArray[np.int32]  # [P]
    follow_ups: tuple[FollowUp, ...] = ()
    completion_ids: NDArray[np.int32] | None = None  # [T], the data's own response, where that was asked for


@dataclass(frozen=True, eq=False)
class Chat:
    """How a model reads conversations: its tokenizer, its chat template, and what the template is told."""

    tokenizer: PreTrainedTokenizerBase
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # of its settings; a prompt's own win over them
    time: str = TEMPLATE_TIME
    setting: str = "student"  # full name of the model's settings, for messages

    def check(self) -> None:
        """Refuse arguments that the template never asks for.

        Raises:
            ConfigError: naming each.
        """
        key = f"{self.setting}.chat_template_kwargs"
        refusals = [Refusal(f"{key}.{name}", self.kwargs[name], why) for name, why in self._unknown(self.kwargs)]
        if refusals:
            raise ConfigError(*refusals)

    def render(self, prompts: Sequence[Prompt], completions: bool = False) -> list[Rendering]:
        """Render prompts whose messages are as this reader sees them, all of them together.

        Args:
            completions: render the data's own responses as well; every prompt has one.

        Raises:
            ConfigError: a prompt cannot be rendered, or would be shown in part or in another way than it is.
        """
        if not self.tokenizer.chat_template:
            return [self._plain(prompt, completions) for prompt in prompts]
        return templates.run_together([self._write(prompt, completions) for prompt in prompts])

    def text(self, messages: Sequence[Message], opens_answer: bool = True) -> str:
        """Write a conversation of nobody's in particular, by the chat template.

        Raises:
            Unrenderable: the template refuses it, or runs into a limit.
        """
        (text,) = templates.render([self._job(Prompt("", tuple(messages)), messages, opens_answer)])
        if isinstance(text, Unrenderable):
            raise text
        return text

    @cached_property
    def ending(self) -> str:
        """What the template writes behind an answer; empty where it writes nothing, or shows no answer."""
        try:
            _, shown, rest = self.text(_ASKS, opens_answer=False).rpartition(_STAND_IN)
        except Unrenderable:
            return ""
        return rest if shown else ""

    @cached_property
    def end_of_answer(self) -> int | None:
        """The special token that the chat template writes behind an answer; None where it writes none.

        Without a template it is the tokenizer's EOS. Some models end a turn with another token than a text.
        """
        if not self.tokenizer.chat_template:
            return self.tokenizer.eos_token_id
        return next((token for token in self._ids(self.ending) if token in self._special), None)

    # ---- what a template makes of a prompt ------------------------------------------------------------------------

    def _write(self, prompt: Prompt, completions: bool) -> Writer:
        for name, why in self._unknown(prompt.template_kwargs):
            raise self._refusal(prompt, f"chat_template_kwargs.{name} of its row {why}")
        (text,) = yield from self._written(prompt, [self._job(prompt, prompt.messages)])
        if not text:
            raise self._refusal(prompt, "renders to no token at all; give it some text")
        yield from self._check_shown(prompt, text)
        follow_ups = yield from self._further_turns(prompt, text)
        completion_ids = (yield from self._completion(prompt, text)) if completions else None
        return Rendering(self._with_single_bos(self._ids(text), prompt), follow_ups, completion_ids)

    def _completion(
        self, prompt: Prompt, text: str
    ) -> Generator[list[Writing], list[str | Unrenderable], NDArray[np.int32]]:
        """What follows the prompt where the data's own response does, up to the end of its turn, [T]."""
        answer = self._completion_of(prompt)
        bare = replace(prompt, messages=(*prompt.messages, answer))
        (shown,) = yield from self._written(prompt, [self._job(bare, bare.messages, opens_answer=False)])
        yield from self._check_shown(bare, shown, only=len(prompt.messages), opens_answer=False)
        rest = shown.removeprefix(text)
        written = rest.removesuffix(self.ending) if self.ending else rest
        if (
            not shown.startswith(text)
            or not rest.endswith(self.ending)
            or _folded(answer.content) not in _folded(written)
        ):
            fix = (
                "the chat template does not write the data's response behind the prompt as it is (it leaves a part out "
                "or begins the answer in another way); give the responses in the template's own "
                "form, or the model a chat_template that keeps them"
            )
            raise self._refusal(prompt, fix)
        ids, behind = self._ids(rest), self._ids(self.ending)
        last = next((place for place, token in enumerate(behind) if token in self._special), None)
        if last is None:
            return self._ended(ids)
        return np.array(ids[: len(ids) - (len(behind) - last - 1)], dtype=np.int32)

    def _completion_of(self, prompt: Prompt) -> Message:
        """The data's own response, without an end that it brings along itself."""
        ends = {self.tokenizer.eos_token, self.end_of_answer and self.tokenizer.decode([self.end_of_answer])}
        content = prompt.completion or ""
        for end in ends - {None}:
            content = content.removesuffix(end)
        return Message(STUDENT_ROLE, content, prompt.completion_more)

    def _further_turns(
        self, prompt: Prompt, text: str
    ) -> Generator[list[Writing], list[str | Unrenderable], tuple[FollowUp, ...]]:
        """What stands between two answers, whose own ids stay as they are sampled."""
        plain = _conversations(prompt, _STAND_IN)
        thinking = _conversations(prompt, f"<think>\n{_THOUGHT}\n</think>\n\n{_STAND_IN}")
        jobs = [self._job(prompt, messages) for messages in (*plain, *thinking)]
        if not jobs:
            return ()
        written = yield from self._written(prompt, jobs)
        rendered: list[FollowUp] = []
        for turn, (asked, shown) in enumerate(zip(prompt.follow_ups, written, strict=False)):
            thoughts = written[len(plain) + turn].count(_THOUGHT)
            if not _folded(shown).startswith(_folded(text) + _STAND_IN):
                why = "writes what came before it in another way than when that was said"
            elif thoughts <= turn:
                why = "leaves the thoughts (<think> … </think>) of earlier answers out"
            else:
                why = ""
            if why:
                fix = (
                    f"with follow-up {turn + 1} the chat template of {self.tokenizer.name_or_path} {why}, so this "
                    "conversation cannot be held turn by turn; use a model whose chat_template keeps earlier turns as "
                    "they were, or prompts of one turn"
                )
                raise self._refusal(prompt, fix)
            ids = self._ids(shown.rpartition(_STAND_IN)[2])
            first = next((place for place, token in enumerate(ids) if token in self._special), None)
            ends = first is not None and ids[first] in (self.end_of_answer, self.tokenizer.eos_token_id)
            closing = first + 1 if first is not None and ends else 0
            rendered.append(FollowUp(asked.role, asked.content, np.array(ids, dtype=np.int32), closing))
            text = shown
        return tuple(rendered)

    def _check_shown(
        self, prompt: Prompt, text: str, only: int | None = None, opens_answer: bool = True
    ) -> Generator[list[Writing], list[str | Unrenderable], None]:
        """Refuse a template that leaves something of a prompt out: it writes the same without it.

        Args:
            only: the message to look at; None: all of them, and the tools.
        """
        without: dict[str, Writing] = {}  # by what is left out
        for index, message in enumerate(prompt.messages):
            if only not in (None, index):
                continue
            place, others = f"message {index + 1} ({message.role})", list(prompt.messages)
            for name in message.more.keys() - set(NAMING):
                others[index] = replace(
                    message, more={key: value for key, value in message.more.items() if key != name}
                )
                without[f"{name} of {place}"] = self._job(prompt, others, opens_answer)
            if _folded(message.content) not in _folded(text):
                others[index] = replace(message, content=message.content + _STAND_IN)
                without[place] = self._job(prompt, others, opens_answer)
        if prompt.tools and only is None:
            without["tools"] = self._job(replace(prompt, tools=()), prompt.messages, opens_answer)
        if not without:
            return
        variants = yield from self._written(prompt, list(without.values()))
        hidden = [what for what, variant in zip(without, variants, strict=True) if variant == text]
        if hidden:
            fix = (
                f"the chat template of {self.tokenizer.name_or_path} does not show {', '.join(hidden)}; use a model "
                "whose chat_template does, or leave it out of the data and settings (data.system_prompt and "
                "teacher.context are system messages)"
            )
            raise self._refusal(prompt, fix)

    def _unknown(self, kwargs: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Names that change nothing, and why."""
        reserved = "is set by the framework; leave it out"
        unasked = (
            f"is nothing that the chat template of {self.tokenizer.name_or_path} asks for, so it is idle; leave it "
            "out, or use a model whose chat_template has it"
        )
        others = kwargs.keys() - set(_RESERVED)
        unknown = sorted(others - self._variables) if others else []
        return [(name, reserved) for name in kwargs if name in _RESERVED] + [(name, unasked) for name in unknown]

    @cached_property
    def _variables(self) -> frozenset[str]:
        template = self.tokenizer.chat_template or ""
        try:
            named = template.values() if isinstance(template, dict) else [template]
            return frozenset().union(*(templates.variables_of(text) for text in named))
        except Unrenderable as why:
            raise ConfigError(Refusal(f"{self.setting}.model", self.tokenizer.name_or_path, _broken(why))) from None

    # ---- from text to ids -------------------------------------------------------------------------------------------

    def _plain(self, prompt: Prompt, completions: bool) -> Rendering:
        """A prompt for a model without a chat template."""
        more = [name for message in prompt.messages for name in message.more.keys() - set(NAMING)]
        more += [*prompt.completion_more] if completions else []
        for what in (*more, *(["tools"] if prompt.tools else []), *prompt.template_kwargs):
            raise self._refusal(
                prompt, f"the model has no chat template, which alone could show {what}; give it one, or leave it out"
            )
        text = _SEPARATOR.join(message.content for message in prompt.messages)
        follow_ups = tuple(
            FollowUp(m.role, m.content, np.array(self._ids(_SEPARATOR + m.content), dtype=np.int32))
            for m in prompt.follow_ups
        )
        completion_ids = self._ended(self._ids(prompt.completion or "")) if completions else None
        return Rendering(self._with_single_bos(self._ids(text), prompt), follow_ups, completion_ids)

    def _ended(self, ids: list[int]) -> NDArray[np.int32]:
        end = [] if ids and ids[-1] == self.tokenizer.eos_token_id else [self.tokenizer.eos_token_id]
        return np.array([*ids, *end], dtype=np.int32)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _with_single_bos(self, ids: list[int], prompt: Prompt) -> NDArray[np.int32]:
        """Exactly one leading BOS if the tokenizer begins text with one; templates may or may not have written it."""
        if self._begins_texts:
            bos = self.tokenizer.bos_token_id
            start = next((i for i, token in enumerate(ids) if token != bos), len(ids))
            ids = [bos, *ids[start:]]
        if not ids:
            raise self._refusal(prompt, "renders to no token at all; give it some text")
        return np.array(ids, dtype=np.int32)

    @cached_property
    def _begins_texts(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][0] == bos

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset({*self.tokenizer.all_special_ids, *(token for token, entry in added if entry.special)})

    # ---- to the template and back -----------------------------------------------------------------------------------

    def _job(self, prompt: Prompt, messages: Sequence[Message], opens_answer: bool = True) -> Writing:
        return Writing(
            template=self.tokenizer.get_chat_template(tools=list(prompt.tools) or None),
            messages=[{"role": m.role, "content": m.content, **m.more} for m in messages],
            time=self.time,
            tools=prompt.tools,
            tokens=self._named_tokens,
            variables={**self.kwargs, **prompt.template_kwargs},
            opens_answer=opens_answer,
        )

    @cached_property
    def _named_tokens(self) -> dict[str, Any]:
        named = self.tokenizer.special_tokens_map.items()
        return {name: [*map(str, token)] if isinstance(token, list) else str(token) for name, token in named}

    def _written(
        self, prompt: Prompt, jobs: list[Writing]
    ) -> Generator[list[Writing], list[str | Unrenderable], list[str]]:
        """
        Raises:
            ConfigError: the template refuses a conversation, or runs into a limit.
        """
        texts: list[str] = []
        for job, text in zip(jobs, (yield jobs), strict=True):
            if isinstance(text, Unrenderable):
                roles = [message["role"] for message in job.messages]
                raise self._refusal(prompt, f"of roles {roles}: {_broken(text)}")
            texts.append(text)
        return texts

    def _refusal(self, prompt: Prompt, fix: str) -> ConfigError:
        return ConfigError(
            Refusal(f"{self.setting}.model", self.tokenizer.name_or_path, f"prompt {prompt.id!r}: {fix}")
        )


def _broken(why: Unrenderable) -> str:
    return (
        f"the model's chat template refuses it ({why}); use a model whose template takes it (teacher.context and "
        "data.system_prompt need a system role)"
    )


def _conversations(prompt: Prompt, answer: str) -> list[list[Message]]:
    """The conversation up to each of its further turns, with stand-ins for the answers."""
    return [
        [*prompt.messages, *(m for said in prompt.follow_ups[:turns] for m in (Message(STUDENT_ROLE, answer), said))]
        for turns in range(1, len(prompt.follow_ups) + 1)
    ]


def _folded(text: str) -> str:
    return "".join(text.split())


def seen_by_student(prompt: Prompt, system_prompt: str | None) -> Prompt:
    """Give the conversation its system message, the configured one if it has none of its own."""
    if not system_prompt or prompt.messages[0].role == "system":
        return prompt
    return replace(prompt, messages=(Message("system", system_prompt), *prompt.messages))


def seen_by_teacher(prompt: Prompt, context: str | None, system_prompt: str | None) -> Prompt:
    """Put the privileged context at the end of the student's system message; without any, equal to the student's.

    Args:
        context: of the teacher; the prompt's own `privileged_context` wins over it.
        system_prompt: of the student.
    """
    seen = seen_by_student(prompt, system_prompt)
    context = prompt.privileged_context or context
    if not context:
        return seen
    first, others = seen.messages[0], seen.messages[1:]
    if first.role != "system":
        return replace(seen, messages=(Message("system", context), *seen.messages))
    return replace(seen, messages=(replace(first, content=first.content + _SEPARATOR + context), *others))


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Find the special token that the chat template writes behind an answer; None where it writes none."""
    return Chat(tokenizer).end_of_answer


def after_answer(answer_ids: NDArray[np.int32], follow_up: FollowUp) -> NDArray[np.int32]:
    """Leave the end of the turn out of what follows an answer that has ended itself, [L]."""
    return follow_up.ids[follow_up.closing :] if len(answer_ids) else follow_up.ids

"""Prompts as token ids, for the student and for its teacher.

Both renderings end where the response begins, and response ids are appended to them verbatim, so position t of
the teacher is about response_ids[t] whatever its context. With x the conversation and c the teacher-only context:

    student   [system] x            generation prompt ─► response ids
    teacher   [system + c] x        generation prompt ─► the same response ids

A response of the data's own is its text and the tokenizer's EOS, as a model that ends its turn would write it.

System message of the student: the conversation's own if it has one, else the configured one, else none.
System message of the teacher: the student's, a blank line, then c: a prompt's own context wins over the
teacher's. There is one system message, because many chat templates take no second one. A template that inserts a
default system message of its own (SmolLM2's does) does so only where there is none.

Further turns follow an answer as the template would write them after it: its own end of the answer's turn (left out
where the answer ends with it), the other side's turn, and the generation prompt.

A base model without a chat template sees plain text: system text and contents joined by blank lines.

The BOS token is there exactly once if the tokenizer adds one to text, and not at all otherwise.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tutelage.records.prompt import Message, Prompt
from tutelage.records.trajectory import STUDENT_ROLE

_SEPARATOR = "\n\n"
_STAND_IN = "0answer0answer0"  # nothing that a template would trim or take for a thought


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, system_prompt: str | None = None
) -> NDArray[np.int32]:
    """Render a prompt for the student, [P].

    Raises:
        ValueError: the chat template refuses the conversation, or there is nothing to render.
    """
    return _encode(tokenizer, prompt, student_messages(prompt, system_prompt))


def render_teacher_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    context: str | None = None,
    system_prompt: str | None = None,
) -> NDArray[np.int32]:
    """Render a prompt for its teacher, [P]: without any context, equal to the student's.

    Args:
        context: of the teacher; the prompt's own `privileged_context` wins over it.
        system_prompt: of the student.

    Raises:
        ValueError: as `render_prompt`.
    """
    return _encode(tokenizer, prompt, teacher_messages(prompt, context, system_prompt))


def render_completion(tokenizer: PreTrainedTokenizerBase, text: str) -> NDArray[np.int32]:
    """Render a response from its text, [T], its EOS included; the tokenizer must have one (`stop_token_ids`)."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = [] if ids and ids[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
    return np.array([*ids, *end], dtype=np.int32)


def render_follow_ups(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, messages: Sequence[Message], follow_ups: Sequence[Message]
) -> tuple[NDArray[np.int32], ...]:
    """Render what stands between two answers, for each of the `follow_ups`: from the end of an answer's text on.

    The answers themselves are never rendered: their ids stay as they were sampled.

    Args:
        messages: what the first answer answers, as this reader sees it.

    Raises:
        ValueError: the chat template refuses the conversation, or does not show a stand-in for an answer as it is.
    """
    rendered: list[NDArray[np.int32]] = []
    conversation = list(messages)
    for follow_up in follow_ups:
        conversation += [Message(STUDENT_ROLE, _STAND_IN), follow_up]
        if tokenizer.chat_template:
            _, shown, rest = _chat_text(tokenizer, prompt, conversation).rpartition(_STAND_IN)
        else:
            shown, rest = _STAND_IN, _SEPARATOR + follow_up.content
        if not shown:
            raise ValueError(
                f"prompt {prompt.id!r}: the chat template of {tokenizer.name_or_path} does not show an earlier answer "
                "as it was, so several turns cannot be rendered; use a model whose template does"
            )
        rendered.append(np.array(tokenizer(rest, add_special_tokens=False)["input_ids"], dtype=np.int32))
    return tuple(rendered)


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Find the special token that the chat template writes behind an answer; None where it writes none.

    Without a template it is the tokenizer's EOS. Some models end a turn with another token than a text.
    """
    if not tokenizer.chat_template:
        return tokenizer.eos_token_id
    messages = [{"role": "user", "content": "?"}, {"role": STUDENT_ROLE, "content": _STAND_IN}]
    try:
        _, shown, rest = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(_STAND_IN)
    except TemplateError:
        return None
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if shown else []
    special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    return next((token for token in ids if token in special), None)


def generation_ends(path: str) -> frozenset[int]:
    """Read the ids that end a response by a checkpoint's generation config, as vLLM reads it.

    Those of its config.json where it has no generation config; none of a tokenizer's folder, which has neither.
    """
    if Path(path, "generation_config.json").is_file():
        ends = GenerationConfig.from_pretrained(path).eos_token_id
    elif not Path(path, "config.json").is_file():
        return frozenset()
    else:
        settings, _ = PreTrainedConfig.get_config_dict(path)
        kind = settings.get("model_type")  # of a type that comes with code: what is written in the file is enough
        config_class = CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else PreTrainedConfig  # noqa: SIM401, its get is empty
        ends = GenerationConfig.from_model_config(config_class.from_dict(settings)).eos_token_id
    return frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_ids: Collection[int]) -> frozenset[int]:
    """Collect the ids that end a response in the engine: the tokenizer's EOS and those of the generation config.

    Raises:
        ValueError: there is none, so that no response would ever end.
    """
    ids = frozenset({tokenizer.eos_token_id, *generation_ids} - {None})
    if not ids:
        raise ValueError(
            f"model {tokenizer.name_or_path!r} has no EOS token; set eos_token in its tokenizer_config.json or "
            "eos_token_id in its generation_config.json"
        )
    return ids


def after_answer(answer_ids: NDArray[np.int32], follow_up_ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """Leave the end of the turn out of what follows an answer, where the answer has it already."""
    ended = len(answer_ids) > 0 and len(follow_up_ids) > 0 and answer_ids[-1] == follow_up_ids[0]
    return follow_up_ids[1:] if ended else follow_up_ids


def student_messages(prompt: Prompt, system_prompt: str | None) -> tuple[Message, ...]:
    """Give the conversation its system message, the configured one if it has none of its own."""
    if not system_prompt or prompt.messages[0].role == "system":
        return prompt.messages
    return (Message("system", system_prompt), *prompt.messages)


def teacher_messages(prompt: Prompt, context: str | None, system_prompt: str | None) -> tuple[Message, ...]:
    """Put the privileged context at the end of the student's system message."""
    messages = student_messages(prompt, system_prompt)
    context = prompt.privileged_context or context
    if not context:
        return messages
    if messages[0].role != "system":
        return (Message("system", context), *messages)
    return (Message("system", messages[0].content + _SEPARATOR + context), *messages[1:])


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, messages: Sequence[Message]) -> NDArray[np.int32]:
    if tokenizer.chat_template:
        text = _chat_text(tokenizer, prompt, messages)
    else:
        text = _SEPARATOR.join(message.content for message in messages)
    ids = _with_single_bos(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise ValueError(f"prompt {prompt.id!r} renders to no token at all; give it some text")
    return np.array(ids, dtype=np.int32)


def _chat_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, messages: Sequence[Message]) -> str:
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(
            f"prompt {prompt.id!r}: the model's chat template refuses roles "
            f"{[message.role for message in messages]} ({error}); use a model whose template has them "
            "(teacher.context and data.system_prompt need a system role)"
        ) from error


def _with_single_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Exactly one leading BOS if the tokenizer begins text with one; templates may or may not have written it."""
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("a")["input_ids"][0] != bos:
        return ids
    start = next((i for i, token in enumerate(ids) if token != bos), len(ids))
    return [bos, *ids[start:]]

"""Renderings against the templates' own, for several families: whatever is not refused is what the template writes."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.chat_templates import FAMILIES, tokenizer_of
from tests.factories import student_reads, teacher_reads
from tutelage.chat import Chat, after_answer
from tutelage.records.prompt import Message, Prompt
from tutelage.records.trajectory import STUDENT_ROLE

# No white space around, which some templates trim; it stays in an answer as it was sampled.
WORDS = st.text("abcXYZ 0159.,!?éß好\n'\"{}", min_size=1, max_size=30).map(str.strip).filter(bool)
TALKS = ("chatml", "base_of_chatml", "llama3", "mistral", "mistral_v3", "gemma", "phi", "deaf")
TIME = "2025-07-04"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string"}}}}
QUESTION = Prompt("q", (Message("user", "How warm is it?"),))

chat_of = cache(lambda family: Chat(tokenizer_of(family), time=TIME))


def whole_text(tokenizer: PreTrainedTokenizerFast, messages: list[tuple[str, str]], opens: bool) -> str:
    return tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        tokenize=False, add_generation_prompt=opens, strftime_now=lambda _: "04 Jul 2025",
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=10, deadline=None)
@given(question=WORDS, answer=WORDS)
def test_prompt_and_completion_are_what_the_template_makes_of_both(family: str, question: str, answer: str) -> None:
    chat = chat_of(family)
    tokenizer, end = chat.tokenizer, FAMILIES[family].end
    prompt = Prompt("p", (Message("user", question),), completion=answer)
    (rendering,) = chat.render([prompt], completions=True)
    assert rendering.completion_ids is not None
    written = tokenizer.decode(rendering.ids) + tokenizer.decode(rendering.completion_ids)
    said = [("user", question), (STUDENT_ROLE, answer)]
    assert tokenizer.decode(rendering.ids) == whole_text(tokenizer, said[:1], opens=True)
    whole = whole_text(tokenizer, said, opens=False)
    assert whole.startswith(written) and written.endswith(end)
    assert end not in tokenizer.decode(rendering.completion_ids[:-1])


@pytest.mark.parametrize("family", TALKS)
@settings(max_examples=10, deadline=None)
@given(said=st.lists(st.tuples(WORDS, WORDS), min_size=2, max_size=4), data=st.data())
def test_turn_by_turn_is_the_template_of_the_whole_conversation(
    family: str, said: list[tuple[str, str]], data: st.DataObject
) -> None:
    """Answers are put in as they would be sampled; each ends itself, once, by whatever of the two ends it chooses."""
    chat, end = chat_of(family), FAMILIES[family].end
    tokenizer, ends = chat.tokenizer, {end, chat.tokenizer.eos_token}
    (first, _), *others = said
    follow_ups = tuple(Message("user", asked) for asked, _ in others)
    (rendering,) = chat.render([Prompt("p", (Message("user", first),), follow_ups=follow_ups)])
    opening = " " if "mistral" in family else ""  # what the template writes before an answer, models write themselves
    ids, messages = rendering.ids, [("user", first)]
    for follow_up, (_, answer), (asked, _) in zip(rendering.follow_ups, said, others, strict=False):
        chosen = data.draw(st.sampled_from(sorted(ends)))
        answered = tokenizer(opening + answer)["input_ids"] + [tokenizer.convert_tokens_to_ids(chosen)]
        before = len(ids)
        ids = np.concatenate([ids, answered, after_answer(np.array(answered), follow_up)])
        assert sum(tokenizer.decode(ids[before:]).count(token) for token in ends) == 1 + sum(
            tokenizer.decode(follow_up.ids[follow_up.closing :]).count(token) for token in ends
        )
        messages += [(STUDENT_ROLE, answer), ("user", asked)]
        expected = whole_text(tokenizer, messages, opens=True)
        shown = tokenizer.decode(ids).replace(tokenizer.eos_token, end)
        assert "".join(shown.split()) == "".join(expected.split())


@pytest.mark.parametrize(
    ("family", "system", "turn", "why"),
    [
        ("qwen3", None, 1, "thoughts"),
        ("r1", None, 1, "thoughts"),
        ("mistral_v3", "Be kind.", 1, "in another way"),
    ],
)
def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_turn(
    family: str, system: str | None, turn: int, why: str
) -> None:
    prompt = replace(QUESTION, follow_ups=(Message("user", "And now?"), Message("user", "And then?")))
    with pytest.raises(ValueError, match=rf"prompt 'q'.*follow-up {turn} .*{why}"):
        student_reads(tokenizer_of(family), prompt, system)


def test_a_conversation_without_thoughts_cannot_be_held_where_an_empty_one_is_dropped_later() -> None:
    chat = Chat(tokenizer_of("qwen3"), {"enable_thinking": False})
    with pytest.raises(ValueError, match=r"follow-up 1 .* in another way"):
        chat.render([replace(QUESTION, follow_ups=(Message("user", "And now?"),))])


@pytest.mark.parametrize(
    ("family", "why"), [("gemma", "System role not supported"), ("deaf", "does not show message 1")]
)
def test_a_template_that_does_not_show_a_context_is_refused(family: str, why: str) -> None:
    student_reads(tokenizer_of(family), QUESTION)
    with pytest.raises(ValueError, match=rf"prompt 'q'.*{why}.*teacher\.context"):
        teacher_reads(tokenizer_of(family), QUESTION, "Be brief.")


def test_the_clock_is_the_runs() -> None:
    tokenizer = tokenizer_of("llama3")
    (rendering,) = Chat(tokenizer, time=TIME).render([QUESTION])
    assert "Today Date: 04 Jul 2025" in tokenizer.decode(rendering.ids)


def test_thoughts_of_a_completion_are_kept_or_it_is_refused() -> None:
    tokenizer = tokenizer_of("qwen3")
    for prompt in (
        replace(QUESTION, completion="<think>\nHm.\n</think>\n\n4"),
        replace(QUESTION, completion="4", completion_more={"reasoning_content": "Hm."}),
    ):
        (rendering,) = Chat(tokenizer).render([prompt], completions=True)
        assert tokenizer.decode(rendering.completion_ids) == "<think>\nHm.\n</think>\n\n4<|im_end|>"
    with pytest.raises(ValueError, match=r"prompt 'q'.*does not write the data's response"):
        Chat(tokenizer_of("r1")).render([replace(QUESTION, completion="<think>\nHm.\n</think>\n\n4")], completions=True)
    with pytest.raises(ValueError, match=r"prompt 'q'.*does not show reasoning_content of message 2 \(assistant\)"):
        Chat(tokenizer_of("r1")).render(
            [replace(QUESTION, completion="4", completion_more={"reasoning_content": "Hm."})], completions=True
        )


def test_tools_are_shown_or_refused() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    asked = (
        *QUESTION.messages,
        Message("assistant", "", {"tool_calls": [call]}),
        Message("tool", "31 degrees", {"tool_call_id": "1", "name": "weather"}),
    )
    prompt = replace(QUESTION, messages=asked, tools=(WEATHER,))
    tokenizer = tokenizer_of("qwen3")
    text = tokenizer.decode(student_reads(tokenizer, prompt).ids)
    assert '"parameters": {"city"' in text and '"arguments": {"city": "Bonn"}' in text and "31 degrees" in text
    with pytest.raises(ValueError, match=r"does not show tool_calls of message 2 \(assistant\), tools;"):
        student_reads(tokenizer_of("chatml"), prompt)


def test_thoughts_of_an_earlier_answer_are_shown_or_refused() -> None:
    earlier = Message("assistant", "4", {"reasoning_content": "Hm."})
    prompt = replace(QUESTION, messages=(*QUESTION.messages, earlier, Message("user", "Sure?")))
    with pytest.raises(ValueError, match=r"does not show reasoning_content of message 2 \(assistant\)"):
        student_reads(tokenizer_of("qwen3"), prompt)


def test_arguments_of_templates_are_used_or_refused() -> None:
    tokenizer = tokenizer_of("qwen3")
    (plain, told) = Chat(tokenizer, {"enable_thinking": True}).render(
        [QUESTION, replace(QUESTION, template_kwargs={"enable_thinking": False})]
    )
    assert tokenizer.decode(told.ids) == tokenizer.decode(plain.ids) + "<think>\n\n</think>\n\n"
    Chat(tokenizer, {"enable_thinking": False}).check()
    with pytest.raises(ValueError, match=r"student\.chat_template_kwargs\.thinking=false: is nothing"):
        Chat(tokenizer, {"thinking": False}).check()
    with pytest.raises(ValueError, match=r"chat_template_kwargs\.messages.*set by the framework"):
        Chat(tokenizer, {"messages": []}).check()
    with pytest.raises(ValueError, match=r"prompt 'q'.*chat_template_kwargs\.thinking of its row"):
        student_reads(tokenizer, replace(QUESTION, template_kwargs={"thinking": False}))


def test_without_a_template_what_only_one_could_show_is_refused() -> None:
    plain = tokenizer_of("chatml")
    plain.chat_template = None
    for prompt in (
        replace(QUESTION, tools=(WEATHER,)),
        replace(QUESTION, template_kwargs={"enable_thinking": False}),
        replace(
            QUESTION, messages=(*QUESTION.messages, Message("assistant", "", {"tool_calls": [1]}), *QUESTION.messages)
        ),
    ):
        with pytest.raises(ValueError, match=r"prompt 'q'.*has no chat template, which alone could show"):
            student_reads(plain, prompt)
    with pytest.raises(ValueError, match=r"student\.chat_template_kwargs\.enable_thinking"):
        Chat(plain, {"enable_thinking": False}).check()

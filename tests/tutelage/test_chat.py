"""Renderings of both sides, on a chat tokenizer, on one that adds BOS, and on one without a template."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import processors
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from tests.factories import student_reads, teacher_reads
from tests.models import make_tokenizer
from tutelage.chat import Chat, end_of_answer
from tutelage.records.prompt import Message, Prompt
from tutelage.stops import generation_ends, stop_token_ids

QUESTION = Prompt("q", (Message("user", "Why is the sky blue?"),))
WITH_SYSTEM = Prompt("s", (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Yes?"),
                           Message("user", "Go on")))  # fmt: skip


def decode(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> str:
    return tokenizer.decode(ids)


def chat(*messages: tuple[str, str]) -> str:
    body = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages)
    return body + "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    plain = make_tokenizer()
    plain.chat_template = None
    return plain


@pytest.fixture(scope="module")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Begins every text with <|endoftext|>, as Llama's tokenizer does with its BOS."""
    with_bos = make_tokenizer()
    with_bos.bos_token = "<|endoftext|>"
    with_bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", with_bos.bos_token_id)]
    )
    return with_bos


def test_student_sees_the_conversation_and_a_generation_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = student_reads(tokenizer, QUESTION).ids
    assert ids.dtype == np.int32
    assert decode(tokenizer, ids) == chat(("user", "Why is the sky blue?"))


def test_system_prompt_is_a_default(tokenizer: PreTrainedTokenizerFast) -> None:
    assert decode(tokenizer, student_reads(tokenizer, QUESTION, "Rhyme.").ids) == chat(
        ("system", "Rhyme."), ("user", "Why is the sky blue?")
    )
    own = student_reads(tokenizer, WITH_SYSTEM, "Rhyme.").ids
    np.testing.assert_array_equal(own, student_reads(tokenizer, WITH_SYSTEM).ids)


def test_without_context_both_sides_are_equal(tokenizer: PreTrainedTokenizerFast) -> None:
    for prompt in (QUESTION, WITH_SYSTEM):
        for system in (None, "Rhyme."):
            student = student_reads(tokenizer, prompt, system).ids
            np.testing.assert_array_equal(student, teacher_reads(tokenizer, prompt, None, system).ids)


def test_context_is_for_the_teacher_only(tokenizer: PreTrainedTokenizerFast) -> None:
    teacher = decode(tokenizer, teacher_reads(tokenizer, QUESTION, "Be brief.").ids)
    assert teacher == chat(("system", "Be brief."), ("user", "Why is the sky blue?"))


def test_context_joins_the_system_message(tokenizer: PreTrainedTokenizerFast) -> None:
    teacher = decode(tokenizer, teacher_reads(tokenizer, WITH_SYSTEM, "Be brief.", "Rhyme.").ids)
    assert teacher == chat(
        ("system", "Be kind.\n\nBe brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Go on")
    )


def test_prompts_own_context_wins(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = Prompt("p", QUESTION.messages, privileged_context="The answer is scattering.")
    teacher = decode(tokenizer, teacher_reads(tokenizer, prompt, "Be brief.").ids)
    assert "scattering" in teacher and "brief" not in teacher
    assert "scattering" not in decode(tokenizer, student_reads(tokenizer, prompt).ids)


def test_base_model_sees_plain_text(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    assert decode(plain_tokenizer, student_reads(plain_tokenizer, QUESTION).ids) == "Why is the sky blue?"
    teacher = teacher_reads(plain_tokenizer, WITH_SYSTEM, "Be brief.").ids
    assert decode(plain_tokenizer, teacher) == "Be kind.\n\nBe brief.\n\nHi\n\nYes?\n\nGo on"


@pytest.mark.parametrize("start", ["", "<|endoftext|>", "<|endoftext|><|endoftext|>"])
@pytest.mark.parametrize("template", [True, False])
def test_bos_is_there_once(bos_tokenizer: PreTrainedTokenizerFast, start: str, template: bool) -> None:
    """Whether the template or the text itself brings none, one or two."""
    messages = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    bos_tokenizer.chat_template = messages if template else None
    ids = student_reads(bos_tokenizer, Prompt("b", (Message("user", start + "Hello"),))).ids
    assert ids.tolist().count(bos_tokenizer.bos_token_id) == 1
    assert ids[0] == bos_tokenizer.bos_token_id


def test_no_bos_where_the_tokenizer_adds_none(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    assert plain_tokenizer.bos_token_id not in student_reads(plain_tokenizer, QUESTION).ids


def test_template_without_system_role_is_explained(tokenizer: PreTrainedTokenizerFast) -> None:
    strict = make_tokenizer()
    strict.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ messages[-1]['content'] }}"
    )
    student_reads(strict, QUESTION)
    with pytest.raises(ValueError, match=r"prompt 'q'.*System role not supported.*teacher\.context"):
        teacher_reads(strict, QUESTION, "Be brief.")


def test_nothing_to_render(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="prompt 'e': renders to no token"):
        student_reads(plain_tokenizer, Prompt("e", (Message("user", ""),)))


def test_stop_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert stop_token_ids(tokenizer, []) == {2}
    assert stop_token_ids(tokenizer, [0]) == {0, 2}
    assert stop_token_ids(tokenizer, [0, 5]) == {0, 2, 5}
    without = make_tokenizer()
    without.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        stop_token_ids(without, [])


def completion(tokenizer: PreTrainedTokenizerFast, text: str, prompt: Prompt = QUESTION) -> np.ndarray:
    (rendering,) = Chat(tokenizer).render([replace(prompt, completion=text)], completions=True)
    assert rendering.completion_ids is not None
    return rendering.completion_ids


def test_a_completion_ends_its_turn_once(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = completion(tokenizer, "Light scatters.")
    assert ids.dtype == np.int32 and decode(tokenizer, ids) == "Light scatters.<|im_end|>"
    np.testing.assert_array_equal(completion(tokenizer, "Light scatters.<|im_end|>"), ids)
    assert decode(tokenizer, completion(tokenizer, "")) == "<|im_end|>"


def test_a_completion_has_no_bos(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    bos_tokenizer.chat_template = None
    assert completion(bos_tokenizer, "Hi")[0] != bos_tokenizer.bos_token_id


def test_a_completion_ends_as_the_template_ends_it_not_as_a_text_does() -> None:
    """A base model's EOS ends documents; its chat template ends turns."""
    base = make_tokenizer()
    base.eos_token = "<|endoftext|>"
    assert decode(base, completion(base, "4")) == "4<|im_end|>"
    assert decode(base, completion(base, "4<|endoftext|>")) == "4<|im_end|>"


def test_a_template_that_hides_earlier_answers_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    prompt = Prompt("p", (Message("user", "one"),), follow_ups=(Message("user", "two"),))
    with pytest.raises(ValueError, match=r"prompt 'p'.*follow-up 1.*turn by turn"):
        student_reads(tokenizer, prompt)


def test_a_base_model_reads_turns_as_plain_text(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = Prompt("p", (Message("user", "one"),), follow_ups=(Message("user", "two"),))
    (follow_up,) = student_reads(plain_tokenizer, prompt).follow_ups
    assert decode(plain_tokenizer, follow_up.ids) == "\n\ntwo" and follow_up.closing == 0


def test_the_end_of_an_answer_is_what_the_template_writes(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = make_tokenizer()
    assert end_of_answer(tokenizer) == tokenizer.eos_token_id == end_of_answer(plain_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} .<|endoftext|>{% endfor %}"
    assert end_of_answer(tokenizer) == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for template in ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "{{ raise_exception('no') }}"):
        tokenizer.chat_template = template
        assert end_of_answer(tokenizer) is None


def test_ends_are_read_as_the_engine_reads_them(tmp_path: Path) -> None:
    LlamaConfig(eos_token_id=7).save_pretrained(tmp_path)
    assert generation_ends(str(tmp_path)) == {7}
    GenerationConfig(eos_token_id=[3, 5]).save_pretrained(tmp_path)
    assert generation_ends(str(tmp_path)) == {3, 5}

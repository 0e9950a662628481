"""Tokenizers, templates and ends: what is well, and every planted fault."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from diagnostics.check import Check, Status
from diagnostics.preflight.tokenizers import check_bos, check_end_of_turn, check_templates, check_tokenizers
from tests.factories import student_reads
from tests.models import CHAT_TEMPLATE, make_tokenizer
from tutelage.chat import Chat
from tutelage.records.prompt import Message, Prompt
from tutelage.stops import StopClass, Swap, TurnEnds

END, BEGIN, PAD = 2, 1, 0
PROMPTS = [Prompt(f"p{i}", (Message("user", f"What is {i} and {i}?"),)) for i in range(4)]


@pytest.fixture
def student() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def swapped(first: str, second: str) -> PreTrainedTokenizerFast:
    """A tokenizer in which two tokens have each other's ids."""
    model = json.loads(make_tokenizer().backend_tokenizer.to_str())
    ids = model["model"]["vocab"]
    ids[first], ids[second] = ids[second], ids[first]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(model)), eos_token="<|im_end|>")


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_the_same_tokenizer_passes(student: PreTrainedTokenizerFast) -> None:
    checks = check_tokenizers(student, make_tokenizer())
    assert [check.status for check in checks] == [Status.passed] * 3
    assert "same 576 ids" in checks[0].seen


def test_swapped_ids_fail_and_are_named(student: PreTrainedTokenizerFast) -> None:
    (check,) = check_tokenizers(student, swapped("A", "B"))
    assert check.status is Status.failed and "2 tokens" in check.seen and "'A'" in check.seen and check.fix


def test_another_eos_warns_unless_the_run_reconciles_it_and_another_pad_warns(student: PreTrainedTokenizerFast) -> None:
    other = make_tokenizer()
    other.pad_token = "<|im_end|>"
    assert by_name(check_tokenizers(student, other))["special ids"].status is Status.warned
    other.eos_token = "<|endoftext|>"
    check = by_name(check_tokenizers(student, other))["special ids"]
    assert check.status is Status.warned and "eos_token_id 2 and 0" in check.seen and "sampling.stops" in check.fix
    for ends in (TurnEnds((0, 2), StopClass(0, (2,))), TurnEnds(swaps={"teacher": Swap(2, 0)})):
        check = by_name(check_tokenizers(student, other, ends))["special ids"]
        assert check.status is Status.passed and not check.fix


def test_the_same_ids_with_other_rules_of_cutting_warn(student: PreTrainedTokenizerFast) -> None:
    other = make_tokenizer()
    text = other.backend_tokenizer.to_str().replace('"add_prefix_space":false', '"add_prefix_space":true', 1)
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), eos_token="<|im_end|>", bos_token="<|im_start|>",
        pad_token="<|endoftext|>",
    )  # fmt: skip
    check = by_name(check_tokenizers(student, other))["text into tokens"]
    assert check.status is Status.warned and "from token 0 on" in check.seen


def test_equal_templates_pass_and_the_first_response_token_is_shown(student: PreTrainedTokenizerFast) -> None:
    checks = by_name(check_templates(Chat(student), Chat(make_tokenizer()), PROMPTS, None))
    assert {check.status for check in checks.values()} == {Status.passed}
    assert "<|im_start|>assistant" in checks["first response token"].seen


def test_a_teacher_of_another_template_passes_with_a_token_diff(student: PreTrainedTokenizerFast) -> None:
    teacher = make_tokenizer()
    teacher.chat_template = CHAT_TEMPLATE.replace("assistant\n{%", "assistant\n<think>\n{%")
    check = by_name(check_templates(Chat(student), Chat(teacher), PROMPTS, None))["chat templates"]
    assert check.status is Status.passed and "its own template, and 4 of 4 are other tokens" in check.seen
    assert "+'<think>" in check.seen and "The response begins after" in check.seen
    inside = by_name(check_templates(Chat(teacher), Chat(teacher), PROMPTS, None))["first response token"]
    assert inside.status is Status.passed and "inside a thinking part" in inside.seen


def test_a_template_that_opens_no_answer_warns(student: PreTrainedTokenizerFast) -> None:
    student.chat_template = CHAT_TEMPLATE.split("{% if")[0]
    check = by_name(check_templates(Chat(student), Chat(student), PROMPTS, None))["first response token"]
    assert check.status is Status.warned and "opens no answer" in check.seen


def test_a_teacher_whose_template_refuses_a_role_warns(student: PreTrainedTokenizerFast) -> None:
    teacher = make_tokenizer()
    teacher.chat_template = "{{ raise_exception('no system role') }}"
    check = by_name(check_templates(Chat(student), Chat(teacher), PROMPTS, "Be brief."))["chat templates"]
    assert check.status is Status.warned and "no system role" in check.seen


def with_bos() -> PreTrainedTokenizerFast:
    """Begins every text with a BOS of its own."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", PAD)]
    )
    return tokenizer


def test_one_bos_passes_two_and_none_fail() -> None:
    tokenizer = with_bos()
    rendered = [student_reads(tokenizer, prompt).ids for prompt in PROMPTS]
    assert check_bos(tokenizer, rendered).status is Status.passed
    doubled = check_bos(tokenizer, [np.concatenate([ids[:1], ids]) for ids in rendered])
    assert (
        doubled.status is Status.failed and "4 begin with BOS twice" in doubled.seen and "add_bos_token" in doubled.fix
    )
    missing = check_bos(tokenizer, [rendered[0], rendered[1][1:]])
    assert missing.status is Status.failed and "1 lack it" in missing.seen


def test_a_tokenizer_without_bos_needs_none(student: PreTrainedTokenizerFast) -> None:
    rendered = [student_reads(student, prompt).ids for prompt in PROMPTS]
    assert check_bos(student, rendered).status is Status.passed


def test_one_end_everywhere_passes(student: PreTrainedTokenizerFast) -> None:
    for configured in ([], [END], [PAD, END]):
        assert check_end_of_turn(student, configured).status is Status.passed


def test_a_missing_eos_fails(student: PreTrainedTokenizerFast) -> None:
    student.eos_token = None
    check = check_end_of_turn(student, [])
    assert check.status is Status.failed and "no answer would end" in check.fix


def test_a_turn_that_ends_with_what_does_not_stop_fails(student: PreTrainedTokenizerFast) -> None:
    student.eos_token = "<|endoftext|>"
    check = check_end_of_turn(student, [PAD])
    assert check.status is Status.failed and "template 2" in check.seen and "add 2 to eos_token_id" in check.fix
    assert check_end_of_turn(student, [PAD, END]).status is Status.passed


def test_a_generation_config_without_the_tokenizers_eos_warns(student: PreTrainedTokenizerFast) -> None:
    assert check_end_of_turn(student, [PAD]).status is Status.warned


def test_a_template_that_ends_no_turn_warns(student: PreTrainedTokenizerFast) -> None:
    student.chat_template = CHAT_TEMPLATE.replace("<|im_end|>", "")
    assert check_end_of_turn(student, [END]).status is Status.warned

"""A teacher's tokenizer held against the student's: the same, the same but for some ids, or another one."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.factories import prepared, refusal
from tests.models import PADDED_VOCABULARY, TOKENIZER_VOCABULARY, make_tiny_model, make_tokenizer
from tests.tokenizers import pruned


@pytest.fixture(scope="module")
def finer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose tokenizer and template are its own."""
    tokenizer, _ = pruned(make_tokenizer(), 200)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}reply: "
    return make_tiny_model(tmp_path_factory.mktemp("finer"), tied=True, tokenizer=tokenizer)


def with_added(folder: Path, *tokens: str) -> Path:
    """Make a model with more rows than tokens, and with added tokens."""
    path = make_tiny_model(folder, tied=True, padded=True, seed=3)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(path)
    return path


def test_a_teacher_of_another_tokenizer_is_refused(overrides: list[str], finer: Path) -> None:
    text = refusal(overrides, f"teacher.model={finer}")
    assert "teacher.model" in text and "teacher.cross_tokenizer=true" in text


@pytest.mark.parametrize("objective", ["sampled_reverse_kl", "full_reverse_kl", "teacher_topk_forward_kl"])
def test_a_teacher_with_a_few_more_tokens_is_accepted(overrides: list[str], tmp_path: Path, objective: str) -> None:
    other = with_added(tmp_path / "other", "<think>", "</think>")
    found = prepared(overrides, f"teacher.model={other}", f"objective={objective}")
    assert found.teachers["teacher"].uncommon == {TOKENIZER_VOCABULARY, TOKENIZER_VOCABULARY + 1}


def test_a_student_with_a_few_more_tokens_is_accepted_where_the_teacher_has_their_rows(
    overrides: list[str], tmp_path: Path
) -> None:
    student = with_added(tmp_path / "student", "<think>")
    teacher = make_tiny_model(tmp_path / "teacher", tied=True, padded=True, seed=4)
    found = prepared(overrides, f"student.model={student}", f"teacher.model={teacher}")
    assert found.teachers["teacher"].uncommon == {TOKENIZER_VOCABULARY}
    narrow = make_tiny_model(tmp_path / "narrow", tied=True, seed=4)
    text = refusal(overrides, f"student.model={student}", f"teacher.model={narrow}")
    assert "no embedding for the student's id 576" in text and "teacher.cross_tokenizer=true" in text


def test_padding_rows_that_only_the_student_has_are_left_out(overrides: list[str], tmp_path: Path) -> None:
    student = make_tiny_model(tmp_path / "student", tied=True, padded=True, seed=4)
    found = prepared(overrides, f"student.model={student}")
    assert found.teachers["teacher"].uncommon == set(range(TOKENIZER_VOCABULARY, PADDED_VOCABULARY))
    text = refusal(
        overrides,
        f"student.model={student}",
        f"probe.earlier_teacher={make_tiny_model(tmp_path / 'narrow', tied=True)}",
    )
    assert text.startswith("probe.earlier_teacher=") and "fewer rows than the 640 of student.model" in text


def test_what_the_student_cannot_read_is_not_learned_from(overrides: list[str], tmp_path: Path) -> None:
    other = with_added(tmp_path / "other", "<think>")
    text = refusal(
        overrides, f"teacher.model={other}", "objective=gkd", "objective.sequences.on_policy_fraction=0.5",
        "objective.sequences.other_source=teacher",
    )  # fmt: skip
    assert "objective.sequences.other_source=teacher" in text and "teacher.tokenizer" in text


def test_a_teacher_with_another_tokenizer_reads_by_it(overrides: list[str], finer: Path) -> None:
    assert "set teacher.cross_tokenizer=true" in refusal(overrides, f"teacher.model={finer}")
    across = [f"teacher.model={finer}", "teacher.cross_tokenizer=true", "objective=cross_tokenizer"]
    item, told = (
        prepared(overrides, *across, f"teacher.context={context}").train[0] for context in ("null", "'Be brief.'")
    )
    tokenizer = AutoTokenizer.from_pretrained(finer)
    assert tokenizer.decode(item.teacher_ids) == f"user: {item.prompt.messages[0].content}<|im_end|>reply: "
    assert not item.has_context and told.has_context


def test_a_tokenizer_that_cannot_be_aligned_is_refused(overrides: list[str], tmp_path: Path) -> None:
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")), unk_token="[UNK]"
    )
    make_tiny_model(tmp_path / "words", tied=True)
    words.save_pretrained(tmp_path / "words")
    across = [f"teacher.model={tmp_path}/words", "teacher.cross_tokenizer=true", "objective=sampled_reverse_kl"]
    text = refusal(overrides, *across)
    assert text.startswith("teacher.") and "byte-level or sentencepiece" in text


def test_objectives_that_need_the_students_ids_are_refused_of_another_tokenizer(overrides: list[str]) -> None:
    text = refusal(overrides, "teacher.cross_tokenizer=true", "objective=full_reverse_kl")
    assert "objective.support=full" in text and "objective=cross_tokenizer" in text

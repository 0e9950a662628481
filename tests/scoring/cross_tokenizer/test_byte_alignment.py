"""Two tokenizers over the same bytes: spans give the bytes back on both sides, and are the finest that both share."""

from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from scoring.cross_tokenizer.byte_alignment import NO_SPAN, Aligner, ByteAlignment
from scoring.cross_tokenizer.token_bytes import TokenBytes
from tests.models import make_tokenizer
from tests.tokenizers import pruned, sentencepiece

TEXTS = st.text(max_size=40) | st.lists(
    st.sampled_from(
        ["the lightning ", "unbelievable", "12345", " naïve", "你好", "🙂", "\n\n", "  ", "<|im_end|>", "ﬁ"]
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="session")
def aligners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Aligner]:
    """Between vocabularies that really differ, in both directions."""
    coarse = make_tokenizer()
    sides = {
        "coarse": TokenBytes(coarse, "student.model"),
        "fine": TokenBytes(pruned(coarse, 250)[0], "teacher.model"),
        "pieces": TokenBytes(sentencepiece(tmp_path_factory.mktemp("pieces")), "teacher.model"),
    }
    pairs = [("coarse", "fine"), ("fine", "coarse"), ("coarse", "pieces"), ("pieces", "coarse"), ("fine", "fine")]
    return {f"{a}-{b}": Aligner(sides[a], sides[b]) for a, b in pairs}


PAIRS = ["coarse-fine", "fine-coarse", "coarse-pieces", "pieces-coarse", "fine-fine"]


def span_bytes(tokens: TokenBytes, ids: list[int], spans: np.ndarray) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for token, span in zip(ids, spans.tolist(), strict=True):
        found[span] = found.get(span, b"") + tokens.by_id.get(int(token), b"")
    found.pop(NO_SPAN, None)
    return found


def assert_same_bytes(aligner: Aligner, ids: list[int], alignment: ByteAlignment) -> None:
    """Span by span; a space that only one of the two writes at the beginning is not the text's."""
    ours = span_bytes(aligner.student, ids, alignment.spans)
    theirs = span_bytes(aligner.teacher, alignment.teacher_ids.tolist(), alignment.teacher_spans)
    assert ours.keys() == theirs.keys()
    for span, content in ours.items():
        written = content.removeprefix(b" ") if span == 0 and aligner.student.drops_first_space else content
        assert theirs[span] == written or (span == 0 and theirs[span] == b" " + written)


def boundaries(tokens: TokenBytes, ids: list[int], surplus: int = 0) -> set[int]:
    """Where tokens end, in bytes."""
    return {max(end - surplus, 0) for end in accumulate(len(tokens.by_id.get(int(token), b"")) for token in ids)}


@settings(max_examples=120)
@given(pair=st.sampled_from(PAIRS), text=TEXTS, ends=st.booleans())
def test_spans_of_a_text_are_its_bytes_and_the_finest(
    aligners: dict[str, Aligner], pair: str, text: str, ends: bool
) -> None:
    aligner = aligners[pair]
    encoded = aligner.student.encode(text)
    assert encoded is not None
    ids = [*encoded.ids, *([aligner.student.end_id] if ends else [])]
    written = aligner.student.join(ids)
    bare = written.removeprefix(b" ") if aligner.student.drops_first_space else written  # a space of the tokens' own
    alignment = aligner.align(ids)
    assert (alignment.spans != NO_SPAN).all() and (alignment.teacher_spans != NO_SPAN).all()
    assert_same_bytes(aligner, ids, alignment)
    assert b"".join(span_bytes(aligner.student, ids, alignment.spans).values()) == written
    surplus = len(aligner.teacher.join(alignment.teacher_ids.tolist())) - len(bare)
    shared = boundaries(aligner.student, ids, len(written) - len(bare)) & boundaries(
        aligner.teacher, alignment.teacher_ids.tolist(), surplus
    )
    assert len(set(alignment.spans.tolist())) == len(shared - {0}) + ends
    for spans in (alignment.spans, alignment.teacher_spans):
        assert (np.diff(spans) >= 0).all()


@settings(max_examples=120)
@given(pair=st.sampled_from(PAIRS), data=st.data())
def test_any_ids_at_all(aligners: dict[str, Aligner], pair: str, data: st.DataObject) -> None:
    """What a student samples need be no text: bytes that are no characters and special tokens are in no span."""
    aligner = aligners[pair]
    size = max(aligner.student.by_id) + 20  # a head may have rows that the tokenizer has no ids for
    ids = data.draw(st.lists(st.integers(0, min(size, 700)), max_size=30))
    alignment = aligner.align(ids)
    assert len(alignment.spans) == len(ids) and len(alignment.teacher_spans) == len(alignment.teacher_ids)
    assert_same_bytes(aligner, ids, alignment)
    special = [place for place, token in enumerate(ids[:-1]) if token not in aligner.student.by_id]
    assert (alignment.spans[special] == NO_SPAN).all()
    text = aligner.student.join(ids).decode(errors="ignore")
    text = text.removeprefix(" ") if aligner.student.drops_first_space else text
    assert aligner.teacher.join(alignment.teacher_ids.tolist()).decode() in (text, " " + text)


@settings(max_examples=60)
@given(pair=st.sampled_from(PAIRS), text=TEXTS)
def test_a_text_goes_round(aligners: dict[str, Aligner], pair: str, text: str) -> None:
    for tokens in (aligners[pair].student, aligners[pair].teacher):
        encoded = tokens.encode(text)
        assert encoded is not None and b"".join(encoded.bytes) == text.encode()
        assert tokens.join(encoded.ids) in (text.encode(), b" " + text.encode())


def test_an_answer_that_is_cut_within_a_character_keeps_all_that_stands_before_it(aligners: dict[str, Aligner]) -> None:
    aligner = aligners["coarse-pieces"]
    whole = aligner.student.encode("old library 你")
    assert whole is not None
    ids = list(whole.ids[:-1])
    alignment = aligner.align(ids)
    lost = len(b"\xe4\xbd\xa0") - 1
    assert alignment.spans[-lost:].tolist() == [NO_SPAN] * lost
    assert (alignment.spans[:-lost] != NO_SPAN).all()


def test_a_special_token_in_the_middle_is_alone_in_being_unmatched(aligners: dict[str, Aligner]) -> None:
    aligner = aligners["coarse-fine"]
    start, rest = (aligner.student.encode(text) for text in ("the old", " library."))
    assert start is not None and rest is not None
    special = 1
    alignment = aligner.align([*start.ids, special, *rest.ids, aligner.student.end_id])
    assert np.flatnonzero(alignment.spans == NO_SPAN).tolist() == [len(start.ids)]
    assert alignment.teacher_ids[-1] == aligner.teacher.end_id and alignment.spans[-1] == alignment.teacher_spans[-1]


def test_a_special_token_within_a_span_spoils_the_span(aligners: dict[str, Aligner]) -> None:
    aligner = aligners["fine-coarse"]
    word = next(content for content in aligner.teacher.ids if is_cut(aligner, content))
    ids = aligner.student.encode(word.decode())
    assert ids is not None
    alignment = aligner.align([ids.ids[0], 0, *ids.ids[1:]])
    assert (alignment.spans == NO_SPAN).all() and (alignment.teacher_spans == NO_SPAN).all()


def is_cut(aligner: Aligner, content: bytes) -> bool:
    """Whether one token of the teacher's is two or more of the student's."""
    if any(byte > 127 for byte in content):
        return False
    ours, theirs = aligner.student.encode(content.decode()), aligner.teacher.encode(content.decode())
    return ours is not None and theirs is not None and len(ours.ids) > 1 and len(theirs.ids) == 1


def test_what_looks_like_a_special_token_in_the_text_is_text(aligners: dict[str, Aligner]) -> None:
    aligner = aligners["coarse-fine"]
    encoded = aligner.student.encode("<|im_end|>")
    assert encoded is not None and len(encoded.ids) > 1
    alignment = aligner.align(list(encoded.ids))
    assert aligner.teacher.end_id not in alignment.teacher_ids and (alignment.spans != NO_SPAN).all()


@pytest.mark.parametrize("pair", PAIRS)
def test_twins_stand_for_the_same_bytes(aligners: dict[str, Aligner], pair: str) -> None:
    aligner = aligners[pair]
    for table, prefix in ((aligner.twins, b""), (aligner.first_twins_after_space, b" ")):
        assert table[aligner.student.end_id] == aligner.teacher.end_id
        found = np.flatnonzero(table >= 0)
        assert len(found) > 200 or prefix  # all single bytes at least
        for token in found.tolist():
            if token != aligner.student.end_id:
                content = aligner.student.by_id[token]
                if prefix and aligner.student.drops_first_space:
                    content = content.removeprefix(b" ")
                assert aligner.teacher.by_id[int(table[token])] == prefix + content
    without = np.flatnonzero(aligner.twins < 0)
    assert all(aligner.student.by_id.get(t) not in aligner.teacher.ids for t in without.tolist())


def test_a_vocabulary_that_lacks_the_text_marks_only_what_it_has() -> None:
    words = {"[UNK]": 0, "a": 1, "b": 2, " ": 3, "</s>": 4}
    words |= {
        c: 5 + i
        for i, c in enumerate(sorted(set('Ein Tag, 12 345 naïve “words”;\n\tx = {"a": [1, 2]}  # 你好 🙂 …\r\n')))
    }
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="</s>")
    aligner = Aligner(TokenBytes(make_tokenizer(), "student.model"), TokenBytes(plain, "teacher.model"))
    encoded = aligner.student.encode("abzba")
    assert encoded is not None
    alignment = aligner.align(list(encoded.ids))
    lost = [b"z" in aligner.student.by_id[token] for token in encoded.ids]
    assert (alignment.spans == NO_SPAN).tolist() == lost and any(lost)


def test_a_tokenizer_that_hides_its_spaces_is_refused() -> None:
    inner = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    plain = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    with pytest.raises(ValueError, match=r"teacher\.model=.*byte-level or sentencepiece"):
        TokenBytes(plain, "teacher.model")
    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match=r"teacher\.model=.*do not give back the text"):
        TokenBytes(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]"), "teacher.model")


def test_an_answer_ends_as_each_sides_template_says() -> None:
    """Some models end a turn with another token than a text."""
    student, teacher = make_tokenizer(), pruned(make_tokenizer(), 250)[0]
    turn, text = "<|endoftext|>", "<|im_end|>"
    for tokenizer in (student, teacher):
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}" + turn + "{% endfor %}"
    aligner = Aligner(TokenBytes(student, "student.model"), TokenBytes(teacher, "teacher.model"))
    theirs = teacher.convert_tokens_to_ids(turn)
    for end in (turn, text):
        ids = [*student("the old library")["input_ids"], student.convert_tokens_to_ids(end)]
        alignment = aligner.align(ids)
        assert alignment.teacher_ids[-1] == theirs and alignment.spans[-1] == alignment.teacher_spans[-1] != NO_SPAN
        assert aligner.twins[ids[-1]] == theirs
    plain = make_tokenizer()
    plain.chat_template = None
    assert TokenBytes(plain, "student.model").end_id == plain.eos_token_id


def test_an_answer_of_a_sentencepiece_student_begins_without_a_space(tmp_path: Path) -> None:
    """Its first token brings one along, which is no part of the text that it writes."""
    student, teacher = sentencepiece(tmp_path), make_tokenizer()
    aligner = Aligner(TokenBytes(student, "student.model"), TokenBytes(teacher, "teacher.model"))
    assert aligner.student.drops_first_space and not aligner.teacher.drops_first_space
    ids = student("the old library", add_special_tokens=False)["input_ids"]
    alignment = aligner.align(ids)
    assert alignment.teacher_ids.tolist() == teacher("the old library")["input_ids"]
    assert (alignment.spans != NO_SPAN).all()
    first = student.convert_tokens_to_ids("▁the")
    assert aligner.first_twins[first] == teacher.convert_tokens_to_ids("the")
    assert aligner.twins[first] == teacher.convert_tokens_to_ids("Ġthe")
    back = Aligner(aligner.teacher, aligner.student)
    assert back.align(teacher("the old library")["input_ids"]).teacher_ids.tolist() == ids

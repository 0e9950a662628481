"""A student's answer in a teacher's tokens, and which tokens of the two stand for the same bytes.

    student  │ un │ believ │ able │ ! │ <eos>
    teacher  │ unbelie │ vable │ !    │ <eos>      of the same bytes, by the teacher's own tokenizer
    spans    │        0        │ 1    │ 2          cut wherever both have a boundary: the finest that both share

Within a span the chain rule holds on both sides: the span's log-prob is the sum of its tokens'. A span of one token on
each side is exact token by token. The token that ends an answer of the student's is matched with the one by which the
teacher ends its own, as its chat template says: its EOS, or another. A space that a sentencepiece student's first token
brings along, and that its text does not begin with, is not written.

What the teacher cannot be shown belongs to no span: special tokens other than that end, bytes that are no UTF-8
(an answer cut within a character), text that the vocabulary lacks. A span that holds any of it is given up as a whole.

Shape suffixes: T tokens of the student, L of the teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scoring.cross_tokenizer.token_bytes import Encoded, TokenBytes

NO_SPAN = -1


@dataclass(frozen=True)
class ByteAlignment:
    """An answer in the teacher's tokens, and which tokens of both sides stand for the same bytes."""

    teacher_ids: NDArray[np.int32]  # [L]
    spans: NDArray[np.int64]  # [T], the span of each of the student's tokens, from 0, ascending; NO_SPAN: none
    teacher_spans: NDArray[np.int64]  # [L]
    teacher_has_bytes: NDArray[np.bool_]  # [L], False for a token that only scores that a text begins
    begins_with_space: bool  # the teacher writes the answer's first token with a space before it


@dataclass(frozen=True)
class _Bytes:
    """The student's tokens as the text that they make."""

    text: str
    lengths: NDArray[np.int64]  # [T], bytes of the text that each token brought
    lost: NDArray[np.bool_]  # [T], tokens not all of which is in the text


class Aligner:
    """Matches the tokens of a student and a teacher by the bytes that they stand for."""

    def __init__(self, student: TokenBytes, teacher: TokenBytes) -> None:
        self.student, self.teacher = student, teacher

    @cached_property
    def twins(self) -> NDArray[np.int32]:
        """For each id of the student the teacher's of the same bytes, -1 where there is none."""
        return self._twins(b"")

    @cached_property
    def first_twins(self) -> NDArray[np.int32]:
        """The same where an answer begins."""
        return self._twins(b"", self.student.drops_first_space)

    @cached_property
    def first_twins_after_space(self) -> NDArray[np.int32]:
        """The same where the teacher writes a space that the student does not."""
        return self._twins(b" ", self.student.drops_first_space)

    def _twins(self, prefix: bytes, drops_space: bool = False) -> NDArray[np.int32]:
        known, ends = self.student.by_id, [token for token in self.student.end_ids if token is not None]
        twins = np.full(max([*known, *ends]) + 1, -1, dtype=np.int32)
        for token, content in known.items():
            twins[token] = self.teacher.ids.get(prefix + (content.removeprefix(b" ") if drops_space else content), -1)
        if self.teacher.end_id is not None:
            twins[ends] = self.teacher.end_id
        return twins

    def align(self, student_ids: Sequence[int]) -> ByteAlignment:
        """Write an answer of the student's in the teacher's tokens, and match the two."""
        ids = [int(token) for token in student_ids]
        ends = bool(ids) and ids[-1] in self.student.end_ids
        body = ids[:-1] if ends else ids
        written = self._read(body)
        encoded = self.teacher.encode(written.text)
        if encoded is None:
            nothing = np.empty(0, dtype=np.int64)
            unmatched = np.full(len(ids), NO_SPAN, dtype=np.int64)
            return ByteAlignment(nothing.astype(np.int32), unmatched, nothing, nothing.astype(np.bool_), False)
        spans, teacher_spans = _spans(written, encoded)
        return self._with_end(encoded, spans, teacher_spans, ends)

    def _read(self, ids: Sequence[int]) -> _Bytes:
        pieces = [self.student.by_id.get(token, b"") for token in ids]
        only_space = bool(pieces) and self.student.drops_first_space and pieces[0] == b" "
        if pieces and self.student.drops_first_space:
            pieces[0] = pieces[0].removeprefix(b" ")
        stream = b"".join(pieces)
        kept = _valid(stream)
        starts = np.cumsum([0, *map(len, pieces)])
        counts = np.concatenate([[0], np.cumsum(kept)])
        lengths = counts[starts[1:]] - counts[starts[:-1]]
        lost = (lengths < np.diff(starts)) | (lengths == 0)
        lost[:1] &= not only_space  # it scores that a text begins, together with what it begins with
        text = bytes(byte for byte, ok in zip(stream, kept, strict=True) if ok).decode()
        return _Bytes(text, lengths.astype(np.int64), lost)

    def _with_end(
        self, encoded: Encoded, spans: NDArray[np.int64], teacher_spans: NDArray[np.int64], ends: bool
    ) -> ByteAlignment:
        ids, first = list(encoded.ids), np.array([bool(content) for content in encoded.bytes], dtype=np.bool_)
        if ends:
            matched = self.teacher.end_id is not None
            last = max(spans.max(initial=-1), teacher_spans.max(initial=-1)) + 1
            spans = np.append(spans, last if matched else NO_SPAN)
            if self.teacher.end_id is not None:
                ids.append(self.teacher.end_id)
                teacher_spans, first = np.append(teacher_spans, last), np.append(first, True)
        return ByteAlignment(np.array(ids, dtype=np.int32), spans, teacher_spans, first, encoded.begins_with_space)


def _valid(stream: bytes) -> NDArray[np.bool_]:
    """Which bytes belong to whole UTF-8 characters."""
    kept = np.ones(len(stream), dtype=np.bool_)
    start = 0
    while start < len(stream):
        try:
            stream[start:].decode()
            break
        except UnicodeDecodeError as error:
            kept[start + error.start : start + error.end] = False
            start += error.end
    return kept


def _spans(written: _Bytes, encoded: Encoded) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The span of each token, of both sides."""
    lengths = np.array([len(content) for content in encoded.bytes], dtype=np.int64)
    ends, teacher_ends = np.cumsum(written.lengths), np.cumsum(lengths)
    starts, teacher_starts = ends - written.lengths, teacher_ends - lengths
    shared = np.union1d([0], np.intersect1d(ends, teacher_ends))
    count = len(shared) - 1

    def span_at(places: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.minimum(np.searchsorted(shared, places, side="right") - 1, count - 1)

    spans, teacher_spans = span_at(starts), span_at(teacher_starts)
    # A special token between two spans harms neither.
    alone = written.lost & (written.lengths == 0) & np.isin(starts, shared)
    spoilt = np.union1d(spans[written.lost & ~alone], teacher_spans[np.array(encoded.unknown, dtype=np.bool_)])
    spans = np.where(alone | np.isin(spans, spoilt), NO_SPAN, spans)
    return spans, np.where(np.isin(teacher_spans, spoilt), NO_SPAN, teacher_spans)

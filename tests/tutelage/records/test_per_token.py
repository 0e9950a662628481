"""The declaration of a per-token array, and what follows from it for a record that has just got one."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.records.per_token import declared, per_token, spread


@dataclass(frozen=True)
class Record:
    name: str
    surprise: NDArray[np.float32] | None = field(default=None, metadata=per_token(np.float32, np.nan, always=True))
    nearest_ids: NDArray[np.int32] | None = field(default=None, metadata=per_token(np.int32, -1, columns=True))


SURPRISE, NEAREST = declared(Record).values()


def test_a_record_lists_what_it_declares() -> None:
    assert list(declared(Record)) == ["surprise", "nearest_ids"]
    assert (SURPRISE.dtype, NEAREST.filler) == (np.float32, -1)


def test_rows_are_spread_with_fillers_between_them() -> None:
    mask = np.array([True, False, True])
    spread_ids = spread(np.array([[1, 2], [3, 4]], np.int32), mask, NEAREST.filler)
    assert spread_ids.tolist() == [[1, 2], [-1, -1], [3, 4]] and spread_ids.dtype == np.int32
    np.testing.assert_array_equal(spread(np.ones(2, np.float32), mask, SURPRISE.filler), [1, np.nan, 1])


def test_responses_are_joined_as_the_learner_reads_them() -> None:
    ids = NEAREST.join([np.array([[1, 2]], np.int32), np.array([[3, 4], [5, 6]], np.int32)], [1, 2])
    assert ids is not None and ids.tolist() == [[1, 2], [3, 4], [5, 6]] and ids.dtype == np.int64
    surprise = SURPRISE.join([np.ones(1, np.float32), None], [1, 2])
    assert surprise is not None and surprise.dtype == np.float32
    np.testing.assert_array_equal(surprise, [1, np.nan, np.nan])


def test_what_only_some_responses_have_is_refused_and_what_none_has_is_not_there() -> None:
    assert NEAREST.join([None, None], [1, 2]) is None
    with pytest.raises(ValueError, match="must all have it, with one width"):
        NEAREST.join([np.zeros((1, 2), np.int32), None], [1, 2])
    with pytest.raises(ValueError, match="must all have it, with one width"):
        NEAREST.join([np.zeros((1, 2), np.int32), np.zeros((2, 3), np.int32)], [1, 2])


def test_no_rows_look_like_some() -> None:
    for array, rows in ((SURPRISE, np.zeros(2, np.float32)), (NEAREST, np.zeros((2, 1), np.int32))):
        joined = array.join([rows], [2])
        assert joined is not None
        assert (array.no_rows().shape[1:], array.no_rows().dtype) == (joined.shape[1:], joined.dtype)

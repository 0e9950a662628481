from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.request_builder import RequestBuilder
from scoring.requests import build_request
from tests.factories import make_trajectory
from tutelage.records.signal import SignalNeeds, TeacherSignal

TRAJECTORY = make_trajectory(
    [1, 2], [3, 4, 5], slot=3, prompt_id="q", candidate_ids=np.arange(12, dtype=np.int32).reshape(3, 4)
)
TEACHER_IDS = np.array([9, 1, 2], np.int32)


def test_responses_are_taken_verbatim_after_the_teachers_prompt() -> None:
    request = build_request("judge", TEACHER_IDS, TRAJECTORY, SignalNeeds())
    assert request.teacher == "judge"
    assert request.prompt_ids is TEACHER_IDS
    assert request.response_ids is TRAJECTORY.response_ids
    assert (request.support_ids, request.top_k, request.hidden_states) == (None, 0, False)


def test_needs_are_passed_on() -> None:
    request = build_request(
        "judge", TEACHER_IDS, TRAJECTORY, SignalNeeds(candidates=2, teacher_top_k=5, hidden_states=True)
    )
    np.testing.assert_array_equal(request.support_ids, [[0, 1], [4, 5], [8, 9]])
    assert (request.top_k, request.hidden_states) == (5, True)


def test_missing_candidates_are_explained() -> None:
    with pytest.raises(ValueError, match=r"prompt 'q' has 4 candidate ids.*needs 8"):
        build_request("judge", TEACHER_IDS, TRAJECTORY, SignalNeeds(candidates=8))
    with pytest.raises(ValueError, match="has 0 candidate ids"):
        build_request("judge", TEACHER_IDS, replace(TRAJECTORY, candidate_ids=None), SignalNeeds(candidates=1))


def test_the_teachers_top_is_asked_for_once_and_not_beside_hidden_states() -> None:
    def asked(needs: SignalNeeds, k: int) -> int:
        builder = RequestBuilder(replace(needs, watched_top_k=k))
        return builder.build("judge", TEACHER_IDS, TRAJECTORY).request.top_k

    assert asked(SignalNeeds(), 16) == 16 and asked(SignalNeeds(), 0) == 0
    assert asked(SignalNeeds(teacher_top_k=5), 16) == 16 and asked(SignalNeeds(teacher_top_k=64), 16) == 64
    assert (
        asked(SignalNeeds(hidden_states=True), 16) == 0
        and asked(SignalNeeds(teacher_top_k=5, hidden_states=True), 16) == 5
    )


def test_the_entropy_is_asked_for_where_it_is_needed_or_watched() -> None:
    def asked(needed: bool, watched: bool) -> bool:
        builder = RequestBuilder(SignalNeeds(teacher_entropy=needed), without_entropy=() if watched else ("judge",))
        return builder.build("judge", TEACHER_IDS, TRAJECTORY).request.entropy

    assert [asked(*flags) for flags in ((False, False), (True, False), (False, True))] == [False, True, True]


@given(response=st.lists(st.integers(0, 9), min_size=1, max_size=8), uncommon=st.sets(st.integers(0, 9), max_size=4))
def test_what_only_one_tokenizer_has_is_left_out(response: list[int], uncommon: set[int]) -> None:
    """The teacher neither reads nor scores it, no support holds it, and it is not learned from."""
    candidates = np.tile(np.arange(10, dtype=np.int32), (len(response), 1))
    trajectory = make_trajectory([1, 2], response, candidate_ids=candidates)
    ids = np.array(sorted(uncommon), np.int32)
    builder = RequestBuilder(SignalNeeds(candidates=10, watched_top_k=3), uncommon={"judge": ids})
    asked = builder.build("judge", TEACHER_IDS, trajectory)
    kept = [token for token in response if token not in uncommon]
    assert asked.request.response_ids.tolist() == kept and asked.request.num_scored == len(kept)
    assert asked.request.support_ids is not None and not np.isin(asked.request.support_ids, ids[ids > 0]).any()
    logprobs = -np.arange(len(kept), dtype=np.float32)
    top = np.tile(np.array([[7, 8, 9]], np.int32), (len(kept), 1))
    signal = TeacherSignal(
        "judge", logprobs, support_ids=asked.request.support_ids,
        support_logprobs=np.full(asked.request.support_ids.shape, -1, np.float32),
        top_ids=top, top_logprobs=np.full(top.shape, -2, np.float32),
    )  # fmt: skip
    told = asked.to_student_tokens(signal)
    assert told.known is not None and told.known.tolist() == [token not in uncommon for token in response]
    assert told.logprobs[told.known].tolist() == logprobs.tolist()
    assert told.support_ids is not None and told.support_logprobs is not None and told.top_ids is not None
    for row in np.flatnonzero(told.known):
        assert set(told.support_ids[row].tolist()) - {-1} == set(range(10)) - uncommon
        assert np.isneginf(told.support_logprobs[row]).tolist() == [i in uncommon for i in range(10)]
        assert told.top_ids[row].tolist() == [-1 if i in uncommon else i for i in (7, 8, 9)]

from dataclasses import replace

import numpy as np
import pytest

from scoring.request_builder import RequestBuilder
from scoring.requests import build_request
from tests.factories import make_trajectory
from tutelage.records.signal import SignalNeeds

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

"""Several answers as one trajectory: what is asked, when it ends, and what belongs to whom."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from rollout.conversation import converse, most_tokens
from tests.factories import make_trajectory
from tutelage.records.trajectory import FinishReason, FollowUp, PolicySpan, RolloutRequest, Trajectory

EOS = 2
FOLLOW_UPS = tuple(
    FollowUp("user", text, np.array(ids, np.int32), closing)
    for text, ids, closing in (("why", [EOS, 50, 51], 1), ("so", [52], 0))
)
REQUEST = RolloutRequest(
    3, "p", 1, np.array([10, 11], np.int32), seed=7, max_tokens=4, candidates=2, follow_ups=FOLLOW_UPS
)


class Student:
    """Answers as it was told to, each with a version of its own."""

    def __init__(self, *answers: list[int]) -> None:
        self.answers = list(answers)
        self.asked: list[RolloutRequest] = []

    async def __call__(self, request: RolloutRequest) -> Trajectory:
        answer = self.answers[len(self.asked)]
        self.asked.append(request)
        version = len(self.asked)
        return make_trajectory(
            request.prompt_ids,
            answer,
            slot=request.slot,
            prompt_id=request.prompt_id,
            sample_index=request.sample_index,
            sampling_logprobs=-np.array(answer, np.float32),
            candidate_ids=np.stack([answer, np.add(answer, 1)], axis=1).astype(np.int32),
            spans=(PolicySpan(version, 0, len(answer)),),
            finish_reason=FinishReason.STOP if answer[-1] == EOS else FinishReason.LENGTH,
        )


def test_three_answers() -> None:
    student = Student([20, EOS], [30, 31, EOS], [40])
    found = asyncio.run(converse(REQUEST, student))
    assert found.prompt_ids.tolist() == [10, 11]
    assert found.response_ids.tolist() == [20, EOS, 50, 51, 30, 31, EOS, 52, 40]
    assert found.loss_mask.astype(int).tolist() == [1, 1, 0, 0, 1, 1, 1, 0, 1]
    np.testing.assert_array_equal(found.sampling_logprobs, [-20, -2, np.nan, np.nan, -30, -31, -2, np.nan, -40])
    assert found.candidate_ids is not None and found.candidate_ids[:, 1].tolist() == [21, 3, 0, 0, 31, 32, 3, 0, 41]
    assert found.spans == (PolicySpan(1, 0, 2), PolicySpan(2, 4, 7), PolicySpan(3, 8, 9))
    assert [(t.role, t.start, t.stop, t.text) for t in found.turns] == [
        ("assistant", 0, 2, ""), ("user", 2, 4, "why"), ("assistant", 4, 7, ""),
        ("user", 7, 8, "so"), ("assistant", 8, 9, ""),
    ]  # fmt: skip
    assert found.finish_reason is FinishReason.LENGTH and found.oldest_version == 1
    assert [r.prompt_ids.tolist() for r in student.asked[1:]] == [
        [10, 11, 20, EOS, 50, 51], [10, 11, 20, EOS, 50, 51, 30, 31, EOS, 52]
    ]  # fmt: skip


def test_each_answer_has_a_seed_of_its_own_and_always_the_same() -> None:
    students = [Student([EOS], [EOS], [EOS]) for _ in range(3)]
    for student, seed in zip(students, (7, 7, 8), strict=True):
        asyncio.run(converse(replace(REQUEST, seed=seed), student))
    seeds = [[request.seed for request in student.asked] for student in students]
    assert seeds[0] == seeds[1] and seeds[0][0] == 7 and len({*seeds[0], *seeds[2]}) == 6
    assert all(request.max_tokens == 4 for request in students[0].asked)


@pytest.mark.parametrize("answers", [1, 2])
def test_an_answer_that_does_not_end_ends_the_conversation(answers: int) -> None:
    student = Student(*([[EOS]] * (answers - 1)), [20, 21, 22, 23])
    found = asyncio.run(converse(REQUEST, student))
    assert len(student.asked) == answers == len(found.answers)
    assert found.finish_reason is FinishReason.LENGTH and found.response_ids[-1] == 23


def test_a_request_without_follow_ups_is_one_answer() -> None:
    found = asyncio.run(converse(replace(REQUEST, follow_ups=()), Student([20, EOS])))
    assert found.turns == () and found.answers == (slice(0, 2),) and found.loss_mask.all()


def test_the_longest_that_a_conversation_can_be() -> None:
    assert most_tokens(REQUEST) == 2 + 3 * 4 + 3 + 1
    assert most_tokens(replace(REQUEST, follow_ups=())) == 6

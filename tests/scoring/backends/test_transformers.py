"""The queue before a teacher's forwards: what shares a forward, and what an abandoned call leaves behind."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from scoring.backends.transformers import BatchingTeacher
from scoring.config import ScoringConfig, TeacherConfig
from tests.scoring.reference import load_teacher, random_request
from tutelage.records.signal import ScoringRequest, TeacherSignal
from tutelage.settings import DType


class RecordingTeacher(BatchingTeacher):
    """Remembers how many requests each forward had."""

    def __init__(self, path: Path, budget: int) -> None:
        super().__init__(str(path), TeacherConfig(), ScoringConfig(dtype=DType.float32, max_tokens_per_forward=budget))
        self.groups: list[int] = []
        score = self.model.score

        def recorded(requests: Sequence[ScoringRequest]) -> list[TeacherSignal]:
            self.groups.append(len(requests))
            return score(requests)

        self.model.score = recorded  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("budget", "groups"),
    [
        (1, [1, 1, 1, 1, 1, 1]),  # smaller than any trajectory: one each
        (40, [1, 3, 2]),  # 13 tokens each; the first finds an idle teacher
        (512, [1, 5]),
    ],
)
def test_requests_that_wait_share_the_next_forward(tiny_tied: Path, budget: int, groups: list[int]) -> None:
    teacher = RecordingTeacher(tiny_tied, budget)
    requests = [random_request(6, 8, seed=i) for i in range(6)]

    async def score_all() -> list[TeacherSignal]:
        return await asyncio.gather(*(teacher.score(request) for request in requests))

    signals = asyncio.run(score_all())
    assert teacher.groups == groups
    for signal, expected in zip(signals, load_teacher(tiny_tied).score(requests), strict=True):
        np.testing.assert_allclose(signal.logprobs, expected.logprobs, atol=1e-5)


def test_abandoned_calls_do_not_stop_the_others(tiny_tied: Path) -> None:
    teacher = RecordingTeacher(tiny_tied, budget=1)

    async def give_up_on_the_first_ones() -> list[TeacherSignal]:
        tasks = [asyncio.create_task(teacher.score(random_request(6, 8, seed=i))) for i in range(6)]
        await asyncio.sleep(0)
        for task in tasks[:4]:
            task.cancel()
        return await asyncio.gather(*tasks[4:])

    signals = asyncio.run(give_up_on_the_first_ones())
    assert [len(signal.logprobs) for signal in signals] == [8, 8]


def test_a_request_that_cannot_be_scored_fails_alone(tiny_tied: Path) -> None:
    teacher = RecordingTeacher(tiny_tied, budget=512)
    good, bad = random_request(6, 8), random_request(6, 8, vocabulary=100_000)

    async def score_both() -> list[TeacherSignal | BaseException]:
        return await asyncio.gather(
            teacher.score(good), teacher.score(bad), teacher.score(good), return_exceptions=True
        )

    first, second, third = asyncio.run(score_both())
    assert isinstance(second, ValueError)
    assert isinstance(first, TeacherSignal) and isinstance(third, TeacherSignal)


def test_head_and_readiness(tiny_tied: Path) -> None:
    teacher = RecordingTeacher(tiny_tied, budget=512)
    assert asyncio.run(teacher.start()) == 576
    head = asyncio.run(teacher.lm_head())
    assert head.weight.shape == (576, 128) and head.weight.dtype == np.float32 and head.bias is None

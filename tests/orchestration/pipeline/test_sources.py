"""Slots become sequences of the student, of its teacher or of the data; engines are stood in for by echoes."""

import asyncio
from typing import Any, cast

import numpy as np
import pytest

from learner.objectives.config import OtherSource
from orchestration.config.schema import RunConfig
from orchestration.pipeline.sources import TrajectorySource
from tests.factories import ids
from tests.orchestration.pipeline.engines import Engines
from tutelage.records.prompt import Message, Prompt, RenderedPrompt
from tutelage.records.trajectory import FinishReason, Origin, Trajectory

SLOTS = range(40)
MAX_TOKENS = 4


def prompt(index: int) -> RenderedPrompt:
    completion = ids(*range(50, 52 + index))  # 2 tokens and more: some are longer than a response may be
    return RenderedPrompt(Prompt(f"p{index}", (Message("user", "?"),)), ids(1, index), ids(9, 1, index), completion)


def rolled_out(share: float, others: OtherSource) -> tuple[list[Trajectory], Engines, Engines]:
    config = RunConfig()
    config.sampling.max_tokens = MAX_TOKENS
    config.sampling.temperature = 0.7
    config.objective.sequences.on_policy_fraction = share
    config.objective.sequences.other_source = others
    student, teacher = Engines(3), Engines(0)
    groups = cast(Any, student), cast(Any, teacher)
    source = TrajectorySource(config, [prompt(i) for i in range(5)], 6, *groups)

    async def collect() -> list[Trajectory]:
        return [trajectory async for trajectory in source.roll_out(SLOTS)]

    found = sorted(asyncio.run(collect()), key=lambda trajectory: trajectory.slot)
    assert [trajectory.slot for trajectory in found] == list(SLOTS)
    return found, student, teacher


def test_on_policy_asks_the_students_engines_alone() -> None:
    found, student, teacher = rolled_out(1.0, OtherSource.teacher)
    assert {trajectory.origin for trajectory in found} == {Origin.STUDENT}
    assert not teacher.requests and len(student.requests) == len(SLOTS)
    assert {(r.candidates, r.max_tokens, r.temperature) for r in student.requests} == {(6, MAX_TOKENS, 0.7)}


@pytest.mark.parametrize("others", list(OtherSource))
def test_a_share_of_the_sequences_is_anothers_and_none_of_the_students_changes(others: OtherSource) -> None:
    found, student, _ = rolled_out(0.5, others)
    pure, _, _ = rolled_out(1.0, others)
    own = [trajectory.slot for trajectory in found if trajectory.origin is Origin.STUDENT]
    assert 5 < len(own) < 35 and sorted(request.slot for request in student.requests) == own
    for mixed, alone in zip(found, pure, strict=True):
        assert (mixed.prompt_id, mixed.sample_index) == (alone.prompt_id, alone.sample_index)
        np.testing.assert_array_equal(mixed.prompt_ids, alone.prompt_ids)


def test_the_teacher_answers_what_it_sees_and_the_student_learns_from_what_it_sees() -> None:
    found, student, teacher = rolled_out(0.0, OtherSource.teacher)
    assert not student.requests and {request.candidates for request in teacher.requests} == {0}
    for trajectory in found:
        item = prompt(int(trajectory.prompt_id[1:]))
        np.testing.assert_array_equal(trajectory.prompt_ids, item.student_ids)
        np.testing.assert_array_equal(trajectory.response_ids, item.teacher_ids)
        assert_nobody_sampled(trajectory, Origin.TEACHER)


def test_completions_are_cut_where_a_response_would_be() -> None:
    found, student, teacher = rolled_out(0.0, OtherSource.dataset)
    assert not student.requests and not teacher.requests
    assert {trajectory.finish_reason for trajectory in found} == set(FinishReason)
    for trajectory in found:
        item = prompt(int(trajectory.prompt_id[1:]))
        assert item.completion_ids is not None
        np.testing.assert_array_equal(trajectory.response_ids, item.completion_ids[:MAX_TOKENS])
        is_whole = len(item.completion_ids) <= MAX_TOKENS
        assert trajectory.finish_reason is (FinishReason.STOP if is_whole else FinishReason.LENGTH)
        assert_nobody_sampled(trajectory, Origin.DATASET)


def assert_nobody_sampled(trajectory: Trajectory, origin: Origin) -> None:
    assert trajectory.origin is origin and trajectory.spans == () and trajectory.candidate_ids is None
    assert np.isnan(trajectory.sampling_logprobs).all() and trajectory.temperature == 1.0
    assert trajectory.loss_mask.all()
    assert len(trajectory.sampling_logprobs) == len(trajectory.loss_mask) == len(trajectory.response_ids)

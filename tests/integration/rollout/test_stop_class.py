"""The ends of a turn as one action in the engine, against the definition on a plain float32 forward."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from tests.integration.students import Student, load, reference_logprobs, request, start_worker
from tutelage.records.trajectory import FinishReason, Trajectory
from tutelage.stops import StopClass, TurnEnds

pytestmark = pytest.mark.integration

STOPS = StopClass(kept=2, others=(0, *range(500, 576)))  # so many that most answers come to an end


@pytest.fixture(scope="module")
def ended_student(local_ray: Path, tiny_tied: Path) -> Iterator[Student]:
    worker = start_worker(tiny_tied, TurnEnds(STOPS.ids, STOPS))
    ray.get(worker.ready.remote(), timeout=300)
    student = Student(tiny_tied, worker, load(tiny_tied))
    yield student
    student.stop()


def merged(student: Student, trajectory: Trajectory) -> torch.Tensor:
    """[T, V]: log-probs at the trajectory's temperature, the class as one action."""
    plain = reference_logprobs(student.model, trajectory) * trajectory.temperature  # logits, but for a constant
    total = plain[:, list(STOPS.ids)].exp().sum(-1).log()
    plain[:, list(STOPS.others)] = -torch.inf
    plain[:, STOPS.kept] = total
    return (plain / trajectory.temperature).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_is_sampled_and_told_is_of_actions(ended_student: Student, temperature: float) -> None:
    asked = [request(i, temperature=temperature, candidates=4) for i in range(16)]
    trajectories = ended_student.generate(asked)
    assert sum(t.finish_reason is FinishReason.STOP for t in trajectories) > 8
    for trajectory in trajectories:
        expected = merged(ended_student, trajectory)
        rows = np.arange(len(trajectory.response_ids))
        np.testing.assert_allclose(
            trajectory.sampling_logprobs, expected[rows, trajectory.response_ids.astype(np.int64)], atol=1e-3
        )
        assert trajectory.candidate_ids is not None
        told = np.take_along_axis(expected.numpy(), trajectory.candidate_ids.astype(np.int64), axis=1)
        np.testing.assert_allclose(told, expected.topk(4).values, atol=1e-3)
        ended = trajectory.finish_reason is FinishReason.STOP
        assert (STOPS.kept in trajectory.response_ids) == ended
        assert not np.isin(trajectory.response_ids, STOPS.others).any()

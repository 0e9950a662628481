"""Which trajectories are learned from, and what their task rewards make of them."""

from dataclasses import replace

import numpy as np
import pytest

from learner.batch import Example
from learner.objectives.config import GateConfig
from orchestration.gates import passes, with_advantages
from rollout.trajectory import FinishReason
from tests.learner.examples import make_example

FINISHED = replace(make_example(0, 4, 6).trajectory, reward=0.5)
CUT = replace(FINISHED, finish_reason=FinishReason.LENGTH)


def test_without_gates_everything_passes() -> None:
    assert passes(GateConfig(), CUT, has_context=False)
    assert passes(GateConfig(), replace(FINISHED, reward=None), has_context=False)


def test_each_gate_holds_back_what_it_names() -> None:
    finished = GateConfig(only_finished=True)
    assert passes(finished, FINISHED, False) and not passes(finished, CUT, False)
    assert passes(GateConfig(max_response_tokens=6), FINISHED, False)
    assert not passes(GateConfig(max_response_tokens=5), FINISHED, False)
    context = GateConfig(only_with_context=True)
    assert passes(context, FINISHED, True) and not passes(context, FINISHED, False)
    incorrect = GateConfig(only_incorrect=True)
    assert passes(incorrect, FINISHED, False) and not passes(incorrect, replace(FINISHED, reward=1.0), False)


def test_gates_hold_together() -> None:
    both = GateConfig(only_incorrect=True, only_finished=True)
    assert passes(both, FINISHED, False)
    assert not passes(both, CUT, False) and not passes(both, replace(FINISHED, reward=1.0), False)


def test_an_answer_that_nobody_graded_cannot_be_called_incorrect() -> None:
    with pytest.raises(ValueError, match=r"objective\.gate\.only_incorrect.*data\.verifier"):
        passes(GateConfig(only_incorrect=True), replace(FINISHED, reward=None), False)


def rewarded(slot: int, reward: float | None) -> Example:
    example = make_example(slot, 4, 3)
    return replace(example, trajectory=replace(example.trajectory, reward=reward))


def test_advantages_are_the_rewards_less_the_mean_of_the_group() -> None:
    rewards = {6: 1.0, 7: 0.0, 8: 0.5, 0: 0.25, 2: 0.25, 1: 0.25}  # groups of three, in no order
    found = with_advantages([rewarded(slot, reward) for slot, reward in rewards.items()], 3)
    assert [e.trajectory.slot for e in found] == list(rewards)
    np.testing.assert_allclose([e.advantage for e in found], [0.5, -0.5, 0.0, 0.0, 0.0, 0.0])


def test_advantages_need_rewards() -> None:
    with pytest.raises(ValueError, match=r"objective\.task_reward\.mix.*data\.verifier"):
        with_advantages([rewarded(0, None), rewarded(1, 1.0)], 2)

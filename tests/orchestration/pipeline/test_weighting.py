"""Which trajectories are learned from, and what their task rewards make of them."""

from dataclasses import replace

import numpy as np
import pytest

from learner.objectives.config import GateConfig, LossReduction
from learner.records import Example
from orchestration.pipeline.weighting import have_spread, keeps, with_advantages, with_loss_reduction
from tests.learner.examples import make_example
from tutelage.records.trajectory import FinishReason

FINISHED = replace(make_example(0, 4, 6).trajectory, reward=0.5)
CUT = replace(FINISHED, finish_reason=FinishReason.LENGTH)


def test_without_gates_everything_passes() -> None:
    assert keeps(GateConfig(), CUT, has_context=False)
    assert keeps(GateConfig(), replace(FINISHED, reward=None), has_context=False)


def test_each_gate_holds_back_what_it_names() -> None:
    finished = GateConfig(only_finished=True)
    assert keeps(finished, FINISHED, False) and not keeps(finished, CUT, False)
    assert keeps(GateConfig(max_response_tokens=6), FINISHED, False)
    assert not keeps(GateConfig(max_response_tokens=5), FINISHED, False)
    context = GateConfig(only_with_context=True)
    assert keeps(context, FINISHED, True) and not keeps(context, FINISHED, False)
    incorrect = GateConfig(only_incorrect=True)
    assert keeps(incorrect, FINISHED, False) and not keeps(incorrect, replace(FINISHED, reward=1.0), False)


def test_gates_hold_together() -> None:
    both = GateConfig(only_incorrect=True, only_finished=True)
    assert keeps(both, FINISHED, False)
    assert not keeps(both, CUT, False) and not keeps(both, replace(FINISHED, reward=1.0), False)


def test_an_answer_that_nobody_graded_cannot_be_called_incorrect() -> None:
    with pytest.raises(ValueError, match=r"objective\.gate\.only_incorrect.*data\.verifier"):
        keeps(GateConfig(only_incorrect=True), replace(FINISHED, reward=None), False)


def rewarded(slot: int, reward: float | None) -> Example:
    example = make_example(slot, 4, 3)
    return replace(example, trajectory=replace(example.trajectory, reward=reward))


def test_advantages_are_the_rewards_less_the_mean_of_the_group() -> None:
    rewards = {6: 1.0, 7: 0.0, 8: 0.5, 0: 0.25, 2: 0.25, 1: 0.25}  # groups of three, in no order
    found = with_advantages([rewarded(slot, reward) for slot, reward in rewards.items()], 3)
    assert [e.trajectory.slot for e in found] == list(rewards)
    np.testing.assert_allclose([e.advantage for e in found], [0.5, -0.5, 0.0, 0.0, 0.0, 0.0])


def test_advantages_can_be_divided_by_the_groups_deviation() -> None:
    rewards = [1.0, 0.0, 0.5, 0.25, 0.25, 0.25]  # the second group agrees
    found = with_advantages([rewarded(slot, reward) for slot, reward in enumerate(rewards)], 3, True)
    np.testing.assert_allclose([e.advantage for e in found], [1.0, -1.0, 0.0, 0.0, 0.0, 0.0])


def test_a_group_has_spread_if_any_two_rewards_differ() -> None:
    assert have_spread([rewarded(0, 0.0), rewarded(1, 0.0), rewarded(2, 0.1)])
    assert not have_spread([rewarded(0, 0.7), rewarded(1, 0.7)])


LENGTHS = (2, 8, 5)


def averaged(loss_reduction: LossReduction, weights: tuple[float, ...] = (1.0, 1.0, 1.0)) -> list[float]:
    """What one token of each sequence weighs in the loss."""
    examples = [replace(make_example(slot, 4, length), weight=weights[slot]) for slot, length in enumerate(LENGTHS)]
    whole = [
        replace(e, trajectory=replace(e.trajectory, loss_mask=np.ones_like(e.trajectory.loss_mask))) for e in examples
    ]
    return [e.weight / sum(LENGTHS) for e in with_loss_reduction(whole, loss_reduction, max_tokens=10)]


def test_what_a_token_counts_under_each_average() -> None:
    np.testing.assert_allclose(averaged(LossReduction.tokens), [1 / 15] * 3)
    np.testing.assert_allclose(averaged(LossReduction.sequences), [1 / (3 * length) for length in LENGTHS])
    np.testing.assert_allclose(averaged(LossReduction.constant), [1 / 30] * 3)


def test_a_sequence_that_is_held_back_still_counts() -> None:
    np.testing.assert_allclose(averaged(LossReduction.sequences, (1.0, 0.0, 1.0)), [1 / 6, 0, 1 / 15])


def test_advantages_need_rewards() -> None:
    with pytest.raises(ValueError, match=r"objective\.task_reward\.mix.*data\.verifier"):
        with_advantages([rewarded(0, None), rewarded(1, 1.0)], 2)

"""What each trajectory of a batch counts for beside its teacher's scores: its weight, and its task advantage."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev

from learner.objectives.config import GateConfig, LossReduction
from learner.records import Example
from tutelage.records.trajectory import CORRECT, FinishReason, Trajectory

MIX = "objective.task_reward.mix"  # what asks for rewards


def keeps(gate: GateConfig, trajectory: Trajectory, has_context: bool) -> bool:
    """Whether the trajectory is learned from.

    Args:
        has_context: the teacher sees more of the prompt than the student.

    Raises:
        ValueError: `only_incorrect` and nobody has graded the response.
    """
    if gate.only_finished and trajectory.finish_reason is not FinishReason.STOP:
        return False
    if gate.max_response_tokens is not None and len(trajectory.response_ids) > gate.max_response_tokens:
        return False
    if gate.only_with_context and not has_context:
        return False
    return not gate.only_incorrect or _reward(trajectory, "objective.gate.only_incorrect") < CORRECT


def with_loss_reduction(examples: Sequence[Example], loss_reduction: LossReduction, max_tokens: int) -> list[Example]:
    """Each example with its weight times what turns the learner's normaliser, the batch's tokens, into that of
    `loss_reduction`.

    A sequence that the gates hold back counts in every normaliser.

    Args:
        max_tokens: that a response may have.
    """
    if loss_reduction is LossReduction.tokens:
        return list(examples)
    share = fmean(example.loss_tokens for example in examples)

    def divisor(example: Example) -> int:
        return max(example.loss_tokens, 1) if loss_reduction is LossReduction.sequences else max_tokens

    return [replace(example, weight=example.weight * share / divisor(example)) for example in examples]


def have_spread(examples: Sequence[Example]) -> bool:
    """Whether a group's rewards differ, so that its advantages are not all zero.

    Raises:
        ValueError: a response that nobody has graded.
    """
    return len({_reward(example.trajectory, MIX) for example in examples}) > 1


def with_advantages(
    examples: Sequence[Example], samples_per_prompt: int, divide_by_deviation: bool = False
) -> list[Example]:
    """Each example with its reward less the mean of its group: the samples of one prompt, all of them here.

    By default nothing divides it (Dr. GRPO, arXiv 2503.20783).

    Args:
        divide_by_deviation: by the group's standard deviation, of n - 1 degrees of freedom (GRPO, arXiv 2402.03300).

    Raises:
        ValueError: a response that nobody has graded.
    """
    members: dict[int, list[float]] = defaultdict(list)
    for example in examples:
        members[_group(example, samples_per_prompt)].append(_reward(example.trajectory, MIX))
    assert all(len(rewards) == samples_per_prompt for rewards in members.values())  # the pipeline keeps them together
    means = {group: fmean(rewards) for group, rewards in members.items()}
    # Where all rewards are equal all advantages are zero, whatever divides them.
    scales = {group: stdev(rewards) or 1.0 if divide_by_deviation else 1.0 for group, rewards in members.items()}

    def advantage(example: Example) -> float:
        group = _group(example, samples_per_prompt)
        return (_reward(example.trajectory, MIX) - means[group]) / scales[group]

    return [replace(example, advantage=advantage(example)) for example in examples]


def _group(example: Example, samples_per_prompt: int) -> int:
    return example.trajectory.slot // samples_per_prompt


def _reward(trajectory: Trajectory, key: str) -> float:
    if trajectory.reward is None:
        raise ValueError(f"{key}: the response to prompt {trajectory.prompt_id!r} has no reward; set data.verifier")
    return trajectory.reward

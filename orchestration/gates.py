"""What each trajectory of a batch counts for beside its teacher's marks: its weight, and its task advantage."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from learner.batch import Example
from learner.objectives.config import GateConfig
from rollout.trajectory import FinishReason, Trajectory

CORRECT = 1.0  # a verifier's full score; anything less is incorrect


def passes(gate: GateConfig, trajectory: Trajectory, has_context: bool) -> bool:
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


def with_advantages(examples: Sequence[Example], samples_per_prompt: int) -> list[Example]:
    """Each example with its reward less the mean of its group: the samples of one prompt, all of them here.

    Neither the group's standard deviation nor the response's length divides it (Dr. GRPO, arXiv 2503.20783).

    Raises:
        ValueError: a response that nobody has graded.
    """
    rewards = [_reward(example.trajectory, "objective.task_reward.mix") for example in examples]
    groups = [example.trajectory.slot // samples_per_prompt for example in examples]
    members: dict[int, list[float]] = defaultdict(list)
    for group, reward in zip(groups, rewards, strict=True):
        members[group].append(reward)
    assert all(len(found) == samples_per_prompt for found in members.values())  # the pipeline keeps them together
    return [
        replace(example, advantage=reward - fmean(members[group]))
        for example, reward, group in zip(examples, rewards, groups, strict=True)
    ]


def _reward(trajectory: Trajectory, key: str) -> float:
    if trajectory.reward is None:
        raise ValueError(f"{key}: the response to prompt {trajectory.prompt_id!r} has no reward; set data.verifier")
    return trajectory.reward

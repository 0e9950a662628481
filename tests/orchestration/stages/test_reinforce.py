"""Reinforcement: an example computed by hand, and what is refused.

The student is indifferent between two ids, so every target has probability 1/2. Three samples of one prompt, with two,
one and three tokens, and rewards 1, 0, 0; each token's ratio is 1/2 over the probability that it was sampled with.
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.objectives import StudentChunk, TokenLosses, build_objective, requirements
from learner.objectives.config import ObjectiveConfig
from learner.packing import pack
from learner.records import Example, Rows
from orchestration.pipeline.weighting import with_advantages, with_loss_reduction
from tests.factories import NEEDED_BY_PRESETS, configured, make_trajectory, message
from tests.learner.positions import close

RATIOS = ([1, 2], [2 / 3], [1, 2, 2 / 3])
REWARDS = (1.0, 0.0, 0.0)
MAX_TOKENS = 4
TOKENS = 6


def example(slot: int, ratios: Sequence[float], reward: float) -> Example:
    logprobs = np.log(0.5 / np.array(ratios))
    trajectory = make_trajectory(
        [0], [0] * len(ratios), slot=slot, sample_index=slot, sampling_logprobs=logprobs, reward=reward
    )
    return Example(trajectory, None)


def group(objective: ObjectiveConfig) -> list[Example]:
    """The samples as the stage weighs them."""
    examples = [example(slot, *of_sample) for slot, of_sample in enumerate(zip(RATIOS, REWARDS, strict=True))]
    weighed = with_loss_reduction(examples, objective.loss_reduction, MAX_TOKENS)
    return with_advantages(weighed, 3, objective.task_reward.divide_by_deviation)


def per_token(values: Sequence[float]) -> Tensor:
    return torch.tensor(
        [value for value, ratios in zip(values, RATIOS, strict=True) for _ in ratios], dtype=torch.float64
    )


def compute(objective: ObjectiveConfig, logits_2: tuple[float, float] = (0.0, 0.0)) -> TokenLosses:
    """At the six tokens, in float64 and without a teacher."""
    examples = group(objective)
    nothing = torch.full((TOKENS,), torch.nan, dtype=torch.float64)
    rows = Rows(
        target_ids=torch.zeros(TOKENS, dtype=torch.int64),
        sampling_logprobs=torch.from_numpy(np.concatenate([e.trajectory.sampling_logprobs for e in examples])),
        temperatures=torch.ones(TOKENS, dtype=torch.float64),
        teacher_logprobs=nothing,
        weights=per_token([e.weight for e in examples]),
        task_advantages=per_token([e.advantage for e in examples if e.advantage is not None]),
    )
    logits = torch.tensor([logits_2] * TOKENS, dtype=torch.float64)
    return build_objective(objective)(StudentChunk.from_logits(logits), rows)


def preset(name: str, *overrides: str) -> ObjectiveConfig:
    return configured(f"objective={name}", *NEEDED_BY_PRESETS[name], *overrides).objective


def expected_gradient(on_targets: Sequence[float]) -> Tensor:
    """[6, 2]: d loss / d log p of the target, through the softmax at probabilities of 1/2."""
    g = torch.tensor(on_targets, dtype=torch.float64)
    return torch.stack([g / 2, -g / 2], dim=1)


def test_dr_grpo_is_what_a_hand_computes() -> None:
    """A = 2/3, -1/3, -1/3. Ratios of 2 are clipped to 1.28 where A > 0, those of 2/3 to 0.8 where A < 0."""
    objective = preset("grpo")
    assert [e.advantage for e in group(objective)] == pytest.approx([2 / 3, -1 / 3, -1 / 3], abs=1e-15)
    surrogates = [2 / 3, 1.28 * 2 / 3, -0.8 / 3, -1 / 3, -2 / 3, -0.8 / 3]
    found = compute(objective)
    divisor = 3 * MAX_TOKENS
    assert found.loss.sum().item() / TOKENS == pytest.approx(-sum(surrogates) / divisor, abs=1e-12)
    assert -sum(surrogates) / divisor == pytest.approx(0.04 / 3 / 12, abs=1e-12)
    close(found.grad_logits / TOKENS, expected_gradient([-2 / 3, 0, 0, 1 / 3, 2 / 3, 0]) / divisor)


def test_the_classic_form_is_what_a_hand_computes() -> None:
    """The rewards' deviation is 1/√3: A = 2/√3, -1/√3, -1/√3; each sequence is averaged, then the three."""
    objective = preset("grpo_classic")
    a = 1 / sqrt(3)
    assert [e.advantage for e in group(objective)] == pytest.approx([2 * a, -a, -a], abs=1e-15)
    loss = -((2 * a + 1.2 * 2 * a) / 2 + (-0.8 * a) + (-a - 2 * a - 0.8 * a) / 3) / 3
    found = compute(objective)
    assert found.loss.sum().item() / TOKENS == pytest.approx(loss, abs=1e-12)
    close(found.grad_logits / TOKENS, expected_gradient([-2 * a / 6, 0, 0, a / 9, 2 * a / 9, 0]))


def test_a_ratio_beyond_the_dual_clip_stops_pushing_down() -> None:
    """At p = 1/(1 + e^-3) the last two ratios of the third sample are 3.8 and 1.3."""
    pushed = compute(preset("grpo"), (3.0, 0.0)).grad_logits[3:, 0]
    assert pushed[0] > 0 and pushed[1] == 0 and pushed[2] > 0
    unbounded = preset("grpo", "objective.dual_clip=null")
    assert compute(unbounded, (3.0, 0.0)).grad_logits[4, 0] > 0


def test_a_pull_towards_a_reference_is_added_to_the_advantage() -> None:
    """A = A_task + share (log ref - log p)."""
    objective = preset("grpo", "objective.task_reward.share=0.5", "objective.reference.model=student")
    needs = requirements(objective)
    assert needs.teacher and needs.reference_logprobs
    reference = torch.full((TOKENS,), 0.25, dtype=torch.float64).log()
    rows = Rows(
        target_ids=torch.zeros(TOKENS, dtype=torch.int64),
        sampling_logprobs=torch.full((TOKENS,), 0.5, dtype=torch.float64).log(),
        temperatures=torch.ones(TOKENS, dtype=torch.float64),
        teacher_logprobs=reference,
        reference_logprobs=reference,
        task_advantages=torch.full((TOKENS,), 2.0, dtype=torch.float64),
    )
    found = build_objective(objective)(StudentChunk.from_logits(torch.zeros(TOKENS, 2, dtype=torch.float64)), rows)
    expected = 2.0 + 0.5 * (torch.tensor(0.25, dtype=torch.float64) / 0.5).log()
    close(found.metrics["advantage"], expected.expand(TOKENS))


def test_the_pull_holds_the_student_where_rewards_and_reference_balance() -> None:
    """The expected gradient vanishes at p proportional to ref exp(reward / share), and not at the reference."""
    objective = preset("grpo", "objective.task_reward.share=0.5", "objective.reference.model=student")
    rewards = torch.tensor([1.0, 0.0, 0.3, 0.0, 0.7], dtype=torch.float64)
    log_reference = torch.tensor([0.1, 0.4, 0.2, 0.2, 0.1], dtype=torch.float64).log()

    def expected(logits: Tensor) -> Tensor:
        """[5], over every token that may be sampled."""
        logp = logits.log_softmax(-1)
        rows = Rows(
            target_ids=torch.arange(5),
            sampling_logprobs=logp,
            temperatures=torch.ones(5, dtype=torch.float64),
            teacher_logprobs=log_reference,
            reference_logprobs=log_reference,
            task_advantages=rewards - (logp.exp() * rewards).sum(),
        )
        found = build_objective(objective)(StudentChunk.from_logits(logits.repeat(5, 1)), rows)
        return (logp.exp()[:, None] * found.grad_logits).sum(0)

    close(expected(log_reference + rewards / 0.5), torch.zeros(5, dtype=torch.float64))
    assert expected(log_reference).abs().max() > 0.01


def test_a_batch_without_a_teacher_can_be_packed() -> None:
    batch = pack(group(preset("grpo")), 1, 64, 0)
    (micro_batch,) = batch.ranks[0]
    assert micro_batch is not None and "task_advantages" in micro_batch.rows
    assert np.isnan(micro_batch.rows["teacher_logprobs"]).all() and batch.loss_tokens == TOKENS


REINFORCE = ["objective=grpo", *NEEDED_BY_PRESETS["grpo"]]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["stage=reinforce"], ["objective.task_reward.mix=none", "objective=grpo"]),
        ([*REINFORCE, "stage=distil"], ["objective=grpo", "stage=reinforce"]),
        ([*REINFORCE, "data.verifier=none"], ["objective.task_reward.mix=additive", "data.verifier"]),
        ([*REINFORCE, "sampling.samples_per_prompt=1"], ["sampling.samples_per_prompt=4"]),
        (
            [*REINFORCE, "objective.task_reward.share=0.1"],
            ["objective.reference.model=null", "set it to student", "objective.task_reward.share=0"],
        ),
        ([*REINFORCE, "objective.reference.model=student"], ["objective.reference.model=student", "share=0.01"]),
        (
            [
                *REINFORCE,
                "objective.reference.model=student",
                "objective.task_reward.share=0.1",
                "objective.reference.extrapolation=1.25",
            ],
            ["objective.reference.extrapolation=1.25", "set 1"],
        ),
        (
            [*REINFORCE, "objective.gate.only_with_context=true"],
            ["objective.gate.only_with_context=true", "no teacher"],
        ),
        ([*REINFORCE, "pipeline.max_replaced_groups=-1"], ["pipeline.max_replaced_groups=-1"]),
        (["pipeline.max_replaced_groups=4"], ["pipeline.max_replaced_groups=4", "stage=reinforce"]),
    ],
)
def test_what_cannot_be_reinforced_is_refused_with_its_fix(overrides: list[str], parts: list[str]) -> None:
    text = message(*overrides)
    for part in parts:
        assert part in text

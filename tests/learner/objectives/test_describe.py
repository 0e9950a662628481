"""An objective in words and as a formula."""

from dataclasses import fields, replace
from itertools import product

from learner.objectives.config import (
    Gradient,
    Importance,
    LossReduction,
    Normalisation,
    ObjectiveConfig,
    Spans,
    Support,
    TermConfig,
    TokenMaskConfig,
)
from learner.objectives.describe import describe
from learner.objectives.divergences import DIVERGENCES
from learner.objectives.rules.refusals import refusals
from tests.learner.objectives.refused.settings import SAMPLED, USUAL, objective


def test_the_default_objective_is_accepted_and_described() -> None:
    assert refusals(ObjectiveConfig(), USUAL) == []
    text = " ".join(describe(ObjectiveConfig()).words)
    assert "reverse KL(student || teacher)" in text and "the student's top 16" in text


def test_each_part_of_a_term_that_matters_changes_its_description() -> None:
    sampled = objective(SAMPLED)
    variants = [
        sampled,
        *(replace(sampled, importance=importance) for importance in (Importance.none, Importance.ppo_clip)),
        replace(sampled, control_variate=True),
        *(replace(sampled, tokens=TokenMaskConfig(spans=spans)) for spans in (Spans.one_to_one, Spans.merged)),
        replace(sampled, gradient=Gradient.backprop, estimator="k2"),
        replace(sampled, gradient=Gradient.backprop, estimator="k3", divergence="forward_kl"),
        *(
            replace(ObjectiveConfig(), support=support, normalisation=normalisation, divergence=divergence)
            for support, normalisation, divergence in product(Support, Normalisation, DIVERGENCES)
            if support is not Support.sampled and (support is not Support.full or normalisation is Normalisation.raw)
        ),
    ]
    described = [(d.words, d.formula) for d in map(describe, variants)]
    assert len(set(described)) == len(described)


def test_the_description_names_every_number_that_was_set() -> None:
    numbers = {"k": 7, "weight": 0.3, "alpha": 0.21, "ratio_cap": 4.5, "shaping_high": 3.25, "shaping_low": -2.75}
    assert set(numbers) <= {item.name for item in fields(TermConfig)}
    base = {"weight": 0.3, "support": "teacher_topk", "k": 7, "divergence": "skewed_forward_kl", "alpha": 0.21}
    sampled = SAMPLED | {"ratio_cap": 4.5, "shaping": "clip", "shaping_high": 3.25, "shaping_low": -2.75}
    found = describe(objective(base | {"further_terms": {"other": sampled}}))
    for number in numbers.values():
        assert f"{number:g}" in " ".join(found.words), number
    assert "0.3 ×" in found.formula[0] and found.formula[1].startswith("+ other: ")


def test_the_ends_of_a_family_are_described_as_what_they_are() -> None:
    jsd, forward = (objective({"support": "full", "divergence": name, "beta": 0.0}) for name in ("jsd", "forward_kl"))
    assert describe(jsd) == describe(forward)
    skewed = objective({"support": "full", "divergence": "skewed_reverse_kl", "alpha": 0.0})
    assert describe(skewed) == describe(objective({"support": "full"}))


def test_the_task_reward_stands_outside_the_shaping() -> None:
    mixed = objective(SAMPLED | {"shaping": "tanh", "task_reward": {"mix": "additive", "share": 0.3}})
    assert "A = 0.3 [tanh(log(q/p))] + (reward - mean" in describe(mixed).formula[0]


def test_rewards_alone_are_described_without_a_teacher() -> None:
    alone = objective(SAMPLED | {"task_reward": {"mix": "additive", "share": 0.0}, "loss_reduction": "constant"})
    said = " ".join(describe(alone).words)
    assert "the task's reward alone on the sampled token" in said and "KL" not in said and "mixture" not in said
    assert "A = (reward - mean reward of the prompt's samples);" in describe(alone).formula[0]
    assert describe(alone).formula[-1] == "loss = Σ_t l(t) / (number of sequences × sampling.max_tokens)"
    classic = replace(alone, loss_reduction=LossReduction.sequences)
    classic = replace(classic, task_reward=replace(alone.task_reward, divide_by_deviation=True))
    assert "samples) / their standard deviation" in describe(classic).formula[0]
    assert "the sequence's response tokens" in describe(classic).formula[-1]

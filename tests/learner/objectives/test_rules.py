"""What is refused, and that each refusal names a setting, a reason and an alternative that is accepted."""

from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest
from omegaconf import OmegaConf

from learner.objectives.config import (
    Estimator,
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
from learner.objectives.rules import cross_tokenizer as cross_tokenizer_rules
from learner.objectives.rules.case import RunFacts
from learner.objectives.rules.refusals import refusals
from learner.objectives.rules.terms import TERM_RULES
from learner.objectives.rules.whole import OBJECTIVE_RULES

ALL_RULES = (
    *TERM_RULES,
    *OBJECTIVE_RULES,
    *cross_tokenizer_rules.TERM_RULES,
    *cross_tokenizer_rules.OBJECTIVE_RULES,
)
ON_POLICY = RunFacts(batch_size=16)
USUAL = RunFacts(temperature=0.7, max_staleness=1, batch_size=16)
SAMPLED = {"support": "sampled", "gradient": "policy_gradient", "importance": "truncated"}
ACROSS = RunFacts(batch_size=16, cross_tokenizer=True)
LIKELIHOOD = {"support": "sampled", "gradient": "backprop", "estimator": "likelihood", "divergence": "forward_kl"}
GRADED = RunFacts(batch_size=16, samples_per_prompt=4, has_verifier=True)


def objective(settings: dict[str, Any]) -> ObjectiveConfig:
    built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ObjectiveConfig), settings))
    assert isinstance(built, ObjectiveConfig)
    return built


CASES: list[tuple[str, dict[str, Any], RunFacts, list[str], dict[str, Any]]] = [
    # what is wrong, its settings, the run, parts of the message, what mends it
    (
        "spans of a teacher that has the student's tokens",
        SAMPLED | {"tokens": {"spans": "merged"}},
        ON_POLICY,
        ["objective.tokens.spans=merged", "teacher.cross_tokenizer=true"],
        {"tokens": {"spans": "all"}},
    ),
    (
        "the whole vocabulary of another tokenizer",
        {"support": "full"},
        ACROSS,
        ["objective.support=full", "not the student's", "objective=cross_tokenizer"],
        SAMPLED,
    ),
    (
        "the most likely ids of another tokenizer",
        {"support": "union", "normalisation": "tail"},
        ACROSS,
        ["objective.support=union", "student_topk"],
        SAMPLED | {"normalisation": "raw"},
    ),
    (
        "ids without an equal in another tokenizer, not renormalised",
        {"tokens": {"spans": "one_to_one"}},
        ACROSS,
        ["objective.normalisation=raw", "set normalisation=renormalised"],
        {"normalisation": "renormalised"},
    ),
    (
        "ids compared where another tokenizer has other boundaries",
        {"normalisation": "tail"},
        ACROSS,
        ["objective.tokens.spans=all", "set tokens.spans=one_to_one"],
        {"tokens": {"spans": "one_to_one"}},
    ),
    (
        "a baseline over another vocabulary",
        SAMPLED | {"control_variate": True},
        ACROSS,
        ["objective.control_variate=True", "teacher.cross_tokenizer=true"],
        {"control_variate": False},
    ),
    (
        "trust in single tokens of another tokenizer",
        SAMPLED | {"tokens": {"trust": "inside"}},
        ACROSS,
        ["objective.tokens.trust=inside", "share one q"],
        {"tokens": {"trust": "none"}},
    ),
    (
        "returns of single tokens of another tokenizer",
        SAMPLED | {"returns": {"discount": 1.0, "exact_first_step": False}},
        ACROSS,
        ["objective.returns.discount=1.0", "share one"],
        {"returns": {"discount": 0.0}},
    ),
    (
        "a reference beside a teacher with another tokenizer",
        SAMPLED | {"reference": {"model": "student", "extrapolation": 1.25}},
        ACROSS,
        ["objective.reference.model=student", "set reference.model=null"],
        {"reference": {"model": None, "extrapolation": 1.0}},
    ),
    (
        "sequences in the ids of another tokenizer",
        LIKELIHOOD | {"sequences": {"on_policy_fraction": 0.0}},
        ACROSS,
        ["objective.sequences.on_policy_fraction=0.0", "sequences.other_source=dataset"],
        {"sequences": {"other_source": "dataset"}},
    ),
    (
        "k1 back-propagated",
        {"support": "sampled"},
        ON_POLICY,
        ["objective.estimator=k1", "expected gradient of zero", "gradient=policy_gradient", "estimator=k2"],
        {"gradient": "policy_gradient"},
    ),
    (
        "a divergence as the sampled token's advantage",
        {"support": "full", "gradient": "scalar_advantage"},
        ON_POLICY,
        ["objective.gradient=scalar_advantage", "expected gradient is zero", "gradient=backprop"],
        {"gradient": "backprop"},
    ),
    (
        "the same on the sampled token",
        SAMPLED | {"gradient": "scalar_advantage"},
        ON_POLICY,
        ["objective.gradient=scalar_advantage", "policy_gradient"],
        {"gradient": "policy_gradient"},
    ),
    (
        "top-p with sampled tokens",
        SAMPLED,
        replace(USUAL, top_p=0.9),
        ["sampling.top_p=0.9", "have none", "sampling.top_p=1"],
        {"support": "full", "gradient": "backprop", "importance": "none"},
    ),
    (
        "top-k with sampled tokens",
        SAMPLED,
        replace(USUAL, top_k=20),
        ["sampling.top_k=20", "sampling.top_k=-1"],
        {"support": "full", "gradient": "backprop", "importance": "none"},
    ),
    (
        "top-p with returns",
        {"support": "full", "importance": "truncated", "returns": {"discount": 1.0}},
        replace(USUAL, top_p=0.9),
        ["sampling.top_p=0.9"],
        {"returns": {"discount": 0.0}, "importance": "none"},
    ),
    (
        "sampled tokens of others' sequences",
        SAMPLED | {"sequences": {"on_policy_fraction": 0.5}},
        USUAL,
        ["objective.sequences.on_policy_fraction=0.5", "sampling log-probs", "teacher_topk or full"],
        {"sequences": {"on_policy_fraction": 1.0}},
    ),
    (
        "sampled tokens of others' sequences in a further term",
        {"support": "full", "sequences": {"on_policy_fraction": 0.5}, "further_terms": {"more": SAMPLED}},
        USUAL,
        ["objective.sequences.on_policy_fraction=0.5", "sampled token"],
        {"sequences": {"on_policy_fraction": 1.0}},
    ),
    (
        "student ids of others' sequences",
        {"support": "union", "sequences": {"on_policy_fraction": 0.5}},
        USUAL,
        ["objective.sequences.on_policy_fraction=0.5", "top-k ids"],
        {"support": "full"},
    ),
    (
        "the likelihood of its own samples",
        {"support": "sampled", "divergence": "forward_kl", "estimator": "likelihood"},
        USUAL,
        ["objective.estimator=likelihood", "expected gradient of zero", "sequences.on_policy_fraction=0"],
        {"sequences": {"on_policy_fraction": 0.0}},
    ),
    (
        "the likelihood under another divergence's name",
        {"support": "sampled", "estimator": "likelihood", "sequences": {"on_policy_fraction": 0.0}},
        USUAL,
        ["objective.estimator=likelihood", "forward KL", "divergence=forward_kl"],
        {"divergence": "forward_kl"},
    ),
    (
        "a ratio on tokens that the student did not sample",
        {
            "support": "sampled",
            "divergence": "forward_kl",
            "estimator": "likelihood",
            "importance": "truncated",
            "sequences": {"on_policy_fraction": 0.0},
        },
        USUAL,
        ["objective.importance=truncated", "learns what another wrote", "set none"],
        {"importance": "none"},
    ),
    (
        "sampled tokens of another policy, not weighed",
        SAMPLED | {"importance": "none"},
        replace(ON_POLICY, max_staleness=1),
        ["objective.importance=none", "pipeline.max_staleness=1", "importance=truncated"],
        {"importance": "truncated"},
    ),
    (
        "sampled tokens at another temperature, not weighed",
        SAMPLED | {"importance": "none"},
        replace(ON_POLICY, temperature=0.7),
        ["objective.importance=none", "sampling.temperature=0.7"],
        {"importance": "truncated"},
    ),
    (
        "an importance ratio without a sampled token",
        {"importance": "truncated"},
        USUAL,
        ["objective.importance=truncated", "sums over its support", "set none"],
        {"importance": "none"},
    ),
    (
        "a temperature of single tokens",
        {"teacher_temperature": 2.0},
        USUAL,
        ["objective.teacher_temperature=2.0", "support=full"],
        {"support": "full"},
    ),
    (
        "a temperature of returns",
        {"support": "full", "teacher_temperature": 2.0, "returns": {"discount": 1.0}},
        ON_POLICY,
        ["objective.teacher_temperature=2.0", "returns.discount=0"],
        {"teacher_temperature": 1.0},
    ),
    (
        "naive truncation",
        {"normalisation": "naive"},
        USUAL,
        ["objective.normalisation=naive", "p = q/e", "objective.unsafe_baseline=true"],
        {"unsafe_baseline": True},
    ),
    (
        "the negative control",
        {"support": "symmetric_difference"},
        USUAL,
        ["objective.support=symmetric_difference", "negative control", "support=union"],
        {"support": "union"},
    ),
    (
        "a truncated forward KL alone",
        {"support": "teacher_topk", "divergence": "forward_kl"},
        USUAL,
        ["objective.normalisation=raw", "impossible", "normalisation=tail"],
        {"normalisation": "tail"},
    ),
    (
        "the same as a jsd",
        {"support": "teacher_topk", "divergence": "jsd", "beta": 0.0},
        USUAL,
        ["objective.normalisation=raw", "normalisation=tail"],
        {"beta": 0.5},
    ),
    (
        "one renormalised token",
        {"normalisation": "renormalised", "k": 1},
        USUAL,
        ["objective.k=1", "always zero", "k=2"],
        {"k": 2},
    ),
    (
        "a normalised sampled token",
        SAMPLED | {"normalisation": "tail"},
        USUAL,
        ["objective.normalisation=tail", "normalisation=raw"],
        {"normalisation": "raw"},
    ),
    (
        "a normalised vocabulary",
        {"support": "full", "normalisation": "renormalised"},
        USUAL,
        ["objective.normalisation=renormalised", "normalisation=raw"],
        {"normalisation": "raw"},
    ),
    (
        "an averaged forward KL",
        {"support": "teacher_topk", "divergence": "forward_kl", "normalisation": "averaged", "unsafe_baseline": True},
        USUAL,
        ["objective.normalisation=averaged", "reverse_kl"],
        {"divergence": "reverse_kl"},
    ),
    (
        "k3 as the reverse KL",
        {"support": "sampled", "estimator": "k3"},
        ON_POLICY,
        ["objective.estimator=k3", "forward KL's", "estimator=k2"],
        {"divergence": "forward_kl"},
    ),
    (
        "k2 as the forward KL",
        {"support": "sampled", "estimator": "k2", "divergence": "forward_kl"},
        ON_POLICY,
        ["objective.estimator=k2", "reverse KL's"],
        {"divergence": "reverse_kl"},
    ),
    (
        "k3 as a reward",
        SAMPLED | {"estimator": "k3", "divergence": "forward_kl"},
        USUAL,
        ["objective.estimator=k3", "only k1", "gradient=backprop"],
        {"gradient": "backprop"},
    ),
    (
        "an estimator without a sample",
        {"estimator": "k2"},
        USUAL,
        ["objective.estimator=k2", "support=sampled"],
        {"estimator": "k1"},
    ),
    (
        "shaping without an advantage",
        {"shaping": "clip"},
        USUAL,
        ["objective.shaping=clip", "gradient=policy_gradient"],
        {"gradient": "policy_gradient"},
    ),
    (
        "a baseline without sampling noise",
        {"control_variate": True},
        USUAL,
        ["objective.control_variate=True", "support=sampled"],
        {"control_variate": False},
    ),
    (
        "another divergence's baseline",
        SAMPLED | {"control_variate": True, "divergence": "forward_kl"},
        USUAL,
        ["objective.control_variate=True", "divergence=reverse_kl"],
        {"divergence": "reverse_kl"},
    ),
    (
        "PPO's clip without a policy gradient",
        {"support": "sampled", "estimator": "k2", "importance": "ppo_clip"},
        USUAL,
        ["objective.importance=ppo_clip", "importance=truncated"],
        {"importance": "truncated"},
    ),
    (
        "a dual clip alone",
        SAMPLED | {"dual_clip": 3.0},
        USUAL,
        ["objective.dual_clip=3.0", "importance=ppo_clip"],
        {"importance": "ppo_clip"},
    ),
    (
        "an exact first step of a sample",
        SAMPLED | {"returns": {"discount": 1.0}},
        USUAL,
        ["objective.returns.exact_first_step=True", "objective.support=full"],
        {"returns": {"exact_first_step": False}},
    ),
    (
        "a sampled first step of a support",
        {"support": "full", "importance": "truncated", "returns": {"discount": 1.0, "exact_first_step": False}},
        USUAL,
        ["objective.returns.exact_first_step=False", "objective.support=sampled"],
        {"returns": {"exact_first_step": True}},
    ),
    (
        "returns of another divergence",
        {"support": "full", "divergence": "jsd", "importance": "truncated", "returns": {"discount": 1.0}},
        USUAL,
        ["objective.returns.discount=1.0", "divergence=reverse_kl"],
        {"divergence": "reverse_kl"},
    ),
    (
        "an average of nothing",
        {"support": "full", "returns": {"length_normalised": True}},
        USUAL,
        ["objective.returns.length_normalised=True", "returns.discount=1"],
        {"importance": "truncated", "returns": {"discount": 1.0}},
    ),
    (
        "the same as a skew of 0",
        {"support": "teacher_topk", "divergence": "skewed_forward_kl", "alpha": 0.0},
        USUAL,
        ["objective.normalisation=raw", "normalisation=tail"],
        {"alpha": 0.1},
    ),
    (
        "extrapolation from nothing",
        SAMPLED | {"reference": {"extrapolation": 1.25}},
        USUAL,
        ["objective.reference.extrapolation=1.25", "objective.reference.model=student"],
        {"reference": {"model": "student"}},
    ),
    (
        "extrapolation on a support",
        {"reference": {"model": "student", "extrapolation": 1.25}},
        USUAL,
        ["objective.reference.model=student", "objective.support=sampled"],
        SAMPLED,
    ),
    (
        "a task reward that nobody gives",
        SAMPLED | {"task_reward": {"mix": "convex"}},
        replace(USUAL, samples_per_prompt=4),
        ["objective.task_reward.mix=convex", "data.verifier"],
        {"task_reward": {"mix": "none"}},
    ),
    (
        "a task reward of one sample",
        SAMPLED | {"task_reward": {"mix": "convex"}},
        replace(USUAL, has_verifier=True),
        ["objective.task_reward.mix=convex", "sampling.samples_per_prompt=4"],
        {"task_reward": {"mix": "none"}},
    ),
    (
        "a group in two batches",
        SAMPLED | {"task_reward": {"mix": "convex"}},
        replace(GRADED, batch_size=6),
        ["objective.task_reward.mix=convex", "pipeline.batch_size"],
        {"task_reward": {"mix": "none"}},
    ),
    (
        "a task reward on a support",
        {"task_reward": {"mix": "additive"}},
        GRADED,
        ["objective.task_reward.mix=additive", "objective.support=sampled"],
        SAMPLED,
    ),
    (
        "a deviation of rewards that nobody learns from",
        SAMPLED | {"task_reward": {"divide_by_deviation": True}},
        GRADED,
        ["objective.task_reward.divide_by_deviation=True", "task_reward.mix=additive"],
        {"task_reward": {"mix": "additive"}},
    ),
    (
        "a task reward of others' sequences",
        SAMPLED | {"task_reward": {"mix": "convex"}, "sequences": {"on_policy_fraction": 0.5}},
        GRADED,
        ["objective.sequences.on_policy_fraction=0.5", "student's own answers"],
        {"sequences": {"on_policy_fraction": 1.0}},
    ),
    (
        "more than the whole mixture",
        SAMPLED | {"task_reward": {"mix": "convex", "share": 1.5}},
        GRADED,
        ["objective.task_reward.share=1.5", "task_reward.mix=additive"],
        {"task_reward": {"mix": "additive"}},
    ),
    (
        "a gate that nobody opens",
        {"gate": {"only_incorrect": True}},
        USUAL,
        ["objective.gate.only_incorrect=True", "data.verifier"],
        {"gate": {"only_incorrect": False}},
    ),
    (
        "two whole vocabularies",
        {"support": "full", "further_terms": {"forward": {"support": "full", "divergence": "forward_kl"}}},
        USUAL,
        ["objective.support=full", "more than one term"],
        {"support": "student_topk"},
    ),
    (
        "two tails",
        {"normalisation": "tail", "further_terms": {"more": {"support": "teacher_topk", "normalisation": "tail"}}},
        USUAL,
        ["objective.normalisation=tail", "more than one term"],
        {"normalisation": "raw"},
    ),
    (
        "a wrong further term",
        {"further_terms": {"more": {"shaping": "tanh"}}},
        USUAL,
        ["objective.further_terms.more.shaping=tanh"],
        {"further_terms": {"more": {"gradient": "policy_gradient"}}},
    ),
]  # fmt: skip
OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    ({"weight": -1.0}, "objective.weight=-1.0"),
    ({"weight": float("nan")}, "objective.weight=nan"),
    ({"k": 0}, "objective.k=0"),
    ({"divergence": "jsd", "beta": 1.5}, "objective.beta=1.5"),
    ({"divergence": "skewed_reverse_kl", "alpha": 1.0}, "objective.alpha=1.0"),
    (SAMPLED | {"ratio_cap": 0.0}, "objective.ratio_cap=0.0"),
    (SAMPLED | {"importance": "ppo_clip", "clip_low": 1.5}, "objective.clip_low=1.5"),
    (SAMPLED | {"importance": "ppo_clip", "clip_high": 0.0}, "objective.clip_high=0.0"),
    (SAMPLED | {"importance": "ppo_clip", "dual_clip": 1.0}, "objective.dual_clip=1.0"),
    (SAMPLED | {"shaping": "clip", "shaping_low": 6.0}, "objective.shaping_low=6.0"),
    (SAMPLED | {"shaping": "length_aware", "shaping_high": 0.0}, "objective.shaping_high=0.0"),
    ({"tokens": {"first": -1}}, "objective.tokens.first=-1"),
    ({"tokens": {"first": 4, "last": 4}}, "objective.tokens.last=4"),
    (
        {"tokens": {"teacher_entropy_above": 1.0, "teacher_entropy_below": 0.5}},
        "objective.tokens.teacher_entropy_below=0.5",
    ),
    ({"tokens": {"share": 0.0}}, "objective.tokens.share=0.0"),
    ({"support": "full", "teacher_temperature": 0.0}, "objective.teacher_temperature=0.0"),
    ({"sequences": {"on_policy_fraction": 1.1}}, "objective.sequences.on_policy_fraction=1.1"),
    ({"support": "full", "returns": {"discount": 1.5}}, "objective.returns.discount=1.5"),
    (SAMPLED | {"reference": {"model": "student", "extrapolation": 0.0}}, "objective.reference.extrapolation=0.0"),
    (SAMPLED | {"task_reward": {"mix": "convex", "share": -0.1}}, "objective.task_reward.share=-0.1"),
    ({"gate": {"max_response_tokens": 0}}, "objective.gate.max_response_tokens=0"),
]


@pytest.mark.parametrize(
    ("settings", "run", "parts", "mended"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_wrong_composition_is_refused_with_its_reason_and_a_way_out(
    settings: dict[str, Any], run: RunFacts, parts: list[str], mended: dict[str, Any]
) -> None:
    text = "\n".join(map(str, refusals(objective(settings), run)))
    for part in parts:
        assert part in text
    merged = OmegaConf.to_container(OmegaConf.merge(settings, mended))
    assert isinstance(merged, dict)
    assert refusals(objective(merged), run) == []


@pytest.mark.parametrize(("settings", "start"), OUT_OF_RANGE, ids=[case[1] for case in OUT_OF_RANGE])
def test_a_value_out_of_range_is_refused(settings: dict[str, Any], start: str) -> None:
    config = objective(settings)
    refused = [*config.refusals("objective."), *refusals(config, GRADED)]
    assert any(str(refusal).startswith(f"{start}: ") for refusal in refused)


def test_every_rule_has_a_case_that_breaks_it() -> None:
    cases = [*((case[1], case[2]) for case in CASES), *((settings, GRADED) for settings, _ in OUT_OF_RANGE)]
    said = {refusal.fix for settings, run in cases for refusal in refusals(objective(settings), run)}
    assert [rule.why for rule in ALL_RULES if rule.why not in said] == []


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
        replace(sampled, gradient=Gradient.backprop, estimator=Estimator.k2),
        replace(sampled, gradient=Gradient.backprop, estimator=Estimator.k3, divergence="forward_kl"),
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

"""What is refused, and that each refusal names a setting, a reason and an alternative that is accepted."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from omegaconf import OmegaConf

from learner.objectives.config import ObjectiveConfig
from learner.objectives.rules import cross_tokenizer as cross_tokenizer_rules
from learner.objectives.rules.case import RunFacts
from learner.objectives.rules.refusals import refusals
from learner.objectives.rules.terms import TERM_RULES
from learner.objectives.rules.whole import OBJECTIVE_RULES
from tests.learner.objectives.refused import cross_tokenizer, terms, whole
from tests.learner.objectives.refused.settings import GRADED, SAMPLED, objective
from tutelage.settings import Bounds, Settings

ALL_RULES = (
    *TERM_RULES,
    *OBJECTIVE_RULES,
    *cross_tokenizer_rules.TERM_RULES,
    *cross_tokenizer_rules.OBJECTIVE_RULES,
)
CASES = [*cross_tokenizer.CASES, *terms.CASES, *whole.CASES]
OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    ({"divergence": "hellinger"}, "objective.divergence=hellinger"),
    ({"support": "sampled", "estimator": "k4"}, "objective.estimator=k4"),
    ({"further_terms": {"more": {"divergence": "kl"}}}, "objective.further_terms.more.divergence=kl"),
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
    (SAMPLED | {"shaping": "clip", "shaping_high": float("inf")}, "objective.shaping_high=inf"),
    ({"tokens": {"first": -1}}, "objective.tokens.first=-1"),
    ({"tokens": {"first": 4, "last": 4}}, "objective.tokens.last=4"),
    (
        {"tokens": {"teacher_entropy_above": 1.0, "teacher_entropy_below": 0.5}},
        "objective.tokens.teacher_entropy_below=0.5",
    ),
    ({"tokens": {"teacher_entropy_above": -1.0}}, "objective.tokens.teacher_entropy_above=-1.0"),
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


def bounded(settings: Settings, prefix: str) -> Iterator[str]:
    """Full names of the settings that have a range."""
    for item in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, item.name)
        if isinstance(value, Settings):
            yield from bounded(value, f"{prefix}{item.name}.")
        elif "bounds" in item.metadata and item.metadata["bounds"] != Bounds():
            yield f"{prefix}{item.name}"


def test_every_range_has_a_value_out_of_it() -> None:
    tried = {start.partition("=")[0] for _, start in OUT_OF_RANGE}
    assert set(bounded(ObjectiveConfig(), "objective.")) <= tried


def test_a_name_without_a_divergence_is_told_which_there_are() -> None:
    (refusal,) = refusals(objective({"divergence": "hellinger"}), GRADED)
    assert "reverse_kl" in refusal.fix and "skewed_forward_kl" in refusal.fix

"""Which compositions mean nothing or something else than they seem to, and what to write instead.

The rules are tables (`term_rules`, `objective_rules`, `cross_tokenizer_rules`); the formulas behind their reasons are
in docs/objectives.md.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce

from learner.objectives.config import Importance, ObjectiveConfig
from learner.objectives.rules import cross_tokenizer as cross_tokenizer_rules
from learner.objectives.rules.case import Case, Rule, RunFacts
from learner.objectives.rules.terms import TERM_RULES
from learner.objectives.rules.whole import OBJECTIVE_RULES


def _value(node: object, path: str) -> object:
    value = reduce(getattr, path.split("."), node)
    return getattr(value, "value", value)  # an enum by the name that the user writes


def _broken(rules: tuple[Rule, ...], case: Case, key: str) -> Iterator[str]:
    for rule in rules:
        if rule.broken(case):
            yield f"{key}.{rule.setting}={_value(case.term, rule.setting)}: {rule.why}"


def _sampling(case: Case, key: str) -> Iterator[str]:
    """How the tokens were drawn against what the term takes them for."""
    run = case.run
    truncations = {"sampling.top_p": (run.top_p, run.top_p < 1), "sampling.top_k": (run.top_k, run.top_k > 0)}
    for setting, (value, truncates) in truncations.items():
        if truncates:
            yield (
                f"{setting}={value}: {key} weighs sampled tokens by ratios of full-softmax probabilities, and tokens "
                "outside the truncated support have none; set sampling.top_p=1 and sampling.top_k=-1 (a temperature "
                "is corrected)"
            )
    stale = run.max_staleness > 0 or run.temperature != 1
    if stale and case.term.importance is Importance.none:
        yield (
            f"{key}.importance=none: with pipeline.max_staleness={run.max_staleness} and sampling.temperature="
            f"{run.temperature:g} the tokens are not drawn from the student that learns, so its probabilities have to "
            "be recomputed and weighed against theirs; set importance=truncated, or pipeline.max_staleness=0 and "
            "sampling.temperature=1"
        )


def refusals(objective: ObjectiveConfig, run: RunFacts) -> list[str]:
    """Everything that is wrong with an objective, one message each: setting, value, reason, right alternative."""
    whole = Case(objective, objective, run)
    found: list[str] = []
    for key, term in whole.terms.items():
        case = replace(whole, term=term)
        found += _broken((*TERM_RULES, *cross_tokenizer_rules.TERM_RULES), case, key)
        if case.learns_from_sample:
            found += _sampling(case, key)
    return found + list(_broken((*OBJECTIVE_RULES, *cross_tokenizer_rules.OBJECTIVE_RULES), whole, "objective"))

"""Which compositions mean nothing or something else than they seem to, and what to write instead.

The rules are tables (`terms`, `whole`, `cross_tokenizer`); the formulas behind their reasons are in
docs/objectives.md.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce

from learner.objectives.config import Importance, ObjectiveConfig, Support, TermConfig
from learner.objectives.divergences import DIVERGENCES
from learner.objectives.estimators import ESTIMATORS
from learner.objectives.rules import cross_tokenizer as cross_tokenizer_rules
from learner.objectives.rules.case import Case, Rule, RunFacts
from learner.objectives.rules.terms import TERM_RULES
from learner.objectives.rules.whole import OBJECTIVE_RULES
from tutelage.settings import Refusal


def _broken(rules: tuple[Rule, ...], case: Case, key: str) -> Iterator[Refusal]:
    for rule in rules:
        if rule.broken(case):
            value = reduce(getattr, rule.setting.split("."), case.term)
            yield Refusal(f"{key}.{rule.setting}", value, rule.why)


def _divergence(term: TermConfig, key: str) -> Iterator[Refusal]:
    """A divergence that nobody has registered, or parameters that it cannot have."""
    unknown = DIVERGENCES.refusal(term.divergence, f"{key}.divergence")
    if unknown is not None:
        yield unknown
        return
    for name, bounds in DIVERGENCES[term.divergence].parameters.items():
        refusal = bounds.refusal(f"{key}.{name}", getattr(term, name))
        if refusal is not None:
            yield refusal


def _estimator(term: TermConfig, key: str) -> Iterator[Refusal]:
    """An estimator that nobody has registered, or of another divergence than the term names."""
    unknown = ESTIMATORS.refusal(term.estimator, f"{key}.estimator")
    if unknown is not None:
        yield unknown
    elif term.support is Support.sampled:
        estimator = ESTIMATORS[term.estimator]
        if estimator.divergence not in ("", term.divergence):
            named = estimator.divergence
            fix = estimator.misnamed or f"its expected gradient is that of {named}: set divergence={named}"
            yield Refusal(f"{key}.estimator", term.estimator, fix)


def _sampling(case: Case, key: str) -> Iterator[Refusal]:
    """How the tokens were drawn against what the term takes them for."""
    run = case.run
    truncations = {"sampling.top_p": (run.top_p, run.top_p < 1), "sampling.top_k": (run.top_k, run.top_k > 0)}
    for setting, (value, truncates) in truncations.items():
        if truncates:
            yield Refusal(
                setting,
                value,
                f"{key} weighs sampled tokens by ratios of full-softmax probabilities, and tokens outside the "
                "truncated support have none; set sampling.top_p=1 and sampling.top_k=-1 (a temperature is corrected)",
            )
    stale = run.max_staleness > 0 or run.temperature != 1
    if stale and case.term.importance is Importance.none:
        yield Refusal(
            f"{key}.importance",
            "none",
            f"with pipeline.max_staleness={run.max_staleness} and sampling.temperature={run.temperature:g} the tokens "
            "are not drawn from the student that learns, so its probabilities have to be recomputed and weighed "
            "against theirs; set importance=truncated, or pipeline.max_staleness=0 and sampling.temperature=1",
        )


def refusals(objective: ObjectiveConfig, run: RunFacts) -> list[Refusal]:
    """Everything that is wrong with an objective in its run, each with its reason and the right alternative.

    The range of a single field is on the field: `objective.refusals("objective.")`.
    """
    on_objective = Case(objective, objective, run)
    refused: list[Refusal] = []
    for key, term in on_objective.terms.items():
        case = replace(on_objective, term=term)
        refused += _divergence(term, key)
        refused += _estimator(term, key)
        refused += _broken((*TERM_RULES, *cross_tokenizer_rules.TERM_RULES), case, key)
        if case.learns_from_sample:
            refused += _sampling(case, key)
    rules = (*OBJECTIVE_RULES, *cross_tokenizer_rules.OBJECTIVE_RULES)
    return refused + list(_broken(rules, on_objective, "objective"))

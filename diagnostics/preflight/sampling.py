"""How tokens are drawn against what the objective takes them for."""

from diagnostics.check import Check, Status
from learner.objectives.config import ObjectiveConfig
from learner.objectives.rules.case import Case, RunFacts
from learner.objectives.rules.refusals import refusals


def check_sampling(objective: ObjectiveConfig, run: RunFacts) -> Check:
    """Hold the objective's rules against this sampling, and name what is allowed but changes what is learned."""
    name = "sampling and objective"
    refused = refusals(objective, run)
    if refused:
        seen = f"{len(refused)} settings contradict the objective"
        return Check(name, Status.failed, seen, "; ".join(map(str, refused)))
    case = Case(objective, objective, run)
    terms = [Case(term, objective, run) for term in case.terms.values()]
    ratios = "weighs sampled tokens by ratios" if any(c.learns_from_sample for c in terms) else "uses no ratios"
    seen = f"temperature {run.temperature:g}, top-p {run.top_p:g}, top-k {run.top_k}; {objective.name} {ratios}"
    if run.top_p < 1 or run.top_k > 0:
        fix = "set sampling.top_p=1 and sampling.top_k=-1: likely tokens are all that the student learns about"
        return Check(name, Status.warned, f"{seen}; the sequences are those of a truncated distribution", fix)
    return Check(name, Status.passed, seen)


def check_teacher_temperature(objective: ObjectiveConfig) -> Check:
    """Whether the student learns from the teacher as it is."""
    temperature = objective.teacher_temperature
    seen = f"the teacher's distributions are taken at temperature {temperature:g}"
    if temperature == 1:
        return Check("teacher temperature", Status.passed, seen)
    fix = "set objective.teacher_temperature=1 unless a softened teacher is what the student is to become"
    return Check("teacher temperature", Status.warned, seen, fix)

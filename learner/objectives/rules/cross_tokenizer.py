"""Rules about a teacher whose tokens are not the student's: what it can score, and what that is good for."""

from collections.abc import Callable

from learner.objectives.config import Normalisation, OtherSource, Spans, Support, Trust
from learner.objectives.rules.case import Case, Rule


def _across(broken: Callable[[Case], bool]) -> Callable[[Case], bool]:
    return lambda c: c.run.cross_tokenizer and broken(c)


TERM_RULES = (
    Rule(
        "tokens.spans",
        lambda c: c.term.tokens.spans is not Spans.all and not c.run.cross_tokenizer,
        "tells tokens apart by how a teacher with another tokenizer scored them, and this one has the student's; set "
        "teacher.cross_tokenizer=true if it has not, or tokens.spans=all",
    ),
    Rule(
        "support",
        _across(lambda c: c.term.support not in (Support.sampled, Support.student_topk)),
        "with teacher.cross_tokenizer=true the teacher's ids are not the student's, so neither its most likely ids "
        "nor its whole vocabulary can be compared; set support=sampled, or student_topk (objective=cross_tokenizer)",
    ),
    Rule(
        "normalisation",
        _across(
            lambda c: (
                c.term.support is Support.student_topk
                and c.term.normalisation not in (Normalisation.renormalised, Normalisation.tail)
            )
        ),
        "with teacher.cross_tokenizer=true ids without an equal in the teacher's vocabulary fall out of the support, "
        "and what is left is comparable only if both sides are cut the same way; set normalisation=renormalised "
        "(or tail)",
    ),
    Rule(
        "tokens.spans",
        _across(lambda c: c.term.support is Support.student_topk and c.term.tokens.spans is not Spans.one_to_one),
        "with teacher.cross_tokenizer=true a comparison id by id needs places where both models write one token for "
        "the same bytes; set tokens.spans=one_to_one, and learn the rest from a term with support=sampled "
        "(objective=cross_tokenizer)",
    ),
    Rule(
        "control_variate",
        _across(lambda c: c.term.control_variate),
        "needs the teacher's whole distribution over the student's ids, and with teacher.cross_tokenizer=true it has "
        "others; set false",
    ),
    Rule(
        "tokens.trust",
        _across(lambda c: c.term.tokens.trust is not Trust.none),
        "draws each token by its own q/p, and with teacher.cross_tokenizer=true several tokens share one q; set none",
    ),
)
OBJECTIVE_RULES = (
    Rule(
        "returns.discount",
        _across(lambda c: c.has_returns and c.objective.returns.discount != 1),
        "discounts by the distance in tokens, and with teacher.cross_tokenizer=true several tokens share one "
        "log-ratio; set objective.returns.discount=1 (all later spans count alike), or 0",
    ),
    Rule(
        "returns.length_normalised",
        _across(lambda c: c.has_returns and c.objective.returns.length_normalised),
        "divides by the number of later tokens, and with teacher.cross_tokenizer=true several tokens share one "
        "log-ratio; set false",
    ),
    Rule(
        "reference.model",
        _across(lambda c: c.objective.reference.model is not None),
        "the reference scores the student's tokens and, with teacher.cross_tokenizer=true, the teacher other ones; set "
        "reference.model=null",
    ),
    Rule(
        "sequences.on_policy_fraction",
        _across(
            lambda c: (
                c.objective.sequences.on_policy_fraction < 1
                and c.objective.sequences.other_source is OtherSource.teacher
            )
        ),
        "with teacher.cross_tokenizer=true the teacher's own sequences are in ids that the student does not have; set "
        "1, or sequences.other_source=dataset",
    ),
)

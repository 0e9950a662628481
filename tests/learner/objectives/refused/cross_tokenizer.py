"""What a teacher with another tokenizer cannot be asked."""

from tests.learner.objectives.refused.settings import ACROSS, LIKELIHOOD, ON_POLICY, SAMPLED, Refused

CASES: list[Refused] = [
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
        ["objective.control_variate=true", "teacher.cross_tokenizer=true"],
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
        SAMPLED | {"returns": {"discount": 0.5, "exact_first_step": False}},
        ACROSS,
        ["objective.returns.discount=0.5", "share one"],
        {"returns": {"discount": 1.0, "exact_first_step": False}},
    ),
    (
        "returns of another tokenizer by the number of tokens",
        SAMPLED | {"returns": {"discount": 1.0, "exact_first_step": False, "length_normalised": True}},
        ACROSS,
        ["objective.returns.length_normalised=true", "share one"],
        {"returns": {"discount": 1.0, "exact_first_step": False}},
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
]

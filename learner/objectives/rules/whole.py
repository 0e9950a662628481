"""Rules about an objective as a whole: whose sequences it learns from, and what it needs of the run."""

from collections.abc import Callable
from dataclasses import replace

from learner.objectives.config import REVERSE_KL, STUDENT_SUPPORTS, Normalisation, Support, TaskRewardMix, TermConfig
from learner.objectives.rules.case import Case, Rule


def _supports(c: Case) -> set[Support]:
    return {term.support for term in c.terms.values()}


def _off_policy(c: Case) -> bool:
    return c.objective.sequences.on_policy_fraction < 1


def _count(c: Case, has: Callable[[TermConfig], bool]) -> int:
    return sum(has(term) for term in c.terms.values())


def _mixes_reward(c: Case) -> bool:
    return c.objective.task_reward.mix is not TaskRewardMix.none


OBJECTIVE_RULES = (
    Rule(
        "sequences.on_policy_fraction",
        lambda c: _off_policy(c) and any(replace(c, term=term).learns_from_sample for term in c.terms.values()),
        "a loss of the sampled token needs the student's own samples and their sampling log-probs, which the "
        "teacher's and the dataset's sequences do not have; set 1, or a support of teacher_topk or full",
    ),
    Rule(
        "sequences.on_policy_fraction",
        lambda c: _off_policy(c) and bool(_supports(c) & STUDENT_SUPPORTS),
        "the student's top-k ids come from its own rollouts, which the teacher's and the dataset's sequences are "
        "not; set 1, or a support of teacher_topk or full",
    ),
    Rule(
        "sequences.on_policy_fraction",
        lambda c: _off_policy(c) and _mixes_reward(c),
        "the task reward is one of the student's own answers; set 1, or task_reward.mix=none",
    ),
    Rule(
        "teacher_temperature",
        lambda c: c.objective.teacher_temperature != 1 and _supports(c) != {Support.full},
        "softens whole distributions, and only support=full has them: log-probs of single tokens cannot be "
        "tempered afterwards; set 1, or support=full in every term",
    ),
    Rule(
        "teacher_temperature",
        lambda c: c.objective.teacher_temperature != 1 and c.has_returns,
        "softens whole distributions, and returns are made of log-probs of sampled tokens; set 1, or "
        "returns.discount=0",
    ),
    Rule(
        "support",
        lambda c: _count(c, lambda term: term.support is Support.full) > 1,
        "more than one term compares whole vocabularies, and they share one buffer; leave one of them, for instance "
        "as a jsd, which lies between forward and reverse KL",
    ),
    Rule(
        "normalisation",
        lambda c: _count(c, lambda term: term.normalisation is Normalisation.tail) > 1,
        "more than one term has a tail; leave one of them, and set normalisation=renormalised or raw in the others",
    ),
    Rule(
        "returns.length_normalised",
        lambda c: c.objective.returns.length_normalised and not c.has_returns,
        "averages what follows a token, and with returns.discount=0 nothing does; set objective.returns.discount=1, "
        "or false",
    ),
    Rule(
        "returns.exact_first_step",
        lambda c: c.has_returns and c.objective.returns.exact_first_step and c.objective.support is Support.sampled,
        "the exact term of the token itself is a sum over a support; set objective.support=full (or student_topk), "
        "or returns.exact_first_step=false",
    ),
    Rule(
        "returns.exact_first_step",
        lambda c: (
            c.has_returns and not c.objective.returns.exact_first_step and c.objective.support is not Support.sampled
        ),
        "without it the token itself is part of the sampled return; set objective.support=sampled "
        "objective.gradient=policy_gradient",
    ),
    Rule(
        "returns.discount",
        lambda c: c.has_returns and c.objective.divergence != REVERSE_KL,
        "later tokens answer with log q - log p, the reverse KL's reward; set objective.divergence=reverse_kl",
    ),
    Rule(
        "reference.extrapolation",
        lambda c: c.objective.reference.model is None and c.objective.reference.extrapolation != 1,
        "extrapolates from a reference; set objective.reference.model=student (its initial weights) or a checkpoint",
    ),
    Rule(
        "reference.model",
        lambda c: (
            c.objective.reference.model is not None
            and not (c.on_sample_as_reward and c.objective.divergence == REVERSE_KL)
        ),
        "the extrapolated reward is one of the sampled token; set objective.support=sampled "
        "objective.gradient=policy_gradient objective.divergence=reverse_kl, or reference.model=null",
    ),
    Rule(
        "task_reward.share",
        lambda c: c.objective.task_reward.mix is TaskRewardMix.convex and c.objective.task_reward.share > 1,
        "is the distillation's share of a convex mixture; must be at most 1, or set task_reward.mix=additive",
    ),
    Rule(
        "task_reward.mix",
        lambda c: _mixes_reward(c) and not c.on_sample_as_reward,
        "mixes advantages of the sampled token; set objective.support=sampled objective.gradient=policy_gradient",
    ),
    Rule(
        "task_reward.divide_by_deviation",
        lambda c: c.objective.task_reward.divide_by_deviation and not _mixes_reward(c),
        "is about rewards, and none is learned from; set task_reward.mix=additive (objective=grpo_classic), or false",
    ),
    Rule(
        "task_reward.mix",
        lambda c: _mixes_reward(c) and not c.run.has_verifier,
        "nothing grades the answers; set data.verifier, or task_reward.mix=none",
    ),
    Rule(
        "task_reward.mix",
        lambda c: _mixes_reward(c) and c.run.samples_per_prompt < 2,
        "an answer is judged against the others of its prompt; set sampling.samples_per_prompt=4, or at least 2",
    ),
    Rule(
        "task_reward.mix",
        lambda c: _mixes_reward(c) and c.run.batch_size % c.run.samples_per_prompt != 0,
        "a prompt's samples have to be in one batch; make pipeline.batch_size a multiple of "
        "sampling.samples_per_prompt",
    ),
    Rule(
        "gate.only_incorrect",
        lambda c: c.objective.gate.only_incorrect and not c.run.has_verifier,
        "nothing says which answers are incorrect; set data.verifier, or false",
    ),
)

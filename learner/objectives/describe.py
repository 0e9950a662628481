"""An objective in words and as a formula, for people: what a dry run prints.

p and q are the student's and the teacher's distribution at a position, y the sampled token, S a support, sg a
stop-gradient. A term is given by its loss l and by g(v) = dl / d log p(v), from which the gradient on the logits
follows: dl/dz(j) = g(j) - p(j) Σ g. m(t) stands for a term's choice of tokens.
"""

from dataclasses import dataclass

from learner.objectives.config import (
    REVERSE_KL,
    TOPK_SUPPORTS,
    Gradient,
    Importance,
    LossReduction,
    Normalisation,
    ObjectiveConfig,
    OtherSource,
    Shaping,
    Spans,
    Support,
    TaskRewardMix,
    TermConfig,
    TokenMaskConfig,
    Trust,
    is_likelihood,
)
from learner.objectives.divergences import divergence_of
from learner.objectives.estimators import ESTIMATORS


@dataclass(frozen=True)
class Description:
    """What a dry run prints of an objective."""

    words: tuple[str, ...]  # a clause each: the terms, then what holds for all of them
    formula: tuple[str, ...]  # a line each


_SUPPORTS = {
    Support.sampled: "the sampled token",
    Support.student_topk: "the student's top {k}",
    Support.teacher_topk: "the teacher's top {k}",
    Support.intersection: "what the student's and the teacher's top {k} share",
    Support.union: "the student's and the teacher's top {k} together",
    Support.symmetric_difference: "what only one of the student's and the teacher's top {k} holds (a negative control)",
    Support.full: "the whole vocabulary",
}

_NORMALISATIONS = {
    Normalisation.raw: "probabilities as they are, the support's own mass left out of the gradient",
    Normalisation.naive: "everything back-propagated (biased: the fixed point is p = q/e)",
    Normalisation.renormalised: "both renormalised on the support",
    Normalisation.averaged: "probabilities as they are, averaged with the student's renormalised weights",
    Normalisation.tail: "everything outside it as one more outcome",
}

_NORMALISED_WHERE = {
    Normalisation.renormalised: "p, q stand for p / p(S), q / q(S)",
    Normalisation.averaged: "both over sg p(S)",
    Normalisation.tail: "S holds one more outcome, of probability 1 - p(S) and 1 - q(S)",
}

_SHAPES = {
    Shaping.none: ("", "{a}"),
    Shaping.clip: ("clipped to [{shaping_low:g}, {shaping_high:g}]", "clip({a}, {shaping_low:g}, {shaping_high:g})"),
    Shaping.log: ("compressed to sign(A) log(1 + |A|)", "sign(a) log(1 + |a|), a = {a}"),
    Shaping.tanh: ("squashed by tanh", "tanh({a})"),
}

_IMPORTANCE = {
    Importance.none: ("", ""),
    Importance.truncated: (
        "weighted by the ratio of policy to sampling distribution, at most {ratio_cap:g}",
        "w = sg min(p/p_rollout, {ratio_cap:g})",
    ),
    Importance.ppo_clip: (
        "PPO-clipped to ratios of the policies at the sampling temperature of {ratio_low:g} to {ratio_high:g}{dual}",
        "w = p/p_T · p_T/p_rollout, 0 where the second is clipped to [{ratio_low:g}, {ratio_high:g}]{dual}",
    ),
}

_SPANS = {
    Spans.all: "",
    Spans.one_to_one: "of the student's that are one of the teacher's",
    Spans.merged: "of the student's that are not one of the teacher's, each span of them as one y",
}

_LOSS_REDUCTIONS = {
    LossReduction.tokens: "loss = Σ_t l(t) / number of response tokens",
    LossReduction.sequences: "loss = mean over the sequences of Σ_t l(t) / the sequence's response tokens",
    LossReduction.constant: "loss = Σ_t l(t) / (number of sequences × sampling.max_tokens)",
}


def _fill(template: str, term: TermConfig) -> str:
    dual = "" if term.dual_clip is None else f", at most {term.dual_clip:g} where A < 0"
    return template.format(
        k=term.k,
        shaping_low=term.shaping_low,
        shaping_high=term.shaping_high,
        ratio_cap=term.ratio_cap,
        ratio_low=1 - term.clip_low,
        ratio_high=1 + term.clip_high,
        dual=dual,
        a="{a}",
    )


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _token_words(tokens: TokenMaskConfig) -> str:
    window = f"from position {tokens.first}" if tokens.first else ""
    if tokens.last is not None:
        window = f"positions {tokens.first} to {tokens.last - 1}"
    above, below = tokens.teacher_entropy_above, tokens.teacher_entropy_below
    trust = {
        Trust.none: "",
        Trust.inside: "trusted, with probability min(q/p, 1)",
        Trust.outside: "not trusted, with probability 1 - min(q/p, 1)",
    }
    return _join(
        window,
        "" if above is None else f"teacher entropy above {above:g} nats",
        "" if below is None else f"teacher entropy below {below:g} nats",
        "" if tokens.special_tokens else "no special tokens",
        _SPANS[tokens.spans],
        trust[tokens.trust],
        "" if tokens.share == 1 else f"a random share of {tokens.share:g}, rescaled by {1 / tokens.share:g}",
    )


def _term_words(objective: ObjectiveConfig, term: TermConfig) -> str:
    if is_likelihood(term):
        return _join(
            f"{'' if term.weight == 1 else f'{term.weight:g} times '}cross-entropy of a sequence that another wrote",
            "back-propagated",
            f"tokens: {_token_words(term.tokens)}" if _token_words(term.tokens) else "",
        )
    reward = objective.task_reward
    rewards_alone = term is objective and reward.mix is not TaskRewardMix.none and reward.share == 0
    compared = "the task's reward alone" if rewards_alone else divergence_of(term).formula.name
    on = f"{compared} on {_fill(_SUPPORTS[term.support], term)}"
    topk = term.support in TOPK_SUPPORTS
    how = "policy gradient" if term.gradient is Gradient.policy_gradient else "back-propagated"
    if term.support is Support.sampled and term.gradient is Gradient.backprop:
        how += f" through its {term.estimator} estimate"
    tokens = _token_words(term.tokens)
    return _join(
        on if term.weight == 1 else f"{term.weight:g} times {on}",
        _NORMALISATIONS[term.normalisation] if topk else "",
        how,
        "with the exact reverse KL of the position as a baseline" if term.control_variate else "",
        _fill(_SHAPES[term.shaping][0], term),
        _fill(_IMPORTANCE[term.importance][0], term) if term.support is Support.sampled else "",
        f"tokens: {tokens}" if tokens else "",
    )


def _sampled_formula(term: TermConfig, advantage: str, mixture: str) -> str:
    weighted = "" if term.importance is Importance.none else "w "
    where = _fill(_IMPORTANCE[term.importance][1], term)
    if term.gradient is Gradient.backprop:
        if is_likelihood(term):
            return "-log p(y), g(y) = -1"
        estimator = ESTIMATORS[term.estimator]
        return _where(f"{weighted}({estimator.loss}) at y, g(y) = {weighted}({estimator.g})", where)
    variate = " + sg KL(p||q)" if term.control_variate else ""
    shaped = _fill(_SHAPES[term.shaping][1], term).replace("{a}", advantage + variate)
    return _where(f"-sg({weighted}A) log p(y), A = {mixture.format(shaped=shaped)}", where)


def _where(formula: str, *conditions: str) -> str:
    stated = _join(*conditions)
    return f"{formula}; {stated}" if stated else formula


def _support_formula(term: TermConfig) -> str:
    formula = divergence_of(term).formula
    g = formula.g
    space = "Σ_v" if term.support is Support.full else "Σ_S"
    normalised = _NORMALISED_WHERE.get(term.normalisation, "")
    if term.gradient is Gradient.policy_gradient:
        advantage = _fill(_SHAPES[term.shaping][1], term).replace("{a}", formula.advantage)
        return _where(f"{space} -sg(p A) log p, A(v) = {advantage}", formula.where, normalised)
    if term.normalisation is Normalisation.naive:
        g = f"d[{formula.loss}] / d log p in full"
    return _where(f"{space} {formula.loss}, g(v) = {g}", formula.where, normalised)


def _advantage(objective: ObjectiveConfig, term: TermConfig) -> str:
    """The sampled token's advantage before baseline, shaping and task reward."""
    divergence = divergence_of(term)
    advantage = divergence.formula.advantage
    if divergence.baseline:
        advantage += f" - {divergence.baseline:g}"
    if objective.reference.model is not None and term.divergence == REVERSE_KL:
        advantage = f"{objective.reference.extrapolation:g} log(q/ref) - log(p/ref)"
    return _return(objective) if term is objective and objective.returns.discount > 0 else advantage


def _mixture(objective: ObjectiveConfig, term: TermConfig) -> str:
    """What the task's reward makes of the shaped advantage."""
    share, group = objective.task_reward.share, "(reward - mean reward of the prompt's samples)"
    if objective.task_reward.divide_by_deviation:
        group += " / their standard deviation"
    if term is not objective or objective.task_reward.mix is TaskRewardMix.none:
        return "{shaped}"
    if share == 0:
        return group
    if objective.task_reward.mix is TaskRewardMix.convex:
        return f"{share:g} [{{shaped}}] + {1 - share:g} {group}"
    return f"{share:g} [{{shaped}}] + {group}"


def _return(objective: ObjectiveConfig) -> str:
    returns = objective.returns
    first = "t' > t" if returns.exact_first_step else "t' >= t"
    discount = "" if returns.discount == 1 else f"{returns.discount:g}^(t'-t) "
    return f"{'mean' if returns.length_normalised else 'Σ'} over {first} of {discount}log(q/p) at y(t')"


def _term_formula(objective: ObjectiveConfig, term: TermConfig) -> str:
    if term.support is Support.sampled:
        return _sampled_formula(term, _advantage(objective, term), _mixture(objective, term))
    formula = _support_formula(term)
    if term is objective and objective.returns.discount > 0:
        weighted = "" if term.importance is Importance.none else "w "
        where = _fill(_IMPORTANCE[term.importance][1], term)
        formula += _where(f"; plus -sg({weighted}R) log p(y), R = {_return(objective)}", where)
    return formula


def _returns_words(objective: ObjectiveConfig) -> str:
    returns = objective.returns
    return _join(
        f"a token also answers for the sampled log-ratios after it, discount {returns.discount:g}",
        "averaged over the length" if returns.length_normalised else "",
        _fill(_IMPORTANCE[objective.importance][0], objective),
    )


def _objective_words(objective: ObjectiveConfig) -> tuple[str, ...]:
    """What holds for all terms, a clause each."""
    gate, sequences, reward = objective.gate, objective.sequences, objective.task_reward
    gates = _join(
        "only incorrect answers" if gate.only_incorrect else "",
        "only finished answers" if gate.only_finished else "",
        "" if gate.max_response_tokens is None else f"only answers of at most {gate.max_response_tokens} tokens",
        "only prompts with a teacher context" if gate.only_with_context else "",
    )
    others = {OtherSource.teacher: "the teacher's own answers", OtherSource.dataset: "the dataset's completions"}
    temperature, reference = objective.teacher_temperature, objective.reference
    clauses = (
        f"both distributions at temperature {temperature:g}" if temperature != 1 else "",
        _returns_words(objective) if objective.returns.discount > 0 else "",
        f"what the teacher adds to the reference ({reference.model}) weighs {reference.extrapolation:g}"
        if reference.model is not None
        else "",
        f"{reward.mix.value} mixture with the task's reward, share {reward.share:g}"
        if reward.mix is not TaskRewardMix.none and reward.share > 0
        else "",
        f"{sequences.on_policy_fraction:g} of the sequences are the student's, "
        f"the others are {others[sequences.other_source]}"
        if sequences.on_policy_fraction < 1
        else "",
        gates,
        "a baseline that is known to be wrong" if objective.unsafe_baseline else "",
    )
    return tuple(clause for clause in clauses if clause)


def describe(objective: ObjectiveConfig) -> Description:
    """An objective that `rules.refusals` has nothing against, in words and as formulas."""
    words = tuple(
        f"{f'{name}: ' if name else ''}{_term_words(objective, term)}" for name, term in objective.terms.items()
    )
    formulas = []
    for name, term in objective.terms.items():
        weight = "" if term.weight == 1 else f"{term.weight:g} × "
        mask = "m(t) × " if _token_words(term.tokens) else ""
        sign = f"+ {name}: " if name else "l(t) = "
        formulas.append(f"{sign}{weight}{mask}[{_term_formula(objective, term)}]")
    return Description(
        words=(*words, *_objective_words(objective)),
        formula=(*formulas, "dl/dz(j) = g(j) - p(j) Σ g", _LOSS_REDUCTIONS[objective.loss_reduction]),
    )

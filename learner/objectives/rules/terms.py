"""Rules about one term: bounds of its settings, what a sampled token can stand for, what a support can hold."""

from learner.objectives.config import (
    K1,
    REVERSE_KL,
    Gradient,
    Importance,
    Normalisation,
    Shaping,
    Support,
    is_likelihood,
)
from learner.objectives.rules.case import Rule

BOUNDS = (
    Rule(
        "shaping_low",
        lambda c: c.term.shaping is Shaping.clip and not c.term.shaping_low < c.term.shaping_high,
        "must be below shaping_high",
    ),
    Rule(
        "tokens.last",
        lambda c: c.term.tokens.last is not None and c.term.tokens.last <= c.term.tokens.first,
        "is exclusive and must be above tokens.first: no token is left",
    ),
    Rule(
        "tokens.teacher_entropy_below",
        lambda c: (
            c.term.tokens.teacher_entropy_below is not None
            and c.term.tokens.teacher_entropy_below <= (c.term.tokens.teacher_entropy_above or 0)
        ),
        "must be above 0 and above tokens.teacher_entropy_above: no token is left",
    ),
)
SAMPLED_TOKEN = (
    Rule(
        "estimator",
        lambda c: c.term.support is Support.sampled and c.term.gradient is Gradient.backprop and c.term.estimator == K1,
        "back-propagated, log p - log q of the sampled token has an expected gradient of zero: the teacher drops "
        "out of it; set gradient=policy_gradient (k1 as a reward) or estimator=k2",
    ),
    Rule(
        "estimator",
        lambda c: c.on_sample_as_reward and c.term.estimator != K1,
        "as a reward only k1 has the divergence's gradient; set estimator=k1, or back-propagate this one with "
        "gradient=backprop",
    ),
    Rule(
        "estimator",
        lambda c: c.term.support is not Support.sampled and c.term.estimator != K1,
        "estimates a divergence from the sampled token, and this support needs no estimate; set support=sampled, "
        "or leave estimator=k1, which is ignored here",
    ),
    Rule(
        "estimator",
        lambda c: is_likelihood(c.term) and c.objective.sequences.on_policy_fraction > 0,
        "of the student's own samples has an expected gradient of zero: nothing says what is good about them; set "
        "objective.sequences.on_policy_fraction=0, to learn from the teacher's or the dataset's sequences",
    ),
    Rule(
        "gradient",
        lambda c: c.term.gradient is Gradient.scalar_advantage,
        "a divergence summed over a support is the same number whichever token was sampled, and as that token's "
        "advantage its expected gradient is zero, detached or not; set gradient=backprop, or policy_gradient, "
        "which weighs every token of the support by its own advantage",
    ),
    Rule(
        "normalisation",
        lambda c: c.term.support is Support.sampled and c.term.normalisation is not Normalisation.raw,
        "one sampled token is an estimate, not a distribution to normalise; set normalisation=raw, or a wider support",
    ),
    Rule(
        "control_variate",
        lambda c: c.term.control_variate and not c.on_sample_as_reward,
        "is the baseline of a sampled advantage; set support=sampled gradient=policy_gradient, or false: a sum "
        "over a support has no sampling noise to reduce",
    ),
    Rule(
        "control_variate",
        lambda c: c.term.control_variate and c.term.divergence != REVERSE_KL,
        "the exact KL(student || teacher) is the baseline of the reverse KL only; set divergence=reverse_kl",
    ),
    Rule(
        "importance",
        lambda c: c.term.importance is not Importance.none and not c.learns_from_sample,
        "is a ratio at a token that the student sampled, and this term is not about one: it sums over its support, or "
        "learns what another wrote; set none",
    ),
    Rule(
        "importance",
        lambda c: c.term.importance is Importance.ppo_clip and not c.on_sample_as_reward,
        "clips a policy gradient and this term is back-propagated; set importance=truncated, or "
        "gradient=policy_gradient",
    ),
    Rule(
        "dual_clip",
        lambda c: c.term.dual_clip is not None and c.term.importance is not Importance.ppo_clip,
        "bounds PPO's ratio; set importance=ppo_clip, or null",
    ),
)
WIDE_SUPPORT = (
    Rule(
        "normalisation",
        lambda c: c.term.support is Support.full and c.term.normalisation is not Normalisation.raw,
        "nothing is left out of the whole vocabulary, so there is nothing to normalise; set normalisation=raw",
    ),
    Rule(
        "normalisation",
        lambda c: c.term.normalisation is Normalisation.naive and not c.objective.unsafe_baseline,
        "is known to be wrong: an extra gradient of the support's own mass pushes probability out of it, down to "
        "p = q/e; set normalisation=raw, or objective.unsafe_baseline=true to reproduce the failure",
    ),
    Rule(
        "support",
        lambda c: c.term.support is Support.symmetric_difference and not c.objective.unsafe_baseline,
        "is a negative control: it leaves out what both models find likely; set support=union, or "
        "objective.unsafe_baseline=true to run it all the same",
    ),
    Rule(
        "k",
        lambda c: c.on_topk and c.term.normalisation is Normalisation.renormalised and c.term.k == 1,
        "one renormalised token has probability 1 on both sides, so the loss is always zero; set k=2 or more, or "
        "normalisation=raw",
    ),
    Rule(
        "normalisation",
        lambda c: (
            c.on_topk
            and c.moves_at_agreement
            and c.term.normalisation in (Normalisation.raw, Normalisation.averaged)
            and not c.objective.further_terms
            and c.is_first
            and not c.objective.unsafe_baseline
        ),
        "alone, a forward KL on a truncated support teaches that everything outside it is impossible; set "
        "normalisation=tail or renormalised, or objective.unsafe_baseline=true to reproduce the collapse",
    ),
    Rule(
        "normalisation",
        lambda c: c.term.normalisation is Normalisation.averaged and c.term.divergence != REVERSE_KL,
        "is the student's mean of the log-ratio, a form of the reverse KL; set divergence=reverse_kl or another "
        "normalisation",
    ),
    Rule(
        "shaping",
        lambda c: c.term.shaping is not Shaping.none and c.term.gradient is Gradient.backprop,
        "shapes an advantage, and a back-propagated divergence has none; set gradient=policy_gradient, or none",
    ),
)
TERM_RULES = (*BOUNDS, *SAMPLED_TOKEN, *WIDE_SUPPORT)

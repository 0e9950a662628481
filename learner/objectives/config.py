"""Configuration of the learning signal: each part of the composition is one field.

An objective is a sum of terms over the same response tokens. The objective itself is its first term; what is in
`further_terms` is added to it.
"""

from dataclasses import dataclass, field
from enum import Enum

from tutelage.settings import Settings


class Support(Enum):
    """The token ids at a position that a term compares."""

    sampled = "sampled"  # the sampled token alone
    student_topk = "student_topk"  # the rollout engine's most likely ids
    teacher_topk = "teacher_topk"  # the teacher's most likely ids
    intersection = "intersection"  # of the two
    union = "union"  # of the two
    symmetric_difference = "symmetric_difference"  # of the two: a negative control
    full = "full"  # the whole vocabulary, from the teacher's hidden states and head


class Normalisation(Enum):
    """What is made of the two distributions on a support that is not the whole vocabulary."""

    raw = "raw"  # as they are; the gradient of the support's own mass is left out (stop-gradient)
    naive = "naive"  # as they are, everything back-propagated: biased, a baseline only
    renormalised = "renormalised"  # both sum to one on the support
    averaged = "averaged"  # raw, over the student's mass of the support (detached)
    tail = "tail"  # one more outcome: everything outside the support


class Divergence(Enum):
    reverse_kl = "reverse_kl"  # KL(student || teacher)
    forward_kl = "forward_kl"  # KL(teacher || student)
    jsd = "jsd"  # generalised Jensen-Shannon, `beta`
    skewed_reverse_kl = "skewed_reverse_kl"  # KL(p || (1 - alpha) q + alpha p)
    skewed_forward_kl = "skewed_forward_kl"  # KL(q || alpha q + (1 - alpha) p)


class Gradient(Enum):
    backprop = "backprop"  # back-propagate the divergence
    policy_gradient = "policy_gradient"  # sum of -sg(w A) log p
    scalar_advantage = "scalar_advantage"  # the divergence as the sampled token's advantage: refused by name


class Estimator(Enum):
    """How the sampled token alone stands for the divergence."""

    k1 = "k1"  # log p - log q, as a reward (policy_gradient)
    k2 = "k2"  # half its square, back-propagated: expected gradient of the reverse KL
    k3 = "k3"  # r - 1 - log r with r = q/p, back-propagated: expected gradient of the *forward* KL
    likelihood = "likelihood"  # -log p of a token that another wrote: cross-entropy, no teacher's scores needed


class Shaping(Enum):
    """What is made of an advantage before it weighs a token."""

    none = "none"
    clip = "clip"  # to [shaping_low, shaping_high]
    log = "log"  # sign(A) log(1 + |A|)
    tanh = "tanh"
    length_aware = "length_aware"  # clip where |A| is above shaping_high, log below it


class Importance(Enum):
    """Ratio of the policy to the sampling distribution on the sampled token."""

    none = "none"
    truncated = "truncated"  # min(ratio, ratio_cap)
    ppo_clip = "ppo_clip"  # clipped surrogate with separate bounds, optionally a dual clip


class Trust(Enum):
    """Token mask drawn with probability min(q/p, 1) at the sampled token."""

    none = "none"
    inside = "inside"  # tokens that were drawn
    outside = "outside"  # all others


class Spans(Enum):
    """Tokens by how a teacher with another tokenizer scored them (`teacher.cross_tokenizer`)."""

    all = "all"
    one_to_one = "one_to_one"  # one token of the student's is one of the teacher's
    merged = "merged"  # all others: one action of several tokens, on either side


@dataclass
class TokenMaskConfig(Settings):
    """Which response tokens a term learns from; none of it changes the normaliser of the loss."""

    first: int = 0  # position in the response, from 0
    last: int | None = None  # exclusive
    teacher_entropy_above: float | None = None  # nats
    teacher_entropy_below: float | None = None  # nats
    special_tokens: bool = True  # false: the tokenizer's special tokens, EOS among them, are left out
    trust: Trust = Trust.none
    share: float = 1.0  # a random share of the tokens, rescaled so that the sum keeps its mean
    spans: Spans = Spans.all


@dataclass
class TermConfig(Settings):
    weight: float = 1.0
    support: Support = Support.student_topk
    k: int = 16  # ids of each top-k support
    normalisation: Normalisation = Normalisation.raw
    divergence: Divergence = Divergence.reverse_kl
    beta: float = 0.5  # jsd: 0 is forward KL, 1 reverse KL
    alpha: float = 0.1  # skewed divergences
    gradient: Gradient = Gradient.backprop
    estimator: Estimator = Estimator.k1  # support=sampled only
    shaping: Shaping = Shaping.none  # policy_gradient only
    shaping_low: float = -5.0
    shaping_high: float = 5.0
    control_variate: bool = False  # sampled policy gradient only: adds sg KL(p||q) to the advantage
    importance: Importance = Importance.none  # sampled support only
    ratio_cap: float = 2.0  # truncated
    clip_low: float = 0.2  # ppo_clip: ratio below 1 - clip_low
    clip_high: float = 0.2  # ppo_clip: ratio above 1 + clip_high
    dual_clip: float | None = None  # ppo_clip: bound of ratio for negative advantages, above 1
    tokens: TokenMaskConfig = field(default_factory=TokenMaskConfig)


def is_likelihood(term: TermConfig) -> bool:
    """Whether a term is the cross-entropy of the sequence itself."""
    direct = term.support is Support.sampled and term.gradient is Gradient.backprop
    return direct and term.estimator is Estimator.likelihood


class OtherSource(Enum):
    teacher = "teacher"  # the teacher's own answers
    dataset = "dataset"  # the completion column of the training data


@dataclass
class SequencesConfig(Settings):
    on_policy_fraction: float = 1.0  # lambda: probability that a sequence is the student's own
    other_source: OtherSource = OtherSource.teacher


@dataclass
class GateConfig(Settings):
    """Which trajectories are learned from; the others count in the normaliser and weigh nothing."""

    only_incorrect: bool = False  # needs a verifier
    only_finished: bool = False  # ended by a stop token, not by the length limit
    max_response_tokens: int | None = None
    only_with_context: bool = False  # prompts whose teacher sees a privileged context


@dataclass
class ReturnsConfig(Settings):
    """Advantages of later tokens that earlier ones answer for (MiniLLM)."""

    discount: float = 0.0  # gamma; 0: each token answers for itself
    length_normalised: bool = False  # mean instead of sum of what follows
    exact_first_step: bool = True  # the token's own term over the support instead of the sampled token


@dataclass
class ReferenceConfig(Settings):
    """Reward extrapolation: A = extrapolation (log q - log ref) - (log p - log ref)."""

    model: str | None = None  # none: no reference; "student": its initial weights; or a checkpoint
    extrapolation: float = 1.0  # lambda; 1 is plain distillation


class TaskRewardMix(Enum):
    none = "none"
    convex = "convex"  # share A_distillation + (1 - share) A_task
    additive = "additive"  # A_task + share A_distillation


@dataclass
class TaskRewardConfig(Settings):
    """A_task is the reward less the mean of its group, the samples of one prompt (Dr. GRPO, arXiv 2503.20783)."""

    mix: TaskRewardMix = TaskRewardMix.none
    share: float = 0.5  # 0: the reward alone
    divide_by_deviation: bool = False  # A_task over the group's standard deviation (GRPO, arXiv 2402.03300)


class LossReduction(Enum):
    """What a step's loss is divided by; a batch of G sequences, of T_i response tokens each."""

    tokens = "tokens"  # the sum of all T_i: every token counts alike
    sequences = "sequences"  # T_i, then G: a token of a long response counts less (GRPO)
    constant = "constant"  # G times sampling.max_tokens: the same in every step (Dr. GRPO)


@dataclass
class ObjectiveConfig(TermConfig):
    name: str = "student_topk_reverse_kl"  # of the preset, for people
    paper: str = ""  # where the recipe was published
    further_terms: dict[str, TermConfig] = field(default_factory=dict)
    teacher_temperature: float = 1.0  # support=full only: the temperature of both softmaxes
    loss_reduction: LossReduction = LossReduction.tokens
    sequences: SequencesConfig = field(default_factory=SequencesConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    returns: ReturnsConfig = field(default_factory=ReturnsConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    task_reward: TaskRewardConfig = field(default_factory=TaskRewardConfig)
    unsafe_baseline: bool = False  # allow a form that is known to be wrong, to reproduce its failure

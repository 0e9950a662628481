"""Configuration of the learning signal: each part of the composition is one field.

An objective is a sum of terms over the same response tokens. The objective itself is its first term; what is in
`further_terms` is added to it.
"""

import math
from dataclasses import dataclass, field
from enum import Enum

from tutelage.settings import Settings, setting

REVERSE_KL = "reverse_kl"  # KL(student || teacher)
FORWARD_KL = "forward_kl"  # KL(teacher || student)
K1 = "k1"  # log p - log q of the sampled token: the advantage of a policy gradient
LIKELIHOOD = "likelihood"  # -log p of a token that another wrote: cross-entropy, no teacher's scores needed


class Support(Enum):
    """The token ids at a position that a term compares."""

    sampled = "sampled"  # the sampled token alone
    student_topk = "student_topk"  # the rollout engine's most likely ids
    teacher_topk = "teacher_topk"  # the teacher's most likely ids
    intersection = "intersection"  # of the two
    union = "union"  # of the two
    symmetric_difference = "symmetric_difference"  # of the two: a negative control
    full = "full"  # the whole vocabulary, from the teacher's hidden states and head


TOPK_SUPPORTS = frozenset(Support) - {Support.sampled, Support.full}
STUDENT_SUPPORTS = TOPK_SUPPORTS - {Support.teacher_topk}  # need the student's most likely ids
TEACHER_SUPPORTS = TOPK_SUPPORTS - {Support.student_topk}  # need the teacher's


class Normalisation(Enum):
    """What is made of the two distributions on a support that is not the whole vocabulary."""

    raw = "raw"  # as they are; the gradient of the support's own mass is left out (stop-gradient)
    naive = "naive"  # as they are, everything back-propagated: biased, a baseline only
    renormalised = "renormalised"  # both sum to one on the support
    averaged = "averaged"  # raw, over the student's mass of the support (detached)
    tail = "tail"  # one more outcome: everything outside the support


class Gradient(Enum):
    backprop = "backprop"  # back-propagate the divergence
    policy_gradient = "policy_gradient"  # sum of -sg(w A) log p
    scalar_advantage = "scalar_advantage"  # the divergence as the sampled token's advantage: refused by name


class Shaping(Enum):
    """What is made of an advantage before it weighs a token."""

    none = "none"
    clip = "clip"  # to [shaping_low, shaping_high]
    log = "log"  # sign(A) log(1 + |A|)
    tanh = "tanh"


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

    first: int = setting(0, at_least=0, meaning="positions count from 0")  # in the response
    last: int | None = setting(None, at_least=1)  # exclusive
    teacher_entropy_above: float | None = setting(None, at_least=0)  # nats
    teacher_entropy_below: float | None = setting(None, above=0)  # nats
    special_tokens: bool = True  # false: the tokenizer's special tokens, EOS among them, are left out
    trust: Trust = Trust.none
    share: float = setting(1.0, above=0, at_most=1)  # of the tokens at random, rescaled: the sum keeps its mean
    spans: Spans = Spans.all


@dataclass
class TermConfig(Settings):
    weight: float = setting(1.0, at_least=0, below=math.inf)
    support: Support = Support.student_topk
    k: int = setting(16, at_least=1, meaning="16 is usual")  # ids of each top-k support
    normalisation: Normalisation = Normalisation.raw
    divergence: str = REVERSE_KL  # a name in `divergences.DIVERGENCES`
    beta: float = setting(0.5, below=math.inf)  # jsd: 0 is forward KL, 1 reverse KL
    alpha: float = setting(0.1, below=math.inf)  # skewed divergences
    gradient: Gradient = Gradient.backprop
    estimator: str = K1  # support=sampled only: a name in `estimators.ESTIMATORS`
    shaping: Shaping = Shaping.none  # policy_gradient only
    shaping_low: float = setting(-5.0, below=math.inf)
    shaping_high: float = setting(5.0, below=math.inf)
    control_variate: bool = False  # sampled policy gradient only: adds sg KL(p||q) to the advantage
    importance: Importance = Importance.none  # sampled support only
    ratio_cap: float = setting(2.0, above=0, meaning="2 to 5 are usual")  # truncated
    clip_low: float = setting(0.2, above=0, at_most=1, meaning="0.2 is usual")  # ppo_clip: ratio below 1 - clip_low
    clip_high: float = setting(0.2, above=0, meaning="0.2 is usual")  # ppo_clip: ratio above 1 + clip_high
    dual_clip: float | None = setting(None, above=1, meaning="3 is usual")  # ppo_clip: of ratios, where A < 0
    tokens: TokenMaskConfig = field(default_factory=TokenMaskConfig)


def is_likelihood(term: TermConfig) -> bool:
    """Whether a term is the cross-entropy of the sequence itself."""
    direct = term.support is Support.sampled and term.gradient is Gradient.backprop
    return direct and term.estimator == LIKELIHOOD


class OtherSource(Enum):
    teacher = "teacher"  # the teacher's own answers
    dataset = "dataset"  # the completion column of the training data


@dataclass
class SequencesConfig(Settings):
    # lambda: probability that a sequence is the student's own
    on_policy_fraction: float = setting(1.0, at_least=0, at_most=1, meaning="it is a probability")
    other_source: OtherSource = OtherSource.teacher


@dataclass
class GateConfig(Settings):
    """Which trajectories are learned from; the others count in the normaliser and weigh nothing."""

    only_incorrect: bool = False  # needs a verifier
    only_finished: bool = False  # ended by a stop token, not by the length limit
    max_response_tokens: int | None = setting(None, at_least=1, meaning="or null")
    only_with_context: bool = False  # prompts whose teacher sees a privileged context


@dataclass
class ReturnsConfig(Settings):
    """Advantages of later tokens that earlier ones answer for (MiniLLM)."""

    discount: float = setting(0.0, at_least=0, at_most=1, meaning="0: each token answers for itself")  # gamma
    length_normalised: bool = False  # mean instead of sum of what follows
    exact_first_step: bool = True  # the token's own term over the support instead of the sampled token


@dataclass
class ReferenceConfig(Settings):
    """Reward extrapolation: A = extrapolation (log q - log ref) - (log p - log ref)."""

    model: str | None = None  # none: no reference; "student": its initial weights; or a checkpoint
    extrapolation: float = setting(  # lambda
        1.0, above=0, meaning="1 is plain distillation, 1.25 goes beyond the teacher"
    )


class TaskRewardMix(Enum):
    none = "none"
    convex = "convex"  # share A_distillation + (1 - share) A_task
    additive = "additive"  # A_task + share A_distillation


@dataclass
class TaskRewardConfig(Settings):
    """A_task is the reward less the mean of its group, the samples of one prompt (Dr. GRPO, arXiv 2503.20783)."""

    mix: TaskRewardMix = TaskRewardMix.none
    share: float = setting(0.5, at_least=0)  # 0: the reward alone
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
    # support=full only: the temperature of both softmaxes
    teacher_temperature: float = setting(1.0, above=0, meaning="1 leaves the distributions as they are")
    loss_reduction: LossReduction = LossReduction.tokens
    sequences: SequencesConfig = field(default_factory=SequencesConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    returns: ReturnsConfig = field(default_factory=ReturnsConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    task_reward: TaskRewardConfig = field(default_factory=TaskRewardConfig)
    unsafe_baseline: bool = False  # allow a form that is known to be wrong, to reproduce its failure

    @property
    def terms(self) -> dict[str, TermConfig]:
        """All terms by name, "" for the objective's own, which comes first."""
        return {"": self, **self.further_terms}

"""Policy gradient of the reverse KL on the sampled token alone.

    loss = -sg(w A) log p(y),  A = log q(y) - log p(y),  w = min(p(y) / p_rollout(y), cap)

A is the negative of the "k1" estimator taken as a reward; with w = 1 and y drawn from p the expected gradient
is the gradient of KL(p || q) at that position. p_rollout is the *sampling* distribution, after temperature.
Truncated importance weights: Ionides, "Truncated Importance Sampling", 2008.

Shape suffixes: C positions, V vocabulary.
"""

from learner.config import ObjectiveConfig
from learner.objectives.base import (
    Requirements,
    Rows,
    StudentChunk,
    Support,
    TeacherChunk,
    TokenLosses,
    register,
    teacher_floor,
)


@register("sampled_reverse_kl")
class SampledReverseKL:
    def __init__(self, config: ObjectiveConfig) -> None:
        if not config.importance_ratio_cap > 0:
            raise ValueError(
                f"objective.importance_ratio_cap={config.importance_ratio_cap} must be above 0; 2 to 5 are usual"
            )
        self.requirements = Requirements(support=Support.none, needs_full_softmax_sampling=True)
        self._cap = config.importance_ratio_cap

    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None = None) -> TokenLosses:
        logp = student.logprobs_of(rows.target_ids)
        advantage = teacher_floor(rows.teacher_logprobs) - logp
        ratio = (logp - rows.sampling_logprobs).exp()
        weight = ratio.clamp(max=self._cap) * advantage
        # d(-weight log p(y)) / d logits = weight (p - onehot(y))
        grad_CV = student.probs.mul_(weight[:, None])
        grad_CV.scatter_add_(1, rows.target_ids[:, None], -weight[:, None])
        metrics = {
            "importance_ratio": ratio,
            "importance_ratio_clipped": (ratio > self._cap).to(logp.dtype),
        }
        return TokenLosses(loss=-weight * logp, grad_logits=grad_CV, metrics=metrics)

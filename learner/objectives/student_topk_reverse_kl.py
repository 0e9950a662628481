"""Stop-gradient reverse KL on the student's top-k tokens.

    loss = sum over v in S of p(v) (sg(log p(v)) - log q(v))

S holds the rollout engine's most likely ids. Without the stop-gradient inside the log-ratio the truncated sum
has an extra gradient that pushes mass out of S; with it the fixed point is p = q on S. With S the whole
vocabulary it is the exact reverse KL, value and gradient. p is recomputed under the current weights.

Shape suffixes: C positions, V vocabulary, K support ids.
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


@register("student_topk_reverse_kl")
class StudentTopKReverseKL:
    def __init__(self, config: ObjectiveConfig) -> None:
        if config.k < 1:
            raise ValueError(f"objective.k={config.k} must be at least 1; 16 is usual")
        self.requirements = Requirements(support=Support.student_topk, k=config.k)

    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None = None) -> TokenLosses:
        ids_CK, logq_CK = rows.support()
        logp_CK = student.logprobs_of(ids_CK)
        p_CK = logp_CK.exp()
        terms_CK = p_CK * (logp_CK - teacher_floor(logq_CK))
        loss = terms_CK.sum(-1)
        # d loss / d logit_j = p_j ((log p_j - log q_j) [j in S] - loss)
        grad_CV = student.probs.mul_(-loss[:, None])
        grad_CV.scatter_add_(1, ids_CK, terms_CK)
        metrics = {
            "student_tail_mass": (1 - p_CK.sum(-1)).clamp(min=0),
            "teacher_tail_mass": (1 - logq_CK.exp().sum(-1)).clamp(min=0),
        }
        return TokenLosses(loss=loss, grad_logits=grad_CV, metrics=metrics)

"""A divergence on a support of few ids.

Shape suffixes: C positions, K ids of the support.

    backprop           loss = sum over S of the divergence's summands
    policy gradient    loss = -sum over S of sg(p' shape(A)) log p',  A = -g / p'

p' is the student on the support after normalisation. Without shaping both have one gradient.
"""

from torch import Tensor

from learner.objectives.base import StudentChunk, TeacherChunk
from learner.objectives.config import Gradient, Normalisation, TermConfig
from learner.objectives.divergences import divergence_of
from learner.objectives.normalisation import Normalised, Tail, log_tail, mass, normalise, present_sum
from learner.objectives.shaping import shaping_of
from learner.objectives.supports import SupportChunk, build_support, top_overlap
from learner.objectives.term import TermLosses
from learner.records import Rows


class SupportTerm:
    """A term on a support that is neither the sampled token nor the whole vocabulary."""

    def __init__(self, term: TermConfig, reports_overlap: bool) -> None:
        """
        Args:
            reports_overlap: the objective has both models' most likely ids. A batch cannot tell: an idle rank's is
                empty, and all ranks must report the same.
        """
        self._config, self._reports_overlap = term, reports_overlap
        self._divergence = divergence_of(term)
        self._shape = shaping_of(term)

    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None = None) -> TermLosses:
        config = self._config
        support = build_support(config.support, config.k, student, rows)
        compared = normalise(config.normalisation, support, student)
        value, grad = self._differentiate(compared)
        absent = ~compared.present
        loss, grad = value.masked_fill(absent, 0.0).sum(-1), grad.masked_fill(absent, 0.0)
        return self._back(loss, grad, compared, support, self._diagnostics(support, rows))

    def _differentiate(self, compared: Normalised) -> tuple[Tensor, Tensor]:
        """Summands of the loss and g on the normalised log-probs."""
        logp, logq = compared.student, compared.teacher
        if self._config.gradient is Gradient.policy_gradient:
            grad = -logp.exp() * self._shape(self._divergence.advantage(logp, logq))
            return grad * logp, grad
        value, grad = self._divergence.terms(logp, logq)
        if self._config.normalisation is Normalisation.naive:
            grad = grad + self._divergence.excess * logp.exp()
        return value, grad

    def _back(
        self, loss: Tensor, grad: Tensor, compared: Normalised, support: SupportChunk, metrics: dict[str, Tensor]
    ) -> TermLosses:
        """From g on the normalised log-probs to g on the student's own."""
        kind, tail = self._config.normalisation, None
        if kind is Normalisation.renormalised:
            grad = grad - (compared.student.exp() * grad.sum(-1, keepdim=True)).masked_fill(~support.present, 0.0)
        elif kind is Normalisation.averaged:
            student_mass = mass(support.student, support.present)
            scale = 1 / student_mass.where(student_mass > 0, student_mass.new_ones(()))
            loss, grad = loss * scale, grad * scale[:, None]
        elif kind is Normalisation.tail:
            tail = Tail(support, grad[:, -1], compared.student[:, -1].exp())
            grad = grad[:, :-1]
        return TermLosses(loss, support.ids, grad, tail, metrics)

    def _diagnostics(self, support: SupportChunk, rows: Rows) -> dict[str, Tensor]:
        """Masses off the support, and both KLs of the distributions coarsened to it: lower bounds of the exact ones."""
        metrics = coarsened_divergences(support)
        if self._reports_overlap:
            metrics["top_overlap_ratio"] = top_overlap(self._config.k, rows)
        return metrics


def coarsened_divergences(support: SupportChunk) -> dict[str, Tensor]:
    """Per-token diagnostics of a support, [C] each."""
    present = support.present
    p, q, log_ratio = support.student.exp(), support.teacher.exp(), support.student - support.teacher
    log_tail_p, log_tail_q = log_tail(support.student, present), log_tail(support.teacher, present)
    tail_log_ratio = log_tail_p - log_tail_q
    return {
        "student_tail_mass": (1 - present_sum(p, present)).clamp(min=0),
        "teacher_tail_mass": (1 - present_sum(q, present)).clamp(min=0),
        "support_reverse_kl": present_sum(p * log_ratio, present) + log_tail_p.exp() * tail_log_ratio,
        "support_forward_kl": -present_sum(q * log_ratio, present) - log_tail_q.exp() * tail_log_ratio,
    }

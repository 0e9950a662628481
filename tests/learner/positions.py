"""Random positions for objectives, and what a rollout and a teacher would say about them, in float64.

Shape suffixes: C positions, V vocabulary, K support ids.
"""

from dataclasses import replace

import torch
from torch import Tensor

from learner.objectives import Objective, ObjectiveConfig, StudentChunk, TeacherChunk, TokenLosses, build_objective
from learner.objectives.config import Support
from learner.records import Rows

V, K = 12, 4


def random_pair(seed: int, positions: int = 5, vocabulary: int = V) -> tuple[Tensor, Tensor]:
    """The student's logits and the teacher's log-probs, [C, V] each; they resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    logits, noise = (torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64) for _ in range(2))
    return 2 * logits, (logits + 1.5 * noise).log_softmax(-1)


def make_rows(
    logits_CV: Tensor, logq_CV: Tensor, k: int = K, targets: Tensor | None = None, slots: Tensor | None = None
) -> Rows:
    """On-policy rows of one trajectory: the rollout used these very logits at temperature 1."""
    logp_CV = logits_CV.log_softmax(-1)
    targets = torch.multinomial(logp_CV.exp(), 1)[:, 0] if targets is None else targets
    k = min(k, logits_CV.shape[1])
    ids_CK, top_CK = logp_CV.topk(k, dim=-1).indices, logq_CV.topk(k, dim=-1)
    places = torch.arange(len(targets))
    return Rows(
        target_ids=targets,
        sampling_logprobs=logp_CV.gather(1, targets[:, None])[:, 0],
        temperatures=torch.ones(len(targets), dtype=logits_CV.dtype),
        teacher_logprobs=logq_CV.gather(1, targets[:, None])[:, 0],
        support_ids=ids_CK,
        teacher_support_logprobs=logq_CV.gather(1, ids_CK),
        teacher_top_ids=top_CK.indices,
        teacher_top_logprobs=top_CK.values,
        teacher_entropy=-(logq_CV.exp() * logq_CV).sum(-1),
        positions=places,
        is_special=torch.zeros(len(targets), dtype=torch.bool),
        weights=torch.ones(len(targets), dtype=logits_CV.dtype),
        example_index=torch.zeros_like(places),
        slots=torch.zeros_like(places) if slots is None else slots,
    )


def full_reverse_kl(logits_CV: Tensor, logq_CV: Tensor) -> Tensor:
    """[C]"""
    logp_CV = logits_CV.log_softmax(-1)
    return (logp_CV.exp() * (logp_CV - logq_CV)).sum(-1)


def compute(
    objective: ObjectiveConfig | Objective, logits_CV: Tensor, rows: Rows, logq_CV: Tensor | None = None
) -> TokenLosses:
    """The objective at all positions at once; `logq_CV` where it needs the teacher's whole distribution."""
    built = build_objective(objective) if isinstance(objective, ObjectiveConfig) else objective
    teacher = None
    if logq_CV is not None:
        teacher = TeacherChunk(logq_CV.clone(), full_reverse_kl(logits_CV, logq_CV))
    return built(StudentChunk.from_logits(logits_CV.clone()), rows, teacher)


def value_and_gradient(config: ObjectiveConfig, logits: Tensor, logq: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Loss [C] and gradient on the logits [C, V] of a term on any support."""
    result = compute(config, logits, rows, logq if config.support is Support.full else None)
    return result.loss, result.grad_logits


def at_every_target(logits_1V: Tensor, logq_1V: Tensor) -> tuple[Tensor, Tensor, Rows]:
    """One position repeated with each id as the sampled token: logits and teacher [V, V], and rows."""
    vocabulary = logits_1V.shape[1]
    logits, logq = logits_1V.expand(vocabulary, vocabulary), logq_1V.expand(vocabulary, vocabulary)
    return logits, logq, make_rows(logits, logq, targets=torch.arange(vocabulary))


def with_sampling(rows: Rows, shift: float) -> Rows:
    """Rows whose sampling log-probs are `shift` nats below the policy's: every ratio is e^shift."""
    return replace(rows, sampling_logprobs=rows.sampling_logprobs - shift)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def backward(loss_C: Tensor, logits_CV: Tensor) -> Tensor:
    """Autograd's gradient of the sum of `loss_C` on `logits_CV`."""
    (grad_CV,) = torch.autograd.grad(loss_C.sum(), logits_CV)
    return grad_CV

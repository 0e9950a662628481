"""The LM head and the loss in one sweep over chunks of positions.

Shape suffixes: R response tokens, C positions of a chunk, V vocabulary, d hidden size.

    hidden [R, d] ─ chunk ─► logits [C, V] ─► objective ─► gradient [C, V] ─┬─► hidden gradient [R, d]
                                                                            └─► head gradient [V, d]

The objective's gradient is in closed form, so both gradients are finished within the forward pass,
accumulated in float32, and the backward pass only hands them out. Two [C, V] buffers are reused by every
chunk: memory does not depend on the number of tokens, apart from [R, d] and [R] results.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from learner.objectives.base import Objective, Rows, StudentChunk, teacher_floor
from scoring.packed_model import refuse_transformed_logits


def output_head(model: PreTrainedModel) -> nn.Linear:
    """The model's LM head.

    Raises:
        ValueError: the logits are not a linear function of the final hidden states.
    """
    refuse_transformed_logits(model.config)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"student.model: its LM head is {type(head).__name__}, not a linear layer")
    return head


@dataclass
class _Sweep:
    """What a sweep over the chunks leaves behind."""

    loss: Tensor  # scalar, sum over R
    grad_hidden: Tensor | None  # [R, d]
    grad_weight: Tensor | None  # [V, d]
    grad_bias: Tensor | None  # [V]
    per_token: dict[str, Tensor]  # [R] each


class _Precomputed(torch.autograd.Function):
    """A scalar whose gradients are already known."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sweep: _Sweep,
    ) -> Tensor:
        ctx.sweep = sweep
        ctx.dtypes = (hidden.dtype, weight.dtype, bias.dtype if bias is not None else None)
        return sweep.loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        sweep = ctx.sweep
        grads = (sweep.grad_hidden, sweep.grad_weight, sweep.grad_bias)
        # Scaled in place: the [V, d] gradient is the largest tensor here, and backward runs once.
        scaled = [
            None if grad is None else grad.mul_(grad_loss).to(dtype)
            for grad, dtype in zip(grads, ctx.dtypes, strict=True)
        ]
        ctx.sweep = None
        return (*scaled, None)


def fused_head_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Rows,
    objective: Objective,
    chunk_tokens: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the objective over all rows, differentiable once with respect to hidden states and head.

    Args:
        hidden: [R, d] states that predict the rows' targets; any float type, mathematics in float32.
        weight: [V, d]; may be the embedding's.
        bias: [V] or None.
        rows: R loss tokens; none is allowed and gives a zero that is connected to the graph.
        chunk_tokens: positions whose logits exist at a time.

    Returns:
        The scalar loss (float32, nats) and per-token values [R], detached: the objective's metrics, "loss",
        "student_entropy", "sampled_reverse_kl" (log p - log q of the target at temperature 1),
        "learner_logprob" (log p) and "rollout_logprob_gap" (|sampling log-prob - the learner's at the
        sampling temperature|; inflated if top-p or top-k cut the sampling distribution).
    """
    with torch.no_grad():
        sweep = _sweep(hidden, weight, bias, rows, objective, chunk_tokens)
    if not torch.is_grad_enabled():
        return sweep.loss, sweep.per_token
    return _Precomputed.apply(hidden, weight, bias, sweep), sweep.per_token


def _sweep(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, objective: Objective, chunk_tokens: int
) -> _Sweep:
    weight32 = weight.float()
    bias32 = None if bias is None else bias.float()
    total, chunk = len(rows), min(chunk_tokens, max(len(rows), 1))
    buffers = [weight32.new_empty(chunk, len(weight)) for _ in range(2)]
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
    grad_weight = torch.zeros_like(weight32)
    grad_bias = None if bias32 is None else torch.zeros_like(bias32)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, max(total, 1), chunk):  # no rows: one empty chunk, which still names the metrics
        stop = min(start + chunk, total)
        logits_CV, spare_CV = (buffer[: stop - start] for buffer in buffers)
        hidden_Cd = hidden[start:stop].float()
        chunk_logits(hidden_Cd, weight32, bias32, out=logits_CV)
        grad_CV, per_token = _chunk(logits_CV, spare_CV, rows.slice(start, stop), objective)
        torch.mm(grad_CV, weight32, out=grad_hidden[start:stop])
        grad_weight.addmm_(grad_CV.T, hidden_Cd)
        if grad_bias is not None:
            grad_bias += grad_CV.sum(0)
        parts.append(per_token)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return _Sweep(joined["loss"].double().sum().float(), grad_hidden, grad_weight, grad_bias, joined)


def chunk_logits(hidden_Cd: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Logits [C, V] in float32, written to `out`; all inputs are float32."""
    if bias is None:
        return torch.mm(hidden_Cd, weight.T, out=out)
    return torch.addmm(bias, hidden_Cd, weight.T, out=out)


def _chunk(logits_CV: Tensor, spare_CV: Tensor, rows: Rows, objective: Objective) -> tuple[Tensor, dict[str, Tensor]]:
    tempered = bool((rows.temperatures != 1).any())
    sampling_logprob = _tempered_logprobs(logits_CV, spare_CV, rows) if tempered else None
    student = StudentChunk.from_logits(logits_CV, spare_CV)
    logp = student.logprobs_of(rows.target_ids)
    sampling_logprob = logp if sampling_logprob is None else sampling_logprob
    common = {
        "learner_logprob": logp,
        "student_entropy": student.entropy(),
        "sampled_reverse_kl": logp - teacher_floor(rows.teacher_logprobs),
        "rollout_logprob_gap": (rows.sampling_logprobs - sampling_logprob).abs(),
    }
    losses = objective(student, rows)
    return losses.grad_logits, {"loss": losses.loss, **common, **losses.metrics}


def _tempered_logprobs(logits_CV: Tensor, spare_CV: Tensor, rows: Rows) -> Tensor:
    """Log-probs of the targets at each row's sampling temperature, [C]; overwrites `spare_CV`."""
    torch.div(logits_CV, rows.temperatures[:, None], out=spare_CV)
    target = spare_CV.gather(1, rows.target_ids[:, None])[:, 0]
    peak = spare_CV.amax(dim=-1)
    log_normaliser = spare_CV.sub_(peak[:, None]).exp_().sum(-1).log() + peak
    return target - log_normaliser

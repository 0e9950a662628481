"""The LM head and the loss in one sweep over chunks of positions.

Shape suffixes: R response tokens, C positions of a chunk, V vocabulary, d hidden size.

    hidden [R, d] ─ chunk ─► logits [C, V] ─► objective ─► gradient [C, V] ─┬─► hidden gradient [R, d]
    teacher's [R, d'] ─────► log-probs [C, V] ────▲                         └─► head gradient [V, d]

The objective's gradient is in closed form, so both gradients are finished within the forward pass,
accumulated in float32, and the backward pass only hands them out. Two [C, V] buffers, a third for a teacher's
whole distribution and one more for soft-capped logits are reused by every chunk: memory does not depend on the
number of tokens, apart from [R, d] and [R] results.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from learner.head.compare import Top, compare, overlap, top_and_entropy
from learner.objectives.base import LOG_ZERO, Objective, StudentChunk, TeacherChunk, teacher_floor
from learner.objectives.returns import future_advantages
from learner.objectives.spans import span_groups, sums_of_others
from learner.records import Rows
from learner.rowwise import log_softmax_, slices, write_rows
from tutelage.lm.head import Head, LogitTransform, TeacherHead
from tutelage.records.signal import SignalNeeds
from tutelage.stops import StopClass


def output_head(model: PreTrainedModel) -> nn.Linear:
    """The model's LM head.

    Raises:
        ValueError: the head is not a linear layer.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"student.model: its LM head is {type(head).__name__}, not a linear layer")
    return head


@dataclass(frozen=True)
class FullTeacher:
    """A teacher's whole distribution at R positions: its final states and its LM head."""

    hidden: Tensor  # [R, d of the teacher]
    head: TeacherHead


@dataclass
class _Sweep:
    """What a sweep over the chunks leaves behind."""

    loss: Tensor  # scalar, sum over R
    grad_hidden: Tensor | None  # [R, d]
    grad_weight: Tensor | None  # [V, d]; None for a head that is not trained
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
    transform: LogitTransform | None = None,
    teacher: FullTeacher | None = None,
    compared_k: int = 0,
    stops: StopClass | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the objective over all rows, differentiable once with respect to hidden states and head.

    Args:
        hidden: [R, d] states that predict the rows' targets; any float type, mathematics in float32.
        weight: [V, d]; may be the embedding's.
        bias: [V] or None.
        rows: R loss tokens; none is allowed and gives a zero that is connected to the graph.
        chunk_tokens: positions whose logits exist at a time.
        transform: what the model makes of the head's output; None: nothing.
        teacher: needed by objectives over the whole vocabulary. Ids beyond the shorter of the two heads are
            padding rows that no tokenizer emits; both softmaxes leave them out.
        compared_k: most likely ids of student and teacher that are compared, 0: none. Without `teacher`, `rows` must
            have the teacher's entropy and at least so many of its most likely ids.
        stops: ids that are one action, for both models; what the rows have of a teacher knows it already.

    Returns:
        The scalar loss (float32, nats) and per-token values [R], detached: the objective's metrics, "loss",
        "student_entropy", "sampled_reverse_kl" (log p - log q of the target at temperature 1),
        "learner_logprob" (log p) and "rollout_logprob_gap" (|sampling log-prob - the learner's at the
        sampling temperature|; inflated if top-p or top-k cut the sampling distribution). With a teacher also the
        values of `learner.head.compare.compare`. Entropies and those are of the softmaxes at the temperature that
        the objective asks for. With `compared_k` also the values of `learner.head.compare.overlap` and "entropy_gap"
        |H(q) - H(p)|, at temperature 1 whatever the objective asks for.

    Raises:
        ValueError: the objective needs a teacher's whole distribution, and there is none.
    """
    if objective.requirements.hidden_states and teacher is None:
        raise ValueError("objective.support=full needs the teacher's hidden states; set ScoringRequest.hidden_states")
    with torch.no_grad():
        head = Head.of(weight, bias, transform or LogitTransform())
        work = _ChunkWork(head, objective, teacher, min(chunk_tokens, max(len(rows), 1)), compared_k, stops)
        if stops is not None:
            rows = replace(rows, target_ids=stops.renamed(rows.target_ids))
        sweep = _sweep(work, head, hidden, rows, objective.requirements, weight.requires_grad)
    if not torch.is_grad_enabled():
        return sweep.loss, sweep.per_token
    return _Precomputed.apply(hidden, weight, bias, sweep), sweep.per_token


def _sweep(work: "_ChunkWork", head: Head, hidden: Tensor, rows: Rows, needs: SignalNeeds, trains: bool) -> _Sweep:
    """Loss, per-token values and both gradients of all rows, a chunk of positions at a time."""
    if rows.spans is not None:
        rows = _with_span_sums(work, hidden, rows)
    if needs.future_advantages:
        rows = replace(rows, future_advantages=_look_ahead(work, hidden, rows, needs))
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
    grad_weight = torch.zeros_like(head.weight) if trains else None
    grad_bias = torch.zeros_like(head.bias) if trains and head.bias is not None else None
    ids = slice(0, len(work.head))
    values: dict[str, Tensor] = {}
    # Whole logits would be [R, V], 2.5 GB at 4,096 tokens and 150,000 ids, and softmax and gradient as much again. A
    # chunk needs [C, V] buffers, the same for all chunks: memory that is touched for the first time is slow.
    for positions in slices(len(rows), work.positions):
        hidden_Cd = hidden[positions].float()
        # The gradient is taken here, where the chunk's distribution is at hand. Autograd would keep the logits of every
        # chunk until the backward pass, and checkpointing would compute them twice.
        grad_CV, per_token = work.gradient(hidden_Cd, rows, positions)
        torch.mm(grad_CV, work.head.weight, out=grad_hidden[positions])
        if grad_weight is not None:
            grad_weight[ids].addmm_(grad_CV.T, hidden_Cd)
        if grad_bias is not None:
            grad_bias[ids] += grad_CV.sum(0)
        write_rows(values, positions, per_token, len(rows))
    return _Sweep(values["loss"].double().sum().float(), grad_hidden, grad_weight, grad_bias, values)


def _look_ahead(work: "_ChunkWork", hidden: Tensor, rows: Rows, needs: SignalNeeds) -> Tensor:
    """[R], from a sweep of its own: a token's advantage holds those of the tokens behind it."""
    logp_R = torch.empty_like(rows.teacher_logprobs)
    for positions in slices(len(rows), work.positions):
        targets, temperatures = rows.target_ids[positions], torch.ones_like(rows.temperatures[positions])
        logp_R[positions], _ = work.target_logprobs(hidden[positions].float(), targets, temperatures)
    futures_R = future_advantages(
        teacher_floor(rows.teacher_logprobs) - logp_R,
        rows.require("example_index"),
        rows.require("positions"),
        needs.discount,
        needs.length_normalised,
    )
    if rows.spans is None:
        return futures_R
    # A span is one action: what follows any of its tokens is what follows its last one.
    groups_R, _ = span_groups(rows.require("example_index"), rows.spans)
    return futures_R[torch.searchsorted(groups_R, groups_R, right=True) - 1]


def _with_span_sums(work: "_ChunkWork", hidden: Tensor, rows: Rows) -> Rows:
    """The rows with what the other tokens of their spans add, from a sweep over the spans that have others."""
    groups_R, tokens_R = span_groups(rows.require("example_index"), rows.require("spans"))
    shared = (tokens_R > 1).nonzero()[:, 0]
    hidden_Sd, target_ids, temperatures = hidden[shared], rows.target_ids[shared], rows.temperatures[shared]
    logp_R, tempered_R = torch.zeros_like(rows.teacher_logprobs), torch.zeros_like(rows.teacher_logprobs)
    for positions in slices(len(shared), work.positions):
        place, states = shared[positions], hidden_Sd[positions].float()
        logp_R[place], tempered_R[place] = work.target_logprobs(states, target_ids[positions], temperatures[positions])
    values = [logp_R, teacher_floor(rows.teacher_logprobs), rows.sampling_logprobs, tempered_R]
    rest_R4 = sums_of_others(torch.stack(values, dim=1), groups_R, tokens_R)
    return replace(rows, span_tokens=tokens_R, span_rest=rest_R4)


class _ChunkWork:
    """What is done with the positions of one chunk, in buffers that all chunks share."""

    def __init__(
        self,
        head: Head,
        objective: Objective,
        teacher: FullTeacher | None,
        positions: int,
        compared_k: int,
        stops: StopClass | None,
    ) -> None:
        self.head = head if teacher is None else head.shortened(min(len(head), len(teacher.head)))
        self.positions = positions
        self._objective = objective
        self._teacher = None if teacher is None else FullTeacher(teacher.hidden, teacher.head.shortened(len(self.head)))
        self._temperature = objective.requirements.softmax_temperature
        self._compared_k, self._stops = compared_k, stops
        self._logits, self._spare = self._buffer(), self._buffer()
        self._teacher_logits = None if teacher is None else self._buffer()
        self._slope = None if head.transform.cap is None else self._buffer()

    def _buffer(self) -> Tensor:
        return self.head.weight.new_empty(self.positions, len(self.head))

    def target_logprobs(self, hidden_Cd: Tensor, target_ids: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
        """The student's log-probs of the targets at temperature 1 and at the given ones, [C] each."""
        logits_CV = self.head.logits(hidden_Cd, out=self._logits[: len(hidden_Cd)])
        if self._stops is not None:
            self._stops.merge_(logits_CV)
        spare_CV = self._spare[: len(hidden_Cd)]
        logp_C = _tempered_logprobs(logits_CV, spare_CV, target_ids, torch.ones_like(temperatures))
        if bool((temperatures == 1).all()):
            return logp_C, logp_C
        return logp_C, _tempered_logprobs(logits_CV, spare_CV, target_ids, temperatures)

    def gradient(self, hidden_Cd: Tensor, rows: Rows, positions: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradient on the head's output [C, V] and per-token values [C]."""
        logits_CV = self.head.logits(hidden_Cd, out=self._logits[: len(hidden_Cd)])
        slope_CV = None if self._slope is None else self._slope[: len(hidden_Cd)]
        if slope_CV is not None:
            self.head.transform.slope(logits_CV, out=slope_CV)
        shares_CS = None if self._stops is None else self._stops.merge_(logits_CV)
        rows, teacher_CV = rows.slice(positions.start, positions.stop), self._teacher_at(positions)
        shared_top = self._tempered_overlap(logits_CV, teacher_CV, rows) if self._temperature != 1 else {}
        student, per_token = self._student(logits_CV, rows)
        teacher, compared = self._compare(student, teacher_CV)
        values = per_token | compared
        values |= shared_top or self._overlap(student, teacher, rows, values)
        losses = self._objective(student, rows, teacher)
        grad_CV = losses.grad_logits
        if self._stops is not None and shares_CS is not None:
            self._stops.spread_(grad_CV, shares_CS)
        scale = self.head.transform.factor / self._temperature
        if slope_CV is not None:
            grad_CV.mul_(slope_CV).div_(self._temperature)
        elif scale != 1:
            grad_CV.mul_(scale)
        return grad_CV, {"loss": losses.loss, **values, **losses.metrics}

    def _student(self, logits_CV: Tensor, rows: Rows) -> tuple[StudentChunk, dict[str, Tensor]]:
        """The distribution at the objective's temperature, and what is known without a teacher's distribution."""
        spare_CV = self._spare[: len(logits_CV)]
        sampling_logp = logp = None
        if bool((rows.temperatures != 1).any()):
            sampling_logp = _tempered_logprobs(logits_CV, spare_CV, rows.target_ids, rows.temperatures)
        if self._temperature != 1:
            logp = _tempered_logprobs(logits_CV, spare_CV, rows.target_ids, torch.ones_like(rows.temperatures))
            logits_CV.div_(self._temperature)
        student = StudentChunk.from_logits(logits_CV, spare_CV)
        logp = student.logprobs_of(rows.target_ids) if logp is None else logp
        sampling_logp = logp if sampling_logp is None else sampling_logp
        return student, {
            "learner_logprob": logp,
            "student_entropy": student.entropy(),
            "sampled_reverse_kl": logp - teacher_floor(rows.teacher_logprobs),
            "rollout_logprob_gap": (rows.sampling_logprobs - sampling_logp).abs(),
        }

    def _teacher_at(self, positions: slice) -> Tensor | None:
        """The teacher's logits [C, V], if it has told its states."""
        if self._teacher is None or self._teacher_logits is None:
            return None
        states_Cd = self._teacher.hidden[positions].float()
        logits_CV = self._teacher.head.logits(states_Cd, out=self._teacher_logits[: len(states_Cd)])
        if self._stops is not None:
            self._stops.merge_(logits_CV)
        return logits_CV

    def _compare(
        self, student: StudentChunk, teacher_CV: Tensor | None
    ) -> tuple[TeacherChunk | None, dict[str, Tensor]]:
        """The teacher's distribution at the objective's temperature, which overwrites its logits."""
        if teacher_CV is None:
            return None, {}
        logq_CV = log_softmax_(teacher_CV.div_(self._temperature), LOG_ZERO)
        compared = compare(student.logprobs, logq_CV, student.probs)
        return TeacherChunk(logq_CV, compared["reverse_kl"]), compared

    def _overlap(
        self, student: StudentChunk, teacher: TeacherChunk | None, rows: Rows, values: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Taken before the objective overwrites the two distributions, which are at temperature 1."""
        if not self._compared_k:
            return {}
        if teacher is None:
            theirs, entropy = self._told(rows)
        else:
            theirs, entropy = Top.of(teacher.logprobs, self._compared_k), values["teacher_entropy"]
        shared_top = overlap(Top.of(student.logprobs, self._compared_k), theirs)
        return shared_top | {"entropy_gap": (entropy - values["student_entropy"]).abs()}

    def _tempered_overlap(self, logits_CV: Tensor, teacher_CV: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        """The same from the logits, for an objective at another temperature: one more softmax of each."""
        if not self._compared_k:
            return {}
        ours, entropy = top_and_entropy(logits_CV, self._compared_k)
        told = self._told(rows) if teacher_CV is None else top_and_entropy(teacher_CV, self._compared_k)
        return overlap(ours, told[0]) | {"entropy_gap": (told[1] - entropy).abs()}

    def _told(self, rows: Rows) -> tuple[Top, Tensor]:
        """The teacher's most likely ids and its entropy as it sent them."""
        ids_CK, logq_CK = rows.teacher_top()
        return Top(ids_CK[:, : self._compared_k], logq_CK[:, : self._compared_k]), rows.require("teacher_entropy")


def _tempered_logprobs(logits_CV: Tensor, spare_CV: Tensor, target_ids: Tensor, temperatures: Tensor) -> Tensor:
    """Log-probs of the targets at each row's temperature, [C]; overwrites `spare_CV`."""
    torch.div(logits_CV, temperatures[:, None], out=spare_CV)
    target = spare_CV.gather(1, target_ids[:, None])[:, 0]
    peak = spare_CV.amax(dim=-1)
    log_normaliser = spare_CV.sub_(peak[:, None]).exp_().sum(-1).log() + peak
    return target - log_normaliser

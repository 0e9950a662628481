"""Tokens that a teacher with another tokenizer scored together: one action of the student's.

A span's log-probs are the sums of its tokens' (the chain rule), on both sides and under the sampling distribution. A
loss f(log p) of the span as one action has the derivative f'(log p) on each of its tokens' log-probs; the loss itself
is shared equally, so that the sum over the tokens is f.

Shape suffixes: R response tokens, C positions of a chunk, X values a token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objectives.base import teacher_floor
from learner.records import Rows


@dataclass(frozen=True)
class Actions:
    """What the student did at C positions: a token, or a span of them; log-probs in nats."""

    student: Tensor  # [C]
    teacher: Tensor  # [C], at least LOG_ZERO a token
    sampling: Tensor  # [C]
    tempered: Tensor  # [C], of the student at the temperature of sampling; `student` where nobody asked for it
    tokens: Tensor | None  # [C], of each action; None: one

    def shared(self, loss_C: Tensor) -> Tensor:
        """Each token's share of its action's loss."""
        return loss_C if self.tokens is None else loss_C / self.tokens


def actions(rows: Rows, logp_C: Tensor, tempered_C: Tensor | None = None) -> Actions:
    """The action that each token is part of.

    Args:
        logp_C: the current student's log-probs of the targets.
        tempered_C: the same at the temperatures of sampling, for a term that compares policies there.
    """
    own = [logp_C, teacher_floor(rows.teacher_logprobs), rows.sampling_logprobs]
    own_C4 = torch.stack([*own, logp_C if tempered_C is None else tempered_C], dim=1)
    if rows.span_rest is not None:
        own_C4 = own_C4 + rows.span_rest
    student, teacher, sampling, tempered = own_C4.unbind(1)
    return Actions(student, teacher, sampling, student if tempered_C is None else tempered, rows.span_tokens)


def span_groups(trajectory_R: Tensor, spans_R: Tensor) -> tuple[Tensor, Tensor]:
    """A number for each row's span, ascending, and how many rows the span has, [R] each."""
    if not len(spans_R):
        return spans_R, spans_R
    new_R = (trajectory_R.diff() != 0) | (spans_R.diff() != 0)
    groups_R = torch.cat([new_R.new_zeros(1), new_R]).long().cumsum(0)
    return groups_R, torch.bincount(groups_R)[groups_R]


def sums_of_others(values_RX: Tensor, groups_R: Tensor, tokens_R: Tensor) -> Tensor:
    """[R, X]: the sum over the other rows of each row's group; exactly 0 where there are none."""
    if not len(groups_R):
        return values_RX
    wide = values_RX.double()
    totals = wide.new_zeros(int(groups_R[-1]) + 1, values_RX.shape[1]).index_add_(0, groups_R, wide)
    rest = (totals[groups_R] - wide).masked_fill((tokens_R == 1)[:, None], 0.0)
    return rest.to(values_RX.dtype)

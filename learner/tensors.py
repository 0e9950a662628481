"""Micro-batches as tensors on the learner's device, loss tokens only.

Shape suffixes: N packed tokens, S segments, R loss tokens (the rows whose mask is True), K support ids,
d hidden size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.objectives.base import Rows
from learner.records import MicroBatch


@dataclass(frozen=True)
class PackedTensors:
    token_ids: Tensor  # [N]
    position_ids: Tensor  # [N]
    segment_starts: Tensor  # [S + 1]
    segment_parents: Tensor  # [S]
    logit_positions: Tensor  # [R]
    example_index: Tensor  # [R]
    rows: Rows
    teacher_hidden_states: Tensor | None  # [R, d of the teacher]


def to_tensors(micro_batch: MicroBatch | None, device: torch.device) -> PackedTensors:
    """The micro-batch on `device`; None becomes one token without a row, so that collectives stay in step."""
    if micro_batch is None:
        return _empty(device)
    kept = np.flatnonzero(micro_batch.loss_mask)

    def move(array: NDArray) -> Tensor:
        return torch.tensor(array, device=device)

    def of_rows(array: NDArray | None) -> Tensor | None:
        return None if array is None else move(array[kept])

    return PackedTensors(
        token_ids=move(micro_batch.token_ids),
        position_ids=move(micro_batch.position_ids),
        segment_starts=move(micro_batch.segment_starts),
        segment_parents=move(micro_batch.segment_parents),
        logit_positions=of_rows(micro_batch.logit_positions),
        example_index=of_rows(micro_batch.example_index),
        rows=Rows(
            target_ids=of_rows(micro_batch.target_ids),
            sampling_logprobs=of_rows(micro_batch.sampling_logprobs),
            temperatures=of_rows(micro_batch.temperatures),
            teacher_logprobs=of_rows(micro_batch.teacher_logprobs),
            support_ids=of_rows(micro_batch.support_ids),
            support_teacher_logprobs=of_rows(micro_batch.support_teacher_logprobs),
            teacher_top_ids=of_rows(micro_batch.teacher_top_ids),
            teacher_top_logprobs=of_rows(micro_batch.teacher_top_logprobs),
            teacher_entropy=of_rows(micro_batch.teacher_entropy),
            positions=of_rows(micro_batch.positions),
            is_special=of_rows(micro_batch.is_special),
            weights=of_rows(micro_batch.weights),
            task_advantages=of_rows(micro_batch.task_advantages),
            reference_logprobs=of_rows(micro_batch.reference_logprobs),
            example_index=of_rows(micro_batch.example_index),
            slots=of_rows(micro_batch.slots),
            spans=of_rows(micro_batch.spans),
            merged=of_rows(micro_batch.merged),
        ),
        teacher_hidden_states=of_rows(micro_batch.teacher_hidden_states),
    )


def _empty(device: torch.device) -> PackedTensors:
    """Every optional array is there: whatever the objective reads, it reads no rows of it."""
    ids = torch.zeros(0, dtype=torch.int64, device=device)
    values = torch.zeros(0, device=device)
    return PackedTensors(
        token_ids=ids.new_zeros(1),
        position_ids=ids.new_zeros(1),
        segment_starts=torch.tensor([0, 1], dtype=torch.int32, device=device),
        segment_parents=torch.tensor([-1], dtype=torch.int32, device=device),
        logit_positions=ids,
        example_index=ids,
        rows=Rows(
            target_ids=ids,
            sampling_logprobs=values,
            temperatures=values,
            teacher_logprobs=values,
            support_ids=ids.view(0, 1),
            support_teacher_logprobs=values.view(0, 1),
            teacher_top_ids=ids.view(0, 1),
            teacher_top_logprobs=values.view(0, 1),
            teacher_entropy=values,
            positions=ids,
            is_special=ids.bool(),
            weights=values,
            task_advantages=values,
            reference_logprobs=values,
            example_index=ids,
            slots=ids,
            spans=ids,
            merged=ids.bool(),
        ),
        teacher_hidden_states=None,
    )

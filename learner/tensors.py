"""Micro-batches as tensors on the learner's device, loss tokens only.

Shape suffixes: N packed tokens, S segments, R loss tokens (the rows whose mask is True), K support ids,
d hidden size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.records import ROW_ARRAYS, STATES, MicroBatch, Rows


@dataclass(frozen=True)
class PackedTensors:
    """A micro-batch on a device: the packed tokens, the rows of the loss tokens, and where those are predicted."""

    token_ids: Tensor  # [N]
    position_ids: Tensor  # [N]
    segment_starts: Tensor  # [S + 1]
    segment_parents: Tensor  # [S]
    logit_positions: Tensor  # [R]
    rows: Rows
    teacher_hidden_states: Tensor | None  # [R, d of the teacher]


def to_tensors(micro_batch: MicroBatch | None, device: torch.device) -> PackedTensors:
    """The micro-batch on `device`; None becomes one token without a row, so that collectives stay in step."""
    micro_batch = micro_batch or _WITHOUT_ROWS
    kept = np.flatnonzero(micro_batch.loss_mask)

    def move(array: NDArray) -> Tensor:
        return torch.tensor(array, device=device)

    # States may lie elsewhere until now; a micro-batch at a time is fetched.
    rows = {name: move(np.asarray(array)[kept]) for name, array in micro_batch.rows.items()}
    states = rows.pop(STATES, None)
    return PackedTensors(
        token_ids=move(micro_batch.token_ids),
        position_ids=move(micro_batch.position_ids),
        segment_starts=move(micro_batch.segment_starts),
        segment_parents=move(micro_batch.segment_parents),
        logit_positions=move(micro_batch.logit_positions[kept]),
        rows=Rows(**rows),
        teacher_hidden_states=states,
    )


# Every optional array is there: whatever the objective reads, it reads no rows of it.
_WITHOUT_ROWS = MicroBatch(
    token_ids=np.zeros(1, np.int64),
    position_ids=np.zeros(1, np.int64),
    segment_starts=np.array([0, 1], np.int32),
    segment_parents=np.array([-1], np.int32),
    logit_positions=np.empty(0, np.int64),
    loss_mask=np.empty(0, np.bool_),
    rows={name: array.no_rows() for name, array in ROW_ARRAYS.items() if name != STATES},
)

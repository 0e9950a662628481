"""From a micro-batch to tensors: loss tokens only, each with everything that belongs to it."""

from dataclasses import fields, replace

import numpy as np
import torch

from learner.packing import pack
from learner.records import Example, MicroBatch, Rows
from learner.tensors import to_tensors
from tests.learner.examples import make_example
from tutelage.records.signal import TeacherSignal

CPU = torch.device("cpu")
FILLED_BY_THE_HEAD = {"future_advantages", "span_tokens", "span_rest"}
CARRIED = [item.name for item in fields(Rows) if item.name not in FILLED_BY_THE_HEAD]


def micro_batch() -> MicroBatch:
    examples = [make_example(slot, 4, 9, top_k=3, reference=True, teacher_width=5) for slot in (3, 8)]
    weighed = [replace(e, weight=0.5 + i, advantage=1.0 - i, signal=across(e)) for i, e in enumerate(examples)]
    ((found,),) = pack(weighed, 1, 100, 0, special_ids=range(300)).ranks
    assert found is not None and 0 < found.loss_mask.sum() < len(found.loss_mask)
    return found


def across(example: Example) -> TeacherSignal:
    """The scores of a teacher with another tokenizer, which knows nothing of one of the tokens to learn from."""
    spans, merged = np.array([0, 1, 1, 2, 3, 3, 3, 4, 5]), np.array([0, 1, 1, 0, 1, 1, 1, 1, 0], dtype=np.bool_)
    known = np.arange(9) != np.flatnonzero(example.trajectory.loss_mask)[-1]
    assert example.signal is not None
    return replace(example.signal, known=known, spans=spans, merged=merged)


def test_rows_are_the_loss_tokens_with_all_that_belongs_to_them() -> None:
    packed = micro_batch()
    rows = to_tensors(packed, CPU).rows
    for name in CARRIED:
        expected = packed.rows[name][packed.loss_mask]
        np.testing.assert_array_equal(getattr(rows, name).numpy(), expected, err_msg=name)
    assert rows.is_special.any() and not rows.is_special.all()


def test_nothing_becomes_no_rows_of_everything() -> None:
    rows = to_tensors(None, CPU).rows
    assert len(rows) == 0
    full = to_tensors(micro_batch(), CPU).rows
    for name in CARRIED:
        empty = getattr(rows, name)
        assert len(empty) == 0 and empty.dtype == getattr(full, name).dtype, name

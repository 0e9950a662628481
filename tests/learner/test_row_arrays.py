"""Every per-token array that a record declares reaches its rows: nothing on the way names a field."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.packing import pack
from learner.records import ROW_ARRAYS, STATES, Example, Rows
from learner.tensors import to_tensors
from scoring.requests import SameTokens
from tests.learner.examples import make_example
from tutelage.records.per_token import PerToken
from tutelage.records.signal import SIGNAL_ARRAYS, ScoringRequest, TeacherSignal

WIDTH = 3
CPU = torch.device("cpu")


def invented(array: PerToken, tokens: int, rng: np.random.Generator) -> np.ndarray:
    shape = (tokens, WIDTH) if array.columns else (tokens,)
    return rng.integers(0, 2 if array.dtype.kind == "b" else 99, shape).astype(array.dtype)


@settings(deadline=None, max_examples=30)
@given(
    masks=st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=5),
    present=st.sets(st.sampled_from(sorted(SIGNAL_ARRAYS.keys() - {"logprobs", "known", "spans", "merged"}))),
)
def test_what_a_teacher_says_of_scored_tokens_stands_at_the_same_tokens_in_the_rows(
    masks: list[list[bool]], present: set[str]
) -> None:
    rng = np.random.default_rng(0)
    said, examples = [], []
    for slot, loss_mask in enumerate(masks):
        mask = np.array(loss_mask)
        arrays: dict[str, Any] = {
            name: invented(SIGNAL_ARRAYS[name], int(mask.sum()), rng) for name in sorted({"logprobs", *present})
        }
        signal = TeacherSignal("teacher", **arrays)
        trajectory = replace(make_example(slot, 4, len(mask)).trajectory, loss_mask=mask)
        request = ScoringRequest("teacher", trajectory.prompt_ids, trajectory.response_ids, mask)
        examples.append(Example(trajectory, SameTokens(request, mask).to_student_tokens(signal)))
        said.append(arrays)
    ((micro_batch,),) = pack(examples, 1, 1000, 0).ranks
    packed = to_tensors(micro_batch, CPU)
    for name, array in SIGNAL_ARRAYS.items():
        in_learner = array.learner_name(name)
        rows = packed.teacher_hidden_states if in_learner == STATES else vars(packed.rows).get(in_learner)
        if name in said[0]:
            expected = np.concatenate([arrays[name] for arrays in said])
            assert rows is not None
            np.testing.assert_array_equal(rows.numpy(), expected, name)
            assert rows.numpy().dtype == array.packed_dtype
        else:
            assert rows is None or bool(rows.isnan().all())


@pytest.mark.parametrize("name", SIGNAL_ARRAYS)
def test_what_is_not_known_of_a_token_is_its_filler(name: str) -> None:
    mask, rng = np.array([True, False, True]), np.random.default_rng(0)
    arrays: dict[str, Any] = {other: invented(SIGNAL_ARRAYS[other], 2, rng) for other in ("logprobs", name)}
    rows = getattr(TeacherSignal("teacher", **arrays).spread(mask), name)
    assert rows.dtype == SIGNAL_ARRAYS[name].dtype
    np.testing.assert_array_equal(rows[mask], arrays[name])
    np.testing.assert_array_equal(rows[~mask], np.full_like(rows[~mask], SIGNAL_ARRAYS[name].filler))


def test_every_row_is_declared_or_filled_in_by_the_head() -> None:
    assert {item.name for item in fields(Rows)} - ROW_ARRAYS.keys() == {"future_advantages", "span_tokens", "span_rest"}

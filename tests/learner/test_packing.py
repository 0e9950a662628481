"""Packing: alignment, order, balance and budget."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learner.head.fused_loss import fused_head_loss
from learner.objectives import ObjectiveConfig, build_objective
from learner.objectives.config import Normalisation, Support
from learner.packing import pack
from learner.records import Batch, Example, MicroBatch
from learner.tensors import to_tensors
from tests.learner.examples import make_example, make_examples
from tests.learner.objectives.compositions import COMPOSITIONS

SPECIAL = (0, 7)


def micro_batches(batch: Batch) -> list[MicroBatch]:
    return [m for rank in batch.ranks for m in rank if m is not None]


def tokens_read(m: MicroBatch, state: int) -> list[int]:
    """Every token that the state at a packed position has read, from the start of its sequence."""
    segment = int(np.searchsorted(m.segment_starts, state, side="right")) - 1
    read = m.token_ids[m.segment_starts[segment] : state + 1].tolist()
    while (segment := int(m.segment_parents[segment])) >= 0:
        read = m.token_ids[m.segment_starts[segment] : m.segment_starts[segment + 1]].tolist() + read
    return read


def assert_rows_belong_to_their_tokens(batch: Batch, examples: list[Example]) -> None:
    """Each response token of each example has one row, whose state has read exactly what precedes the token."""
    seen: set[tuple[int, int]] = set()
    for m in micro_batches(batch):
        position: dict[int, int] = {}
        for row, (state, index) in enumerate(zip(m.logit_positions, m.rows["example_index"], strict=True)):
            t = position.get(index, 0)
            position[index] = t + 1
            seen.add((int(index), t))
            trajectory, signal = examples[index].trajectory, examples[index].signal
            expected = np.concatenate([trajectory.prompt_ids, trajectory.response_ids[:t]])
            np.testing.assert_array_equal(tokens_read(m, state), expected)
            assert m.position_ids[state] == len(expected) - 1
            assert m.rows["target_ids"][row] == trajectory.response_ids[t]
            assert m.loss_mask[row] == trajectory.loss_mask[t]
            assert m.rows["sampling_logprobs"][row] == trajectory.sampling_logprobs[t]
            assert m.rows["temperatures"][row] == np.float32(trajectory.temperature)
            assert m.rows["teacher_logprobs"][row] == signal.logprobs[t]
            assert m.rows["teacher_entropy"][row] == signal.entropy[t]
            np.testing.assert_array_equal(m.rows["support_ids"][row], signal.support_ids[t])
            np.testing.assert_array_equal(m.rows["teacher_support_logprobs"][row], signal.support_logprobs[t])
            np.testing.assert_array_equal(m.rows["teacher_top_ids"][row], signal.top_ids[t])
            np.testing.assert_array_equal(m.rows["teacher_top_logprobs"][row], signal.top_logprobs[t])
            assert m.rows["reference_logprobs"][row] == signal.reference_logprobs[t]
            assert (m.rows["positions"][row], m.rows["slots"][row]) == (t, trajectory.slot)
            assert m.rows["is_special"][row] == (trajectory.response_ids[t] in SPECIAL)
            assert m.rows["weights"][row] == np.float32(examples[index].weight)
            assert m.rows["task_advantages"][row] == np.float32(examples[index].advantage)
    assert seen == {(i, t) for i, e in enumerate(examples) for t in range(len(e.trajectory.response_ids))}


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=9),
    ranks=st.integers(1, 4),
    budget=st.integers(1, 40),
)
def test_properties(lengths: list[tuple[int, int]], ranks: int, budget: int) -> None:
    examples = [full_example(slot, *pair) for slot, pair in enumerate(lengths)]
    batch = pack(examples, ranks, budget, policy_version=3, special_ids=SPECIAL)
    assert_rows_belong_to_their_tokens(batch, examples)
    assert len(batch.ranks) == ranks and len({len(rank) for rank in batch.ranks}) == 1
    assert batch.loss_tokens == sum(int(m.loss_mask.sum()) for m in micro_batches(batch))
    assert batch.examples == len(examples) and batch.policy_version == 3
    for m in micro_batches(batch):
        assert len(m.token_ids) <= budget or len(m.segment_starts) == 2
        assert m.segment_starts[-1] == len(m.token_ids)
    for rank in batch.ranks:
        slots = [i for m in rank if m is not None for i in dict.fromkeys(m.rows["example_index"].tolist())]
        assert slots == sorted(slots)
    tokens = [sum(len(m.token_ids) for m in rank if m is not None) for rank in batch.ranks]
    assert max(tokens) - min(tokens) <= max(p + r - 1 for p, r in lengths)


@pytest.mark.parametrize("share_prefixes", [False, True])
def test_common_prompts_are_laid_down_once(share_prefixes: bool) -> None:
    examples = [with_prompt(full_example(slot, 0, 5), prompt) for slot, prompt in enumerate((40, 40, 23, 9))]
    batch = pack(examples, 1, 1000, 0, share_prefixes, SPECIAL)
    assert_rows_belong_to_their_tokens(batch, examples)
    (m,) = micro_batches(batch)
    separate = 40 + 40 + 23 + 9 + 4 * 4
    assert len(m.token_ids) == (separate - 40 - 23 if share_prefixes else separate)


def full_example(slot: int, prompt: int, response: int) -> Example:
    """With everything that any objective may need."""
    example = make_example(slot, prompt, response, vocabulary=30, top_k=3, reference=True)
    return replace(example, weight=slot / 4, advantage=slot - 0.5)


def with_prompt(example: Example, tokens: int) -> Example:
    return replace(example, trajectory=replace(example.trajectory, prompt_ids=np.arange(tokens, dtype=np.int32)))


def test_arrival_order_does_not_matter() -> None:
    examples = make_examples()
    first, second = (pack(order, 2, 30, 0) for order in (examples, examples[::-1]))
    for one, other in zip(micro_batches(first), micro_batches(second), strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.rows["example_index"], len(examples) - 1 - other.rows["example_index"])


def test_a_one_token_response_is_predicted_by_the_last_prompt_token() -> None:
    batch = pack([make_example(0, 4, 1)], 1, 100, 0)
    (m,) = micro_batches(batch)
    assert len(m.token_ids) == 4 and m.logit_positions.tolist() == [3]


def test_an_empty_rank_has_empty_micro_batches() -> None:
    batch = pack([make_example(0, 4, 3)], 3, 100, 0)
    assert [[m is None for m in rank] for rank in batch.ranks] == [[False], [True], [True]]


def test_bad_examples_are_named() -> None:
    example = make_example(0, 4, 3)
    with pytest.raises(ValueError, match="no examples"):
        pack([], 1, 10, 0)
    with pytest.raises(ValueError, match=r"prompt-0.*at least one token"):
        pack([make_example(0, 0, 3)], 1, 10, 0)
    short = replace(example, signal=replace(example.signal, logprobs=example.signal.logprobs[:-1]))
    with pytest.raises(ValueError, match=r"prompt-0.*signal\.logprobs has 2 rows for 3"):
        pack([short], 1, 10, 0)
    bare = replace(example, signal=replace(example.signal, support_ids=None, support_logprobs=None))
    with pytest.raises(ValueError, match=r"support_ids.*must all have it"):
        pack([example, bare], 1, 100, 0)
    with pytest.raises(ValueError, match=r"advantage.*must all have it"):
        pack([example, replace(example, advantage=1.0)], 1, 100, 0)


def test_an_example_without_a_teacher_is_packed_like_any_other() -> None:
    scored_mask, bare = make_example(0, 4, 3), replace(make_example(1, 5, 2), signal=None)
    (m,) = micro_batches(pack([replace(scored_mask, signal=None), bare], 1, 100, 0))
    (with_scores,) = micro_batches(pack([scored_mask, make_example(1, 5, 2)], 1, 100, 0))
    assert all(
        np.isnan(m.rows[name]).all() and len(m.rows[name]) == 5 for name in ("teacher_logprobs", "teacher_entropy")
    )
    assert not {"support_ids", "teacher_top_ids", "teacher_hidden_states"} & m.rows.keys()
    for name in ("token_ids", "loss_mask", "logit_positions"):
        np.testing.assert_array_equal(getattr(m, name), getattr(with_scores, name))
    for name in ("target_ids", "weights"):
        np.testing.assert_array_equal(m.rows[name], with_scores.rows[name])


def test_what_nobody_needs_is_not_there() -> None:
    (m,) = micro_batches(pack([make_example(0, 4, 3)], 1, 100, 0))
    assert not {"teacher_top_ids", "teacher_top_logprobs", "task_advantages", "reference_logprobs"} & m.rows.keys()
    assert m.rows["weights"].tolist() == [1, 1, 1] and not m.rows["is_special"].any()


def test_a_batch_says_how_many_ids_of_the_teacher_all_its_examples_have() -> None:
    wide, narrow, none = make_example(0, 3, 4, top_k=20), make_example(1, 3, 4, top_k=16), make_example(2, 3, 4)
    assert pack([wide, wide], 1, 64, 0).teacher_top_k == 20
    assert pack([wide, narrow], 1, 1, 0).teacher_top_k == 16
    assert pack([wide, none], 1, 1, 0).teacher_top_k == 0
    assert pack([replace(wide, signal=None)], 1, 64, 0).teacher_top_k == 0


def test_what_others_wrote_reaches_no_loss_and_no_metric() -> None:
    """Their rows are NaN in a conversation: whatever stands there, the same comes out."""
    examples = [make_example(slot, 4, 12, vocabulary=V, k=K, top_k=4) for slot in range(3)]
    assert all(not e.trajectory.loss_mask.all() for e in examples)
    results = [swept([with_filler(e, filler) for e in examples]) for filler in (np.nan, 0.0)]
    for with_nan, with_zeros in zip(*results, strict=True):
        assert with_nan.isfinite().all()
        torch.testing.assert_close(with_nan, with_zeros, rtol=0, atol=0)


V, K = 60, 16


def with_filler(example: Example, filler: float) -> Example:
    """Something else at the tokens that are not learned from."""
    own, signal, trajectory = example.trajectory.loss_mask, example.signal, example.trajectory
    assert signal is not None

    def fill(rows: NDArray) -> NDArray:
        return np.where(own if rows.ndim == 1 else own[:, None], rows, rows.dtype.type(filler))

    floats = {name: rows for name, rows in vars(signal).items() if getattr(rows, "dtype", None) == np.float32}
    signal = replace(signal, **{name: fill(rows) for name, rows in floats.items()})
    return replace(
        example, signal=signal, trajectory=replace(trajectory, sampling_logprobs=fill(trajectory.sampling_logprobs))
    )


def swept(examples: list[Example]) -> list[torch.Tensor]:
    """Loss, metrics and gradient of objectives that read all there is."""
    generator = torch.Generator().manual_seed(0)
    table, found = torch.randn(3, 12, 8, generator=generator), []
    for config in (
        *COMPOSITIONS.values(),
        ObjectiveConfig(support=Support.union, normalisation=Normalisation.tail, k=4),
    ):
        weight = torch.randn(V, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        ((micro_batch,),) = pack(examples, 1, 1000, 0).ranks
        rows = to_tensors(micro_batch, torch.device("cpu")).rows
        hidden = table[rows.slots, rows.positions]
        loss, metrics = fused_head_loss(hidden, weight, None, rows, build_objective(config), 5, compared_k=4)
        loss.backward()
        metrics.pop("overlap_token_advantage")  # undefined where fewer than two ids are shared
        found += [loss.detach(), weight.grad, *metrics.values()]
    return found

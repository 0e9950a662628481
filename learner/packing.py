"""Examples into a batch: balanced over ranks, packed to a token budget, the same for the same examples.

Shape suffixes: P prompt tokens, T response tokens, N packed tokens, R response positions, K support ids.

Alignment: the input of a sequence is its prompt and all response tokens but the last (nothing follows it);
response token t is predicted by the state at position P + t - 1.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.records import ROW_ARRAYS, Batch, Example, MicroBatch
from tutelage.lm.prefix_tree import lay_out
from tutelage.records.signal import SIGNAL_ARRAYS
from tutelage.records.trajectory import TRAJECTORY_ARRAYS

_Indexed = tuple[int, Example]  # its place among the examples, and the example


def pack(
    examples: Sequence[Example],
    ranks: int,
    token_budget: int,
    policy_version: int,
    share_prefixes: bool = True,
    special_ids: Collection[int] = (),
) -> Batch:
    """Pack one optimiser step.

    Sequences go to ranks longest first, each to the rank with the fewest tokens so far; within a rank they
    stand in order of slot, and a micro-batch closes when the next sequence would exceed the budget. A
    sequence longer than the budget runs alone, and hidden states of two teachers never stand in one
    micro-batch. What the sequences of a micro-batch begin with in common is computed once, unless
    `share_prefixes` is off (kernels that need whole sequences). The order of `examples` changes nothing but
    `example_index`, which refers to it.

    Args:
        special_ids: the tokenizer's special tokens, which `is_special` tells apart.

    Raises:
        ValueError: no examples, an empty prompt or response, a teacher's scores that do not fit the response,
            or optional scores that only some examples have.
    """
    if not examples:
        raise ValueError("pack: there are no examples")
    for example in examples:
        _check(example)
    per_rank = [
        [
            _join(group, share_prefixes, special_ids)
            for part in _by_states(share)
            for group in _groups(part, token_budget)
        ]
        for share in _balance(examples, ranks)
    ]
    longest = max(len(micro_batches) for micro_batches in per_rank)
    padded = tuple(tuple(m) + (None,) * (longest - len(m)) for m in per_rank)
    loss_tokens = sum(example.loss_tokens for example in examples)
    return Batch(policy_version, padded, loss_tokens, len(examples), min(map(_teacher_top_k, examples)))


def _teacher_top_k(example: Example) -> int:
    top_ids = None if example.signal is None else example.signal.top_ids
    return 0 if top_ids is None else top_ids.shape[1]


def _input_length(example: Example) -> int:
    return len(example.trajectory.prompt_ids) + len(example.trajectory.response_ids) - 1


def _check(example: Example) -> None:
    trajectory, tokens = example.trajectory, len(example.trajectory.response_ids)
    name = f"prompt {trajectory.prompt_id!r}, sample {trajectory.sample_index}"
    if not len(trajectory.prompt_ids) or not tokens:
        raise ValueError(f"{name}: a prompt and a response of at least one token are needed")
    arrays = {field: getattr(trajectory, field) for field in TRAJECTORY_ARRAYS}
    arrays |= {f"signal.{field}": getattr(example.signal, field, None) for field in SIGNAL_ARRAYS}
    for field, array in arrays.items():
        if array is not None and len(array) != tokens:
            raise ValueError(f"{name}: {field} has {len(array)} rows for {tokens} response tokens")


def _balance(examples: Sequence[Example], ranks: int) -> list[list[_Indexed]]:
    """Examples of each rank, in order of slot."""
    shares: list[list[_Indexed]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    longest_first = sorted(enumerate(examples), key=lambda e: (-_input_length(e[1]), e[1].trajectory.slot))
    for index, example in longest_first:
        rank = loads.index(min(loads))
        shares[rank].append((index, example))
        loads[rank] += _input_length(example)
    return [sorted(share, key=lambda e: e[1].trajectory.slot) for share in shares]


def _by_states(share: Sequence[_Indexed]) -> list[list[_Indexed]]:
    """A rank's examples by the teacher whose states they carry; together if they carry none."""
    parts: dict[str | None, list[_Indexed]] = {}
    for item in share:
        parts.setdefault(_states_of(item[1]), []).append(item)
    return list(parts.values())


def _states_of(example: Example) -> str | None:
    signal = example.signal
    return None if signal is None or signal.hidden_states is None else signal.teacher


def _groups(share: Sequence[_Indexed], token_budget: int) -> list[list[_Indexed]]:
    """Cut a rank's examples into micro-batches."""
    groups: list[list[_Indexed]] = []
    room = 0
    for item in share:
        length = _input_length(item[1])
        if not groups or length > room:
            groups.append([])
            room = token_budget
        groups[-1].append(item)
        room -= length
    return groups


def _join(group: Sequence[_Indexed], share_prefixes: bool, special_ids: Collection[int]) -> MicroBatch:
    trajectories = [example.trajectory for _, example in group]
    lengths = [len(t.response_ids) for t in trajectories]
    tree = lay_out([np.concatenate([t.prompt_ids, t.response_ids[:-1]]) for t in trajectories], share_prefixes)
    arrays = _with_spans([_arrays(index, example, special_ids) for index, example in group], lengths)
    return MicroBatch(
        token_ids=tree.token_ids,
        position_ids=tree.position_ids,
        segment_starts=tree.segment_starts,
        segment_parents=tree.segment_parents,
        logit_positions=np.concatenate([rows[-n:] for rows, n in zip(tree.rows, lengths, strict=True)]),
        loss_mask=np.concatenate([example.loss_mask for _, example in group]),
        rows=_rows(arrays, lengths),
        teacher=_states_of(group[0][1]),
    )


def _arrays(index: int, example: Example, special_ids: Collection[int]) -> dict[str, NDArray[Any]]:
    """All per-token arrays of one example, by their names in `ROW_ARRAYS`; those of other records among them."""
    trajectory, tokens = example.trajectory, len(example.trajectory.response_ids)
    arrays = {
        "target_ids": trajectory.response_ids,
        "sampling_logprobs": trajectory.sampling_logprobs,
        "temperatures": np.full(tokens, trajectory.temperature),
        "positions": np.arange(tokens),
        "is_special": np.isin(trajectory.response_ids, list(special_ids)),
        "weights": np.full(tokens, example.weight),
        "example_index": np.full(tokens, index),
        "slots": np.full(tokens, trajectory.slot),
    }
    if example.advantage is not None:
        arrays["task_advantages"] = np.full(tokens, example.advantage)
    if example.signal is not None:
        arrays |= {SIGNAL_ARRAYS[name].learner_name(name): rows for name, rows in example.signal.arrays.items()}
    return arrays


def _with_spans(arrays: Sequence[dict[str, NDArray[Any]]], lengths: Sequence[int]) -> list[dict[str, NDArray[Any]]]:
    """Where a teacher scored several tokens together, the others scored each by itself."""
    if not any("spans" in of_example for of_example in arrays):
        return list(arrays)
    return [
        {"spans": np.arange(n), "merged": np.zeros(n, np.bool_)} | of_example
        for of_example, n in zip(arrays, lengths, strict=True)
    ]


def _rows(arrays: Sequence[dict[str, NDArray[Any]]], lengths: Sequence[int]) -> dict[str, NDArray[Any]]:
    """The examples' arrays end to end, without those that none of them has."""
    rows = {}
    for name, array in ROW_ARRAYS.items():
        try:
            joined = array.join([of_example.get(name) for of_example in arrays], lengths)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if joined is not None:
            rows[name] = joined
    return rows

"""Examples into a batch: balanced over ranks, packed to a token budget, the same for the same examples.

Shape suffixes: P prompt tokens, T response tokens, N packed tokens, R response positions, K support ids.

Alignment: the input of a sequence is its prompt and all response tokens but the last (nothing follows it);
response token t is predicted by the state at position P + t - 1.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from learner.records import Batch, Example, MicroBatch
from tutelage.lm.prefix_tree import lay_out
from tutelage.records.signal import TeacherSignal
from tutelage.records.trajectory import Trajectory

_SIGNAL_ARRAYS = (
    "logprobs",
    "entropy",
    "support_ids",
    "support_logprobs",
    "top_ids",
    "top_logprobs",
    "hidden_states",
    "reference_logprobs",
    "known",
    "spans",
    "merged",
)
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
        special_ids: the tokenizer's special tokens, to be scored as such.

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
    aligned = {
        "loss_mask": trajectory.loss_mask,
        "sampling_logprobs": trajectory.sampling_logprobs,
        **{f"signal.{name}": getattr(example.signal, name, None) for name in _SIGNAL_ARRAYS},
    }
    for field, array in aligned.items():
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
    examples = [example for _, example in group]
    trajectories = [example.trajectory for example in examples]
    signals = _with_spans([example.signal or _unmarked(example.trajectory) for example in examples])
    tree = lay_out([np.concatenate([t.prompt_ids, t.response_ids[:-1]]) for t in trajectories], share_prefixes)
    responses = [len(t.response_ids) for t in trajectories]
    target_ids = _cat([t.response_ids for t in trajectories], np.int64)
    return MicroBatch(
        token_ids=tree.token_ids,
        position_ids=tree.position_ids,
        segment_starts=tree.segment_starts,
        segment_parents=tree.segment_parents,
        logit_positions=_cat([rows[-n:] for rows, n in zip(tree.rows, responses, strict=True)], np.int64),
        target_ids=target_ids,
        loss_mask=_cat([example.loss_mask for example in examples], np.bool_),
        example_index=_repeat([index for index, _ in group], responses, np.int64),
        slots=_repeat([t.slot for t in trajectories], responses, np.int64),
        positions=_cat([np.arange(n) for n in responses], np.int64),
        is_special=np.isin(target_ids, list(special_ids)),
        weights=_repeat([example.weight for example in examples], responses, np.float32),
        sampling_logprobs=_cat([t.sampling_logprobs for t in trajectories], np.float32),
        temperatures=_repeat([t.temperature for t in trajectories], responses, np.float32),
        teacher_logprobs=_cat([s.logprobs for s in signals], np.float32),
        teacher_entropy=_cat([_entropy(s) for s in signals], np.float32),
        support_ids=_cat_optional("support_ids", [s.support_ids for s in signals], np.int64),
        support_teacher_logprobs=_cat_optional("support_logprobs", [s.support_logprobs for s in signals], np.float32),
        teacher_top_ids=_cat_optional("top_ids", [s.top_ids for s in signals], np.int64),
        teacher_top_logprobs=_cat_optional("top_logprobs", [s.top_logprobs for s in signals], np.float32),
        teacher_hidden_states=_cat_optional("hidden_states", [s.hidden_states for s in signals], np.float32),
        teacher=_states_of(examples[0]),
        task_advantages=_advantages(examples, responses),
        reference_logprobs=_cat_optional("reference_logprobs", [s.reference_logprobs for s in signals], np.float32),
        spans=_cat_optional("spans", [s.spans for s in signals], np.int64),
        merged=_cat_optional("merged", [s.merged for s in signals], np.bool_),
    )


def _unmarked(trajectory: Trajectory) -> TeacherSignal:
    """What no teacher says about a trajectory."""
    unknown = np.full(len(trajectory.response_ids), np.nan, dtype=np.float32)
    return TeacherSignal(teacher="", logprobs=unknown, entropy=unknown)


def _with_spans(signals: Sequence[TeacherSignal]) -> Sequence[TeacherSignal]:
    """Where a teacher scored several tokens together, the others scored each by itself."""
    if all(signal.spans is None for signal in signals):
        return signals
    return [
        signal
        if signal.spans is not None
        else replace(signal, spans=np.arange(len(signal.logprobs)), merged=np.zeros(len(signal.logprobs), np.bool_))
        for signal in signals
    ]


def _entropy(signal: TeacherSignal) -> NDArray[np.float32]:
    """[T], NaN where the teacher was not asked for it or cannot tell."""
    return np.full(len(signal.logprobs), np.nan, dtype=np.float32) if signal.entropy is None else signal.entropy


def _advantages(examples: Sequence[Example], responses: Sequence[int]) -> NDArray[np.float32] | None:
    known = [example.advantage for example in examples if example.advantage is not None]
    if known and len(known) != len(examples):
        raise ValueError("advantage: the examples of a batch must all have it")
    return _repeat(known, responses, np.float32) if known else None


def _repeat(values: Sequence[float], counts: Sequence[int], dtype: type) -> NDArray:
    return np.repeat(np.array(values, dtype), counts)


def _cat(arrays: Sequence[NDArray], dtype: type) -> NDArray:
    return np.concatenate(arrays).astype(dtype)


def _cat_optional(field: str, arrays: Sequence[NDArray | None], dtype: type) -> NDArray | None:
    present = [array for array in arrays if array is not None]
    if not present:
        return None
    if len(present) != len(arrays) or len({array.shape[1:] for array in present}) != 1:
        raise ValueError(f"signal.{field}: the examples of a batch must all have it, with one width")
    return _cat(present, dtype)

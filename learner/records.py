"""What one optimiser step consumes.

Shape suffixes: N tokens of a packed micro-batch, S segments, R response positions, K support ids, M of the
teacher's own most likely ids, d hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tutelage.records.signal import TeacherSignal
from tutelage.records.trajectory import Trajectory


@dataclass(frozen=True)
class Example:
    """A trajectory with its teacher's scores, if a teacher takes part, and what it counts for."""

    trajectory: Trajectory
    signal: TeacherSignal | None
    weight: float = 1.0  # of its tokens' losses; the normaliser counts them whatever it is
    advantage: float | None = None  # of its task reward

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        """[T], True where the token is learned from: what the student wrote and the teacher could score."""
        mask = self.trajectory.loss_mask
        return mask if self.signal is None or self.signal.known is None else mask & self.signal.known

    @property
    def loss_tokens(self) -> int:
        return int(self.loss_mask.sum())


@dataclass(frozen=True)
class MicroBatch:
    """Sequences laid end to end, their common beginnings once (`scoring.prefix_tree`).

    Row r of every [R, …] array is about one response token.
    """

    token_ids: NDArray[np.int64]  # [N]
    position_ids: NDArray[np.int64]  # [N], from 0 in each sequence
    segment_starts: NDArray[np.int32]  # [S + 1], cumulative lengths
    segment_parents: NDArray[np.int32]  # [S], the segment that each one continues; -1: none
    logit_positions: NDArray[np.int64]  # [R], index into N of the state that predicts the response token
    target_ids: NDArray[np.int64]  # [R]
    loss_mask: NDArray[np.bool_]  # [R]
    example_index: NDArray[np.int64]  # [R], which example of the step the row belongs to
    slots: NDArray[np.int64]  # [R], of the example: the same in every run with the same seed
    positions: NDArray[np.int64]  # [R], place in the response, from 0
    is_special: NDArray[np.bool_]  # [R], whether the target is one of the tokenizer's special tokens
    weights: NDArray[np.float32]  # [R], of the example
    sampling_logprobs: NDArray[np.float32]  # [R], NaN where the student did not sample the token
    temperatures: NDArray[np.float32]  # [R], of the sampling distribution
    teacher_logprobs: NDArray[np.float32]  # [R], NaN without a teacher
    teacher_entropy: NDArray[np.float32]  # [R], NaN without a teacher
    support_ids: NDArray[np.int64] | None  # [R, K]
    support_teacher_logprobs: NDArray[np.float32] | None  # [R, K]
    teacher_top_ids: NDArray[np.int64] | None  # [R, M], most likely first
    teacher_top_logprobs: NDArray[np.float32] | None  # [R, M]
    task_advantages: NDArray[np.float32] | None  # [R], of the example
    reference_logprobs: NDArray[np.float32] | None  # [R], of the targets
    teacher_hidden_states: NDArray[np.float32] | None  # [R, d]
    teacher: str | None = None  # whose hidden states they are
    spans: NDArray[np.int64] | None = None  # [R], within the example; rows of one number were scored together
    merged: NDArray[np.bool_] | None = (
        None  # [R], spans that are not one token of the student's and one of the teacher's
    )


@dataclass(frozen=True)
class Batch:
    """One optimiser step: the micro-batches of every rank, equal in number (an empty one is None)."""

    policy_version: int  # of the weights that the step starts from
    ranks: tuple[tuple[MicroBatch | None, ...], ...]  # [rank][micro-batch]
    loss_tokens: int  # over all ranks and micro-batches: the normaliser of the loss
    examples: int
    teacher_top_k: int = 0  # of the teacher's own most likely ids that every example has


@dataclass(frozen=True)
class ExampleTokens:
    """One response under both models at temperature 1, in nats; T is the number of its loss tokens.

    `values` has [T] of each of: "student_logprob" and "teacher_logprob" of the token, "student_entropy",
    "teacher_entropy", "reverse_kl" KL(student || teacher), "forward_kl", and what `learner.overlap.overlap` tells
    ("overlap_token_advantage" is NaN where fewer than two ids are shared).
    """

    example_index: int  # which example of the batch
    positions: NDArray[np.int32]  # [T], places in the response, from 0
    values: Mapping[str, NDArray[np.float32]]  # [T] each
    student_top_ids: NDArray[np.int32]  # [T, K], most likely first
    student_top_logprobs: NDArray[np.float32]  # [T, K]
    teacher_logprobs_at_student_top: NDArray[np.float32]  # [T, K]
    teacher_top_ids: NDArray[np.int32]  # [T, K], most likely first
    teacher_top_logprobs: NDArray[np.float32]  # [T, K]
    student_logprobs_at_teacher_top: NDArray[np.float32]  # [T, K]


@dataclass(frozen=True)
class ExampleDivergence:
    """How far apart student and teacher are on one response: exact, *sums* over its loss tokens."""

    example_index: int  # which example of the batch
    tokens: int
    reverse_kl: float  # KL(student || teacher), full vocabulary, nats
    forward_kl: float  # KL(teacher || student), full vocabulary, nats
    overlap_ratio: float | None = None  # share of the two top k that coincides; None: not measured


@dataclass(frozen=True)
class StepReport:
    """`metrics` are means over the step's loss tokens unless their name says otherwise, over all ranks."""

    policy_version: int  # after the step
    loss: float
    grad_norm: float  # before clipping
    learning_rate: float
    loss_tokens: int
    seconds: float
    cpu_seconds: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishReport:
    """What one publication of weights did."""

    version: int
    seconds: float
    engine_seconds: float | None  # of them, spent by the slowest engine on loading; None where it cannot tell
    write_seconds: float | None  # of them, spent on copying and hashing; None where vLLM does it
    nbytes: int
    checksum: str | None  # of all buckets; None where vLLM carries them


@dataclass(frozen=True)
class ExampleLogprobs:
    example_index: int  # which example of the batch
    values: NDArray[np.float32]  # [T], nats, at the example's sampling temperature

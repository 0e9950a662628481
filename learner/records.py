"""What one optimiser step consumes and reports.

Shape suffixes: N tokens of a packed micro-batch, S segments, R response positions, K support ids, M of the
teacher's own most likely ids, d hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.records.per_token import declared, per_token
from tutelage.records.signal import SIGNAL_ARRAYS, TeacherSignal
from tutelage.records.trajectory import TRAJECTORY_ARRAYS, Trajectory

if TYPE_CHECKING:
    from torch import Tensor


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
class Rows:
    """What rollout and teacher said about R response tokens; log-probs in nats.

    A field is declared here if packing makes it (`per_token`), and by `Trajectory` or `TeacherSignal` if they bring it.
    The head fills in the last three. What no objective of the run needs may be None.

    The two turns of `Trajectory` are R = 5 rows, in the learner's tensors of loss tokens only:

        target_ids          21   22  </s>   23  </s>
        positions            0    1    2     6    7
        sampling_logprobs  -.2 -1.1  -.1   -.4  -.1
        teacher_logprobs   -.3  -.9  -.1   -.5  -.1
    """

    target_ids: "Tensor" = field(metadata=per_token(np.int64))  # [R]
    sampling_logprobs: "Tensor"  # [R], under the sampling distribution; NaN where the student did not sample the token
    temperatures: "Tensor" = field(metadata=per_token(np.float32))  # [R], of the sampling distribution
    teacher_logprobs: "Tensor"  # [R], of the targets; NaN without a teacher
    support_ids: "Tensor | None" = None  # [R, K], the student's most likely ids at rollout time, most likely first
    teacher_support_logprobs: "Tensor | None" = None  # [R, K]
    teacher_top_ids: "Tensor | None" = None  # [R, M], the teacher's most likely ids, most likely first
    teacher_top_logprobs: "Tensor | None" = None  # [R, M]
    teacher_entropy: "Tensor | None" = None  # [R], nats; NaN where the teacher did not tell
    # [R], place in the response, from 0
    positions: "Tensor | None" = field(default=None, metadata=per_token(np.int64, source="learner.packing"))
    # [R], one of the tokenizer's special tokens
    is_special: "Tensor | None" = field(default=None, metadata=per_token(np.bool_, source="learner.packing"))
    # [R], of the trajectory; 0 where a gate is shut
    weights: "Tensor | None" = field(default=None, metadata=per_token(np.float32, source="learner.packing"))
    # [R], of the trajectory's task reward
    task_advantages: "Tensor | None" = field(
        default=None, metadata=per_token(np.float32, source="data.verifier and sampling.samples_per_prompt")
    )
    reference_logprobs: "Tensor | None" = None  # [R], of the targets under the reference model
    # [R], the trajectory within the step
    example_index: "Tensor | None" = field(default=None, metadata=per_token(np.int64, source="learner.packing"))
    # [R], the trajectory within the run: seeds random token masks
    slots: "Tensor | None" = field(default=None, metadata=per_token(np.int64, source="learner.packing"))
    spans: "Tensor | None" = None  # [R], tokens of a trajectory that a teacher scored together; they stand together
    merged: "Tensor | None" = None  # [R], spans that are not one token of the student's and one of the teacher's
    future_advantages: "Tensor | None" = None  # [R], (discounted) log-ratios of the tokens that follow, detached
    span_tokens: "Tensor | None" = None  # [R], of the row's span
    # [R, 4], sums over the span's other tokens: log p, log q, sampling log-prob, log p at its temperature; detached
    span_rest: "Tensor | None" = None

    def __len__(self) -> int:
        return len(self.target_ids)

    def slice(self, start: int, stop: int) -> "Rows":
        """The rows from `start` up to `stop`, as views."""
        return Rows(*(None if x is None else x[start:stop] for x in vars(self).values()))

    def require(self, field: str) -> "Tensor":
        """A field that may be missing.

        Raises:
            ValueError: it is.
        """
        value: Tensor | None = vars(self)[field]
        if value is None:
            # What no record declares the head computes, for returns.
            source = ROW_ARRAYS[field].source if field in ROW_ARRAYS else "objective.returns"
            raise ValueError(f"objective: needs Rows.{field}, and the batch has none; see {source}")
        return value

    def support(self) -> "tuple[Tensor, Tensor]":
        """The student's most likely ids and the teacher's log-probs of them, [R, K] each."""
        return self.require("support_ids"), self.require("teacher_support_logprobs")

    def teacher_top(self) -> "tuple[Tensor, Tensor]":
        """The teacher's most likely ids and its log-probs of them, [R, M] each."""
        return self.require("teacher_top_ids"), self.require("teacher_top_logprobs")


STATES = "teacher_hidden_states"  # packed like rows, but the head's: no objective sees them
_brought = TRAJECTORY_ARRAYS | {array.learner_name(name): array for name, array in SIGNAL_ARRAYS.items()}
# What micro-batches hold of each response token, by the name that it has there and in `Rows`.
ROW_ARRAYS = {
    name: array
    for name, array in (_brought | declared(Rows)).items()
    if name in {STATES, *(item.name for item in fields(Rows))}
}


@dataclass(frozen=True)
class MicroBatch:
    """Sequences laid end to end, their common beginnings once (`tutelage.lm.prefix_tree`).

    Row r of every [R, …] array is about one response token.
    """

    token_ids: NDArray[np.int64]  # [N]
    position_ids: NDArray[np.int64]  # [N], from 0 in each sequence
    segment_starts: NDArray[np.int32]  # [S + 1], cumulative lengths
    segment_parents: NDArray[np.int32]  # [S], the segment that each one continues; -1: none
    logit_positions: NDArray[np.int64]  # [R], index into N of the state that predicts the response token
    loss_mask: NDArray[np.bool_]  # [R]
    # [R, …] each, of `ROW_ARRAYS` those that the examples have; states may be `StoredRows`
    rows: Mapping[str, NDArray[Any]]
    teacher: str | None = None  # whose hidden states they are


@dataclass(frozen=True)
class Batch:
    """One optimiser step: the micro-batches of every rank, equal in number (an empty one is None)."""

    policy_version: int  # of the weights that the step starts from
    ranks: tuple[tuple[MicroBatch | None, ...], ...]  # [rank][micro-batch]
    loss_tokens: int  # over all ranks and micro-batches: the normaliser of the loss
    examples: int
    teacher_top_k: int = 0  # of the teacher's own most likely ids that every example has

    def share(self, rank: int) -> "Batch":
        """The batch as one rank needs it: the micro-batches of the others are empty."""
        empty = (None,) * len(self.ranks[rank])
        return replace(self, ranks=tuple(own if r == rank else empty for r, own in enumerate(self.ranks)))


@dataclass(frozen=True)
class ExampleTokens:
    """One response under both models at temperature 1, in nats; T is the number of its loss tokens.

    `values` has [T] of each of: "student_logprob" and "teacher_logprob" of the token, "student_entropy",
    "teacher_entropy", "reverse_kl" KL(student || teacher), "forward_kl", and what `learner.head.compare.overlap` tells
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
    skipped: str = ""  # what was not finite, so that the weights are as they were; empty: the step was taken


@dataclass(frozen=True)
class PublishReport:
    """What one publication of weights did."""

    version: int
    seconds: float
    engine_seconds: float | None  # of them, spent by the slowest engine on loading; None where it cannot tell
    write_seconds: float | None  # of them, spent on copying and hashing; None where vLLM does it
    nbytes: int
    checksum: str | None  # of all buckets; None where vLLM carries them

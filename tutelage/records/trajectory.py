"""The records of a rollout.

Shape suffixes: P prompt tokens, T response tokens, K candidates a position.
"""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from tutelage.records.per_token import declared, per_token

STUDENT_ROLE = "assistant"  # in a conversation


class Origin(Enum):
    """Whose sequence it is."""

    STUDENT = "student"
    TEACHER = "teacher"
    DATASET = "dataset"


class FinishReason(Enum):
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Turn:
    """Response tokens `start` (inclusive) to `stop` (exclusive) are one turn of a conversation.

    A turn of the student's is what it sampled. Any other holds what its side wrote and all that the template puts
    between two answers.
    """

    role: str  # "assistant" is the student
    start: int
    stop: int
    text: str = ""  # of a turn that is not the student's


@dataclass(frozen=True)
class FollowUp:
    """What another side says after an answer of the student's."""

    role: str
    text: str
    ids: NDArray[np.int32]  # from the end of the answer's text to where the next answer begins
    closing: int = 0  # so many of them, the first ones, end the answer's turn, which a sampled answer has done itself


def derive_seed(*parts: int) -> int:
    """Make a 31-bit seed that depends on every part: the one source of seeds for samples."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] & 0x7FFFFFFF)


@dataclass(frozen=True)
class RolloutRequest:
    """One sample to draw from the student.

    `slot` numbers the samples of a run in admission order; with the run's seed it fixes prompt and `seed`.
    """

    slot: int
    prompt_id: str
    sample_index: int
    prompt_ids: NDArray[np.int32]  # [P], the student's rendering
    seed: int
    max_tokens: int  # of each answer
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1  # -1: the whole vocabulary
    candidates: int = 0  # K: return the engine's K most likely ids at each position
    follow_ups: tuple[FollowUp, ...] = ()  # each is put to the student once it has ended the answer before


@dataclass(frozen=True)
class PolicySpan:
    """Response tokens `start` (inclusive) to `stop` (exclusive) were sampled by policy `version`."""

    version: int
    start: int
    stop: int


@dataclass(frozen=True)
class Trajectory:
    """One response to a student's prompt: all that comes after it. The EOS that ends an answer is a loss token.

    Of several turns the student wrote some; at the tokens of the others the loss mask is False, the sampling log-probs
    are NaN and the candidates mean nothing.

    Two turns of the student's, with a user's message and what the template writes around it between them (T = 8):

        response_ids        21   22  </s>  |  <u>   30  <a>  |  23  </s>
        loss_mask            1    1    1   |   0     0    0  |   1    1
        sampling_logprobs  -.2 -1.1  -.1   |  nan   nan  nan | -.4  -.1
        turns              assistant 0-3   |  user 3-6       |  assistant 6-8

    A sequence of another origin was not sampled by any version of the student: its `sampling_logprobs` are NaN,
    and it has neither candidates nor spans.
    """

    slot: int
    prompt_id: str
    sample_index: int
    prompt_ids: NDArray[np.int32]  # [P], the student's rendering
    response_ids: NDArray[np.int32] = field(metadata=per_token(np.int32))  # [T]
    # [T], True where the token is learned from: what no tool or template wrote
    loss_mask: NDArray[np.bool_] = field(metadata=per_token(np.bool_))
    # [T], nats, under the sampling distribution (after temperature)
    sampling_logprobs: NDArray[np.float32] = field(metadata=per_token(np.float32, np.nan))
    temperature: float  # of the sampling distribution
    # [T, K], the engine's most likely ids, most likely first
    candidate_ids: NDArray[np.int32] | None = field(metadata=per_token(np.int32, columns=True))
    spans: tuple[PolicySpan, ...]  # ascending, covering what the student sampled
    finish_reason: FinishReason
    turns: tuple[Turn, ...] = ()  # ascending, covering [0, T); none: the response is one answer
    reward: float | None = None  # the verifier's, None without one
    grading_overran: bool = False  # the verifier did not get done with it, and its reward is 0
    origin: Origin = Origin.STUDENT

    @property
    def oldest_version(self) -> int:
        """Policy version of the first sampled token; undefined for sequences that others wrote."""
        return self.spans[0].version

    @property
    def answers(self) -> tuple[slice, ...]:
        """Where in the response the student's answers are."""
        own = tuple(slice(turn.start, turn.stop) for turn in self.turns if turn.role == STUDENT_ROLE)
        return own if self.turns else (slice(0, len(self.response_ids)),)

    @property
    def loss_tokens(self) -> int:
        return int(self.loss_mask.sum())


def foreign_trajectory(
    request: RolloutRequest, response_ids: NDArray[np.int32], finish_reason: FinishReason, origin: Origin
) -> Trajectory:
    """A response that somebody else gave to the student's prompt of `request`."""
    return Trajectory(
        slot=request.slot,
        prompt_id=request.prompt_id,
        sample_index=request.sample_index,
        prompt_ids=request.prompt_ids,
        response_ids=response_ids,
        loss_mask=np.ones(len(response_ids), dtype=np.bool_),
        sampling_logprobs=np.full(len(response_ids), np.nan, dtype=np.float32),
        temperature=1.0,
        candidate_ids=None,
        spans=(),
        finish_reason=finish_reason,
        origin=origin,
    )


TRAJECTORY_ARRAYS = declared(Trajectory)

CORRECT = 1.0  # a verifier's full score; anything less is incorrect

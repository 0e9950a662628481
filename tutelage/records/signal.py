"""The records of a teacher's scores.

Shape suffixes: P teacher prompt tokens, L tokens that follow them, T of these that are scored, K support ids a
position, d hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.records.per_token import declared, per_token, spread
from tutelage.stops import StopClass


@dataclass(frozen=True)
class SignalNeeds:
    """What an objective must be told about each token besides the sampled token's log-prob, which always comes.

    Teachers' backends, the requests to them and the composition of a run are checked against it.
    """

    teacher: bool = True  # something is compared with another model's probabilities
    candidates: int = 0  # of the student's most likely ids, which the rollout engine returns and the teacher scores
    teacher_top_k: int = 0  # of the teacher's own most likely ids
    watched_top_k: int = 0  # of them, to be compared with the student's whether learned from or not
    teacher_entropy: bool = False  # which tokens are learned from depends on it
    hidden_states: bool = False  # the teacher's whole distribution, from its final states and LM head
    reference_logprobs: bool = False
    task_advantages: bool = False
    future_advantages: bool = False  # a first pass over the tokens, whose log-ratios are summed from behind
    discount: float = 0.0  # of future advantages, a token
    length_normalised: bool = False  # their mean instead of their sum
    softmax_temperature: float = 1.0  # of both distributions that the objective is given


@dataclass(frozen=True)
class ScoringRequest:
    """Ask one teacher about one response; the log-prob of each scored token always comes.

    `prompt_ids` and `response_ids` are the *teacher's* rendering: its privileged context included, and of a response of
    several turns also what tools, users and templates wrote between the student's. Row t of every answer is about the
    t-th scored token, given all that precedes it.

    The two turns of `Trajectory`, whose template writes one token more for this teacher (L = 9, T = 5):

        response_ids   21  22  </s> | <u>  <t>  30  <a> | 23  </s>
        scored_mask     1   1   1   |  0    0    0   0  |  1   1
        scored_ids     21  22  </s>                       23  </s>
    """

    teacher: str
    prompt_ids: NDArray[np.int32]  # [P]
    response_ids: NDArray[np.int32]  # [L]
    scored_mask: NDArray[np.bool_] | None = None  # [L], True for T of them; None: all, T = L
    support_ids: NDArray[np.int32] | None = None  # [T, K], ids whose log-probs are wanted
    top_k: int = 0  # the teacher's own most likely ids
    entropy: bool = False  # of the teacher's whole distribution
    hidden_states: bool = False  # for full-vocabulary divergences
    stops: StopClass | None = None  # all log-probs and the entropy are with these ids as one action

    @property
    def scored_ids(self) -> NDArray[np.int32]:
        """[T], the tokens that are scored."""
        return self.response_ids if self.scored_mask is None else self.response_ids[self.scored_mask]

    @property
    def num_scored(self) -> int:
        """T."""
        return len(self.response_ids) if self.scored_mask is None else int(self.scored_mask.sum())

    @property
    def scored_positions(self) -> NDArray[np.int64]:
        """[T]: where in the response the scored tokens are."""
        return np.arange(len(self.response_ids)) if self.scored_mask is None else np.flatnonzero(self.scored_mask)

    @property
    def ids_to_last_scored(self) -> NDArray[np.int32]:
        """[N]: the prompt and the response up to its last scored token; what follows that one decides no score."""
        positions = self.scored_positions
        return np.concatenate([self.prompt_ids, self.response_ids[: positions[-1] + 1 if len(positions) else 0]])

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Which arrays of `TeacherSignal` answer this, and the shape of a token's row of each; (0,): of any width."""
        shapes = {name: array.asked(self) for name, array in SIGNAL_ARRAYS.items() if array.asked is not None}
        return {name: shape for name, shape in shapes.items() if shape is not None}


def _entropy_row(request: ScoringRequest) -> tuple[int, ...] | None:
    return () if request.entropy else None


def _support_row(request: ScoringRequest) -> tuple[int, ...] | None:
    return None if request.support_ids is None else request.support_ids.shape[1:]


def _top_row(request: ScoringRequest) -> tuple[int, ...] | None:
    return (request.top_k,) if request.top_k else None


def _state_row(request: ScoringRequest) -> tuple[int, ...] | None:
    return (0,) if request.hidden_states else None


@dataclass(frozen=True)
class TeacherSignal:
    """What a teacher says about T tokens. Log-probs and entropies in nats, float32, temperature 1.

    In the learner what a teacher answers with has "teacher_" before its name (`PerToken.learner_name`): `logprobs` are
    `teacher_logprobs` there, and `support_ids`, which are the student's, stay `support_ids`.

    The answer to the request of two turns has T = 5 rows; spread over the student's response it has 8, and at the
    tokens that the student did not write each array has its filler:

        logprobs    -.3  -.9  -.1                    -.5  -.1       as it comes
        logprobs    -.3  -.9  -.1  nan  nan  nan     -.5  -.1       as an `Example` holds it
        top_ids      21   40 </s>    0    0    0      23 </s>       top_k = 1
    """

    teacher: str
    # [T], of the scored tokens
    logprobs: NDArray[np.float32] = field(metadata=per_token(np.float32, np.nan, always=True, asked=lambda request: ()))
    # [T], exact
    entropy: NDArray[np.float32] | None = field(
        default=None,
        metadata=per_token(np.float32, np.nan, always=True, source="ScoringRequest.entropy", asked=_entropy_row),
    )
    # [T, K], as asked for; -1: none
    support_ids: NDArray[np.int32] | None = field(
        default=None,
        metadata=per_token(np.int32, columns=True, source="RolloutRequest.candidates and ScoringRequest.support_ids"),
    )
    # [T, K]
    support_logprobs: NDArray[np.float32] | None = field(
        default=None,
        metadata=per_token(np.float32, np.nan, columns=True, source="ScoringRequest.support_ids", asked=_support_row),
    )
    # [T, top_k], most likely first
    top_ids: NDArray[np.int32] | None = field(
        default=None, metadata=per_token(np.int32, columns=True, source="ScoringRequest.top_k", asked=_top_row)
    )
    # [T, top_k]
    top_logprobs: NDArray[np.float32] | None = field(
        default=None,
        metadata=per_token(np.float32, np.nan, columns=True, source="ScoringRequest.top_k", asked=_top_row),
    )
    # [T, d], input of the teacher's LM head; float16-free; from a scoring group it comes as `StoredRows`
    hidden_states: NDArray[np.float32] | None = field(
        default=None,
        metadata=per_token(np.float32, np.nan, columns=True, source="ScoringRequest.hidden_states", asked=_state_row),
    )
    # [T], of the scored tokens, by a reference model
    reference_logprobs: NDArray[np.float32] | None = field(
        default=None, metadata=per_token(np.float32, np.nan, source="objective.reference.model")
    )
    privileged: bool = False  # the teacher saw more of the prompt than the student
    # Of a teacher with another tokenizer, once its scores are about the student's tokens (`scoring.cross_tokenizer`):
    # [T], False where nothing can be said; None: all are known
    known: NDArray[np.bool_] | None = field(default=None, metadata=per_token(np.bool_))
    # [T], tokens of one number were scored together: `logprobs` sum to it
    spans: NDArray[np.int64] | None = field(
        default=None, metadata=per_token(np.int64, source="teacher.cross_tokenizer")
    )
    # [T], spans that are not one token on each side
    merged: NDArray[np.bool_] | None = field(
        default=None, metadata=per_token(np.bool_, source="teacher.cross_tokenizer")
    )

    @classmethod
    def empty(cls, request: ScoringRequest, width: int = 0) -> "TeacherSignal":
        """The answer to a request without scored tokens by a teacher whose states have `width` numbers."""
        shapes = request.row_shapes | ({"hidden_states": (width,)} if request.hidden_states else {})
        arrays: dict[str, Any] = {name: np.empty((0, *row), SIGNAL_ARRAYS[name].dtype) for name, row in shapes.items()}
        return cls(teacher=request.teacher, support_ids=request.support_ids, **arrays)

    @classmethod
    def answering(cls, request: ScoringRequest, read: Callable[[str], NDArray[Any]]) -> "TeacherSignal":
        """Exactly what `request` asks for, of what was said in answer to one that asks for as much or more.

        Args:
            read: gives an array by its name.

        Raises:
            ValueError: an array has fewer columns than the request asks for.
        """
        arrays: dict[str, Any] = {}
        for name, row in request.row_shapes.items():
            rows = read(name)
            if row and rows.shape[1] < row[0]:
                raise ValueError(f"{name} has {rows.shape[1]} ids a position, fewer than the {row[0]} asked for")
            arrays[name] = np.ascontiguousarray(rows[:, : row[0]]) if row and row[0] else rows
        return cls(teacher=request.teacher, support_ids=request.support_ids, **arrays)

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The per-token arrays that are there, by the names of their fields."""
        return {name: rows for name in SIGNAL_ARRAYS if (rows := getattr(self, name)) is not None}

    def spread(self, mask: NDArray[np.bool_]) -> "TeacherSignal":
        """The same about all tokens [T] of a response of which this one is about those where `mask` is True."""
        arrays: dict[str, Any] = {
            name: spread(rows, mask, SIGNAL_ARRAYS[name].filler) for name, rows in self.arrays.items()
        }
        return replace(self, **arrays)


SIGNAL_ARRAYS = declared(TeacherSignal)

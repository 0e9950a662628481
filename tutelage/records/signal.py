"""The records of a teacher's scores.

Shape suffixes: P teacher prompt tokens, L tokens that follow them, T of these that are scored, K support ids a
position, d hidden size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SignalNeeds:
    """What an objective must be told about each token besides the sampled token's log-prob, which always comes.

    Teachers' backends, the requests to them and the composition of a run are checked against it.
    """

    teacher: bool = True  # something is compared with another model's probabilities
    candidates: int = 0  # of the student's most likely ids, which the rollout engine returns and the teacher scores
    teacher_top_k: int = 0  # of the teacher's own most likely ids
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
    """

    teacher: str
    prompt_ids: NDArray[np.int32]  # [P]
    response_ids: NDArray[np.int32]  # [L]
    scored_mask: NDArray[np.bool_] | None = None  # [L], True for T of them; None: all, T = L
    support_ids: NDArray[np.int32] | None = None  # [T, K], ids whose log-probs are wanted
    top_k: int = 0  # the teacher's own most likely ids
    entropy: bool = False  # of the teacher's whole distribution
    hidden_states: bool = False  # for full-vocabulary divergences

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
        places = self.scored_positions
        return np.concatenate([self.prompt_ids, self.response_ids[: places[-1] + 1 if len(places) else 0]])


@dataclass(frozen=True)
class TeacherSignal:
    """What a teacher says about T tokens. Log-probs and entropies in nats, float32, temperature 1."""

    teacher: str
    logprobs: NDArray[np.float32]  # [T], of the scored tokens
    entropy: NDArray[np.float32] | None = None  # [T], exact
    support_ids: NDArray[np.int32] | None = None  # [T, K], as asked for
    support_logprobs: NDArray[np.float32] | None = None  # [T, K]
    top_ids: NDArray[np.int32] | None = None  # [T, top_k], most likely first
    top_logprobs: NDArray[np.float32] | None = None  # [T, top_k]
    hidden_states: NDArray[np.float32] | None = None  # [T, d], input of the teacher's LM head; float16-free
    reference_logprobs: NDArray[np.float32] | None = None  # [T], of the scored tokens, by a reference model
    privileged: bool = False  # the teacher saw more of the prompt than the student
    # Of a teacher with another tokenizer, once its scores are about the student's tokens (`scoring.views`):
    known: NDArray[np.bool_] | None = None  # [T], False where nothing can be said; None: all are known
    spans: NDArray[np.int64] | None = None  # [T], tokens of one number were scored together: `logprobs` sum to it
    merged: NDArray[np.bool_] | None = None  # [T], spans that are not one token on each side

    @classmethod
    def empty(cls, request: ScoringRequest) -> "TeacherSignal":
        """What is said of a request without scored tokens that asks for neither entropy nor hidden states."""
        none = np.empty((0, request.top_k), np.float32)
        support = request.support_ids
        return cls(
            teacher=request.teacher,
            logprobs=np.empty(0, np.float32),
            support_ids=support,
            support_logprobs=None if support is None else np.empty(support.shape, np.float32),
            top_ids=none.astype(np.int32) if request.top_k else None,
            top_logprobs=none if request.top_k else None,
        )

    @property
    def support_mass(self) -> NDArray[np.float32] | None:
        """[T], the teacher's probability of the support; what it leaves to one is the tail mass."""
        return None if self.support_logprobs is None else np.exp(self.support_logprobs).sum(axis=-1)

    @property
    def top_mass(self) -> NDArray[np.float32] | None:
        """[T], the teacher's probability of its own most likely ids."""
        return None if self.top_logprobs is None else np.exp(self.top_logprobs).sum(axis=-1)

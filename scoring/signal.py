"""The records of a teacher's marks.

Shape suffixes: P teacher prompt tokens, T response tokens, K support ids a position, d hidden size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ScoringRequest:
    """Ask one teacher about one response.

    `prompt_ids` is the *teacher's* rendering of the prompt (its privileged context included); the response ids
    are the student's own, so position t of every answer is about `response_ids[t]` given what precedes it.
    """

    teacher: str
    prompt_ids: NDArray[np.int32]  # [P]
    response_ids: NDArray[np.int32]  # [T]
    support_ids: NDArray[np.int32] | None = None  # [T, K], ids whose log-probs are wanted
    top_k: int = 0  # the teacher's own most likely ids
    hidden_states: bool = False  # for full-vocabulary divergences


@dataclass(frozen=True)
class TeacherSignal:
    """What a teacher says about the T response tokens. Log-probs and entropies in nats, float32, temperature 1."""

    teacher: str
    logprobs: NDArray[np.float32]  # [T], of the sampled tokens
    entropy: NDArray[np.float32]  # [T], exact
    support_ids: NDArray[np.int32] | None = None  # [T, K], as asked for
    support_logprobs: NDArray[np.float32] | None = None  # [T, K]
    top_ids: NDArray[np.int32] | None = None  # [T, top_k], most likely first
    top_logprobs: NDArray[np.float32] | None = None  # [T, top_k]
    hidden_states: NDArray[np.float32] | None = None  # [T, d], input of the teacher's LM head; float16-free
    reference_logprobs: NDArray[np.float32] | None = None  # [T], of the sampled tokens, by a reference model

    @property
    def support_mass(self) -> NDArray[np.float32] | None:
        """[T], the teacher's probability of the support."""
        if self.support_logprobs is None:
            return None
        return np.exp(self.support_logprobs).sum(axis=-1)

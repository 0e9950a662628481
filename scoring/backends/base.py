"""The interface of a teacher's backend."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tutelage.lm.head import LMHead
from tutelage.records.signal import ScoringRequest, TeacherSignal


class Backend(Protocol):
    async def start(self) -> int:
        """Make ready, or refuse; returns the vocabulary size.

        Raises:
            ValueError: the teacher cannot do what the config says; naming the key, the value and the fix.
        """

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        """Exactly what is asked for.

        Raises:
            ValueError: the request cannot be scored.
        """

    async def reference_logprobs_for_check(
        self, requests: Sequence[ScoringRequest]
    ) -> list[NDArray[np.float32]] | None:
        """What `score` should say of the scored tokens, by other means; None: there are no other means."""

    async def lm_head(self) -> LMHead | None:
        """With a signal's hidden states the whole distribution; None where there are none."""

    async def close(self) -> None: ...

"""A scoring worker: the Ray shell around one teacher's backend.

    produces   teacher signals, one for each request
    waits for  requests
    unblocks   whoever awaits `score`

Back-pressure is the caller's: it bounds how many requests it has outstanding.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scoring.backend import make_backend
from scoring.config import ScoringConfig, TeacherConfig
from scoring.lm_head import LMHead
from scoring.signal import ScoringRequest, TeacherSignal


class ScoringWorker:
    """An actor that marks responses; call `score` once a request, many at a time."""

    def __init__(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> None:
        """Load the teacher, from the checkpoint directory `path` if it has one."""
        self._settings = scoring
        self._backend = make_backend(path, teacher, scoring)

    async def load(self, path: str, teacher: TeacherConfig) -> None:
        """Go on with another teacher; nothing may be under way."""
        await self._backend.close()
        del self._backend  # two teachers might not fit
        self._backend = make_backend(path, teacher, self._settings)

    async def ready(self) -> int:
        """The vocabulary size, once the teacher can be asked."""
        return await self._backend.start()

    async def lm_head(self) -> LMHead | None:
        return await self._backend.lm_head()

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        """Mark one response.

        Raises:
            ValueError: the request cannot be scored; those that wait beside it are not affected.
        """
        return await self._backend.score(request)

    async def plain_logprobs(self, requests: Sequence[ScoringRequest]) -> list[NDArray[np.float32]] | None:
        """What `score` should say of the marked tokens; None where there are no other means to tell."""
        return await self._backend.plain_logprobs(requests)

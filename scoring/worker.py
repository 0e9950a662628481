"""A scoring worker: the Ray shell around one teacher's backend.

    produces   teacher signals, one for each request
    waits for  requests
    unblocks   whoever awaits `score`

Back-pressure is the caller's: it bounds how many requests it has outstanding.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.backends.base import CacheStats, ServerStats
from scoring.backends.factory import make_backend
from scoring.backends.follower import Follower
from scoring.backends.quantization import QuantizationBias, measure_bias
from scoring.config import Quantization, ScoringConfig, TeacherConfig, TeacherWeights
from tutelage.lm.head import LMHead
from tutelage.records.signal import ScoringRequest, TeacherSignal
from tutelage.weights import BufferInfo, EngineInfo


class ScoringWorker:
    """An actor that scores responses; call `score` once a request, many at a time."""

    def __init__(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> None:
        """Load the teacher, from the checkpoint directory `path` if it has one."""
        self._settings = scoring
        self._set_up(path, teacher)

    def _set_up(self, path: str, teacher: TeacherConfig) -> None:
        self._path, self._teacher = path, teacher
        self._backend = make_backend(path, teacher, self._settings)
        self._follower = None if teacher.weights is TeacherWeights.fixed else self._backend.follower(teacher)

    async def load(self, path: str, teacher: TeacherConfig) -> None:
        """Go on with another teacher; nothing may be under way."""
        await self._backend.close()
        del self._backend, self._follower  # two teachers might not fit
        self._set_up(path, teacher)

    async def start(self) -> int:
        """The vocabulary size, once the teacher can be asked."""
        return await self._backend.start()

    async def lm_head(self) -> LMHead | None:
        return await self._backend.lm_head()

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        """Score one response.

        Raises:
            ValueError: the request cannot be scored; those that wait beside it are not affected.
        """
        return await self._backend.score(request)

    async def score_apart(self, request: ScoringRequest) -> tuple[TeacherSignal, NDArray[np.float32] | None]:
        """Score one response, as `score`; its hidden states [T, d] are apart from what else is said."""
        signal = await self.score(request)
        return replace(signal, hidden_states=None), signal.hidden_states

    async def reference_logprobs_for_check(
        self, requests: Sequence[ScoringRequest]
    ) -> list[NDArray[np.float32]] | None:
        return await self._backend.reference_logprobs_for_check(requests)

    async def cache_stats(self) -> CacheStats | None:
        return self._backend.cache_stats()

    async def server_stats(self) -> ServerStats | None:
        return self._backend.server_stats()

    async def quantization_bias(self, requests: Sequence[ScoringRequest]) -> QuantizationBias | None:
        """How far a quantised teacher is from its full weights on these; None: it is not quantised.

        Each of the two is loaded once more, one after the other; nothing else may be under way.
        """
        kind = self._teacher.quantization
        if kind is Quantization.none:
            return None
        asked = [replace(request, hidden_states=True) for request in requests]
        head, quantised = await self.lm_head(), [await self.score(request) for request in asked]
        assert head is not None  # only a model of the worker's own is quantised
        await self._backend.close()
        del self._backend  # both might not fit
        try:
            full = await self._score_by_full_weights(asked)
        finally:
            self._backend = make_backend(self._path, self._teacher, self._settings)
            await self.start()
        return measure_bias(kind.value, full, quantised, head)

    async def _score_by_full_weights(self, requests: Sequence[ScoringRequest]) -> list[TeacherSignal]:
        teacher = replace(self._teacher, quantization=Quantization.none)
        settings = replace(self._settings, cache_dir=None)
        backend = make_backend(self._path, teacher, settings)
        await backend.start()
        try:
            return [await backend.score(request) for request in requests]
        finally:
            await backend.close()

    async def ping(self) -> None:
        """Answer."""

    # A teacher whose weights follow the student's: the same face as a rollout worker's towards the learner

    async def ready(self) -> EngineInfo:
        return EngineInfo(self._settings.dtype.value, 1, self._followed.version)

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._followed.receive_in(BufferInfo(**init_info))

    async def start_weight_update(self, version: int) -> None:
        await self._followed.start_update(version)

    async def update_weights(self, update_info: dict[str, Any], data: NDArray[np.uint8] | None = None) -> None:
        await self._followed.update(update_info, data)

    async def finish_weight_update(self, version: int) -> None:
        await self._followed.finish_update()

    async def save_weights(self, path: str) -> None:
        self._followed.save(Path(path))

    async def restore_weights(self, path: str) -> None:
        await self._followed.restore(Path(path))

    @property
    def _followed(self) -> Follower:
        if self._follower is None:
            raise RuntimeError("this teacher's weights are fixed; teacher.weights decides")
        return self._follower

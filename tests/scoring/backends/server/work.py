"""A server teacher with a made-up endpoint: work done with both, and what its scores should be."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scoring.backends.base import ServerStats
from scoring.backends.server.backend import ServerTeacher
from scoring.config import ScoringConfig, ServerConfig, TeacherConfig
from tests.models import make_tokenizer
from tests.scoring.backends.server.endpoints import MODEL, FakeEndpoint, Fault, true_logprobs
from tutelage.records.signal import ScoringRequest, TeacherSignal

SECRET = "sk-zebra"
TOKENIZER = make_tokenizer()
Work = Callable[[FakeEndpoint, ServerTeacher], Awaitable[Any]]


def settings(url: str = "", model: str = MODEL, **server: Any) -> TeacherConfig:
    attempts = {"attempts": 3, "request_timeout": 0.4, "max_answer_mib": 1} | server
    return TeacherConfig(model=model, backend="server", server=ServerConfig(url=url, **attempts))


def run(work: Work, path: Path, served: FakeEndpoint | None = None, start: bool = True, **server: Any) -> Any:
    """Do some work with a backend of an endpoint; both are closed at the end."""

    async def whole() -> Any:
        async with served or FakeEndpoint(TOKENIZER) as endpoint:
            backend = ServerTeacher(str(path), settings(**{"url": endpoint.url} | server), ScoringConfig())
            if start:
                await backend.start()
            else:
                await backend._endpoint.open()
                backend._vocabulary = len(TOKENIZER)
            try:
                return await work(endpoint, backend)
            finally:
                await backend.close()

    return asyncio.run(whole())


def score_under(faults: Sequence[Fault], request: ScoringRequest, path: Path, **server: Any) -> tuple[Any, ServerStats]:
    """The signal, or what was raised instead, and what that took."""

    async def work(endpoint: FakeEndpoint, backend: ServerTeacher) -> tuple[Any, ServerStats]:
        endpoint.faults.extend(faults)
        (result,) = await asyncio.gather(backend.score(request), return_exceptions=True)
        return result, backend.server_stats()

    return run(work, path, start=False, **server)


def assert_right(signal: TeacherSignal, request: ScoringRequest) -> None:
    ids = np.concatenate([request.prompt_ids, request.response_ids])
    rows = true_logprobs(ids.tolist(), 576)[len(request.prompt_ids) - 1 + request.scored_positions]
    np.testing.assert_allclose(signal.logprobs, rows[np.arange(len(rows)), request.scored_ids], rtol=1e-6)
    assert signal.logprobs.dtype == np.float32 and signal.entropy is None and signal.hidden_states is None
    if request.top_k:
        order = np.argsort(-rows, axis=-1)[:, : request.top_k]
        np.testing.assert_array_equal(signal.top_ids, order)
        np.testing.assert_allclose(signal.top_logprobs, np.take_along_axis(rows, order, -1), rtol=1e-6)
    else:
        assert signal.top_ids is None and signal.top_logprobs is None


def masked(request: ScoringRequest, *places: int) -> ScoringRequest:
    return replace(request, scored_mask=np.isin(np.arange(len(request.response_ids)), places))

"""Scores that are kept: computed once, then read.

request ─► kept and rich enough? ─┬─ yes ─► read                                        a hit
                                  └─ no ──► score, with all that is kept already ─► keep   a miss
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scoring.backends.base import Backend, CacheStats, ServerStats
from scoring.backends.store import CacheEntry, Coverage, SignalStore, Unreadable
from scoring.config import TeacherConfig
from tutelage.lm.head import LMHead
from tutelage.records.signal import ScoringRequest, TeacherSignal

log = logging.getLogger("tutelage")
_SHOWN_CHARACTERS = 80  # of a prompt that nothing is kept of


class CachedBackend(Backend):
    """A backend whose scores are kept, and computed only where they are not."""

    def __init__(self, computing: Backend, store: SignalStore, teacher: TeacherConfig) -> None:
        self.stats = CacheStats()
        self.computing, self._store, self._teacher = computing, store, teacher

    async def start(self) -> int:
        vocabulary = await self.computing.start()
        about = {"model": self._teacher.model, "backend": self._teacher.backend, "vocabulary_size": vocabulary}
        await self._keep(lambda: self._store.keep_about(about))
        return vocabulary

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        kept, seen = await asyncio.to_thread(look_up, self._store, request)
        self.stats += seen
        if kept is not None and kept.signal is not None:
            return kept.signal
        self.stats += CacheStats(misses=1)
        richer = replace(request, **asdict(Coverage.of(request) | kept.extent)) if kept else request
        signal = await self.computing.score(richer)
        if signal.hidden_states is not None and not self._store.has_head:
            head = await self.computing.lm_head()
            assert head is not None  # who gives states has one
            await self._keep(lambda: self._store.keep_head(head))
        await self._keep(lambda: self._store.keep(richer, signal))
        return TeacherSignal.answering(request, lambda name: signal.arrays[name])

    async def reference_logprobs_for_check(
        self, requests: Sequence[ScoringRequest]
    ) -> list[NDArray[np.float32]] | None:
        return await self.computing.reference_logprobs_for_check(requests)

    async def lm_head(self) -> LMHead | None:
        return await self.computing.lm_head()

    async def close(self) -> None:
        await self.computing.close()

    def cache_stats(self) -> CacheStats:
        return self.stats

    def server_stats(self) -> ServerStats | None:
        return self.computing.server_stats()

    async def _keep(self, write: Callable[[], None]) -> None:
        """A full disk must not end a run."""
        try:
            await asyncio.to_thread(write)
        except OSError as error:
            self.stats += CacheStats(unwritten=1)
            log.warning("scoring.cache_dir: scores could not be kept: %s", error)


class CacheOnlyBackend(Backend):
    """The backend `cache`: what is kept, and nothing else.

    Args:
        stores: of the teachers that may have filled the cache, the likeliest first.
        path: the checkpoint directory, for the words of a prompt that is missing; a server's teacher has none.
    """

    def __init__(self, stores: Sequence[SignalStore], path: str, teacher: TeacherConfig) -> None:
        self.stats = CacheStats()
        self._stores, self._path, self._teacher = stores, path, teacher

    async def start(self) -> int:
        for store in self._stores:
            if (about := store.about()) is not None:
                return int(about["vocabulary_size"])
        folder = self._stores[0].folder.parent
        raise ValueError(
            f"teacher.backend=cache: scoring.cache_dir={folder} has no scores of teacher.model={self._teacher.model} "
            f"in this dtype and quantisation; {_FILL}"
        )

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        for store in self._stores:
            kept, seen = await asyncio.to_thread(look_up, store, request)
            self.stats += seen
            if kept is not None and kept.signal is not None:
                return kept.signal
        self.stats += CacheStats(misses=1)
        raise ValueError(
            f"teacher.backend=cache: no scores are kept of a response of {len(request.response_ids)} tokens by teacher "
            f"{request.teacher!r} ({self._teacher.model}) to the prompt that ends with {self._words(request)}, with "
            f"{Coverage.of(request)}; {_FILL}"
        )

    async def lm_head(self) -> LMHead | None:
        store = next((store for store in self._stores if store.has_head), None)
        return None if store is None else await asyncio.to_thread(store.head)

    def cache_stats(self) -> CacheStats:
        return self.stats

    def _words(self, request: ScoringRequest) -> str:
        if not Path(self._path).is_dir():
            return f"ids {request.prompt_ids[-16:].tolist()}"
        from transformers import AutoTokenizer  # needed for this message alone

        tokenizer = AutoTokenizer.from_pretrained(self._path, trust_remote_code=self._teacher.trust_remote_code)
        return repr(tokenizer.decode(request.prompt_ids)[-_SHOWN_CHARACTERS:])


_FILL = (
    "run python -m orchestration.precompute with the same configuration and teacher.backend set to who computes them "
    "(transformers, vllm or server)"
)


def look_up(store: SignalStore, request: ScoringRequest) -> tuple[CacheEntry | None, CacheStats]:
    """What is kept about the response, and what of it is to be counted."""
    try:
        kept = store.find(request)
    except (Unreadable, OSError) as error:
        log.warning("scoring.cache_dir: a file is ignored: %s", error)
        return None, CacheStats(unreadable=1)
    return kept, CacheStats(hits=int(kept is not None and kept.signal is not None))


def in_words(stats: CacheStats) -> str:
    """How much of what was asked for was there."""
    asked = stats.hits + stats.misses
    faults = f", {stats.unreadable} files could not be read" if stats.unreadable else ""
    faults += f", {stats.unwritten} could not be written" if stats.unwritten else ""
    return f"kept scores: {stats.hits} of {asked} requests were there already, {stats.misses} were not{faults}"

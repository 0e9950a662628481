"""Stored scores: bit for bit what was computed, computed once, and never from a file that cannot be trusted."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.backends.base import CacheStats
from scoring.backends.cached import CachedBackend, CacheOnlyBackend
from scoring.backends.factory import make_backend
from scoring.backends.store import Coverage, SignalStore
from scoring.config import ScoringConfig, TeacherConfig
from scoring.worker import ScoringWorker
from tests.scoring.backends.coverage import EXTENTS, asked, assert_same, damage_bytes, invented
from tests.scoring.reference import random_request
from tutelage.records.signal import ScoringRequest, TeacherSignal
from tutelage.settings import DType

REQUESTS = [
    random_request(5, 6, seed=1),
    random_request(30, 20, seed=2, support=3, top_k=4),
    random_request(4, 9, seed=3, top_k=2, hidden_states=True, entropy=False),
    random_request(7, 0, seed=4),
]


class Inventing:
    """A backend that counts, and answers a given response with one answer whatever more is asked."""

    def __init__(self) -> None:
        self.asked: list[Coverage] = []

    async def start(self) -> int:
        return 99

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        self.asked.append(Coverage.of(request))
        whole = invented(replace(request, top_k=9, entropy=True, hidden_states=True))
        assert whole.top_ids is not None and whole.top_logprobs is not None
        return replace(
            whole,
            entropy=whole.entropy if request.entropy else None,
            top_ids=whole.top_ids[:, : request.top_k] if request.top_k else None,
            top_logprobs=whole.top_logprobs[:, : request.top_k] if request.top_k else None,
            hidden_states=whole.hidden_states if request.hidden_states else None,
        )

    async def reference_logprobs_for_check(self, requests: Sequence[ScoringRequest]) -> None:
        return None

    async def lm_head(self) -> None:
        return None

    async def close(self) -> None:
        return None


def score_all(backend: CachedBackend | CacheOnlyBackend, requests: Sequence[ScoringRequest]) -> list[TeacherSignal]:
    async def in_turn() -> list[TeacherSignal]:
        return [await backend.score(request) for request in requests]

    return asyncio.run(in_turn())


def open_cache(path: Path, folder: Path, backend: str = "transformers") -> CachedBackend:
    settings = ScoringConfig(dtype=DType.float32, cache_dir=str(folder))
    found = make_backend(str(path), TeacherConfig(model=str(path), backend=backend), settings)
    asyncio.run(found.start())
    assert isinstance(found, CachedBackend | CacheOnlyBackend)
    return found  # type: ignore[return-value]


def test_the_second_time_marks_are_read(tiny_untied: Path, tmp_path: Path) -> None:
    """By another worker, from nothing but the disk, and by one that has no model."""
    first, second = open_cache(tiny_untied, tmp_path), open_cache(tiny_untied, tmp_path)
    computed, read = score_all(first, REQUESTS), score_all(second, REQUESTS)
    without_model = open_cache(tiny_untied, tmp_path, "cache")
    kept = score_all(without_model, REQUESTS)
    for ours, again, theirs in zip(computed, read, kept, strict=True):
        assert_same(again, ours)
        assert_same(theirs, ours)
    assert first.stats == CacheStats(misses=4)
    assert second.stats == without_model.stats == CacheStats(hits=4)
    assert asyncio.run(without_model.start()) == 576
    head, same = asyncio.run(first.lm_head()), asyncio.run(without_model.lm_head())
    assert head is not None and same is not None
    np.testing.assert_array_equal(same.weight, head.weight)


@given(st.lists(EXTENTS, min_size=1, max_size=5))
def test_each_miss_computes_all_that_was_ever_asked(
    tmp_path_factory: pytest.TempPathFactory, extents: list[Coverage]
) -> None:
    """So what is kept only grows; and every answer is what was asked for."""
    extents = [replace(extent, hidden_states=False) for extent in extents]  # this backend has no head to keep
    inner = Inventing()
    cached = CachedBackend(inner, SignalStore(str(tmp_path_factory.mktemp("scores")), "t"), TeacherConfig())
    signals = score_all(cached, [asked(extent) for extent in extents])
    known = Coverage(0, False, False)
    expected: list[Coverage] = []
    for place, (extent, signal) in enumerate(zip(extents, signals, strict=True)):
        if place == 0 or not known.covers(extent):
            known = known | extent
            expected.append(known)
        assert_same(signal, invented_bare(asked(extent)))
    assert inner.asked == expected
    assert cached.stats == CacheStats(hits=len(extents) - len(expected), misses=len(expected))


def test_a_damaged_file_is_computed_anew_and_counted(
    tiny_untied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cached = open_cache(tiny_untied, tmp_path)
    (before,) = score_all(cached, REQUESTS[:1])
    path = cached._store.path(REQUESTS[0])
    damage_bytes(path)
    with caplog.at_level(logging.WARNING, "tutelage"):
        again, read = score_all(cached, [REQUESTS[0], REQUESTS[0]])
    assert_same(again, before)
    assert_same(read, before)
    assert cached.stats == CacheStats(hits=1, misses=2, unreadable=1)
    assert str(path) in caplog.text and "is ignored" in caplog.text


def test_a_disk_that_cannot_be_written_to_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cached = CachedBackend(Inventing(), SignalStore(str(tmp_path / "file"), "t"), TeacherConfig())
    assert asyncio.run(cached.start()) == 99
    (signal,) = score_all(cached, REQUESTS[:1])
    assert len(signal.logprobs) == 6
    assert cached.stats.unwritten == 2 and cached.stats.misses == 1
    assert "could not be kept" in caplog.text


def test_many_workers_share_a_directory(tmp_path: Path) -> None:
    """Several at once, on the same requests."""
    caches = [CachedBackend(Inventing(), SignalStore(str(tmp_path), "t"), TeacherConfig()) for _ in range(4)]
    requests = [random_request(5, 6, seed=i % 3) for i in range(24)]

    async def at_once() -> list[TeacherSignal]:
        return list(await asyncio.gather(*(c.score(r) for r in requests for c in caches)))

    signals = asyncio.run(at_once())
    for signal, request in zip(signals, [r for r in requests for _ in caches], strict=True):
        assert_same(signal, invented_bare(request))
    total = sum((c.stats for c in caches), CacheStats())
    assert total.hits + total.misses == 96 and total.unreadable == total.unwritten == 0


def invented_bare(request: ScoringRequest) -> TeacherSignal:
    return asyncio.run(Inventing().score(request))


def test_what_is_missing_is_named_with_the_way_to_fill_it(tiny_untied: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no scores of teacher.model=.*orchestration\.precompute"):
        open_cache(tiny_untied, tmp_path, "cache")
    score_all(open_cache(tiny_untied, tmp_path), REQUESTS[:1])
    kept = open_cache(tiny_untied, tmp_path, "cache")
    with pytest.raises(ValueError, match=r"response of 20 tokens by teacher 'teacher' .*orchestration\.precompute"):
        score_all(kept, [REQUESTS[1]])
    assert kept.stats == CacheStats(misses=1)
    assert asyncio.run(kept.reference_logprobs_for_check(REQUESTS)) is None


def test_a_worker_says_how_often_marks_were_there(tiny_untied: Path, tmp_path: Path) -> None:
    async def stats(cache_dir: str | None) -> CacheStats | None:
        settings = ScoringConfig(dtype=DType.float32, cache_dir=cache_dir)
        worker = ScoringWorker(str(tiny_untied), TeacherConfig(), settings)
        await worker.start()
        for request in (REQUESTS[0], REQUESTS[0]):
            await worker.score(request)
        return await worker.cache_stats()

    assert asyncio.run(stats(str(tmp_path))) == CacheStats(hits=1, misses=1)
    assert asyncio.run(stats(None)) is None

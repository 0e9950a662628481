"""A backend that somebody adds takes part in everything by itself."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scoring.backends.base import Backend, BackendKind, BackendUse
from scoring.backends.factory import BACKENDS, identity, kind_of, make_backend
from scoring.capabilities import Capabilities
from scoring.config import ScoringConfig, TeacherConfig, TeacherWeights
from scoring.rules import backend_refusals
from scoring.worker import ScoringWorker
from tutelage.records.signal import ScoringRequest, SignalNeeds, TeacherSignal
from tutelage.settings import Refusal

REQUEST = ScoringRequest("teacher", np.ones(3, np.int32), np.ones(2, np.int32))


class Uniform(Backend):
    """Finds every token of a vocabulary equally likely."""

    async def start(self) -> int:
        return 8

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        return TeacherSignal(request.teacher, np.full(request.num_scored, -np.log(8), np.float32))


class UniformKind(BackendKind):
    def make(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
        return Uniform()

    def capabilities(self, teacher: TeacherConfig, gpus: float) -> Capabilities:
        return Capabilities(given_ids=False, max_top_k=0, entropy=False, hidden_states=False)

    def is_remote(self, teacher: TeacherConfig) -> bool:
        return True

    def identity(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> tuple[str, ...]:
        return (teacher.model,)

    def unfit_settings(self, key: str, teacher: TeacherConfig, use: BackendUse) -> Iterator[Refusal]:
        yield from super().unfit_settings(key, teacher, use)
        if teacher.model != "eight":
            yield Refusal(f"{key}.model", teacher.model, "has another vocabulary; set eight")


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> TeacherConfig:
    monkeypatch.setitem(BACKENDS._items, "uniform", UniformKind())
    return TeacherConfig(model="eight", backend="uniform")


def test_it_says_itself_what_it_cannot(teacher: TeacherConfig) -> None:
    def refused(settings: TeacherConfig, candidates: int = 0) -> list[str]:
        use = BackendUse(SignalNeeds(candidates=candidates), ScoringConfig())
        return [str(refusal) for refusal in backend_refusals("teacher", settings, use)]

    assert refused(teacher) == []
    weights, model, ids = refused(replace(teacher, model="nine", weights=TeacherWeights.ema), candidates=4)
    assert weights.startswith("teacher.weights=ema: teacher.backend=uniform takes no new weights")
    assert model.startswith("teacher.model=nine: has another vocabulary") and "4 given ids" in ids


def test_a_worker_scores_with_it(teacher: TeacherConfig) -> None:
    async def work() -> tuple[int, TeacherSignal, object]:
        worker = ScoringWorker("", teacher, ScoringConfig())
        return await worker.start(), await worker.score(REQUEST), await worker.lm_head()

    vocabulary, signal, head = asyncio.run(work())
    assert vocabulary == 8 and head is None
    np.testing.assert_allclose(signal.logprobs, -np.log(8), rtol=1e-6)
    assert not kind_of(teacher).loads_model(teacher) and not kind_of(teacher).holds_checkpoint(teacher)


def test_its_scores_are_kept_and_read(teacher: TeacherConfig, tmp_path: Path) -> None:
    scoring = ScoringConfig(cache_dir=str(tmp_path))
    cache = replace(teacher, backend="cache", server=replace(teacher.server, url="http://any/v1"))

    async def work() -> TeacherSignal:
        await (backend := make_backend("", teacher, scoring)).start()
        await backend.score(REQUEST)
        return await make_backend("", cache, scoring).score(REQUEST)

    np.testing.assert_allclose(asyncio.run(work()).logprobs, -np.log(8), rtol=1e-6)
    assert identity("", teacher, scoring) == identity("", cache, scoring, "uniform")


def test_weights_that_cannot_follow_are_refused_by_the_worker_too(teacher: TeacherConfig) -> None:
    with pytest.raises(ValueError, match=r"teacher\.weights=ema: this backend takes no new weights"):
        ScoringWorker("", replace(teacher, weights=TeacherWeights.ema), ScoringConfig())

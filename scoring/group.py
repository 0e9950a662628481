"""The replicas of one teacher: who is asked, and what happens when one of them dies.

    request ─► the replica with the fewest tokens waiting ─► signal
                 └─ dies or misses its deadline ─► another one, or the one that replaces it

A request that a replica refuses (ValueError) is the caller's fault and is not asked again.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.backends.base import CacheStats, ServerStats
from scoring.backends.quantization import QuantizationBias
from scoring.config import ScoringConfig, TeacherConfig, TeacherWeights
from scoring.worker import ScoringWorker
from tutelage.cluster import Cluster, ReuseKey, values_of
from tutelage.crew import Crew
from tutelage.errors import WorkerLost
from tutelage.lm.head import LMHead
from tutelage.records.per_token import StoredRows
from tutelage.records.signal import ScoringRequest, TeacherSignal
from tutelage.settings import RecoveryConfig, TimeoutConfig
from tutelage.worker import Worker, call_all


@dataclass(frozen=True)
class Scorer:
    """One checkpoint under one set of settings: what a group of scoring workers is started for."""

    name: str  # of the group, for people
    path: str
    teacher: TeacherConfig
    occasional: bool = False  # at work only while others wait, so one replica without a CPU of its own is enough


@dataclass
class RequestCounts:
    """What a group was asked, and what it cost to get the answers; counts since it was started."""

    requests: int = 0
    tokens: int = 0  # of prompts and responses
    retries: int = 0  # requests that were asked again because a replica was lost


class ScoringGroup(Crew):
    """The workers of one scorer; whatever they are asked survives the death of a replica."""

    def __init__(
        self,
        scorer: Scorer,
        settings: ScoringConfig,
        timeouts: TimeoutConfig,
        cluster: Cluster,
        recovery: RecoveryConfig,
    ) -> None:
        self._replicas = 1 if scorer.occasional else settings.workers
        needs = replace(settings.needs, cpus=0) if scorer.occasional else settings.needs
        most = 0 if scorer.occasional else settings.max_workers or 0
        super().__init__(scorer.name, self._start_workers, cluster, recovery, needs, most=most)
        self.counts = RequestCounts()
        self._scorer, self._settings, self._timeouts = scorer, settings, timeouts
        self._outstanding: Counter[str] = Counter()  # tokens, by the name of a worker

    @classmethod
    async def start(
        cls,
        scorer: Scorer,
        settings: ScoringConfig,
        timeouts: TimeoutConfig,
        cluster: Cluster,
        recovery: RecoveryConfig,
    ) -> "ScoringGroup":
        """Start the replicas, or take those that an earlier run left idle."""
        group = cls(scorer, settings, timeouts, cluster, recovery)
        workers = cluster.reuse(scorer.name, scorer.name, group._reuse_key(group._replicas))
        if workers:
            await call_all(workers, "load", scorer.path, scorer.teacher, deadline=timeouts.start)
        else:
            workers = await group._start_workers(cluster.names(scorer.name, group._replicas))
        await call_all(workers, "start", deadline=timeouts.start)
        for worker in workers:
            group.enlist(worker)
        group.begin_watch()
        return group

    def _reuse_key(self, replicas: int) -> ReuseKey:
        return (replicas, self._needs.cpus, *values_of(self._settings))

    @property
    def moves(self) -> bool:
        """Whether the weights follow the student's."""
        return self._scorer.teacher.weights is not TeacherWeights.fixed

    @property
    def averages(self) -> bool:
        """Whether the weights are an average over the student's versions."""
        return self._scorer.teacher.weights is TeacherWeights.ema

    def set_idle(self) -> None:
        """Keep the replicas for a next run."""
        self.end_watch()
        self._cluster.set_idle(self.role, self._reuse_key(len(self.workers)), self.workers)

    async def load(self, path: str, teacher: TeacherConfig) -> None:
        """Go on with another teacher; nothing may be under way."""
        self._scorer = replace(self._scorer, path=path, teacher=teacher)
        await call_all(self.workers, "load", path, teacher, deadline=self._timeouts.start)
        await call_all(self.workers, "start", deadline=self._timeouts.start)

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        """Have one response scored by the replica with the fewest tokens waiting.

        Raises:
            WorkerFailure: the request was refused, or no replica is left and none may be replaced any more.
        """
        tokens = len(request.prompt_ids) + len(request.response_ids)
        self.counts.requests += 1
        self.counts.tokens += tokens
        if not request.hidden_states:
            return await self._ask("score", request, tokens=tokens)
        signal, states = await self._ask("score_apart", request, tokens=tokens, in_two=True)
        stored: Any = StoredRows.at(states, request.num_scored)  # stands for the array
        return replace(signal, hidden_states=stored)

    async def score_all(self, requests: Sequence[ScoringRequest]) -> list[TeacherSignal]:
        return list(await asyncio.gather(*(self.score(request) for request in requests)))

    async def reference_logprobs_for_check(
        self, requests: Sequence[ScoringRequest]
    ) -> list[NDArray[np.float32]] | None:
        """What `score` should say of the scored tokens, [T] each; None where there are no other means to tell."""
        return await self._ask("reference_logprobs_for_check", list(requests))

    async def quantization_bias(self, requests: Sequence[ScoringRequest]) -> QuantizationBias | None:
        """Measure how far a quantised model is from its full weights; None: it is not quantised.

        Nothing else may be under way.
        """
        return await self._ask("quantization_bias", list(requests))

    async def cache_stats(self) -> CacheStats | None:
        """How often scores were there, of all replicas together; None: none are kept."""
        stats = await self.call("cache_stats", deadline=self._timeouts.scoring)
        return None if stats[0] is None else sum(stats, CacheStats())

    async def server_stats(self) -> ServerStats | None:
        """How often an endpoint had to be asked, by all replicas together; None: there is no endpoint."""
        stats = await self.call("server_stats", deadline=self._timeouts.scoring)
        return None if stats[0] is None else sum(stats, ServerStats())

    async def lm_head(self) -> LMHead | None:
        return await self._ask("lm_head")

    async def call(self, method: str, *args: Any, deadline: float) -> list[Any]:
        """Every replica's answer."""
        return await call_all(self.workers, method, *args, deadline=deadline)

    # Replicas

    async def _ask(self, method: str, *args: Any, tokens: int = 0, in_two: bool = False) -> Any:
        while True:
            worker = min(await self.present(), key=lambda worker: self._outstanding[worker.name])
            self._outstanding[worker.name] += tokens
            try:
                call = worker.call_in_two if in_two else worker.call
                return await call(method, *args, deadline=self._timeouts.scoring)
            except WorkerLost as error:
                self.lose(worker, error)
                self.counts.retries += 1
            finally:
                self._outstanding[worker.name] -= tokens

    @property
    def irreplaceable(self) -> str | None:
        return "its weights follow the student's and are gone with it" if self.moves else None

    async def join(self, worker: Worker) -> None:
        await worker.call("start", deadline=self._timeouts.start)
        self.enlist(worker)

    async def _start_workers(self, names: Sequence[str]) -> list[Worker]:
        return await self._cluster.start(
            ScoringWorker,
            self._scorer.path,
            self._scorer.teacher,
            self._settings,
            names=names,
            resources=self._needs,
            deadline=self._timeouts.start,
            patience=self._recovery.wait_for_node,
        )

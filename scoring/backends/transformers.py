"""Requests that arrive during a forward share the next one, in order, up to the token budget.

One thread runs the forwards, so that whoever owns the queue always answers.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from scoring.backends.base import Backend
from scoring.backends.follower import Follower
from scoring.backends.model import TeacherModel, first_group, forward_tokens
from scoring.config import ScoringConfig, TeacherConfig
from tutelage.lm.head import LMHead
from tutelage.records.signal import ScoringRequest, TeacherSignal

T = TypeVar("T")


class _Ticket:
    """One request's place in the queue; `forward` is set once it has a seat in one."""

    def __init__(self, request: ScoringRequest) -> None:
        self.request = request
        self.forward: asyncio.Future[list[TeacherSignal]] | None = None
        self.seat = 0


class BatchingTeacher(Backend):
    """`TeacherModel` for many callers at once: the backend `transformers`."""

    def __init__(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> None:
        torch.set_num_threads(scoring.threads)
        self.model = TeacherModel(path, teacher, scoring)
        self._max_tokens = scoring.max_tokens_per_forward
        self._queue: deque[_Ticket] = deque()
        self._thread = ThreadPoolExecutor(1, "forward", torch.set_num_threads, (scoring.threads,))
        self._forward_slot = asyncio.Lock()

    async def start(self) -> int:
        return self.model.vocabulary_size

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        """Score one response; those that wait beside one that cannot be scored are not affected."""
        self.model.check(request)
        ticket = _Ticket(request)
        self._queue.append(ticket)
        async with self._forward_slot:
            while ticket.forward is None:  # more than once only if callers before this one gave up
                await asyncio.wait([self._start_forward()])
        return (await ticket.forward)[ticket.seat]

    async def reference_logprobs_for_check(self, requests: Sequence[ScoringRequest]) -> list[NDArray[np.float32]]:
        return await self.in_turn(lambda: [self.model.reference_logprobs_for_check(request) for request in requests])

    async def lm_head(self) -> LMHead:
        return await self.in_turn(self.model.lm_head)

    async def close(self) -> None:
        self._thread.shutdown()

    def follower(self, teacher: TeacherConfig) -> Follower:
        return Follower(self, teacher)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """No forward runs meanwhile; requests wait."""
        async with self._forward_slot:
            await self.in_turn(lambda: None)  # one whose caller gave up may still run
            yield

    async def in_turn(self, work: Callable[[], T]) -> T:
        """Run between two forwards: what it changes, no forward sees half of."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _start_forward(self) -> "asyncio.Future[list[TeacherSignal]]":
        count = first_group([forward_tokens(ticket.request) for ticket in self._queue], self._max_tokens)
        group = [self._queue.popleft() for _ in range(count)]
        requests = [ticket.request for ticket in group]
        forward = asyncio.get_running_loop().run_in_executor(self._thread, self.model.score, requests)
        for seat, ticket in enumerate(group):
            ticket.forward, ticket.seat = forward, seat
        return forward

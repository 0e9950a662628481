"""A scoring worker: the Ray shell around `TeacherModel`.

    produces   teacher signals, one for each request
    waits for  requests; those that arrive during a forward share the next one, in order, up to the token budget
    unblocks   whoever awaits `score`

Back-pressure is the caller's: it bounds how many requests it has outstanding.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from scoring.config import ScoringConfig, TeacherConfig
from scoring.lm_head import LMHead
from scoring.packing import first_group
from scoring.signal import ScoringRequest, TeacherSignal
from scoring.teacher import TeacherModel, forward_tokens


class _Ticket:
    """One request's place in the queue; `forward` is set once it has a seat in one."""

    def __init__(self, request: ScoringRequest) -> None:
        self.request = request
        self.forward: asyncio.Future[list[TeacherSignal]] | None = None
        self.seat = 0


class ScoringWorker:
    """An actor that marks responses; call `score` once a request, many at a time.

    One thread runs the forwards, so that the actor always answers.
    """

    def __init__(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> None:
        """Load the teacher from the checkpoint directory `path`."""
        torch.set_num_threads(scoring.threads)
        self._settings = scoring
        self._model = TeacherModel(path, teacher, scoring)
        self._max_tokens = scoring.max_tokens_per_forward
        self._queue: deque[_Ticket] = deque()
        self._thread = ThreadPoolExecutor(1, "forward", torch.set_num_threads, (scoring.threads,))
        self._forward_slot = asyncio.Lock()

    async def load(self, path: str, teacher: TeacherConfig) -> None:
        """Go on with another teacher; nothing may be under way."""
        del self._model  # two teachers might not fit
        self._model = TeacherModel(path, teacher, self._settings)

    async def ready(self) -> int:
        """The vocabulary size, once the teacher is loaded."""
        return self._model.vocabulary_size

    async def lm_head(self) -> LMHead:
        return self._model.lm_head()

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        """Mark one response.

        Raises:
            ValueError: the request cannot be scored; those that wait beside it are not affected.
        """
        self._model.check(request)
        ticket = _Ticket(request)
        self._queue.append(ticket)
        async with self._forward_slot:
            while ticket.forward is None:  # more than once only if callers before this one gave up
                await asyncio.wait([self._start_forward()])
        return (await ticket.forward)[ticket.seat]

    async def plain_logprobs(self, requests: Sequence[ScoringRequest]) -> list[NDArray[np.float32]]:
        """What `score` should say of the tokens; see `TeacherModel.plain_logprobs`."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: [self._model.plain_logprobs(request) for request in requests]
        )

    def _start_forward(self) -> "asyncio.Future[list[TeacherSignal]]":
        count = first_group([forward_tokens(ticket.request) for ticket in self._queue], self._max_tokens)
        group = [self._queue.popleft() for _ in range(count)]
        requests = [ticket.request for ticket in group]
        forward = asyncio.get_running_loop().run_in_executor(self._thread, self._model.score, requests)
        for seat, ticket in enumerate(group):
            ticket.forward, ticket.seat = forward, seat
        return forward

"""Engines that answer without a model."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np

from tutelage.records.trajectory import FinishReason, PolicySpan, RolloutRequest, Trajectory


class Engines:
    """Answer every prompt with the prompt itself, most recent request first."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.requests: list[RolloutRequest] = []

    async def roll_out(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Trajectory]:
        self.requests += requests
        for request in reversed(requests):
            await asyncio.sleep(0)
            yield Trajectory(
                slot=request.slot,
                prompt_id=request.prompt_id,
                sample_index=request.sample_index,
                prompt_ids=request.prompt_ids,
                response_ids=request.prompt_ids,
                loss_mask=np.ones(len(request.prompt_ids), np.bool_),
                sampling_logprobs=np.zeros(len(request.prompt_ids), np.float32),
                temperature=request.temperature,
                candidate_ids=None,
                spans=(PolicySpan(self.version, 0, len(request.prompt_ids)),),
                finish_reason=FinishReason.STOP,
            )

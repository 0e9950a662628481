"""The Ray face of a rollout engine: an asynchronous actor without a thought of its own.

The engine is imported inside the actor: the driver knows this class too, and needs no vLLM.

produces trajectories, streamed as they finish (`generate`)
waits for requests from the driver and weights from learner rank 0, which freeze and release it
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rollout.config import RolloutConfig
from tutelage.records.trajectory import RolloutRequest, Trajectory
from tutelage.stops import AS_THEY_ARE, TurnEnds
from tutelage.weights import EngineInfo


class RolloutWorker:
    """One engine, to be wrapped in `ray.remote`."""

    def __init__(
        self, model_path: str, config: RolloutConfig, transfer_backend: str, seed: int, ends: TurnEnds = AS_THEY_ARE
    ) -> None:
        from rollout.engine import RolloutEngine

        self._engine = RolloutEngine(model_path, config, transfer_backend, seed, ends)

    async def ping(self) -> None:
        """Answer, if the engine's own process lives."""
        await self._engine.check_health()

    async def ready(self) -> EngineInfo:
        engine = self._engine
        return EngineInfo(engine.weight_dtype, engine.tensor_parallel_size, engine.policy_version)

    async def drop_requests(self) -> bool:
        return await self._engine.drop_requests()

    async def load(self, model_path: str) -> None:
        await self._engine.load(model_path)

    async def generate(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Trajectory]:
        async for trajectory in self._engine.generate(requests):
            yield trajectory

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return await self._engine.prompt_logprobs(token_ids)

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        await self._engine.init_weight_transfer_engine(init_info)

    async def start_weight_update(self, version: int) -> None:
        await self._engine.start_weight_update(version)

    async def update_weights(self, update_info: dict[str, Any], data: NDArray[np.uint8] | None = None) -> None:
        await self._engine.update_weights(update_info, data)

    async def finish_weight_update(self, version: int) -> float | None:
        return await self._engine.finish_weight_update(version)

    async def shutdown(self) -> None:
        self._engine.shutdown()

"""Calls on engines by Ray, each with a deadline, and what failed in them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from vllm.distributed.weight_transfer.base import WeightTransferUpdatePayload

from tutelage.errors import WorkerLost
from tutelage.weights import EngineInfo


class WeightSyncError(WorkerLost):
    """An engine did not take the weights; the message says which one and why. It must not be used further."""


@dataclass(frozen=True)
class Call:
    """A call to every engine that may still be under way."""

    method: str
    answers: list[ray.ObjectRef]


class RayWeightSyncClient:
    """vLLM's `VLLMWeightSyncClient` over rollout workers, each call bounded by one deadline for the update."""

    def __init__(self, readers: Mapping[str, ActorHandle], timeout_s: float) -> None:
        """
        Args:
            readers: the workers by name.
            timeout_s: of each update, and of connecting.
        """
        self.version = 0  # of the update that the next calls belong to
        self.reload_seconds: float | None = None  # of the slowest engine in the latest update
        self._names, self._handles = list(readers), list(readers.values())
        self._timeout_s = timeout_s
        self.begin(0)
        self.engines: list[EngineInfo] = self._call("ready", [() for _ in self._handles])

    def begin(self, version: int) -> None:
        """Start the clock of the deadline; the calls that follow are about policy `version`."""
        self.version = version
        self._deadline = time.monotonic() + self._timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init_weight_transfer_engine", [(info,) for info in self._init_infos(init_info)])

    def start_weight_update(self) -> None:
        self._call_all("start_weight_update", self.version)

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        self.wait(self.begin_update_weights(update_info))

    def begin_update_weights(
        self, update_info: WeightTransferUpdatePayload, data: NDArray[np.uint8] | None = None
    ) -> Call:
        """As `update_weights`, without waiting; the engines take what they are sent in order.

        Args:
            data: [nbytes], what the record describes, where it cannot be read in shared memory: it is copied, and goes
                to each node once.
        """
        arguments = (update_info,) if data is None else (update_info, ray.put(data))
        return self._send("update_weights", [arguments for _ in self._handles])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Put the new weights to use, as the version given to `begin`: vLLM's trainer engines pass none."""
        seconds = self._call_all("finish_weight_update", self.version)
        self.reload_seconds = max((s for s in seconds if s is not None), default=None)

    def _init_infos(self, init_info: dict[str, Any]) -> list[dict[str, Any]]:
        """Make one for each engine: in a group of ranks, its workers come after those of the engines before it."""
        if "rank_offset" not in init_info:
            return [init_info for _ in self._handles]
        infos, offset = [], init_info["rank_offset"]
        for engine in self.engines:
            infos.append({**init_info, "rank_offset": offset})
            offset += engine.workers
        return infos

    def _call_all(self, method: str, *args: Any) -> list[Any]:
        return self._call(method, [args for _ in self._handles])

    def _call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self.wait(self._send(method, arguments))

    def _send(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> Call:
        pairs = zip(self._handles, arguments, strict=True)
        return Call(method, [getattr(handle, method).remote(*args) for handle, args in pairs])

    def wait(self, call: Call) -> list[Any]:
        """Wait for what the engines answer.

        Raises:
            WeightSyncError: the deadline has passed, or an engine refused or died.
        """
        return [self._answer(name, call.method, ref) for name, ref in zip(self._names, call.answers, strict=True)]

    def _answer(self, name: str, method: str, ref: ray.ObjectRef) -> Any:
        try:
            return ray.get(ref, timeout=max(0.0, self._deadline - time.monotonic()))
        except GetTimeoutError as error:
            within = f"within {self._timeout_s:g} s (timeouts.weight_sync)"
            raise WeightSyncError(f"policy version {self.version}: {name} did not answer {method} {within}") from error
        except RayTaskError as error:
            raise WeightSyncError(f"policy version {self.version}: {method} failed in {name}: {error.cause}") from error
        except RayActorError as error:
            raise WeightSyncError(f"policy version {self.version}: {name} died during {method}") from error

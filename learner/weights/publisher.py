"""New weights to every engine: one publisher, whatever the transport."""

import time
from collections.abc import Mapping, Sequence

import torch
from ray.actor import ActorHandle
from torch import nn
from vllm.distributed.weight_transfer.base import TrainerInitInfo
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from learner.config import LearnerConfig
from learner.records import PublishReport
from learner.weights.client import RayWeightSyncClient
from learner.weights.shared_memory import SharedMemoryTrainerInitInfo, SharedMemoryTrainerWeightTransferEngine
from learner.weights.source import CausalLMSource
from tutelage.cluster import free_address
from tutelage.settings import WeightTransfer
from tutelage.weights import SHARED_MEMORY, EngineInfo


class WeightPublisher:
    """Sends the weights of the learner to the rollout workers. Every rank has one and calls it in lockstep."""

    def __init__(
        self,
        model: nn.Module,
        rank: int,
        config: LearnerConfig,
        readers: Mapping[str, ActorHandle],
        timeout_s: float,
    ) -> None:
        """Connect with the engines.

        Args:
            model: the causal LM whose parameters are sent, under ZeRO stage `config.zero_stage`.
            rank: of this process; rank 0 sends.
            readers: rollout workers and whoever else follows the student, by name; they have been constructed.
            timeout_s: for connecting, and for each publication.

        Raises:
            WeightSyncError: an engine did not answer in time, or refused.
        """
        self._client = RayWeightSyncClient(readers, timeout_s)
        dtype = getattr(torch, self._client.engines[0].weight_dtype)
        bucket_bytes = config.weight_bucket_mib * 2**20
        self._source = CausalLMSource(model, config.zero_stage, dtype, bucket_bytes)
        self._engine = WeightTransferTrainerFactory.trainer_init(
            _init_info(config, rank, self._client.engines, bucket_bytes),
            client=self._client,
            source=self._source,
        )
        self._latest: PublishReport | None = None

    def publish(self, version: int, again: bool = False) -> PublishReport:
        """Bring the weights, as policy `version`, to every engine; the same version again does nothing.

        Args:
            again: send them even so.

        Raises:
            WeightSyncError: an engine missed the deadline, died, or refused what arrived (a checksum, say).
            ValueError: a newer version has been published.
        """
        if self._latest is not None and version <= self._latest.version:
            if version < self._latest.version:
                raise ValueError(f"policy version {version} comes after {self._latest.version}")
            if not again:
                return self._latest
        self._client.begin(version)
        started = time.perf_counter()
        self._engine.send_weights()
        self._latest = self._report(version, time.perf_counter() - started)
        return self._latest

    def close(self) -> None:
        self._engine.shutdown()

    def _report(self, version: int, seconds: float) -> PublishReport:
        ours = self._engine if isinstance(self._engine, SharedMemoryTrainerWeightTransferEngine) else None
        return PublishReport(
            version=version,
            seconds=seconds,
            engine_seconds=self._client.reload_seconds,
            write_seconds=ours.write_seconds if ours else None,
            nbytes=self._source.nbytes,
            checksum=ours.checksum if ours else None,
        )


def _init_info(config: LearnerConfig, rank: int, engines: Sequence[EngineInfo], bucket_bytes: int) -> TrainerInitInfo:
    if config.weight_transfer.backend == SHARED_MEMORY:
        between_nodes = config.weight_transfer is WeightTransfer.object_store
        return SharedMemoryTrainerInitInfo(rank=rank, between_nodes=between_nodes)
    if config.weight_transfer is WeightTransfer.ipc:
        return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=bucket_bytes)
    host, port = free_address()
    return NCCLTrainerInitInfo(
        master_address=host,
        master_port=port,
        world_size=1 + sum(engine.workers for engine in engines),
        packed_buffer_size_bytes=bucket_bytes,
        rank=rank,
    )

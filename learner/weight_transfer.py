"""How weights leave the learner: through vLLM's weight-transfer interface, whatever carries the bytes.

    publish(version) ─► every rank iterates the source in lockstep (ZeRO-3 gathers by bucket)
                        rank 0 also drives the engines: start ─► buckets ─► finish(version)

The learner waits for the engines here, up to a deadline; the engines wait for nobody but freeze their requests.
`nccl` and `ipc` are vLLM's own trainer engines, `shared_memory` is ours.
"""

import secrets
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import ray
import torch
import xxhash
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferUpdatePayload,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from learner.config import LearnerConfig, WeightTransfer
from learner.report import PublishReport
from learner.weight_source import CausalLMSource, NamedWeight
from rollout.shared_buffer import SharedBuffer
from rollout.weight_transfer import BACKEND, SharedMemoryUpdateInfo
from rollout.worker import EngineInfo

SLOTS = 3  # buckets that the shared buffer holds
CHUNK_BYTES = 2**18  # copied, then hashed while still in the cache


class WeightSyncError(RuntimeError):
    """The engines did not take the weights; the message says why. They must not be used further."""


@dataclass(frozen=True)
class Call:
    """A call to every engine that may still be under way."""

    method: str
    answers: list[ray.ObjectRef]


class RayWeightSyncClient:
    """vLLM's `VLLMWeightSyncClient` over rollout workers, each call bounded by one deadline for the update."""

    def __init__(self, handles: Sequence[ActorHandle], timeout_s: float) -> None:
        self.version = 0  # of the update that the next calls belong to
        self.reload_seconds: float | None = None  # of the slowest engine in the latest update
        self._handles = handles
        self._timeout_s = timeout_s
        self.begin(0)
        self.engines: list[EngineInfo] = self._call("ready", [() for _ in handles])

    def begin(self, version: int) -> None:
        """The clock of the deadline starts; the following calls are about policy `version`."""
        self.version = version
        self._deadline = time.monotonic() + self._timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init_weight_transfer_engine", [(info,) for info in self._init_infos(init_info)])

    def start_weight_update(self) -> None:
        self._call_all("start_weight_update", self.version)

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        self.wait(self.begin_update_weights(update_info))

    def begin_update_weights(self, update_info: WeightTransferUpdatePayload) -> "Call":
        """The same without waiting; the engines take what they are sent in order."""
        return self._begin("update_weights", [(update_info,) for _ in self._handles])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The version is the one given to `begin`, whatever `weight_version` says: vLLM's engines give none."""
        seconds = self._call_all("finish_weight_update", self.version)
        self.reload_seconds = max((s for s in seconds if s is not None), default=None)

    def _init_infos(self, init_info: dict[str, Any]) -> list[dict[str, Any]]:
        """One for each engine: in a group of ranks, its workers come after those of the engines before it."""
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
        return self.wait(self._begin(method, arguments))

    def _begin(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> "Call":
        pairs = zip(self._handles, arguments, strict=True)
        return Call(method, [getattr(handle, method).remote(*args) for handle, args in pairs])

    def wait(self, call: "Call") -> list[Any]:
        """What the engines answer.

        Raises:
            WeightSyncError: the deadline has passed, or an engine refused or died.
        """
        method = call.method
        try:
            return ray.get(call.answers, timeout=max(0.0, self._deadline - time.monotonic()))
        except GetTimeoutError as error:
            raise WeightSyncError(
                f"policy version {self.version}: a rollout worker did not answer {method} within "
                f"{self._timeout_s:g} s (timeouts.weight_sync)"
            ) from error
        except RayTaskError as error:
            raise WeightSyncError(
                f"policy version {self.version}: {method} failed in a rollout worker: {error.cause}"
            ) from error
        except RayActorError as error:
            raise WeightSyncError(f"policy version {self.version}: a rollout worker died during {method}") from error


@dataclass
class SharedMemoryTrainerInitInfo(TrainerInitInfo):
    backend: ClassVar[str] = BACKEND


class SharedMemoryTrainerWeightTransferEngine(TrainerWeightTransferEngine[SharedMemoryTrainerInitInfo]):
    """Rank 0 copies buckets in turn into the slots of a buffer that it shares with the engines of its node.

    While the engines verify and load one, the next already lies ready and the one after it is being written.
    """

    init_info_cls = SharedMemoryTrainerInitInfo
    source: CausalLMSource
    client: RayWeightSyncClient

    def __init__(
        self,
        *,
        client: RayWeightSyncClient,
        source: CausalLMSource,
        is_sender: bool,
        buffer: SharedBuffer | None,
    ) -> None:
        super().__init__(client=client, source=source, is_sender=is_sender)
        self.checksum = ""  # of the latest update: xxh3_64 of its buckets' checksums
        self.write_seconds = 0.0  # of the latest update: copying and hashing
        self._buffer = buffer

    @classmethod
    def trainer_init(
        cls,
        init_info: SharedMemoryTrainerInitInfo,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> Self:
        if not isinstance(source, CausalLMSource):
            raise ValueError(f"learner.weight_transfer={BACKEND} sends from a CausalLMSource, not {source!r}")
        if not isinstance(client, RayWeightSyncClient):
            raise ValueError(f"learner.weight_transfer={BACKEND} sends through Ray, not {client!r}")
        if not init_info.is_sender:
            return cls(client=client, source=source, is_sender=False, buffer=None)
        nbytes = SLOTS * source.largest_bucket_bytes
        buffer = SharedBuffer.create(nbytes)
        try:
            client.init_weight_transfer_engine({"path": str(buffer.path), "nbytes": nbytes})
        finally:
            buffer.unlink()
        return cls(client=client, source=source, is_sender=True, buffer=buffer)

    def send_weights(self) -> None:
        self.write_seconds = 0.0
        if self.is_sender:
            self.client.start_weight_update()
        checksums = self._send_buckets(secrets.token_hex(8))
        if self.is_sender:
            self.client.finish_weight_update()
        self.checksum = xxhash.xxh3_64_hexdigest("".join(checksums).encode())

    def _send_buckets(self, update: str) -> list[str]:
        """Returns the checksum of each; ranks that do not send only take part in gathering."""
        checksums, loading = [], deque[Call]()
        for index, bucket in enumerate(self.source.buckets):
            if len(loading) == SLOTS:
                self.client.wait(loading.popleft())  # the slot that this bucket goes to is free now
            info = self._write(update, index, bucket)
            if info is not None:
                checksums.append(info.checksum)
                loading.append(self.client.begin_update_weights(asdict(info)))
        for call in loading:
            self.client.wait(call)
        return checksums

    def _write(self, update: str, index: int, bucket: Sequence[NamedWeight]) -> SharedMemoryUpdateInfo | None:
        start = (index % SLOTS) * self.source.largest_bucket_bytes
        with self.source.gathered(bucket):
            if self._buffer is None:
                return None
            started = time.perf_counter()
            checksum = write_bucket(self._buffer.data[start:], bucket, self.source.dtype)
            self.write_seconds += time.perf_counter() - started
        sizes = [weight.nbytes for weight in bucket]
        return SharedMemoryUpdateInfo(
            update=update,
            index=index,
            last=index == len(self.source.buckets) - 1,
            start=start,
            nbytes=sum(sizes),
            checksum=checksum,
            names=[weight.name for weight in bucket],
            dtype_names=[str(self.source.dtype).removeprefix("torch.") for _ in bucket],
            shapes=[list(weight.shape) for weight in bucket],
            offsets=[sum(sizes[:i]) for i in range(len(sizes))],
        )


def write_bucket(buffer: Tensor, bucket: Sequence[NamedWeight], dtype: torch.dtype) -> str:
    """Lay the weights end to end into `buffer` ([nbytes] uint8), cast to `dtype`; returns their xxh3_64."""
    digest = xxhash.xxh3_64()
    offset = 0
    for weight in bucket:
        target = buffer[offset : offset + weight.nbytes].view(dtype)
        source = weight.value().reshape(-1)
        numel = CHUNK_BYTES // dtype.itemsize
        for target_chunk, source_chunk in zip(target.split(numel), source.split(numel), strict=True):
            target_chunk.copy_(source_chunk)
            digest.update(target_chunk.view(torch.uint8).numpy())
        offset += weight.nbytes
    return digest.hexdigest()


if BACKEND not in WeightTransferTrainerFactory._registry:
    WeightTransferTrainerFactory.register_engine(BACKEND, SharedMemoryTrainerWeightTransferEngine)


class WeightPublisher:
    """Sends the weights of the learner to the rollout workers. Every rank has one and calls it in lockstep."""

    def __init__(
        self,
        model: nn.Module,
        rank: int,
        config: LearnerConfig,
        handles: Sequence[ActorHandle],
        timeout_s: float,
    ) -> None:
        """Connect with the engines.

        Args:
            model: the causal LM whose parameters are sent, under ZeRO stage `config.zero_stage`.
            rank: of this process; rank 0 sends.
            handles: of rollout workers, which have been constructed.
            timeout_s: for connecting, and for each publication.

        Raises:
            WeightSyncError: an engine did not answer in time, or refused.
        """
        self._client = RayWeightSyncClient(handles, timeout_s)
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
    if config.weight_transfer is WeightTransfer.shared_memory:
        return SharedMemoryTrainerInitInfo(rank=rank)
    if config.weight_transfer is WeightTransfer.ipc:
        return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=bucket_bytes)
    host = ray.util.get_node_ip_address()
    return NCCLTrainerInitInfo(
        master_address=host,
        master_port=_free_port(host),
        world_size=1 + sum(engine.workers for engine in engines),
        packed_buffer_size_bytes=bucket_bytes,
        rank=rank,
    )


def _free_port(host: str) -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        return listener.getsockname()[1]

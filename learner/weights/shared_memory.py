"""The learner's end of the shared-memory weight transfer, a backend of vLLM's weight-transfer interface.

    weights ─► bucket: cast, copied, hashed ─► slot of a shared buffer ─► engines verify and load it; the slot is free
                                            └► between nodes: Ray's object store ─► the same slot of each engine's own

Its counterpart is `rollout.weight_receiver`.
"""

import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Self

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from learner.weights.client import Call, RayWeightSyncClient
from learner.weights.source import CausalLMSource, NamedWeight
from tutelage.weights import SHARED_MEMORY, Bucket, BufferInfo, SharedBuffer

SLOTS = 3  # buckets that the shared buffer holds
CHUNK_BYTES = 2**18  # copied, then hashed while still in the cache


@dataclass
class SharedMemoryTrainerInitInfo(TrainerInitInfo):
    """Which rank this is, and how far away the engines may be; the buffer is made for what the source has."""

    backend: ClassVar[str] = SHARED_MEMORY
    between_nodes: bool = False


class SharedMemoryTrainerWeightTransferEngine(TrainerWeightTransferEngine[SharedMemoryTrainerInitInfo]):
    """Rank 0 copies buckets in turn into the slots of a buffer that it shares with the engines of its node.

    While the engines verify and load one, the next already lies ready and the one after it is being written. Engines on
    other nodes have such a buffer each, and are sent every bucket.
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
        between_nodes: bool = False,
    ) -> None:
        super().__init__(client=client, source=source, is_sender=is_sender)
        self._between_nodes = between_nodes
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
            raise ValueError(f"learner.weight_transfer={SHARED_MEMORY} sends from a CausalLMSource, not {source!r}")
        if not isinstance(client, RayWeightSyncClient):
            raise ValueError(f"learner.weight_transfer={SHARED_MEMORY} sends through Ray, not {client!r}")
        if not init_info.is_sender:
            return cls(client=client, source=source, is_sender=False, buffer=None)
        nbytes = SLOTS * source.largest_bucket_bytes
        buffer = SharedBuffer.create(nbytes)
        try:
            path = "" if init_info.between_nodes else str(buffer.path)
            client.init_weight_transfer_engine(asdict(BufferInfo(path, nbytes)))
        finally:
            buffer.unlink()  # everyone has it mapped by now; nothing is left behind if this process is killed
        between_nodes = init_info.between_nodes
        return cls(client=client, source=source, is_sender=True, buffer=buffer, between_nodes=between_nodes)

    def send_weights(self) -> None:
        """Bring all weights to the engines; a collective, of which rank 0 does the sending."""
        self.write_seconds = 0.0
        if self.is_sender:
            self.client.start_weight_update()
        checksums = self._send_buckets(secrets.token_hex(8))
        if self.is_sender:
            self.client.finish_weight_update()
        self.checksum = xxhash.xxh3_64_hexdigest("".join(checksums).encode())

    def _send_buckets(self, update: str) -> list[str]:
        """Send every bucket; returns their checksums. Ranks that do not send only take part in gathering.

        Args:
            update: a name of its own, so that engines do not take buckets of a broken-off update for these.
        """
        checksums, loading = [], deque[Call]()
        for index, bucket in enumerate(self.source.buckets):
            if len(loading) == SLOTS:
                # Writing is ahead by as many buckets as there are slots, no more: the oldest one still out lies in
                # the slot that this bucket will overwrite. Waiting for it alone keeps copying and loading in parallel.
                self.client.wait(loading.popleft())
            info = self._write(update, index, bucket)
            if info is not None:
                checksums.append(info.checksum)
                # Not awaited: engines load buckets in the order of their index even if the calls overtake each other.
                loading.append(self.client.begin_update_weights(asdict(info), self._bytes_of(info)))
        for call in loading:
            self.client.wait(call)
        return checksums

    def _bytes_of(self, bucket: Bucket) -> NDArray[np.uint8] | None:
        """What a bucket holds, where engines cannot read it in the buffer."""
        if self._buffer is None or not self._between_nodes:
            return None
        return self._buffer.data[bucket.start : bucket.start + bucket.nbytes].numpy()

    def _write(self, update: str, index: int, bucket: Sequence[NamedWeight]) -> Bucket | None:
        """Copy a bucket into its slot and describe it; None on ranks that do not send."""
        start = (index % SLOTS) * self.source.largest_bucket_bytes
        with self.source.gathered(bucket):
            if self._buffer is None:
                return None
            started = time.perf_counter()
            checksum = write_bucket(self._buffer.data[start:], bucket, self.source.dtype)
            self.write_seconds += time.perf_counter() - started
        sizes = [weight.nbytes for weight in bucket]
        return Bucket(
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


if SHARED_MEMORY not in WeightTransferTrainerFactory._registry:
    WeightTransferTrainerFactory.register_engine(SHARED_MEMORY, SharedMemoryTrainerWeightTransferEngine)

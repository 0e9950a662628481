"""What learner, engines and moving teachers agree on when weights travel through shared memory.

    learner rank 0 ── bucket ──► SharedBuffer ──► every reader of the node: checksum, then `read_bucket`
                   ── Bucket ──► (by Ray: where it lies, what is in it)

The buffer holds the bytes, end to end as a checkpoint has them; the small record that describes them travels by Ray.
Between nodes the bytes travel beside it, through Ray's object store, and each reader lays them in a buffer of its own.
"""

import mmap
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from tutelage.settings import WeightTransfer

SHARED_MEMORY = WeightTransfer.shared_memory.value  # our backend's name in vLLM's registries of both sides
DIRECTORY = Path("/dev/shm")
PREFIX = "tutelage-"


class SharedBuffer:
    """Memory that several processes of a node have mapped: `data`, [nbytes] uint8, behind a path in /dev/shm."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self._mapping = mapping
        self.data: Tensor = torch.frombuffer(mapping, dtype=torch.uint8)

    @classmethod
    def create(cls, nbytes: int) -> "SharedBuffer":
        """Reserve a new buffer, readable and writable by this user only.

        Raises:
            ValueError: /dev/shm has no room for it.
        """
        path = DIRECTORY / f"{PREFIX}{secrets.token_hex(16)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            # Reserving now turns a full /dev/shm into an error here, not into a SIGBUS at the first write.
            os.posix_fallocate(descriptor, 0, nbytes)
            return cls(path, mmap.mmap(descriptor, nbytes))
        except OSError as error:
            path.unlink()
            raise ValueError(
                f"{DIRECTORY} has no room for a buffer of {nbytes / 2**20:.0f} MiB ({error.strerror}): "
                "lower learner.weight_bucket_mib or enlarge it (docker: --shm-size)"
            ) from error
        finally:
            os.close(descriptor)

    @classmethod
    def open(cls, path: Path, nbytes: int) -> "SharedBuffer":
        """Map a buffer that another process of this node created.

        Raises:
            ValueError: the path is not such a buffer, or does not exist on this node.
        """
        if path.parent != DIRECTORY or not path.name.startswith(PREFIX):
            raise ValueError(f"{path} is not a shared buffer: its name must be {DIRECTORY}/{PREFIX}*")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise ValueError(
                f"{path} does not exist here: learner.weight_transfer=shared_memory needs its readers on the learner's "
                "node; set auto"
            ) from error
        try:
            return cls(path, mmap.mmap(descriptor, nbytes))
        finally:
            os.close(descriptor)

    def lay(self, start: int, data: NDArray[np.uint8]) -> None:
        """Put bytes that came by another way where a reader looks for them."""
        self.data.numpy()[start : start + len(data)] = data

    def unlink(self) -> None:
        """Take the name away; mappings stay valid. Does nothing the second time."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class EngineInfo:
    """What the learner must know of an engine to send it weights."""

    weight_dtype: str  # name of the torch dtype
    workers: int  # processes that hold a part of the model
    policy_version: int


@dataclass
class BufferInfo:
    """Where the buckets will lie."""

    path: str  # empty: each bucket comes with its record, and its reader has a buffer of its own
    nbytes: int


@dataclass
class Bucket:
    """Weights that lie end to end, bytes `start` to `start + nbytes` of the buffer; `offsets` count from its start.

    Two weights of a bfloat16 model, the first of three buckets:

        Bucket(update="5f0c", index=0, last=False, start=0, nbytes=20, checksum="ab…", names=["a", "b"],
               dtype_names=["bfloat16", "bfloat16"], shapes=[[2, 4], [2]], offsets=[0, 16])
    """

    update: str  # tells an update from an earlier one that broke off
    index: int  # of this bucket in the update, from 0
    last: bool
    start: int
    nbytes: int
    checksum: str  # xxh3_64 of the bucket, in hex
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    offsets: list[int]


class ChecksumMismatch(RuntimeError):
    """The bytes that arrived are not the bytes that were sent."""


def read_bucket(buffer: Tensor, bucket: Bucket) -> list[tuple[str, Tensor]]:
    """Verify a bucket and list its weights by name; they view `buffer` ([nbytes] uint8), which is written again.

    Raises:
        ChecksumMismatch: nothing of it may be used.
    """
    data = buffer[bucket.start : bucket.start + bucket.nbytes]
    checksum = xxhash.xxh3_64_hexdigest(data.numpy())
    if checksum != bucket.checksum:
        raise ChecksumMismatch(
            f"weight bucket {bucket.index} has checksum {checksum}, not {bucket.checksum} as sent: not loaded"
        )
    weights = []
    described = zip(bucket.names, bucket.dtype_names, bucket.shapes, bucket.offsets, strict=True)
    for name, dtype_name, shape, offset in described:
        dtype = getattr(torch, dtype_name)
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        weights.append((name, data[offset : offset + nbytes].view(dtype).view(shape)))
    return weights

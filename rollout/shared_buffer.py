"""A buffer that processes of one node share.

The name in /dev/shm exists only until every reader has opened it: its creator then unlinks it, and the memory
goes when the last process that maps it does, however that process ends.
"""

import mmap
import os
import secrets
from pathlib import Path

import torch
from torch import Tensor

DIRECTORY = Path("/dev/shm")
PREFIX = "tutelage-"


class SharedBuffer:
    """Bytes at `data` ([nbytes] uint8), shared by everyone who opened the same path."""

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
                f"{path} does not exist here: learner.weight_transfer=shared_memory needs the rollout worker "
                "on the learner's node; across nodes use nccl"
            ) from error
        try:
            return cls(path, mmap.mmap(descriptor, nbytes))
        finally:
            os.close(descriptor)

    def unlink(self) -> None:
        """Take the name away; mappings stay valid. Does nothing the second time."""
        self.path.unlink(missing_ok=True)

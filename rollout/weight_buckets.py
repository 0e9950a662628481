"""Weights in a shared buffer, as whoever reads them finds them: an engine, or a teacher that follows the student.

A bucket's checksum is verified before any of its weights is touched.
"""

from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor


@dataclass
class Bucket:
    """Weights that lie end to end, bytes `start` to `start + nbytes` of the buffer; `offsets` count from its start."""

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
    """The weights by name; they view the buffer ([nbytes] uint8), which the next bucket overwrites.

    Raises:
        ChecksumMismatch: nothing of it may be used.
    """
    data = buffer[bucket.start : bucket.start + bucket.nbytes]
    found = xxhash.xxh3_64_hexdigest(data.numpy())
    if found != bucket.checksum:
        raise ChecksumMismatch(
            f"weight bucket {bucket.index} has checksum {found}, not {bucket.checksum} as sent: not loaded"
        )
    weights = []
    described = zip(bucket.names, bucket.dtype_names, bucket.shapes, bucket.offsets, strict=True)
    for name, dtype_name, shape, offset in described:
        dtype = getattr(torch, dtype_name)
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        weights.append((name, data[offset : offset + nbytes].view(dtype).view(shape)))
    return weights

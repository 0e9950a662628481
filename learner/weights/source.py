"""The learner's weights as a stream of buckets of whole tensors, whatever the ZeRO stage."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from learner.lora import CheckpointWeight, checkpoint_weights


@dataclass(frozen=True)
class NamedWeight(CheckpointWeight):
    """A weight of a checkpoint and its size when it is sent."""

    nbytes: int  # on the wire

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor; under ZeRO-3 the parameter itself holds nothing between steps."""
        return tuple(getattr(self.parameter, "ds_shape", self.parameter.shape))


class CausalLMSource(WeightSource):
    """Every weight of a causal LM, in buckets of at most `bucket_bytes` (a larger tensor is one of its own).

    A tied LM head is sent under its own name as well: engines keep a packed copy of it that would go stale.
    Iteration is a collective under ZeRO-3: all ranks must do it in lockstep.
    """

    def __init__(self, model: nn.Module, zero_stage: int, dtype: torch.dtype, bucket_bytes: int) -> None:
        self.dtype = dtype
        self._sharded = zero_stage == 3
        self.buckets = _buckets(_named_weights(model, dtype), bucket_bytes)

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for bucket in self.buckets for weight in bucket)

    @property
    def largest_bucket_bytes(self) -> int:
        return max(sum(weight.nbytes for weight in bucket) for bucket in self.buckets)

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(w.name, self.dtype, w.shape) for bucket in self.buckets for w in bucket]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for bucket in self.buckets:
            with self.gathered(bucket):
                for weight in bucket:
                    yield weight.name, weight.value().to(self.dtype)

    def gathered(self, bucket: Sequence[NamedWeight]) -> AbstractContextManager[None]:
        """Make the parameters of a bucket whole while the context lasts, those of adapters too."""
        if not self._sharded:
            return nullcontext()
        return deepspeed.zero.GatheredParameters([part for weight in bucket for part in weight.parts])


def _named_weights(model: nn.Module, dtype: torch.dtype) -> list[NamedWeight]:
    weights = []
    for weight in checkpoint_weights(model):
        numel = getattr(weight.parameter, "ds_numel", weight.parameter.numel())
        weights.append(NamedWeight(weight.name, weight.parameter, weight.adapter, numel * dtype.itemsize))
    return weights


def _buckets(weights: Sequence[NamedWeight], bucket_bytes: int) -> list[list[NamedWeight]]:
    buckets: list[list[NamedWeight]] = []
    room = 0
    for weight in weights:
        if weight.nbytes > room:
            buckets.append([])
            room = max(bucket_bytes, weight.nbytes)
        buckets[-1].append(weight)
        room -= weight.nbytes
    return buckets

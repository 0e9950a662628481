"""The engine's end of the shared-memory weight transfer, a backend of vLLM's weight-transfer interface.

    learner rank 0 ── writes a bucket ──► shared buffer ──► each engine worker of the node verifies and loads it

A bucket's checksum is verified before any of its weights is touched. vLLM's layerwise reload does the rest:
it loads and repacks a layer as soon as all of its weights have arrived. The learner's end is
`learner.weights.shared_memory`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from rollout import truncation
from tutelage.weights import SHARED_MEMORY, Bucket, BufferInfo, SharedBuffer, read_bucket


@dataclass
class SharedMemoryInitInfo(BufferInfo, WeightTransferInitInfo):
    """Where the buckets will lie, as vLLM hands it on."""


@dataclass
class SharedMemoryUpdateInfo(Bucket, WeightTransferUpdateInfo):
    """One bucket, as vLLM hands it on."""


class SharedMemoryWeightTransferEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Loads checkpoint-format weights from a buffer that the learner fills."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def __init__(
        self,
        config: WeightTransferConfig,
        vllm_config: VllmConfig,
        device: torch.device,
        model: torch.nn.Module,
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self.reload_seconds = 0.0  # of the latest update, without reading and checking the buckets
        self._buffer: SharedBuffer | None = None
        self._update: str | None = None
        self._next_bucket = 0
        self._reloading = False

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        self._buffer = SharedBuffer.open(Path(init_info.path), init_info.nbytes)

    def start_weight_update(self) -> None:
        self._begin(None)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one bucket. Unlike the base class it does not synchronise an accelerator: CPUs have none."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        """Verify a bucket and load it; a bucket that was loaded already is skipped.

        Raises:
            ChecksumMismatch: nothing of the bucket has been loaded.
        """
        if update_info.update != self._update:
            self._begin(update_info.update)
        if update_info.index < self._next_bucket:
            return  # a call may come twice; loading it again would fill a layer that is complete already
        if update_info.index > self._next_bucket:
            raise ValueError(f"weight bucket {update_info.index} came before bucket {self._next_bucket}")
        if self._buffer is None:
            raise RuntimeError("the shared-memory weight transfer has not been initialised")
        weights = read_bucket(self._buffer.data, update_info)
        started = time.perf_counter()
        if not self._reloading:
            # Only now: until a bucket has been verified the old weights stay whole, and a broken update costs nothing.
            initialize_layerwise_reload(self.model)
            self._reloading = True
        self.model.load_weights(weights)
        if not update_info.last:
            self._keep_unprocessed_weights()
        self.reload_seconds += time.perf_counter() - started
        self._next_bucket = update_info.index + 1

    def finish_weight_update(self) -> None:
        started = time.perf_counter()
        self._finalize()
        self.reload_seconds += time.perf_counter() - started

    def shutdown(self) -> None:
        self._buffer = None

    def _begin(self, update: str | None) -> None:
        """Put away what an interrupted update left half-loaded; the new one loads every layer anew."""
        self._finalize()
        self._update, self._next_bucket, self.reload_seconds = update, 0, 0.0

    def _keep_unprocessed_weights(self) -> None:
        """Copy weights that wait for the rest of their layer: the next bucket overwrites what they view."""
        for layer in self.model.modules():
            for _name, bound in get_layerwise_info(layer).loaded_weights:
                for key, value in bound.arguments.items():
                    if isinstance(value, Tensor) and value.device.type != "meta":
                        bound.arguments[key] = value.clone()

    def _finalize(self) -> None:
        if self._reloading:
            finalize_layerwise_reload(self.model, self.model_config)
            self._reloading = False


class WorkerExtension:
    """What is mixed into vLLM's worker: the engine's frontend asks it what an update cost, and for another model."""

    weight_transfer_engine: SharedMemoryWeightTransferEngine
    model_runner: Any

    def weight_reload_seconds(self) -> float:
        return self.weight_transfer_engine.reload_seconds

    def load_checkpoint(self, path: str) -> None:
        """Put the weights of a checkpoint of the same architecture in the place of those that are there."""
        self.model_runner.reload_weights(weights_iterator=_checkpoint_weights(Path(path)))


_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _checkpoint_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Read every weight with its name; a tied LM head under its own as well, since engines keep a packed copy."""
    embedding, has_head = None, False
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, the file is no mapping
                weight = file.get_tensor(name)
                embedding = weight if name == _EMBEDDING else embedding
                has_head = has_head or name == _HEAD
                yield name, weight
    if embedding is not None and not has_head:
        yield _HEAD, embedding


def register() -> None:
    """Entry point `vllm.general_plugins`: vLLM calls it in each of its processes, perhaps twice.

    Beside the weight transfer it brings what else our engines change of vLLM.
    """
    truncation.install()
    if SHARED_MEMORY not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(SHARED_MEMORY, SharedMemoryWeightTransferEngine)

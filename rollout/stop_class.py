"""The ends of a turn as one action in the engine: a logits processor, for both of vLLM's model runners.

It runs before temperature, top-p and top-k, so what is sampled and all log-probs that come back know nothing of the ids
behind the one that is kept.
"""

from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as RunnerTwoLogitsProcessor

from tutelage.stops import StopClass

NAME = "rollout.stop_class:MergedStops"  # by which vLLM's processes find it
SETTING = "tutelage_stop_class"  # of vLLM's additional_config: the ids, the kept one first


class MergedStops(LogitsProcessor, RunnerTwoLogitsProcessor):
    """Merges a stop class at every position of every request."""

    def __init__(self, vllm_config: VllmConfig, *_whatever_the_runner_has: Any) -> None:
        kept, *others = vllm_config.additional_config[SETTING]
        self._stops = StopClass(kept, tuple(others))

    def apply(self, logits: Tensor, ctx: LogitsContext | None = None) -> Tensor:
        self._stops.merge_(logits)
        return logits

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Nothing depends on who is in the batch."""

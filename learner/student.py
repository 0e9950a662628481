"""The student as one module: backbone, then whatever is to be done with the final states and the LM head.

Shape suffixes: R response positions, V vocabulary, d hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from learner.config import LearnerConfig, StudentConfig
from learner.head.fused_loss import output_head
from learner.lora import add_adapters
from learner.tensors import PackedTensors
from tutelage.lm.packed import final_hidden_states, load_causal_lm

# Called with hidden states [R, d], head weight [V, d] and bias [V] or None.
HeadJob = Callable[[Tensor, Tensor, Tensor | None], Any]


class SharedHead(nn.Module):
    """Hands the LM head's own parameters to a job.

    ZeRO-3 gathers a module's parameters around that module's forward, so they must be read inside it.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias

    def forward(self, hidden: Tensor, job: HeadJob) -> Any:
        return job(hidden, self.weight, self.bias)


class Student(nn.Module):
    """`causal_lm` comes first, so every parameter keeps its name in the checkpoint, after one prefix."""

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.shared_head = SharedHead(output_head(causal_lm))

    def forward(self, packed: PackedTensors, job: HeadJob) -> Any:
        hidden = final_hidden_states(
            self.causal_lm.base_model,
            packed.token_ids,
            packed.position_ids,
            packed.segment_starts,
            packed.segment_parents,
        )
        return self.shared_head(hidden[packed.logit_positions], job)


def load_student(
    model_path: str, settings: StudentConfig, config: LearnerConfig, longest: int | None = None
) -> Student:
    """Load the student in its training precision, on the CPU, without dropout (rollouts come without it).

    Args:
        longest: tokens of a sequence, as for `load_causal_lm`.
    """
    dtype = getattr(torch, config.dtype.value)
    model = load_causal_lm(model_path, dtype, config.attention.value, settings.trust_remote_code, longest=longest)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _remove_dropout(model)
    if settings.lora.rank:
        add_adapters(model, settings.lora)
    return Student(model).train()


def _remove_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0

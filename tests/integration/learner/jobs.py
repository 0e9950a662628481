"""Jobs that real ranks do, and what their steps are held against: plain autograd and exported weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from learner.config import LearnerConfig, LearnerSetup, StudentConfig
from learner.engine import LearnerEngine
from learner.records import Example
from tests.learner.objectives.compositions import COMPOSITIONS
from tutelage.settings import DType

BUDGET = 40
STEPS = 3


@dataclass(frozen=True)
class Job:
    """A learner to build on every rank."""

    model: Path
    config: LearnerConfig
    objective: str = "student_topk_reverse_kl"
    total_steps: int = 10

    def engine(self) -> LearnerEngine:
        objective = COMPOSITIONS[self.objective]
        setup = LearnerSetup(str(self.model), StudentConfig(), self.config, objective, self.total_steps)
        return LearnerEngine(setup)


def settings(stage: int = 2, **values: object) -> LearnerConfig:
    defaults = {"zero_stage": stage, "dtype": DType.float32, "learning_rate": 1e-3, "head_chunk_tokens": 16}
    return LearnerConfig(**(defaults | values))


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return math.sqrt(sum(float((one[n].double() - other[n].double()).square().sum()) for n in one))


def assert_same_update(one: Path, other: Path, model: Path, tolerance: float) -> None:
    """The weights differ by less than `tolerance` of what training changed."""
    moved = distance(weights(one), weights(model))
    assert moved > 0
    assert distance(weights(one), weights(other)) < tolerance * moved


def plain_loss(model_path: Path, examples: Sequence[Example]) -> tuple[float, float]:
    """Loss and gradient norm of the top-k objective through transformers and autograd, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    total = sum(example.trajectory.loss_tokens for example in examples)
    value = 0.0
    for example in examples:
        t, signal = example.trajectory, example.signal
        ids = torch.tensor(np.concatenate([t.prompt_ids, t.response_ids]), dtype=torch.int64)
        logp = model(ids[None]).logits[0, len(t.prompt_ids) - 1 : -1].log_softmax(-1)
        logp_TK = logp.gather(1, torch.tensor(signal.support_ids, dtype=torch.int64))
        terms = (logp_TK.exp() * (logp_TK.detach() - torch.tensor(signal.support_logprobs))).sum(-1)
        loss = terms[torch.tensor(t.loss_mask)].sum() / total
        loss.backward()
        value += float(loss.detach())
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return value, float(norm)

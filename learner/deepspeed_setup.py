"""From the learner's configuration to a DeepSpeed engine."""

from functools import partial
from typing import Any

import deepspeed
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from learner.config import LearnerConfig
from rollout.config import DType

_BUCKET_ELEMENTS = 50_000_000  # of a collective; DeepSpeed's own 5e8 reserves gigabytes


def initialise(module: nn.Module, config: LearnerConfig, total_steps: int) -> Any:
    """Wrap `module`; the process group exists already. `total_steps` is the length of the schedule."""
    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
        fused=True,  # one pass over the state, on CPU too
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=partial(_schedule, config, total_steps),
        config=_settings(config),
    )
    return engine


def _schedule(config: LearnerConfig, total_steps: int, optimizer: Optimizer) -> LRScheduler:
    return get_scheduler(config.schedule.value, optimizer, config.warmup_steps, total_steps)


def _settings(config: LearnerConfig) -> dict[str, Any]:
    if config.zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"learner.zero_stage={config.zero_stage} must be 0, 1, 2 or 3")
    return {
        # The engine accumulates by hand and normalises the loss itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.dtype is DType.bfloat16},
        # DeepSpeed has no float32 accumulation for bf16 parameters without ZeRO.
        "data_types": {"grad_accum_dtype": "fp32" if config.zero_stage else None},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "allgather_bucket_size": _BUCKET_ELEMENTS,
        },
        "steps_per_print": None,
    }

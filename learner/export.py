"""The student as a Hugging Face checkpoint."""

import os
import shutil
from pathlib import Path

import deepspeed
import torch.distributed as dist
from torch import Tensor
from transformers import AutoTokenizer

from learner.engine import LearnerEngine


def export(engine: LearnerEngine, directory: Path) -> None:
    """Write weights (safetensors, in the training precision), tokenizer and generation config.

    Appears under its name at once, complete. A collective: every rank must call it; rank 0 writes.

    Raises:
        ValueError: `directory` exists already.
    """
    if directory.exists():
        raise ValueError(f"export: {directory} exists already")
    state = _whole_state(engine)
    if engine.rank == 0:
        temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        engine.module.save_pretrained(temporary, state_dict=state, safe_serialization=True)
        trusted = engine.trust_remote_code
        AutoTokenizer.from_pretrained(engine.model_path, trust_remote_code=trusted).save_pretrained(temporary)
        temporary.rename(directory)
    dist.barrier()


def _whole_state(engine: LearnerEngine) -> dict[str, Tensor]:
    """Every parameter and persistent buffer on the CPU, gathered one by one; empty on ranks other than 0."""
    model = engine.module
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter, enabled=engine.zero_stage == 3):
            if engine.rank == 0:
                state[name] = parameter.detach().to("cpu", copy=True)
    persistent = model.state_dict().keys()
    if engine.rank == 0:
        state |= {n: b.detach().to("cpu", copy=True) for n, b in model.named_buffers() if n in persistent}
    if model.config.tie_word_embeddings:
        # named_parameters() names a shared tensor once; save_pretrained expects to find its other name too.
        state |= {alias: state[name] for alias, name in _aliases(engine).items() if name in state}
    return state


def _aliases(engine: LearnerEngine) -> dict[str, str]:
    names: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(parameter), name)
        if first != name:
            aliases[name] = first
    return aliases

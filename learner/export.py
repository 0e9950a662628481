"""Export: the student as a Hugging Face checkpoint."""

import os
import shutil
from pathlib import Path

import deepspeed
import torch.distributed as dist
from torch import Tensor
from transformers import AutoTokenizer

from learner.engine import LearnerEngine
from learner.lora import checkpoint_weights, save_adapter

ADAPTER = "adapter"  # folder of a checkpoint


def export(engine: LearnerEngine, directory: Path) -> None:
    """Write weights (safetensors, in the training precision), tokenizer and generation config.

    Adapters are merged into the weights, and written into the folder `adapter` as peft reads them as well. All of it
    appears under its name at once, complete. A collective: every rank must call it; rank 0 writes.

    Raises:
        ValueError: `directory` exists already.
    """
    if directory.exists():
        raise ValueError(f"export: {directory} exists already")
    dist.barrier()  # a rank that is late must not find there what rank 0 has written meanwhile
    state = _whole_state(engine)
    adapter = _trained_state(engine) if engine.student.lora.rank else {}
    if engine.rank == 0:
        temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        _end_turns(engine)
        engine.module.save_pretrained(temporary, state_dict=state, safe_serialization=True)
        trusted = engine.student.trust_remote_code
        AutoTokenizer.from_pretrained(engine.model_path, trust_remote_code=trusted).save_pretrained(temporary)
        if adapter:
            save_adapter(engine.module, adapter, engine.model_path, temporary / ADAPTER)
        temporary.rename(directory)
    dist.barrier()


def _end_turns(engine: LearnerEngine) -> None:
    """Let generation stop at all ends of a turn that the run had, and at those of the checkpoint."""
    generation = engine.module.generation_config
    if engine.ends.stop_ids and generation is not None:
        own = generation.eos_token_id
        ids = [] if own is None else [own] if isinstance(own, int) else list(own)
        generation.eos_token_id = sorted({*ids, *engine.ends.stop_ids})


def _whole_state(engine: LearnerEngine) -> dict[str, Tensor]:
    """Gather every weight, adapters merged, and persistent buffer one by one on the CPU; empty on ranks over 0."""
    model = engine.module
    state: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    for weight in checkpoint_weights(model):
        first = names.setdefault(id(weight.parameter), weight.name)
        if first != weight.name:
            if first in state and model.config.tie_word_embeddings:
                state[weight.name] = state[first]  # save_pretrained expects to find both names of one tensor
            continue
        with deepspeed.zero.GatheredParameters(weight.parts, enabled=engine.config.zero_stage == 3):
            if engine.rank == 0:
                state[weight.name] = weight.value().to("cpu", weight.parameter.dtype, copy=True)
    persistent = model.state_dict().keys()
    if engine.rank == 0:
        state |= {n: b.detach().to("cpu", copy=True) for n, b in model.named_buffers() if n in persistent}
    return state


def _trained_state(engine: LearnerEngine) -> dict[str, Tensor]:
    """Gather what is trained, by its name in the learner's model, on the CPU; empty on ranks over 0."""
    state: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            with deepspeed.zero.GatheredParameters(parameter, enabled=engine.config.zero_stage == 3):
                if engine.rank == 0:
                    state[name] = parameter.detach().to("cpu", copy=True)
    return state

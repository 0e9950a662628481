"""What checkpoints and this machine hold, read from their files."""

import math
import os
from pathlib import Path

from safetensors import safe_open
from transformers import AutoConfig

from diagnostics.preflight.budget import ModelSize

_GIB = 2**30
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def model_size(path: str) -> ModelSize:
    """Count a checkpoint's numbers from the headers of its weights and from config.json; nothing is loaded."""
    config = AutoConfig.from_pretrained(path).get_text_config()
    parameters = 0
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118, the file is no mapping
                parameters += math.prod(weights.get_slice(name).get_shape())
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSize(
        parameters=parameters,
        head=config.vocab_size * config.hidden_size,
        vocabulary=config.vocab_size,
        cache=2 * config.num_hidden_layers * heads * head_size,
    )


def host_memory_gib() -> float:
    """Memory of this machine, or of its container."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = _CONTAINER_LIMIT.read_text().strip() if _CONTAINER_LIMIT.is_file() else "max"
    return min(machine, int(text) if text.isdigit() else machine) / _GIB

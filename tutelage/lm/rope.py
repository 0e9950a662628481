"""Rotary frequencies that do not depend on what a sequence is packed with."""

from pathlib import Path

from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_BY_LENGTH = ("longrope", "dynamic")


def fix_frequencies(model: nn.Module, longest: int | None) -> None:
    """Choose a model's rotary frequencies once, for the longest sequence that it may see.

    transformers chooses those of rope_type `longrope` and `dynamic` by the largest position of each forward: the same
    sequence has other log-probs beside a longer one, and its first tokens others once it has grown. vLLM chooses once,
    by max_model_len, and so does this: `longrope` has its long factors where `longest` is more than the original
    length, `dynamic` is scaled where it is more than max_position_embeddings.

    Args:
        longest: tokens of a sequence (rollout.max_model_len); None: all that the model has positions for.
    """
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        if isinstance(types, dict):
            module.rope_type = {layers: _fix(module, kind, longest, layers) for layers, kind in types.items()}
        elif isinstance(types, str):
            module.rope_type = _fix(module, types, longest, None)


def chosen_by_length(path: str) -> bool:
    """Tell whether the frequencies of the checkpoint in directory `path` depend on the longest sequence."""
    settings = Path(path) / "config.json"
    written = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    return any(f'"{kind}"' in written for kind in _BY_LENGTH)


def _fix(module: nn.Module, kind: str, longest: int | None, layers: str | None) -> str:
    """Set one kind of layers' frequencies, and name the kind that a forward takes it for from here on."""
    if kind not in _BY_LENGTH:
        return kind
    most = module.max_seq_len_cached  # as built: max_position_embeddings
    tokens = most if longest is None else longest
    if kind == "longrope" or tokens > most:
        prefix = f"{layers}_" if layers else ""
        device = getattr(module, f"{prefix}inv_freq").device
        frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](module.config, device, seq_len=tokens, layer_type=layers)
        for name in ("inv_freq", "original_inv_freq"):
            module.register_buffer(f"{prefix}{name}", frequencies.clone(), persistent=False)
        setattr(module, f"{prefix}attention_scaling", scaling)
    return f"fixed {'longrope' if kind == 'longrope' else 'ntk'}"  # neither is changed by a forward

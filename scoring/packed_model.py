"""A transformers causal language model run on packed sequences: one forward for teachers and learner.

Shape suffixes: N tokens laid end to end, S sequences, d hidden size.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PACKED_SDPA = "packed_sdpa"

_PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
# Arguments by which a model changes the attention scores themselves; SDPA has no place for them.
_UNSUPPORTED_ATTENTION = ("softcap", "s_aux", "position_bias")
# Settings by which a model transforms its logits after the LM head, with the values that leave them alone.
_LOGIT_TRANSFORMS: dict[str, tuple[float | None, ...]] = {
    "final_logit_softcapping": (None, 0.0),
    "logits_soft_cap": (None, 0.0),
    "output_logit_soft_cap": (None, 0.0),
    "logits_scaling": (None, 1.0),
    "logit_scale": (None, 1.0),
    "logits_mup_width_multiplier": (None, 1.0),
    "lm_head_multiplier": (None, 1.0),
}


def _sliding_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """[1, 1, length, length], True where a token sees one of the `window` latest; None if it sees all."""
    if window is None or length <= window:
        return None
    mask = torch.ones(length, length, dtype=torch.bool, device=device)
    return mask.tril().triu(1 - window)[None, None]


def _packed_sdpa(
    module: nn.Module,
    query: Tensor,  # [1, heads, N, head size]
    key: Tensor,  # [1, key-value heads, N, head size]
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence, one kernel call a sequence: no [N, N] mask exists."""
    unsupported = [name for name in _UNSUPPORTED_ATTENTION if others.get(name) is not None]
    if unsupported:
        raise ValueError(
            f"attention={PACKED_SDPA} cannot run {type(module).__name__}, which needs "
            f"{', '.join(unsupported)}; use flash_attention_2 on a GPU, or another model"
        )
    parts = []
    for start, stop in pairwise(cu_seq_lens_q.tolist()):
        mask = _sliding_mask(stop - start, sliding_window, query.device)
        q, k, v = (x[:, :, start:stop] for x in (query, key, value))
        out, _weights = sdpa_attention_forward(
            module, q, k, v, mask, dropout=dropout, scaling=scaling, is_causal=mask is None
        )
        parts.append(out)
    return torch.cat(parts, dim=1), None


AttentionInterface.register(PACKED_SDPA, _packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, lambda *_args, **_kwargs: None)


def refuse_transformed_logits(config: PreTrainedConfig) -> None:
    """Refuse models whose logits are more than `lm_head(hidden)`: chunked heads apply the bare matrix.

    Raises:
        ValueError: the model soft-caps or scales its logits.
    """
    text_config = config.get_text_config()
    for name, harmless in _LOGIT_TRANSFORMS.items():
        value = getattr(text_config, name, None)
        if value not in harmless:
            raise ValueError(
                f"model {config.name_or_path!r} transforms its logits after the LM head ({name}={value} in "
                "its config.json), which is not supported yet; choose a model that does not"
            )


def refuse_unpackable_layers(config: PreTrainedConfig) -> None:
    """Refuse models whose layers carry state across the border of two packed sequences.

    Raises:
        ValueError: a layer is neither full nor sliding-window attention.
    """
    unpackable = sorted(set(getattr(config.get_text_config(), "layer_types", None) or []) - _PACKABLE_LAYERS)
    if unpackable:
        raise ValueError(
            f"model {config.name_or_path!r} has layers that cannot be packed "
            f"({', '.join(unpackable)}); choose a model whose layers are full or sliding-window attention"
        )


def load_causal_lm(
    path: str, dtype: torch.dtype, attention: str = PACKED_SDPA, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a checkpoint from safetensors only, on the CPU, in eval mode.

    Raises:
        ValueError: packing or a chunked LM head would change what the model computes.
    """
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    )
    refuse_unpackable_layers(model.config)
    refuse_transformed_logits(model.config)
    return model.eval()


def final_hidden_states(
    backbone: nn.Module, token_ids: Tensor, position_ids: Tensor, sequence_starts: Tensor
) -> Tensor:
    """States that enter the LM head, [N, d].

    Args:
        backbone: the causal LM without its head (`model.base_model`).
        token_ids: [N] packed sequences.
        position_ids: [N], from 0 in each sequence.
        sequence_starts: [S + 1] int32, cumulative lengths.
    """
    longest = int(sequence_starts.diff().max())
    output = backbone(
        input_ids=token_ids[None],
        position_ids=position_ids[None],
        use_cache=False,
        cu_seq_lens_q=sequence_starts,
        cu_seq_lens_k=sequence_starts,
        max_length_q=longest,
        max_length_k=longest,
    )
    return output.last_hidden_state[0]

"""A transformers causal language model run on packed sequences: the same forward for teachers and for the learner.

Shape suffixes: N tokens laid end to end, S sequences, d hidden size.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PACKED_SDPA = "packed_sdpa"


def _packed_sdpa(
    module: nn.Module,
    query: Tensor,  # [1, heads, N, head size]
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence, one kernel call a sequence: no [N, N] mask exists."""
    parts = []
    for start, stop in pairwise(cu_seq_lens_q.tolist()):
        length = stop - start
        mask = None
        if sliding_window is not None and length > sliding_window:
            mask = torch.ones(length, length, dtype=torch.bool, device=query.device)
            mask = mask.tril().triu(1 - sliding_window)[None, None]
        q, k, v = (x[:, :, start:stop] for x in (query, key, value))
        out, _weights = sdpa_attention_forward(
            module, q, k, v, mask, dropout=dropout, scaling=scaling, is_causal=mask is None
        )
        parts.append(out)
    return torch.cat(parts, dim=1), None


AttentionInterface.register(PACKED_SDPA, _packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, lambda *_args, **_kwargs: None)


def load_causal_lm(
    path: str, dtype: torch.dtype, attention: str = PACKED_SDPA, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a checkpoint from safetensors only, on the CPU, in eval mode."""
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    )
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

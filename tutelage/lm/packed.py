"""A transformers causal language model run on packed sequences: one forward for teachers and learner.

Shape suffixes: N tokens laid end to end, S segments (whole sequences, or the parts of a tree of prefixes: see
`tutelage.lm.prefix_tree`), d hidden size.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tutelage.lm.head import LogitTransform
from tutelage.lm.rope import fix_frequencies

PACKED_SDPA = "packed_sdpa"
_PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
# Arguments by which a model changes the attention scores themselves; SDPA has no place for them.
_UNSUPPORTED_ATTENTION = ("softcap", "s_aux", "position_bias")


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """[1, 1, queries, keys], True where the last tokens of a path see themselves and one of the `window` latest.

    None where plain causal attention is the same.
    """
    sees_all = window is None or keys <= window
    if sees_all and queries == keys:
        return None
    before = keys - queries
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(before)
    return (mask if sees_all or window is None else mask.triu(before + 1 - window))[None, None]


def _path(segment: int, parents: list[int]) -> list[int]:
    """A segment and those it continues, the first one first."""
    path = [segment]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


def _packed_sdpa(
    module: nn.Module,
    query: Tensor,  # [1, heads, N, head size]
    key: Tensor,  # [1, key-value heads, N, head size]
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    segment_parents: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Causal attention of each segment to its path, one kernel call a segment: no [N, N] mask exists."""
    unsupported = [name for name in _UNSUPPORTED_ATTENTION if others.get(name) is not None]
    if unsupported:
        raise ValueError(
            f"attention={PACKED_SDPA} cannot run {type(module).__name__}, which needs {', '.join(unsupported)}"
        )
    if cu_seq_lens_q is None or segment_parents is None:
        raise ValueError(
            f"attention={PACKED_SDPA} cannot run {type(module).__name__}: its model does not tell it where sequences "
            "end"
        )
    parts = []
    starts, parents = cu_seq_lens_q.tolist(), segment_parents.tolist()
    own = [slice(start, stop) for start, stop in itertools.pairwise(starts)]
    for segment in range(len(own)):
        q = query[:, :, own[segment]]
        path = [own[step] for step in _path(segment, parents)]
        k, v = (torch.cat([x[:, :, step] for step in path], dim=2) for x in (key, value))
        mask = _mask(q.shape[2], k.shape[2], sliding_window, query.device)
        out, _weights = sdpa_attention_forward(
            module, q, k, v, mask, dropout=dropout, scaling=scaling, is_causal=mask is None
        )
        parts.append(out)
    return torch.cat(parts, dim=1), None


AttentionInterface.register(PACKED_SDPA, _packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, lambda *_args, **_kwargs: None)


def shares_prefixes(attention: str) -> bool:
    """Whether an attention implementation can continue a segment that another sequence uses too."""
    return attention == PACKED_SDPA


def unpackable_layers(config: PreTrainedConfig) -> list[str]:
    """The kinds of a model's layers that carry state across the border of two packed sequences."""
    return sorted(set(getattr(config.get_text_config(), "layer_types", None) or []) - _PACKABLE_LAYERS)


def refuse_unpackable_layers(config: PreTrainedConfig) -> None:
    """Refuse models whose layers carry state across the border of two packed sequences.

    Raises:
        ValueError: a layer is neither full nor sliding-window attention.
    """
    unpackable = unpackable_layers(config)
    if unpackable:
        raise ValueError(
            f"model {config.name_or_path!r} has layers that cannot be packed "
            f"({', '.join(unpackable)}); choose a model whose layers are full or sliding-window attention"
        )


def load_causal_lm(
    path: str,
    dtype: torch.dtype,
    attention: str = PACKED_SDPA,
    trust_remote_code: bool = False,
    quantization: BitsAndBytesConfig | None = None,
    device_map: str | Mapping[str, str] | None = None,
    longest: int | None = None,
) -> PreTrainedModel:
    """Load a checkpoint from safetensors only, in eval mode.

    Args:
        device_map: where its modules go, as accelerate takes it; None: the CPU.
        longest: tokens of a sequence, by which some models choose their rotary frequencies; None: all positions.

    Raises:
        ValueError: packing or a chunked LM head would change what the model computes.
    """
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        quantization_config=quantization,
        device_map=device_map,
    )
    refuse_unpackable_layers(model.config)
    fix_frequencies(model, longest)
    model.eval()
    if attention == PACKED_SDPA:  # the others run on GPUs only, and the model may not be there yet
        _refuse_unknown_logits(model)
    return model


def _refuse_unknown_logits(model: PreTrainedModel) -> None:
    """Compare the model's own logits of a few tokens with what a chunked head makes of its packed final states.

    They are packed behind other tokens, and the model's own logits are those of them alone.
    """
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(4, device=device)
    first, alone = torch.tensor([0, 4], dtype=torch.int32, device=device), torch.tensor([-1], device=device)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return  # refused by whoever takes the head
    with torch.no_grad():  # what a model caches here must stay fit for training
        behind = torch.cat([ids[:3], ids]), torch.cat([ids[:3], ids])
        starts, parents = torch.tensor([0, 3, 7], dtype=torch.int32, device=device), alone.expand(2)
        states = final_hidden_states(model.base_model, *behind, starts, parents)[3:]
        logits = LogitTransform.of(model.config).apply_(head(states)).float()
        arguments = _packing_arguments(first, alone)
        expected = model(input_ids=ids[None], position_ids=ids[None], **arguments).logits[0].float().to(logits.device)
    if not expected.isfinite().all():
        raise ValueError(
            f"model {model.config.name_or_path!r} computes log-probs that are no numbers (NaN or infinite); its "
            "weights are damaged, or too large for this dtype: choose another checkpoint, or float32"
        )
    if logits.shape != expected.shape or not torch.allclose(
        logits, expected, rtol=0.02, atol=0.02 * float(expected.abs().max())
    ):
        raise ValueError(
            f"model {model.config.name_or_path!r} says something else of tokens packed behind others, or makes "
            f"its logits from its final states in a way that is not known here ({type(model).__name__}); choose a "
            "model of docs/architectures.md, with an LM head, a factor and a soft cap at most"
        )


def _packing_arguments(segment_starts: Tensor, segment_parents: Tensor) -> dict[str, Any]:
    longest = int(segment_starts.diff().max())
    return {
        "use_cache": False,
        "cu_seq_lens_q": segment_starts,
        "cu_seq_lens_k": segment_starts,
        "segment_parents": segment_parents,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def final_hidden_states(
    backbone: nn.Module,
    token_ids: Tensor,
    position_ids: Tensor,
    segment_starts: Tensor,
    segment_parents: Tensor,
) -> Tensor:
    """States that enter the LM head, [N, d].

    Args:
        backbone: the causal LM without its head (`model.base_model`).
        token_ids: [N] packed segments.
        position_ids: [N], each token's place in its sequence.
        segment_starts: [S + 1] int32, cumulative lengths.
        segment_parents: [S], the segment that each one continues, -1 where a sequence begins. Only
            `packed_sdpa` continues segments; other kernels need whole sequences.
    """
    output = backbone(
        input_ids=token_ids[None],
        position_ids=position_ids[None],
        **_packing_arguments(segment_starts, segment_parents),
    )
    return output.last_hidden_state[0]
